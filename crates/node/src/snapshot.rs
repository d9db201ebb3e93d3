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
use crate::prepare::service_of;
use crate::record::Foreign;

/// Everything it is made of.
pub struct Parts<'a> {
    pub generation: Generation,
    pub config: &'a Config,
    pub node: &'a NodeIdentity,
    pub services: BTreeMap<ResourceId, Identity>,
    pub instances: Vec<&'a Instance>,
    /// What runs on as it was, for who wrote of it is of a later version.
    pub left: Vec<&'a Foreign>,
    pub ways: Ways<'a>,
    /// Of instances, and of instances at a named port.
    pub ports: &'a BTreeMap<InstanceId, u16>,
    pub removed: &'a BTreeSet<KeyFingerprint>,
    pub enforce_uid: bool,
}

/// How the services here reach what they need.
#[derive(Clone, Copy)]
pub struct Ways<'a> {
    pub road: &'a Road,
    pub doors: &'a Doors,
    /// What each service speaks, as far as is known.
    pub protocols: &'a BTreeMap<ResourceId, Protocol>,
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
            routes: parts.ways.road.routes.clone(),
            trusted: config.trust_proxy.clone(),
            proxy_protocol: config.proxy_protocol.clone(),
        }),
        destinations: parts.ways.road.destinations.clone(),
        local: parts
            .instances
            .iter()
            .flat_map(|instance| local(instance, &parts))
            .chain(parts.left.iter().flat_map(|left| left.local()))
            .collect(),
        callers: parts.ways.road.callers.clone(),
        doors: {
            let left = parts.left.iter().flat_map(|left| left.doors());
            let here = parts.instances.iter().map(|it| it.desired());
            doors(parts.ways, here, left)
        },
        enforce_uid: parts.enforce_uid,
        owners: parts.ways.road.owners.clone(),
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

/// One for each need of each service here, whichever instance declares it; and those that none declares any more, closed: what runs may hold their
/// URLs, and must not find somebody else there.
///
/// `left`: those of what is left as it was.
fn doors<'a>(
    ways: Ways<'_>,
    here: impl Iterator<Item = &'a DesiredInstance> + Clone,
    left: impl Iterator<Item = &'a Door>,
) -> Vec<Door> {
    let left = left.filter(|door| ways.doors.get(&door.caller, &door.need) == Some(door.listen));
    let mut doors: BTreeMap<SocketAddr, Door> =
        left.map(|door| (door.listen, door.clone())).collect();
    for desired in here.clone() {
        let caller = service_of(desired);
        for need in service_needs(desired) {
            let need_id = ResourceId::new(caller.project.clone(), need.clone());
            if let Some(listen) = ways.doors.get(&caller, &need_id) {
                let mut door = closed_door(ways, desired, need_id, listen);
                let callee = destination(ways.road, &door.need).map(|it| it.traffic.timeout);
                door.timeout = timeout(desired, need).or(callee).unwrap_or(door.timeout);
                door.once = is_delivered_to(desired, need);
                door.undeclared = false;
                doors.insert(listen, door);
            }
        }
    }
    for desired in here {
        for (need, listen) in ways.doors.of(&service_of(desired)) {
            let closed = || closed_door(ways, desired, need, listen);
            doors.entry(listen).or_insert_with(closed);
        }
    }
    doors.into_values().collect()
}

/// Where nobody is let in.
fn closed_door(ways: Ways<'_>, of: &DesiredInstance, need: ResourceId, listen: SocketAddr) -> Door {
    let spoken = destination(ways.road, &need).map(|it| it.protocol);
    let spoken = spoken.or_else(|| ways.protocols.get(&need).copied());
    Door {
        listen,
        caller: service_of(of),
        uid: of.uid,
        need,
        protocol: spoken.unwrap_or(Protocol::Http),
        timeout: model::traffic::TrafficOptions::default().timeout,
        once: false,
        undeclared: true,
    }
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

#[cfg(test)]
mod tests {
    use model::compute::Need;

    use super::*;
    use crate::record::testing::desired;

    #[test]
    fn what_runs_keeps_the_doors_that_it_declares_no_more_and_they_are_closed() {
        let id = |name: &str| format!("shop/{name}").parse::<ResourceId>().unwrap();
        let block = "127.77.16.0/24".parse().unwrap();
        let mut given = Doors::default();
        for (caller, need) in [("web", "cart"), ("web", "db"), ("webshop", "cart")] {
            given.give(block, &id(caller), &id(need), |_| true).unwrap();
        }
        let protocols = [(id("db"), Protocol::Tcp)].into();
        let road = Road::default();
        let ways = Ways {
            road: &road,
            doors: &given,
            protocols: &protocols,
        };
        let mut old = desired("web-1");
        old.spec.needs = ["cart", "db"]
            .map(|need| (need.parse().unwrap(), Need::default()))
            .into();
        let mut new = desired("web-2");
        new.spec
            .needs
            .insert("cart".parse().unwrap(), Need::default());
        let told = |here: &[&DesiredInstance]| {
            let doors = doors(ways, here.iter().copied(), [].iter());
            let told = doors.into_iter().map(|door| {
                assert_eq!((door.caller, door.uid), (id("web"), new.uid));
                (door.need.name.to_string(), (door.protocol, door.undeclared))
            });
            told.collect::<BTreeMap<_, _>>()
        };
        let (cart, db) = ("cart".to_owned(), "db".to_owned());
        let open = |protocol| (protocol, false);
        let all = [
            (cart.clone(), open(Protocol::Http)),
            (db.clone(), open(Protocol::Tcp)),
        ];
        assert_eq!(
            told(&[&old, &new]),
            all.clone().into(),
            "as long as one declares it"
        );
        let [cart, _] = all;
        assert_eq!(told(&[&new]), [cart, (db, (Protocol::Tcp, true))].into());
        assert_eq!(told(&[]), BTreeMap::new(), "nothing runs");
    }
}
