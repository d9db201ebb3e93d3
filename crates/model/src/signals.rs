//! What happened, and why: events.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::Reason;
use crate::ids::{NodeName, ProjectName};

/// Something that happened to a thing. Bounded in number on disk; the oldest go first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Grows by one with each event of the log that keeps it.
    pub sequence: u64,
    pub at: Timestamp,
    pub level: Level,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// What it happened to: the name of a resource, an instance or a node.
    pub subject: String,
    pub reason: Reason,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Info,
    Warning,
    /// Also what a later version calls otherwise.
    #[serde(other)]
    Error,
}

/// One line of an instance's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    pub at: Timestamp,
    pub stream: Stream,
    /// Without the newline; bytes that are not UTF-8 replaced; of at most 64 KiB.
    pub text: String,
    /// A piece of a longer line, which goes on in the next one of the same stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The very bytes, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl LogLine {
    /// A whole line of text.
    pub fn new(at: Timestamp, stream: Stream, text: impl Into<String>) -> Self {
        Self {
            at,
            stream,
            text: text.into(),
            partial: false,
            base64: None,
        }
    }
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    Stdout,
    Stderr,
    /// Said by the shim about the instance: started, exited, killed.
    Shim,
}
