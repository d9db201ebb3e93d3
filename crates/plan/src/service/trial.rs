//! Whether what a rollout starts stays up: a copy that answers may end a moment later.
//!
//! Until the release has proved itself none of its copies counts beside the old ones, so that no old one goes for it. It has proved itself once one
//! copy stayed ready for [`RolloutOptions::ready_for`], with none of its copies ending in that time. (Kubernetes' `minReadySeconds` and Nomad's
//! `min_healthy_time` ask as much of every copy; what ends soon mostly does so in the first already, so that here each further one is asked for
//! [`RolloutOptions::settled_after`] only.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use model::compute::{InstanceReport, InstanceState, Placement, RolloutOptions};
use model::control::{Rollout, RolloutPhase};
use model::ids::{Epoch, InstanceName, ReleaseNumber};

use super::{Memory, Step, earlier};
use crate::Instant;

/// What a leader remembers of the copies of the release that is rolled out. Soft: an empty one begins every watch anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trial {
    copies: BTreeMap<InstanceName, Seen>,
    /// When one of them was last seen to have ended.
    ended: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    epoch: Epoch,
    restarts: u32,
    exited_at: Option<Timestamp>,
    /// Since when it has been ready without a break.
    ready_since: Option<Instant>,
}

impl Trial {
    /// Looks at the copies of `to`.
    pub(super) fn watch(&mut self, step: &Step<'_>, to: ReleaseNumber) {
        let mut before = std::mem::take(&mut self.copies);
        let now = step.now.instant;
        for copy in step.running().filter(|copy| copy.release == to) {
            let known = before.remove(&copy.instance);
            let known = known.filter(|known| known.epoch == copy.epoch);
            let Some(report) = step.report(copy) else {
                let unheard = known.map(|known| Seen {
                    ready_since: None,
                    ..known
                });
                self.copies
                    .extend(unheard.map(|seen| (copy.instance.clone(), seen)));
                continue;
            };
            let seen = Seen {
                epoch: copy.epoch,
                restarts: report.restarts,
                exited_at: exited_at(report),
                ready_since: None,
            };
            let ended = match &known {
                Some(known) => (known.restarts, known.exited_at) != (seen.restarts, seen.exited_at),
                None => seen.exited_at.is_some(),
            };
            if ended {
                self.ended = Some(now);
            }
            let since = known.and_then(|known| known.ready_since);
            let ready_since = step
                .is_ready(copy)
                .then(|| since.filter(|_| !ended).unwrap_or(now));
            self.copies.insert(
                copy.instance.clone(),
                Seen {
                    ready_since,
                    ..seen
                },
            );
        }
    }

    fn ready_since(&self, copy: &Placement) -> Option<Instant> {
        self.copies.get(&copy.instance)?.ready_since
    }
}

/// What ended well has not broken off.
fn exited_at(report: &InstanceReport) -> Option<Timestamp> {
    let exit = report.last_exit.as_ref();
    exit.filter(|_| report.state != InstanceState::Finished)
        .map(|exit| exit.at)
}

/// It is ready, and stayed so for a moment.
pub(super) fn is_settled(step: &Step<'_>, memory: &Memory, copy: &Placement) -> bool {
    let options = step.spec(copy.release).rollout;
    let finished = step
        .report(copy)
        .is_some_and(|report| report.state == InstanceState::Finished);
    let settled = has_lasted(step, memory, copy, options.settled_after().duration());
    step.is_ready(copy) && (finished || settled)
}

fn has_lasted(step: &Step<'_>, memory: &Memory, copy: &Placement, time: Duration) -> bool {
    let since = memory.trial.ready_since(copy);
    since.is_some_and(|since| step.now.instant.since(since) >= time)
}

/// The release has proved itself; or it needs not: it ran before, there is nothing to go on with instead of it, or no copy is wanted.
pub(super) fn is_proven(step: &Step<'_>, memory: &Memory, rollout: &Rollout) -> bool {
    let ready_for = ready_for(step, rollout);
    let ended = memory.trial.ended;
    let is_calm = ended.is_none_or(|ended| step.now.instant.since(ended) >= ready_for);
    let has_lasted = |copy: &Placement| has_lasted(step, memory, copy, ready_for);
    ready_for.is_zero()
        || step.view.replicas == 0
        || (is_calm && new_copies(step, rollout).any(has_lasted))
}

/// How long one copy of the release must stay ready. Nothing where nothing hangs on it.
fn ready_for(step: &Step<'_>, rollout: &Rollout) -> Duration {
    let ran_before = step.view.applied.is_none();
    match rollout.from {
        Some(_) if !ran_before => step.spec(rollout.to).rollout.ready_for.duration(),
        _ => Duration::ZERO,
    }
}

fn new_copies<'s>(step: &'s Step<'_>, rollout: &Rollout) -> impl Iterator<Item = &'s Placement> {
    let to = rollout.to;
    step.running().filter(move |copy| copy.release == to)
}

/// The new copies that are ready and don't count yet.
pub(super) fn on_trial(
    step: &Step<'_>,
    memory: &Memory,
    rollout: &Rollout,
) -> BTreeSet<InstanceName> {
    if rollout.phase != RolloutPhase::Rolling {
        return BTreeSet::new();
    }
    let proven = is_proven(step, memory, rollout);
    new_copies(step, rollout)
        .filter(|copy| !(proven && is_settled(step, memory, copy)))
        .map(|copy| copy.instance.clone())
        .collect()
}

/// When the next copy, or the release, will have lasted long enough.
pub(super) fn wake(step: &Step<'_>, memory: &Memory, rollout: &Rollout) -> Option<Instant> {
    let options: RolloutOptions = step.spec(rollout.to).rollout;
    let ready_for = ready_for(step, rollout);
    let since = new_copies(step, rollout).filter_map(|copy| memory.trial.ready_since(copy));
    let times = since.flat_map(|since| {
        [options.settled_after().duration(), ready_for].map(|time| since.after(time))
    });
    let calm = memory.trial.ended.map(|ended| ended.after(ready_for));
    times
        .chain(calm)
        .filter(|time| *time > step.now.instant)
        .fold(None, |first, time| earlier(first, Some(time)))
}
