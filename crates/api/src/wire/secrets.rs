//! Secrets, and their values on the way to who needs them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use model::boundary::{PrincipalName, SecretSource};
use model::ids::ResourceName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// In the answer to a value: it has that one already, and there is no new version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
    /// In the answer to a new value: that nothing needs it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `PUT /v1/projects/{project}/secrets/{name}/value`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretValue {
    /// base64, at most 64 KiB decoded.
    pub value: String,
}

/// `GET /v1/nodes/{node}/secrets/{project}/{service}`: the values that the service's declared secrets have now. Debug is not derived.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretValues {
    /// base64 each.
    pub values: BTreeMap<ResourceName, String>,
}

/// `GET /v1/keyring`: the keys that seal secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Keyring {
    pub keys: Vec<RingKey>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RingKey {
    pub id: String,
    /// Whether what is sealed now is sealed by it.
    pub current: bool,
    /// How many secrets it seals, the key of the cluster's authority among them. An older key that seals none is forgotten at once.
    pub seals: usize,
}
