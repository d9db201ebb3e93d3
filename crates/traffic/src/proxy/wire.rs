//! What travels between proxies beside the request itself: the headers of the mesh, and what never passes a proxy.

use std::time::Duration;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::Response;

use super::body::ResponseBody;
use crate::problem::Problem;

/// The service, the instance and its epoch that a request is meant for.
pub const SERVICE: HeaderName = HeaderName::from_static("mainland-service");
pub const INSTANCE: HeaderName = HeaderName::from_static("mainland-instance");
pub const EPOCH: HeaderName = HeaderName::from_static("mainland-epoch");
/// Every copy has refused once: one whose probe fails is asked all the same, for no better one is left.
pub const INSIST: HeaderName = HeaderName::from_static("mainland-insist");
/// What may have begun is not repeated, though the request carries an `Idempotency-Key`.
pub const ONCE: HeaderName = HeaderName::from_static("mainland-once");
/// What is left of the time for the whole request; shrinks on its way.
pub const DEADLINE: HeaderName = HeaderName::from_static("mainland-deadline-ms");
/// In an answer: the request did not begin, and why.
pub const NOT_BEGUN: HeaderName = HeaderName::from_static("mainland-not-begun");
/// In an answer: the instance could not be reached, so the request did not begin.
pub const UNREACHABLE: HeaderName = HeaderName::from_static("mainland-unreachable");
/// In an answer: it was sent to the instance, which broke off.
pub const BROKEN: HeaderName = HeaderName::from_static("mainland-broken");
/// In an answer: the caller may not call, and which need is missing.
pub const REFUSED: HeaderName = HeaderName::from_static("mainland-refused");

/// A number for a request with a long body, and the question whether the body of that request is taken ([`super::held`]).
pub const TICKET: HeaderName = HeaderName::from_static("mainland-ticket");
pub const IS_TAKEN: HeaderName = HeaderName::from_static("mainland-is-taken");

/// Makes any method safe to repeat.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const PREFIX: &str = "mainland-";

/// Headers longer than this, or a request line, are refused with 431.
pub const MOST_HEADER_BYTES: usize = 64 * 1024;
pub const MOST_HEADERS: usize = 256;

/// Removes what is meant for one connection only (RFC 9110, 7.6.1).
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        remove_named_by_connection(headers);
    }
    remove_where(headers, is_hop_by_hop);
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// One look at the few names that are there is cheaper than a search for each that might be.
fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| unwanted(name)).cloned() {
        headers.remove(name);
    }
}

fn remove_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Removes our own headers: nobody outside the mesh may set them, nobody outside sees them.
pub fn remove_ours(headers: &mut HeaderMap) {
    remove_where(headers, |name| name.as_str().starts_with(PREFIX));
}

pub fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(DEADLINE)?.to_str().ok()?;
    value.parse().ok().map(Duration::from_millis)
}

/// A reason in a header: what HTTP does not allow there is replaced.
pub fn reason(text: &str) -> HeaderValue {
    let clean: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else {
                '?'
            }
        })
        .collect();
    HeaderValue::from_str(&clean).expect("only printable ASCII is left")
}

pub fn problem_response(problem: &Problem) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text(problem.to_json()));
    *response.status_mut() = problem.code.status();
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    if problem.code.passes() {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn what_is_meant_for_one_connection_does_not_pass() {
        let mut map = headers(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("accept", "*/*")]));
    }

    #[test]
    fn our_own_headers_are_nobody_elses() {
        let mut map = headers(&[
            ("mainland-service", "a/b"),
            ("host", "x"),
            ("mainland-not-begun", "y"),
        ]);
        remove_ours(&mut map);
        assert_eq!(map, headers(&[("host", "x")]));
    }

    #[test]
    fn reasons_fit_into_a_header() {
        assert_eq!(reason("käse\r\nx"), HeaderValue::from_static("k?se??x"));
    }
}
