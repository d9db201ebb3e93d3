//! The small durable values of a project.

use http::Method;

use super::{Operation, Shape, json_of, operation, up_to};
use crate::wire;

const KEY_MAX_BYTES: usize = 64 << 10;

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "listKeys",
            Method::GET,
            "/v1/projects/{project}/keys",
            Shape::Nothing,
            json_of::<wire::Keys>(),
            "Keys in the order of names: `?prefix=`, and `?after=NAME` for the next page",
        ),
        operation(
            "getKey",
            Method::GET,
            "/v1/projects/{project}/keys/{*name}",
            Shape::Nothing,
            Shape::Bytes,
            "A key's value; its revision is the ETag",
        ),
        up_to(
            KEY_MAX_BYTES,
            operation(
                "putKey",
                Method::PUT,
                "/v1/projects/{project}/keys/{*name}",
                Shape::Bytes,
                json_of::<wire::KeyWritten>(),
                "Give a key a value of at most 64 KiB; `If-Match` and `If-None-Match: *` make it conditional",
            ),
        ),
        operation(
            "deleteKey",
            Method::DELETE,
            "/v1/projects/{project}/keys/{*name}",
            Shape::Nothing,
            json_of::<wire::KeyWritten>(),
            "Remove a key; `If-Match` makes it conditional",
        ),
    ]
}
