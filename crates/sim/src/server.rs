//! What `control` does around the decisions: takes heartbeats, looks at everything, writes what was decided, tells nodes.

use std::collections::BTreeMap;

use model::compute::{DesiredInstance, InstanceReport, Placement};
use model::control::{HeartbeatAnswer, NodeDesired, NodeRecord, Reason, Standing};
use model::ids::{
    Epoch, Generation, InstanceId, InstanceName, NodeName, ResourceId, ResourceName, SessionId,
};
use plan::Instant;
use plan::check::{self, Plan};
use plan::nodes::{self, Input, Output, State};
use plan::place::{Cluster, size_of};
use plan::road::{Index, ServiceEntry};
use plan::service::{Memory, ServiceDecision, ServiceView, Sight};

use crate::Bug;
use crate::store::{Fenced, ServiceRecord};
use crate::workload;
use crate::world::{Event, Life, ToNode, ToServer, World};

/// Between two looks at everything.
const RECONCILE_EVERY_MS: u64 = 200;
/// Steps of one service in one look: it comes to rest long before.
const MOST_STEPS: usize = 20;

/// One life of the server process: all of this is lost with it.
pub(crate) struct Server {
    pub(crate) life: Life,
    pub(crate) epoch: Epoch,
    pub(crate) stalled_until_ms: u64,
    watch: State,
    cluster: Cluster,
    memories: BTreeMap<ResourceName, Memory>,
    pictures: BTreeMap<NodeName, BTreeMap<InstanceName, InstanceReport>>,
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
        match message {
            ToServer::Heartbeat {
                session,
                sequence,
                acknowledged,
                reports,
                sent_at,
            } => {
                self.heartbeat(node, session, sequence, reports, sent_at);
                self.push(node, acknowledged);
            }
            ToServer::Watch { session, asked_at } => self.open_watch(node, session, asked_at),
        }
    }

    fn heartbeat(
        &mut self,
        node: &NodeName,
        session: SessionId,
        sequence: u64,
        reports: Vec<InstanceReport>,
        sent_at: Instant,
    ) {
        let now = self.now();
        let Some(server) = &mut self.server else {
            return;
        };
        if !server.watch.is_news(node, session, sequence, now) {
            return;
        }
        let picture = reports
            .into_iter()
            .map(|report| (report.instance.name.clone(), report))
            .collect();
        server.pictures.insert(node.clone(), picture);
        let epoch = server.epoch;
        let outputs = nodes::step(
            &mut server.watch,
            Input::Heartbeat {
                node,
                session,
                complete: true,
            },
            now,
        );
        self.invariants.heard(epoch, node);
        self.take_node_outputs(outputs);
        self.lose_early(Some(node));
        let answer = HeartbeatAnswer {
            epoch,
            send_full: false,
        };
        self.send_to_node(
            node,
            ToNode::Answer {
                session,
                answer,
                sent_at,
            },
        );
    }

    fn open_watch(&mut self, node: &NodeName, session: SessionId, asked_at: Instant) {
        let Some(server) = &mut self.server else {
            return;
        };
        server.watchers.insert(node.clone(), (session, asked_at));
        self.push(node, None);
    }

    /// Sends what the node should run, unless it has acknowledged that.
    fn push(&mut self, node: &NodeName, acknowledged: Option<Generation>) {
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

    pub(crate) fn reconcile(&mut self, life: Life) {
        let of_life =
            |server: &Option<Server>| server.as_ref().is_some_and(|server| server.life == life);
        let stalled = self
            .server
            .iter()
            .chain(&self.old_server)
            .find(|server| server.life == life)
            .map(|server| server.stalled_until_ms);
        let Some(until) = stalled else { return };
        if self.now_ms < until {
            return self.put_off(until, Event::Reconcile(life));
        }
        if of_life(&self.old_server) {
            return self.wake_up_late();
        }
        self.look();
        self.schedule(RECONCILE_EVERY_MS, Event::Reconcile(life));
    }

    /// A server that was followed while it was stopped goes on where it was, until the store says that it leads no more.
    fn wake_up_late(&mut self) {
        let current = self.server.take();
        self.server = self.old_server.take();
        self.note(|| "server: the old leader goes on".to_owned());
        self.look();
        self.server = current;
    }

    fn look(&mut self) {
        if self.look_at_all() == Err(Fenced) {
            self.note(|| "server: fenced, ends".to_owned());
            self.server = None;
        }
    }

    fn look_at_all(&mut self) -> Result<(), Fenced> {
        let now = self.now();
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let outputs = nodes::step(&mut server.watch, Input::Tick, now);
        self.take_node_outputs(outputs);
        self.lose_early(None);
        let names: Vec<_> = self.store.services.keys().cloned().collect();
        for name in names {
            self.step_service(&name)?;
        }
        self.tell_nodes();
        Ok(())
    }

    fn take_node_outputs(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let (node, standing, reason) = match output {
                Output::Lost { node, reason } => (node, Standing::Lost, reason),
                Output::Present { node, reason } => (node, Standing::Present, reason),
                Output::BrakeOn { reason } | Output::BrakeOff { reason } => {
                    self.note(|| format!("server: {reason}"));
                    continue;
                }
            };
            self.note(|| format!("server: {reason}"));
            self.summary.lost_nodes += u64::from(standing == Standing::Lost);
            self.set_standing(&node, standing, reason);
        }
    }

    /// With the bug: a node is lost as soon as it is silent, until it is heard.
    fn lose_early(&mut self, heard: Option<&NodeName>) {
        if self.options.bug != Some(Bug::ReplacesBeforeLeaseEnd) {
            return;
        }
        let now = self.now();
        let Some(server) = &self.server else { return };
        let standing = |node: &NodeName| match server.watch.sight(node, now) {
            Sight::Silent => Standing::Lost,
            _ if heard == Some(node) => Standing::Present,
            _ => server.nodes[node].standing,
        };
        let changed: Vec<_> = server
            .nodes
            .values()
            .map(|record| (record.name.clone(), standing(&record.name)))
            .collect();
        for (node, standing) in changed {
            self.set_standing(&node, standing, Reason::new("planted", "a planted bug"));
        }
    }

    fn set_standing(&mut self, node: &NodeName, standing: Standing, reason: Reason) {
        let Some(server) = &mut self.server else {
            return;
        };
        let Some(record) = server.nodes.get_mut(node) else {
            return;
        };
        record.standing = standing;
        record.reason = reason;
        server.cluster.set_node(record);
        if self.store.write_node(server.epoch, record.clone()) == Err(Fenced) {
            self.server = None;
        }
    }

    /// Steps one service until it rests, writing each decision.
    fn step_service(&mut self, name: &ResourceName) -> Result<(), Fenced> {
        for _ in 0..MOST_STEPS {
            let now = self.now();
            let Some(server) = &mut self.server else {
                return Ok(());
            };
            let decision = server.decide(name, now);
            let record = &server.services[name];
            if decision.group == record.group && decision.rollout == record.rollout {
                return Ok(());
            }
            self.write(name, decision)?;
        }
        self.violated(format!("{name} does not come to rest"));
        Ok(())
    }

    fn write(&mut self, name: &ResourceName, decision: ServiceDecision) -> Result<(), Fenced> {
        for (_, subject, reason) in &decision.events {
            self.note(|| format!("server: {subject}: {reason}"));
        }
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let before = self.store.services[name].group.clone();
        let known = server.services[name].version;
        let found = self.store.write_plan(
            server.epoch,
            name,
            decision.group.clone(),
            decision.rollout.clone(),
        )?;
        let record = server
            .services
            .get_mut(name)
            .expect("it was just decided about");
        record.group = decision.group;
        record.rollout = decision.rollout;
        record.version = known + 1;
        if found != known {
            self.violated(format!(
                "an acknowledged write of the plan of {name} was undone"
            ));
        } else {
            self.lint(name, &before);
        }
        Ok(())
    }

    /// What was just written, by the checker.
    fn lint(&mut self, name: &ResourceName, before: &model::compute::PlacementGroup) {
        let record = &self.store.services[name];
        let releases = record
            .releases
            .iter()
            .map(|(number, spec)| (*number, spec))
            .collect();
        let id = workload::id(name);
        let plan = Plan {
            id: &id,
            group: &record.group,
            releases: &releases,
        };
        let mut wrong = check::check_step(&self.store.nodes, before, &plan);
        wrong.extend(check::check(&self.store.nodes, &[plan]));
        let twice = self.invariants.placed(name, &record.group);
        if let Some(what) = wrong.first().map(ToString::to_string).or(twice) {
            self.violated(what);
        }
    }

    fn tell_nodes(&mut self) {
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
        if !server.told[node].road.complete {
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

    /// What a user asks for, if there is a leader to ask. Answers whether it was acknowledged.
    pub(crate) fn ask(
        &mut self,
        service: &ResourceName,
        replicas: u32,
        release: Option<model::compute::Service>,
    ) -> bool {
        let reachable = self
            .server
            .as_mut()
            .filter(|server| self.now_ms >= server.stalled_until_ms);
        let Some(server) = reachable else {
            return false;
        };
        if self
            .store
            .write_intent(server.epoch, service, replicas, release)
            .is_err()
        {
            return false;
        }
        let record = &self.store.services[service];
        let known = server
            .services
            .get_mut(service)
            .expect("services are never deleted here");
        known.replicas = record.replicas;
        known.target = record.target;
        known.releases.clone_from(&record.releases);
        self.invariants
            .acknowledged(service, record.target, record.replicas);
        true
    }
}

impl Server {
    fn decide(&mut self, name: &ResourceName, now: plan::Now) -> ServiceDecision {
        let record = &self.services[name];
        let releases = record
            .releases
            .iter()
            .map(|(number, spec)| (*number, spec))
            .collect();
        let reports: BTreeMap<_, _> = record
            .group
            .placements
            .iter()
            .filter_map(|placement| {
                Some((
                    placement.instance.clone(),
                    self.pictures
                        .get(&placement.node)?
                        .get(&placement.instance)?,
                ))
            })
            .collect();
        let watch = &self.watch;
        let nodes = &self.nodes;
        let sight = |node: &NodeName| match nodes[node].standing {
            Standing::Lost => Sight::Lost,
            Standing::Present => watch.sight(node, now),
        };
        let id = workload::id(name);
        let view = ServiceView {
            id: &id,
            target: Some(record.target),
            replicas: record.replicas,
            releases: &releases,
            rollout: record.rollout.as_ref(),
            group: &record.group,
            reports: &reports,
            sight: &sight,
            hold: self.watch.brake().map(|brake| &brake.reason),
        };
        let memory = self.memories.entry(name.clone()).or_default();
        plan::service::step(&view, memory, &mut self.cluster, now)
    }

    /// Makes what each node should know; answers for which it changed.
    fn tell(&mut self, says_complete: bool) -> Vec<NodeName> {
        let index = self.index(says_complete);
        let mut changed = Vec::new();
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let mut desired = NodeDesired {
                generation: Generation {
                    epoch: self.epoch,
                    counter: self.counter + 1,
                },
                instances: self.instances_of(&node),
                road: index.road(&node),
                forget_volumes: Vec::new(),
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

    fn index(&self, says_complete: bool) -> Index {
        let services: BTreeMap<ResourceId, ServiceEntry<'_>> = self
            .services
            .iter()
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
            routes: &[],
            reports: &|instance: &InstanceId| {
                self.pictures
                    .values()
                    .find_map(|picture| picture.get(&instance.name))
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
        wanted: placement.wanted,
        uid: 1000,
        spec: record.releases[&placement.release].clone(),
        secrets: Vec::new(),
        start_after: Vec::new(),
    }
}
