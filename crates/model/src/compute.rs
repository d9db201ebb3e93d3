//! What runs the work: services, artifacts, releases, placements, instances.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::boundary::PrincipalName;
use crate::control::Reason;
use crate::ids::{
    Digest, Epoch, InstanceId, InstanceName, NodeName, ProjectName, ReleaseNumber, ResourceName,
};
use crate::state::Volume;
use crate::traffic::{Protocol, TrafficOptions};
use crate::units::{Bytes, MilliCpu, Span};

/// A workload of any kind, resolved: defaults and environment merged in, every option present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub work: Work,
    #[serde(default)]
    pub completion: Completion,
    pub replicas: u32,
    /// A weight when the node is contended, and what the scheduler counts.
    pub cpu: MilliCpu,
    /// A hard limit, and what the scheduler counts.
    pub memory: Bytes,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub needs: BTreeMap<ResourceName, Need>,
    #[serde(default)]
    pub protocol: Protocol,
    /// Failing = no traffic. The default: the port accepts.
    #[serde(default)]
    pub health: Probe,
    /// Failing = restart. The default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive: Option<Probe>,
    #[serde(default)]
    pub spread: Spread,
    pub on_partition: OnPartition,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<ResourceName, Volume>,
    #[serde(default)]
    pub traffic: TrafficOptions,
    #[serde(default)]
    pub rollout: RolloutOptions,
    /// Between SIGTERM and SIGKILL.
    #[serde(default = "default_grace")]
    pub grace: Span,
    /// Only nodes that carry all of these labels may run it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// SIGTERM to SIGKILL, as in Kubernetes' `terminationGracePeriodSeconds` divided by three: an online service that needs longer says so.
pub fn default_grace() -> Span {
    Span::seconds(10)
}

impl Service {
    /// An `external` service runs elsewhere and is only routed to: it has no release, placement or instance.
    pub fn is_external(&self) -> bool {
        matches!(self.work, Work::External { .. })
    }
}

/// What is executed, and by which runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "runtime", rename_all = "kebab-case")]
pub enum Work {
    /// A program of the machine or of the artifact, executed without a shell; `$VAR` and `${VAR}` expanded from its environment.
    Process {
        run: Vec<String>,
        /// Its copy is the working directory. `None`: an empty working directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        artifact: Option<ArtifactRef>,
    },
    /// Runs elsewhere, is only routed to: `host:port` each.
    External { addresses: Vec<String> },
}

/// What runs, by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactRef {
    pub digest: Digest,
    pub form: ArtifactForm,
    pub size: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ArtifactForm {
    /// One file, placed in the working directory under `name`, which may hold `/` (relative path).
    File { name: String, executable: bool },
    /// A folder as a deterministic tar: entries sorted by path, no times, no owners, mode bits kept.
    Folder,
}

/// Whether the work ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Completion {
    /// An exit, however good, is followed by a restart.
    #[default]
    Never,
    /// Exit code 0 is `finished`; anything else is tried again.
    OnSuccess,
}

/// One declared need, with what the caller asks of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// For the whole request, tries included. `None`: what the callee's `traffic.timeout` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// The caller can do without it: it does not delay the caller's start and does not make it unavailable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// For a secret: given as a file, whose path is in `NAME_FILE`, instead of as `NAME`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub file: bool,
}

/// How health is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    pub ask: Ask,
    #[serde(default = "ProbeTimes::default")]
    pub times: ProbeTimes,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Ask {
    /// The port accepts a connection.
    #[default]
    Connect,
    /// `GET path` answers 200 to 399.
    Http { path: String },
    /// The program, run as the instance's user in its working directory, exits 0.
    Exec { run: Vec<String> },
    /// Never asked: started is healthy. For work that listens on nothing.
    None,
}

/// How often, and how many answers make up a mind. A not-yet-ready instance is asked every 50 ms whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeTimes {
    pub every: Span,
    pub timeout: Span,
    /// Failures in a row until it counts as failing.
    pub failures: u32,
}

impl Default for ProbeTimes {
    fn default() -> Self {
        Self {
            every: Span::seconds(1),
            timeout: Span::seconds(1),
            failures: 2,
        }
    }
}

/// How instances are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    pub by: SpreadBy,
    /// A condition rather than a preference: an instance that would break it stays pending.
    #[serde(default)]
    pub require: bool,
}

impl Default for Spread {
    fn default() -> Self {
        Self {
            by: SpreadBy::Zone,
            require: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpreadBy {
    Region,
    Zone,
    Node,
}

/// What a node that is cut off from the servers does with the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnPartition {
    /// Goes on serving; a replacement may run beside it.
    Keep,
    /// Stops before anyone else may start its replacement. The default of anything with a volume.
    Stop,
}

/// Bounds of a rolling change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutOptions {
    /// Instances beyond the wanted number while it rolls. With `unavailable` 0 it is at least 1.
    pub surge: u32,
    /// Instances fewer than the wanted number while it rolls. With a volume it is at least 1, and `surge` 0.
    pub unavailable: u32,
    /// A new instance not ready after this stops the rollout, with the old version serving.
    pub ready_within: Span,
}

impl Default for RolloutOptions {
    fn default() -> Self {
        Self {
            surge: 1,
            unavailable: 0,
            ready_within: Span::seconds(60),
        }
    }
}

/// An immutable spec with its artifacts' digests; what a rollout moves to and a rollback returns to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    pub service: ResourceName,
    pub number: ReleaseNumber,
    pub spec: Service,
    pub author: PrincipalName,
    pub at: Timestamp,
    pub origin: ReleaseOrigin,
    /// What changed from the release before, a line each: `replicas: 2 → 3`.
    pub diff: Vec<String>,
    /// Its rollout was judged bad, and no later look took that back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum ReleaseOrigin {
    Apply,
    Rollback {
        to: ReleaseNumber,
    },
    /// The same spec once more, so that every instance is started anew.
    Restart,
}

/// The number of copies somebody asked for, apart from the file, owned by who set it. `apply` does not silently undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Scale {
    pub replicas: u32,
    pub owner: PrincipalName,
    pub at: Timestamp,
}

/// The decision that an instance of a release belongs on a node, with role and epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    pub instance: InstanceName,
    pub release: ReleaseNumber,
    pub node: NodeName,
    /// For an instance with volumes: which of the service's numbered sets of volumes it holds. 0-based.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    #[serde(default)]
    pub role: Role,
    /// Grows with each placement of the service; fences what an older one writes.
    pub epoch: Epoch,
    pub wanted: Wanted,
    /// Why it is here, stored with the decision.
    pub reason: Reason,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    #[default]
    Member,
    Primary,
    Standby,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// It runs and serves.
    Run,
    /// It leaves the road, then the machine. The placement goes when the node reports it gone, or the node is lost.
    Leave,
}

/// All placements of one service: one record in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementGroup {
    pub placements: Vec<Placement>,
    /// Copies that should exist and have no place, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Pending>,
    /// The number of the next instance of the service.
    pub next_instance: u64,
    pub next_epoch: Epoch,
    /// Where each numbered set of volumes has its home. Never forgotten but by deleting the data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub homes: BTreeMap<u32, NodeName>,
}

/// A copy without a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pending {
    /// The name it will have, so that it can be asked about.
    pub instance: InstanceName,
    pub release: ReleaseNumber,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    pub reason: Reason,
    pub since: Timestamp,
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
    /// Its node is not heard.
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
    /// The machine restarted or the shim died: how it ended is not known.
    Unknown,
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

/// The environment name of a need: `orders-db` → `ORDERS_DB`.
pub fn environment_name(name: &ResourceName) -> String {
    name.as_str().to_ascii_uppercase().replace('-', "_")
}

/// A service of a project with its name: what most code passes around.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedService {
    pub project: ProjectName,
    pub name: ResourceName,
    pub spec: Service,
}
