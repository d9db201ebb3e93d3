//! What each node is told: what to run, and where others answer.

use std::collections::BTreeMap;

use model::compute::{DesiredInstance, Placement, Purpose};
use model::control::{NodeDesired, Standing};
use model::ids::{Generation, InstanceId, NodeName, ResourceId, ResourceName, SessionId};
use plan::Instant;
use plan::road::{Index, ServiceEntry};

use super::Server;
use crate::Bug;
use crate::store::ServiceRecord;
use crate::workload;
use crate::world::{ToNode, World};

impl World {
    pub(super) fn open_watch(&mut self, node: &NodeName, session: SessionId, asked_at: Instant) {
        let Some(server) = &mut self.server else {
            return;
        };
        server.watchers.insert(node.clone(), (session, asked_at));
        self.push(node, None);
    }

    /// Sends what the node should run, unless it has acknowledged that.
    pub(super) fn push(&mut self, node: &NodeName, acknowledged: Option<Generation>) {
        let Some(server) = &self.server else { return };
        let Some(&(session, asked_at)) = server.watchers.get(node) else {
            return;
        };
        let Some(desired) = server
            .told
            .get(node)
            .filter(|told| acknowledged != Some(told.generation))
        else {
            return;
        };
        let desired = Box::new(desired.clone());
        self.send_to_node(
            node,
            ToNode::Desired {
                session,
                desired,
                asked_at,
            },
        );
    }

    pub(super) fn tell_nodes(&mut self) {
        let says_complete = self.options.bug == Some(Bug::SaysCompleteTooSoon);
        let Some(server) = &mut self.server else {
            return;
        };
        let changed = server.tell(says_complete);
        for node in changed {
            self.check_complete(&node);
            self.push(&node, None);
        }
    }

    /// A road that is said to be whole comes from a leader that has heard everyone who is present.
    fn check_complete(&mut self, node: &NodeName) {
        let Some(server) = &self.server else { return };
        let told = server.told.get(node);
        if !told.is_some_and(|told| told.road.complete) {
            return;
        }
        let present = server
            .nodes
            .values()
            .filter(|record| record.standing == Standing::Present);
        let unheard = present
            .map(|record| &record.name)
            .find(|name| !self.invariants.was_heard(server.epoch, name));
        if let Some(unheard) = unheard.cloned() {
            self.violated(format!(
                "{node} was told a whole road before {unheard} was heard"
            ));
        }
    }
}

impl Server {
    /// Makes what each node should know; answers for which it changed.
    fn tell(&mut self, says_complete: bool) -> Vec<NodeName> {
        let index = self.index(says_complete);
        let mut changed = Vec::new();
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let mut desired = NodeDesired {
                removed: Default::default(),
                generation: Generation {
                    epoch: self.epoch,
                    counter: self.counter + 1,
                },
                instances: self.instances_of(&node),
                foreign: Vec::new(),
                road: index.road(&node),
                forget_volumes: self.forgotten_at(&node),
            };
            if let Some(told) = self.told.get(&node) {
                let counter = std::mem::replace(&mut desired.generation, told.generation);
                if desired == *told {
                    continue;
                }
                desired.generation = counter;
            }
            self.counter += 1;
            self.told.insert(node.clone(), desired);
            changed.push(node);
        }
        changed
    }

    /// Whose data was deleted, and is still there as far as is known.
    fn forgotten_at(&self, node: &NodeName) -> Vec<ResourceId> {
        let services = self.services.iter();
        let forgotten = services.filter(|(_, record)| record.forget.contains(node));
        forgotten.map(|(name, _)| workload::id(name)).collect()
    }

    fn index(&self, says_complete: bool) -> Index {
        let known = self.services.iter().filter(|(_, record)| !record.is_gone);
        let services: BTreeMap<ResourceId, ServiceEntry<'_>> = known
            .map(|(name, record)| {
                let releases = record
                    .releases
                    .iter()
                    .map(|(number, spec)| (*number, spec))
                    .collect();
                let spec = &record.releases[&record.target];
                (
                    workload::id(name),
                    ServiceEntry {
                        spec,
                        releases,
                        group: &record.group,
                    },
                )
            })
            .collect();
        let mesh = "127.0.0.1:7071".parse().ok();
        Index::new(&plan::road::World {
            nodes: &self.nodes,
            services: &services,
            routes: &workload::routes(),
            reports: &|instance: &InstanceId| {
                self.pictures
                    .values()
                    .find_map(|picture| picture.reports.get(&instance.name))
            },
            mesh: &|_| mesh,
            complete: says_complete || self.watch.has_heard_all(),
        })
    }

    fn instances_of(&self, node: &NodeName) -> Vec<DesiredInstance> {
        let mut instances = Vec::new();
        for (name, record) in &self.services {
            let here = record
                .group
                .placements
                .iter()
                .filter(|placement| placement.node == *node);
            instances.extend(here.map(|placement| desired(name, record, placement)));
        }
        instances
    }
}

fn desired(
    service: &ResourceName,
    record: &ServiceRecord,
    placement: &Placement,
) -> DesiredInstance {
    DesiredInstance {
        instance: InstanceId::new(workload::project(), placement.instance.clone()),
        service: service.clone(),
        release: placement.release,
        epoch: placement.epoch,
        slot: placement.slot,
        role: placement.role,
        purpose: placement.purpose,
        wanted: placement.wanted,
        uid: 1000,
        spec: match placement.purpose {
            Purpose::Serve | Purpose::Run => record.releases[&placement.release].clone(),
            Purpose::BeforeDeploy => record.releases[&placement.release].before_deploy_work(),
        },
        secrets: Vec::new(),
        start_after: Vec::new(),
        logins: BTreeMap::new(),
        need_ports: BTreeMap::new(),
        settings: None,
    }
}
