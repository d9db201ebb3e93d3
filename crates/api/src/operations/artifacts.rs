//! Bytes on their way to the server, and from it to nodes.

use http::Method;

use super::{Operation, Shape, json_of, operation, up_to};
use crate::wire;

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "beginUpload",
            Method::PUT,
            "/v1/artifacts/{digest}",
            json_of::<wire::BeginUpload>(),
            json_of::<wire::UploadState>(),
            "Begin or resume an upload",
        ),
        up_to(
            wire::CHUNK_MAX_BYTES,
            operation(
                "uploadChunk",
                Method::PATCH,
                "/v1/artifacts/{digest}",
                Shape::Bytes,
                json_of::<wire::UploadState>(),
                "Bytes at `?offset=N`, at most 1 MiB",
            ),
        ),
        operation(
            "getArtifact",
            Method::GET,
            "/v1/artifacts/{digest}",
            Shape::Nothing,
            Shape::Bytes,
            "Bytes from `?offset=N` on",
        ),
    ]
}
