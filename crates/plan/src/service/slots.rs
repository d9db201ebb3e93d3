//! Copies with volumes: numbered slots, each with a home, each held by at most one instance at a time.

use model::compute::{Pending, Placement, Purpose};
use model::control::{Reason, Rollout, RolloutPhase};
use model::ids::{InstanceName, NodeName, ReleaseNumber};

use super::placing::Wish;
use super::{Memory, Step, copies, judge, prepare};
use crate::Instant;
use crate::place;

pub(super) fn act(
    step: &mut Step<'_>,
    rollout: &Rollout,
    active: ReleaseNumber,
    memory: &mut Memory,
) -> Option<Instant> {
    hold_lost(step);
    memory.avoided.retain(|_, until| *until > step.now.instant);
    fill(step, active, memory);
    let mut wake = None;
    if step.is_settled() {
        leave_unwanted(step);
        wake = move_not_ready(step, active, memory);
        if rollout.phase != RolloutPhase::Paused && !holds(step, rollout) {
            roll(step, rollout, active);
        }
    }
    wake
}

/// A copy that can't start, or ends again and again, where its volumes have no home yet is tried on another node, at growing intervals. Where there
/// is none it is left to try on. Answers when the next one may be moved.
fn move_not_ready(
    step: &mut Step<'_>,
    active: ReleaseNumber,
    memory: &mut Memory,
) -> Option<Instant> {
    let fails = |step: &Step<'_>, copy: &Placement| {
        let homeless = copy
            .slot
            .is_some_and(|slot| !step.group.homes.contains_key(&slot));
        let fails = copies::cannot_start(step, copy) || judge::loops(step, copy);
        copy.release == active && homeless && !step.is_ready(copy) && fails
    };
    let failing = step.running().find(|copy| fails(step, copy)).cloned()?;
    if memory.next_move > step.now.instant {
        return Some(memory.next_move);
    }
    let mut avoid: Vec<NodeName> = memory.avoided.keys().cloned().collect();
    avoid.push(failing.node.clone());
    let wish = Wish {
        release: active,
        slot: failing.slot,
        purpose: Purpose::Serve,
        ceiling: step.ceiling(),
        avoid: &avoid,
        instead_of: None,
    };
    if step.find(&wish, &failing.instance).is_some() {
        copies::avoid(memory, &failing.node, step.now.instant);
        let message = format!(
            "node {} could not run it, and it never was ready: another is tried; what it wrote there is kept",
            failing.node
        );
        step.leave(&failing.instance, Reason::new("not-started", message));
    }
    None
}

/// While a release is prepared nothing moves; where that failed, what is not of the release that serves goes.
fn holds(step: &Step<'_>, rollout: &Rollout) -> bool {
    rollout.phase == RolloutPhase::Rolling && prepare::is_due(step, rollout)
}

/// What a running copy is to a rollout.
enum Copy {
    /// As it should be.
    New,
    /// Not ready, or not for long enough.
    NewUnready,
    OldReady(InstanceName),
    /// Of another release and not ready: taking it down costs nothing.
    OldUnready(InstanceName),
    /// Its node is lost.
    Held,
}

/// An instance whose volume is on a lost node keeps its place and is listed as pending: it resumes when the node does.
fn hold_lost(step: &mut Step<'_>) {
    let held: Vec<_> = step
        .running()
        .filter(|placement| step.is_held(placement))
        .cloned()
        .collect();
    for placement in held {
        let known = step
            .group
            .pending
            .iter()
            .find(|pending| pending.instance == placement.instance);
        let since = known.map_or(step.now.at, |pending| pending.since);
        step.pending.push(Pending {
            reason: step.cluster.without_home(&placement.node),
            instance: placement.instance,
            release: placement.release,
            slot: placement.slot,
            since,
        });
    }
}

/// Fills the empty slots, as far as copies without a slot (from a release without volumes) leave room.
fn fill(step: &mut Step<'_>, active: ReleaseNumber, memory: &Memory) {
    let avoid: Vec<NodeName> = memory.avoided.keys().cloned().collect();
    let without_slot = step
        .copies()
        .filter(|placement| placement.slot.is_none())
        .count();
    let wanted = step.view.replicas as usize;
    let mut room = wanted
        .saturating_sub(without_slot)
        .saturating_sub(step.copies().count() - without_slot);
    for slot in 0..step.view.replicas {
        if occupant(step, slot).is_some() || room == 0 {
            continue;
        }
        room -= 1;
        let wish = Wish {
            release: active,
            slot: Some(slot),
            purpose: Purpose::Serve,
            ceiling: step.ceiling(),
            avoid: &avoid,
            instead_of: None,
        };
        step.place(&wish);
    }
}

fn occupant<'s>(step: &'s Step<'_>, slot: u32) -> Option<&'s Placement> {
    step.group
        .placements
        .iter()
        .find(|placement| placement.slot == Some(slot))
}

/// Slots beyond the wanted number. Their volumes stay where they are.
fn leave_unwanted(step: &mut Step<'_>) {
    let is_unwanted = |placement: &&Placement| {
        placement
            .slot
            .is_some_and(|slot| slot >= step.view.replicas)
    };
    let unwanted: Vec<_> = step
        .running()
        .filter(is_unwanted)
        .map(|placement| placement.instance.clone())
        .collect();
    for instance in unwanted {
        let wanted = super::wanted(step.view.replicas as usize);
        let message = format!("{wanted}; its volumes are kept");
        step.leave(&instance, Reason::new("scaled-down", message));
    }
}

/// Takes down old copies: as many as may be unavailable, those that are not ready first. Each is replaced once it is gone.
fn roll(step: &mut Step<'_>, rollout: &Rollout, active: ReleaseNumber) {
    let copies: Vec<Copy> = step
        .running()
        .map(|placement| look(step, active, placement))
        .collect();
    let count = |of: fn(&Copy) -> bool| copies.iter().filter(|copy| of(copy)).count();
    let held = count(|copy| matches!(copy, Copy::Held));
    let there = count(|copy| matches!(copy, Copy::New | Copy::OldReady(_) | Copy::OldUnready(_)));
    // Missing because of what we do: gone, leaving, or new and not yet ready.
    let missing = (step.view.replicas as usize).saturating_sub(held + there);
    let mut may_go =
        (step.spec(active).rollout.unavailable.max(1) as usize).saturating_sub(missing);
    let reason = match rollout.phase {
        RolloutPhase::Failed => Reason::new(
            "rollout-failed",
            format!("release {} was judged bad", rollout.to),
        ),
        _ => Reason::new(
            "replaced",
            format!("release {active} takes its place and its volumes"),
        ),
    };
    let unready = copies.iter().filter_map(|copy| match copy {
        Copy::OldUnready(instance) => Some(instance),
        _ => None,
    });
    let ready = copies.iter().rev().filter_map(|copy| match copy {
        Copy::OldReady(instance) => Some(instance),
        _ => None,
    });
    let has_unready = count(|copy| matches!(copy, Copy::OldUnready(_))) > 0;
    for instance in unready.chain(ready.filter(|_| !has_unready)) {
        if may_go == 0 {
            return;
        }
        if !has_room_in_place(step, active, instance) {
            continue;
        }
        step.leave(instance, reason.clone());
        may_go -= 1;
    }
}

/// What its home could not run in its place is pending, and the old copy goes on.
fn has_room_in_place(step: &mut Step<'_>, active: ReleaseNumber, instance: &InstanceName) -> bool {
    let Some(old) = step.running().find(|old| old.instance == *instance) else {
        return true;
    };
    let (slot, release) = (old.slot, old.release);
    let home = slot.and_then(|slot| step.group.homes.get(&slot));
    let size = |release| place::size_of(step.spec(release));
    let refusal = home
        .and_then(|home| place::refusal_in_place(step.cluster, home, size(active), size(release)));
    let Some(reason) = refusal else {
        return true;
    };
    let (instance, since) = step.name(slot);
    step.pending.push(Pending {
        instance,
        release: active,
        slot,
        reason,
        since,
    });
    false
}

fn look(step: &Step<'_>, active: ReleaseNumber, placement: &Placement) -> Copy {
    let instance = || placement.instance.clone();
    match placement.release == active {
        _ if step.is_held(placement) => Copy::Held,
        true if step.counts(placement) => Copy::New,
        true => Copy::NewUnready,
        false if step.is_ready(placement) => Copy::OldReady(instance()),
        false => Copy::OldUnready(instance()),
    }
}
