//! How requests move: routes, endpoints, roads, and what a proxy is told.
//!
//! A *road* is what the server tells a node about where others answer ([`Road`]). The agent joins it with what it knows of its own instances
//! into a [`ProxySnapshot`], which the proxy swaps in whole and also keeps on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::boundary::KeyFingerprint;
use crate::ids::{
    Epoch, Generation, InstanceId, NodeName, RegionName, ResourceId, ResourceName, ZoneName,
};
use crate::readable;
use crate::units::{QuantityError, Span};

/// What the `type` of every problem begins with, whoever answers; the code follows. A name, not an address to fetch (RFC 9457, 3.1.1).
pub const PROBLEM_TYPE: &str = "https://mainland.dev/problems/";

/// What an instance speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    #[default]
    Http,
    Tcp,
}

/// What a service asks of those who send it requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct TrafficOptions {
    /// For the whole request, tries included.
    pub timeout: Span,
    /// How long a request may wait for an endpoint when there is none.
    pub wait: Span,
    pub balance: Balance,
    /// Requests at one instance at a time, over all its callers; the rest wait or go elsewhere. 1 to 65,536.
    pub max_in_flight: u32,
    #[serde(skip_serializing_if = "Affinity::is_none")]
    pub affinity: Affinity,
}

impl Default for TrafficOptions {
    fn default() -> Self {
        Self {
            timeout: Span::seconds(30),
            wait: Span::seconds(10),
            balance: Balance::default(),
            max_in_flight: 1024,
            affinity: Affinity::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Power of two choices over peak EWMA of latency times requests in flight.
    #[default]
    LeastLatency,
    RoundRobin,
}

/// Whether a client's requests go to one instance as long as it is well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    #[default]
    None,
    /// By a cookie that the first answer sets.
    Cookie,
}

impl Affinity {
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// A door from outside: `host/path` → service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Route {
    /// Lower case, without port. `*` is every host that no other route names.
    pub host: String,
    /// A prefix on whole segments; `/` is all.
    pub path: String,
    pub to: ResourceName,
    /// Which of the service's named ports. `None`: its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<ResourceName>,
}

impl Route {
    /// What answers, as the manifest has it: `web`, or `broker:admin`.
    pub fn target(&self) -> String {
        match &self.port {
            Some(port) => format!("{}:{port}", self.to),
            None => self.to.to_string(),
        }
    }
}

/// Where an instance answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Address {
    Tcp {
        address: SocketAddr,
    },
    Unix {
        path: String,
    },
    /// Runs elsewhere; resolved when dialled.
    External {
        host: String,
        port: u16,
    },
}

/// One place where a service answers, as callers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    pub instance: InstanceId,
    pub epoch: Epoch,
    pub node: NodeName,
    pub zone: ZoneName,
    pub region: RegionName,
    /// The mesh port of the instance's node. Its own proxy knows the instance's port.
    pub mesh: SocketAddr,
}

/// Where one service answers, and what it asks of callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Destination {
    pub service: ResourceId,
    pub protocol: Protocol,
    pub traffic: TrafficOptions,
    pub endpoints: Vec<Endpoint>,
    /// For an external service: where it answers, instead of endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<Address>,
}

/// What the server tells a node about the way to others: only what the node's own instances need, and for an edge what routes name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Road {
    /// False while the leader has not yet heard from every node: then endpoints are only added to what is known, never removed.
    pub complete: bool,
    /// Without those whose words a reader does not know, as a later version speaks otherwise with them.
    #[serde(deserialize_with = "readable::those")]
    pub destinations: Vec<Destination>,
    /// For edge nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<GatewayRoute>,
    /// For each service with an instance here: who has declared the need, and may call.
    pub callers: Vec<Callers>,
    /// Where several nodes share one machine: whose uid is whose, as services of the others can dial what runs here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<Owner>,
}

/// The service that runs under a uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Owner {
    pub uid: u32,
    pub service: ResourceId,
}

/// A route of a project, as the gateway knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GatewayRoute {
    pub host: String,
    pub path: String,
    pub to: ResourceId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Callers {
    pub service: ResourceId,
    pub from: Vec<ResourceId>,
    /// Whether a route leads here, so that gateways may call.
    pub gateway: bool,
}

/// All that a proxy runs on. Swapped whole; kept on disk by the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxySnapshot {
    /// Of the agent's own counting: (leader epoch, counter), only growing.
    pub generation: Generation,
    pub node: NodeName,
    pub zone: ZoneName,
    pub region: RegionName,
    /// The one port of the machine that other proxies dial, mutual TLS. Bound once, for the life of the proxy.
    pub mesh: SocketAddr,
    pub trust: Trust,
    /// For an edge node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    #[serde(deserialize_with = "readable::those")]
    pub destinations: Vec<Destination>,
    /// The node's own instances, ready or not: what the gate guards.
    pub local: Vec<LocalInstance>,
    pub callers: Vec<Callers>,
    /// A loopback address per (caller, need).
    pub doors: Vec<Door>,
    /// Whether a door checks its caller by the socket owner's uid. Only where services have uids of their own.
    pub enforce_uid: bool,
    /// [`Road::owners`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<Owner>,
    /// Where the firewall sends who dials an instance's own port: the proxy names the missing need and lets nobody in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusals: Option<SocketAddr>,
}

/// Who the proxy is, and whom it believes. PEM texts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The cluster's id, part of every SPIFFE name: `spiffe://{cluster}/...`.
    pub cluster: String,
    /// The certificates of the cluster's authority.
    pub authority: String,
    /// The node's own.
    pub node: Identity,
    /// One for each service with an instance here. A connection to another node's proxy is made as the calling service.
    pub services: BTreeMap<ResourceId, Identity>,
    /// Of nodes that were removed: who shows one of these keys is not let in, though its certificate may not have ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<KeyFingerprint>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// A certificate chain and its key, both PEM. Debug shows neither.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    pub listen: SocketAddr,
    pub routes: Vec<GatewayRoute>,
    /// Balancers before the gateway, whose `X-Forwarded-*` is believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<Network>,
    /// Balancers before the gateway, each of whose connections begins with the PROXY protocol.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol: Vec<Network>,
}

/// Addresses that have their first bits in common: `10.0.0.0/8`, `2001:db8::/32`, or one address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix))
                    .unwrap_or(0);
                (first.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.prefix))
                    .unwrap_or(0);
                (first.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            text: text.to_owned(),
            expected: "a network: an address, or its first one and a number of bits, such as `10.0.0.0/8`",
        };
        let (first, prefix) = match text.split_once('/') {
            Some((first, prefix)) => (first, Some(prefix)),
            None => (text, None),
        };
        let first: IpAddr = first.parse().map_err(|_| error())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), str::parse).map_err(|_| error())?;
        if prefix > most {
            return Err(error());
        }
        Ok(Self { first, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An instance of this node, as its proxy knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalInstance {
    pub instance: InstanceId,
    pub service: ResourceId,
    pub epoch: Epoch,
    pub address: Address,
    pub protocol: Protocol,
    pub max_in_flight: u32,
    pub gate: Gate,
    /// Whose sockets are its service's: so that a caller is known by name also at a door that is not its own. `None`: uids say nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Whether each request says which service calls, in [`CALLER`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_callers: bool,
}

/// The header by which an engine is told which service calls: `PROJECT/SERVICE`. A proxy takes it off all that programs send.
pub const CALLER: &str = "mainland-caller";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    Open,
    /// Its probe fails, perhaps for load alone: new requests are refused as *not begun*; those in flight go on.
    Held,
    /// Not there, or not running: new requests are refused as *not begun*, and those waiting on it are given up as unreachable.
    Shut,
    /// On the way out: new requests are refused as *not begun*; those in flight are waited for.
    Leaving,
}

/// Where one caller reaches one of its needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    pub listen: SocketAddr,
    pub caller: ResourceId,
    /// The uid whose sockets are the caller's.
    pub uid: u32,
    pub need: ResourceId,
    pub protocol: Protocol,
    pub timeout: Span,
    /// What may have begun is never repeated, whatever the request says of itself, and nobody waits for a service without a copy: the caller
    /// counts its tries itself and comes again. So a topic delivers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub once: bool,
    /// The caller declares the need no more, and what runs of it may hold the URL still: who calls is refused, and nobody else can listen there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undeclared: bool,
}

/// What an agent tells its proxy, one JSON text a line, over the Unix socket in the node's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "kebab-case")]
pub enum ToProxy {
    Snapshot {
        snapshot: Box<ProxySnapshot>,
    },
    /// End: stop listening, finish what is in flight within `grace`, exit.
    Stop {
        grace: Span,
    },
}

/// What a proxy tells its agent, likewise. All of it is sent anew when an agent connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "kebab-case")]
pub enum FromProxy {
    /// It lives: said four times a second whatever else there is to say. One that says it no more is taken for stopped.
    Alive,
    /// The snapshot of this generation is what new requests see, but for what is to be listened on at these addresses, which are in use.
    Acknowledged {
        generation: Generation,
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        missing: BTreeSet<SocketAddr>,
    },
    /// The snapshot of this generation could not be taken (a door's address is in use, a certificate is broken): the last good one stays.
    Refused {
        generation: Generation,
        error: String,
    },
    /// The gate of a leaving instance is closed and nothing is in flight behind it.
    Drained { instance: InstanceId },
    /// Requests wait for a service that has no endpoint.
    Demand { service: ResourceId, waiting: u32 },
    /// A call was refused; counted and told at most once a second for each pair.
    CallRefused {
        caller: String,
        callee: ResourceId,
        count: u64,
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_its_first_bits() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db9::1", true),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert_eq!(
                parsed.contains(address.parse().unwrap()),
                inside,
                "{network} {address}"
            );
        }
        for wrong in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "a/8",
            "10.0.0.0/",
            "10.0.0.0/8/8",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
