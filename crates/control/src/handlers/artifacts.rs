//! Uploads in chunks, and downloads.

use std::sync::Arc;

use api::problem::Problem;
use api::wire::{BeginUpload, UploadState};
use axum::response::Response;
use http::{HeaderValue, header};
use model::boundary::PrincipalName;
use model::ids::Digest;

use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::state::Server;

pub async fn begin(server: Arc<Server>, mut call: Call) -> Answer {
    let digest: Digest = call.parameter("digest")?;
    let ask: BeginUpload = call.json().await?;
    let now = server.clock.now().instant;
    let state = server.artifacts.begin(digest, ask.size, now).await?;
    let state = completed(&server, call.principal.name(), state).await?;
    Ok(call::json(&state))
}

pub async fn chunk(server: Arc<Server>, mut call: Call) -> Answer {
    let digest: Digest = call.parameter("digest")?;
    let offset = call.asks("offset", u64::MAX)?;
    if offset == u64::MAX {
        return Err(Problem::invalid("a chunk needs `?offset=N`: where it goes"));
    }
    let chunk = call.bytes().await?;
    let now = server.clock.now().instant;
    let state = server.artifacts.append(digest, offset, chunk, now).await?;
    let state = completed(&server, call.principal.name(), state).await?;
    Ok(call::json(&state))
}

/// An upload that is whole becomes an artifact, once that is in the audit log. One that was whole before, and could not be recorded then, does
/// when it is asked about again.
async fn completed(
    server: &Server,
    by: PrincipalName,
    state: UploadState,
) -> Result<UploadState, Problem> {
    if state.complete || state.received < state.size {
        return Ok(state);
    }
    server.artifacts.check(state.digest).await?;
    let deed = Deed::new(by, "artifact.upload", state.digest);
    server.keep(&deed, Vec::new()).await?;
    server.artifacts.place(state.digest).await?;
    Ok(UploadState {
        complete: true,
        ..state
    })
}

pub async fn get(server: Arc<Server>, call: Call) -> Answer {
    let digest: Digest = call.parameter("digest")?;
    let body = server
        .artifacts
        .read(digest, call.asks("offset", 0_u64)?)
        .await?;
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static("application/octet-stream");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
