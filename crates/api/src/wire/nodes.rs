//! Machines: how one joins, what it is given, how it does, how it leaves.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use model::control::{Capacity, NodeRole, Place, Reason, read_place};
use model::ids::{NodeName, ProjectName, RegionName, ResourceName, ZoneName};
use model::machine::{Disk, Programs};
use model::units::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::InstanceView;

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
    /// The file system that its directory is on, as last heard: warned of at 80 %, called full at 95 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// The programs that engines run on, with the versions that it has. Absent: it does not say, and counts as having all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Programs>,
    /// What a person should mend there: it can't keep on its disk what it is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Reason>,
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
    /// The longest that it may take to stop with all that runs there: the graces of what runs, and what follows. An earlier version does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_within: Option<Span>,
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
    /// What engines can run on there. Absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Programs>,
    /// A certificate signing request, PEM. The key stays with the node; the SPIFFE name is set by the authority.
    pub request: String,
    /// The certificate that the machine had (PEM), if it was a node before, whether or not that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// The answer to `join` and to `POST /v1/nodes/{node}/renew`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Joined {
    pub cluster: String,
    pub authority: String,
    pub certificate: String,
    /// The server's wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// `POST /v1/nodes/{node}/renew`: a fresh certificate for a node that proves itself by its key, whatever became of its last one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Renew {
    /// Signed with the key that the node has joined with.
    pub request: String,
    /// Where the agent runs. Another place is refused while this one is heard. `None`: it does not say.
    #[serde(
        rename = "runs_at",
        alias = "place",
        default,
        deserialize_with = "read_place",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<Place>")]
    pub place: Option<Place>,
    /// The node's wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// `POST /v1/nodes/{node}/certificates/{project}/{service}`, for a service placed there. The request is signed with the node's own key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRequest {
    pub request: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CertificateAnswer {
    pub certificate: String,
}
