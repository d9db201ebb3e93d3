use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::check::{self, Plan};
use crate::testing::{self, id, node_name, service, three_zones, with_volume};
use model::compute::{Exit, ExitHow};
use model::control::{NodeRecord, RolloutPhase, Standing};
use model::units::{Bytes, Span};

/// A service on nodes that do what they are told at once: each turn is a second, in which nodes start and stop what is placed and then the
/// service is stepped until nothing changes. Every step is checked.
struct World {
    nodes: BTreeMap<NodeName, NodeRecord>,
    silent: BTreeSet<NodeName>,
    cluster: Cluster,
    releases: BTreeMap<ReleaseNumber, Service>,
    /// Releases whose instances never become ready.
    broken: BTreeSet<ReleaseNumber>,
    /// What is broken also ends again and again.
    looping: bool,
    /// Releases whose copies end so many seconds after they became ready; `u64::MAX`: never.
    short_lived: BTreeMap<ReleaseNumber, u64>,
    /// For how long each copy has been ready.
    ready_for: BTreeMap<InstanceName, u64>,
    /// Releases that can't be started anywhere.
    unstartable: BTreeSet<ReleaseNumber>,
    /// Nodes where everything ends again and again.
    looping_on: BTreeSet<NodeName>,
    /// Nodes where nothing can be started.
    failing: BTreeSet<NodeName>,
    /// Nodes where nothing becomes ready.
    hanging: BTreeSet<NodeName>,
    /// Nodes that take their time: nothing becomes ready or goes.
    slow: bool,
    target: Option<ReleaseNumber>,
    /// `None` where the newest release was returned to.
    applied: Option<ReleaseNumber>,
    /// Releases whose `before_deploy` fails; and whether one takes its time.
    unprepared: BTreeSet<ReleaseNumber>,
    prepares_slowly: bool,
    replicas: u32,
    rollout: Option<Rollout>,
    group: PlacementGroup,
    reports: BTreeMap<InstanceName, InstanceReport>,
    memory: Memory,
    wake: Option<Instant>,
    hold: Option<Reason>,
    barred: Vec<(NodeName, Reason)>,
    seconds: u64,
    events: Vec<String>,
    /// The fewest copies ready at any moment, once there were as many as wanted.
    fewest_ready: usize,
    most_there: usize,
}

impl World {
    fn new(spec: Service) -> Self {
        Self::on(three_zones(), spec)
    }

    fn on(nodes: Vec<NodeRecord>, spec: Service) -> Self {
        let mut world = Self {
            cluster: Cluster::new(&nodes),
            nodes: nodes
                .into_iter()
                .map(|node| (node.name.clone(), node))
                .collect(),
            silent: BTreeSet::new(),
            releases: BTreeMap::new(),
            broken: BTreeSet::new(),
            looping: false,
            short_lived: BTreeMap::new(),
            ready_for: BTreeMap::new(),
            unstartable: BTreeSet::new(),
            looping_on: BTreeSet::new(),
            failing: BTreeSet::new(),
            hanging: BTreeSet::new(),
            slow: false,
            target: None,
            applied: None,
            unprepared: BTreeSet::new(),
            prepares_slowly: false,
            replicas: spec.replicas,
            rollout: None,
            group: PlacementGroup::default(),
            reports: BTreeMap::new(),
            memory: Memory::default(),
            wake: None,
            hold: None,
            barred: Vec::new(),
            seconds: 0,
            events: Vec::new(),
            fewest_ready: usize::MAX,
            most_there: 0,
        };
        world.release(spec);
        world
    }

    fn release(&mut self, spec: Service) {
        let number = self.target.unwrap_or_default().next();
        self.replicas = spec.replicas;
        self.releases.insert(number, spec);
        self.target = Some(number);
        self.applied = Some(number);
    }

    fn lose(&mut self, name: &str) {
        self.stand(name, Standing::Lost);
    }

    fn stand(&mut self, name: &str, standing: Standing) {
        let record = self.nodes.get_mut(&node_name(name)).unwrap();
        record.standing = standing;
        self.cluster.set_node(record);
    }

    fn step(&mut self) -> bool {
        let releases: BTreeMap<_, _> = self
            .releases
            .iter()
            .map(|(number, spec)| (*number, spec))
            .collect();
        let reports: BTreeMap<_, _> = self
            .reports
            .iter()
            .map(|(name, report)| (name.clone(), report))
            .collect();
        let (nodes, silent) = (&self.nodes, &self.silent);
        let sight = |name: &NodeName| match nodes.get(name) {
            Some(node) if node.standing == Standing::Present && silent.contains(name) => {
                Sight::Silent
            }
            Some(node) if node.standing == Standing::Present => Sight::Heard,
            _ => Sight::Lost,
        };
        let view = ServiceView {
            id: &id("web"),
            target: self.target,
            applied: self.applied,
            replicas: self.replicas,
            releases: &releases,
            rollout: self.rollout.as_ref(),
            group: &self.group,
            reports: &reports,
            barred: &self.barred,
            sight: &sight,
            hold: self.hold.as_ref(),
        };
        let now = Now {
            instant: Instant(Duration::from_secs(self.seconds)),
            at: jiff::Timestamp::from_second(1_700_000_000 + self.seconds as i64).unwrap(),
        };
        let decision = step(&view, &mut self.memory, &mut self.cluster, now);
        let plan = Plan {
            id: &id("web"),
            group: &decision.group,
            releases: &releases,
        };
        let mut wrong = check::check_step(&self.nodes, &self.group, &plan);
        wrong.extend(check::check(&self.nodes, &[plan]));
        assert!(wrong.is_empty(), "{wrong:?}");
        self.events.extend(
            decision
                .events
                .iter()
                .map(|(_, subject, reason)| format!("{subject}: {}", reason.message)),
        );
        self.check_availability(&decision.group);
        let changed = decision.group != self.group || decision.rollout != self.rollout;
        self.group = decision.group;
        self.rollout = decision.rollout;
        self.wake = decision.wake;
        changed
    }

    /// A ready copy without volumes is told to leave only while as many others are ready as its release asks.
    fn check_availability(&self, after: &PlacementGroup) {
        let Some(target) = self.target else { return };
        let ready = |placed: &&Placement| {
            let present = self.nodes[&placed.node].standing == Standing::Present;
            let heard = present && !self.silent.contains(&placed.node);
            let report = self.reports.get(&placed.instance);
            heard && report.is_some_and(|report| report.ready && report.epoch == placed.epoch)
        };
        let runs = |placed: &&Placement| placed.wanted == Wanted::Run;
        let told = after.placements.iter().filter(ready).any(|placed| {
            let before = &self.group.placements;
            let ran = before.iter().filter(runs);
            let leaves = placed.wanted == Wanted::Leave && placed.slot.is_none();
            leaves && ran.into_iter().any(|old| old.instance == placed.instance)
        });
        let volumes = self.releases.values().any(|spec| !spec.volumes.is_empty());
        if told && !volumes {
            let unavailable = self.releases[&target].rollout.unavailable;
            let left = after.placements.iter().filter(runs).filter(ready).count();
            let wanted = self.replicas.saturating_sub(unavailable) as usize;
            assert!(left >= wanted, "{left} ready are left of {wanted}");
        }
    }

    /// Nodes do what they were told.
    fn act(&mut self) {
        let there: BTreeSet<_> = self
            .group
            .placements
            .iter()
            .map(|placed| placed.instance.clone())
            .collect();
        let reachable = |node: &NodeName| {
            self.nodes
                .get(node)
                .is_some_and(|node| node.standing == Standing::Present)
        };
        self.reports.retain(|name, _| there.contains(name));
        for placement in &self.group.placements {
            let unreachable = !reachable(&placement.node) || self.silent.contains(&placement.node);
            if unreachable || self.slow {
                continue;
            }
            if placement.wanted == Wanted::Leave {
                let stopped = testing::report(placement, InstanceState::Stopped, false);
                self.reports.insert(placement.instance.clone(), stopped);
                continue;
            }
            let report = self
                .reports
                .entry(placement.instance.clone())
                .or_insert_with(|| testing::report(placement, InstanceState::Starting, false));
            if placement.purpose == Purpose::BeforeDeploy {
                run_once(report, placement, &self.unprepared, self.prepares_slowly);
                continue;
            }
            if self.hanging.contains(&placement.node) && !report.ready {
                continue;
            }
            if self.looping_on.contains(&placement.node) {
                report.restarts += 1;
                report.state = InstanceState::Failed;
                report.last_exit = Some(Exit {
                    how: ExitHow::Code { code: 1 },
                    at: jiff::Timestamp::UNIX_EPOCH,
                });
                report.reason = Some(Reason::new(crate::backoff::CRASH_LOOP, "crash loop"));
                continue;
            }
            let cannot_start = self.unstartable.contains(&placement.release);
            if self.failing.contains(&placement.node) || cannot_start {
                report.state = InstanceState::Failed;
                report.ready = false;
                report.reason = Some(Reason::new("crash-loop", "crash loop"));
                report.last_exit = Some(Exit {
                    how: ExitHow::NotStarted {
                        error: "no such file".into(),
                    },
                    at: jiff::Timestamp::UNIX_EPOCH,
                });
            } else if self.broken.contains(&placement.release) {
                report.restarts += 1;
                report.last_exit = Some(Exit {
                    how: ExitHow::Code { code: 3 },
                    at: jiff::Timestamp::UNIX_EPOCH,
                });
                let reason = Reason::new(crate::backoff::CRASH_LOOP, "crash loop");
                report.reason = self.looping.then_some(reason);
            } else if let Some(life) = self.short_lived.get(&placement.release) {
                let age = self
                    .ready_for
                    .entry(placement.instance.clone())
                    .or_default();
                live_shortly(report, age, *life);
            } else {
                report.state = InstanceState::Running;
                report.ready = true;
                report.reason = None;
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.seconds += 1;
            self.act();
            let settled = (0..100).any(|_| !self.step());
            assert!(
                settled,
                "a step that never comes to rest: {:#?}",
                self.group
            );
            self.measure();
        }
    }

    fn measure(&mut self) {
        let ready = self.ready();
        if self.fewest_ready != usize::MAX || ready >= self.replicas as usize {
            self.fewest_ready = self.fewest_ready.min(ready);
        }
        let there = self
            .group
            .placements
            .iter()
            .filter(|placed| placed.wanted == Wanted::Run)
            .count();
        self.most_there = self.most_there.max(there);
    }

    fn ready(&self) -> usize {
        let is_ready = |placed: &&Placement| {
            let report = self
                .reports
                .get(&placed.instance)
                .is_some_and(|report| report.ready);
            let present = self
                .nodes
                .get(&placed.node)
                .is_some_and(|node| node.standing == Standing::Present);
            placed.wanted == Wanted::Run && report && present
        };
        self.group.placements.iter().filter(is_ready).count()
    }

    fn on_nodes(&self) -> Vec<String> {
        let mut nodes: Vec<_> = self
            .group
            .placements
            .iter()
            .map(|placed| placed.node.to_string())
            .collect();
        nodes.sort();
        nodes
    }

    fn of_release(&self, number: u64) -> usize {
        self.group
            .placements
            .iter()
            .filter(|placed| placed.release == ReleaseNumber(number))
            .count()
    }

    fn phase(&self) -> RolloutPhase {
        self.rollout.as_ref().unwrap().phase
    }

    fn forget(&mut self) {
        self.memory = Memory::default();
    }
}

/// What a node tells of a program that answers for `life` seconds and ends: one that lives for less is started again within each second.
fn live_shortly(report: &mut InstanceReport, age: &mut u64, life: u64) {
    let ends = *age >= life;
    *age = if ends { 0 } else { *age + 1 };
    if ends {
        report.restarts += 1;
        report.last_exit = Some(Exit {
            how: ExitHow::Code { code: 3 },
            at: jiff::Timestamp::from_second(i64::from(report.restarts)).unwrap(),
        });
    }
    let loops = ends && report.restarts >= crate::backoff::CRASH_LOOP_FROM;
    report.ready = !loops && (life == 0 || !ends);
    report.state = match loops {
        true => InstanceState::Failed,
        false => InstanceState::Running,
    };
    report.reason = loops.then(|| Reason::new(crate::backoff::CRASH_LOOP, "crash loop"));
}

/// What a node does with a command that runs once.
fn run_once(
    report: &mut InstanceReport,
    placement: &Placement,
    unprepared: &BTreeSet<ReleaseNumber>,
    slowly: bool,
) {
    let exit = |code| {
        Some(Exit {
            how: ExitHow::Code { code },
            at: jiff::Timestamp::UNIX_EPOCH,
        })
    };
    if slowly {
        report.state = InstanceState::Running;
    } else if unprepared.contains(&placement.release) {
        report.state = InstanceState::Failed;
        report.last_exit = exit(1);
        let said = "its last words: no such table".to_owned();
        let reason = Reason::new(
            model::compute::BEFORE_DEPLOY_FAILED,
            "ended with exit code 1",
        );
        report.reason = Some(reason.with_detail(vec![said]));
    } else {
        report.state = InstanceState::Finished;
        report.last_exit = exit(0);
    }
}

mod balancing;
mod growing;
mod homes;
mod preparing;
mod trial;

#[test]
fn a_first_release_is_placed_over_the_zones_and_done_when_ready() {
    let mut world = World::new(service(3));
    world.step();
    assert_eq!(world.on_nodes(), ["node-a", "node-b", "node-c"]);
    assert_eq!(world.phase(), RolloutPhase::Rolling);
    world.run(2);
    assert_eq!(world.phase(), RolloutPhase::Done);
    assert!(!world.step(), "there is nothing left to do");
}

#[test]
fn scaling_up_and_down() {
    let mut world = World::new(service(3));
    world.run(2);
    world.replicas = 5;
    world.run(2);
    assert_eq!((world.ready(), world.group.placements.len()), (5, 5));
    world.replicas = 2;
    world.run(2);
    assert_eq!(world.group.placements.len(), 2);
    let names: Vec<_> = world
        .group
        .placements
        .iter()
        .map(|placed| placed.instance.to_string())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| ["web-1", "web-2", "web-3"].contains(&name.as_str())),
        "the newest went: {names:?}"
    );
    assert_ne!(world.on_nodes()[0], world.on_nodes()[1]);
    world.replicas = 0;
    world.run(2);
    assert!(world.group.placements.is_empty());
    assert_eq!(world.phase(), RolloutPhase::Done);
}

#[test]
fn what_is_not_ready_goes_first() {
    let mut world = World::new(service(3));
    world.run(2);
    let unready = world.group.placements[0].instance.clone();
    world.reports.get_mut(&unready).unwrap().ready = false;
    world.replicas = 2;
    world.step();
    let leaving: Vec<_> = world
        .group
        .placements
        .iter()
        .filter(|placed| placed.wanted == Wanted::Leave)
        .collect();
    assert_eq!(leaving.len(), 1);
    assert_eq!(leaving[0].instance, unready);
}

#[test]
fn a_rolling_change_keeps_every_wanted_copy_ready() {
    for (surge, unavailable) in [(1, 0), (0, 0), (3, 0), (1, 1), (0, 2)] {
        let mut spec = service(3);
        spec.rollout.surge = surge;
        spec.rollout.unavailable = unavailable;
        let mut world = World::new(spec.clone());
        world.run(2);
        world.release(spec);
        world.run(15);
        assert_eq!(world.of_release(2), 3, "{surge} {unavailable}");
        assert_eq!(world.of_release(1), 0, "{surge} {unavailable}");
        assert_eq!(world.phase(), RolloutPhase::Done);
        assert!(
            world.fewest_ready >= 3 - unavailable as usize,
            "{surge} {unavailable}: {}",
            world.fewest_ready
        );
        let most = 3 + if unavailable == 0 {
            surge.max(1)
        } else {
            surge
        };
        assert!(
            world.most_there <= most as usize,
            "{surge} {unavailable}: {}",
            world.most_there
        );
        assert_eq!(
            world.on_nodes(),
            ["node-a", "node-b", "node-c"],
            "{surge} {unavailable}"
        );
    }
}

#[test]
fn a_release_that_does_not_become_ready_is_judged_bad() {
    let mut spec = service(3);
    spec.rollout.ready_within = Span::seconds(30);
    let mut world = World::new(spec.clone());
    world.run(2);
    world.broken.insert(ReleaseNumber(2));
    world.release(spec.clone());
    world.run(29);
    assert_eq!(
        (world.phase(), world.of_release(1), world.of_release(2)),
        (RolloutPhase::Rolling, 3, 1)
    );
    world.run(3);
    assert_eq!(
        (world.phase(), world.of_release(1), world.of_release(2)),
        (RolloutPhase::Failed, 3, 0)
    );
    assert_eq!(world.fewest_ready, 3);
    let message = &world.rollout.as_ref().unwrap().reason.message;
    assert_eq!(
        message,
        "release 2 was judged bad: web-4 on node node-a was not ready within 30s (last exit: exit code 3); release 1 goes on serving"
    );
    world.run(100);
    assert_eq!(
        (world.phase(), world.of_release(1)),
        (RolloutPhase::Failed, 3),
        "it stays judged"
    );
    world.release(spec);
    world.run(10);
    assert_eq!(
        (world.phase(), world.of_release(3)),
        (RolloutPhase::Done, 3),
        "a new release starts afresh"
    );
    assert_eq!(world.fewest_ready, 3);
    assert_eq!(world.rollout.as_ref().unwrap().from, Some(ReleaseNumber(1)));
}

#[test]
fn old_copies_that_falter_stay_until_a_new_one_is_ready() {
    let mut world = World::new(service(2));
    world.run(2);
    world.broken.insert(ReleaseNumber(2));
    world.release(service(2));
    let falter = |world: &mut World| {
        let old = |report: &&mut InstanceReport| report.release == ReleaseNumber(1);
        for report in world.reports.values_mut().filter(old) {
            report.ready = false;
        }
    };
    for _ in 0..20 {
        world.seconds += 1;
        world.act();
        falter(&mut world);
        while world.step() {}
        let wanted = |placed: &&Placement| placed.wanted == Wanted::Run;
        let placed = world.group.placements.iter().filter(wanted);
        let old = placed.filter(|placed| placed.release == ReleaseNumber(1));
        assert_eq!(old.count(), 2);
    }
    world.broken.clear();
    world.run(5);
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 2)
    );
}

#[test]
fn a_release_that_ends_again_and_again_is_judged_at_once() {
    let mut world = World::new(service(3));
    world.run(2);
    world.broken.insert(ReleaseNumber(2));
    world.looping = true;
    world.release(service(3));
    world.run(3);
    assert_eq!(
        (world.phase(), world.of_release(1)),
        (RolloutPhase::Failed, 3)
    );
    let message = &world.rollout.as_ref().unwrap().reason.message;
    assert!(
        message.contains("ends again and again (crash loop)"),
        "{message}"
    );
}

#[test]
fn a_first_release_that_is_bad_is_said_to_be_and_tried_on() {
    let mut world = World::new(service(2));
    world.broken.insert(ReleaseNumber(1));
    world.run(62);
    assert_eq!(
        (world.phase(), world.of_release(1)),
        (RolloutPhase::Failed, 2)
    );
    world.broken.clear();
    world.run(2);
    assert_eq!(world.phase(), RolloutPhase::Done);
}

#[test]
fn a_paused_rollout_stays_where_it_is_and_still_replaces_losses() {
    let mut world = World::new(service(3));
    world.run(2);
    world.slow = true;
    world.release(service(3));
    world.run(1);
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Paused;
    world.slow = false;
    world.run(100);
    assert_eq!((world.phase(), world.ready()), (RolloutPhase::Paused, 3));
    world.lose("node-a");
    world.run(2);
    assert_eq!(world.ready(), 3);
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Rolling;
    world.run(10);
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 3)
    );
}

#[test]
fn a_pause_is_no_delay_of_the_rollout() {
    let mut world = World::new(service(3));
    world.run(2);
    world.broken.insert(ReleaseNumber(2));
    world.release(service(3));
    world.run(2);
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Paused;
    world.run(500);
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Rolling;
    world.run(50);
    assert_eq!(world.phase(), RolloutPhase::Rolling);
    world.run(15);
    assert_eq!(world.phase(), RolloutPhase::Failed);
}

#[test]
fn a_thousand_copies_come_and_go_within_the_patience_of_a_user() {
    let mut spec = service(1_000);
    spec.memory = Bytes::mebibytes(1);
    spec.cpu = model::units::MilliCpu(1);
    let mut world = World::new(spec);
    world.run(2);
    assert_eq!(world.ready(), 1_000);
    world.replicas = 10;
    world.run(2);
    assert_eq!(world.group.placements.len(), 10);
}

#[test]
fn a_lost_node_is_made_good_elsewhere() {
    let mut world = World::new(service(3));
    world.run(2);
    world.lose("node-b");
    world.run(2);
    assert_eq!(world.ready(), 3);
    assert!(!world.on_nodes().contains(&"node-b".to_owned()));
    assert!(world.events.iter().any(|event| event
        == "web-2: node node-b is lost: web-2 is replaced"
        || event == "web-1: node node-b is lost: web-1 is replaced"
        || event == "web-3: node node-b is lost: web-3 is replaced"));
    world.stand("node-b", Standing::Present);
    world.run(2);
    assert_eq!(
        world.group.placements.len(),
        3,
        "nothing moves back at once"
    );
    assert!(!world.on_nodes().contains(&"node-b".to_owned()));
    world.release(service(3));
    world.run(10);
    assert_eq!(
        world.on_nodes(),
        ["node-a", "node-b", "node-c"],
        "a restart spreads anew"
    );
}

#[test]
fn a_loss_may_fill_nodes_beyond_the_watermark() {
    let mut spec = service(3);
    spec.memory = Bytes::mebibytes(500);
    let mut world = World::new(spec);
    world.run(2);
    world.lose("node-a");
    world.run(2);
    assert_eq!(world.ready(), 3);
}

#[test]
fn nothing_leaves_while_a_node_is_silent() {
    let mut world = World::new(service(3));
    world.run(2);
    world.silent.insert(node_name("node-a"));
    world.replicas = 2;
    world.release(service(2));
    world.run(20);
    let leaving = world
        .group
        .placements
        .iter()
        .filter(|placed| placed.wanted == Wanted::Leave)
        .count();
    assert_eq!(leaving, 0);
    world.silent.clear();
    world.run(10);
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 2)
    );
}

#[test]
fn a_brake_holds_everything_and_no_deadline_runs() {
    let mut world = World::new(service(3));
    world.run(2);
    world.broken.insert(ReleaseNumber(2));
    world.release(service(3));
    world.run(2);
    world.hold = Some(Reason::new("brake-on", "too much vanished"));
    let before = world.group.clone();
    world.run(500);
    assert_eq!(world.group, before);
    world.hold = None;
    world.run(10);
    assert_eq!(world.phase(), RolloutPhase::Rolling);
}

#[test]
fn a_volume_waits_for_its_lost_node_and_resumes_there() {
    let mut world = World::new(with_volume(service(2)));
    world.run(3);
    let before = world.group.clone();
    let home = before.homes[&0].clone();
    world.lose(home.as_str());
    world.run(100);
    assert_eq!(
        world.group.pending[0].reason.message,
        format!("volume on lost node {home}")
    );
    assert_eq!(world.group.pending[0].reason.code, "volume-on-lost-node");
    assert_eq!(world.group.pending.len(), 1);
    world.stand(home.as_str(), Standing::Present);
    world.run(2);
    assert_eq!(
        world.group.placements, before.placements,
        "the same instance, the same epoch"
    );
    assert!(world.group.pending.is_empty());
}

#[test]
fn a_volume_changes_hands_only_when_it_is_free() {
    let mut world = World::new(with_volume(service(2)));
    world.run(3);
    let homes = world.group.homes.clone();
    world.release(with_volume(service(2)));
    for _ in 0..10 {
        world.run(1);
        let mut slots: Vec<_> = world
            .group
            .placements
            .iter()
            .map(|placed| placed.slot)
            .collect();
        slots.dedup();
        assert_eq!(slots.len(), world.group.placements.len());
        assert!(world.ready() >= 1, "one slot at a time");
    }
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 2)
    );
    assert_eq!(world.group.homes, homes);
}

#[test]
fn a_bad_release_gives_the_volume_back() {
    let mut world = World::new(with_volume(service(1)));
    world.run(3);
    world.broken.insert(ReleaseNumber(2));
    world.release(with_volume(service(1)));
    world.run(70);
    assert_eq!(
        (world.phase(), world.of_release(1), world.ready()),
        (RolloutPhase::Failed, 1, 1)
    );
    assert_eq!(world.group.placements[0].node, world.group.homes[&0]);
}

#[test]
fn a_rollout_does_not_wait_for_a_lost_volume_nor_is_it_bad_for_it() {
    let mut world = World::new(with_volume(service(2)));
    world.run(3);
    let home = world.group.homes[&1].clone();
    world.lose(home.as_str());
    world.release(with_volume(service(2)));
    world.run(200);
    assert_eq!(world.phase(), RolloutPhase::Done);
    world.stand(home.as_str(), Standing::Present);
    world.run(5);
    assert_eq!(
        (world.phase(), world.of_release(2), world.ready()),
        (RolloutPhase::Done, 2, 2)
    );
}

#[test]
fn volumes_beyond_the_wanted_number_keep_their_home() {
    let mut world = World::new(with_volume(service(3)));
    world.run(3);
    let homes = world.group.homes.clone();
    world.replicas = 1;
    world.run(3);
    assert_eq!(world.group.placements.len(), 1);
    assert_eq!(world.group.placements[0].slot, Some(0));
    world.replicas = 3;
    world.run(3);
    assert_eq!(world.group.homes, homes);
    assert_eq!(world.ready(), 3);
}

#[test]
fn a_service_can_gain_and_lose_volumes() {
    let mut world = World::new(service(3));
    world.run(2);
    world.release(with_volume(service(3)));
    world.run(20);
    assert_eq!(
        (world.phase(), world.of_release(2), world.ready()),
        (RolloutPhase::Done, 3, 3)
    );
    world.release(service(3));
    world.run(20);
    assert_eq!(
        (world.phase(), world.of_release(3), world.ready()),
        (RolloutPhase::Done, 3, 3)
    );
}

#[test]
fn a_node_that_can_start_nothing_is_left_for_another() {
    let mut world = World::new(service(3));
    world.failing.insert(node_name("node-a"));
    world.run(10);
    assert_eq!(world.ready(), 3);
    assert!(!world.on_nodes().contains(&"node-a".to_owned()));
    assert!(
        world.group.next_instance < 8,
        "with back-off: {}",
        world.group.next_instance
    );
}

#[test]
fn what_must_not_run_beside_itself_is_gone_before_it_is_tried_elsewhere() {
    let mut spec = service(1);
    spec.on_partition = OnPartition::Stop;
    spec.rollout.surge = 0;
    spec.rollout.unavailable = 1;
    let mut world = World::new(spec);
    world.failing.insert(node_name("node-a"));
    for _ in 0..10 {
        world.run(1);
        assert!(world.group.placements.len() <= 1);
    }
    assert_eq!(world.ready(), 1);
}

#[test]
fn with_nowhere_else_to_go_it_is_left_to_try_on() {
    let mut world = World::new(service(2));
    world
        .failing
        .extend(["node-a", "node-b", "node-c"].map(node_name));
    world.run(600);
    assert_eq!(world.group.placements.len(), 2);
    assert!(
        world.group.next_instance < 20,
        "with back-off: {}",
        world.group.next_instance
    );
    world.failing.clear();
    world.run(3);
    assert_eq!(world.ready(), 2);
}

#[test]
fn what_finds_no_place_is_pending_with_a_reason_and_a_lasting_name() {
    let mut spec = service(5);
    spec.memory = Bytes::mebibytes(700);
    let mut world = World::new(spec);
    world.run(10);
    assert_eq!((world.ready(), world.group.pending.len()), (3, 2));
    let (names, next) = (world.group.pending.clone(), world.group.next_instance);
    assert!(
        names[0]
            .reason
            .message
            .starts_with("no node can take it: 3 nodes rejected: not enough memory"),
        "{}",
        names[0].reason
    );
    world.run(10);
    assert_eq!(
        (&world.group.pending, world.group.next_instance),
        (&names, next)
    );
    let more = testing::node("node-d", "d");
    world.cluster.set_node(&more);
    world.nodes.insert(more.name.clone(), more);
    world.run(2);
    assert_eq!((world.ready(), world.group.pending.len()), (4, 1));
}

#[test]
fn a_new_leader_with_an_empty_memory_changes_nothing_that_is_well() {
    let mut world = World::new(service(3));
    world.run(3);
    let before = world.group.clone();
    world.forget();
    world
        .silent
        .extend(["node-a", "node-b", "node-c"].map(node_name));
    world.reports.clear();
    world.run(10);
    assert_eq!(world.group, before);
}

#[test]
fn a_deleted_service_leaves_and_is_gone() {
    let mut world = World::new(service(3));
    world.run(3);
    world.target = None;
    world.step();
    assert!(
        world
            .group
            .placements
            .iter()
            .all(|placed| placed.wanted == Wanted::Leave)
    );
    world.run(2);
    assert!(world.group.placements.is_empty());
}

#[test]
fn a_leaving_copy_is_gone_when_its_node_says_so_and_not_when_it_says_nothing() {
    let mut world = World::new(with_volume(service(1)));
    world.step();
    world.release(with_volume(service(1)));
    world.step();
    world.step();
    world.step();
    assert_eq!((world.of_release(1), world.of_release(2)), (1, 0));
    world.run(3);
    assert_eq!((world.of_release(1), world.of_release(2)), (0, 1));
}

#[test]
fn stop_without_a_surge_never_runs_beside_itself() {
    let mut spec = service(1);
    spec.on_partition = OnPartition::Stop;
    spec.rollout.surge = 0;
    spec.rollout.unavailable = 1;
    let mut world = World::new(spec.clone());
    world.run(2);
    world.release(spec);
    for _ in 0..5 {
        world.run(1);
        assert!(world.group.placements.len() <= 1);
    }
    assert_eq!(world.phase(), RolloutPhase::Done);
}

/// What can happen to a service.
#[derive(Debug, Clone)]
enum Happening {
    Scale(u32),
    Release { volume: bool, broken: bool },
    Lose(usize),
    Return(usize),
    Silence(usize),
    Speak(usize),
    Crash(usize),
    Cordon(usize, bool),
    Failing(usize, bool),
    NewLeader,
    Slow(bool),
    Pass(u64),
}

fn happening() -> impl proptest::strategy::Strategy<Value = Happening> {
    use proptest::prelude::*;
    prop_oneof![
        (0_u32..6).prop_map(Happening::Scale),
        (any::<bool>(), any::<bool>())
            .prop_map(|(volume, broken)| Happening::Release { volume, broken }),
        (0_usize..5).prop_map(Happening::Lose),
        (0_usize..5).prop_map(Happening::Return),
        (0_usize..5).prop_map(Happening::Silence),
        (0_usize..5).prop_map(Happening::Speak),
        (0_usize..6).prop_map(Happening::Crash),
        (0_usize..5, any::<bool>()).prop_map(|(node, on)| Happening::Cordon(node, on)),
        (0_usize..5, any::<bool>()).prop_map(|(node, on)| Happening::Failing(node, on)),
        Just(Happening::NewLeader),
        any::<bool>().prop_map(Happening::Slow),
        (1_u64..20).prop_map(Happening::Pass),
        (1_u64..3).prop_map(Happening::Pass),
    ]
}

impl World {
    fn happen(&mut self, happening: &Happening) {
        let nth = |world: &Self, n: usize| world.nodes.keys().nth(n).unwrap().clone();
        match happening {
            Happening::Scale(replicas) => self.replicas = *replicas,
            Happening::Release { volume, broken } => {
                let spec = service(self.replicas);
                self.release(if *volume { with_volume(spec) } else { spec });
                if *broken {
                    self.broken.extend(self.target);
                }
            }
            Happening::Lose(n) => self.lose(nth(self, *n).as_str()),
            Happening::Return(n) => self.stand(nth(self, *n).as_str(), Standing::Present),
            Happening::Silence(n) => drop(self.silent.insert(nth(self, *n))),
            Happening::Speak(n) => drop(self.silent.remove(&nth(self, *n))),
            Happening::Crash(n) => {
                if let Some(report) = self.reports.values_mut().nth(*n) {
                    report.ready = false;
                }
            }
            Happening::Cordon(n, on) => {
                let name = nth(self, *n);
                let record = self.nodes.get_mut(&name).unwrap();
                record.cordoned = *on;
                self.cluster.set_node(record);
            }
            Happening::Failing(n, true) => drop(self.failing.insert(nth(self, *n))),
            Happening::Failing(n, false) => drop(self.failing.remove(&nth(self, *n))),
            Happening::NewLeader => {
                self.forget();
                self.reports.clear();
            }
            Happening::Slow(on) => self.slow = *on,
            Happening::Pass(seconds) => self.run(*seconds),
        }
    }

    /// Every fault ends.
    fn heal(&mut self) {
        self.silent.clear();
        self.failing.clear();
        self.broken.clear();
        self.slow = false;
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.nodes.get_mut(&name).unwrap().cordoned = false;
            self.stand(name.as_str(), Standing::Present);
        }
        self.run(150);
        // Moves that failed before are tried again at growing intervals.
        for _ in 0..2_000 {
            if self.is_at_rest() {
                return;
            }
            self.run(1);
        }
    }

    /// Nothing is under way, and the copies stand as evenly as they can.
    fn is_at_rest(&self) -> bool {
        // Those of the release that serves: a later one may have been judged bad.
        let placements = &self.group.placements;
        let volumes = placements.iter().any(|placed| placed.slot.is_some());
        let wanted = self.replicas as usize;
        let all_serve = self.group.placements.len() == wanted && self.ready() == wanted;
        all_serve
            && self
                .group
                .placements
                .iter()
                .all(|placed| placed.replaces.is_none())
            && (volumes || self.gap() < 2)
    }

    /// The most copies in one zone, less the fewest.
    fn gap(&self) -> usize {
        let mut zones: BTreeMap<_, usize> =
            self.nodes.values().map(|node| (&node.zone, 0)).collect();
        for placed in &self.group.placements {
            *zones.get_mut(&self.nodes[&placed.node].zone).unwrap() += 1;
        }
        zones.values().max().unwrap() - zones.values().min().unwrap()
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]
    /// Whatever happens, no step violates an invariant (each is checked as it is made); and when it stops happening, every wanted copy serves, in
    /// as many zones as can be.
    #[test]
    fn whatever_happens_the_checker_is_silent_and_the_service_recovers(
        volume: bool,
        happenings in proptest::collection::vec(happening(), 1..40),
    ) {
        let nodes = [("n0", "a"), ("n1", "a"), ("n2", "b"), ("n3", "b"), ("n4", "c")].map(|(name, zone)| testing::node(name, zone));
        let spec = service(3);
        let mut world = World::on(nodes.to_vec(), if volume { with_volume(spec) } else { spec });
        for happening in &happenings {
            world.happen(happening);
        }
        world.heal();
        proptest::prop_assert_eq!(world.ready(), world.replicas as usize);
        proptest::prop_assert_eq!(world.group.placements.len(), world.replicas as usize);
        proptest::prop_assert!(world.group.pending.is_empty());
        proptest::prop_assert!(world.is_at_rest(), "{:?}", world.on_nodes());
        let one_release: BTreeSet<_> = world.group.placements.iter().map(|placed| placed.release).collect();
        proptest::prop_assert!(one_release.len() <= 1);
    }
}

#[test]
fn what_is_wanted_is_counted_in_words() {
    let table = [
        (0, "no copies are wanted"),
        (1, "1 copy is wanted"),
        (2, "2 copies are wanted"),
    ];
    for (copies, expected) in table {
        assert_eq!(wanted(copies), expected);
    }
}
