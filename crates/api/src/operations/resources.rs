//! What is declared and decided, by kind and name.

use http::Method;
use model::compute::Service;
use serde_json::Value;

use super::{Operation, Shape, json_of, operation};
use crate::wire;

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
        operation(
            "putService",
            Method::PUT,
            "/v1/projects/{project}/services/{name}",
            json_of::<Service>(),
            json_of::<wire::Applied>(),
            "Apply one service; `If-Match` makes it conditional",
        ),
        operation(
            "deleteResource",
            Method::DELETE,
            "/v1/projects/{project}/{kind}/{name}",
            Shape::Nothing,
            json_of::<Vec<wire::Change>>(),
            "Remove a resource; data stays without `?delete_data=true`",
        ),
        operation(
            "setSecret",
            Method::PUT,
            "/v1/projects/{project}/secrets/{name}/value",
            json_of::<wire::SecretValue>(),
            json_of::<wire::SecretView>(),
            "Give a secret a value",
        ),
    ]
}
