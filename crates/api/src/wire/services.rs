//! A service that runs: its copies, releases and rollouts.

use jiff::Timestamp;
use model::boundary::PrincipalName;
use model::compute::{ReleaseOrigin, Scale};
use model::ids::{Digest, ReleaseNumber, ResourceName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `PUT /v1/projects/{project}/scales/{service}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SetScale {
    pub replicas: u32,
}

/// What somebody asked for, with what it means.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Scaled {
    #[serde(flatten)]
    pub scale: Scale,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
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
    /// What whoever made it says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub digest: Option<Digest>,
    /// It is what should serve.
    pub current: bool,
    /// Its rollout was judged bad.
    #[serde(default)]
    pub failed: bool,
}

/// The answer to `restart` and `rollback`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    pub service: ResourceName,
    pub release: ReleaseNumber,
    pub consequence: String,
}

/// `POST /v1/projects/{project}/services/{name}/rollback`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Rollback {
    /// `None`: the release before the current one that was ever ready.
    #[serde(default)]
    pub to: Option<ReleaseNumber>,
}

/// `POST /v1/projects/{project}/rollouts/{service}/steer`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SteerRollout {
    pub to: Steer,
}

/// What becomes of a rollout under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Steer {
    /// It stays at the mix of releases that there is.
    Pause,
    /// It goes on.
    Promote,
    /// It is given up as if judged bad: the release before serves.
    Abort,
}
