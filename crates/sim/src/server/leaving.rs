//! Services that are deleted and made anew, and nodes that are removed and let in again.

use std::collections::BTreeSet;

use model::control::{Heartbeat, Reason, Standing};
use model::ids::{NodeName, ResourceName};
use plan::nodes::{self, Input};

use super::Server;
use crate::Bug;
use crate::store::{Fenced, ServiceRecord};
use crate::workload;
use crate::world::World;

impl World {
    /// The server, if a user can ask it for something.
    pub(super) fn reachable(&mut self) -> Option<&mut Server> {
        let now_ms = self.now_ms;
        self.server
            .as_mut()
            .filter(|server| now_ms >= server.stalled_until_ms)
    }

    /// What the leader knows of a service, once that was changed by itself.
    fn learn(&mut self, service: &ResourceName) {
        let record = self.store.services[service].clone();
        if let Some(server) = &mut self.server {
            server.services.insert(service.clone(), record);
        }
    }

    /// The user deletes a service. Answers whether that was acknowledged.
    pub(crate) fn ask_to_delete(&mut self, service: &ResourceName, with_data: bool) -> bool {
        let Some(epoch) = self.reachable().map(|server| server.epoch) else {
            return false;
        };
        let is_live = self.store.services[service].is_live();
        if !is_live || self.store.delete(epoch, service, with_data).is_err() {
            return false;
        }
        self.learn(service);
        let era = self.store.services[service].eras.len();
        self.invariants.deleted(service, era, with_data);
        true
    }

    /// The user applies what was deleted. It is refused until nothing of it is left.
    pub(crate) fn ask_anew(&mut self, service: &ResourceName) -> bool {
        let Some(epoch) = self.reachable().map(|server| server.epoch) else {
            return false;
        };
        let spec = workload::spec(service.as_str(), false);
        let is_gone = self.store.services[service].is_gone;
        if !is_gone || self.store.make_anew(epoch, service, spec).is_err() {
            return false;
        }
        self.learn(service);
        let record = &self.store.services[service];
        let (target, replicas) = (record.target, record.replicas);
        self.invariants.acknowledged(service, target, replicas);
        true
    }

    /// Removes the records of a deleted service once nothing of it is placed.
    pub(super) fn finish_removal(&mut self, service: &ResourceName) -> Result<(), Fenced> {
        let Some(server) = &self.server else {
            return Ok(());
        };
        let record = &server.services[service];
        if record.removing.is_none() || !record.group.placements.is_empty() {
            return Ok(());
        }
        let forgets = self.options.bug == Some(Bug::ForgetsHomes);
        self.store.finish_removal(server.epoch, service, forgets)?;
        self.learn(service);
        self.note(|| format!("server: {service} is gone"));
        Ok(())
    }

    /// What a copy left behind that never began: its node is told to forget it.
    pub(super) fn forget_also(
        &mut self,
        service: &ResourceName,
        nodes: BTreeSet<NodeName>,
    ) -> Result<(), Fenced> {
        let Some(server) = self.server.as_mut().filter(|_| !nodes.is_empty()) else {
            return Ok(());
        };
        let record = server.services.get_mut(service).expect("it is known");
        record.forget.extend(nodes);
        let all = record.forget.clone();
        self.store.write_forget(server.epoch, service, all)
    }

    /// A node that acknowledged what told it to forget has forgotten.
    pub(super) fn hear_forgotten(&mut self, node: &NodeName, heartbeat: &Heartbeat) {
        let Some(server) = &mut self.server else {
            return;
        };
        let told = server.told.get(node).filter(|told| {
            !told.forget_volumes.is_empty() && heartbeat.acknowledged >= told.generation
        });
        let services: Vec<_> = told
            .into_iter()
            .flat_map(|told| &told.forget_volumes)
            .map(|id| id.name.clone())
            .collect();
        for service in services {
            let record = server.services.get_mut(&service).expect("it is known");
            record.forget.remove(node);
            let left = record.forget.clone();
            if self
                .store
                .write_forget(server.epoch, &service, left)
                .is_err()
            {
                self.server = None;
                return;
            }
        }
    }

    /// The user gives up a node that is lost.
    pub(crate) fn remove_lost_node(&mut self) -> Option<NodeName> {
        let serves = self.options.bug == Some(Bug::ServesRemoved);
        let now = self.now();
        let server = self.reachable()?;
        let lost = server
            .nodes
            .values()
            .find(|record| record.standing == Standing::Lost)?;
        let name = lost.name.clone();
        let epoch = server.epoch;
        self.store.remove_node(epoch, &name).ok()?;
        let server = self.server.as_mut()?;
        server.nodes.remove(&name);
        server.cluster.remove_node(&name);
        server.pictures.remove(&name);
        if !serves {
            server.told.remove(&name);
            server.watchers.remove(&name);
        }
        let outputs = nodes::step(&mut server.watch, Input::Forget(&name), now);
        self.take_node_outputs(outputs);
        self.note(|| format!("user: {name} is removed"));
        Some(name)
    }

    /// The user lets it in again, with a fresh token. Answers whether that was done.
    pub(crate) fn let_in_again(&mut self, name: &NodeName) -> bool {
        let now = self.now();
        let Some(epoch) = self.reachable().map(|server| server.epoch) else {
            return false;
        };
        let record = workload::nodes()
            .into_iter()
            .find(|node| node.name == *name);
        let mut record = record.expect("it is one of these");
        record.reason = Reason::new("joined", "joined again");
        if self.store.let_in(epoch, record.clone()).is_err() {
            return false;
        }
        if let Some(server) = &mut self.server {
            server.cluster.set_node(&record);
            let outputs = nodes::step(&mut server.watch, Input::Record(&record), now);
            server.nodes.insert(name.clone(), record);
            self.take_node_outputs(outputs);
        }
        self.note(|| format!("user: {name} is let in again"));
        true
    }
}

impl Server {
    /// Where no copy with volumes of it may begin.
    pub(super) fn barred(&self, record: &ServiceRecord) -> Vec<(NodeName, Reason)> {
        let reason = || Reason::new(plan::place::FORGETTING, "it has yet to forget");
        let nodes = record.forget.iter();
        nodes.map(|node| (node.clone(), reason())).collect()
    }
}
