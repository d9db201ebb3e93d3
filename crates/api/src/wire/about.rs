//! The server itself.

use model::boundary::PrincipalName;
use model::boundary::audit::{Head, Link};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /v1/version`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    pub version: String,
    /// Empty to who has not shown a token.
    pub cluster: String,
}

/// `GET /v1/health`: the server answers; `ready` once the leader has loaded its world and decides.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    pub ready: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `GET /v1/whoami`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WhoAmI {
    pub principal: PrincipalName,
    pub cluster: String,
}

/// `GET /v1/audit/chain`: a piece of the audit log, oldest first, and where all of it begins and ends.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AuditChain {
    pub head: Head,
    /// Empty: there is none from the record on that was asked for.
    pub links: Vec<Link>,
}
