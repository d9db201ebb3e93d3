//! What runs, and commands beside it.

use jiff::Timestamp;
use model::compute::{InstanceState, Purpose};
use model::control::Reason;
use model::ids::{InstanceName, NodeName, ProjectName, ReleaseNumber, ResourceName, ZoneName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    #[serde(default)]
    pub purpose: Purpose,
    pub project: ProjectName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// `POST .../exec`: the head of the stream, as query parameters do not carry lists well. First frame of the request body.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    pub command: Vec<String>,
    pub terminal: bool,
    /// Columns and rows.
    #[serde(default)]
    pub size: Option<(u16, u16)>,
    /// What kind of terminal it is: `TERM` of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}
