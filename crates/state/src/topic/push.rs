//! Deliveries to services that consume by `on`: one POST each, through the mesh.
//!
//! What an answer means:
//!
//! | answer | meaning |
//! |---|---|
//! | 2xx | a receipt |
//! | no connection; 503 or 403 as a problem of the mesh itself (`no-endpoint`, `unknown-service`, `caller-not-declared`) | nobody is there: no attempt, the consumer is asked again after a pause of up to 2 s, one message at a time until it answers |
//! | anything else, none within `timeout` | a failed attempt: again after a back-off, not before `Retry-After` |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use model::traffic::PROBLEM_TYPE;
use serde::Deserialize;

use super::engine::{Clock, Engine, Errand, Outcome, Plan};
use super::event::Message;

/// Connections that wait for more work, to each consumer.
const IDLE_CONNECTIONS: usize = 64;
/// The mesh keeps the time of a delivery, and knows whether it began; this much later it is said by the topic itself.
const MESH_PATIENCE: Duration = Duration::from_millis(500);
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// What is read of an answer.
const ANSWER_BYTES: usize = 64 << 10;
/// What is told of an answer that is no receipt.
const QUOTED_BYTES: usize = 300;

type Connections = Client<HttpConnector, Full<Bytes>>;

/// Delivers for as long as the process lives.
pub async fn keep_delivering(engine: Arc<Engine>) {
    let (connections, source) = (connections(), engine.source());
    let source: Arc<str> = source.into();
    loop {
        let Plan {
            errands,
            looks,
            next_ms,
        } = engine.plan();
        for (consumer, after) in looks {
            let engine = engine.clone();
            tokio::spawn(async move { engine.look(consumer, after).await });
        }
        for errand in errands {
            let courier = Courier {
                engine: engine.clone(),
                connections: connections.clone(),
                source: source.clone(),
            };
            tokio::spawn(courier.run(errand));
        }
        let published = engine.storage.hub().published();
        match next_ms {
            None => published.await,
            Some(next_ms) => {
                let wait_ms = next_ms.saturating_sub(engine.clock.now_ms()).max(1);
                let _ = tokio::time::timeout(Duration::from_millis(wait_ms), published).await;
            }
        }
    }
}

fn connections() -> Connections {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(2)));
    Client::builder(TokioExecutor::new())
        .pool_timer(hyper_util::rt::TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .build(connector)
}

/// Who brings one message.
struct Courier {
    engine: Arc<Engine>,
    connections: Connections,
    source: Arc<str>,
}

impl Courier {
    async fn run(self, errand: Errand) {
        let outcome = match self.engine.storage.message(errand.delivery.position).await {
            Ok(Some(message)) => self.deliver(&errand, message).await,
            // Nobody waits for what is removed.
            Ok(None) => Outcome::Done,
            Err(error) => {
                tracing::warn!(%error, "a message can't be read; trying again");
                Outcome::Absent
            }
        };
        self.engine
            .settle(&errand.consumer, errand.delivery.token, &outcome);
    }

    async fn deliver(&self, errand: &Errand, message: Message) -> Outcome {
        let Some(request) = self.request(errand, &message) else {
            return Outcome::Absent;
        };
        // What is sent need not be kept until it is answered.
        drop(message);
        let timeout = errand.subscription.timeout.duration() + MESH_PATIENCE;
        match tokio::time::timeout(timeout, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => failed(format!("no answer within {}", errand.subscription.timeout)),
        }
    }

    /// `None`: it is not told yet where the consumer answers.
    fn request(&self, errand: &Errand, message: &Message) -> Option<Request<Full<Bytes>>> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(errand.door?.to_string())
            .path_and_query(errand.subscription.path.as_str())
            .build()
            .ok()?;
        let mut request = Request::post(uri)
            .body(Full::new(message.event.data.clone()))
            .ok()?;
        let headers = request.headers_mut();
        *headers = message.headers(&self.source, errand.delivery.attempt);
        let key = HeaderValue::try_from(message.name(&self.source));
        headers.insert("idempotency-key", key.ok()?);
        Some(request)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Outcome {
        let response = match self.connections.request(request).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Outcome::Absent,
            Err(error) => return failed(chain(&error)),
        };
        judge(response).await
    }
}

async fn judge(response: Response<Incoming>) -> Outcome {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES).collect().await;
    if head.status.is_success() {
        return Outcome::Done;
    }
    let body = body.map(http_body_util::Collected::to_bytes);
    let body = body.unwrap_or_default();
    if is_absence(head.status, &body) {
        return Outcome::Absent;
    }
    let text = String::from_utf8_lossy(&body);
    let said: String = text.chars().take(QUOTED_BYTES).collect();
    Outcome::Failed {
        error: format!("{}: {said}", head.status)
            .trim_end_matches(": ")
            .to_owned(),
        retry_after_ms: retry_after_ms(&head.headers, Clock::wall_ms()),
    }
}

/// A problem of the mesh, not of the consumer: it has brought the message to nobody.
fn is_absence(status: StatusCode, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Problem {
        #[serde(rename = "type")]
        kind: String,
    }
    let kinds: &[&str] = match status {
        StatusCode::SERVICE_UNAVAILABLE => &["no-endpoint", "unknown-service"],
        StatusCode::FORBIDDEN => &["caller-not-declared"],
        _ => return false,
    };
    let problem = serde_json::from_slice::<Problem>(body);
    let kind = problem.map(|problem| problem.kind).unwrap_or_default();
    let kind = kind.strip_prefix(PROBLEM_TYPE);
    kind.is_some_and(|kind| kinds.contains(&kind))
}

/// In seconds, or until a date.
fn retry_after_ms(headers: &HeaderMap, wall_ms: u64) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(seconds.saturating_mul(1000));
    }
    // All three forms of RFC 9110, 5.6.7.
    let date = httpdate::parse_http_date(text).ok()?;
    let since_1970 = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    let date_ms = u64::try_from(since_1970.as_millis()).ok()?;
    Some(date_ms.saturating_sub(wall_ms))
}

fn failed(error: String) -> Outcome {
    Outcome::Failed {
        error,
        retry_after_ms: None,
    }
}

/// An error with the causes behind it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_says_in_seconds_or_by_a_date_when_to_come_again() {
        for (value, expected) in [
            ("120", Some(120_000)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37_000)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(37_000)),
            ("Sun Nov  6 08:49:37 1994", Some(37_000)),
            ("  7 ", Some(7_000)),
            ("99999999999999999999", Some(u64::MAX)),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ] {
            let value = HeaderValue::from_static(value);
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value)]);
            // 08:49:00 on that day.
            assert_eq!(retry_after_ms(&headers, 784_111_740_000), expected);
        }
    }

    #[test]
    fn the_meshs_own_refusals_are_told_from_the_consumers() {
        let mesh = |code| format!(r#"{{"type":"{PROBLEM_TYPE}{code}","status":503}}"#);
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        for (status, body, absent) in [
            (unavailable, mesh("no-endpoint"), true),
            (unavailable, mesh("unknown-service"), true),
            (unavailable, mesh("disk-full"), false),
            (unavailable, "busy".to_owned(), false),
            (StatusCode::FORBIDDEN, mesh("caller-not-declared"), true),
            (StatusCode::BAD_GATEWAY, mesh("no-endpoint"), false),
        ] {
            assert_eq!(
                is_absence(status, body.as_bytes()),
                absent,
                "{status} {body}"
            );
        }
    }
}
