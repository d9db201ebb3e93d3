//! How a project does, and why a thing is as it is.

use std::collections::BTreeMap;

use jiff::Timestamp;
use model::compute::Scale;
use model::control::{Reason, Rollout};
use model::ids::{ProjectName, ReleaseNumber, ResourceName, ZoneName};
use model::traffic::Protocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EngineView;

/// `GET /v1/projects/{project}/status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ProjectStatus {
    pub project: ProjectName,
    pub services: Vec<ServiceStatus>,
    pub routes: Vec<RouteStatus>,
    /// Databases and topics, as they say themselves. Empty with `?engines=false`, which waits for nobody.
    #[serde(default)]
    pub engines: Vec<EngineView>,
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
    /// Its ports beside its own, and what is spoken there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<ResourceName, Protocol>,
    /// Requests waiting for an endpoint, as nodes last told.
    pub demand: u32,
    pub reason: Option<Reason>,
    /// Why what is lacking can't come until somebody changes the file, a secret or the machines. Absent: nothing is, or it may still come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<Reason>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RouteStatus {
    pub host: String,
    pub path: String,
    pub to: ResourceName,
    /// Which of the service's named ports. `None`: its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<ResourceName>,
    pub serving: bool,
}

impl RouteStatus {
    /// `web`, or `broker:admin`.
    pub fn target(&self) -> String {
        match &self.port {
            Some(port) => format!("{}:{port}", self.to),
            None => self.to.to_string(),
        }
    }
}

/// `GET /v1/projects/{project}/explain/{subject}`: what now stands in the way first, then the stored reasons, newest decision first. The
/// subject is a service, instance or route; `GET /v1/nodes/{node}/explain` for a node.
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
    /// What it is about, where that is not what was asked for: an instance (of a node's explanation as `project/instance`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// So many other instances are as they are for the same reason.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub others: u32,
    /// Who says so: a stored decision (`placement`, `rollout`, `node`, `pending`, `event`, `release`), or the node (`report`).
    pub from: String,
    pub reason: Reason,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
