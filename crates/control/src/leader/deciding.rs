//! What the services should be: each is stepped, checked, and written.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{InstanceReport, PlacementGroup, Release, ReleaseOrigin};
use model::control::{NodeRecord, Reason, Rollout, RolloutPhase};
use model::ids::{InstanceId, InstanceName, NodeName, ReleaseNumber, ResourceId};
use model::signals::Level;
use plan::check::{self, Plan};
use plan::place;
use plan::service::{self, ServiceDecision, ServiceView};
use plan::{Instant, Now};

use super::{Basis, LOOK_AT_ALL_EVERY, Leader, report};
use crate::desired::Seen;
use crate::draft::Draft;
use crate::events::About;
use crate::records::{ForgetRecord, Key};
use crate::state::Shared;
use crate::world::Entry;

/// What became of a look at one service.
struct Decided {
    id: ResourceId,
    draft: Draft,
    events: Vec<(Level, String, Reason)>,
}

impl Leader {
    /// Steps every service if anything that decisions rest on is different, or it is time.
    pub(super) async fn services(&mut self, now: Now) -> bool {
        let server = self.server.clone();
        let decided = server.with(|shared| {
            let basis = self.basis(shared, now);
            let due = self.wake.is_some_and(|wake| wake <= now.instant)
                || now.instant.since(self.looked_at) >= LOOK_AT_ALL_EVERY;
            if self.basis.as_ref() == Some(&basis) && !due {
                return Vec::new();
            }
            self.basis = Some(basis);
            self.looked_at = now.instant;
            self.look_at_all(shared, now)
        });
        self.store(decided).await
    }

    fn basis(&self, shared: &Shared, now: Now) -> Basis {
        Basis {
            world: shared.world.changed,
            observed: shared.observed.version,
            sights: shared
                .world
                .nodes
                .keys()
                .map(|name| shared.nodes.sight(name, now))
                .collect(),
            braked: shared.nodes.brake().is_some(),
        }
    }

    fn look_at_all(&mut self, shared: &Shared, now: Now) -> Vec<Decided> {
        let nodes: BTreeMap<NodeName, NodeRecord> = shared
            .world
            .nodes
            .iter()
            .map(|(name, node)| (name.clone(), node.value.clone()))
            .collect();
        let reports = crate::desired::reports(&shared.world, &shared.observed);
        self.wake = None;
        let known = |id: &ResourceId| shared.world.services.contains_key(id);
        self.memories.retain(|id, _| known(id));
        self.counted.retain(|id, _| known(id));
        let mut decided = Vec::new();
        for (id, entry) in &shared.world.services {
            if !is_placed_kind(entry) && has_no_placements(entry) {
                continue;
            }
            decided.extend(self.look_at(shared, &nodes, &reports, id, entry, now));
        }
        decided
    }

    fn look_at(
        &mut self,
        shared: &Shared,
        nodes: &BTreeMap<NodeName, NodeRecord>,
        reports: &BTreeMap<InstanceId, &InstanceReport>,
        id: &ResourceId,
        entry: &Entry,
        now: Now,
    ) -> Option<Decided> {
        let seen = Seen::of(entry);
        self.count(id, entry, &seen);
        let own = own_reports(id, &seen.group, reports);
        let barred = barred(entry, nodes);
        let view = ServiceView {
            id,
            target: entry
                .live()
                .and_then(|record| record.current.as_ref())
                .map(|current| current.number),
            applied: applied(entry),
            replicas: entry.wanted(),
            releases: &seen.releases,
            rollout: entry.rollout.as_ref().map(|rollout| &rollout.value),
            group: &seen.group,
            reports: &own,
            barred: &barred,
            sight: &|node| shared.nodes.sight(node, now),
            hold: shared.nodes.brake().map(|brake| &brake.reason),
        };
        let memory = self.memories.entry(id.clone()).or_default();
        let decision = service::step(&view, memory, &mut self.cluster, now);
        self.wake_by(decision.wake);
        if !is_new(entry, &seen.group, &decision) {
            return None;
        }
        if self.objects(nodes, id, &seen, &decision) {
            self.counted.remove(id);
            return None;
        }
        Some(draft(id, entry, &own, decision))
    }

    fn wake_by(&mut self, wake: Option<Instant>) {
        self.wake = match (self.wake, wake) {
            (Some(known), Some(wake)) => Some(known.min(wake)),
            (known, wake) => known.or(wake),
        };
    }

    /// Makes the cluster count this service's copies, where the stored group is not the one it knows.
    fn count(&mut self, id: &ResourceId, entry: &Entry, seen: &Seen<'_>) {
        let revision = entry.placements.as_ref().map(|group| group.modified);
        if self.counted.insert(id.clone(), revision) == Some(revision) {
            return;
        }
        self.cluster.set_group(id, &seen.group, |release| {
            seen.releases
                .get(&release)
                .map(|spec| place::size_of(spec))
                .unwrap_or_default()
        });
    }

    /// Whether the checker finds something wrong with a decision that was not wrong before. Then it is not written, and said.
    fn objects(
        &mut self,
        nodes: &BTreeMap<NodeName, NodeRecord>,
        id: &ResourceId,
        seen: &Seen<'_>,
        decision: &ServiceDecision,
    ) -> bool {
        let plan = |group| Plan {
            id,
            group,
            releases: &seen.releases,
        };
        let before: BTreeSet<String> = check::check(nodes, &[plan(&seen.group)])
            .iter()
            .map(ToString::to_string)
            .collect();
        let after = check::check(nodes, &[plan(&decision.group)]);
        let step = check::check_step(nodes, &seen.group, &plan(&decision.group));
        let violations: Vec<String> = after
            .iter()
            .chain(&step)
            .map(ToString::to_string)
            .filter(|violation| !before.contains(violation))
            .collect();
        if violations.is_empty() {
            if self.objections.remove(id).is_some() {
                self.attend(id);
            }
            return false;
        }
        let said = violations.join("; ");
        if self.objections.insert(id.clone(), said.clone()).as_deref() != Some(&*said) {
            tracing::error!(service = %id, %said, "the checker objects to a plan; it is not carried out");
            let reason = Reason::new(
                "plan-refused",
                "a plan was not carried out: the checker objects",
            )
            .with_detail(violations);
            self.server.events.say(
                self.server.now(),
                Level::Error,
                About::resource(&id.project, &id.name),
                reason,
            );
        }
        true
    }

    /// The checker has no more objection: said once.
    fn attend(&self, id: &ResourceId) {
        let reason = Reason::new("plan-accepted", "the checker has no more objection");
        self.server.events.say(
            self.server.now(),
            Level::Info,
            About::resource(&id.project, &id.name),
            reason,
        );
    }

    /// Writes decisions, as many together as fit.
    async fn store(&mut self, decided: Vec<Decided>) -> bool {
        let mut wrote = false;
        let mut batch: Vec<Decided> = Vec::new();
        let mut joined = Draft::new();
        for decision in decided {
            if let Err(left) = joined.join(decision.draft.clone()) {
                wrote |= self
                    .store_batch(
                        std::mem::replace(&mut joined, left),
                        std::mem::take(&mut batch),
                    )
                    .await;
            }
            batch.push(decision);
        }
        if !batch.is_empty() {
            wrote |= self.store_batch(joined, batch).await;
        }
        wrote
    }

    async fn store_batch(&mut self, draft: Draft, batch: Vec<Decided>) -> bool {
        match self.server.commit(draft).await {
            Ok(_) => {
                for decided in batch {
                    let project = &decided.id.project;
                    for (level, subject, reason) in decided.events {
                        self.server
                            .say(level, About::resource(project, subject), reason);
                    }
                }
                true
            }
            Err(error) => {
                // The cluster counted on it: it is told the truth at the next look.
                for decided in &batch {
                    self.counted.remove(&decided.id);
                }
                self.basis = None;
                report(&error, "decisions could not be stored");
                matches!(error, crate::state::CommitError::Conflict(_))
            }
        }
    }
}

/// Where no copy with volumes of it may begin.
fn barred(entry: &Entry, nodes: &BTreeMap<NodeName, NodeRecord>) -> Vec<(NodeName, Reason)> {
    let forgetting = entry.forget.iter().flat_map(|forget| &forget.nodes);
    let told = forgetting.map(|node| {
        let message = "it has yet to forget deleted data of a service of that name";
        (node.clone(), Reason::new(place::FORGETTING, message))
    });
    let engine = entry.live().map(|record| &record.spec);
    let engine = engine.filter(|spec| spec.engine().is_some());
    let lacking = engine.into_iter().flat_map(|spec| {
        let lacks = |node: &NodeRecord| place::lacks(spec, node.programs.as_ref());
        nodes
            .iter()
            .filter_map(move |(name, node)| Some((name.clone(), lacks(node)?)))
    });
    told.chain(lacking).collect()
}

/// The applied release that what is to run came with. Restarts run the same once more; what was rolled back to had its turn.
fn applied(entry: &Entry) -> Option<ReleaseNumber> {
    let current = entry.live()?.current.as_ref()?;
    let newest = entry.releases.get(&current.number)?;
    if matches!(newest.origin, ReleaseOrigin::Rollback { .. }) {
        return None;
    }
    let mut number = current.same_since;
    loop {
        match entry.releases.get(&number)?.origin {
            ReleaseOrigin::Apply => return Some(number),
            ReleaseOrigin::Rollback { .. } => return None,
            ReleaseOrigin::Restart => {
                number = *entry.releases.range(..number).next_back()?.0;
            }
        }
    }
}

/// Whether instances of it are placed at all.
fn is_placed_kind(entry: &Entry) -> bool {
    entry.live().is_some_and(|record| record.current.is_some())
}

/// Nothing of it runs: it runs elsewhere, or is deleted and only its numbers are kept.
fn has_no_placements(entry: &Entry) -> bool {
    let group = entry.placements.as_ref();
    group.is_none_or(|group| group.placements.is_empty() && group.pending.is_empty())
}

fn own_reports<'a>(
    id: &ResourceId,
    group: &PlacementGroup,
    reports: &BTreeMap<InstanceId, &'a InstanceReport>,
) -> BTreeMap<InstanceName, &'a InstanceReport> {
    let placements = group.placements.iter();
    placements
        .filter_map(|placement| {
            let instance = InstanceId::new(id.project.clone(), placement.instance.clone());
            Some((placement.instance.clone(), *reports.get(&instance)?))
        })
        .collect()
}

fn is_new(entry: &Entry, before: &PlacementGroup, decision: &ServiceDecision) -> bool {
    decision.group != *before || rollout_changed(entry, decision.rollout.as_ref())
}

/// Progress alone is no decision: it is not stored.
fn rollout_changed(entry: &Entry, decided: Option<&Rollout>) -> bool {
    let key = |rollout: &Rollout| {
        (
            rollout.to,
            rollout.from,
            rollout.phase,
            rollout.reason.clone(),
            rollout.prepared,
        )
    };
    decided.is_some() && entry.rollout.as_ref().map(|rollout| key(rollout)) != decided.map(key)
}

fn draft(
    id: &ResourceId,
    entry: &Entry,
    reports: &BTreeMap<InstanceName, &InstanceReport>,
    decision: ServiceDecision,
) -> Decided {
    let mut draft = Draft::new();
    // Decided from this record: if it changes meanwhile, it is decided anew.
    draft.only_if(Key::Service(id.clone()), entry.record.as_ref());
    let mut group = Seen::to_store(entry, decision.group);
    let left = service::left_behind(&entry.group(), &group, reports);
    group.left.extend(left.written);
    let left = left.empty;
    if !left.is_empty() {
        let known = entry.forget.iter().flat_map(|forget| forget.nodes.clone());
        let nodes: BTreeSet<NodeName> = left.into_iter().chain(known).collect();
        let forget = ForgetRecord {
            nodes: nodes.into_iter().collect(),
        };
        draft.put(Key::Forget(id.clone()), entry.forget.as_ref(), &forget);
    }
    if entry
        .placements
        .as_ref()
        .is_none_or(|known| known.value != group)
    {
        draft.put(
            Key::Placement(id.clone()),
            entry.placements.as_ref(),
            &group,
        );
    }
    if let Some(rollout) = decision
        .rollout
        .filter(|rollout| rollout_changed(entry, Some(rollout)))
    {
        draft.put(Key::Rollout(id.clone()), entry.rollout.as_ref(), &rollout);
        mark(&mut draft, id, entry, &rollout);
    }
    Decided {
        id: id.clone(),
        draft,
        events: decision.events,
    }
}

/// Keeps the verdict with the release: the rollout's record is that of the newest release only.
fn mark(draft: &mut Draft, id: &ResourceId, entry: &Entry, rollout: &Rollout) {
    let failed = rollout.phase == RolloutPhase::Failed;
    let Some(known) = entry.releases.get(&rollout.to) else {
        return;
    };
    if known.failed != failed {
        let marked = Release {
            failed,
            ..known.value.clone()
        };
        draft.put(Key::Release(id.clone(), rollout.to), Some(known), &marked);
    }
}
