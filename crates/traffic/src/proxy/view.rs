//! A snapshot made ready to be used: looked up by hash, never changed, swapped whole.
//!
//! What must outlive a snapshot (gates with those inside, loads, budgets, waiting counts, listening sockets, TLS configurations)
//! is shared with the view before.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use http::HeaderValue;
use model::boundary::{Holder, SpiffeId};
use model::ids::{Epoch, InstanceId, NodeName, ResourceId};
use model::traffic::{
    self, Address, Affinity, Door, Network, Protocol, ProxySnapshot, TrafficOptions,
};
use tokio::sync::Notify;

use super::affinity::Cookie;
use super::gate::Gate;
use super::reports::Reports;
use super::tls::Tls;
use crate::budget::Budget;
use crate::load::Load;
use crate::routing::Router;

pub struct View {
    pub node: NodeName,
    pub mesh: SocketAddr,
    pub gateway: Option<Gateway>,
    pub doors: HashMap<SocketAddr, Arc<Door>>,
    /// Whose sockets a uid's are.
    pub owners: HashMap<u32, ResourceId>,
    pub enforce_uid: bool,
    pub refusals: Option<SocketAddr>,
    pub destinations: HashMap<ResourceId, Arc<Destination>>,
    pub local: HashMap<InstanceId, Arc<Local>>,
    callers: HashMap<ResourceId, Permits>,
    pub tls: Tls,
    pub sockets: HashMap<SocketAddr, Arc<TcpListener>>,
}

pub struct Gateway {
    pub listen: SocketAddr,
    /// [`Gateway::listen`] as a host, for who names none.
    pub host: HeaderValue,
    pub router: Router,
    pub trusted: Vec<Network>,
    pub proxy_protocol: Vec<Network>,
}

#[derive(Default)]
struct Permits {
    from: HashSet<ResourceId>,
    gateway: bool,
}

/// Where one service answers.
pub struct Destination {
    pub service: ResourceId,
    pub header: HeaderValue,
    pub traffic: TrafficOptions,
    pub endpoints: Vec<Endpoint>,
    /// Indices of the endpoints in this zone, and of the others.
    pub near: Vec<usize>,
    pub far: Vec<usize>,
    /// Where clients keep their endpoint.
    pub cookie: Option<Cookie>,
    pub shared: Arc<Shared>,
}

pub struct Endpoint {
    pub place: Place,
    pub load: Arc<Load>,
}

impl Endpoint {
    /// Where it runs, if it is Mainland that runs it.
    pub fn node(&self) -> Option<&NodeName> {
        match &self.place {
            Place::Instance(target) => Some(&target.node),
            Place::External(_) => None,
        }
    }
}

pub enum Place {
    /// On this node, or reached through the proxy of another.
    Instance(Target),
    /// Runs elsewhere, dialled directly.
    External(Address),
}

pub struct Target {
    pub instance: InstanceId,
    pub epoch: Epoch,
    pub node: NodeName,
    pub mesh: SocketAddr,
    pub instance_header: HeaderValue,
    pub epoch_header: HeaderValue,
}

/// What all views of a service share.
#[derive(Default)]
pub struct Shared {
    pub budget: Budget,
    pub turn: AtomicUsize,
    /// Requests that wait, for whatever reason; bounded.
    pub waiting: AtomicU32,
    /// Of these, the ones that wait because there is no endpoint at all.
    wanting: AtomicU32,
    /// What wide streams to it may hold unread ([`super::window`]).
    pub wide_bytes: AtomicU64,
    /// Signalled when a snapshot comes.
    pub arrived: Notify,
}

impl Shared {
    pub fn demand(&self) -> u32 {
        self.wanting.load(Ordering::Relaxed)
    }

    pub fn want(&self) {
        self.wanting.fetch_add(1, Ordering::Relaxed);
    }

    pub fn unwant(&self) {
        self.wanting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An instance of this node.
pub struct Local {
    pub service: ResourceId,
    pub epoch: Epoch,
    pub address: Address,
    pub protocol: Protocol,
    pub gate: Arc<Gate>,
    /// Each request says which service calls.
    pub told_callers: bool,
}

/// Who calls: a service of this node or of another, or a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    Service(ResourceId),
    /// A gateway calls as its node.
    Gateway,
}

impl Caller {
    /// `None` for holders that never call: servers.
    pub fn from_holder(holder: Holder) -> Option<Self> {
        match holder {
            Holder::Service(service) => Some(Self::Service(service)),
            Holder::Node(_) => Some(Self::Gateway),
            Holder::Server => None,
        }
    }

    pub fn service(&self) -> Option<&ResourceId> {
        match self {
            Self::Service(service) => Some(service),
            Self::Gateway => None,
        }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(service) => service.fmt(f),
            Self::Gateway => f.write_str("gateway"),
        }
    }
}

impl View {
    /// Joins a snapshot with what lives on from the view before.
    pub fn new(
        snapshot: &ProxySnapshot,
        tls: Tls,
        sockets: HashMap<SocketAddr, Arc<TcpListener>>,
        before: Option<&View>,
        reports: &Arc<Reports>,
    ) -> Self {
        Self {
            node: snapshot.node.clone(),
            mesh: snapshot.mesh,
            gateway: snapshot.gateway.as_ref().map(gateway),
            doors: snapshot
                .doors
                .iter()
                .map(|door| (door.listen, Arc::new(door.clone())))
                .collect(),
            owners: owners(snapshot),
            enforce_uid: snapshot.enforce_uid,
            refusals: snapshot.refusals,
            destinations: snapshot
                .destinations
                .iter()
                .map(|to| {
                    (
                        to.service.clone(),
                        Arc::new(destination(to, snapshot, before)),
                    )
                })
                .collect(),
            local: snapshot
                .local
                .iter()
                .map(|local| (local.instance.clone(), join_local(local, before, reports)))
                .collect(),
            callers: permits(snapshot),
            tls,
            sockets,
        }
    }

    /// `Ok` when `caller` has declared the need, or a route leads there; else what is missing.
    pub fn permits(&self, caller: &Caller, callee: &ResourceId) -> Result<(), String> {
        let permits = self.callers.get(callee);
        let allowed = permits.is_some_and(|permits| match caller {
            Caller::Service(service) => permits.from.contains(service),
            Caller::Gateway => permits.gateway,
        });
        if allowed {
            return Ok(());
        }
        Err(match caller {
            Caller::Service(service) => missing_need(service, callee),
            Caller::Gateway => format!("no route leads to service {}", callee.name),
        })
    }

    /// Whether it is told who may call `callee`. Of what is placed here it is, also where that is nobody; of what is placed here no longer, or is not
    /// found again yet, it is not, and that says nothing of any caller: what is told may be behind what runs, or before it.
    pub fn knows_callers(&self, callee: &ResourceId) -> bool {
        self.callers.contains_key(callee)
    }

    /// Whether what `caller` has open to `callee` is to end.
    pub fn forbids(&self, caller: &Caller, callee: &ResourceId) -> bool {
        self.knows_callers(callee) && self.permits(caller, callee).is_err()
    }

    /// Whether a service has but one caller here: a share of it would keep places for nobody.
    pub fn has_one_caller(&self, service: &ResourceId) -> bool {
        let callers = self.callers.get(service);
        let is_routed = self.gateway.is_some() && callers.is_none_or(|it| it.gateway);
        let doors = self.doors.values().filter(|door| !door.undeclared);
        let mut doors = doors.filter(|door| door.need == *service);
        let first = doors.next();
        let same = |door: &Arc<Door>| first.is_some_and(|first| first.caller == door.caller);
        !is_routed && doors.all(same)
    }

    /// What a door that once was `opened` is now; `None`: its caller declares the need no more.
    pub fn declared(&self, opened: &Door) -> Option<&Arc<Door>> {
        let door = self.doors.get(&opened.listen)?;
        (door.caller == opened.caller && !door.undeclared).then_some(door)
    }

    /// Whether what came in at a door that was `opened` then is to end. A door that is not there says nothing: what is told may be behind what runs.
    pub fn is_undeclared(&self, opened: &Door) -> bool {
        let door = self.doors.get(&opened.listen);
        door.is_some_and(|door| door.undeclared || door.caller != opened.caller)
    }

    /// Whether a SPIFFE name is of this cluster, and who it is.
    pub fn caller(&self, id: SpiffeId) -> Option<Caller> {
        (id.cluster == self.tls.cluster())
            .then(|| Caller::from_holder(id.holder))
            .flatten()
    }
}

/// `service web does not declare needs: [payment]`; across projects both are named in full.
pub fn missing_need(caller: &ResourceId, callee: &ResourceId) -> String {
    if caller.project == callee.project {
        format!(
            "service {} does not declare needs: [{}]",
            caller.name, callee.name
        )
    } else {
        format!("service {caller} does not declare needs: [{callee}]")
    }
}

/// Who is known by uid: services with a door, services with an instance here, and those of other nodes of this machine.
fn owners(snapshot: &ProxySnapshot) -> HashMap<u32, ResourceId> {
    let doors = snapshot.doors.iter().map(|door| (door.uid, &door.caller));
    let instances = snapshot.local.iter();
    let instances = instances.filter_map(|local| Some((local.uid?, &local.service)));
    let others = snapshot.owners.iter();
    doors
        .chain(instances)
        .chain(others.map(|owner| (owner.uid, &owner.service)))
        .map(|(uid, service)| (uid, service.clone()))
        .collect()
}

fn gateway(gateway: &traffic::Gateway) -> Gateway {
    Gateway {
        listen: gateway.listen,
        host: header(&gateway.listen),
        router: Router::new(&gateway.routes),
        trusted: gateway.trusted.clone(),
        proxy_protocol: gateway.proxy_protocol.clone(),
    }
}

fn permits(snapshot: &ProxySnapshot) -> HashMap<ResourceId, Permits> {
    let mut all: HashMap<ResourceId, Permits> = HashMap::new();
    for callers in &snapshot.callers {
        let permits = all.entry(callers.service.clone()).or_default();
        permits.from.extend(callers.from.iter().cloned());
        permits.gateway |= callers.gateway;
    }
    all
}

/// The gate goes on as long as the instance has the same epoch; a new epoch is another instance behind a new gate.
fn join_local(
    local: &traffic::LocalInstance,
    before: Option<&View>,
    reports: &Arc<Reports>,
) -> Arc<Local> {
    let gate = before
        .and_then(|view| view.local.get(&local.instance))
        .filter(|old| old.epoch == local.epoch)
        .map_or_else(|| Gate::new(reports.clone()), |old| old.gate.clone());
    Arc::new(Local {
        service: local.service.clone(),
        epoch: local.epoch,
        address: local.address.clone(),
        protocol: local.protocol,
        gate,
        told_callers: local.told_callers,
    })
}

fn destination(
    to: &traffic::Destination,
    snapshot: &ProxySnapshot,
    before: Option<&View>,
) -> Destination {
    let old = before.and_then(|view| view.destinations.get(&to.service));
    let mut endpoints: Vec<Endpoint> = to
        .endpoints
        .iter()
        .map(|it| instance_endpoint(it, old))
        .collect();
    endpoints.extend(
        to.external
            .iter()
            .map(|address| external_endpoint(address, old)),
    );
    let is_near = |index: &usize| {
        let near = to.endpoints.get(*index);
        near.is_none_or(|endpoint| {
            endpoint.zone == snapshot.zone && endpoint.region == snapshot.region
        })
    };
    let (near, far) = (0..endpoints.len()).partition(is_near);
    let cookie = (to.traffic.affinity == Affinity::Cookie).then(|| {
        let names = endpoints.iter().map(|endpoint| match &endpoint.place {
            Place::Instance(target) => target.instance.to_string(),
            Place::External(address) => format!("{address:?}"),
        });
        Cookie::new(&to.service.to_string(), names)
    });
    Destination {
        cookie,
        service: to.service.clone(),
        header: header(&to.service),
        traffic: to.traffic,
        endpoints,
        near,
        far,
        shared: old.map_or_else(Arc::default, |old| old.shared.clone()),
    }
}

fn instance_endpoint(endpoint: &traffic::Endpoint, old: Option<&Arc<Destination>>) -> Endpoint {
    let same = |target: &Target| {
        target.instance == endpoint.instance
            && target.epoch == endpoint.epoch
            && target.mesh == endpoint.mesh
    };
    let load = old.and_then(|old| {
        old.endpoints
            .iter()
            .find(|it| matches!(&it.place, Place::Instance(target) if same(target)))
            .map(|it| it.load.clone())
    });
    Endpoint {
        place: Place::Instance(Target {
            instance: endpoint.instance.clone(),
            epoch: endpoint.epoch,
            node: endpoint.node.clone(),
            mesh: endpoint.mesh,
            instance_header: header(&endpoint.instance),
            epoch_header: HeaderValue::from(endpoint.epoch.0),
        }),
        load: load.unwrap_or_default(),
    }
}

fn external_endpoint(address: &Address, old: Option<&Arc<Destination>>) -> Endpoint {
    let load = old.and_then(|old| {
        old.endpoints
            .iter()
            .find(|it| matches!(&it.place, Place::External(known) if known == address))
            .map(|it| it.load.clone())
    });
    Endpoint {
        place: Place::External(address.clone()),
        load: load.unwrap_or_default(),
    }
}

fn header(text: &impl std::fmt::Display) -> HeaderValue {
    HeaderValue::from_str(&text.to_string()).expect("names are ASCII")
}

impl View {
    /// The mesh ports of all peers in the road, and the nodes behind them.
    pub fn mesh_peers(&self) -> HashSet<(SocketAddr, &NodeName)> {
        self.destinations
            .values()
            .flat_map(|destination| &destination.endpoints)
            .filter_map(|endpoint| match &endpoint.place {
                Place::Instance(target) => Some((target.mesh, &target.node)),
                Place::External(_) => None,
            })
            .collect()
    }
}

impl View {
    /// Opens and closes the gates as the snapshot says.
    pub fn set_gates(&self, snapshot: &ProxySnapshot) {
        for wanted in &snapshot.local {
            if let Some(local) = self.local.get(&wanted.instance) {
                local.gate.set(wanted.gate, wanted.max_in_flight);
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use model::ids::Generation;

    use super::*;
    use crate::proxy::tls;

    /// Of a node on which nothing runs yet.
    pub fn snapshot() -> ProxySnapshot {
        ProxySnapshot {
            generation: Generation::default(),
            node: "a".parse().unwrap(),
            zone: "one".parse().unwrap(),
            region: "here".parse().unwrap(),
            mesh: SocketAddr::from(([192, 0, 2, 255], 7071)),
            trust: tls::tests::trust(),
            gateway: None,
            destinations: Vec::new(),
            local: Vec::new(),
            callers: Vec::new(),
            doors: Vec::new(),
            enforce_uid: false,
            owners: Vec::new(),
            refusals: None,
        }
    }
}
