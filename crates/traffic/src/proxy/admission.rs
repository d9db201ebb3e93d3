//! What a request must be to be passed on: asked of every one, at the gateway, at a door and of another proxy alike.
//!
//! The HTTP library has parsed it, so that what is left are the questions that two readers could answer differently, and what has no meaning here.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Uri, Version, uri};
use hyper::Response;

use super::body::ResponseBody;
use super::wire;
use crate::problem::{Code, Problem};

/// Methods that have a meaning here, for the answer to one that has none (RFC 9110, 15.5.6).
const ALLOWED: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH");

/// The host that a request asks for, as it is to be passed on: of an absolute target its own, whatever `Host` says (RFC 9112, 3.2.2). `None`: it
/// names none, as HTTP/1.0 allows.
pub fn host<B>(request: &Request<B>) -> Result<Option<HeaderValue>, Problem> {
    let first = named_host(request.headers())?;
    match (request.uri().authority(), first) {
        (Some(authority), _) => {
            if authority.as_str().contains('@') {
                return Err(bad_host("the request's target names a user"));
            }
            let host = HeaderValue::from_str(authority.as_str());
            let host = host.map_err(|_| bad_host("the request's target names no valid host"))?;
            valid(&host)?;
            Ok(Some(host))
        }
        (None, Some(first)) => Ok(Some(first.clone())),
        (None, None) if request.version() == Version::HTTP_10 => Ok(None),
        (None, None) => Err(bad_host("the request names no host")),
    }
}

/// What `Host` says: once at most, and a host.
pub fn named_host(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Problem> {
    let mut named = headers.get_all(header::HOST).iter();
    let first = named.next();
    if named.next().is_some() {
        return Err(bad_host("the request names more than one host"));
    }
    first.map(valid).transpose()?;
    Ok(first)
}

/// A name or an address, and a port or none (RFC 9110, 7.2).
fn valid(host: &HeaderValue) -> Result<(), Problem> {
    let text = host.to_str().unwrap_or_default();
    let fits = |authority: uri::Authority| {
        let port = authority.as_str().rsplit_once(':').map(|(_, port)| port);
        let port = port.filter(|port| !port.ends_with(']'));
        !authority.host().trim_end_matches('.').is_empty()
            && !authority.as_str().contains('@')
            && port.is_none_or(|port| port.is_empty() || port.parse::<u16>().is_ok())
    };
    match text.parse::<uri::Authority>() {
        Ok(authority) if fits(authority.clone()) => Ok(()),
        _ if text.is_empty() => Err(bad_host("the request's Host is empty")),
        _ => Err(bad_host("the request's Host is no valid host")),
    }
}

fn bad_host(detail: &str) -> Problem {
    Problem::new(Code::BadHost, detail)
}

/// What stands in the way of passing a request on. The host is asked for apart, by [`host`].
pub fn check(method: &Method, target: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    if *method == Method::CONNECT {
        return Err(Problem::new(
            Code::MethodNotAllowed,
            "CONNECT has no meaning here: this is no forward proxy",
        ));
    }
    // `GET host:80`: the form that only CONNECT has.
    if target.authority().is_some() && target.scheme().is_none() {
        return Err(Problem::new(
            Code::RequestBroken,
            "the request's target is neither a path nor a whole URI",
        ));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && !wire::is_chunked_only(headers) {
        return Err(Problem::new(
            Code::CodingNotSupported,
            "the request's Transfer-Encoding is not chunked alone; encode the content, and say so in Content-Encoding",
        ));
    }
    Ok(())
}

/// A refusal as its answer.
pub fn refusal(problem: &Problem) -> Response<ResponseBody> {
    let mut response = wire::problem_response(problem);
    if problem.code == Code::MethodNotAllowed {
        response.headers_mut().insert(header::ALLOW, ALLOWED);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(
        method: &str,
        target: &str,
        version: Version,
        hosts: &[&'static str],
    ) -> Request<()> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .version(version)
            .body(())
            .unwrap();
        for host in hosts {
            let host = HeaderValue::from_bytes(host.as_bytes()).unwrap();
            request.headers_mut().append(header::HOST, host);
        }
        request
    }

    #[test]
    fn the_host_is_one_and_the_targets_own() {
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        for (target, version, hosts, expected) in [
            (
                "/",
                new,
                &["a.localhost:80"][..],
                Ok(Some("a.localhost:80")),
            ),
            ("/", new, &["[::1]:80"], Ok(Some("[::1]:80"))),
            ("/", new, &["a."], Ok(Some("a."))),
            ("/", new, &["a:"], Ok(Some("a:"))),
            (
                "/",
                new,
                &["a", "a"],
                Err("the request names more than one host"),
            ),
            ("/", new, &[], Err("the request names no host")),
            ("/", old, &[], Ok(None)),
            ("/", new, &[""], Err("the request's Host is empty")),
            ("/", new, &["."], Err("the request's Host is no valid host")),
            (
                "/",
                new,
                &["a b"],
                Err("the request's Host is no valid host"),
            ),
            (
                "/",
                new,
                &["a/b"],
                Err("the request's Host is no valid host"),
            ),
            (
                "/",
                new,
                &["u@a"],
                Err("the request's Host is no valid host"),
            ),
            (
                "/",
                new,
                &["a:80:80"],
                Err("the request's Host is no valid host"),
            ),
            (
                "/",
                new,
                &["a:99999"],
                Err("the request's Host is no valid host"),
            ),
            ("http://b/x", new, &["a"], Ok(Some("b"))),
            ("http://b/x", new, &[], Ok(Some("b"))),
            (
                "http://b/x",
                new,
                &["a", "b"],
                Err("the request names more than one host"),
            ),
            ("http://b/x", new, &[""], Err("the request's Host is empty")),
            (
                "http://u@b/x",
                new,
                &["b"],
                Err("the request's target names a user"),
            ),
        ] {
            let found = host(&request("GET", target, version, hosts));
            let found = found
                .as_ref()
                .map(|host| host.as_ref().map(|it| it.to_str().unwrap()));
            let expected = expected.map_err(bad_host);
            assert_eq!(found, expected.as_ref().copied(), "{target} {hosts:?}");
        }
    }

    #[test]
    fn what_has_no_meaning_here_is_refused() {
        let check = |method: &str, target: &str, coding: Option<&'static str>| {
            let mut request = request(method, target, Version::HTTP_11, &["a"]);
            if let Some(coding) = coding {
                let coding = HeaderValue::from_static(coding);
                request
                    .headers_mut()
                    .insert(header::TRANSFER_ENCODING, coding);
            }
            check(request.method(), request.uri(), request.headers())
                .err()
                .map(|problem| problem.code)
        };
        for (method, target, coding, expected) in [
            ("GET", "/", None, None),
            ("OPTIONS", "*", None, None),
            ("GET", "http://a/", None, None),
            ("POST", "/", Some("chunked"), None),
            ("CONNECT", "a:80", None, Some(Code::MethodNotAllowed)),
            ("GET", "a:80", None, Some(Code::RequestBroken)),
            (
                "POST",
                "/",
                Some("gzip, chunked"),
                Some(Code::CodingNotSupported),
            ),
            (
                "POST",
                "/",
                Some("identity"),
                Some(Code::CodingNotSupported),
            ),
        ] {
            assert_eq!(check(method, target, coding), expected, "{method} {target}");
        }
    }
}
