//! A service as it was once declared, which a rollout moves to and a rollback returns to; and what overrides it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Service;
use crate::boundary::PrincipalName;
use crate::ids::{ReleaseNumber, ResourceName};

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
    /// What whoever made it says of it: `v1.4.2, abc123`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Its rollout was judged bad, and no later look took that back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// The oldest release whose instances need no restart to run this one. `None`: itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<ReleaseNumber>,
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
