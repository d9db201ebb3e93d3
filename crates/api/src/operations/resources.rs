//! What is declared and decided, by kind and name.

use http::Method;
use model::compute::Service;
use serde_json::Value;

use super::{Operation, Shape, json_of, operation, up_to};
use crate::wire;

const SERVICE_MAX_BYTES: usize = 1 << 20;
/// The longest value, 64 KiB, as base64.
const SECRET_MAX_BYTES: usize = 128 << 10;

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "listResources",
            Method::GET,
            "/v1/projects/{project}/{kind}",
            Shape::Nothing,
            json_of::<wire::List<Value>>(),
            "Resources of a kind; `?watch=true&from=REVISION` streams changes",
        ),
        operation(
            "getResource",
            Method::GET,
            "/v1/projects/{project}/{kind}/{name}",
            Shape::Nothing,
            json_of::<Value>(),
            "One resource; its revision is the ETag",
        ),
        up_to(
            SERVICE_MAX_BYTES,
            operation(
                "putService",
                Method::PUT,
                "/v1/projects/{project}/services/{name}",
                json_of::<Service>(),
                json_of::<wire::Applied>(),
                "Apply one service; `If-Match` makes it conditional",
            ),
        ),
        operation(
            "deleteResource",
            Method::DELETE,
            "/v1/projects/{project}/{kind}/{name}",
            Shape::Nothing,
            json_of::<Vec<wire::Change>>(),
            "Remove a resource; data stays without `?delete_data=true`",
        ),
        up_to(
            SECRET_MAX_BYTES,
            operation(
                "setSecret",
                Method::PUT,
                "/v1/projects/{project}/secrets/{name}/value",
                json_of::<wire::SecretValue>(),
                json_of::<wire::SecretView>(),
                "Give a secret a value",
            ),
        ),
    ]
}

/// The keys that seal secrets.
pub(super) fn keyring() -> Vec<Operation> {
    vec![
        operation(
            "keyring",
            Method::GET,
            "/v1/keyring",
            Shape::Nothing,
            json_of::<wire::Keyring>(),
            "The keys that seal secrets, and how many each seals",
        ),
        operation(
            "rotateKeyring",
            Method::POST,
            "/v1/keyring/rotate",
            Shape::Nothing,
            json_of::<wire::Keyring>(),
            "Seal all secrets by a new key, and forget the old ones",
        ),
    ]
}
