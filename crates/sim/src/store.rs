//! The control plane's records, fenced by the leader's epoch: what is acknowledged here survives every process.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{PlacementGroup, Service};
use model::control::{NodeRecord, Rollout};
use model::ids::{Epoch, NodeName, ReleaseNumber, ResourceName};

/// One service's records.
#[derive(Debug, Clone)]
pub(crate) struct ServiceRecord {
    pub(crate) releases: BTreeMap<ReleaseNumber, Service>,
    pub(crate) target: ReleaseNumber,
    pub(crate) replicas: u32,
    pub(crate) rollout: Option<Rollout>,
    pub(crate) group: PlacementGroup,
    /// Grows with each write of `group` or `rollout`.
    pub(crate) version: u64,
    /// It was deleted, with its data or without: everything leaves.
    pub(crate) removing: Option<bool>,
    /// Nothing of it is left but numbers, and data that was kept.
    pub(crate) is_gone: bool,
    /// Nodes that have yet to forget its data.
    pub(crate) forget: BTreeSet<NodeName>,
    /// With which epoch each of its lives began: it may be made anew. No part of the system knows this.
    pub(crate) eras: Vec<Epoch>,
}

impl ServiceRecord {
    /// In which of its lives something was placed.
    pub(crate) fn era(&self, placed: Epoch) -> usize {
        self.eras.iter().filter(|began| **began <= placed).count()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.removing.is_none() && !self.is_gone
    }
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) epoch: Epoch,
    pub(crate) services: BTreeMap<ResourceName, ServiceRecord>,
    pub(crate) nodes: BTreeMap<NodeName, NodeRecord>,
    /// Nodes that were removed, and not let in again.
    pub(crate) removed: BTreeSet<NodeName>,
    fenced: bool,
}

/// The writer is not the leader any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced;

impl Store {
    pub(crate) fn new(fenced: bool) -> Self {
        Self {
            fenced,
            ..Self::default()
        }
    }

    /// A new leader: its epoch fences every earlier one.
    pub(crate) fn lead(&mut self) -> Epoch {
        self.epoch = self.epoch.next();
        self.epoch
    }

    pub(crate) fn check(&self, by: Epoch) -> Result<(), Fenced> {
        match by < self.epoch && self.fenced {
            true => Err(Fenced),
            false => Ok(()),
        }
    }

    pub(crate) fn write_node(&mut self, by: Epoch, record: NodeRecord) -> Result<(), Fenced> {
        self.check(by)?;
        self.nodes.insert(record.name.clone(), record);
        Ok(())
    }

    /// Answers the version that the record had: the writer must have known it.
    pub(crate) fn write_plan(
        &mut self,
        by: Epoch,
        service: &ResourceName,
        group: PlacementGroup,
        rollout: Option<Rollout>,
    ) -> Result<u64, Fenced> {
        self.check(by)?;
        let record = self.record(service);
        let before = record.version;
        record.group = group;
        record.rollout = rollout;
        record.version += 1;
        Ok(before)
    }

    pub(crate) fn write_intent(
        &mut self,
        by: Epoch,
        service: &ResourceName,
        replicas: u32,
        release: Option<Service>,
    ) -> Result<(), Fenced> {
        self.check(by)?;
        let record = self.record(service);
        record.replicas = replicas;
        if let Some(spec) = release {
            record.target = record.target.next();
            record.releases.insert(record.target, spec);
        }
        Ok(())
    }

    /// The names of services stay known, whatever becomes of them.
    fn record(&mut self, service: &ResourceName) -> &mut ServiceRecord {
        self.services.get_mut(service).expect("it is known")
    }

    pub(crate) fn delete(
        &mut self,
        by: Epoch,
        service: &ResourceName,
        with_data: bool,
    ) -> Result<(), Fenced> {
        self.check(by)?;
        self.record(service).removing = Some(with_data);
        Ok(())
    }

    /// Nothing of it runs any more: its records go, and where its numbers stood is kept. What is to forget its data is told so.
    pub(crate) fn finish_removal(
        &mut self,
        by: Epoch,
        service: &ResourceName,
        forgets_homes: bool,
    ) -> Result<(), Fenced> {
        self.check(by)?;
        let record = self.record(service);
        let with_data = record.removing.take() == Some(true);
        record.is_gone = true;
        record.rollout = None;
        record.group.pending.clear();
        if with_data {
            record.forget.extend(record.group.nodes_with_data());
        }
        if with_data || forgets_homes {
            record.group.homes.clear();
            record.group.left.clear();
        }
        record.version += 1;
        Ok(())
    }

    pub(crate) fn make_anew(
        &mut self,
        by: Epoch,
        service: &ResourceName,
        spec: Service,
    ) -> Result<(), Fenced> {
        self.check(by)?;
        let record = self.record(service);
        record.is_gone = false;
        record.replicas = spec.replicas;
        record.target = record.target.next();
        record.releases = BTreeMap::from([(record.target, spec)]);
        record.eras.push(record.group.next_epoch);
        record.version += 1;
        Ok(())
    }

    /// What nodes have yet to forget of a service.
    pub(crate) fn write_forget(
        &mut self,
        by: Epoch,
        service: &ResourceName,
        nodes: BTreeSet<NodeName>,
    ) -> Result<(), Fenced> {
        self.check(by)?;
        self.record(service).forget = nodes;
        Ok(())
    }

    pub(crate) fn remove_node(&mut self, by: Epoch, name: &NodeName) -> Result<(), Fenced> {
        self.check(by)?;
        self.nodes.remove(name);
        self.removed.insert(name.clone());
        Ok(())
    }

    pub(crate) fn let_in(&mut self, by: Epoch, record: NodeRecord) -> Result<(), Fenced> {
        self.check(by)?;
        self.removed.remove(&record.name);
        self.nodes.insert(record.name.clone(), record);
        Ok(())
    }
}
