//! What runs the work: services, artifacts, releases, placements, instances.
//!
//! | module | what it names |
//! |---|---|
//! | here | services and artifacts, as they are declared |
//! | `release` | releases, and the number of copies somebody asked for |
//! | `placement` | placements, and copies without a place |
//! | [`expansion`] | `$NAME` in `run` and `env` |
//! | [`programs`] | what the kernel takes of a program |
//! | `instance` | what a node is told of an instance, and what it saw |

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, ResourceName};
use crate::state::{Access, Engine, Login, Subscription, Volume};
use crate::traffic::{Protocol, TrafficOptions};
use crate::units::{Bytes, MilliCpu, Span};

pub mod expansion;
mod instance;
mod placement;
pub mod ports;
pub mod programs;
mod release;
pub mod variables;

pub use instance::{DesiredInstance, Exit, ExitHow, InstanceReport, InstanceState, SecretNeed};
pub use placement::{
    BEFORE_DEPLOY_FAILED, Pending, Placement, PlacementGroup, Purpose, Role, Wanted,
};
pub use release::{Release, ReleaseOrigin, Scale};

/// A workload of any kind, resolved: defaults and environment merged in, every option present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Service {
    pub work: Work,
    #[serde(default)]
    pub completion: Completion,
    pub replicas: u32,
    /// A weight when the node is contended, and what the scheduler counts.
    pub cpu: MilliCpu,
    /// A hard limit, and what the scheduler counts.
    pub memory: Bytes,
    /// Processes and threads of one instance together: what would be one more is refused to the program.
    #[serde(default = "default_pids", skip_serializing_if = "is_default_pids")]
    pub pids: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub needs: BTreeMap<ResourceName, Need>,
    /// The topics whose messages are pushed to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on: BTreeMap<ResourceName, Subscription>,
    /// A command that runs before a new release is rolled out, as the service; its failure stops the rollout. Empty: none. It runs once, and
    /// again only where it is not known how it ended: what it does must be safe to repeat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before_deploy: Vec<String>,
    #[serde(default)]
    pub protocol: Protocol,
    /// Ports beside its own, by name, with what is spoken there: see [`ports`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<ResourceName, Protocol>,
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

/// As many as a busy server with a thread per connection has, and an eighth of what a machine has by default.
pub fn default_pids() -> u32 {
    4096
}

fn is_default_pids(pids: &u32) -> bool {
    *pids == default_pids()
}

/// Where nothing is said.
const CPU: MilliCpu = MilliCpu(100);
const MEMORY: Bytes = Bytes::mebibytes(128);

impl Service {
    /// One copy of this work, and everything else as it is where a manifest says nothing.
    pub fn of(work: Work) -> Self {
        Self {
            work,
            completion: Completion::Never,
            replicas: 1,
            cpu: CPU,
            memory: MEMORY,
            pids: default_pids(),
            env: BTreeMap::new(),
            needs: BTreeMap::new(),
            on: BTreeMap::new(),
            before_deploy: Vec::new(),
            ports: BTreeMap::new(),
            protocol: Protocol::Http,
            health: Probe::default(),
            alive: None,
            spread: Spread::default(),
            on_partition: OnPartition::Keep,
            volumes: BTreeMap::new(),
            traffic: TrafficOptions::default(),
            rollout: RolloutOptions::default(),
            grace: default_grace(),
            labels: BTreeMap::new(),
        }
    }

    /// An `external` service runs elsewhere and is only routed to: it has no release, placement or instance.
    pub fn is_external(&self) -> bool {
        matches!(self.work, Work::External { .. })
    }

    /// What runs in its name before a release of it is rolled out: `before_deploy` in place of `run`, with the same artifact, environment and
    /// needs. Nobody calls it, nothing is asked of it, and volumes stay with the copies that hold them.
    pub fn before_deploy_work(&self) -> Self {
        self.apart_from_copies(self.before_deploy.clone())
    }

    /// The same with `command` in place of `run`, as an instance that is no copy.
    pub fn apart_from_copies(&self, command: Vec<String>) -> Self {
        let mut spec = self.clone();
        if let Work::Process { run, .. } = &mut spec.work {
            *run = command;
            spec.before_deploy.clear();
        }
        spec.completion = Completion::OnSuccess;
        spec.health.ask = Ask::None;
        spec.alive = None;
        spec.volumes.clear();
        spec.on.clear();
        spec.on_partition = OnPartition::Keep;
        spec
    }

    /// The engine that it is, where it was declared as a database or a topic.
    pub fn engine(&self) -> Option<&Engine> {
        match &self.work {
            Work::Engine { engine } => Some(engine),
            Work::Process { .. } | Work::External { .. } => None,
        }
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
    External {
        addresses: Vec<String>,
        /// For a database that runs elsewhere: who its callers are there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<ExternalLogin>,
    },
    /// Keeps data of users: a program of Mainland itself, which may supervise one of the machine.
    Engine { engine: Engine },
}

/// Who callers are to a database that runs elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExternalLogin {
    #[serde(flatten)]
    pub login: Login,
    /// The secret that holds the password. `None`: none is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<ResourceName>,
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
#[schemars(deny_unknown_fields)]
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
    /// For a database: what the caller may do there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub access: Access,
    /// For a database: connections at a time, over all copies of the caller. `None`: its share of what is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How health is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    pub ask: Ask,
    /// Which of the service's named ports is asked. `None`: the one that `PORT` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<ResourceName>,
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
    Http {
        path: String,
        /// The name in its `Host`; `None`: that of the first route that leads to the service, else the address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// The program, run as the instance's user in its working directory, exits 0.
    Exec { run: Vec<String> },
    /// The engine itself says so: see [`crate::state::ENGINE_SOCKET`].
    Engine,
    /// Never asked: what has run for a moment is healthy. For work that listens on nothing.
    None,
}

/// How often, and how many answers make up a mind. A not-yet-ready instance is asked every 50 ms whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
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
#[schemars(deny_unknown_fields)]
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
#[schemars(deny_unknown_fields)]
pub struct RolloutOptions {
    /// Instances beyond the wanted number while it rolls. With `unavailable` 0 it is at least 1.
    pub surge: u32,
    /// Instances fewer than the wanted number while it rolls. With a volume it is at least 1, and `surge` 0.
    pub unavailable: u32,
    /// A new instance not ready after this stops the rollout, with the old version serving.
    pub ready_within: Span,
    /// One new instance must stay ready this long, and no new one end meanwhile, before an old one is told to leave and before the rollout is
    /// done. Each further one must stay ready [`Self::SETTLED_AFTER`] of it.
    #[serde(
        default = "RolloutOptions::default_ready_for",
        skip_serializing_if = "RolloutOptions::is_default_ready_for"
    )]
    pub ready_for: Span,
}

impl RolloutOptions {
    /// What ends by itself soon after it answered mostly does so in the first instance already: those that follow are watched this long.
    pub const SETTLED_AFTER: Span = Span::seconds(1);

    /// More than Kubernetes' `minReadySeconds` (0), less than Nomad's `min_healthy_time` (10 s): what ends within the first seconds is caught with
    /// the old version serving, and one waits once for a rollout, not once for each of its instances.
    pub const fn default_ready_for() -> Span {
        Span::seconds(6)
    }

    /// Then it is not said: a node of an earlier version knows no such word, and takes nothing that has one.
    fn is_default_ready_for(ready_for: &Span) -> bool {
        *ready_for == Self::default_ready_for()
    }

    /// How long a further new instance must stay ready.
    pub fn settled_after(self) -> Span {
        self.ready_for.min(Self::SETTLED_AFTER)
    }
}

impl Default for RolloutOptions {
    fn default() -> Self {
        Self {
            surge: 1,
            unavailable: 0,
            ready_within: Span::seconds(60),
            ready_for: Self::default_ready_for(),
        }
    }
}

/// The environment name of a need: `orders-db` → `ORDERS_DB`.
pub fn environment_name(name: &ResourceName) -> String {
    name.as_str().to_ascii_uppercase().replace('-', "_")
}
