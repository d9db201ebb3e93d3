//! Where requests come in: the gateway from outside, the doors from services of this node.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::ids::ResourceId;
use model::traffic::{Door, Protocol};
use tokio::net::TcpStream;

use super::body::ResponseBody;
use super::forward::{self, Errand};
use super::refusal::{self, Refusal};
use super::tunnel;
use super::view::{Caller, View, missing_need};
use super::wire;
use super::worker::Worker;
use crate::problem::{Code, Problem};
use crate::routing::Router;

/// Characters of a client's text in an answer: as many as a host's name may have (RFC 1035, 2.3.4).
const ECHOED_MOST: usize = 255;

const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A client from outside.
pub async fn serve_gateway(worker: Arc<Worker>, stream: TcpStream, client: SocketAddr) {
    let forwarded = HeaderValue::from_str(&client.ip().to_string()).expect("an IP is ASCII");
    let is_local = client.ip().to_canonical().is_loopback();
    let from = Arc::new(Outside {
        forwarded,
        is_local,
    });
    serve_http(&worker, stream, move |worker, request| {
        let from = from.clone();
        async move { from.answer(&worker, request).await }
    })
    .await;
}

struct Outside {
    /// The client's address, for `X-Forwarded-For`.
    forwarded: HeaderValue,
    /// The client is on this machine: most likely who deploys, and not the public.
    is_local: bool,
}

impl Outside {
    async fn answer(
        &self,
        worker: &Worker,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let service = match route(&worker.view(), &request, self.tells_routes(&request)) {
            Ok(service) => service,
            Err(problem) => return wire::problem_response(&problem),
        };
        self.mark(request.headers_mut());
        let errand = Errand {
            caller: &Caller::Gateway,
            service: &service,
            timeout: None,
            once: false,
        };
        send(worker, &errand, request).await
    }

    /// A proxy before the gateway asks for others.
    fn tells_routes<Body>(&self, request: &Request<Body>) -> bool {
        let relayed = [header::FORWARDED, FORWARDED_FOR, header::VIA];
        let relayed = relayed
            .iter()
            .any(|name| request.headers().contains_key(name));
        self.is_local && !relayed
    }

    /// The edge says who asks; what a client claims about itself is not believed.
    fn mark(&self, headers: &mut HeaderMap) {
        wire::remove_ours(headers);
        headers.insert(FORWARDED_FOR, self.forwarded.clone());
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
        if let Some(host) = headers.get(header::HOST).cloned() {
            headers.insert(FORWARDED_HOST, host);
        }
    }
}

fn route(
    view: &View,
    request: &Request<Incoming>,
    tells_routes: bool,
) -> Result<Arc<ResourceId>, Problem> {
    let host = request
        .uri()
        .host()
        .or_else(|| request.headers().get(header::HOST)?.to_str().ok());
    let (Some(host), Some(gateway)) = (host, &view.gateway) else {
        return Err(Problem::new(Code::BadHost, "the request names no host"));
    };
    if request
        .headers()
        .get_all(header::HOST)
        .iter()
        .nth(1)
        .is_some()
    {
        return Err(Problem::new(
            Code::BadHost,
            "the request names more than one host",
        ));
    }
    let path = request.uri().path();
    let found = gateway.router.find(host, path).cloned();
    found.ok_or_else(|| no_route(&gateway.router, host, path, tells_routes))
}

/// Says to who is on this machine what this host has, and nothing of others; anybody else may be the public, and learns nothing.
fn no_route(router: &Router, host: &str, path: &str, tells_routes: bool) -> Problem {
    let paths = router.paths(host);
    let (host, path) = (echoed(host), echoed(path));
    let detail = match paths.as_slice() {
        _ if !tells_routes => format!("no route for {host}{path}"),
        [] => format!("no route for host {host}"),
        some => format!(
            "no route for {host}{path}; routes of this host: {}",
            some.join(", ")
        ),
    };
    Problem::new(Code::NoRoute, detail)
}

/// What a client sent, fit to be sent back: no longer than a host's name may be, and nothing that a page or a terminal could take for more
/// than text.
fn echoed(text: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "-._~/:[]%".contains(c) => c,
        _ => '?',
    };
    let cut = if text.chars().nth(ECHOED_MOST).is_some() {
        "…"
    } else {
        ""
    };
    text.chars()
        .take(ECHOED_MOST)
        .map(plain)
        .chain(cut.chars())
        .collect()
}

/// A service of this node, at one of its doors.
pub async fn serve_door(
    worker: Arc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    door: Arc<Door>,
) {
    let refusal = refusal::at_door(&worker.view(), &door, client);
    match (door.protocol, refusal) {
        (Protocol::Tcp, None) => {
            let caller = Caller::Service(door.caller.clone());
            tunnel::serve_tcp(&worker, &caller, &door.need, stream).await;
        }
        (Protocol::Tcp, Some(refusal)) => refusal.tell(&worker),
        (Protocol::Http, refusal) => serve_http_door(worker, stream, door, refusal).await,
    }
}

async fn serve_http_door(
    worker: Arc<Worker>,
    stream: TcpStream,
    door: Arc<Door>,
    refusal: Option<Refusal>,
) {
    let refusal = refusal.map(Arc::new);
    let caller = Arc::new(Caller::Service(door.caller.clone()));
    serve_http(&worker, stream, move |worker, request| {
        let (door, caller, refusal) = (door.clone(), caller.clone(), refusal.clone());
        async move {
            if let Some(refusal) = refusal {
                return refusal.answer(&worker);
            }
            through_door(&worker, &door, &caller, request).await
        }
    })
    .await;
}

async fn through_door(
    worker: &Worker,
    opened: &Door,
    caller: &Caller,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let view = worker.view();
    // What the door is now, not what it was when the connection came.
    let Some(door) = view
        .doors
        .get(&opened.listen)
        .filter(|door| door.caller == opened.caller)
    else {
        let detail = missing_need(&opened.caller, &opened.need);
        return wire::problem_response(&Problem::new(Code::CallerNotDeclared, detail));
    };
    let errand = Errand {
        caller,
        service: &door.need,
        timeout: Some(door.timeout.duration()),
        once: door.once,
    };
    send(worker, &errand, request).await
}

async fn send(
    worker: &Worker,
    errand: &Errand<'_>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    if tunnel::asks_for_upgrade(&request) {
        // Rare, and large: kept out of the future of every request.
        Box::pin(tunnel::upgrade(worker, errand, request)).await
    } else {
        forward::forward(worker, errand, request).await
    }
}

/// One HTTP/1.1 connection; requests on it are answered one after the other.
pub async fn serve_http<Answer, Answered>(worker: &Arc<Worker>, stream: TcpStream, answer: Answer)
where
    Answer: Fn(Arc<Worker>, Request<Incoming>) -> Answered,
    Answered: Future<Output = Response<ResponseBody>>,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let answered = answer(worker.clone(), request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(wire::MOST_HEADERS)
        .max_header_size(wire::MOST_HEADER_BYTES)
        .max_buf_size(2 * wire::MOST_HEADER_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = worker.stopping() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::traffic::GatewayRoute;

    #[test]
    fn who_asks_in_vain_learns_of_this_host_only() {
        let route = |host: &str, path: &str| GatewayRoute {
            host: host.to_owned(),
            path: path.to_owned(),
            to: "shop/web".parse().unwrap(),
        };
        let router = Router::new(&[route("a.localhost", "/api"), route("secret.localhost", "/")]);
        let long = "h".repeat(300);
        let cut = format!("no route for host {}…", "h".repeat(255));
        for (host, path, expected) in [
            (
                "a.localhost:8080",
                "/x",
                "no route for a.localhost:8080/x; routes of this host: /api",
            ),
            ("b.localhost", "/x", "no route for host b.localhost"),
            ("<b>\"\u{1b}é", "/", "no route for host ?b????"),
            (&long, "/", &cut),
        ] {
            let problem = no_route(&router, host, path, true);
            assert_eq!(problem.detail, expected);
            assert_eq!(problem.code, Code::NoRoute);
        }
    }

    #[test]
    fn who_is_not_on_this_machine_learns_of_no_route() {
        let router = Router::new(&[GatewayRoute {
            host: "a.localhost".to_owned(),
            path: "/api".to_owned(),
            to: "shop/web".parse().unwrap(),
        }]);
        for host in ["a.localhost", "b.localhost"] {
            let problem = no_route(&router, host, "/x", false);
            assert_eq!(problem.detail, format!("no route for {host}/x"));
        }
        let outside = |is_local| Outside {
            forwarded: HeaderValue::from_static("x"),
            is_local,
        };
        let plain = Request::get("/").body(()).unwrap();
        assert!(outside(true).tells_routes(&plain));
        assert!(!outside(false).tells_routes(&plain));
        let relayed = Request::get("/").header("x-forwarded-for", "192.0.2.1");
        assert!(!outside(true).tells_routes(&relayed.body(()).unwrap()));
    }
}
