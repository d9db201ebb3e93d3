//! What an agent is told once, when it first starts, and from then on keeps in `agent.json`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use model::control::{Capacity, NodeRole};
use model::ids::{NodeName, RegionName, ZoneName};
use model::machine::Programs;
use model::traffic::Network;
use model::units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};

/// How an agent is run.
pub struct Options {
    /// This node's own directory; no other process but the node's own reads it.
    pub data_dir: PathBuf,
    /// The binary that is started as shim and as proxy: `std::env::current_exe()`.
    pub executable: PathBuf,
    pub version: String,
    /// Tells the time to certificates and stamps; everything else is counted on a monotonic clock.
    pub clock: boundary::Clock,
    /// What engines can run on here. May wait for a disk.
    pub programs: fn() -> Programs,
    pub given: Given,
}

/// What the command line says. At the first start name, zone, server and join token are needed; later each replaces what was kept, but for
/// name, zone, region and role, which must be the same.
#[derive(Default, Clone)]
pub struct Given {
    pub name: Option<NodeName>,
    pub region: Option<RegionName>,
    pub zone: Option<ZoneName>,
    pub role: Option<NodeRole>,
    /// The servers' port for nodes.
    pub server: Option<SocketAddr>,
    pub join_token: Option<String>,
    /// Default: all of the machine.
    pub cpu: Option<MilliCpu>,
    pub memory: Option<Bytes>,
    /// Where the proxy answers other proxies. Port 0: a free one, kept. Default `127.0.0.1:0`.
    pub mesh: Option<SocketAddr>,
    pub mesh_block: Option<Block>,
    pub ports: Option<Ports>,
    /// For an edge.
    pub gateway: Option<SocketAddr>,
    /// For an edge: balancers before the gateway whose `X-Forwarded-*` is believed. Empty: as before.
    pub trust_proxy: Vec<Network>,
    /// For an edge: balancers whose connections begin with the PROXY protocol. Empty: as before.
    pub proxy_protocol: Vec<Network>,
    pub labels: BTreeMap<String, String>,
}

/// What an agent is: `agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub name: NodeName,
    pub region: RegionName,
    pub zone: ZoneName,
    pub role: NodeRole,
    pub server: SocketAddr,
    pub capacity: Capacity,
    pub mesh: SocketAddr,
    pub mesh_block: Block,
    /// Where the proxy answers who dialled an instance's own port, on the first address of the block. 0: not chosen yet.
    #[serde(default)]
    pub refusals_port: u16,
    pub ports: Ports,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_proxy: Vec<Network>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol: Vec<Network>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A range of IPv4 addresses: `127.77.16.0/20`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub first: Ipv4Addr,
    pub prefix: u8,
}

/// The ports that a node gives to its instances: `20000-20999`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("this directory holds no node yet: its first start needs `--{0}`")]
    Missing(&'static str),
    #[error("this directory belongs to a node whose {what} is `{kept}`, not `{given}`")]
    Differs {
        what: &'static str,
        kept: String,
        given: String,
    },
    #[error("`{0}` is not a block of addresses such as `127.77.16.0/20`, with a prefix of 8 to 30")]
    Block(String),
    #[error("`{0}` is not a range of ports such as `20000-20999`")]
    Ports(String),
}

impl Default for Block {
    fn default() -> Self {
        Self {
            first: Ipv4Addr::new(127, 77, 0, 0),
            prefix: 20,
        }
    }
}

impl Block {
    /// How many addresses it has beside its first and last.
    pub fn usable(self) -> u32 {
        (1_u32 << (32 - self.prefix)) - 2
    }

    /// The nth usable one, from 0.
    pub fn address(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first) + 1 + index)
    }
}

impl FromStr for Block {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Block(text.to_owned());
        let (first, prefix) = text.split_once('/').ok_or_else(error)?;
        let first: Ipv4Addr = first.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let aligned = (8..=30).contains(&prefix)
            && u32::from(first).trailing_zeros() >= 32 - u32::from(prefix);
        aligned.then_some(Self { first, prefix }).ok_or_else(error)
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            first: 20_000,
            last: 20_999,
        }
    }
}

impl FromStr for Ports {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first >= 1024 && first <= last).then_some(Self { first, last })
        };
        parse().ok_or_else(|| Error::Ports(text.to_owned()))
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

macro_rules! text_form {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

text_form!(Block);
text_form!(Ports);

/// Joins what was kept with what is given. `machine` is what the whole machine has.
pub fn resolve(kept: Option<Config>, given: &Given, machine: Capacity) -> Result<Config, Error> {
    let config = match kept {
        Some(kept) => {
            must_be_same("name", &kept.name, &given.name)?;
            must_be_same("zone", &kept.zone, &given.zone)?;
            must_be_same("region", &kept.region, &given.region)?;
            if let Some(role) = given.role.filter(|role| *role != kept.role) {
                return Err(differs(
                    "role",
                    &format!("{:?}", kept.role),
                    &format!("{role:?}"),
                ));
            }
            kept
        }
        None => first(given, machine)?,
    };
    Ok(Config {
        server: given.server.unwrap_or(config.server),
        capacity: Capacity {
            cpu: given.cpu.unwrap_or(config.capacity.cpu),
            memory: given.memory.unwrap_or(config.capacity.memory),
        },
        mesh: given
            .mesh
            .filter(|mesh| mesh.port() != 0)
            .unwrap_or(config.mesh),
        mesh_block: given.mesh_block.unwrap_or(config.mesh_block),
        ports: given.ports.unwrap_or(config.ports),
        gateway: given.gateway.or(config.gateway),
        trust_proxy: given_or_kept(&given.trust_proxy, &config.trust_proxy),
        proxy_protocol: given_or_kept(&given.proxy_protocol, &config.proxy_protocol),
        labels: if given.labels.is_empty() {
            config.labels.clone()
        } else {
            given.labels.clone()
        },
        ..config
    })
}

fn given_or_kept(given: &[Network], kept: &[Network]) -> Vec<Network> {
    let chosen = if given.is_empty() { kept } else { given };
    chosen.to_vec()
}

fn must_be_same<T: PartialEq + ToString>(
    what: &'static str,
    kept: &T,
    given: &Option<T>,
) -> Result<(), Error> {
    match given {
        Some(given) if given != kept => Err(differs(what, &kept.to_string(), &given.to_string())),
        _ => Ok(()),
    }
}

fn differs(what: &'static str, kept: &str, given: &str) -> Error {
    Error::Differs {
        what,
        kept: kept.to_lowercase(),
        given: given.to_lowercase(),
    }
}

fn first(given: &Given, machine: Capacity) -> Result<Config, Error> {
    let role = given.role.unwrap_or(NodeRole::Worker);
    let edge = role == NodeRole::Edge;
    let name = given.name.clone().ok_or(Error::Missing("name"))?;
    let own_zone = || {
        if edge {
            ZoneName::new("edge").ok()
        } else {
            None
        }
    };
    given
        .join_token
        .as_ref()
        .ok_or(Error::Missing("join-token"))?;
    Ok(Config {
        zone: given
            .zone
            .clone()
            .or_else(own_zone)
            .ok_or(Error::Missing("zone"))?,
        region: given
            .region
            .clone()
            .unwrap_or_else(|| RegionName::new("local").expect("a name")),
        role,
        server: given.server.ok_or(Error::Missing("server"))?,
        capacity: if edge { Capacity::default() } else { machine },
        mesh: given
            .mesh
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
        mesh_block: given.mesh_block.unwrap_or_default(),
        refusals_port: 0,
        ports: given.ports.unwrap_or_default(),
        gateway: None,
        trust_proxy: Vec::new(),
        proxy_protocol: Vec::new(),
        labels: BTreeMap::new(),
        name,
    })
}

/// What the machine has.
pub fn machine() -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    Capacity {
        cpu: MilliCpu(cores * 1000),
        memory: Bytes(kibibytes.unwrap_or(0) * 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        Given {
            name: Some(NodeName::new("a").unwrap()),
            zone: Some(ZoneName::new("z").unwrap()),
            server: Some(SocketAddr::from(([127, 0, 0, 1], 7071))),
            join_token: Some("ml_join_x".to_owned()),
            ..Given::default()
        }
    }

    #[test]
    fn blocks_and_ports_read_like_a_table() {
        let block: Block = "127.77.16.0/20".parse().unwrap();
        assert_eq!(
            (block.usable(), block.address(0)),
            (4094, Ipv4Addr::new(127, 77, 16, 1))
        );
        assert_eq!(block.address(255), Ipv4Addr::new(127, 77, 17, 0));
        for bad in ["127.77.16.1/20", "127.0.0.0", "127.0.0.0/31", "x/8"] {
            assert!(bad.parse::<Block>().is_err(), "{bad}");
        }
        assert_eq!("20000-20999".parse::<Ports>().unwrap(), Ports::default());
        for bad in ["20000", "5-4", "80-90", "2-99999"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_start_needs_what_no_default_can_know() {
        type Unset = fn(&mut Given);
        let table: [(Unset, &str); 4] = [
            (|given| given.name = None, "name"),
            (|given| given.zone = None, "zone"),
            (|given| given.server = None, "server"),
            (|given| given.join_token = None, "join-token"),
        ];
        for (unset, missing) in table {
            let mut given = given();
            unset(&mut given);
            assert_eq!(
                resolve(None, &given, Capacity::default()),
                Err(Error::Missing(missing))
            );
        }
    }

    #[test]
    fn a_later_start_needs_nothing_and_keeps_who_it_is() {
        let config = resolve(None, &given(), Capacity::default()).unwrap();
        assert_eq!(
            resolve(Some(config.clone()), &Given::default(), machine()),
            Ok(config.clone())
        );
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
        let other = Given {
            name: Some(NodeName::new("b").unwrap()),
            ..Given::default()
        };
        let error = resolve(Some(config), &other, machine()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this directory belongs to a node whose name is `a`, not `b`"
        );
    }
}
