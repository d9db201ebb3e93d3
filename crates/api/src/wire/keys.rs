//! The small durable values of a project.

use model::units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
