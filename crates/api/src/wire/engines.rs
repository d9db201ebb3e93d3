//! Databases and topics as they say themselves, and the messages of a topic.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use model::compute::InstanceState;
use model::control::Reason;
use model::ids::ResourceName;
use model::state::{Access, EngineStatus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A database or a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineView {
    pub name: ResourceName,
    pub kind: EngineKind,
    /// Of its instance.
    pub state: InstanceState,
    /// As the engine says itself. `None`: it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<EngineStatus>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Reason>,
    /// For a database: who may do what. Each service has a role of its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub access: BTreeMap<ResourceName, Access>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    Database,
    Topic,
}

/// A page of a topic's messages or dead letters: `GET …/engines/{topic}/messages?after=POSITION&limit=N`, `…/dead?consumer=&after=&limit=`. It may be
/// shorter than was asked for, and is empty only at the end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Messages<T> {
    pub messages: Vec<T>,
}

/// A message that lies in a topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// Grows with each message of the topic.
    pub position: u64,
    pub published: Timestamp,
    /// In the JSON format of CloudEvents.
    pub event: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// `type`, `id`, `partitionkey`, …
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.event.get(name)?.as_str()
    }

    /// What was published: JSON as a text.
    pub fn data(&self) -> Vec<u8> {
        let content_type = self.attribute("datacontenttype").unwrap_or_default();
        let is_json = content_type.contains("json");
        match (self.event.get("data"), self.attribute("data_base64")) {
            (Some(serde_json::Value::String(text)), _) if !is_json => text.clone().into_bytes(),
            (Some(json), _) => json.to_string().into_bytes(),
            (None, Some(base64)) => STANDARD.decode(base64).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }
}

/// A message that one consumer could not take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    pub consumer: ResourceName,
    #[serde(flatten)]
    pub message: Message,
    pub attempts: u32,
    /// What the last delivery was answered.
    pub error: String,
    pub died: Timestamp,
}

/// What a topic answers to who publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Published {
    /// Of each message, in the order of the request.
    pub positions: Vec<u64>,
    /// Messages that were there already.
    pub duplicates: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_an_event_is_what_was_published() {
        for (event, expected) in [
            (
                r#"{"datacontenttype":"application/json","data":{"a":[1]}}"#,
                r#"{"a":[1]}"#,
            ),
            (
                r#"{"datacontenttype":"application/json","data":"text"}"#,
                r#""text""#,
            ),
            (r#"{"datacontenttype":"text/plain","data":"text"}"#, "text"),
            (r#"{"data_base64":"dGV4dA=="}"#, "text"),
            ("{}", ""),
        ] {
            let message = Message {
                position: 1,
                published: Timestamp::UNIX_EPOCH,
                event: serde_json::from_str(event).unwrap(),
            };
            assert_eq!(message.data(), expected.as_bytes(), "{event}");
        }
    }
}
