//! What travels between proxies beside the request itself: the headers of the mesh, and what never passes a proxy.

use std::time::Duration;

use http::header::{self, CONNECTION, HeaderMap, HeaderName, HeaderValue};
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

/// For an engine: which service calls.
pub const CALLER: HeaderName = HeaderName::from_static(model::traffic::CALLER);

/// A number for a request with a long body, and the question whether the body of that request is taken ([`super::held`]).
pub const TICKET: HeaderName = HeaderName::from_static("mainland-ticket");
pub const IS_TAKEN: HeaderName = HeaderName::from_static("mainland-is-taken");

/// Makes any method safe to repeat.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers longer than this, or a request line, are refused with 431.
pub const MOST_HEADER_BYTES: usize = 64 * 1024;
pub const MOST_HEADERS: usize = 256;

/// What `Connection` may name and is passed on all the same: it is meant for whoever answers (RFC 9110, 7.6.1, forbids to name such), and without it
/// a request would be another one.
const END_TO_END: [HeaderName; 14] = [
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CACHE_CONTROL,
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::ORIGIN,
    IDEMPOTENCY_KEY,
];

/// Makes one `Cookie` of several, which HTTP/2 may bring, before a request goes on as HTTP/1.1 (RFC 9113, 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
    if cookies.len() < 2 {
        return;
    }
    let bytes: Vec<_> = cookies.iter().map(|cookie| cookie.as_bytes()).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&bytes.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Removes what is meant for one connection only (RFC 9110, 7.6.1). `Trailer` stays, since trailers pass.
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
            | "transfer-encoding"
            | "upgrade"
    )
}

fn remove_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !END_TO_END.contains(name) && !is_ours(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Whether a list of tokens, in one field or several, has `token`, in any case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|it| it.eq_ignore_ascii_case(token))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
}

/// `Transfer-Encoding: chunked` and nothing beside it: all that is taken off a message here.
pub fn is_chunked_only(headers: &HeaderMap) -> bool {
    let mut codings = tokens(headers, &header::TRANSFER_ENCODING);
    let first = codings.next();
    first.is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) && codings.next().is_none()
}

/// Trailers without what must not stand there (RFC 9110, 6.5.1): framing, routing, credentials, and our own.
pub fn passable_trailers(mut trailers: HeaderMap) -> HeaderMap {
    remove_where(&mut trailers, |name| {
        is_hop_by_hop(name)
            || is_ours(name)
            || *name == header::TRAILER
            || END_TO_END.contains(name)
    });
    trailers
}

/// Removes our own headers: nobody outside the mesh may set them, nobody outside sees them.
pub fn remove_ours(headers: &mut HeaderMap) {
    remove_where(headers, is_ours);
}

/// Of our own headers a program may pass on the deadline that came with a request: it only shortens the time of what it asks for in turn.
pub fn remove_ours_but_deadline(headers: &mut HeaderMap) {
    remove_where(headers, |name| is_ours(name) && *name != DEADLINE);
}

/// Programs that see headers as CGI variables can't tell `_` from `-` (RFC 3875, 4.1.18).
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("mainland") && matches!(name.as_bytes().get(8), Some(b'-' | b'_'))
}

/// Removes all that `unwanted` says, by one look at the few names that are there.
pub fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| unwanted(name)).cloned() {
        headers.remove(name);
    }
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
    fn several_cookies_become_one() {
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "b=2; c=3", "d=4"] {
            headers.append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        join_cookies(&mut headers);
        let all: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(all, ["a=1; b=2; c=3; d=4"]);
    }

    #[test]
    fn what_is_meant_for_one_connection_does_not_pass() {
        let mut map = headers(&[
            ("connection", "close, X-Private, Mainland-Deadline-Ms"),
            ("connection", "Host,cookie, Idempotency-Key"),
            ("host", "a"),
            ("cookie", "b"),
            ("idempotency-key", "c"),
            ("mainland-deadline-ms", "7"),
            ("trailer", "x-sum"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut map);
        let passed = [
            ("host", "a"),
            ("cookie", "b"),
            ("idempotency-key", "c"),
            ("mainland-deadline-ms", "7"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ];
        assert_eq!(map, headers(&passed));
    }

    #[test]
    fn one_coding_is_taken_and_no_other() {
        for (fields, expected) in [
            (&[("transfer-encoding", "Chunked")][..], true),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (
                &[
                    ("transfer-encoding", "gzip"),
                    ("transfer-encoding", "chunked"),
                ],
                false,
            ),
            (&[("transfer-encoding", "chunked, chunked")], false),
            (&[("accept", "*/*")], false),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                map.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(is_chunked_only(&map), expected, "{fields:?}");
        }
    }

    #[test]
    fn trailers_bring_no_framing_and_nothing_of_ours() {
        let trailers = headers(&[
            ("x-sum", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("mainland-not-begun", "x"),
            ("trailer", "x-sum"),
        ]);
        assert_eq!(passable_trailers(trailers), headers(&[("x-sum", "1")]));
    }

    #[test]
    fn our_own_headers_are_nobody_elses() {
        let mut map = headers(&[
            ("mainland-service", "a/b"),
            ("host", "x"),
            ("mainland-not-begun", "y"),
            ("mainland_insist", "1"),
        ]);
        remove_ours(&mut map);
        assert_eq!(map, headers(&[("host", "x")]));
    }

    #[test]
    fn reasons_fit_into_a_header() {
        assert_eq!(reason("käse\r\nx"), HeaderValue::from_static("k?se??x"));
    }
}
