//! Where data lives: volumes, and the engines that keep databases and topics.
//!
//! A database or a topic is declared in a few words and becomes an ordinary service with a volume ([`crate::compute::Work::Engine`]): placed, fenced,
//! moved, released and explained like any other, under the one name it was declared by. Its process is the engine. What an engine must know beyond
//! its spec changes while it runs ([`EngineSettings`]), so a new reader of a database or a new consumer of a topic restarts nothing.

pub mod extensions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::compute::Service;
use crate::ids::{ProjectName, ResourceName};
use crate::machine::POSTGRES;
use crate::units::{Bytes, Span};

/// A folder that outlives the instance that writes it. It has one home, the node where it was first made, and an instance with a
/// volume never starts elsewhere empty. The instance finds it as `./NAME` in its working directory and as `$NAME_DIR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Volume {
    /// What the scheduler sets aside. Bytes.
    pub size: Bytes,
}

/// The volume of every engine: `$DATA_DIR`.
pub const ENGINE_VOLUME: &str = "data";

/// What keeps the bytes of one kind of state, as the work of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Engine {
    Postgres(Postgres),
    Topic(Topic),
}

impl Engine {
    /// What users call it.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "database",
            Self::Topic(_) => "topic",
        }
    }

    /// What it runs on that a machine may lack: the key in [`crate::machine::Programs`], and the version. `None`: this very binary is enough.
    pub fn program(&self) -> Option<(&'static str, u32)> {
        match self {
            Self::Postgres(postgres) => Some((POSTGRES, postgres.version)),
            Self::Topic(_) => None,
        }
    }
}

/// A managed PostgreSQL: one database, named as the resource with `_` for `-`, and a role for each service that needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Postgres {
    /// The major version, as found on the machine.
    pub version: u32,
    /// The topic that committed rows of the table `TOPIC` (with `_` for `-`) become messages of: at least once, in commit order per key.
    /// The engine makes the table, with the columns `id`, `key`, `type`, `data` and `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<ResourceName>,
    /// What is asked of extensions, by their names. At most [`extensions::MOST`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, extensions::Wish>,
}

/// A queue of messages that separates who publishes from who consumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Topic {
    /// Deliveries of one message to one consumer until it goes to the dead letter. 1 to 100.
    pub attempts: u32,
    pub retention: Retention,
}

/// How much of what every consumer is done with is kept. What a consumer still waits for is never removed: a topic that is full of it
/// refuses new messages instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Retention {
    pub age: Span,
    pub size: Bytes,
}

/// How a topic's messages are pushed to one service: its `on:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Subscription {
    /// Where each message is posted, as a CloudEvent.
    pub path: String,
    /// Messages on their way at one time, over all copies of the service. 1 to 1,024.
    pub max_in_flight: u32,
    /// How long one delivery may take.
    pub timeout: Span,
}

/// What a need may do with what is needed, each more than the one before. Databases know the first two, topics the last two; everything else only
/// [`Access::Write`].
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    Read,
    #[default]
    Write,
    /// To pull from a topic, besides publishing to it.
    Consume,
}

/// What an engine is told by the leader beyond its spec. It changes while the engine runs, and restarts nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineSettings {
    /// For a database: the services that need it. Each has a role of its own name, whose password is [`EngineFile::secret`] and the role's name
    /// under HMAC-SHA256, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<ResourceName, Access>,
    /// For a database: of these, whose number of connections is declared. While copies of several releases run, the largest that one declares.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub connections: BTreeMap<ResourceName, u32>,
    /// For a database: of those with a number, who also has copies that count on an equal share: they have that where it is more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sharing: BTreeSet<ResourceName>,
    /// For a database: of a service, those that came after the oldest of its copies that run was released. Until that is replaced, the service
    /// keeps what it had before they came.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub newcomers: BTreeMap<ResourceName, BTreeSet<ResourceName>>,
    /// For a topic: the services that it is pushed to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subscriptions: BTreeMap<ResourceName, Subscription>,
    /// For a topic: the services that may pull.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub consumers: BTreeSet<ResourceName>,
}

/// What an engine's process finds in the file named by [`ENGINE_FILE`]. The agent replaces it whole (by rename) when it changes; the engine
/// looks at it again at least every second. Holds a secret, so it lies in memory and only the engine's user reads it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFile {
    pub project: ProjectName,
    pub name: ResourceName,
    pub engine: Engine,
    /// The limit of its memory, which an engine tunes itself by.
    pub memory: Bytes,
    pub settings: EngineSettings,
    /// Of the database: what its passwords are derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Where the services that it calls answer: a topic's consumers, the topic of a database's outbox.
    pub doors: BTreeMap<ResourceName, SocketAddr>,
}

/// The environment variable with the path of the [`EngineFile`].
pub const ENGINE_FILE: &str = "MAINLAND_ENGINE_FILE";

/// The environment variable with the path of the Unix socket on which an engine answers its node over HTTP/1.1: `GET /health` with 200 once it
/// serves and 503 with the reason as text before, `GET /status` with [`EngineStatus`], and what else the engine offers.
pub const ENGINE_SOCKET: &str = "MAINLAND_ENGINE_SOCKET";

/// How an engine is, as itself says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EngineStatus {
    Postgres {
        /// `15.8`.
        version: String,
        size: Bytes,
        connections: u32,
        connections_max: u32,
        /// Of each service.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        shares: BTreeMap<ResourceName, Share>,
        /// Rows of the outbox that are not messages yet.
        outbox_backlog: u64,
        outbox_oldest_ms: u64,
        /// Those that are declared, and those that were.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        extensions: BTreeMap<String, extensions::ExtensionStatus>,
    },
    Topic {
        messages: u64,
        size: Bytes,
        consumers: BTreeMap<ResourceName, ConsumerStatus>,
    },
}

/// What one service has of a database's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Share {
    pub connections: u32,
    pub most: u32,
}

/// How far one consumer of a topic is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsumerStatus {
    /// Messages that it is not done with; those in the dead letter are not counted.
    pub backlog: u64,
    /// Of the oldest of them, since it was published. Milliseconds.
    pub oldest_ms: u64,
    pub in_flight: u32,
    /// Messages whose last delivery failed and that will be tried again.
    pub retrying: u64,
    pub dead: u64,
    /// The service that pulls under this name; `None`: the one of this name, which it is pushed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ResourceName>,
}

/// Which dead letters `POST /redrive` delivers anew, or `POST /discard` gives up: of one consumer or all, at these positions or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadLetters {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<ResourceName>,
    /// At most 1,000. `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<Vec<u64>>,
}

/// The answer to `POST /redrive`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Redriven {
    pub redriven: u64,
}

/// The answer to `POST /discard`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Discarded {
    pub discarded: u64,
}

/// A table of a database: `GET /tables` answers with a list of them, without those of PostgreSQL and of the engine itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// As PostgreSQL estimates them.
    pub rows: u64,
    /// With its indexes.
    pub size: Bytes,
}

/// Who a caller is to a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Login {
    pub user: String,
    pub database: String,
}

/// The password of a role: HMAC-SHA256 (RFC 2104) of the role's name under the database's secret, as hexadecimal digits.
pub fn role_password(secret: &str, role: &ResourceName) -> String {
    const BLOCK: usize = 64;
    let mut key = [0; BLOCK];
    match secret.len() {
        0..=BLOCK => key[..secret.len()].copy_from_slice(secret.as_bytes()),
        _ => key[..32].copy_from_slice(&Sha256::digest(secret)),
    }
    let inner = Sha256::new()
        .chain_update(key.map(|byte| byte ^ 0x36))
        .chain_update(role.as_str())
        .finalize();
    let outer = Sha256::new()
        .chain_update(key.map(|byte| byte ^ 0x5c))
        .chain_update(inner)
        .finalize();
    outer.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stops all that depends on it when its one copy or its machine is lost: each engine of a project, with who depends on it.
pub fn single_points<'a>(
    services: impl IntoIterator<Item = (&'a ResourceName, &'a Service)>,
) -> Vec<String> {
    let services: Vec<_> = services.into_iter().collect();
    let users = |name: &ResourceName| -> Vec<&str> {
        let uses = |spec: &Service| {
            let needed = spec.needs.get(name);
            needed.is_some_and(|need| !need.optional) || spec.on.contains_key(name)
        };
        let using = services.iter().filter(|(_, spec)| uses(spec));
        using.map(|(user, _)| user.as_str()).collect()
    };
    let told = |name: &ResourceName, engine: &Engine| {
        let noun = engine.noun();
        let depend = match users(name).as_slice() {
            [] => String::new(),
            [one] => format!("; {one} depends on it"),
            many => format!("; {} depend on it", many.join(", ")),
        };
        format!(
            "the {noun} {name} has one copy, on the node of its volume: while that is down, so is the {noun}{depend}"
        )
    };
    let engines = services
        .iter()
        .filter_map(|(name, spec)| Some(told(name, spec.engine()?)));
    engines.collect()
}

/// Who runs once by the file's word, and is needed: an engine is told of by [`single_points`]. The number is that of the copies wanted.
pub fn lone_services<'a>(
    services: impl IntoIterator<Item = (&'a ResourceName, &'a Service, u32)>,
) -> Vec<String> {
    let services: Vec<_> = services.into_iter().collect();
    let callers = |name: &ResourceName| -> Vec<&str> {
        let needs = |spec: &Service| spec.needs.get(name).is_some_and(|need| !need.optional);
        let callers = services.iter().filter(|(_, spec, _)| needs(spec));
        callers.map(|(caller, ..)| caller.as_str()).collect()
    };
    let single = services
        .iter()
        .filter(|(_, spec, wanted)| *wanted == 1 && spec.engine().is_none() && !spec.is_external());
    single
        .map(|(name, ..)| (name, callers(name)))
        .filter(|(_, callers)| !callers.is_empty())
        .map(|(name, callers)| {
            format!(
                "{name} runs once: when it fails, so does {}",
                callers.join(", ")
            )
        })
        .collect()
}

/// Connections of services that a managed database has, by its memory: one for each 6 MiB, since each is a process of 2 to 5 MiB.
pub fn connections(memory: Bytes) -> u32 {
    let mebibytes = memory.0 / Bytes::mebibytes(1).0;
    u32::try_from((mebibytes / 6).clamp(20, 200)).unwrap_or(20)
}

/// Of so many connections, those that equal shares leave over: a service that comes has them while the others run as they were told before.
pub fn kept_for_newcomers(connections: u32) -> u32 {
    (connections / 8).max(3)
}

/// A name of the database's own making: PostgreSQL's names take no `-` without quotes.
pub fn database_name(name: &ResourceName) -> String {
    name.as_str().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `openssl dgst -sha256 -hmac SECRET`.
    #[test]
    fn passwords_are_what_others_derive() {
        let role = ResourceName::new("checkout").unwrap();
        for (secret, expected) in [
            (
                "0123456789abcdef",
                "38c8dc9fd3484e1ffdd296ab2aa40f799438526a3c4f63f1aaf211b792cc7ccf",
            ),
            (
                &"ab".repeat(40),
                "62a610ffd119905618810b85bf97351912ec696fd1715d366bea6508142d3180",
            ),
        ] {
            assert_eq!(role_password(secret, &role), expected);
        }
    }
}
