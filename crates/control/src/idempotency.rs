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
const KEY_MAX_LENGTH: usize = 255;

/// Holds the key while the request is done. It is free again once what was done is stored, or nothing was.
struct Running {
    server: Arc<Server>,
    key: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.with(|shared| shared.running.remove(&self.key));
    }
}

/// What a handler stores with its change, so that a repetition is answered the same.
#[derive(Clone)]
pub struct Remember {
    key: String,
    request: String,
}

impl Remember {
    /// Adds the answer to the transaction that makes it true. That one is done only if nothing was done under the key before, whatever was
    /// known of it when the request came.
    pub fn add(&self, draft: &mut Draft, at: jiff::Timestamp, answer: &impl Serialize) {
        let answer = serde_json::to_value(answer).expect("wire types are plain data");
        let record = IdempotencyRecord {
            request: self.request.clone(),
            at,
            answer,
        };
        draft.put::<IdempotencyRecord>(Key::Idempotency(self.key.clone()), None, &record);
    }

    /// The answer that is stored under the key.
    fn known(&self, server: &Server) -> Result<Option<Response>, Problem> {
        let known = server.look(|world| world.idempotency.get(&self.key).cloned());
        let Some(known) = known else {
            return Ok(None);
        };
        if known.request != self.request {
            let title = "this Idempotency-Key was used for another request";
            return Err(Problem::new(422, "key-reused", title)
                .remedy("use a fresh key for each new request"));
        }
        let mut answer = known.value.answer;
        if let Some(revision) = answer.get_mut("revision") {
            *revision = known.modified.to_string().into();
        }
        Ok(Some(call::json(&answer)))
    }
}

/// Does what is asked unless it was done under this key.
pub async fn once(server: Arc<Server>, handler: Handler, mut call: Call) -> Answer {
    let key = key(&call)?;
    let body = call.bytes().await?;
    let remember = Remember {
        request: fingerprint(&call, &body),
        key,
    };
    *call.request.body_mut() = Body::from(body);
    if let Some(answer) = remember.known(&server)? {
        return Ok(answer);
    }
    let _running = take(&server, &remember.key)?;
    call.request.extensions_mut().insert(remember.clone());
    let answered = handler(server.clone(), call).await;
    match answered {
        // It was done by an earlier try whose outcome was not known when this one began.
        Err(problem) => remember.known(&server)?.ok_or(problem),
        done => done,
    }
}

fn take(server: &Arc<Server>, key: &str) -> Result<Running, Problem> {
    let is_free = server.with(|shared| shared.running.insert(key.to_owned()));
    if !is_free {
        let title = "a request with this Idempotency-Key is still being answered";
        return Err(Problem::conflict("still-running", title).remedy("repeat it in a moment"));
    }
    Ok(Running {
        server: server.clone(),
        key: key.to_owned(),
    })
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
