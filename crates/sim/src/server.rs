//! What `control` does around the decisions.
//!
//! | module | what it plays |
//! |---|---|
//! | [`observed`] | takes heartbeats |
//! | [`leader`] | looks at everything, and writes what was decided |
//! | [`desired`] | tells nodes what to run and where others answer |
//! | [`leaving`] | deletes services and removes nodes |

mod desired;
mod leader;
mod leaving;
mod observed;

use std::collections::BTreeMap;

use model::control::{NodeDesired, NodeRecord};
use model::ids::{Epoch, NodeName, ResourceName, SessionId};
use plan::Instant;
use plan::nodes::State;
use plan::place::{Cluster, size_of};
use plan::service::Memory;

use self::observed::Picture;
use crate::Bug;
use crate::store::ServiceRecord;
use crate::workload;
use crate::world::{Event, Life, ToNode, ToServer, World};

/// One life of the server process: all of this is lost with it.
pub(crate) struct Server {
    pub(crate) life: Life,
    pub(crate) epoch: Epoch,
    pub(crate) stalled_until_ms: u64,
    watch: State,
    cluster: Cluster,
    memories: BTreeMap<ResourceName, Memory>,
    pictures: BTreeMap<NodeName, Picture>,
    /// The open watch of each node.
    watchers: BTreeMap<NodeName, (SessionId, Instant)>,
    told: BTreeMap<NodeName, NodeDesired>,
    counter: u64,
    /// What this leader knows of the store, which nobody else writes while it leads.
    services: BTreeMap<ResourceName, ServiceRecord>,
    nodes: BTreeMap<NodeName, NodeRecord>,
}
impl World {
    pub(crate) fn start_server(&mut self) {
        let epoch = self.store.lead();
        let nodes = self.store.nodes.clone();
        let services = self.store.services.clone();
        let mut cluster = Cluster::new(nodes.values());
        for (name, record) in &services {
            cluster.set_group(&workload::id(name), &record.group, |release| {
                size_of(&record.releases[&release])
            });
        }
        self.summary.leaders += 1;
        let server = Server {
            life: self.summary.leaders,
            epoch,
            stalled_until_ms: 0,
            watch: State::new(nodes.values(), self.now()),
            cluster,
            memories: BTreeMap::new(),
            pictures: BTreeMap::new(),
            watchers: BTreeMap::new(),
            told: BTreeMap::new(),
            counter: 0,
            services,
            nodes,
        };
        self.note(|| format!("server: leads with epoch {epoch}"));
        self.schedule(1, Event::Reconcile(server.life));
        self.invariants.leader(epoch, server.life);
        self.server = Some(server);
    }

    pub(crate) fn server_takes(&mut self, node: &NodeName, message: ToServer) {
        let Some(server) = &self.server else { return };
        if self.now_ms < server.stalled_until_ms {
            let until = server.stalled_until_ms;
            return self.put_off(
                until,
                Event::ToServer {
                    message,
                    node: node.clone(),
                },
            );
        }
        let is_known = server.nodes.contains_key(node);
        if !is_known && self.options.bug != Some(Bug::ServesRemoved) {
            return self.send_to_node(node, ToNode::Removed);
        }
        match message {
            ToServer::Heartbeat {
                heartbeat,
                sent_at,
                observed,
            } => {
                self.hear_forgotten(node, &heartbeat);
                self.heartbeat(node, &heartbeat, sent_at, &observed);
                self.push(node, Some(heartbeat.acknowledged));
            }
            ToServer::Watch { session, asked_at } => self.open_watch(node, session, asked_at),
        }
    }

    /// What a user asks for, if there is a leader to ask. Answers whether it was acknowledged.
    pub(crate) fn ask(
        &mut self,
        service: &ResourceName,
        replicas: u32,
        release: Option<model::compute::Service>,
    ) -> bool {
        let Some(epoch) = self.reachable().map(|server| server.epoch) else {
            return false;
        };
        let is_live = self.store.services[service].is_live();
        let write = |world: &mut Self| world.store.write_intent(epoch, service, replicas, release);
        if !is_live || write(self).is_err() {
            return false;
        }
        let Some(server) = &mut self.server else {
            return false;
        };
        let record = &self.store.services[service];
        let known = server.services.get_mut(service).expect("it is known");
        known.replicas = record.replicas;
        known.target = record.target;
        known.releases.clone_from(&record.releases);
        self.invariants
            .acknowledged(service, record.target, record.replicas);
        true
    }
}
