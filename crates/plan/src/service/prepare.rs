//! The command that runs before a release is rolled out: `before_deploy`, on one node, to its end.
//!
//! ```text
//!            a release was applied       ended well
//!  (nothing) ──────────────────▶ placed ───────────▶ prepared, the copies roll
//!                                ▲   │ ended badly, not startable, too long, aborted
//!                      node lost └───┤
//!                                    └─────────────▶ Failed, the old version serves
//! ```
//!
//! That it ended well is stored with the rollout before anything rests on it. What is not known to have ended runs again: on a lost node it may
//! have done its work, so that it must be safe to repeat. Never two of them at once are placed by one service.

use std::time::Duration;

use model::compute::{
    BEFORE_DEPLOY_FAILED, ExitHow, InstanceState, Placement, Purpose, Service, Wanted,
};
use model::control::{Culprit, Reason, Rollout, RolloutPhase};
use model::ids::{InstanceName, ReleaseNumber};

use super::placing::Wish;
use super::{Memory, Sight, Step, judge};
use crate::Instant;
use crate::backoff;
use crate::place::Ceiling;

/// A command that takes longer than this has failed. (Migrations that take longer are better done beside the rollout, in steps.)
pub const ENDS_WITHIN: Duration = Duration::from_secs(600);

/// The command as a person would type it.
pub(super) fn words(spec: &Service) -> String {
    format!("`{}`", spec.before_deploy.join(" "))
}

/// Whether the rollout's release is one whose command has yet to run, or failed.
pub(super) fn is_due(step: &Step<'_>, rollout: &Rollout) -> bool {
    let has_one = !step.spec(rollout.to).before_deploy.is_empty();
    rollout.phase != RolloutPhase::Done && has_one && step.view.applied > rollout.prepared
}

/// Under way: it is to run, or runs.
fn is_open(step: &Step<'_>, rollout: &Rollout) -> bool {
    let goes_on = matches!(rollout.phase, RolloutPhase::Rolling | RolloutPhase::Paused);
    goes_on && is_due(step, rollout)
}

/// The release beyond which nothing of `to` starts: what was prepared before, and whatever needs none.
pub(super) fn carried(before: Option<&Rollout>) -> Option<ReleaseNumber> {
    let done = before.filter(|before| before.phase == RolloutPhase::Done);
    before
        .and_then(|before| before.prepared)
        .max(done.map(|done| done.to))
}

fn running<'s>(step: &'s Step<'_>) -> Option<&'s Placement> {
    let mut placements = step.group.placements.iter();
    placements.find(|placement| placement.purpose == Purpose::BeforeDeploy)
}

/// How it ended, once its node says so.
enum Ended {
    Well,
    Badly(String),
}

fn ended(step: &Step<'_>, placement: &Placement) -> Option<Ended> {
    let report = step.report(placement)?;
    let code = report.reason.as_ref().map(|reason| reason.code.as_str());
    let how = report.last_exit.as_ref().map(|exit| &exit.how);
    match (report.state, code, how) {
        (InstanceState::Finished, ..) => Some(Ended::Well),
        (InstanceState::Failed, Some(BEFORE_DEPLOY_FAILED), Some(how)) => {
            Some(Ended::Badly(end_in_words(how)))
        }
        // A node that can't start it says so again and again: nothing of it ran.
        (InstanceState::Failed, Some(backoff::CRASH_LOOP), Some(how)) => {
            Some(Ended::Badly(end_in_words(how)))
        }
        _ => None,
    }
}

fn end_in_words(how: &ExitHow) -> String {
    match how {
        ExitHow::NotStarted { error } => format!("could not be started: {error}"),
        ExitHow::OutOfMemory { limit } => format!("ran out of memory (limit {limit})"),
        how => format!("ended with {}", backoff::ended(how)),
    }
}

/// The name under which it runs or waits for a place.
fn name(step: &Step<'_>) -> Option<InstanceName> {
    let placed = running(step).map(|placement| placement.instance.clone());
    let waits = || {
        let pending = step.group.pending.first();
        pending.map(|pending| pending.instance.clone())
    };
    placed.or_else(waits)
}

fn within(step: &Step<'_>, to: ReleaseNumber) -> Duration {
    match running(step) {
        Some(_) => ENDS_WITHIN,
        None => step.spec(to).rollout.ready_within.duration(),
    }
}

/// When it must have ended.
pub(super) fn deadline(step: &Step<'_>, memory: &Memory, rollout: &Rollout) -> Option<Instant> {
    let (_, since) = memory.preparing.as_ref()?;
    is_open(step, rollout).then(|| since.after(within(step, rollout.to)))
}

fn note_begin(step: &Step<'_>, memory: &mut Memory) {
    let name = name(step);
    let known = memory.preparing.as_ref().map(|(known, _)| known);
    if known != name.as_ref() {
        memory.preparing = name.map(|name| (name, step.now.instant));
    }
}

/// What becomes of a rollout that waits for its command.
pub(super) fn judge(step: &Step<'_>, memory: &mut Memory, rollout: &mut Rollout) {
    memory.hold_rollout(step.now.instant);
    note_begin(step, memory);
    let command = words(step.spec(rollout.to));
    let placement = running(step).filter(|placement| placement.release == rollout.to);
    match placement.and_then(|placement| Some((placement, ended(step, placement)?))) {
        Some((_, Ended::Well)) => {
            rollout.prepared = Some(rollout.to);
            let message = match rollout.from {
                Some(from) => format!(
                    "{command} has ended well: release {from} is replaced by release {}",
                    rollout.to
                ),
                None => format!("{command} has ended well: release {} starts", rollout.to),
            };
            rollout.reason = Reason::new("rolling", message);
            rollout.progressed_at = step.now.at;
        }
        Some((placement, Ended::Badly(how))) => {
            fail(step, rollout, Some(placement), &format!("{command} {how}"));
        }
        None if is_overdue(step, memory, rollout) => {
            let within = within(step, rollout.to).as_secs();
            let what = match placement {
                Some(_) => format!("{command} did not end within {within} s"),
                None => format!("{command} found no place within {within} s"),
            };
            fail(step, rollout, placement, &what);
        }
        None => {}
    }
}

/// Of a node that is not heard it is not known whether it ended; one of an older release is none of this rollout's.
fn is_overdue(step: &Step<'_>, memory: &Memory, rollout: &Rollout) -> bool {
    let is_known = |placed: &Placement| {
        placed.release == rollout.to && step.sight(&placed.node) == Sight::Heard
    };
    let is_heard = running(step).is_none_or(is_known);
    let deadline = deadline(step, memory, rollout);
    is_heard && deadline.is_some_and(|deadline| step.now.instant >= deadline)
}

fn fail(step: &Step<'_>, rollout: &mut Rollout, placement: Option<&Placement>, what: &str) {
    let then = match rollout.from {
        Some(from) => format!("release {from} goes on serving"),
        None => "no release was good before it, so nothing serves".to_owned(),
    };
    let message = format!("release {} was not rolled out: {what}; {then}", rollout.to);
    let detail = placement.map_or_else(Vec::new, |placement| {
        let report = step.report(placement);
        let reason = report.and_then(|report| report.reason.clone());
        reason.map_or_else(Vec::new, |reason| reason.detail)
    });
    let reason = Reason::new(BEFORE_DEPLOY_FAILED, message).with_detail(detail);
    let culprit = placement.map(|placement| Culprit {
        instance: placement.instance.clone(),
        node: placement.node.clone(),
    });
    judge::change(rollout, RolloutPhase::Failed, reason, step.now.at);
    rollout.culprit = culprit;
}

/// Places it where it is due, and lets it go where it has ended or is no longer wanted. One of an older release is waited for.
pub(super) fn act(step: &mut Step<'_>, rollout: &Rollout, memory: &Memory) {
    let Some(placement) = running(step).cloned() else {
        if is_open(step, rollout) {
            place(step, rollout.to);
        }
        return;
    };
    if placement.wanted == Wanted::Leave {
        return;
    }
    let is_older = placement.release != rollout.to;
    let is_late = memory.preparing.as_ref().is_some_and(|(name, since)| {
        *name == placement.instance && step.now.instant >= since.after(ENDS_WITHIN)
    });
    let command = step
        .view
        .releases
        .get(&placement.release)
        .map_or_else(String::new, |spec| words(spec));
    let reason = match ended(step, &placement) {
        Some(Ended::Well) => Reason::new("finished", format!("{command} has ended well")),
        Some(Ended::Badly(how)) => Reason::new(BEFORE_DEPLOY_FAILED, format!("{command} {how}")),
        None if is_late || (!is_older && !is_open(step, rollout)) => {
            Reason::new("stopped", format!("{command} is no longer waited for"))
        }
        None => return,
    };
    let goes_on = is_open(step, rollout) && !is_older;
    if !goes_on {
        step.leave(&placement.instance, reason);
    }
}

fn place(step: &mut Step<'_>, release: ReleaseNumber) {
    let wish = Wish {
        release,
        slot: None,
        purpose: Purpose::BeforeDeploy,
        // One too many for a while: it may use what is kept free for losses.
        ceiling: Ceiling::Full,
        avoid: &[],
        instead_of: None,
    };
    step.place(&wish);
}
