//! What the store holds: its keys, and the types behind them.
//!
//! | key | value |
//! |---|---|
//! | `leader` | [`LeaderRecord`]: every write is conditioned on it |
//! | `service/{project}/{name}` | [`ServiceRecord`] |
//! | `route/{project}/{host}{path}` | `Route` |
//! | `secret/{project}/{name}` | [`SecretRecord`], the value sealed |
//! | `engine-secret/{project}/{name}` | [`SecretRecord`] of a database: nobody's but its own, kept as long as its data |
//! | `name/{project}/{name}` | [`NameRecord`]: names are unique across kinds |
//! | `release/{project}/{service}/{number}` | `Release` |
//! | `scale/`, `rollout/`, `placement/{project}/{service}` | `Scale`, `Rollout`, `PlacementGroup` |
//! | `uid/{number}` | [`UidRecord`]: whose it is or was |
//! | `deploy/{project}` | [`DeployRecord`]: who deploys there now |
//! | `forget/{project}/{service}` | [`ForgetRecord`]: whose volumes are to be deleted where |
//! | `node/{name}` | `NodeRecord` |
//! | `removed/{key}` | [`RemovedRecord`]: a node that was removed, by the fingerprint of its key |
//! | `token/{hash}` | `TokenRecord`: access and join tokens, by the hash of their text |
//! | `idempotency/{principal}/{key}` | [`IdempotencyRecord`] |
//! | `authority` | the cluster's authority, its key sealed |
//! | `audit/{sequence}`, `audit-head` | the audit log: a `Link` for each change, and the end of their chain. No part of the world |
//! | `refused/{time}` | what was refused until then, counted: `AuditRecord`s. No part of the world |
//! | `key/{project}/{name}` | a project's own small value: bytes as they came. Many, often written, and no part of the world |

use std::fmt;
use std::str::FromStr;

use boundary::token;
use jiff::Timestamp;
use model::boundary::{KeyFingerprint, PrincipalName, SecretSource};
use model::compute::{Service, Work};
use model::ids::{Digest, Epoch, NodeName, ProjectName, ReleaseNumber, ResourceId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub const LEADER: &str = "leader";
pub const AUTHORITY: &str = "authority";

/// Where all lies that the world is made of: the beginnings of every [`Key`].
pub const OF_THE_WORLD: [&str; 18] = [
    LEADER,
    AUTHORITY,
    "service/",
    "route/",
    "secret/",
    "engine-secret/",
    "name/",
    "release/",
    "scale/",
    "rollout/",
    "placement/",
    "uid/",
    "deploy/",
    "forget/",
    "node/",
    "removed/",
    "token/",
    "idempotency/",
];

/// Where the links of the audit log lie, and its head.
pub const AUDIT: &str = "audit/";
pub const AUDIT_HEAD: &str = "audit-head";
/// Where lies what was refused.
pub const REFUSED: &str = "refused/";

/// Where the keys of projects lie.
pub const KEYS: &str = "key/";

/// Where a record lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Leader,
    Authority,
    Service(ResourceId),
    Route(ProjectName, String),
    Secret(ResourceId),
    EngineSecret(ResourceId),
    Name(ResourceId),
    Release(ResourceId, ReleaseNumber),
    Scale(ResourceId),
    Rollout(ResourceId),
    Placement(ResourceId),
    Uid(u32),
    Deploy(ProjectName),
    Forget(ResourceId),
    Node(NodeName),
    Removed(KeyFingerprint),
    Token(token::Hash),
    Idempotency(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str(LEADER),
            Self::Authority => f.write_str(AUTHORITY),
            Self::Service(id) => write!(f, "service/{id}"),
            Self::Route(project, place) => write!(f, "route/{project}/{place}"),
            Self::Secret(id) => write!(f, "secret/{id}"),
            Self::EngineSecret(id) => write!(f, "engine-secret/{id}"),
            Self::Name(id) => write!(f, "name/{id}"),
            // Padded, so that the order of keys is the order of releases.
            Self::Release(id, number) => write!(f, "release/{id}/{:010}", number.0),
            Self::Scale(id) => write!(f, "scale/{id}"),
            Self::Rollout(id) => write!(f, "rollout/{id}"),
            Self::Placement(id) => write!(f, "placement/{id}"),
            Self::Uid(number) => write!(f, "uid/{number}"),
            Self::Deploy(project) => write!(f, "deploy/{project}"),
            Self::Forget(id) => write!(f, "forget/{id}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Removed(key) => write!(f, "removed/{key}"),
            Self::Token(hash) => write!(f, "token/{hash}"),
            Self::Idempotency(key) => write!(f, "idempotency/{key}"),
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

/// The text is none of our keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a key of this server")]
pub struct KeyError(String);

impl FromStr for Key {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse_key(text).ok_or_else(|| KeyError(text.to_owned()))
    }
}

fn parse_key(text: &str) -> Option<Key> {
    let Some((kind, rest)) = text.split_once('/') else {
        return match text {
            LEADER => Some(Key::Leader),
            AUTHORITY => Some(Key::Authority),
            _ => None,
        };
    };
    let id = || rest.parse::<ResourceId>().ok();
    Some(match kind {
        "service" => Key::Service(id()?),
        "route" => {
            let (project, place) = rest.split_once('/')?;
            Key::Route(project.parse().ok()?, place.to_owned())
        }
        "secret" => Key::Secret(id()?),
        "engine-secret" => Key::EngineSecret(id()?),
        "name" => Key::Name(id()?),
        "release" => {
            let (id, number) = rest.rsplit_once('/')?;
            Key::Release(id.parse().ok()?, ReleaseNumber(number.parse().ok()?))
        }
        "scale" => Key::Scale(id()?),
        "rollout" => Key::Rollout(id()?),
        "placement" => Key::Placement(id()?),
        "uid" => Key::Uid(rest.parse().ok()?),
        "deploy" => Key::Deploy(rest.parse().ok()?),
        "forget" => Key::Forget(id()?),
        "node" => Key::Node(rest.parse().ok()?),
        "removed" => Key::Removed(KeyFingerprint(rest.to_owned())),
        "token" => Key::Token(rest.parse().ok()?),
        "idempotency" => Key::Idempotency(rest.to_owned()),
        _ => return None,
    })
}

/// Who leads. Its epoch grows with each start of a server; a write of an older one fails on its condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    pub epoch: Epoch,
    pub since: Timestamp,
    /// Of the program that leads. `None`: one from before this was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where this cloud begins to give uids; each leader takes it over from the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_uid: Option<u32>,
    /// Since when a service keeps its share of a database while its copies run: since this cloud began, or was led by a version that knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_since: Option<Timestamp>,
}

/// A declared service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub spec: Service,
    /// `None` for an external service: it has no releases.
    pub current: Option<Current>,
    /// It was deleted: its instances leave, then its records go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removing: Option<Removing>,
}

/// Which release a service is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    pub number: ReleaseNumber,
    /// The oldest release whose instances need no restart to run this one: between the two only changed what is taken up without a
    /// restart (`replicas`, `traffic`, the options of needs).
    pub same_since: ReleaseNumber,
    /// Set by a rollback: the releases after this number were left by somebody on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<ReleaseNumber>,
}

impl Current {
    /// The number under which an instance of `release` counts.
    pub fn counts_as(&self, release: ReleaseNumber) -> ReleaseNumber {
        if self.same_since <= release && release <= self.number {
            self.number
        } else {
            release
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removing {
    pub delete_data: bool,
    pub by: PrincipalName,
    pub at: Timestamp,
}

/// A declared secret. Its value is sealed and leaves only for nodes that run what needs it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    pub source: SecretSource,
    /// 0: no value yet.
    pub version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<boundary::secret::Envelope>,
    /// When and by whom it got its value.
    pub changed_at: Timestamp,
    pub changed_by: PrincipalName,
}

/// Which kind has taken a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum NameRecord {
    Service,
    Secret,
}

impl fmt::Display for NameRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Secret => "secret",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRecord {
    /// Whose it is, or was.
    pub service: ResourceId,
    /// Since when it is nobody's: it rests, and is given anew when no other is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed_at: Option<Timestamp>,
}

/// Volumes whose deletion was asked for: the nodes that have not yet been told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetRecord {
    pub nodes: Vec<NodeName>,
}

/// A node that was removed, or whose name was given to another: its key opens nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedRecord {
    pub name: NodeName,
    pub at: Timestamp,
    pub by: PrincipalName,
}

/// Who deploys in a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRecord {
    /// Chosen by the client.
    pub id: String,
    pub holder: PrincipalName,
    /// What the client says of itself.
    pub client: String,
    pub since: Timestamp,
    pub renewed_at: Timestamp,
}

/// What a keyed POST was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// SHA-256 of method, path and body, hexadecimal.
    pub request: String,
    pub at: Timestamp,
    pub answer: serde_json::Value,
}

/// A record's bytes.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data")
}

/// A record that does not read as what its key says.
#[derive(Debug, thiserror::Error)]
#[error("the record `{key}` can't be read: {cause}")]
pub struct Unreadable {
    pub key: String,
    pub cause: serde_json::Error,
}

pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(value).map_err(|cause| Unreadable {
        key: key.to_owned(),
        cause,
    })
}

/// First and last uid given to services. Debian gives people 1000 to 59,999, systemd itself 60,001 to 65,519, and the first
/// range of `/etc/subuid` begins at 100,000; what lies here is free. <https://systemd.io/UIDS-GIDS/>
pub const UIDS: std::ops::RangeInclusive<u32> = 70_000..=99_999;
/// Two clouds of one machine, which know nothing of each other, each begin at another multiple of this, most likely: a uid that both
/// gave would be one user with two secrets.
const UID_BLOCK: u32 = 256;

/// Where a new cloud begins to give uids: by chance.
pub fn first_uid() -> u32 {
    let blocks = (UIDS.end() - UIDS.start()) / UID_BLOCK;
    UIDS.start() + SmallRng::from_os_rng().random_range(0..blocks) * UID_BLOCK
}

/// The artifact that some work runs.
pub fn artifact_of(work: &Work) -> Option<Digest> {
    match work {
        Work::Process { artifact, .. } => artifact.as_ref().map(|artifact| artifact.digest),
        Work::External { .. } | Work::Engine { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_form() {
        for text in [
            "leader",
            "authority",
            "service/shop/web",
            "route/shop/shop.localhost/api/v1",
            "route/shop/*/",
            "secret/shop/key",
            "engine-secret/shop/db",
            "name/shop/key",
            "release/shop/web/0000000012",
            "scale/shop/web",
            "rollout/shop/web",
            "placement/shop/web",
            "uid/70000",
            "deploy/shop",
            "forget/shop/db",
            "node/a",
            "removed/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "token/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "idempotency/admin:root/x",
        ] {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
            let beginnings = OF_THE_WORLD
                .iter()
                .filter(|begin| text.starts_with(**begin));
            assert_eq!(beginnings.count(), 1, "{text}");
        }
        for other in [
            "",
            "service/",
            "service/shop",
            "release/shop/web",
            "uid/x",
            "else/x",
        ] {
            assert!(other.parse::<Key>().is_err(), "{other}");
        }
    }

    #[test]
    fn instances_of_a_release_that_asks_no_restart_count_as_the_newest() {
        let current = Current {
            number: ReleaseNumber(5),
            same_since: ReleaseNumber(3),
            rolled_back_to: None,
        };
        for (release, counts) in [(2, 2), (3, 5), (4, 5), (5, 5), (6, 6)] {
            assert_eq!(
                current.counts_as(ReleaseNumber(release)),
                ReleaseNumber(counts)
            );
        }
    }
}
