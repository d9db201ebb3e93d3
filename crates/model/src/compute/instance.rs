//! One instance: what its node is told of it, and what the node saw.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OnPartition, Purpose, Role, Service, Wanted, is_default};
use crate::control::Reason;
use crate::ids::{Epoch, InstanceId, ReleaseNumber, ResourceName};
use crate::state::{EngineSettings, Login};
use crate::units::Bytes;

/// All that a node needs to run one instance, from its placement and its release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DesiredInstance {
    pub instance: InstanceId,
    pub service: ResourceName,
    pub release: ReleaseNumber,
    pub epoch: Epoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    pub role: Role,
    #[serde(default, skip_serializing_if = "is_default")]
    pub purpose: Purpose,
    pub wanted: Wanted,
    /// The uid of the service on every machine where Mainland is root; unique per service in the cluster.
    pub uid: u32,
    pub spec: Service,
    /// The secrets among its needs and their versions: a node fetches the values for what is placed on it, and keeps them in memory only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretNeed>,
    /// Needs that must have an endpoint before its first start; the wait is at most 30 s.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_after: Vec<ResourceName>,
    /// Who it is to the databases among its needs. The password is fetched as a secret of the need's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub logins: BTreeMap<ResourceName, Login>,
    /// The named ports of what it needs, as they are called on the road, each with the need that it is a port of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub need_ports: BTreeMap<ResourceName, ResourceName>,
    /// For an engine: what it is to know beyond its spec. Changes restart nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<EngineSettings>,
}

impl DesiredInstance {
    /// Whether it may run only while its node holds the lease: where `on_partition: stop` and its place could be given to another. A member whose
    /// volumes live on one node can't be started elsewhere, cut off or not, so stopping it would protect nothing.
    pub fn needs_lease(&self) -> bool {
        let could_be_replaced = self.spec.volumes.is_empty() || self.role != Role::Member;
        self.spec.on_partition == OnPartition::Stop && could_be_replaced
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretNeed {
    pub name: ResourceName,
    pub file: bool,
}

/// What a node saw of one instance. Observation: travels in heartbeats, never stored by the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceReport {
    pub instance: InstanceId,
    pub service: ResourceName,
    pub release: ReleaseNumber,
    pub epoch: Epoch,
    pub state: InstanceState,
    /// Its probe answers; it may be sent requests.
    pub ready: bool,
    /// It was ready at some time since it was placed there, or has ended well: who was given its data may have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_ready: bool,
    /// Nothing of it ever ran there, so that it has written nothing. False where the node does not say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_started: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where it answers on its node: `127.0.0.1:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Starts after the first, on this node.
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// Why it is in this state: `crash loop: exit code 1, 5 restarts, next in 8 s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl InstanceReport {
    /// Of one of which nothing has happened yet.
    pub fn blank(
        instance: InstanceId,
        service: ResourceName,
        release: ReleaseNumber,
        epoch: Epoch,
    ) -> Self {
        Self {
            instance,
            service,
            release,
            epoch,
            state: InstanceState::Pending,
            ready: false,
            was_ready: false,
            never_started: false,
            pid: None,
            address: None,
            restarts: 0,
            started_at: None,
            last_exit: None,
            reason: None,
        }
    }
}

/// What a user reads in `ps`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// No node yet, or the node has not begun.
    Pending,
    /// Being prepared or executed; not yet ready for the first time.
    Starting,
    Running,
    /// Takes no new requests, finishes those it has.
    Draining,
    /// Ended because that was wanted.
    Stopped,
    /// Ended against the wish, or could not be started; a restart may follow after its back-off.
    Failed,
    /// A job that succeeded.
    Finished,
    /// Its node is not heard, or says a word of a later version.
    #[serde(other)]
    Unknown,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exit {
    #[serde(flatten)]
    pub how: ExitHow,
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "ended", rename_all = "kebab-case")]
pub enum ExitHow {
    Code {
        code: i32,
    },
    Signal {
        signal: i32,
    },
    /// The main process ended with 0, unasked, while others of it lived on: it went to the background. They were ended.
    Background {
        /// The names of those others, some of them.
        processes: Vec<String>,
    },
    /// The kernel killed it for its memory limit, read from the cgroup's counter.
    OutOfMemory {
        limit: Bytes,
    },
    /// It never ran: missing executable, corrupt artifact, no permission.
    NotStarted {
        error: String,
    },
    /// Its lease ran out; the shim stopped it.
    LeaseLost,
    /// The machine restarted or the shim died: how it ended is not known. Or it is said in a word of a later version.
    #[serde(other)]
    Unknown,
}
