//! One step of one service: scaling, rolling, replacing, giving up on a bad release.
//!
//! A step looks at the whole service and says what its group of placements should now be. It takes nothing from the step before but
//! [`Memory`], which holds deadlines only and may be empty: a new leader begins every deadline anew.
//!
//! ```text
//!            new release                    every copy new and ready
//!  (nothing) ───────────▶ Rolling ─────────────────────────────────▶ Done
//!                          ▲   │ a new copy not ready in time          │
//!                   pause/ │   ▼                                       │ new release
//!                   resume │ Failed ── the old version serves ─────────┴─────▶ Rolling
//!                   Paused ┘
//! ```
//!
//! What is certain of every step:
//! * a ready copy is told to leave only while at least `replicas - unavailable` others are ready; new ones count once their release has proved
//!   itself (see [`trial`]);
//! * a copy with volumes is placed only when the one before it in its slot is gone, and only at the slot's home, which is where one was first ready;
//! * instance numbers and epochs only grow;
//! * nothing leaves while a node with copies of the service is silent, since what is ready there is then not known.

mod balance;
mod copies;
mod judge;
mod left;
mod placing;
mod prepare;
mod slots;
mod trial;

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{
    InstanceReport, InstanceState, OnPartition, Pending, Placement, PlacementGroup, Purpose,
    Service, Wanted,
};
use model::control::{Reason, Rollout};
use model::ids::{InstanceName, NodeName, ReleaseNumber, ResourceId};
use model::signals::Level;

use crate::place::Cluster;
use crate::{Instant, Now};
use placing::Refusal;

pub use judge::Memory;
pub use left::{Left, left_behind};
pub use prepare::ENDS_WITHIN as BEFORE_DEPLOY_ENDS_WITHIN;

/// What the leader knows of a node when it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// This leader has the full picture of the node's present session, and its heartbeats come.
    Heard,
    /// Present, but not heard by this leader, or not lately: what runs there is not known.
    Silent,
    /// Lost by decision, or no node of the cluster.
    Lost,
}

/// All that is known of one service.
pub struct ServiceView<'a> {
    pub id: &'a ResourceId,
    /// The newest release. `None`: the service was deleted, everything leaves.
    pub target: Option<ReleaseNumber>,
    /// The applied release that the newest one's program came with: its `before_deploy` is to have run. `None`: it was returned to, and ran
    /// before.
    pub applied: Option<ReleaseNumber>,
    /// By the scale if somebody set one, else by the newest release.
    pub replicas: u32,
    /// At least those that a placement, the rollout or `target` names.
    pub releases: &'a BTreeMap<ReleaseNumber, &'a Service>,
    pub rollout: Option<&'a Rollout>,
    pub group: &'a PlacementGroup,
    /// What nodes report of this service's instances.
    pub reports: &'a BTreeMap<InstanceName, &'a InstanceReport>,
    pub sight: &'a dyn Fn(&NodeName) -> Sight,
    /// Nodes where a copy with volumes may not begin, and why: they have yet to forget data that was deleted, or lack what it runs on.
    pub barred: &'a [(NodeName, Reason)],
    /// A brake is on: nothing is changed until it is released.
    pub hold: Option<&'a Reason>,
}

/// What should now be. Equal to what was when there is nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceDecision {
    pub group: PlacementGroup,
    /// `None` for a service without releases.
    pub rollout: Option<Rollout>,
    /// Level, subject (the service or an instance), reason.
    pub events: Vec<(Level, String, Reason)>,
    /// A deadline of the service passes then; step again at the latest.
    pub wake: Option<Instant>,
}

/// Decides, and takes from `cluster` what is placed and gives back what is gone. When the decision can't be stored, tell the cluster the
/// truth with [`Cluster::set_group`].
pub fn step(
    view: &ServiceView<'_>,
    memory: &mut Memory,
    cluster: &mut Cluster,
    now: Now,
) -> ServiceDecision {
    let mut step = Step {
        view,
        cluster,
        now,
        group: view.group.clone(),
        pending: Vec::new(),
        refusal: None,
        on_trial: BTreeSet::new(),
        events: Vec::new(),
    };
    step.bind_homes();
    if view.hold.is_some() {
        memory.hold(now.instant);
        // Where volumes have their home is seen, not changed.
        return ServiceDecision {
            group: step.group,
            rollout: view.rollout.cloned(),
            events: Vec::new(),
            wake: None,
        };
    }
    step.drop_lost();
    step.drop_gone();
    let Some(target) = view
        .target
        .filter(|target| view.releases.contains_key(target))
    else {
        step.leave_all();
        return step.decision(None, None);
    };
    let rollout = judge::judge(&step, memory, target);
    let mut wake = judge::wake(&step, memory, &rollout);
    step.on_trial = trial::on_trial(&step, memory, &rollout);
    step.tell(view.rollout, &rollout);
    prepare::act(&mut step, &rollout, memory);
    if let Some(active) = judge::active(&step, &rollout) {
        match step.spec(active).volumes.is_empty() {
            true => wake = earlier(wake, copies::act(&mut step, &rollout, active, memory)),
            false => wake = earlier(wake, slots::act(&mut step, &rollout, active, memory)),
        }
    }
    step.decision(Some(rollout), wake)
}

/// Why a copy too many goes.
fn wanted(copies: usize) -> String {
    match copies {
        0 => "no copies are wanted".to_owned(),
        1 => "1 copy is wanted".to_owned(),
        _ => format!("{copies} copies are wanted"),
    }
}

fn earlier(first: Option<Instant>, second: Option<Instant>) -> Option<Instant> {
    first.into_iter().chain(second).min()
}

/// The work in progress.
struct Step<'a> {
    view: &'a ServiceView<'a>,
    cluster: &'a mut Cluster,
    now: Now,
    group: PlacementGroup,
    /// Copies that found no place in this step.
    pending: Vec<Pending>,
    /// What was refused in this step, which is not tried again for the next copy.
    refusal: Option<Refusal>,
    /// New copies that don't count yet beside the old ones.
    on_trial: BTreeSet<InstanceName>,
    events: Vec<(Level, String, Reason)>,
}

impl<'a> Step<'a> {
    fn spec(&self, release: ReleaseNumber) -> &'a Service {
        self.view.releases[&release]
    }

    fn sight(&self, node: &NodeName) -> Sight {
        (self.view.sight)(node)
    }

    fn report(&self, placement: &Placement) -> Option<&'a InstanceReport> {
        let heard = self.sight(&placement.node) == Sight::Heard;
        let report = self.view.reports.get(&placement.instance).copied();
        report.filter(|report| heard && report.epoch == placement.epoch)
    }

    /// It serves, as far as is known; work that ended well has served.
    fn is_ready(&self, placement: &Placement) -> bool {
        let ready =
            |report: &InstanceReport| report.ready || report.state == InstanceState::Finished;
        placement.wanted == Wanted::Run && self.report(placement).is_some_and(ready)
    }

    /// It is ready, and may be counted on.
    fn counts(&self, placement: &Placement) -> bool {
        self.is_ready(placement) && !self.on_trial.contains(&placement.instance)
    }

    /// It is ready, or it runs and was.
    fn serves(&self, placement: &Placement) -> bool {
        let runs = |report: &InstanceReport| report.state == InstanceState::Running;
        self.is_ready(placement) || self.report(placement).is_some_and(runs)
    }

    /// Every node with a running copy is heard, so that what is ready is known.
    fn is_settled(&self) -> bool {
        self.running()
            .all(|placement| self.sight(&placement.node) != Sight::Silent)
    }

    /// Its copies: what runs in its name before a rollout is none.
    fn copies(&self) -> impl Iterator<Item = &Placement> {
        let placements = self.group.placements.iter();
        placements.filter(|placement| placement.purpose == Purpose::Serve)
    }

    fn running(&self) -> impl Iterator<Item = &Placement> {
        self.copies()
            .filter(|placement| placement.wanted == Wanted::Run)
    }

    /// The copies that were started to take the place of one that still runs: each counts as one with it.
    fn moves(&self) -> impl Iterator<Item = &Placement> {
        let runs = |name: &InstanceName| self.running().any(|old| old.instance == *name);
        self.running()
            .filter(move |new| new.replaces.as_ref().is_some_and(runs))
    }

    /// An instance with volumes that waits for its lost node: neither there nor missing. One whose volumes have no home yet does so too: it has no
    /// lease, so that it may run there still.
    fn is_held(&self, placement: &Placement) -> bool {
        placement.slot.is_some() && self.sight(&placement.node) == Sight::Lost
    }

    /// Volumes have their home where a copy was first ready with them: before that there is nothing in them that anybody was given. That it was
    /// ready is reported ever after, since nobody may hear the moment.
    fn bind_homes(&mut self) {
        for placement in &self.group.placements {
            let report = self.view.reports.get(&placement.instance);
            let was_ready = report.is_some_and(|report| {
                report.epoch == placement.epoch
                    && (report.ready || report.was_ready || report.state == InstanceState::Finished)
            });
            if let Some(slot) = placement.slot.filter(|_| was_ready) {
                let homes = &mut self.group.homes;
                homes.entry(slot).or_insert_with(|| placement.node.clone());
            }
        }
    }

    /// What ran on a lost node is given up, and its replacement may start: the decision that the node is lost waited for its leases. What has a
    /// volume there stays, and resumes when the node does.
    fn drop_lost(&mut self) {
        let keeps_slot = |placement: &Placement| {
            let wanted = placement.slot.is_some_and(|slot| slot < self.view.replicas);
            wanted && placement.wanted == Wanted::Run && self.view.target.is_some()
        };
        let lost: Vec<_> = self
            .group
            .placements
            .iter()
            .filter(|placement| {
                self.sight(&placement.node) == Sight::Lost && !keeps_slot(placement)
            })
            .cloned()
            .collect();
        for placement in lost {
            self.bind_unheard(&placement);
            if placement.wanted == Wanted::Run {
                let message = format!(
                    "node {} is lost: {} {}",
                    placement.node,
                    placement.instance,
                    match placement.purpose {
                        Purpose::Serve => "is replaced",
                        Purpose::BeforeDeploy =>
                            "may have ended or not, so its command runs again elsewhere",
                        Purpose::Run => "is gone, and so is the command beside it",
                    }
                );
                self.say(
                    Level::Warning,
                    placement.instance.to_string(),
                    Reason::new("node-lost", message),
                );
            }
            self.remove(&placement.instance);
        }
    }

    /// What was told to leave and is no longer there.
    fn drop_gone(&mut self) {
        let gone: Vec<_> = self
            .group
            .placements
            .iter()
            .filter(|placement| placement.wanted == Wanted::Leave && self.is_gone(placement))
            .map(|placement| placement.instance.clone())
            .collect();
        for instance in gone {
            self.remove(&instance);
        }
    }

    /// Its node says that it ended. That it says nothing of it is not enough: it may not yet have been told to run it, and would begin
    /// after a successor did. A node that is told of a leaving instance it never had reports it as stopped.
    fn is_gone(&self, placement: &Placement) -> bool {
        self.report(placement).is_some_and(|report| {
            matches!(
                report.state,
                InstanceState::Stopped | InstanceState::Finished
            )
        })
    }

    /// What waited for a lost node with a volume that is wanted no more.
    fn drop_held(&mut self) {
        let held: Vec<_> = self
            .running()
            .filter(|placement| self.is_held(placement))
            .cloned()
            .collect();
        for placement in held {
            self.bind_unheard(&placement);
            self.remove(&placement.instance);
        }
    }

    /// What is given up on a node that is not heard: nobody heard it end, and it has no lease. As far as is known it was ready there, and runs.
    fn bind_unheard(&mut self, placement: &Placement) {
        if let Some(slot) = placement.slot {
            let homes = &mut self.group.homes;
            homes.entry(slot).or_insert_with(|| placement.node.clone());
        }
    }

    fn remove(&mut self, instance: &InstanceName) {
        self.group
            .placements
            .retain(|placement| placement.instance != *instance);
        self.cluster.remove(self.view.id, instance);
    }

    fn leave(&mut self, instance: &InstanceName, reason: Reason) {
        let found = self
            .group
            .placements
            .iter_mut()
            .find(|placement| placement.instance == *instance);
        if let Some(placement) = found.filter(|placement| placement.wanted == Wanted::Run) {
            placement.wanted = Wanted::Leave;
            placement.reason = reason.clone();
            placement.placed_at = Some(placement.at);
            placement.at = self.now.at;
            self.say(Level::Info, instance.to_string(), reason);
        }
    }

    fn leave_all(&mut self) {
        let all: Vec<_> = self
            .group
            .placements
            .iter()
            .filter(|placement| placement.wanted == Wanted::Run)
            .map(|placement| placement.instance.clone())
            .collect();
        for instance in all {
            self.leave(&instance, Reason::new("deleted", "the service was deleted"));
        }
    }

    fn say(&mut self, level: Level, subject: String, reason: Reason) {
        self.events.push((level, subject, reason));
    }

    /// Says what changed about the rollout.
    fn tell(&mut self, before: Option<&Rollout>, after: &Rollout) {
        let same = |before: &Rollout| before.to == after.to && before.phase == after.phase;
        if !before.is_some_and(same) {
            let level = judge::level(after.phase);
            self.say(level, self.view.id.name.to_string(), after.reason.clone());
        }
    }

    /// What was to take the place of a copy that goes anyway is a copy like others.
    fn forget_moves(&mut self) {
        let moves: BTreeSet<_> = self.moves().map(|new| new.instance.clone()).collect();
        for placement in &mut self.group.placements {
            placement.replaces = placement
                .replaces
                .take()
                .filter(|_| moves.contains(&placement.instance));
        }
    }

    fn decision(mut self, rollout: Option<Rollout>, wake: Option<Instant>) -> ServiceDecision {
        let known = &self.view.group.pending;
        for pending in &self.pending {
            if !known.iter().any(|before| {
                before.instance == pending.instance && before.reason.code == pending.reason.code
            }) {
                self.events.push((
                    Level::Warning,
                    pending.instance.to_string(),
                    pending.reason.clone(),
                ));
            }
        }
        self.forget_moves();
        self.group.pending = self.pending;
        ServiceDecision {
            group: self.group,
            rollout,
            events: self.events,
            wake,
        }
    }

    /// Of these, the one that should go first: not ready before ready, then from the zone with the most copies, then the newest.
    fn first_to_go(&self, among: &[InstanceName]) -> Option<InstanceName> {
        let among: BTreeSet<_> = among.iter().collect();
        let zone = |placement: &Placement| {
            let node = self.cluster.node(&placement.node);
            node.map(|node| (&node.region, &node.zone))
        };
        let mut beside: BTreeMap<_, usize> = BTreeMap::new();
        for placement in self.running() {
            *beside.entry(zone(placement)).or_default() += 1;
        }
        let key = |placement: &&Placement| {
            let crowd = beside[&zone(placement)];
            (!self.is_ready(placement), crowd, placement.epoch)
        };
        let candidates = self
            .running()
            .filter(|placement| among.contains(&placement.instance));
        let first = candidates.max_by_key(key);
        first.map(|placement| placement.instance.clone())
    }

    /// Whether what leaves still counts as there: a workload that must not run beside itself.
    fn is_exclusive(&self, release: ReleaseNumber) -> bool {
        self.spec(release).on_partition == OnPartition::Stop
    }
}

#[cfg(test)]
mod tests;
