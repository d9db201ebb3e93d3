//! What an agent knows, all under one lock, and how its loops hear that there is something for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use compute::runtime::InstanceSpec;
use model::boundary::KeyFingerprint;
use model::compute::{DesiredInstance, default_grace, ports};
use model::control::{NodeDesired, NodeEvent, Reason};
use model::ids::{Generation, InstanceId, ResourceId, ResourceName};
use model::signals::Level;
use model::traffic::{Protocol, ProxySnapshot, Road};
use plan::agent::{Question, Run, State};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use crate::desired::WrongUrl;
use crate::doors::Doors;
use crate::instances::Order;
use crate::layout::{self, Layout};
use crate::listening::Found;
use crate::machine::Machine;
use crate::pause;
use crate::record::Foreign;

/// Events that wait for the next heartbeat; the oldest stay.
pub const EVENTS_MAX: usize = 64;

/// What an instance is called at one of its named ports.
pub fn at_port(desired: &DesiredInstance, port: &ResourceName) -> Option<InstanceId> {
    named_at_port(&desired.instance, &desired.service, port)
}

pub fn named_at_port(
    instance: &InstanceId,
    service: &ResourceName,
    port: &ResourceName,
) -> Option<InstanceId> {
    let name = ports::instance_of(&instance.name, service, port)?;
    Some(InstanceId::new(instance.project.clone(), name))
}

/// Services whose protocol is remembered.
const PROTOCOLS_MAX: usize = 4096;

/// Under the lock.
pub struct Core {
    pub state: State,
    /// Of each instance its own, and of each at a named port that one.
    pub ports: BTreeMap<InstanceId, u16>,
    /// Whose an instance at a named port is.
    pub port_owners: BTreeMap<InstanceId, InstanceId>,
    /// Where nobody is inside any more since the gate closed.
    pub drained: BTreeSet<InstanceId>,
    pub specs: BTreeMap<InstanceId, Arc<InstanceSpec>>,
    pub running: BTreeMap<InstanceId, Running>,
    pub workers: BTreeMap<InstanceId, Worker>,
    /// The last probe of each kind that was sent out.
    pub asking: BTreeMap<(InstanceId, Question), AbortHandle>,
    pub events: VecDeque<NodeEvent>,
    pub road: Road,
    /// Keys of nodes that were removed.
    pub removed: BTreeSet<KeyFingerprint>,
    /// The newest desired state that is on the disk.
    pub kept: Option<Generation>,
    /// The newest of all, where something of it is still to be done on the disk.
    pub to_keep: Option<NodeDesired>,
    /// Why that is not on the disk: it refuses.
    pub unkept: Option<Reason>,
    /// What is left of instances of which an earlier agent's record can't be read, as a later version wrote it: see [`crate::record::Foreign`].
    pub foreign: BTreeMap<InstanceId, Foreign>,
    /// Services whose volumes are to be forgotten, which the disk has refused so far.
    pub not_forgotten: BTreeSet<ResourceId>,
    pub doors: Doors,
    /// What each service spoke when the road last had it: one that was deleted may come back while a caller starts.
    pub protocols: BTreeMap<ResourceId, Protocol>,
    /// What was told of URLs that are no longer right.
    pub wrong_urls: BTreeSet<(InstanceId, WrongUrl)>,
    pub demand: BTreeMap<ResourceId, u32>,
    /// Secrets of the services here, as last given: in memory only.
    pub secrets: BTreeMap<ResourceId, api::wire::SecretValues>,
    /// Of the last snapshot that the proxy was told.
    pub told: Generation,
    /// What it was told on the connection that lives now.
    pub told_snapshot: Option<ProxySnapshot>,
    /// The proxy has taken a snapshot and its connection lives.
    pub proxy_answers: bool,
    /// Where it listens for callers of this node, once it has said so; and where it can't as somebody else does.
    pub open_doors: Option<BTreeSet<SocketAddr>>,
    pub refused_doors: BTreeSet<SocketAddr>,
    /// What of the last snapshot it could not do.
    pub proxy_refuses: Option<String>,
    /// The servers answered the last heartbeat.
    pub connected: bool,
    pub machine: Machine,
    /// What a person should mend of instances here, for as long as it is so.
    pub notices: BTreeMap<InstanceId, Reason>,
}

/// Where a worker's orders wait.
pub struct Worker {
    orders: mpsc::Sender<Order>,
    /// The last that was given.
    last: Option<Order>,
}

impl Worker {
    pub fn new(orders: mpsc::Sender<Order>) -> Self {
        Self { orders, last: None }
    }

    /// What waits last is not given once more: orders are repeated as long as nothing comes of them, and what follows needs room.
    ///
    /// # Errors
    ///
    /// So many wait already that there is none.
    pub fn give(&mut self, order: Order) -> Result<(), TrySendError<Order>> {
        let one_waits = self.orders.capacity() < self.orders.max_capacity();
        if one_waits && self.last == Some(order) {
            return Ok(());
        }
        self.orders.try_send(order)?;
        self.last = Some(order);
        Ok(())
    }
}

/// Which run a process belongs to. `pid` is not known while it is being started.
#[derive(Debug, Clone)]
pub struct Running {
    pub run: Run,
    pub pid: Option<u32>,
    /// What was last heard: whether a signal had stopped it.
    pub frozen: Option<bool>,
    /// Where it was last found to listen, while it refuses its probe.
    pub listens: Option<Found>,
}

impl Running {
    pub fn new(run: Run, pid: Option<u32>) -> Self {
        Self {
            run,
            pid,
            frozen: None,
            listens: None,
        }
    }
}

/// How loops hear that there is something for them: levels, not messages.
pub struct Signals {
    /// The next deadline may have changed.
    pub wake: Notify,
    /// The servers should hear something.
    pub report: Notify,
    pub watch_anew: Notify,
    /// There is something to keep of what the node should run.
    pub keep: Notify,
    /// A server has said what this node should run.
    pub told: watch::Sender<bool>,
    pub certify: Notify,
    /// The proxy should hear something.
    pub road: watch::Sender<()>,
    pub acknowledged: watch::Sender<Generation>,
    /// Heartbeats that were answered.
    pub heard: watch::Sender<u64>,
    /// The proxy is to stop; and has stopped.
    pub stop_proxy: watch::Sender<bool>,
    pub proxy_stopped: watch::Sender<bool>,
    pub ended: watch::Sender<bool>,
    /// Why this node is to run nothing, once that is so.
    pub over: watch::Sender<Option<String>>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            report: Notify::new(),
            watch_anew: Notify::new(),
            keep: Notify::new(),
            told: watch::Sender::new(false),
            certify: Notify::new(),
            road: watch::Sender::new(()),
            acknowledged: watch::Sender::new(Generation::default()),
            heard: watch::Sender::new(0),
            stop_proxy: watch::Sender::new(false),
            proxy_stopped: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            over: watch::Sender::new(None),
        }
    }
}

impl Core {
    /// The ports of an instance beside its own, by their names.
    pub fn named_ports(&self, desired: &DesiredInstance) -> BTreeMap<ResourceName, u16> {
        let ports = desired.spec.ports.keys();
        let known = ports.filter_map(|port| {
            let at_port = at_port(desired, port)?;
            Some((port.clone(), *self.ports.get(&at_port)?))
        });
        known.collect()
    }

    /// All ports that were given to an instance.
    pub fn own_ports(&self, id: &InstanceId) -> BTreeSet<u16> {
        let mut all = self.at_ports(id);
        all.push(id.clone());
        all.iter()
            .filter_map(|at| self.ports.get(at).copied())
            .collect()
    }

    /// Gives up all ports of an instance.
    pub fn release_ports(&mut self, id: &InstanceId) {
        self.gate_changes(id);
        for at_port in self.at_ports(id) {
            self.ports.remove(&at_port);
            self.port_owners.remove(&at_port);
        }
        self.ports.remove(id);
    }

    /// Gives up those that a newer release of it does not have.
    pub fn keep_ports_of(&mut self, desired: &DesiredInstance) {
        let ports = desired.spec.ports.keys();
        let has: BTreeSet<_> = ports.filter_map(|port| at_port(desired, port)).collect();
        for at_port in self.at_ports(&desired.instance) {
            if !has.contains(&at_port) {
                self.ports.remove(&at_port);
                self.port_owners.remove(&at_port);
            }
        }
    }

    /// The instance at each of its named ports.
    fn at_ports(&self, id: &InstanceId) -> Vec<InstanceId> {
        let owned = self.port_owners.iter().filter(|(_, owner)| *owner == id);
        owned.map(|(at_port, _)| at_port.clone()).collect()
    }

    /// Nobody is inside any more, of an instance or at one of its ports. Answers with the instance once that is so at all of them.
    pub fn drained(&mut self, at: InstanceId) -> Option<InstanceId> {
        let owner = self.port_owners.get(&at).unwrap_or(&at).clone();
        self.drained.insert(at);
        self.is_drained(&owner).then_some(owner)
    }

    /// Whether that is so at all of its ports.
    pub fn is_drained(&self, owner: &InstanceId) -> bool {
        let mut all = self.at_ports(owner);
        all.push(owner.clone());
        all.iter().all(|at| self.drained.contains(at))
    }

    /// What was said of who is inside was said of the gate as it was.
    pub fn gate_changes(&mut self, id: &InstanceId) {
        for at_port in self.at_ports(id) {
            self.drained.remove(&at_port);
        }
        self.drained.remove(id);
    }

    /// Remembers what the road's services speak. Bounded: beyond, those that are not on the road now are forgotten.
    pub fn learn_protocols(&mut self) {
        let now = self.road.destinations.iter();
        let now = now.map(|found| (found.service.clone(), found.protocol));
        if self.protocols.len() >= PROTOCOLS_MAX {
            self.protocols.clear();
        }
        self.protocols.extend(now);
    }

    pub fn open(layout: &Layout, machine: Machine) -> Self {
        let doors = layout::read(&layout.doors()).unwrap_or_else(|error| {
            tracing::warn!(%error, "doors are given anew");
            None
        });
        let snapshot = kept_snapshot(layout);
        let removed = snapshot.as_ref().map(|kept| kept.trust.removed.clone());
        Self {
            state: State::new(pause::draw()),
            ports: BTreeMap::new(),
            port_owners: BTreeMap::new(),
            drained: BTreeSet::new(),
            specs: BTreeMap::new(),
            running: BTreeMap::new(),
            workers: BTreeMap::new(),
            asking: BTreeMap::new(),
            events: VecDeque::new(),
            road: snapshot.as_ref().map(road_of).unwrap_or_default(),
            removed: removed.unwrap_or_default(),
            kept: None,
            to_keep: None,
            unkept: None,
            foreign: BTreeMap::new(),
            not_forgotten: BTreeSet::new(),
            doors: doors.unwrap_or_default(),
            protocols: BTreeMap::new(),
            wrong_urls: BTreeSet::new(),
            demand: BTreeMap::new(),
            secrets: BTreeMap::new(),
            told: snapshot.map(|kept| kept.generation).unwrap_or_default(),
            told_snapshot: None,
            proxy_answers: false,
            open_doors: None,
            refused_doors: BTreeSet::new(),
            proxy_refuses: None,
            connected: false,
            machine,
            notices: BTreeMap::new(),
        }
    }

    pub fn services(&self) -> BTreeSet<ResourceId> {
        self.state
            .instances()
            .map(|(_, instance)| instance.service())
            .collect()
    }

    /// Those of which a later version wrote, and which run on as they are, until they have ended.
    pub fn left_running(&self) -> impl Iterator<Item = &Foreign> {
        let running = move |left: &&Foreign| {
            let runs = left.process.is_some() && self.running.contains_key(&left.instance);
            // Until its turn to be an instance again has ended.
            runs && self.state.instance(&left.instance).is_none()
        };
        self.foreign.values().filter(running)
    }

    pub fn left_services(&self) -> BTreeSet<ResourceId> {
        self.left_running().map(Foreign::service).collect()
    }

    /// One that is left as it is goes from the road, and is to be ended.
    pub fn leaves(&mut self, id: &InstanceId) {
        let stays = self.foreign.get_mut(id).filter(|left| !left.is_going);
        if let Some(left) = stays {
            left.is_going = true;
            self.gate_changes(id);
        }
    }

    /// For one that is left as it is, and one that is being looked for; others are told so.
    pub fn is_frozen(&mut self, id: &InstanceId, frozen: bool) {
        if let Some(running) = self.running.get_mut(id) {
            running.frozen = Some(frozen);
        }
        let left = self.foreign.get_mut(id);
        if let Some(process) = left.and_then(|left| left.process.as_mut()) {
            process.frozen = frozen;
        }
    }

    /// Between SIGTERM and SIGKILL.
    pub fn grace(&self, id: &InstanceId) -> Duration {
        let known = self.state.instance(id);
        let known = known.map(|known| known.desired().spec.grace);
        let left = || self.foreign.get(id).map(|left| left.grace);
        known.or_else(left).unwrap_or_else(default_grace).duration()
    }

    pub fn push_event(&mut self, instance: Option<InstanceId>, level: Level, reason: Reason) {
        let at = jiff::Timestamp::now();
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(NodeEvent {
                at,
                level,
                instance,
                reason,
            });
        }
    }
}

/// The road as the proxy last heard of it: gone by until another is known, since one without callers and routes has all of them refused.
fn road_of(kept: &ProxySnapshot) -> Road {
    let gateway = kept.gateway.as_ref();
    Road {
        complete: false,
        destinations: kept.destinations.clone(),
        routes: gateway.map_or_else(Vec::new, |gateway| gateway.routes.clone()),
        callers: kept.callers.clone(),
        owners: kept.owners.clone(),
    }
}

/// What the proxy last kept: which gates stood open, and how far generations were counted.
pub fn kept_snapshot(layout: &Layout) -> Option<ProxySnapshot> {
    layout::read(&layout.kept_snapshot()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It hangs on a disk for minutes, and is told to kill each second.
    #[test]
    fn a_worker_that_hangs_hears_what_was_ordered_last() {
        let (sender, mut orders) = mpsc::channel(4);
        let mut worker = Worker::new(sender);
        worker.give(Order::Terminate).unwrap();
        for _ in 0..1000 {
            worker.give(Order::Kill).unwrap();
        }
        worker.give(Order::Remove).unwrap();
        let mut heard = Vec::new();
        while let Ok(order) = orders.try_recv() {
            heard.push(order);
        }
        assert_eq!(heard, [Order::Terminate, Order::Kill, Order::Remove]);
        // One that was taken is given again.
        worker.give(Order::Remove).unwrap();
        assert_eq!(orders.try_recv(), Ok(Order::Remove));
        // Of two runs, or with another one in between, it is not the same.
        for order in [
            Order::Start(1),
            Order::Kill,
            Order::Start(1),
            Order::Start(2),
        ] {
            worker.give(order).unwrap();
        }
        assert!(worker.give(Order::Remove).is_err(), "there is a bound");
    }
}
