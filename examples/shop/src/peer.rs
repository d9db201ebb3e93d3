//! Calls to the other services. Every call may be repeated (it carries a key, or sets a state), so it is, a few times within its
//! deadline, when it wasn't answered or the other side says that it can't now. What is never known in time is [`Unanswered`].

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use crate::chance;

const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const ANSWER_LIMIT_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unanswered(pub String);

/// A service that is needed.
#[derive(Clone)]
pub struct Peer {
    base: String,
    bearer: Option<String>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// An answer that says something: no 5xx.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

/// What is asked.
pub struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    /// Goes along as `Idempotency-Key`.
    pub key: &'a str,
    pub body: Value,
    pub within: Duration,
}

impl Peer {
    pub fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(1)));
        Self {
            base: base.trim_end_matches('/').to_owned(),
            bearer: None,
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    pub fn with_bearer(mut self, key: &str) -> Self {
        self.bearer = Some(format!("Bearer {key}"));
        self
    }

    pub async fn call(&self, call: Call<'_>) -> Result<Answer, Unanswered> {
        let until = Instant::now() + call.within;
        let body = Bytes::from(call.body.to_string());
        let mut last = Unanswered("no answer in time".to_owned());
        for tried in 0..TRIES {
            let Ok(answer) = timeout_at(until, self.try_once(&call, body.clone())).await else {
                return Err(last);
            };
            match answer {
                Ok(answer) if !answer.status.is_server_error() => return Ok(answer),
                Ok(answer) => last = Unanswered(said(&answer)),
                Err(error) => last = error,
            }
            let pause = FIRST_PAUSE * 4u32.pow(tried);
            let pause = pause.mul_f64(0.5 + chance::fraction());
            if Instant::now() + pause >= until {
                break;
            }
            sleep(pause).await;
        }
        Err(last)
    }

    async fn try_once(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Unanswered> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", self.base, call.path))
            .header(header::CONTENT_TYPE, "application/json")
            .header("idempotency-key", call.key);
        if let Some(bearer) = &self.bearer {
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(body)).map_err(unanswered)?;
        let response = self.client.request(request).await.map_err(unanswered)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES);
        let bytes = body
            .collect()
            .await
            .map_err(|error| Unanswered(error.to_string()))?;
        // Who is no JSON, like a proxy's refusal, has only its status to say.
        let body = serde_json::from_slice(&bytes.to_bytes()).unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }
}

fn said(answer: &Answer) -> String {
    let error = answer.body["error"].as_str().unwrap_or_default();
    format!("{} {error}", answer.status.as_u16())
        .trim()
        .to_owned()
}

fn unanswered(error: impl std::error::Error) -> Unanswered {
    match error.source() {
        Some(source) => Unanswered(format!("{error}: {source}")),
        None => Unanswered(error.to_string()),
    }
}
