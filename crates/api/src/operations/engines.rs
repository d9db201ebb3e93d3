//! Databases and topics, asked and told by who may.

use http::Method;
use serde_json::Value;

use super::{Operation, Shape, json_of, operation};

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "askEngine",
            Method::GET,
            "/v1/projects/{project}/engines/{name}/{*path}",
            Shape::Nothing,
            json_of::<Value>(),
            "Ask the engine of a database or topic: `status`; of a topic `messages` and `dead`; of a database `tables`",
        ),
        operation(
            "tellEngine",
            Method::POST,
            "/v1/projects/{project}/engines/{name}/{*path}",
            Shape::Bytes,
            json_of::<Value>(),
            "Tell the engine of a topic, at most 1 MiB: `messages` publishes, `redrive` and `discard` are about dead letters",
        ),
    ]
}
