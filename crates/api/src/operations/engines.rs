//! Databases and topics, asked and told by who may.

use http::Method;
use serde_json::Value;

use super::{Operation, Shape, json_of, operation, up_to};

const TOLD_MAX_BYTES: usize = 1 << 20;

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
        up_to(
            TOLD_MAX_BYTES,
            operation(
                "tellEngine",
                Method::POST,
                "/v1/projects/{project}/engines/{name}/{*path}",
                Shape::Bytes,
                json_of::<Value>(),
                "Tell the engine of a topic, at most 1 MiB: `messages` publishes, `redrive` and `discard` are about dead letters",
            ),
        ),
    ]
}
