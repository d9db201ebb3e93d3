//! Making a manifest true: what is asked for, by whom alone, and what it does.

use std::collections::BTreeMap;

use jiff::Timestamp;
use model::boundary::{PrincipalName, SecretSource};
use model::compute::Service;
use model::ids::{ReleaseNumber, ResourceName};
use model::traffic::Route;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Kind;

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
    /// Go ahead where the data of a volume that is no longer named stays behind, used by nothing.
    #[serde(default)]
    pub leave_data: bool,
    /// Kept with each release that this makes, such as the commit it was built from. At most 500 characters, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
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

/// `PUT /v1/projects/{project}/deploys/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HoldDeploy {
    /// Who asks, for others to read: `root@laptop, pid 4711`.
    pub client: String,
}

/// Who deploys in a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deploy {
    pub id: String,
    pub holder: PrincipalName,
    pub client: String,
    pub since: Timestamp,
}
