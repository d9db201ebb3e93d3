//! What makes the declared true: nodes, rollouts, reasons, and what server and node tell each other.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::boundary::KeyFingerprint;
use crate::compute::InstanceReport;
use crate::ids::{
    Epoch, Generation, InstanceId, InstanceName, NodeName, RegionName, ReleaseNumber, ResourceId,
    SessionId, ZoneName,
};
use crate::machine::{Disk, Programs};
use crate::units::{Bytes, MilliCpu};

mod desired;

pub use desired::{Foreign, NodeDesired};

/// Why something is as it is: a stable code for programs, a sentence for people. Stored with the decision it explains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// Kebab-case and stable: `placed`, `volume-on-lost-node`, `crash-loop`, `node-lost`.
    pub code: String,
    pub message: String,
    /// What was weighed, a line each: `3 nodes rejected: not enough memory`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
}

impl Reason {
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            detail: Vec::new(),
        }
    }

    pub fn with_detail(mut self, detail: Vec<String>) -> Self {
        self.detail = detail;
        self
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What is decided about a node: one record in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRecord {
    pub name: NodeName,
    pub region: RegionName,
    pub zone: ZoneName,
    pub role: NodeRole,
    pub capacity: Capacity,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// No new placements, but of copies whose volumes have their home there.
    #[serde(default)]
    pub cordoned: bool,
    pub standing: Standing,
    /// Why it has this standing, stored with the decision.
    pub reason: Reason,
    pub joined_at: Timestamp,
    /// Who it is. `None`: it joined before this was kept, and says at its next renewal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyFingerprint>,
    /// The programs that it last said to have. `None`: it did not say, and counts as one that has all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Programs>,
    /// Where its agent ran when it was last heard. A server that has just begun waits for that one before it hears another.
    #[serde(
        rename = "runs_at",
        alias = "place",
        default,
        deserialize_with = "read_place",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<Place>")]
    pub place: Option<Place>,
}

/// Where an agent runs: one directory of one machine since its start. A copy of the directory is another place, and so is the same disk in another
/// machine. What is in it is stored and compared between versions: see [`fingerprint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// Of the directory, and of the machine as far as that goes by a name of its own. The same after a restart of the machine.
    pub folder: u64,
    /// Of the machine's start, by the kernel's random id of it. 0: an earlier version said `place`, one number for both, which is the folder's here.
    pub boot: u64,
}

impl Place {
    /// Whether an agent there is another one than at `other`. What an earlier version said can't be compared with what this one does, and is taken
    /// for the same: an agent may be replaced by a newer one while its node runs.
    pub fn is_elsewhere(&self, other: &Self) -> bool {
        self != other && (self.boot == 0) == (other.boot == 0)
    }

    /// Whether it is where `before` was, on a machine that was started anew since, and with it all that ran there.
    pub fn is_after_restart_of(&self, before: &Self) -> bool {
        self.folder == before.folder && self.boot != before.boot
    }
}

/// Reads a [`Place`] as this version says it (`runs_at`), or an earlier one (`place`, where 0 says nothing).
///
/// # Errors
///
/// It is no JSON. What is neither is passed over.
pub fn read_place<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Place>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Now(Place),
        Before(u64),
        Unknown(serde::de::IgnoredAny),
    }
    Ok(match Said::deserialize(from)? {
        Said::Now(place) => Some(place),
        Said::Before(0) | Said::Unknown(_) => None,
        Said::Before(folder) => Some(Place { folder, boot: 0 }),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// Runs instances.
    Worker,
    /// A front door: gateways, no instances; stands in no zone (its zone is named `edge`).
    Edge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Present,
    /// Not heard for too long, by decision: its replacements may start.
    Lost,
}

/// What a node has, or what is used of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    pub cpu: MilliCpu,
    pub memory: Bytes,
}

/// The move of a service from its old releases to a new one: one record in the store per service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rollout {
    pub to: ReleaseNumber,
    /// The release that serves if `to` is judged bad. `None` where none was ever good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ReleaseNumber>,
    pub phase: RolloutPhase,
    pub reason: Reason,
    pub started_at: Timestamp,
    /// When it last came closer: an instance became ready or left.
    pub progressed_at: Timestamp,
    /// The newest applied release that needs no `before_deploy` any more: it has run, or there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared: Option<ReleaseNumber>,
    /// Whose output says why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub culprit: Option<Culprit>,
}

/// An instance that a release was judged by. Its node keeps its output for a while after it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Culprit {
    pub instance: InstanceName,
    pub node: NodeName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutPhase {
    Rolling,
    Paused,
    Done,
    /// Judged bad: the new instances are removed, the old version serves.
    Failed,
}

/// What a node says each second, and at once when something changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    pub session: SessionId,
    /// Grows by one with each heartbeat of the session.
    pub sequence: u64,
    /// The generation of the last desired state that it took and that is on its disk.
    pub acknowledged: Generation,
    /// Why it follows a later one from memory alone, which its next start will not know of: its disk refuses. `None`: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unkept: Option<Reason>,
    /// Of the observed state after this heartbeat's changes: see [`observed_digest`].
    pub digest: u64,
    /// True: `changed` is all there is. Sent on connect and when the server asked.
    pub full: bool,
    pub changed: Vec<InstanceReport>,
    pub gone: Vec<InstanceId>,
    /// Requests that wait for a service without an endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub demand: Vec<Demand>,
    /// Where the node's proxy answers other proxies. `None` until it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<SocketAddr>,
    /// Of the agent process.
    pub pid: u32,
    pub version: String,
    /// What the server should show as events: bounded to 64 a heartbeat, the oldest kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<NodeEvent>,
    /// The node's wall clock when it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Where the agent runs. `None`: it does not say.
    #[serde(
        rename = "runs_at",
        alias = "place",
        default,
        deserialize_with = "read_place",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<Place>")]
    pub place: Option<Place>,
    /// Services whose volumes it was told to forget and has not: the disk refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_forgotten: Vec<ResourceId>,
    /// Of the node's directory. `None`: it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// `None`: it does not say, and counts as one that has all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Programs>,
    /// All that a person should know of instances here, each for as long as it is so: bounded to 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<Notice>,
}

/// Something about an instance that it can't be seen by, and that a person should mend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Notice {
    pub instance: InstanceId,
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeEvent {
    pub at: Timestamp,
    pub level: crate::signals::Level,
    /// `None`: the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Demand {
    pub service: ResourceId,
    pub waiting: u32,
}

/// The server's answer to a heartbeat. Its arrival renews the lease, counted from when the heartbeat was *sent*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatAnswer {
    /// The leader's epoch; lower than one seen before means a fenced leader, whose answer renews nothing.
    pub epoch: Epoch,
    /// The server's picture does not match `digest`: send all.
    pub send_full: bool,
}

/// A digest of observed state that both sides compute: order-independent, so that deltas can be folded in any order.
/// FNV-1a over each report's JSON, summed with wrap-around.
pub fn observed_digest<'a>(reports: impl IntoIterator<Item = &'a InstanceReport>) -> u64 {
    reports
        .into_iter()
        .map(report_digest)
        .fold(0, u64::wrapping_add)
}

fn report_digest(report: &InstanceReport) -> u64 {
    fingerprint(&serde_json::to_vec(report).expect("a report is plain data"))
}

/// FNV-1a of 64 bits. What one version stores or sends, and another compares, is made by this: the hashers of `std` may change with the compiler. It
/// keeps nobody out who wants a certain value.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
