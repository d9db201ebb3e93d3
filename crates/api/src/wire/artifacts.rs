//! Bytes on their way to the server, piece by piece.

use model::ids::Digest;
use model::units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `PUT /v1/artifacts/{digest}`: begin or resume an upload. Chunks follow as `PATCH /v1/artifacts/{digest}?offset=N` with raw bytes;
/// the one that completes it verifies the digest.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BeginUpload {
    pub size: Bytes,
}

/// How far an upload is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UploadState {
    pub digest: Digest,
    pub size: Bytes,
    /// The next chunk goes here.
    pub received: Bytes,
    pub complete: bool,
}

/// Bytes in one chunk of an upload at most.
pub const CHUNK_MAX_BYTES: usize = 1 << 20;
