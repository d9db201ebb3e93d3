//! Whatever is listed, read and watched by kind and name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// A page of things, with the revision it was read at.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// Opaque. A watch from here misses nothing.
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
