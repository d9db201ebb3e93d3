//! Whether a rollout is under way, done or bad.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use model::compute::{ExitHow, Placement, Wanted};
use model::control::{Culprit, Reason, Rollout, RolloutPhase};
use model::ids::{InstanceName, NodeName, ReleaseNumber};
use model::signals::Level;

use super::balance::Balance;
use super::trial::{self, Trial};
use super::{Step, copies, earlier, prepare};
use crate::Instant;
use crate::backoff;

/// The deadlines of one service. Soft: an empty one begins every deadline anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    mark: Option<Mark>,
    /// Since when what runs before the rollout runs, or waits for a place.
    pub(super) preparing: Option<(InstanceName, Instant)>,
    /// Nodes that could not start an instance, and until when they are not tried again.
    pub(super) avoided: BTreeMap<NodeName, Instant>,
    pub(super) moves: u32,
    pub(super) next_move: Instant,
    pub(super) balance: Balance,
    pub(super) trial: Trial,
}

/// The closest that a rollout came, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    to: ReleaseNumber,
    ready: usize,
    old: usize,
    since: Instant,
}

impl Memory {
    /// Time that passes while a brake is on is no delay of the rollout's.
    pub(super) fn hold(&mut self, now: Instant) {
        self.hold_rollout(now);
        self.balance.hold(now);
        if let Some((_, since)) = &mut self.preparing {
            *since = now;
        }
    }

    /// Nor is the time in which its release is prepared.
    pub(super) fn hold_rollout(&mut self, now: Instant) {
        if let Some(mark) = &mut self.mark {
            mark.since = now;
        }
    }

    /// Follows the new copies for as long as a rollout hangs on them.
    fn watch(&mut self, step: &Step<'_>, rollout: &Rollout) {
        match rollout.phase {
            RolloutPhase::Done => self.trial = Trial::default(),
            RolloutPhase::Failed if rollout.from.is_some() => self.trial = Trial::default(),
            _ => self.trial.watch(step, rollout.to),
        }
    }

    /// Records how close the rollout is; says whether that is closer than ever.
    fn mark(&mut self, to: ReleaseNumber, ready: usize, old: usize, now: Instant) -> bool {
        let best = self.mark.filter(|mark| mark.to == to);
        let closer = best.is_some_and(|best| ready > best.ready || old < best.old);
        if best.is_none() || closer {
            let ready = best.map_or(ready, |best| best.ready.max(ready));
            let old = best.map_or(old, |best| best.old.min(old));
            self.mark = Some(Mark {
                to,
                ready,
                old,
                since: now,
            });
        }
        closer
    }
}

/// The release whose copies should serve. `None`: not the new one yet, and there is no other.
pub(super) fn active(step: &Step<'_>, rollout: &Rollout) -> Option<ReleaseNumber> {
    match (rollout.phase, rollout.from) {
        _ if prepare::is_due(step, rollout) => rollout.from,
        (RolloutPhase::Failed, Some(from)) => Some(from),
        _ => Some(rollout.to),
    }
}

pub(super) fn level(phase: RolloutPhase) -> Level {
    match phase {
        RolloutPhase::Failed => Level::Error,
        RolloutPhase::Rolling | RolloutPhase::Paused | RolloutPhase::Done => Level::Info,
    }
}

/// The rollout as it now stands.
pub(super) fn judge(step: &Step<'_>, memory: &mut Memory, target: ReleaseNumber) -> Rollout {
    let known = step.view.rollout.filter(|rollout| rollout.to == target);
    let mut rollout = known.cloned().unwrap_or_else(|| begin(step, target));
    if known.is_none() {
        *memory = Memory::default();
    }
    rollout.from = rollout
        .from
        .filter(|from| step.view.releases.contains_key(from));
    memory.watch(step, &rollout);
    let count = Count::of(step, memory, target);
    let closer = memory.mark(target, count.ready, count.old, step.now.instant);
    match rollout.phase {
        RolloutPhase::Done => {}
        RolloutPhase::Paused => memory.hold(step.now.instant),
        RolloutPhase::Failed if rollout.from.is_some() || prepare::is_due(step, &rollout) => {}
        RolloutPhase::Rolling if prepare::is_due(step, &rollout) => {
            prepare::judge(step, memory, &mut rollout);
        }
        RolloutPhase::Rolling | RolloutPhase::Failed
            if count.is_complete() && trial::is_proven(step, memory, &rollout) =>
        {
            let reason = Reason::new("rolled-out", count.in_words(target));
            change(&mut rollout, RolloutPhase::Done, reason, step.now.at);
        }
        RolloutPhase::Failed => {}
        // How it goes is not known before one of the nodes is back: that is no delay of the release's.
        RolloutPhase::Rolling if count.waits_for_nodes() => memory.hold_rollout(step.now.instant),
        RolloutPhase::Rolling => {
            if closer {
                rollout.progressed_at = step.now.at;
            }
            if let Some(fault) = fault(step, memory, target) {
                let reason = why_bad(step, &rollout, fault);
                change(&mut rollout, RolloutPhase::Failed, reason, step.now.at);
                rollout.culprit = fault.copy().map(|new| Culprit {
                    instance: new.instance.clone(),
                    node: new.node.clone(),
                });
            }
        }
    }
    rollout
}

/// When the deadline of a rollout under way passes.
pub(super) fn wake(step: &Step<'_>, memory: &Memory, rollout: &Rollout) -> Option<Instant> {
    if prepare::is_due(step, rollout) {
        return prepare::deadline(step, memory, rollout);
    }
    if rollout.phase == RolloutPhase::Done {
        return None;
    }
    let within = step.spec(rollout.to).rollout.ready_within.duration();
    let mark = memory
        .mark
        .filter(|_| rollout.phase == RolloutPhase::Rolling);
    let late = mark.map(|mark| mark.since.after(within));
    earlier(late, trial::wake(step, memory, rollout))
}

pub(super) fn change(rollout: &mut Rollout, phase: RolloutPhase, reason: Reason, at: Timestamp) {
    rollout.phase = phase;
    rollout.culprit = None;
    rollout.reason = reason;
    rollout.progressed_at = at;
}

fn begin(step: &Step<'_>, to: ReleaseNumber) -> Rollout {
    let from = last_good(step).filter(|from| step.view.releases.contains_key(from));
    let message = match from {
        Some(from) => format!("release {from} is replaced by release {to}"),
        None if step.view.rollout.is_some() => format!("release {to} is rolled out"),
        None => format!("release {to} is the first"),
    };
    let mut rollout = Rollout {
        to,
        from,
        phase: RolloutPhase::Rolling,
        reason: Reason::new("rolling", message),
        started_at: step.now.at,
        progressed_at: step.now.at,
        prepared: prepare::carried(step.view.rollout),
        culprit: None,
    };
    match prepare::is_due(step, &rollout) {
        true => {
            let command = prepare::words(step.spec(to));
            let message = format!("{command} runs first; {}", rollout.reason);
            rollout.reason = Reason::new("preparing", message);
        }
        false => rollout.prepared = Some(to),
    }
    rollout
}

/// What to fall back to: what was rolled out, or what was being rolled out and already serves.
fn last_good(step: &Step<'_>) -> Option<ReleaseNumber> {
    let before = step.view.rollout?;
    let serves = || {
        let mut of_it = step
            .running()
            .filter(|placement| placement.release == before.to);
        of_it
            .any(|placement| step.is_ready(placement))
            .then_some(before.to)
    };
    match before.phase {
        RolloutPhase::Done => Some(before.to),
        RolloutPhase::Failed => before.from,
        RolloutPhase::Rolling | RolloutPhase::Paused => before.from.or_else(serves),
    }
}

/// How far a rollout is.
struct Count {
    /// Of the new release, for long enough.
    ready: usize,
    /// Copies whose node can run them.
    wanted: usize,
    /// Copies that wait for a lost node with their volume.
    held: usize,
    /// Copies of other releases that are still there, leaving or not.
    old: usize,
    old_running: usize,
}

impl Count {
    fn of(step: &Step<'_>, memory: &Memory, to: ReleaseNumber) -> Self {
        let held = step
            .running()
            .filter(|placement| step.is_held(placement))
            .count();
        let is_old = |placement: &&Placement| placement.release != to && !step.is_held(placement);
        let ready = step
            .running()
            .filter(|new| new.release == to && trial::is_settled(step, memory, new))
            .count();
        Self {
            ready,
            wanted: (step.view.replicas as usize).saturating_sub(held),
            held,
            old: step.copies().filter(is_old).count(),
            old_running: step.running().filter(is_old).count(),
        }
    }

    fn is_complete(&self) -> bool {
        self.ready >= self.wanted && self.old_running == 0 && !self.waits_for_nodes()
    }

    /// None of its copies can run before a lost node is back.
    fn waits_for_nodes(&self) -> bool {
        self.held > 0 && self.wanted == 0
    }

    fn in_words(&self, to: ReleaseNumber) -> String {
        let held = match self.held {
            0 => String::new(),
            1 => "; 1 waits for its lost node".to_owned(),
            held => format!("; {held} wait for their lost nodes"),
        };
        format!("release {to} serves with {} ready{held}", self.ready)
    }
}

/// What speaks against a release.
#[derive(Clone, Copy)]
enum Fault<'s> {
    /// It ends again and again.
    Loops(&'s Placement),
    /// It can't be started, here nor on another node that was tried.
    NotStarted(&'s Placement),
    /// Nothing came closer for as long as a new instance may take: the one that is not ready.
    Late(&'s Placement),
    NoPlace,
}

impl<'s> Fault<'s> {
    fn copy(self) -> Option<&'s Placement> {
        match self {
            Self::Loops(copy) | Self::NotStarted(copy) | Self::Late(copy) => Some(copy),
            Self::NoPlace => None,
        }
    }
}

fn fault<'s>(step: &'s Step<'_>, memory: &Memory, to: ReleaseNumber) -> Option<Fault<'s>> {
    let loops = || unready(step, to).find(|new| loops(step, new));
    let not_started = || not_started(step, memory, to);
    let within = step.spec(to).rollout.ready_within.duration();
    let mark = memory.mark;
    let is_late = mark.is_some_and(|mark| step.now.instant.since(mark.since) >= within);
    let late = || unready(step, to).next().map(Fault::Late);
    let no_place = || (!step.view.group.pending.is_empty()).then_some(Fault::NoPlace);
    loops()
        .map(Fault::Loops)
        .or_else(|| not_started().map(Fault::NotStarted))
        .or_else(|| is_late.then(|| late().or_else(no_place)).flatten())
}

/// It ends again and again: more time would not mend it.
pub(super) fn loops(step: &Step<'_>, new: &Placement) -> bool {
    step.report(new).is_some_and(|report| {
        let exit = report.last_exit.as_ref().map(|exit| &exit.how);
        let loops = |reason: &Reason| reason.code == backoff::CRASH_LOOP;
        report.reason.as_ref().is_some_and(loops)
            && !matches!(exit, Some(ExitHow::NotStarted { .. }))
    })
}

/// One that could not be started may be its node's fault, and is tried elsewhere first. It is the release's where nothing of it is ready and two nodes
/// could not, or there is no second one.
fn not_started<'s>(
    step: &'s Step<'_>,
    memory: &Memory,
    to: ReleaseNumber,
) -> Option<&'s Placement> {
    let mut new = step.running().filter(|new| new.release == to);
    if new.any(|new| step.is_ready(new)) {
        return None;
    }
    let failing = || unready(step, to).filter(|new| copies::cannot_start(step, new));
    let tried: BTreeSet<&NodeName> = failing()
        .map(|new| &new.node)
        .chain(memory.avoided.keys())
        .collect();
    let candidates = step.cluster.candidates(&step.spec(to).labels).take(2);
    failing()
        .next()
        .filter(|_| tried.len() > 1 || candidates.count() < 2)
}

fn unready<'s>(step: &'s Step<'_>, to: ReleaseNumber) -> impl Iterator<Item = &'s Placement> {
    step.running()
        .filter(move |new| new.release == to && !step.is_ready(new) && !step.is_held(new))
}

fn why_bad(step: &Step<'_>, rollout: &Rollout, fault: Fault<'_>) -> Reason {
    let within = step.spec(rollout.to).rollout.ready_within;
    let what = match fault {
        Fault::Loops(new) => format!("{} on node {} ends again and again", new.instance, new.node),
        Fault::NotStarted(new) => {
            format!("{} could not be started on node {}", new.instance, new.node)
        }
        Fault::Late(new) => format!(
            "{} on node {} was not ready within {within}",
            new.instance, new.node
        ),
        Fault::NoPlace => {
            let pending = step.view.group.pending.first();
            pending.map_or_else(String::new, |pending| {
                format!(
                    "{} had no place for {within}: {}",
                    pending.instance, pending.reason
                )
            })
        }
    };
    let detail = fault
        .copy()
        .map_or_else(Vec::new, |new| last_words(step, new));
    let then = match rollout.from {
        Some(from) => format!("release {from} goes on serving"),
        None => "no release was good before it, so it is tried on".to_owned(),
    };
    let ended = detail
        .first()
        .map_or_else(String::new, |line| format!(" ({line})"));
    let message = format!(
        "release {} was judged bad: {what}{ended}; {then}",
        rollout.to
    );
    Reason::new("not-ready", message).with_detail(detail)
}

/// What the instance last said of itself: its last exit, and why it is as it is.
fn last_words(step: &Step<'_>, placement: &Placement) -> Vec<String> {
    debug_assert_eq!(placement.wanted, Wanted::Run);
    let Some(report) = step.report(placement) else {
        return Vec::new();
    };
    let exit = report
        .last_exit
        .as_ref()
        .map(|exit| format!("last exit: {}", backoff::ended(&exit.how)));
    let now = report.reason.as_ref().map(|reason| reason.message.clone());
    now.into_iter()
        .chain(exit)
        .chain(
            report
                .reason
                .iter()
                .flat_map(|reason| reason.detail.clone()),
        )
        .collect()
}
