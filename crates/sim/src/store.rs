//! The control plane's records, fenced by the leader's epoch: what is acknowledged here survives every process.

use std::collections::BTreeMap;

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
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) epoch: Epoch,
    pub(crate) services: BTreeMap<ResourceName, ServiceRecord>,
    pub(crate) nodes: BTreeMap<NodeName, NodeRecord>,
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
        let record = self
            .services
            .get_mut(service)
            .expect("services are never deleted here");
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
        let record = self
            .services
            .get_mut(service)
            .expect("services are never deleted here");
        record.replicas = replicas;
        if let Some(spec) = release {
            record.target = record.target.next();
            record.releases.insert(record.target, spec);
        }
        Ok(())
    }
}
