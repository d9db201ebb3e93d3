//! Makes a POST safe to repeat: what a key was answered is stored in the transaction that did what was asked.

use std::sync::Arc;

use api::problem::Problem;
use axum::body::Body;
use axum::response::Response;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::call::{self, Answer, Call};
use crate::dispatch::Handler;
use crate::draft::Draft;
use crate::records::{IdempotencyRecord, Key};
use crate::state::Server;

const HEADER: &str = "idempotency-key";
const BODY_MAX_BYTES: usize = 8 << 20;
const KEY_MAX_LENGTH: usize = 255;

/// What a keyed request came to before its handler.
pub enum Once {
    /// It was answered before.
    Answered(Response),
    /// It is to be done now; others with its key wait outside.
    Now(Running),
}

/// Holds the key while the request is answered.
pub struct Running {
    server: Arc<Server>,
    key: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.with(|shared| shared.running.remove(&self.key));
    }
}

impl Once {
    pub async fn run(self, server: Arc<Server>, handler: Handler, call: Call) -> Answer {
        match self {
            Self::Answered(response) => Ok(response),
            Self::Now(_running) => handler(server, call).await,
        }
    }
}

/// What a handler stores with its change, so that a repetition is answered the same.
#[derive(Clone)]
pub struct Remember {
    key: String,
    request: String,
}

impl Remember {
    /// Adds the answer to the transaction that makes it true.
    pub fn add(&self, draft: &mut Draft, at: jiff::Timestamp, answer: &impl Serialize) {
        let answer = serde_json::to_value(answer).expect("wire types are plain data");
        let record = IdempotencyRecord {
            request: self.request.clone(),
            at,
            answer,
        };
        draft.put_anyway(Key::Idempotency(self.key.clone()), &record);
    }
}

/// Looks whether the key was seen; if not, takes it for this request.
pub async fn once(server: &Arc<Server>, call: &mut Call) -> Result<Once, Problem> {
    let key = key(call)?;
    let body = call.bytes(BODY_MAX_BYTES).await?;
    let request = fingerprint(call, &body);
    *call.request.body_mut() = Body::from(body);
    let known = server.with(|shared| match shared.world.idempotency.get(&key) {
        Some(known) => Ok(Some(known.clone())),
        None if shared.running.insert(key.clone()) => Ok(None),
        None => Err(Problem::conflict(
            "still-running",
            "a request with this Idempotency-Key is still being answered",
        )
        .remedy("repeat it in a moment")),
    })?;
    let Some(known) = known else {
        call.request.extensions_mut().insert(Remember {
            key: key.clone(),
            request,
        });
        return Ok(Once::Now(Running {
            server: server.clone(),
            key,
        }));
    };
    if known.request != request {
        return Err(Problem::new(
            422,
            "key-reused",
            "this Idempotency-Key was used for another request",
        )
        .remedy("use a fresh key for each new request"));
    }
    let mut answer = known.value.answer;
    if let Some(revision) = answer.get_mut("revision") {
        *revision = known.modified.to_string().into();
    }
    Ok(Once::Answered(call::json(&answer)))
}

/// The principal's own: keys of others are none of ours.
fn key(call: &Call) -> Result<String, Problem> {
    let value = call
        .headers()
        .get(HEADER)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .trim();
    if value.is_empty() {
        return Err(Problem::invalid("this POST needs an `Idempotency-Key` header")
            .remedy("send a fresh random key with each new request, and the same key when you repeat one"));
    }
    if value.len() > KEY_MAX_LENGTH {
        return Err(Problem::invalid(format!(
            "an Idempotency-Key has at most {KEY_MAX_LENGTH} characters"
        )));
    }
    Ok(format!("{}/{value}", call.principal))
}

fn fingerprint(call: &Call, body: &[u8]) -> String {
    let mut hasher = Sha256::new();
    let place = call
        .request
        .uri()
        .path_and_query()
        .map_or("/", |place| place.as_str());
    hasher.update(place.as_bytes());
    hasher.update([0]);
    hasher.update(body);
    model::ids::hex(&hasher.finalize())
}
