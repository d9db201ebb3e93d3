//! Version 1 of what travels in bodies.
//!
//! Domain types whose stored and shown forms are one (a `Service`, a `Release`, a `Heartbeat`) travel as they are; what a user reads is a
//! view of its own here, so that the inside can change without the outside.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use model::boundary::{PrincipalName, SecretSource};
use model::compute::{InstanceState, ReleaseOrigin, Scale, Service};
use model::control::{Capacity, NodeRole, Reason, Rollout};
use model::ids::{
    Digest, InstanceName, NodeName, ProjectName, RegionName, ReleaseNumber, ResourceName, ZoneName,
};
use model::traffic::Route;
use model::units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /v1/version`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    pub version: String,
    /// Empty to who has not shown a token.
    pub cluster: String,
}

/// `GET /v1/whoami`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WhoAmI {
    pub principal: PrincipalName,
    pub cluster: String,
}

/// `GET /v1/health`: the server answers; `ready` once the leader has loaded its world and decides.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    pub ready: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `DELETE /v1/nodes/{node}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRemoved {
    pub node: NodeName,
    /// Volumes that were on it. What needs one waits until its service is deleted with its data.
    pub lost_volumes: Vec<LostVolume>,
    pub dry_run: bool,
}

/// The volumes of one copy of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LostVolume {
    pub project: ProjectName,
    pub service: ResourceName,
    /// The number of the copy, from 0 on.
    pub slot: u32,
}

/// `POST /v1/brake/release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BrakeReleased {
    /// The nodes that are given up. None: the brake was not on.
    pub given_up: Vec<NodeName>,
}

/// A page of things, with the revision it was read at.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// Opaque. A watch from here misses nothing.
    pub revision: String,
}

/// `GET /v1/projects/{project}/keys`: a page of keys, in the order of names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Keys {
    pub items: Vec<KeyView>,
    pub revision: String,
    /// There are more after the last one: ask again with `?after=` its name.
    pub more: bool,
}

/// A key without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyView {
    pub name: String,
    /// Of its last change, as in the ETag.
    pub revision: String,
    pub size: Bytes,
}

/// What a key's change was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyWritten {
    pub revision: String,
}

/// One line of a watch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum WatchEvent {
    Put {
        kind: Kind,
        name: String,
        value: serde_json::Value,
        revision: String,
    },
    Deleted {
        kind: Kind,
        name: String,
        revision: String,
    },
    /// The past that was asked for is gone: list again and watch from there.
    Compacted { revision: String },
    /// All changes up to this revision have been told.
    Progress { revision: String },
}

/// The kinds of declared and decided things that are read, listed and watched by name.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Services,
    Routes,
    Secrets,
    Scales,
    Releases,
    Rollouts,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Services,
        Self::Routes,
        Self::Secrets,
        Self::Scales,
        Self::Releases,
        Self::Rollouts,
    ];

    /// As in the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Routes => "routes",
            Self::Secrets => "secrets",
            Self::Scales => "scales",
            Self::Releases => "releases",
            Self::Rollouts => "rollouts",
        }
    }
}

/// `POST /v1/projects/{project}/apply`: many resources in one step. Names that are absent stay as they are, unless `prune`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    #[serde(default)]
    pub services: BTreeMap<ResourceName, Service>,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub secrets: BTreeMap<ResourceName, SecretSource>,
    /// Values of secrets whose source is a file, base64. They never come back out.
    #[serde(default)]
    pub secret_values: BTreeMap<ResourceName, String>,
    /// Remove what the project has and this does not name. Volumes' data stays unless `delete_data`.
    #[serde(default)]
    pub prune: bool,
    #[serde(default)]
    pub delete_data: bool,
    /// Go ahead where the change undoes somebody's rollback.
    #[serde(default)]
    pub undo_rollback: bool,
}

/// What an apply did, or with `?dry_run=true` would do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
    pub dry_run: bool,
    pub revision: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    pub kind: Kind,
    pub name: String,
    pub action: Action,
    /// What it means for what runs: `3 instances roll`, `starts 2 instances in 3 zones`, `nothing restarts`.
    pub consequence: String,
    /// A line each: `replicas: 2 → 3`.
    pub diff: Vec<String>,
    /// The release that it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Create,
    Change,
    Remove,
    Keep,
}

/// A secret as anyone may see it: never its value.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretView {
    pub name: ResourceName,
    pub source: SecretSource,
    /// Grows with each new value. 0: none set yet.
    pub version: u64,
    /// The key that seals it.
    pub key_id: String,
    pub changed_at: Timestamp,
    pub changed_by: PrincipalName,
}

/// `PUT /v1/projects/{project}/secrets/{name}/value`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretValue {
    /// base64, at most 64 KiB decoded.
    pub value: String,
}

/// `PUT /v1/projects/{project}/scales/{service}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SetScale {
    pub replicas: u32,
}

/// `POST /v1/projects/{project}/services/{name}/rollback`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Rollback {
    /// `None`: the release before the current one that was ever ready.
    #[serde(default)]
    pub to: Option<ReleaseNumber>,
}

/// The answer to `restart` and `rollback`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    pub service: ResourceName,
    pub release: ReleaseNumber,
    pub consequence: String,
}

/// One line of `ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceView {
    pub name: InstanceName,
    pub service: ResourceName,
    pub node: Option<NodeName>,
    pub zone: Option<ZoneName>,
    pub state: InstanceState,
    pub ready: bool,
    pub pid: Option<u32>,
    pub address: Option<String>,
    pub restarts: u32,
    /// The release it runs.
    pub version: ReleaseNumber,
    pub project: ProjectName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// One line of `nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    pub name: NodeName,
    pub region: RegionName,
    pub zone: ZoneName,
    pub role: NodeRole,
    pub state: NodeState,
    /// Of its agent.
    pub pid: Option<u32>,
    /// Its mesh port.
    pub address: Option<SocketAddr>,
    pub capacity: Capacity,
    pub used: Capacity,
    pub cordoned: bool,
    pub reason: Reason,
    pub heard_ms_ago: Option<u64>,
    pub version: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Heard within the last interval.
    Ready,
    /// Not heard lately; not yet given up, or held by a brake.
    Silent,
    Lost,
    /// Joined, never heard by this leader.
    Unknown,
}

/// `GET /v1/projects/{project}/status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ProjectStatus {
    pub project: ProjectName,
    pub services: Vec<ServiceStatus>,
    pub routes: Vec<RouteStatus>,
    /// What a person should know first: a brake, lost nodes, crash loops, a zone that could not be carried.
    pub attention: Vec<Reason>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub name: ResourceName,
    pub wanted: u32,
    pub ready: u32,
    /// Instances by zone, ready ones only.
    pub zones: BTreeMap<ZoneName, u32>,
    pub release: Option<ReleaseNumber>,
    /// The older release that serves in place of `release`, whose rollout was judged bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<ReleaseNumber>,
    pub rollout: Option<Rollout>,
    pub scale: Option<Scale>,
    pub external: bool,
    pub needs: Vec<ResourceName>,
    /// Requests waiting for an endpoint, as nodes last told.
    pub demand: u32,
    pub reason: Option<Reason>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RouteStatus {
    pub host: String,
    pub path: String,
    pub to: ResourceName,
    pub serving: bool,
}

/// One line of `releases`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseView {
    pub service: ResourceName,
    pub number: ReleaseNumber,
    pub author: PrincipalName,
    pub at: Timestamp,
    pub origin: ReleaseOrigin,
    pub diff: Vec<String>,
    pub digest: Option<Digest>,
    /// It is what should serve.
    pub current: bool,
    /// Its rollout was judged bad.
    #[serde(default)]
    pub failed: bool,
}

/// `GET /v1/projects/{project}/explain/{subject}`: the stored reasons, newest decision first. The subject is a service, instance or route;
/// `GET /v1/nodes/{node}/explain` for a node.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    pub subject: String,
    /// `running on node b (zone b), release 3`.
    pub now: String,
    pub because: Vec<Because>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Because {
    pub at: Timestamp,
    /// Which stored decision says so: `placement`, `rollout`, `node`, `pending`, `event`, `release`.
    pub from: String,
    pub reason: Reason,
}

/// `PUT /v1/artifacts/{digest}`: begin or resume an upload. Chunks follow as `PATCH /v1/artifacts/{digest}?offset=N` with raw bytes;
/// the one that completes it verifies the digest.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BeginUpload {
    pub size: Bytes,
}

/// How far an upload is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UploadState {
    pub digest: Digest,
    pub size: Bytes,
    /// The next chunk goes here.
    pub received: Bytes,
    pub complete: bool,
}

/// Bytes in one chunk of an upload at most.
pub const CHUNK_MAX_BYTES: usize = 1 << 20;

/// `POST /v1/join-tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MakeJoinToken {
    /// The only name it lets in. `None`: any.
    pub node: Option<NodeName>,
    /// 60 to 86,400.
    pub valid_seconds: u64,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct MadeJoinToken {
    /// Carries the fingerprint of the authority, so that the joining node knows whom it talks to.
    pub token: String,
    /// The servers' node port.
    pub server: SocketAddr,
}

/// `POST /v1/join`, shown the join token as bearer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Join {
    pub name: NodeName,
    pub region: RegionName,
    pub zone: ZoneName,
    pub role: NodeRole,
    pub capacity: Capacity,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// A certificate signing request, PEM. The key stays with the node; the SPIFFE name is set by the authority.
    pub request: String,
}

/// The answer to `join` and to `POST /v1/nodes/{node}/renew`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Joined {
    pub cluster: String,
    pub authority: String,
    pub certificate: String,
}

/// `POST /v1/nodes/{node}/renew` (for itself) and `POST /v1/nodes/{node}/certificates/{project}/{service}` (for a service placed there).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRequest {
    pub request: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CertificateAnswer {
    pub certificate: String,
}

/// `GET /v1/nodes/{node}/secrets/{project}/{service}`: the values that the service's declared secrets have now. Debug is not derived.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretValues {
    /// base64 each.
    pub values: BTreeMap<ResourceName, String>,
}

/// `GET /v1/nodes/{node}/...` of the node's own socket and tunnel: what runs there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    pub node: NodeName,
    pub zone: ZoneName,
    pub instances: Vec<InstanceView>,
    /// Whether the servers answer.
    pub connected: bool,
    /// What this node cannot enforce and why: said once.
    pub limits: Vec<String>,
}

/// `POST .../exec`: the head of the stream, as query parameters do not carry lists well. First frame of the request body.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    pub command: Vec<String>,
    pub terminal: bool,
    /// Columns and rows.
    #[serde(default)]
    pub size: Option<(u16, u16)>,
}
