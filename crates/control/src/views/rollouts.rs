//! How far a rollout is, and what it waits for: told from what is seen now, beside the reason that was stored when it began.

use std::collections::BTreeSet;

use api::wire::InstanceView;
use model::compute::{InstanceState, Purpose, Wanted};
use model::control::{Rollout, RolloutPhase};
use model::ids::{NodeName, ReleaseNumber};
use plan::Now;
use plan::service::Sight;

use crate::state::Shared;
use crate::views::alike;
use crate::world::Entry;

/// Lines that are told of one rollout.
const LINES_MOST: usize = 20;

/// The rollout of `entry` with counts, and what it waits for as its detail. `instances`: at least those of its service.
pub fn with_progress(
    shared: &Shared,
    entry: &Entry,
    mut rollout: Rollout,
    instances: &[&InstanceView],
    now: Now,
) -> Rollout {
    if !matches!(rollout.phase, RolloutPhase::Rolling | RolloutPhase::Paused) {
        return rollout;
    }
    let seen = Seen {
        shared,
        entry,
        instances,
        to: rollout.to,
        now,
    };
    let waits = seen.waits(&rollout);
    rollout.reason.message = format!("{}: {}", rollout.reason.message, seen.counts());
    if let Some(first) = waits.first() {
        rollout.reason.message += &format!("; it waits for {first}");
    }
    rollout.reason.detail = waits.into_iter().take(LINES_MOST).collect();
    rollout
}

struct Seen<'a> {
    shared: &'a Shared,
    entry: &'a Entry,
    instances: &'a [&'a InstanceView],
    to: ReleaseNumber,
    now: Now,
}

impl Seen<'_> {
    fn copies(&self) -> impl Iterator<Item = &InstanceView> {
        let all = self.instances.iter().copied();
        all.filter(|view| view.purpose == Purpose::Serve)
    }

    fn is_new(&self, view: &InstanceView) -> bool {
        view.version == self.to
    }

    /// `1 of 3 new copies ready, 2 old ones run`.
    fn counts(&self) -> String {
        let ready = self
            .copies()
            .filter(|view| self.is_new(view) && is_ready(view));
        let old = self
            .copies()
            .filter(|view| !self.is_new(view) && view.node.is_some());
        let old = match old.count() {
            0 => "no old one is left".to_owned(),
            1 => "1 old one is there".to_owned(),
            many => format!("{many} old ones are there"),
        };
        let (ready, wanted) = (ready.count(), self.entry.wanted());
        let noun = if wanted == 1 { "copy" } else { "copies" };
        format!("{ready} of {wanted} new {noun} ready, {old}")
    }

    /// What holds it up, what can be done something about first.
    fn waits(&self, rollout: &Rollout) -> Vec<String> {
        let mut waits = Vec::new();
        if rollout.phase == RolloutPhase::Paused {
            waits.push("somebody to let it go on, since it is paused".to_owned());
        }
        if let Some(brake) = self.shared.nodes.brake() {
            waits.push(format!("the brake: {}", brake.reason));
        }
        waits.extend(self.silent_nodes());
        waits.extend(self.unready());
        waits.extend(self.leaving());
        let all_ready = self.copies().filter(|view| self.is_new(view)).all(is_ready);
        if waits.is_empty() && all_ready {
            waits.push("a new copy to stay ready for a while (`rollout.ready_for`)".to_owned());
        }
        waits
    }

    /// What is ready there is not known, so that nothing is taken away.
    fn silent_nodes(&self) -> Vec<String> {
        let nodes: BTreeSet<&NodeName> = self
            .copies()
            .filter_map(|view| view.node.as_ref())
            .collect();
        let silent = nodes
            .into_iter()
            .filter(|node| self.shared.nodes.sight(node, self.now) == Sight::Silent);
        silent
            .map(|node| format!("node {node}, which is not heard at the moment"))
            .collect()
    }

    /// New copies without a place or not ready, and what runs before them; those with one reason as one.
    fn unready(&self) -> Vec<String> {
        let unready = self.instances.iter().copied().filter(|view| {
            let counts = self.is_new(view) || view.purpose == Purpose::BeforeDeploy;
            let held = view.state == InstanceState::Pending && view.reason.is_some();
            (counts || held) && !is_ready(view)
        });
        let told = alike(unready, |view| {
            let reason = view.reason.as_ref();
            (
                view.node.is_some(),
                reason.map(|reason| (&reason.code, &reason.message)),
            )
        });
        let told = told.into_iter().map(|(view, others)| {
            let place = view
                .node
                .as_ref()
                .map_or_else(String::new, |node| format!(" on node {node}"));
            let others = match others {
                0 => String::new(),
                1 => " and 1 more".to_owned(),
                many => format!(" and {many} more"),
            };
            let why = view
                .reason
                .as_ref()
                .map_or_else(|| "not ready yet".to_owned(), ToString::to_string);
            format!("{}{place}{others}: {why}", view.name)
        });
        told.collect()
    }

    fn leaving(&self) -> Option<String> {
        let placements = self.entry.placements.iter();
        let leaving = placements
            .flat_map(|group| &group.placements)
            .filter(|placed| placed.wanted == Wanted::Leave && placed.purpose == Purpose::Serve);
        match leaving.count() {
            0 => None,
            1 => Some("1 copy that is told to leave, to end".to_owned()),
            many => Some(format!("{many} copies that are told to leave, to end")),
        }
    }
}

fn is_ready(view: &InstanceView) -> bool {
    view.ready || view.state == InstanceState::Finished
}
