//! The store's records, typed, in memory: what every decision and every answer is made from.
//!
//! A mirror: filled by one list, kept by one watch. Nobody writes to it but [`World::apply`].

use std::collections::BTreeMap;
use std::ops::Deref;

use boundary::token;
use model::boundary::KeyFingerprint;
use model::compute::{PlacementGroup, Release, Scale, Service};
use model::control::{NodeRecord, Rollout};
use model::ids::{NodeName, ProjectName, ReleaseNumber, ResourceId, ResourceName};
use model::traffic::Route;
use store::{Event, Record, Revision};

use crate::records::{
    self, Current, DeployRecord, ForgetRecord, IdempotencyRecord, Key, LeaderRecord, NameRecord,
    RemovedRecord, SecretRecord, ServiceRecord, UidRecord, Unreadable,
};

/// A record's value, and the revision that changed it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    pub value: T,
    pub modified: Revision,
}

impl<T> Deref for Stored<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// All that is stored about one service.
#[derive(Debug, Default, Clone)]
pub struct Entry {
    pub record: Option<Stored<ServiceRecord>>,
    pub releases: BTreeMap<ReleaseNumber, Stored<Release>>,
    pub scale: Option<Stored<Scale>>,
    pub rollout: Option<Stored<Rollout>>,
    pub placements: Option<Stored<PlacementGroup>>,
    pub uid: Option<u32>,
    pub forget: Option<Stored<ForgetRecord>>,
}

impl Entry {
    /// The record of a service that is declared and not on its way out.
    pub fn live(&self) -> Option<&Stored<ServiceRecord>> {
        self.record
            .as_ref()
            .filter(|record| record.removing.is_none())
    }

    /// How many copies should run.
    pub fn wanted(&self) -> u32 {
        let Some(record) = self.live().filter(|record| !record.spec.is_external()) else {
            return 0;
        };
        self.copies_of(&record.spec)
    }

    /// How many copies run where it is declared as `spec`: what somebody asked for comes before what it says itself.
    pub fn copies_of(&self, spec: &Service) -> u32 {
        let scale = self.scale.as_ref();
        scale.map_or(spec.replicas, |scale| scale.replicas)
    }

    /// The oldest release whose instances need no restart to run `release`.
    pub fn oldest_same(&self, release: ReleaseNumber) -> ReleaseNumber {
        let known = self.releases.get(&release);
        known
            .and_then(|known| known.same_as)
            .unwrap_or_else(|| match self.current() {
                Some(current) if current.number == release => current.same_since,
                _ => release,
            })
    }

    /// The number under which an instance of `release` counts: that of the newest release that it needs no restart to be.
    pub fn counts_as(&self, release: ReleaseNumber) -> ReleaseNumber {
        let oldest = self.oldest_same(release);
        let mut newest_first = self.releases.keys().rev();
        let newest = newest_first.find(|number| self.oldest_same(**number) == oldest);
        let counts = newest.copied().unwrap_or(release).max(release);
        self.current()
            .map_or(counts, |current| current.counts_as(counts))
    }

    fn current(&self) -> Option<&Current> {
        self.record.as_ref()?.current.as_ref()
    }

    /// The service is gone, or on its way, and its data is kept for one of its name.
    pub fn keeps_data(&self) -> bool {
        let removing = self.record.as_ref().map(|record| &record.removing);
        let goes = match removing {
            None => true,
            Some(None) => false,
            Some(Some(removing)) => !removing.delete_data,
        };
        let group = self.placements.as_ref();
        goes && group.is_some_and(|group| !group.nodes_with_data().is_empty())
    }

    pub fn group(&self) -> PlacementGroup {
        self.placements
            .as_ref()
            .map(|group| group.value.clone())
            .unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.record.is_none()
            && self.releases.is_empty()
            && self.scale.is_none()
            && self.rollout.is_none()
            && self.placements.is_none()
            && self.uid.is_none()
            && self.forget.is_none()
    }
}

#[derive(Default)]
pub struct World {
    /// All changes up to here are in it.
    pub revision: Revision,
    /// The newest change that is in it: later ones up to `revision` were of what is no part of it.
    pub changed: Revision,
    pub leader: Option<Stored<LeaderRecord>>,
    pub services: BTreeMap<ResourceId, Entry>,
    pub routes: BTreeMap<(ProjectName, String), Stored<Route>>,
    pub secrets: BTreeMap<ResourceId, Stored<SecretRecord>>,
    /// Of databases: no resource of a user.
    pub engine_secrets: BTreeMap<ResourceId, Stored<SecretRecord>>,
    pub names: BTreeMap<ResourceId, Stored<NameRecord>>,
    pub nodes: BTreeMap<NodeName, Stored<NodeRecord>>,
    /// Nodes that were, by the key that is refused.
    pub removed: BTreeMap<KeyFingerprint, Stored<RemovedRecord>>,
    pub tokens: BTreeMap<token::Hash, Stored<token::Record>>,
    pub deploys: BTreeMap<ProjectName, Stored<DeployRecord>>,
    pub uids: BTreeMap<u32, Stored<UidRecord>>,
    pub idempotency: BTreeMap<String, Stored<IdempotencyRecord>>,
}

impl World {
    /// The world of a whole list.
    pub fn load(records: &[Record], revision: Revision) -> Result<Self, Unreadable> {
        let mut world = Self::default();
        for record in records {
            world.put(record)?;
        }
        world.revision = revision;
        world.changed = revision;
        Ok(world)
    }

    /// Takes one transaction's changes in. What can't be read leaves what was known, and is answered.
    pub fn apply(&mut self, change: &store::Change) -> Vec<Unreadable> {
        let mut unreadable = Vec::new();
        for event in &change.events {
            match event {
                Event::Put(record) => unreadable.extend(self.put(record).err()),
                Event::Deleted { key, .. } => self.delete(key),
            }
        }
        self.revision = change.revision;
        self.changed = change.revision;
        unreadable
    }

    /// Takes note of a change of what is no part of it.
    pub fn pass(&mut self, revision: Revision) {
        self.revision = revision;
    }

    fn put(&mut self, record: &Record) -> Result<(), Unreadable> {
        // Keys of a later version are none of ours.
        let Ok(key) = record.key.parse::<Key>() else {
            return Ok(());
        };
        match key {
            Key::Leader => self.leader = Some(read(record)?),
            Key::Authority => {}
            Key::Service(id) => self.entry(id).record = Some(read(record)?),
            Key::Route(project, place) => {
                self.routes.insert((project, place), read(record)?);
            }
            Key::Secret(id) => {
                self.secrets.insert(id, read(record)?);
            }
            Key::EngineSecret(id) => {
                self.engine_secrets.insert(id, read(record)?);
            }
            Key::Name(id) => {
                self.names.insert(id, read(record)?);
            }
            Key::Release(id, number) => {
                let release = read(record)?;
                self.entry(id).releases.insert(number, release);
            }
            Key::Scale(id) => self.entry(id).scale = Some(read(record)?),
            Key::Rollout(id) => self.entry(id).rollout = Some(read(record)?),
            Key::Placement(id) => self.entry(id).placements = Some(read(record)?),
            Key::Uid(number) => self.put_uid(number, read(record)?),
            Key::Deploy(project) => {
                self.deploys.insert(project, read(record)?);
            }
            Key::Forget(id) => self.entry(id).forget = Some(read(record)?),
            Key::Node(name) => {
                self.nodes.insert(name, read(record)?);
            }
            Key::Removed(key) => {
                self.removed.insert(key, read(record)?);
            }
            Key::Token(hash) => {
                self.tokens.insert(hash, read(record)?);
            }
            Key::Idempotency(key) => {
                self.idempotency.insert(key, read(record)?);
            }
        }
        Ok(())
    }

    fn put_uid(&mut self, number: u32, record: Stored<UidRecord>) {
        match record.freed_at {
            None => self.entry(record.service.clone()).uid = Some(number),
            Some(_) => self.forget_uid(&record.service, number),
        }
        self.uids.insert(number, record);
    }

    fn delete(&mut self, key: &str) {
        let Ok(key) = key.parse::<Key>() else {
            return;
        };
        match key {
            Key::Leader => self.leader = None,
            Key::Authority => {}
            Key::Service(id) => self.change(id, |entry| entry.record = None),
            Key::Route(project, place) => drop(self.routes.remove(&(project, place))),
            Key::Secret(id) => drop(self.secrets.remove(&id)),
            Key::EngineSecret(id) => drop(self.engine_secrets.remove(&id)),
            Key::Name(id) => drop(self.names.remove(&id)),
            Key::Release(id, number) => {
                self.change(id, |entry| drop(entry.releases.remove(&number)))
            }
            Key::Scale(id) => self.change(id, |entry| entry.scale = None),
            Key::Rollout(id) => self.change(id, |entry| entry.rollout = None),
            Key::Placement(id) => self.change(id, |entry| entry.placements = None),
            Key::Uid(number) => {
                if let Some(record) = self.uids.remove(&number) {
                    self.forget_uid(&record.value.service, number);
                }
            }
            Key::Deploy(project) => drop(self.deploys.remove(&project)),
            Key::Forget(id) => self.change(id, |entry| entry.forget = None),
            Key::Node(name) => drop(self.nodes.remove(&name)),
            Key::Removed(key) => drop(self.removed.remove(&key)),
            Key::Token(hash) => drop(self.tokens.remove(&hash)),
            Key::Idempotency(key) => drop(self.idempotency.remove(&key)),
        }
    }

    fn forget_uid(&mut self, service: &ResourceId, number: u32) {
        self.change(service.clone(), |entry| {
            entry.uid = entry.uid.filter(|uid| *uid != number);
        });
    }

    fn entry(&mut self, id: ResourceId) -> &mut Entry {
        self.services.entry(id).or_default()
    }

    fn change(&mut self, id: ResourceId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.services.get_mut(&id) {
            change(entry);
            if entry.is_empty() {
                self.services.remove(&id);
            }
        }
    }

    /// The services of a project that are declared and not on their way out.
    pub fn services_of<'a>(
        &'a self,
        project: &'a ProjectName,
    ) -> impl Iterator<Item = (&'a ResourceName, &'a Entry, &'a Stored<ServiceRecord>)> {
        self.services
            .iter()
            .filter(move |(id, _)| id.project == *project)
            .filter_map(|(id, entry)| Some((&id.name, entry, entry.live()?)))
    }

    pub fn service(&self, id: &ResourceId) -> Option<(&Entry, &Stored<ServiceRecord>)> {
        let entry = self.services.get(id)?;
        Some((entry, entry.live()?))
    }

    pub fn secrets_of<'a>(
        &'a self,
        project: &'a ProjectName,
    ) -> impl Iterator<Item = (&'a ResourceName, &'a Stored<SecretRecord>)> {
        self.secrets
            .iter()
            .filter(move |(id, _)| id.project == *project)
            .map(|(id, record)| (&id.name, record))
    }

    pub fn routes_of<'a>(
        &'a self,
        project: &'a ProjectName,
    ) -> impl Iterator<Item = (&'a String, &'a Stored<Route>)> {
        self.routes
            .iter()
            .filter(move |((of, _), _)| of == project)
            .map(|((_, place), route)| (place, route))
    }

    /// Those with anything declared.
    /// Whether there is anything of a project, if only data that was kept.
    pub fn has_project(&self, project: &ProjectName) -> bool {
        self.projects().contains(project) || self.kept_of(project).next().is_some()
    }

    /// The services of a project that are gone and whose data was kept.
    pub fn kept_of<'w>(
        &'w self,
        project: &'w ProjectName,
    ) -> impl Iterator<Item = (&'w ResourceId, &'w Entry)> {
        let all = self.services.iter();
        all.filter(move |(id, entry)| id.project == *project && entry.keeps_data())
    }

    /// Those of which data was kept of what was deleted; some more than once.
    pub fn projects_with_kept(&self) -> impl Iterator<Item = ProjectName> {
        let kept = self.services.iter().filter(|(_, entry)| entry.keeps_data());
        kept.map(|(id, _)| id.project.clone())
    }

    /// Those that something is declared in. Where there are none, those of which data was kept.
    pub fn projects(&self) -> Vec<ProjectName> {
        let services = self
            .services
            .iter()
            .filter(|(_, entry)| entry.live().is_some());
        let mut projects: Vec<_> = services.map(|(id, _)| id.project.clone()).collect();
        projects.extend(self.routes.keys().map(|(project, _)| project.clone()));
        projects.extend(self.secrets.keys().map(|id| id.project.clone()));
        if projects.is_empty() {
            projects.extend(self.projects_with_kept());
        }
        projects.sort_unstable();
        projects.dedup();
        projects
    }

    /// Whether a placement puts the service on the node. One that leaves still finishes its work. A node that was removed is told nothing,
    /// though what has a volume there still has its place.
    pub fn is_placed(&self, id: &ResourceId, node: &NodeName) -> bool {
        let group = self
            .services
            .get(id)
            .and_then(|entry| entry.placements.as_ref());
        let is_known = self.nodes.contains_key(node);
        group.filter(|_| is_known).is_some_and(|group| {
            group
                .placements
                .iter()
                .any(|placement| placement.node == *node)
        })
    }

    /// The next uid that nobody ever had, from where this cloud began; where there is none, the one that was freed longest ago, since files and
    /// processes of its service may outlive it for a while.
    pub fn free_uid(&self, taken_meanwhile: &[u32]) -> Option<u32> {
        let is_open = |uid: &u32| !taken_meanwhile.contains(uid);
        let first = self.leader.as_ref().and_then(|leader| leader.first_uid);
        let first = first.unwrap_or(*records::UIDS.start());
        let fresh = (first..=*records::UIDS.end())
            .chain(*records::UIDS.start()..first)
            .find(|uid| !self.uids.contains_key(uid) && is_open(uid));
        fresh.or_else(|| {
            let freed = self.uids.iter().filter(|(uid, _)| is_open(uid));
            let freed = freed.filter_map(|(uid, record)| Some((record.freed_at?, *uid)));
            freed.min().map(|(_, uid)| uid)
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(record: &Record) -> Result<Stored<T>, Unreadable> {
    Ok(Stored {
        value: records::decode(&record.key, &record.value)?,
        modified: record.modified,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_gives_uids_from_where_it_began() {
        let (start, end) = (*records::UIDS.start(), *records::UIDS.end());
        let mut world = World::default();
        let stored = |value| Stored {
            value,
            modified: Revision::default(),
        };
        let given = |freed_at| UidRecord {
            service: "shop/web".parse().unwrap(),
            freed_at,
        };
        world.leader = Some(Stored {
            value: LeaderRecord {
                epoch: Default::default(),
                since: jiff::Timestamp::UNIX_EPOCH,
                version: None,
                first_uid: Some(80_000),
                shares_since: None,
            },
            modified: Revision::default(),
        });
        assert_eq!(world.free_uid(&[]), Some(80_000));
        assert_eq!(world.free_uid(&[80_000, 80_001]), Some(80_002));
        world.uids.insert(80_000, stored(given(None)));
        assert_eq!(world.free_uid(&[]), Some(80_001));
        // Though lower ones were given once, as where all above were: it begins where it began.
        world.uids.insert(start, stored(given(None)));
        assert_eq!(world.free_uid(&[]), Some(80_001));
        for uid in 80_001..=end {
            world.uids.insert(uid, stored(given(None)));
        }
        assert_eq!(world.free_uid(&[]), Some(start + 1));
        for uid in start + 1..80_000 {
            world.uids.insert(uid, stored(given(None)));
        }
        assert_eq!(world.free_uid(&[]), None);
        let freed = given(Some(jiff::Timestamp::UNIX_EPOCH));
        world.uids.insert(90_000, stored(freed));
        assert_eq!(world.free_uid(&[]), Some(90_000));
        assert_eq!(world.free_uid(&[90_000]), None);
    }
}
