//! Copies without volumes: any node will do, and a new one may start before the old one goes.

use model::compute::{ExitHow, InstanceState, Placement, Purpose, RolloutOptions, Wanted};
use model::control::{Reason, Rollout, RolloutPhase};
use model::ids::{InstanceName, NodeName, ReleaseNumber};

use super::placing::Wish;
use super::{Memory, Step, balance, earlier, prepare};
use crate::Instant;
use crate::backoff;
use crate::place::Ceiling;

/// How long a node that could not start a copy is not tried again.
pub(super) const AVOID_FOR: std::time::Duration = std::time::Duration::from_secs(300);

pub(super) fn act(
    step: &mut Step<'_>,
    rollout: &Rollout,
    active: ReleaseNumber,
    memory: &mut Memory,
) -> Option<Instant> {
    step.drop_held();
    memory.avoided.retain(|_, until| *until > step.now.instant);
    let bounds = Bounds::of(step, rollout, active);
    place_missing(step, active, bounds, memory);
    let mut late = None;
    if step.is_settled() {
        late = balance::settle(step, active, bounds, memory);
        move_not_started(step, active, bounds, memory);
        remove_surplus(step, rollout, active, bounds);
    }
    earlier(late, balance::begin(step, rollout, active, memory))
}

/// How many there may be, and how many must be ready.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    wanted: usize,
    most: usize,
    fewest_ready: usize,
    /// Copies of other releases stay: the rollout is paused, or its release is being prepared.
    paused: bool,
}

impl Bounds {
    fn of(step: &Step<'_>, rollout: &Rollout, active: ReleaseNumber) -> Self {
        let RolloutOptions {
            surge, unavailable, ..
        } = step.spec(active).rollout;
        let surge = if unavailable == 0 {
            surge.max(1)
        } else {
            surge
        };
        let wanted = step.view.replicas as usize;
        let paused = rollout.phase == RolloutPhase::Paused
            || (rollout.phase == RolloutPhase::Rolling && prepare::is_due(step, rollout));
        Self {
            wanted,
            most: if paused {
                wanted
            } else {
                wanted + surge as usize
            },
            fewest_ready: wanted.saturating_sub(unavailable as usize),
            paused,
        }
    }

    /// Whether no copy may start before the one that it replaces has ended.
    fn is_exclusive(self, step: &Step<'_>, active: ReleaseNumber) -> bool {
        step.is_exclusive(active) && self.most == self.wanted
    }
}

/// Running copies, where one and the one that takes its place are one.
fn count(step: &Step<'_>) -> usize {
    step.running().count() - step.moves().count()
}

fn count_of(step: &Step<'_>, release: ReleaseNumber) -> usize {
    let of_it = |placement: &&Placement| placement.release == release;
    step.running().filter(of_it).count() - step.moves().filter(of_it).count()
}

fn place_missing(step: &mut Step<'_>, active: ReleaseNumber, bounds: Bounds, memory: &Memory) {
    let leaving = step
        .copies()
        .filter(|placement| placement.wanted == Wanted::Leave)
        .count();
    // What must not run beside itself waits for the leaving one, unless it was given a surge.
    let exclusive = bounds.is_exclusive(step, active);
    let mut there = count(step) + if exclusive { leaving } else { 0 };
    let mut new = count_of(step, active);
    let avoid: Vec<NodeName> = memory.avoided.keys().cloned().collect();
    while new < bounds.wanted && there < bounds.most {
        let mut wish = Wish {
            release: active,
            slot: None,
            purpose: Purpose::Serve,
            ceiling: step.ceiling(),
            avoid: &avoid,
            instead_of: None,
        };
        if there >= bounds.wanted {
            wish.ceiling = ceiling_of_surge(step, active);
        }
        step.place(&wish);
        new += 1;
        there += 1;
    }
}

/// One too many for a moment: it may use what is kept free for losses. What is to stay is another matter: one that asks for more CPU than those it
/// replaces must find it once they are gone.
fn ceiling_of_surge(step: &Step<'_>, active: ReleaseNumber) -> Ceiling {
    let old = step.copies().filter(|old| old.release != active);
    let freed = old.filter_map(|old| step.view.releases.get(&old.release));
    let freed = freed.map(|old| old.cpu).min();
    match freed {
        Some(freed) if freed < step.spec(active).cpu && !step.cluster.has_lost_workers() => {
            Ceiling::Surge { freed }
        }
        _ => Ceiling::Full,
    }
}

/// A copy that a node can't even start is started elsewhere, at growing intervals; where there is no other node it is left to try on.
fn move_not_started(
    step: &mut Step<'_>,
    active: ReleaseNumber,
    bounds: Bounds,
    memory: &mut Memory,
) {
    if memory.next_move > step.now.instant {
        return;
    }
    let failing = step
        .running()
        .find(|placement| placement.release == active && cannot_start(step, placement));
    let Some(failing) = failing.cloned() else {
        return;
    };
    avoid(memory, &failing.node, step.now.instant);
    let message = format!("node {} could not start it: another is tried", failing.node);
    if bounds.is_exclusive(step, active) || start_elsewhere(step, active, memory) {
        step.leave(&failing.instance, Reason::new("not-started", message));
    }
}

/// A node is not tried again for a while, and the next copy is not moved at once.
pub(super) fn avoid(memory: &mut Memory, node: &NodeName, now: Instant) {
    memory.avoided.insert(node.clone(), now.after(AVOID_FOR));
    memory.moves = memory.moves.saturating_add(1);
    // Ten times the waits of a restart: 1 s, doubling.
    memory.next_move = now.after(backoff::wait(memory.moves, 1.0) * 10);
}

fn start_elsewhere(step: &mut Step<'_>, active: ReleaseNumber, memory: &Memory) -> bool {
    let avoid: Vec<NodeName> = memory.avoided.keys().cloned().collect();
    let (instance, _) = step.name(None);
    let wish = Wish {
        release: active,
        slot: None,
        purpose: Purpose::Serve,
        ceiling: step.ceiling(),
        avoid: &avoid,
        instead_of: None,
    };
    step.try_place(&wish, &instance).is_ok()
}

/// Its node says that it is in a crash loop in which nothing ever ran.
pub(super) fn cannot_start(step: &Step<'_>, placement: &Placement) -> bool {
    step.report(placement).is_some_and(|report| {
        let exit = report.last_exit.as_ref().map(|exit| &exit.how);
        let never_ran = matches!(exit, Some(ExitHow::NotStarted { .. }));
        let looping = report
            .reason
            .as_ref()
            .is_some_and(|reason| reason.code == "crash-loop");
        report.state == InstanceState::Failed && never_ran && looping
    })
}

/// Old copies go as new ones become ready, then whatever is more than wanted.
fn remove_surplus(step: &mut Step<'_>, rollout: &Rollout, active: ReleaseNumber, bounds: Bounds) {
    let is_old = |placement: &&Placement| placement.release != active;
    if !bounds.paused {
        let reason = why_old_goes(rollout, active);
        remove(step, bounds, bounds.fewest_ready, &reason, |step| {
            names(step.running().filter(is_old))
        });
    }
    let reason = Reason::new("scaled-down", super::wanted(bounds.wanted));
    remove(step, bounds, bounds.wanted, &reason, |step| {
        match count(step) > bounds.most.max(bounds.wanted) {
            true => names(step.running()),
            false => surplus_of_active(step, active, bounds),
        }
    });
}

/// More copies of the active release than are wanted.
fn surplus_of_active(step: &Step<'_>, active: ReleaseNumber, bounds: Bounds) -> Vec<InstanceName> {
    let of_active = step
        .running()
        .filter(|placement| placement.release == active);
    let surplus =
        count_of(step, active) > bounds.wanted || (bounds.paused && count(step) > bounds.wanted);
    if surplus {
        names(of_active)
    } else {
        Vec::new()
    }
}

/// Tells candidates to leave, one at a time, while enough stay: `fewest` running, and as many ready as the bounds ask.
fn remove(
    step: &mut Step<'_>,
    bounds: Bounds,
    fewest: usize,
    reason: &Reason,
    candidates: impl Fn(&Step<'_>) -> Vec<InstanceName>,
) {
    loop {
        let among = candidates(step);
        let Some(instance) = step.first_to_go(&among) else {
            return;
        };
        let going = step
            .running()
            .find(|placement| placement.instance == instance);
        let may_go = going.is_none_or(|going| may_go(step, bounds, going));
        let enough = step.running().count() > fewest;
        if !may_go || !enough {
            return;
        }
        step.leave(&instance, reason.clone());
    }
}

/// Whether without it as many are ready as the bounds ask.
pub(super) fn may_go(step: &Step<'_>, bounds: Bounds, going: &Placement) -> bool {
    let others = || {
        let others = step.running();
        others
            .filter(|one| one.instance != going.instance && !step.on_trial.contains(&one.instance))
    };
    let left = match going {
        going if step.is_ready(going) => others().filter(|one| step.is_ready(one)).count(),
        // Callers have nobody better than one that falters under load, until somebody is ready in its place.
        going if step.serves(going) => others().filter(|one| step.serves(one)).count(),
        _ => return true,
    };
    left >= bounds.fewest_ready
}

fn names<'p>(placements: impl Iterator<Item = &'p Placement>) -> Vec<InstanceName> {
    placements
        .map(|placement| placement.instance.clone())
        .collect()
}

fn why_old_goes(rollout: &Rollout, active: ReleaseNumber) -> Reason {
    match rollout.phase {
        RolloutPhase::Failed => Reason::new(
            "rollout-failed",
            format!("release {} was judged bad", rollout.to),
        ),
        _ => Reason::new("replaced", format!("release {active} takes its place")),
    }
}
