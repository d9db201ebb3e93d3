//! What the proxy is told: the road, joined with what this node knows of its own instances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::boundary::KeyFingerprint;
use model::compute::DesiredInstance;
use model::ids::{Generation, InstanceId, ResourceId, ResourceName};
use model::traffic::{
    Address, Destination, Door, Gateway, Identity, LocalInstance, Protocol, ProxySnapshot, Road,
    Trust,
};
use model::units::Span;
use plan::agent::Instance;

use crate::core::at_port;
use crate::doors::Doors;
use crate::identity::NodeIdentity;
use crate::options::Config;

/// Everything it is made of.
pub struct Parts<'a> {
    pub generation: Generation,
    pub config: &'a Config,
    pub node: &'a NodeIdentity,
    pub services: BTreeMap<ResourceId, Identity>,
    pub instances: Vec<&'a Instance>,
    pub road: &'a Road,
    pub doors: &'a Doors,
    /// Of instances, and of instances at a named port.
    pub ports: &'a BTreeMap<InstanceId, u16>,
    pub removed: &'a BTreeSet<KeyFingerprint>,
    pub enforce_uid: bool,
}

pub fn snapshot(parts: Parts<'_>) -> ProxySnapshot {
    let config = parts.config;
    ProxySnapshot {
        generation: parts.generation,
        node: config.name.clone(),
        zone: config.zone.clone(),
        region: config.region.clone(),
        mesh: config.mesh,
        gateway: config.gateway.map(|listen| Gateway {
            listen,
            routes: parts.road.routes.clone(),
            trusted: config.trust_proxy.clone(),
            proxy_protocol: config.proxy_protocol.clone(),
        }),
        destinations: parts.road.destinations.clone(),
        local: parts
            .instances
            .iter()
            .flat_map(|instance| local(instance, &parts))
            .collect(),
        callers: parts.road.callers.clone(),
        doors: doors(&parts),
        enforce_uid: parts.enforce_uid,
        owners: parts.road.owners.clone(),
        refusals: parts.enforce_uid.then(|| refusals(config)),
        trust: Trust {
            cluster: parts.node.cluster.clone(),
            authority: parts.node.authority.clone(),
            node: parts.node.identity.clone(),
            services: parts.services,
            removed: parts.removed.clone(),
        },
    }
}

/// The first address of the node's block, which is no door's.
pub fn refusals(config: &Config) -> SocketAddr {
    SocketAddr::from((config.mesh_block.first, config.refusals_port))
}

/// An instance at its own port, and at each that has a name.
fn local(instance: &Instance, parts: &Parts<'_>) -> Vec<LocalInstance> {
    let address = instance.address().and_then(|address| address.parse().ok());
    let Some(address) = address else {
        return Vec::new();
    };
    let desired = instance.desired();
    let own = LocalInstance {
        instance: desired.instance.clone(),
        service: instance.service(),
        epoch: desired.epoch,
        address: Address::Tcp { address },
        protocol: desired.spec.protocol,
        max_in_flight: desired.spec.traffic.max_in_flight,
        gate: instance.gate(),
        uid: parts.enforce_uid.then_some(desired.uid),
        told_callers: desired.spec.engine().is_some(),
    };
    let at_ports = desired.spec.ports_of(&desired.service);
    let at_ports = at_ports.filter_map(|(name, port, protocol)| {
        let instance = at_port(desired, port)?;
        let address = SocketAddr::new(address.ip(), *parts.ports.get(&instance)?);
        Some(LocalInstance {
            instance,
            service: ResourceId::new(desired.instance.project.clone(), name),
            address: Address::Tcp { address },
            protocol,
            ..own.clone()
        })
    });
    at_ports.chain([own.clone()]).collect()
}

/// One for each need of each service here, whichever instance declares it.
fn doors(parts: &Parts<'_>) -> Vec<Door> {
    let mut doors: BTreeMap<SocketAddr, Door> = BTreeMap::new();
    for instance in &parts.instances {
        let desired = instance.desired();
        let caller = instance.service();
        for need in service_needs(desired) {
            let need_id = ResourceId::new(caller.project.clone(), need.clone());
            let Some(listen) = parts.doors.get(&caller, &need_id) else {
                continue;
            };
            let destination = destination(parts.road, &need_id);
            let callee = destination
                .map(|found| found.traffic.timeout)
                .unwrap_or_default();
            let asked = timeout(desired, need);
            let default = model::traffic::TrafficOptions::default().timeout;
            let fallback = if destination.is_some() {
                callee
            } else {
                default
            };
            let door = Door {
                listen,
                caller: caller.clone(),
                uid: desired.uid,
                need: need_id,
                protocol: destination.map_or(Protocol::Http, |found| found.protocol),
                timeout: asked.unwrap_or(fallback),
                once: is_delivered_to(desired, need),
            };
            doors.insert(listen, door);
        }
    }
    doors.into_values().collect()
}

/// What one call may take, if this caller says so.
fn timeout(desired: &DesiredInstance, need: &ResourceName) -> Option<Span> {
    // A port of what it needs goes by what it says of that.
    let need = desired.need_ports.get(need).unwrap_or(need);
    let declared = desired.spec.needs.get(need).and_then(|need| need.timeout);
    let settings = desired.settings.as_ref();
    declared.or_else(|| Some(settings?.subscriptions.get(need)?.timeout))
}

/// Whether a topic runs here, and this consumes it.
fn is_delivered_to(desired: &DesiredInstance, consumer: &ResourceName) -> bool {
    let settings = desired.settings.as_ref();
    settings.is_some_and(|settings| settings.subscriptions.contains_key(consumer))
}

/// The services that it calls: those needs that are no secrets, with their ports, and of a topic its consumers.
pub fn service_needs(desired: &DesiredInstance) -> impl Iterator<Item = &ResourceName> {
    // The password of a database goes by the database's name.
    let secret = |need: &&ResourceName| {
        !desired.logins.contains_key(*need)
            && desired.secrets.iter().any(|secret| secret.name == **need)
    };
    let needs = desired.spec.needs.keys();
    let consumers = desired.settings.iter();
    let consumers = consumers.flat_map(|settings| settings.subscriptions.keys());
    let ports = desired.need_ports.keys();
    needs
        .filter(move |need| !secret(need))
        .chain(ports)
        .chain(consumers)
}

pub fn destination<'a>(road: &'a Road, service: &ResourceId) -> Option<&'a Destination> {
    road.destinations
        .iter()
        .find(|destination| destination.service == *service)
}
