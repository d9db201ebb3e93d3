//! A service of an apply: created, changed, kept.

use std::collections::BTreeSet;

use api::problem::Problem;
use api::wire::{Action, Kind};
use boundary::authorize::Change as Admitted;
use model::compute::{Release, ReleaseOrigin, Service};
use model::control::{Rollout, RolloutPhase};
use model::ids::{ReleaseNumber, ResourceId, ResourceName};
use model::state::Engine;

use super::{Author, Planner, change, open_zones, secrets};
use crate::changes::{self, Running};
use crate::draft::Draft;
use crate::records::{Current, Key, NameRecord, SecretRecord, ServiceRecord, UidRecord, encode};
use crate::world::{Entry, Stored, World};

impl Planner<'_> {
    pub(super) fn service(&mut self, name: &ResourceName, spec: &Service) -> Result<(), Problem> {
        let id = self.id(name);
        self.admit_service(&id, spec)?;
        let empty = Entry::default();
        let entry = self.world.services.get(&id).unwrap_or(&empty);
        self.request
            .if_match
            .check(format!("service {id}"), entry.live())?;
        match entry.live() {
            None => self.create(&id, entry, spec),
            Some(record) if record.spec == *spec => {
                self.keep(&id, entry, record);
                Ok(())
            }
            Some(record) => self.alter(&id, entry, record, spec),
        }
    }

    fn admit_service(&self, id: &ResourceId, spec: &Service) -> Result<(), Problem> {
        let world = self.world;
        let project = self.request.project;
        let resources = world.services_of(project).count()
            + world.secrets_of(project).count()
            + world.routes_of(project).count();
        self.admit(&Admitted::Resource {
            project: project.clone(),
            resources: resources + usize::from(world.service(id).is_none()),
            spec_length: encode(spec).len(),
        })?;
        let others = world
            .services_of(project)
            .filter(|(name, ..)| **name != id.name);
        let in_project: u64 = others.map(|(_, entry, _)| u64::from(entry.wanted())).sum();
        self.admit(&Admitted::Replicas {
            service: id.clone(),
            replicas: u64::from(spec.replicas),
            in_project: in_project + u64::from(spec.replicas),
        })
    }

    fn create(&mut self, id: &ResourceId, entry: &Entry, spec: &Service) -> Result<(), Problem> {
        self.check_forgotten(id, entry)?;
        let mut draft = Draft::new();
        claim_name(self.world, id, NameRecord::Service, &mut draft)?;
        let current = (!spec.is_external()).then(|| Current {
            number: next_release(entry),
            same_since: next_release(entry),
            rolled_back_to: None,
        });
        self.give_secret(id, spec, &mut draft)?;
        if let Some(current) = &current {
            self.give_uid(id, entry, &mut draft)?;
            let mut release = release(
                id,
                current.number,
                spec,
                self.request.author,
                ReleaseOrigin::Apply,
                Vec::new(),
            );
            release.message.clone_from(&self.request.apply.message);
            draft.put_anyway(Key::Release(id.clone(), current.number), &release);
        }
        let number = current.as_ref().map(|current| current.number);
        let record = ServiceRecord {
            spec: spec.clone(),
            current,
            removing: None,
        };
        draft.put(Key::Service(id.clone()), entry.record.as_ref(), &record);
        let zones = open_zones(self.world);
        let running = Running {
            before: 0,
            after: entry.copies_of(spec),
            zones: &zones,
        };
        let consequence = changes::consequence_of_start(spec, running);
        self.push(
            change(
                Kind::Services,
                &id.name,
                Action::Create,
                consequence,
                Vec::new(),
                number,
            ),
            draft,
        );
        Ok(())
    }

    /// Data that somebody deleted must be gone before a service of that name writes again.
    fn check_forgotten(&self, id: &ResourceId, entry: &Entry) -> Result<(), Problem> {
        let refuse = |detail: String| {
            let title = format!("the data of the former {id} is still being deleted");
            Err(Problem::conflict("still-deleting", title)
                .detail(detail)
                .remedy("repeat the command in some seconds"))
        };
        let removing = entry
            .record
            .as_ref()
            .and_then(|record| record.removing.as_ref());
        let deletes = removing.is_some_and(|removing| removing.delete_data)
            && !entry.group().homes.is_empty();
        if deletes && !self.request.dry_run {
            return refuse("its instances are still leaving".to_owned());
        }
        let standing = |name: &model::ids::NodeName| {
            let node = self.world.nodes.get(name);
            node.is_some_and(|node| node.standing == model::control::Standing::Present)
        };
        let left = entry
            .forget
            .iter()
            .flat_map(|forget| &forget.nodes)
            .find(|name| standing(name));
        match left.filter(|_| !self.request.dry_run) {
            None => Ok(()),
            Some(node) => refuse(format!("node {node} has not yet been told")),
        }
    }

    fn give_uid(
        &mut self,
        id: &ResourceId,
        entry: &Entry,
        draft: &mut Draft,
    ) -> Result<(), Problem> {
        if entry.uid.is_some() {
            return Ok(());
        }
        let uid = self.world.free_uid(&self.uids).ok_or_else(|| {
            Problem::new(422, "limit", "no uid is left for another service")
                .remedy("delete services that are no longer used")
        })?;
        self.uids.push(uid);
        draft.put::<UidRecord>(
            Key::Uid(uid),
            self.world.uids.get(&uid),
            &UidRecord {
                service: id.clone(),
                freed_at: None,
            },
        );
        Ok(())
    }

    /// A database has a secret from its first moment, and the same one for as long as there is data of it.
    fn give_secret(
        &self,
        id: &ResourceId,
        spec: &Service,
        draft: &mut Draft,
    ) -> Result<(), Problem> {
        let is_database = matches!(spec.engine(), Some(Engine::Postgres(_)));
        if !is_database || self.world.engine_secrets.contains_key(id) {
            return Ok(());
        }
        let record = secrets::of_engine(id, self.request.keyring, self.request.author)?;
        draft.put::<SecretRecord>(Key::EngineSecret(id.clone()), None, &record);
        Ok(())
    }

    fn keep(&mut self, id: &ResourceId, entry: &Entry, record: &Stored<ServiceRecord>) {
        let diff = scaled_line(entry, &record.spec);
        let mut draft = Draft::new();
        if self.request.if_match != crate::call::IfMatch::Nothing {
            draft.only_if(Key::Service(id.clone()), Some(record));
        }
        let kept = change(
            Kind::Services,
            &id.name,
            Action::Keep,
            "nothing changes",
            diff,
            None,
        );
        self.push(kept, draft);
    }

    fn alter(
        &mut self,
        id: &ResourceId,
        entry: &Entry,
        record: &Stored<ServiceRecord>,
        spec: &Service,
    ) -> Result<(), Problem> {
        check_engine_change(id, entry, &record.spec, spec)?;
        self.check_rollback(id, entry, record, spec)?;
        let left = left_data(entry, &record.spec, spec);
        self.check_left_data(id, left.as_deref())?;
        let mut draft = Draft::new();
        self.give_secret(id, spec, &mut draft)?;
        let mut diff = changes::diff(&record.spec, spec);
        let current = self.next_current(id, entry, record, spec, &diff, &mut draft)?;
        let number = current.as_ref().map(|current| current.number);
        let next = ServiceRecord {
            spec: spec.clone(),
            current,
            removing: None,
        };
        draft.put(Key::Service(id.clone()), Some(record), &next);
        let zones = open_zones(self.world);
        let running = Running {
            before: entry.wanted(),
            after: entry.copies_of(spec),
            zones: &zones,
        };
        let mut consequence = changes::consequence_of_change(&record.spec, spec, running);
        if let Some(left) = left {
            consequence = format!("{consequence}; {left}");
        }
        diff.extend(scaled_line(entry, spec));
        self.push(
            change(
                Kind::Services,
                &id.name,
                Action::Change,
                consequence,
                diff,
                number,
            ),
            draft,
        );
        Ok(())
    }

    /// The release of a changed service, drafted; `None` for what becomes external.
    fn next_current(
        &mut self,
        id: &ResourceId,
        entry: &Entry,
        record: &ServiceRecord,
        spec: &Service,
        diff: &[String],
        draft: &mut Draft,
    ) -> Result<Option<Current>, Problem> {
        if spec.is_external() {
            return Ok(None);
        }
        self.give_uid(id, entry, draft)?;
        let number = next_release(entry);
        let same = record
            .current
            .as_ref()
            .filter(|_| !changes::restarts(&record.spec, spec));
        let mut made = release(
            id,
            number,
            spec,
            self.request.author,
            ReleaseOrigin::Apply,
            diff.to_vec(),
        );
        made.same_as = same.map(|current| entry.oldest_same(current.number));
        made.message.clone_from(&self.request.apply.message);
        draft.put_anyway(Key::Release(id.clone(), number), &made);
        Ok(Some(Current {
            number,
            same_since: same.map_or(number, |current| current.same_since),
            rolled_back_to: same.and_then(|current| current.rolled_back_to),
        }))
    }

    /// A volume that has another name is another one, and empty: that is seldom what was meant.
    fn check_left_data(&self, id: &ResourceId, left: Option<&str>) -> Result<(), Problem> {
        let Some(left) = left.filter(|_| !self.request.dry_run && !self.request.apply.leave_data)
        else {
            return Ok(());
        };
        let title = format!("{}: {left}", id.name);
        Err(Problem::conflict("leaves-data", title).remedy(
            "give the volume its name again; or repeat it with -y, if that is what you want",
        ))
    }

    /// Somebody left certain releases on purpose: a file that still says what they said does not silently return to them.
    fn check_rollback(
        &mut self,
        id: &ResourceId,
        entry: &Entry,
        record: &ServiceRecord,
        spec: &Service,
    ) -> Result<(), Problem> {
        let Some((current, to)) = record
            .current
            .as_ref()
            .and_then(|current| Some((current, current.rolled_back_to?)))
        else {
            return Ok(());
        };
        let left = entry.releases.range(to.next()..current.number);
        let Some((undone, _)) = left
            .rev()
            .filter(|(number, _)| entry.counts_as(**number) != current.number)
            .find(|(_, release)| !changes::restarts(&release.spec, spec))
        else {
            return Ok(());
        };
        let message = format!(
            "{} was rolled back from release {undone} to release {to}; applying this would undo that",
            id.name
        );
        if self.request.dry_run || self.request.apply.undo_rollback {
            self.warn(message);
            return Ok(());
        }
        Err(Problem::conflict("would-undo-rollback", message).remedy(
            "change the file; or repeat it with -y (`mainland apply -y`), if that is what you want",
        ))
    }
}

/// What is in volumes that the new spec no longer names, where there are any with data.
fn left_data(entry: &Entry, old: &Service, new: &Service) -> Option<String> {
    let group = entry.group();
    let nodes: BTreeSet<&str> = group.homes.values().map(|node| node.as_str()).collect();
    let nodes: Vec<&str> = nodes.into_iter().collect();
    if nodes.is_empty() {
        return None;
    }
    changes::volumes_left(old, new, &nodes)
}

/// What is in a volume is one engine's, and of one version. A version that never ran, as where the machine hasn't got it, has made nothing.
fn check_engine_change(
    id: &ResourceId,
    entry: &Entry,
    old: &Service,
    new: &Service,
) -> Result<(), Problem> {
    let name = &id.name;
    let refuse = |title: String, remedy: String| {
        Err(Problem::new(422, "engine-change", title).remedy(remedy))
    };
    match (old.engine(), new.engine()) {
        (Some(Engine::Postgres(old)), Some(Engine::Postgres(new)))
            if old.version != new.version && has_served(entry) =>
        {
            refuse(
                format!(
                    "{name} holds data of PostgreSQL {}, which version {} can't open",
                    old.version, new.version
                ),
                format!(
                    "declare a second database with `postgres: {}`, then `mainland db dump {name}` and `mainland db load` into it",
                    new.version
                ),
            )
        }
        (Some(Engine::Postgres(_)), Some(Engine::Postgres(_)))
        | (Some(Engine::Topic(_)), Some(Engine::Topic(_))) => Ok(()),
        (None, Some(_)) | (Some(_), None) if old.is_external() || new.is_external() => Ok(()),
        (None, None) => Ok(()),
        (old, new) => {
            let noun = |engine: Option<&Engine>| engine.map_or("service", Engine::noun);
            refuse(
                format!("{name} is a {} and can't become a {}", noun(old), noun(new)),
                format!("choose another name, or delete {name} first"),
            )
        }
    }
}

fn has_served(entry: &Entry) -> bool {
    let served =
        |rollout: &Stored<Rollout>| rollout.phase == RolloutPhase::Done || rollout.from.is_some();
    entry.rollout.as_ref().is_some_and(served)
}

/// Names are unique in a project across kinds.
pub(super) fn claim_name(
    world: &World,
    id: &ResourceId,
    kind: NameRecord,
    draft: &mut Draft,
) -> Result<(), Problem> {
    match world.names.get(id) {
        None => draft.put::<NameRecord>(Key::Name(id.clone()), None, &kind),
        Some(known) if known.value == kind => {}
        Some(known) => {
            return Err(Problem::conflict(
                "name-taken",
                format!("{id} is the name of a {} already", known.value),
            )
            .detail("names are unique in a project across kinds, since `needs` refers to them")
            .remedy("choose another name, or delete the other first"));
        }
    }
    Ok(())
}

pub(super) fn next_release(entry: &Entry) -> ReleaseNumber {
    let kept = entry
        .releases
        .keys()
        .next_back()
        .copied()
        .unwrap_or_default();
    let named = entry
        .record
        .as_ref()
        .and_then(|record| record.current.as_ref())
        .map_or(kept, |current| current.number);
    let rolled = entry.rollout.as_ref().map_or(kept, |rollout| rollout.to);
    kept.max(named).max(rolled).next()
}

pub(super) fn release(
    id: &ResourceId,
    number: ReleaseNumber,
    spec: &Service,
    author: &Author,
    origin: ReleaseOrigin,
    diff: Vec<String>,
) -> Release {
    Release {
        service: id.name.clone(),
        number,
        spec: spec.clone(),
        author: author.name.clone(),
        at: author.at,
        origin,
        diff,
        message: None,
        failed: false,
        same_as: None,
    }
}

/// `apply` does not undo what `scale` set; it is shown.
fn scaled_line(entry: &Entry, spec: &Service) -> Vec<String> {
    let scale = entry
        .scale
        .as_ref()
        .filter(|scale| scale.replicas != spec.replicas);
    scale
        .map(|scale| {
            format!(
                "replicas: {} here, {} by scale of {}",
                spec.replicas, scale.replicas, scale.owner
            )
        })
        .into_iter()
        .collect()
}
