//! What nobody needs any more: the records of deleted services, old releases, answered keys, expired tokens, unused artifacts.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use model::compute::PlacementGroup;
use model::control::Reason;
use model::ids::{Digest, NodeName, ReleaseNumber, ResourceId};
use model::signals::Level;
use plan::{Instant, Now};

use super::{Leader, STEPS_AT_ONCE, report};
use crate::apply::delete_data;
use crate::draft::Draft;
use crate::engines;
use crate::events::About;
use crate::observed::Observed;
use crate::records::{ForgetRecord, Key, artifact_of};
use crate::state::{Server, Shared};
use crate::world::{Entry, World};

/// Releases kept of each service; those that run are kept anyway.
const RELEASES_KEPT: usize = 10;
/// Answers are remembered this long, and this many.
const ANSWERS_KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
const ANSWERS_KEPT: usize = 1_000;
const CLEAN_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Cleaning {
    /// When the slow part was done last.
    done: Option<Instant>,
}

impl Leader {
    pub(super) async fn clean(&mut self, now: Now) -> bool {
        let mut drafts = self
            .server
            .with(|shared| removals(&shared.world, &shared.observed, now.at));
        let due = self
            .cleaning
            .done
            .is_none_or(|done| now.instant.since(done) >= CLEAN_EVERY);
        if due {
            self.cleaning.done = Some(now.instant);
            drafts.extend(self.server.with(|shared| outdated(shared, now.at)));
            // It reads folders, which may take its time.
            tokio::spawn(collect_artifacts(self.server.clone()));
        }
        let mut wrote = false;
        for draft in Draft::pack(drafts) {
            match self.server.commit(draft).await {
                Ok(_) => wrote = true,
                Err(error) => report(&error, "cleaning"),
            }
        }
        wrote
    }
}

/// Services whose instances are gone, and volumes that their nodes have been told to forget.
fn removals(world: &World, observed: &Observed, now: Timestamp) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for (id, entry) in &world.services {
        drafts.extend(finished(world, id, entry, now));
        drafts.extend(forgotten(id, entry, observed));
        if drafts.len() >= STEPS_AT_ONCE {
            break;
        }
    }
    drafts
}

/// Removes the records of a deleted service once nothing of it runs. Where its numbers stood is kept, so that they only grow.
fn finished(world: &World, id: &ResourceId, entry: &Entry, now: Timestamp) -> Option<Draft> {
    let record = entry.record.as_ref()?;
    let removing = record.removing.as_ref()?;
    let group = entry.group();
    if !group.placements.is_empty() {
        return None;
    }
    let mut draft = Draft::new();
    draft.delete(Key::Service(id.clone()), record);
    draft.delete_anyway(Key::Name(id.clone()));
    if let Some(scale) = &entry.scale {
        draft.delete(Key::Scale(id.clone()), scale);
    }
    if let Some(rollout) = &entry.rollout {
        draft.delete(Key::Rollout(id.clone()), rollout);
    }
    for number in entry.releases.keys() {
        draft.delete_anyway(Key::Release(id.clone(), *number));
    }
    // Whose data stays has the same uid later, and is opened by the same secret.
    if !group.nodes_with_data().is_empty() && !removing.delete_data {
        if let Some(stored) = &entry.placements {
            let kept = PlacementGroup {
                pending: Vec::new(),
                ..group
            };
            draft.put(Key::Placement(id.clone()), Some(stored), &kept);
        }
        return Some(draft);
    }
    delete_data(&mut draft, world, id, entry, now);
    Some(draft)
}

/// A node that acknowledged what told it to forget has been told. One that was removed may come back with what it has.
fn forgotten(id: &ResourceId, entry: &Entry, observed: &Observed) -> Option<Draft> {
    let forget = entry.forget.as_ref()?;
    let told = |name: &NodeName| {
        let node = observed.nodes.get(name);
        node.is_some_and(|node| node.forgot.contains(id))
    };
    let left: Vec<NodeName> = forget
        .nodes
        .iter()
        .filter(|name| !told(name))
        .cloned()
        .collect();
    if left.len() == forget.nodes.len() {
        return None;
    }
    let mut draft = Draft::new();
    match left.is_empty() {
        true => draft.delete(Key::Forget(id.clone()), forget),
        false => draft.put(
            Key::Forget(id.clone()),
            Some(forget),
            &ForgetRecord { nodes: left },
        ),
    }
    Some(draft)
}

fn outdated(shared: &Shared, now: Timestamp) -> Vec<Draft> {
    let world = &shared.world;
    let mut drafts: Vec<Draft> = Vec::new();
    let mut delete = |key: Key| {
        let mut draft = Draft::new();
        draft.delete_anyway(key);
        drafts.push(draft);
    };
    for (id, entry) in &world.services {
        let runs = shared.runs.of(id).map(|run| run.release);
        let first_needs = engines::first_needs(world, id, entry);
        for number in old_releases(entry, runs.chain(first_needs).collect()) {
            delete(Key::Release(id.clone(), number));
        }
    }
    let expired = |at: Timestamp| now.duration_since(at).unsigned_abs() > ANSWERS_KEPT_FOR;
    let mut answers: Vec<_> = world.idempotency.iter().collect();
    answers.sort_by_key(|(_, answer)| answer.at);
    let surplus = answers.len().saturating_sub(ANSWERS_KEPT);
    for (index, (key, answer)) in answers.into_iter().enumerate() {
        if index < surplus || expired(answer.at) {
            delete(Key::Idempotency(key.clone()));
        }
    }
    for (hash, token) in &world.tokens {
        if token.expires_at.is_some_and(|end| end < now) {
            delete(Key::Token(*hash));
        }
    }
    drafts
}

/// Those beyond the newest ten that nothing runs and no rollout names. `used`: by others, as by what people run beside the copies.
fn old_releases(entry: &Entry, mut used: BTreeSet<ReleaseNumber>) -> Vec<ReleaseNumber> {
    if let Some(group) = &entry.placements {
        used.extend(group.placements.iter().map(|placement| placement.release));
    }
    if let Some(rollout) = &entry.rollout {
        used.insert(rollout.to);
        used.extend(rollout.from);
    }
    if let Some(current) = entry
        .record
        .as_ref()
        .and_then(|record| record.current.as_ref())
    {
        used.insert(current.number);
        used.extend(current.rolled_back_to);
    }
    let newest_first = entry.releases.keys().rev().skip(RELEASES_KEPT);
    newest_first
        .filter(|number| !used.contains(number))
        .copied()
        .collect()
}

async fn collect_artifacts(server: std::sync::Arc<Server>) {
    let used: BTreeSet<Digest> = server.look(|world| {
        let entries = world.services.values();
        let kept = entries.flat_map(|entry| entry.releases.values().map(|release| &release.spec));
        let current = world
            .services
            .values()
            .filter_map(|entry| entry.record.as_ref())
            .map(|record| &record.spec);
        kept.chain(current)
            .filter_map(|spec| artifact_of(&spec.work))
            .collect()
    });
    match server
        .artifacts
        .collect(used, server.clock.now().instant)
        .await
    {
        Ok(removed) => {
            for digest in removed {
                let reason = Reason::new(
                    "artifact-removed",
                    format!("artifact {digest} was removed: no kept release uses it"),
                );
                server.say(Level::Info, About::server(), reason);
            }
        }
        Err(problem) => tracing::warn!(%problem, "artifacts can't be collected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Current, ServiceRecord};
    use crate::testing::{release, service, stored};

    #[test]
    fn the_newest_ten_releases_are_kept_and_those_that_run() {
        let mut entry = Entry::default();
        for number in 1..=15 {
            let number = ReleaseNumber(number);
            entry.releases.insert(number, stored(release(number)));
        }
        let current = Current {
            number: ReleaseNumber(15),
            same_since: ReleaseNumber(15),
            rolled_back_to: Some(ReleaseNumber(2)),
        };
        let record = ServiceRecord {
            spec: service(1),
            current: Some(current),
            removing: None,
        };
        entry.record = Some(stored(record));
        for (runs, expect) in [(vec![], vec![5, 4, 3, 1]), (vec![4], vec![5, 3, 1])] {
            let used = runs.iter().copied().map(ReleaseNumber).collect();
            let old = old_releases(&entry, used);
            let numbers: Vec<_> = old.iter().map(|number| number.0).collect();
            assert_eq!(numbers, expect, "with commands of {runs:?}");
        }
    }
}
