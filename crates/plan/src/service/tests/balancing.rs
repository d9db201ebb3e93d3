//! Copies are evened out, and nothing else is disturbed by it.

use model::compute::SpreadBy;
use model::ids::{RegionName, ResourceName};

use super::*;
use crate::service::balance;

/// All moves have begun by then that have nothing to wait for but quiet.
const SOON: u64 = 40;

impl World {
    /// Three copies of which one zone has two and another none: `node-b` was lost, and is back.
    fn lopsided() -> Self {
        Self::lopsided_as(service(3))
    }

    fn lopsided_as(spec: Service) -> Self {
        let mut world = Self::new(spec);
        world.run(2);
        world.lose("node-b");
        world.run(2);
        world.stand("node-b", Standing::Present);
        world.fewest_ready = usize::MAX;
        world.most_there = 0;
        world
    }

    /// The same, with a copy on its way to `node-b` that does not become ready.
    fn moving() -> Self {
        Self::moving_as(service(3))
    }

    fn moving_as(spec: Service) -> Self {
        let mut world = Self::lopsided_as(spec);
        world.hanging.insert(node_name("node-b"));
        world.run_until(SOON, |world| world.new_copy().is_some());
        world
    }

    fn run_until(&mut self, seconds: u64, found: impl Fn(&Self) -> bool) {
        for _ in 0..seconds {
            if found(self) {
                return;
            }
            self.run(1);
        }
        panic!("not within {seconds} s: {:#?}", self.group);
    }

    fn new_copy(&self) -> Option<&Placement> {
        let mut placements = self.group.placements.iter();
        placements.find(|placed| placed.replaces.is_some())
    }

    fn told(&self, words: &str) -> usize {
        self.events
            .iter()
            .filter(|event| event.contains(words))
            .count()
    }

    fn change(&mut self, node: &str, change: impl FnOnce(&mut NodeRecord)) {
        let record = self.nodes.get_mut(&node_name(node)).unwrap();
        change(record);
        self.cluster.set_node(record);
    }

    fn even_within(&mut self, seconds: u64) {
        self.run_until(seconds, World::is_at_rest);
        assert_eq!(self.ready(), self.replicas as usize);
    }
}

#[test]
fn after_a_zone_is_back_a_copy_goes_home_and_it_is_told_why() {
    let mut world = World::lopsided();
    let before = world.group.clone();
    world.run(10);
    assert_eq!(world.group, before, "not before all was quiet for a while");
    world.run_until(SOON, |world| world.new_copy().is_some());
    let (from, to) = match world.on_nodes()[1].as_str() {
        "node-a" => ("a", "b"),
        _ => ("c", "b"),
    };
    let new = world.new_copy().unwrap().clone();
    let old = new.replaces.clone().unwrap();
    let why = format!("zone {from} had 2 copies, zone {to} none");
    assert_eq!(new.node, node_name("node-b"));
    assert_eq!(new.reason.code, "balances");
    assert_eq!(
        new.reason.message,
        format!("it takes the place of {old}: {why}")
    );
    world.run(1);
    assert_eq!(
        world.told(&format!(
            "{old}: moved to zone b as {}: {why}",
            new.instance
        )),
        1
    );
    world.run(2);
    assert_eq!(world.on_nodes(), ["node-a", "node-b", "node-c"]);
    assert!(
        world
            .group
            .placements
            .iter()
            .all(|placed| placed.replaces.is_none())
    );
    assert_eq!((world.fewest_ready, world.most_there), (3, 4));
    let after = world.group.clone();
    world.run(1_000);
    assert_eq!(world.group, after, "and that is all");
}

#[test]
fn what_can_not_or_need_not_be_evener_stays() {
    type Change = fn(&mut Service);
    type Meanwhile = fn(&mut World);
    let as_it_is: (Change, Meanwhile) = (|_| {}, |_| {});
    let table: [(&str, Change, Meanwhile); 9] = [
        (
            "a copy more than elsewhere",
            |spec| spec.replicas = 2,
            as_it_is.1,
        ),
        (
            "must not run beside itself",
            |spec| spec.on_partition = OnPartition::Stop,
            as_it_is.1,
        ),
        (
            "spread by region",
            |spec| spec.spread.by = SpreadBy::Region,
            as_it_is.1,
        ),
        ("lost again", as_it_is.0, |world| world.lose("node-b")),
        ("cordoned", as_it_is.0, |world| {
            world.change("node-b", |node| node.cordoned = true)
        }),
        ("full to the watermark", as_it_is.0, |world| {
            world.change("node-b", |node| {
                node.capacity.memory = Bytes::mebibytes(124)
            });
        }),
        ("silent", as_it_is.0, |world| {
            world.silent.extend([node_name("node-b")])
        }),
        ("not all are ready", as_it_is.0, |world| {
            let copy = world.group.placements[0].clone();
            world.reports.get_mut(&copy.instance).unwrap().ready = false;
            world.hanging.insert(copy.node);
        }),
        ("under a brake", as_it_is.0, |world| {
            world.hold = Some(Reason::new("brake-on", "too much vanished"));
        }),
    ];
    for (name, change, meanwhile) in table {
        let mut spec = service(3);
        change(&mut spec);
        let mut world = World::lopsided_as(spec);
        meanwhile(&mut world);
        let before = world.group.clone();
        world.run(600);
        assert_eq!(world.group, before, "{name}");
    }
    let mut world = World::lopsided();
    world.run(5);
    world.hold = Some(Reason::new("brake-on", "too much vanished"));
    world.run(600);
    world.hold = None;
    world.run(10);
    let moves = world.told("it takes the place of");
    assert_eq!(moves, 0, "the time under a brake is not quiet");
    world.even_within(SOON);
}

#[test]
fn labels_and_a_silent_copy_are_respected() {
    let mut spec = service(3);
    spec.labels.insert("disk".to_owned(), "fast".to_owned());
    let mut nodes = three_zones();
    for node in &mut nodes {
        node.labels.clone_from(&spec.labels);
    }
    let mut world = World::on(nodes, spec);
    world.run(2);
    world.lose("node-b");
    world.run(2);
    world.change("node-b", |node| {
        node.standing = Standing::Present;
        node.labels.clear();
    });
    let before = world.group.clone();
    world.run(600);
    assert_eq!(world.group, before);

    let mut world = World::lopsided();
    world.silent.insert(world.group.placements[0].node.clone());
    let before = world.group.clone();
    world.run(600);
    assert_eq!(world.group, before);
}

#[test]
fn volumes_stay_where_they_are() {
    let nodes = three_zones();
    let mut world = World::on(nodes, with_volume(service(3)));
    for node in ["node-b", "node-c"] {
        world.lose(node);
    }
    world.run(3);
    for node in ["node-b", "node-c"] {
        world.stand(node, Standing::Present);
    }
    let before = world.group.clone();
    world.run(600);
    assert_eq!((world.group.clone(), world.gap()), (before, 3));
}

#[test]
fn by_node_and_by_region_too() {
    let mut spec = service(4);
    spec.spread.by = SpreadBy::Node;
    let mut world = World::on(
        ["a1", "a2"].map(|name| testing::node(name, "a")).to_vec(),
        spec,
    );
    world.lose("a2");
    world.run(2);
    world.stand("a2", Standing::Present);
    world.run_until(4 * SOON, |world| {
        world.on_nodes() == ["a1", "a1", "a2", "a2"]
    });
    assert_eq!(world.told("node a1 had 4 copies, node a2 none"), 2);

    let mut spec = service(4);
    spec.spread.by = SpreadBy::Region;
    let mut far = testing::node("far", "far");
    far.region = RegionName::new("far").unwrap();
    let mut world = World::on(vec![testing::node("a1", "a"), far], spec);
    world.lose("far");
    world.run(2);
    world.stand("far", Standing::Present);
    world.run_until(4 * SOON, |world| {
        world.on_nodes() == ["a1", "a1", "far", "far"]
    });
    assert_eq!(world.told("moved to region far"), 2);
}

#[test]
fn each_move_makes_it_more_even_until_none_can() {
    let nodes = ["a", "b", "c", "d"].map(|zone| testing::node(&format!("node-{zone}"), zone));
    let mut world = World::on(nodes.to_vec(), service(9));
    for node in ["node-b", "node-c", "node-d"] {
        world.lose(node);
    }
    world.run(2);
    for node in ["node-b", "node-c", "node-d"] {
        world.stand(node, Standing::Present);
    }
    let squares = |world: &World| {
        let mut counts: BTreeMap<_, usize> = BTreeMap::new();
        for placed in &world.group.placements {
            *counts.entry(placed.node.clone()).or_default() += 1;
        }
        counts.values().map(|count| count * count).sum::<usize>()
    };
    let mut before = squares(&world);
    assert_eq!(before, 81);
    for _ in 0..6 * SOON {
        world.run(1);
        if world.group.placements.len() == 9 {
            assert!(squares(&world) <= before);
            before = squares(&world);
        }
    }
    assert_eq!((before, world.gap()), (21, 1));
    assert_eq!(world.told("moved to"), 6, "as few moves as will do");
}

#[test]
fn a_copy_that_does_not_become_ready_gives_way_and_is_tried_again_ever_later() {
    let mut world = World::moving();
    world.run(59);
    assert!(world.new_copy().is_some());
    world.run(2);
    assert_eq!((world.ready(), world.group.placements.len()), (3, 3));
    assert_eq!(
        world.told("it was not ready on node node-b within 1m: web-4 keeps its place"),
        1,
        "{:?}",
        world.events
    );
    world.run(3_600);
    let tries = world.told("it takes the place of");
    assert!((3..9).contains(&tries), "{tries}");
    assert_eq!((world.fewest_ready, world.most_there), (3, 4));
    world.hanging.clear();
    world.even_within(3_700);
}

#[test]
fn a_node_that_can_not_start_it_is_not_waited_for() {
    let mut world = World::lopsided();
    world.failing.insert(node_name("node-b"));
    world.run_until(SOON, |world| world.new_copy().is_some());
    world.run(2);
    assert_eq!((world.ready(), world.group.placements.len()), (3, 3));
    assert_eq!(world.told("node node-b could not start it: web-"), 1);
    world.run(3_600);
    assert!(
        world.group.next_instance < 15,
        "{}",
        world.group.next_instance
    );
}

#[test]
fn a_zone_that_comes_and_goes_is_waited_for_ever_longer() {
    let mut world = World::lopsided();
    for _ in 0..120 {
        world.run(60);
        world.lose("node-b");
        world.run(3);
        world.stand("node-b", Standing::Present);
    }
    let moves = world.told("it takes the place of");
    assert!((2..12).contains(&moves), "{moves}");
    world.even_within(3_700);
}

#[test]
fn scaling_in_the_middle_of_a_move() {
    for replicas in [0, 1, 2, 4, 5, 9] {
        let mut world = World::moving();
        world.replicas = replicas;
        world.run(3);
        assert!(
            world.ready() >= world.replicas.min(2) as usize,
            "{replicas}"
        );
        world.hanging.clear();
        world.even_within(200);
        let mut world = World::moving();
        world.replicas = replicas;
        world.hanging.clear();
        world.even_within(200);
    }
}

#[test]
fn what_comes_in_the_middle_of_a_move_counts_on_its_end() {
    let mut world = World::moving();
    // The emptier zones would be taken first, were the copy that goes to stay.
    world.change("node-a", |node| {
        node.capacity.memory = Bytes::mebibytes(900)
    });
    world.replicas = 7;
    world.hanging.clear();
    world.run(3);
    assert_eq!(
        (world.ready(), world.gap()),
        (7, 1),
        "{:?}",
        world.on_nodes()
    );
}

#[test]
fn a_move_takes_nobody_else_s_place() {
    let mut spec = service(3);
    spec.rollout.surge = 0;
    spec.rollout.unavailable = 1;
    let mut world = World::moving_as(spec);
    world.lose("node-c");
    world.run(1);
    let there = world.group.placements.len();
    assert_eq!(there, 4, "what was lost is replaced at once");
    world.hanging.clear();
    world.run(5);
    assert_eq!((world.ready(), world.group.placements.len()), (3, 3));
}

#[test]
fn a_release_in_the_middle_of_a_move() {
    let mut world = World::moving();
    world.release(service(3));
    world.run(1);
    assert_eq!(world.told("release 2 comes first: web-"), 1);
    world.hanging.clear();
    world.run(15);
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 3)
    );
    assert_eq!((world.fewest_ready, world.on_nodes().len()), (3, 3));
    assert_eq!(world.gap(), 0, "what is new is spread");

    let mut world = World::moving();
    world.broken.insert(ReleaseNumber(2));
    world.release(service(3));
    world.run(70);
    assert_eq!(
        (world.phase(), world.of_release(1), world.ready()),
        (RolloutPhase::Failed, 3, 3)
    );

    let mut world = World::moving();
    world.release(with_volume(service(3)));
    world.hanging.clear();
    world.run(30);
    assert_eq!(
        (world.phase(), world.of_release(2), world.ready()),
        (RolloutPhase::Done, 3, 3)
    );
}

#[test]
fn a_rollout_that_is_paused_in_the_middle_of_a_move() {
    let mut world = World::moving();
    world.release(service(3));
    world.step();
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Paused;
    world.run(100);
    assert_eq!((world.phase(), world.ready()), (RolloutPhase::Paused, 3));
    assert_eq!(world.group.placements.len(), 3);
}

#[test]
fn a_new_leader_goes_on_in_the_middle_of_a_move() {
    let mut world = World::moving();
    world.forget();
    world.hanging.clear();
    world.run(3);
    assert_eq!(world.on_nodes(), ["node-a", "node-b", "node-c"]);
    assert_eq!(world.told("it takes the place of"), 1);

    let mut world = World::moving();
    world.run(50);
    world.forget();
    world.run(50);
    assert!(world.new_copy().is_some(), "its deadline begins anew");
    world.run(15);
    assert_eq!((world.ready(), world.group.placements.len()), (3, 3));
}

#[test]
fn a_node_that_is_lost_in_the_middle_of_a_move() {
    for victim in ["node-a", "node-b", "node-c"] {
        for slow in [true, false] {
            let mut world = World::moving();
            if !slow {
                world.hanging.clear();
            }
            world.lose(victim);
            world.run(3);
            world.hanging.clear();
            world.run(2);
            assert_eq!(world.ready(), 3, "{victim} {slow}");
            assert_eq!(world.group.placements.len(), 3, "{victim} {slow}");
            world.stand(victim, Standing::Present);
            world.even_within(300);
        }
    }
}

#[test]
fn a_copy_that_falters_in_the_middle_of_a_move_keeps_the_others() {
    let mut world = World::moving();
    let replaced = world.new_copy().unwrap().replaces.clone();
    let other =
        world.group.placements.iter().find(|placed| {
            placed.replaces.is_none() && Some(&placed.instance) != replaced.as_ref()
        });
    let other = other.unwrap().clone();
    world.hanging.clear();
    world.hanging.insert(other.node.clone());
    world.reports.get_mut(&other.instance).unwrap().ready = false;
    world.run(200);
    let left = world.told("moved to zone b");
    assert_eq!(
        (left, world.ready()),
        (0, 3),
        "three of four are ready: none too many"
    );
    world.hanging.clear();
    world.even_within(5);
}

#[test]
fn services_take_turns() {
    let waits: Vec<_> = (0..1_000)
        .map(|n| {
            let name = ResourceName::new(format!("service-{n}")).unwrap();
            balance::jitter(&ResourceId::new(testing::project(), name)).as_secs()
        })
        .collect();
    for second in 0..20 {
        let at_once = waits.iter().filter(|wait| **wait == second).count();
        assert!((25..=90).contains(&at_once), "{second}: {at_once}");
    }
    assert!(waits.iter().all(|wait| *wait < 20));
}

#[test]
fn nobody_sleeps_through_a_deadline() {
    let mut world = World::lopsided();
    let wake = |world: &mut World| {
        world.run(1);
        world.wake.map(|wake| wake.0.as_secs())
    };
    let due = wake(&mut world).unwrap();
    assert!((10..=31).contains(&(due - world.seconds)), "{due}");
    world.hanging.insert(node_name("node-b"));
    world.run_until(SOON, |world| world.new_copy().is_some());
    let late = wake(&mut world).unwrap();
    assert!((58..=60).contains(&(late - world.seconds)), "{late}");
}
