//! Where requests come in: the gateway from outside, the doors from services of this node.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::{Body, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::ids::ResourceId;
use model::traffic::{Door, Protocol};
use tokio::net::TcpStream;

use super::admission;
use super::body::ResponseBody;
use super::bulkhead;
use super::client::ClientStream;
use super::edge::{Edge, Talk};
use super::forward::{self, Errand};
use super::origin::{self, Origin};
use super::proxy_protocol;
use super::refusal::{self, Refusal};
use super::shares::{Kind, Party};
use super::tunnel;
use super::view::{Caller, View};
use super::wire;
use super::worker::Worker;
use crate::problem::{Code, Problem};
use crate::routing::Router;

/// Characters of a client's text in an answer: as many as a host's name may have (RFC 1035, 2.3.4).
const ECHOED_MOST: usize = 255;

const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A balancer sends it at once, with its first bytes.
const PROXY_PROTOCOL_TIMEOUT: Duration = Duration::from_secs(5);

/// A client from outside.
pub async fn serve_gateway(worker: Arc<Worker>, mut stream: TcpStream, peer: SocketAddr) {
    let Some(client) = client(&worker, &mut stream, peer).await else {
        return;
    };
    let party = party(&worker.view(), client);
    let Some(place) = worker.place(Kind::Gateway, party.clone()) else {
        return;
    };
    bulkhead::serve(
        worker,
        stream,
        place,
        move |worker, stream, place| async move {
            let from = Arc::new(Outside {
                origin: Origin::new(client),
                party,
                may_be_wide: bulkhead::may_be_wide(&place),
            });
            let stream = ClientStream::impatient(stream, place, worker.stalled());
            serve_http(&worker, stream, move |worker, request| {
                let from = from.clone();
                async move { from_outside(&from, &worker, request).await }
            })
            .await;
        },
    )
    .await;
}

/// A balancer whose word about its clients is taken brings many of them.
fn party(view: &View, client: SocketAddr) -> Party {
    let trusted = view.gateway.iter().flat_map(|it| &it.trusted);
    let address = client.ip().to_canonical();
    match trusted.into_iter().any(|it| it.contains(address)) {
        true => Party::Balancer(address),
        false => Party::client(address),
    }
}

/// Whose connection it is: the peer's, or whose a balancer says that it is. `None`: a balancer that does not say so in time.
async fn client(worker: &Worker, stream: &mut TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
    if !speaks_proxy_protocol(&worker.view(), peer) {
        return Some(peer);
    }
    // Until it is known whose it is, it has a place among those that have not said who they are.
    let place = worker.place(Kind::Handshakes, Party::client(peer.ip()))?;
    let told = proxy_protocol::read(stream);
    tokio::select! {
        told = tokio::time::timeout(PROXY_PROTOCOL_TIMEOUT, told) => match told {
            Ok(Ok(client)) => Some(client.unwrap_or(peer)),
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "a connection of a balancer was closed");
                None
            }
            Err(_) => None,
        },
        () = place.given_up() => None,
    }
}

fn speaks_proxy_protocol(view: &View, peer: SocketAddr) -> bool {
    let balancers = view.gateway.iter().flat_map(|it| &it.proxy_protocol);
    balancers.into_iter().any(|it| it.contains(peer.ip()))
}

/// Whom one connection from outside is of.
struct Outside {
    origin: Origin,
    party: Party,
    may_be_wide: bool,
}

async fn from_outside(
    from: &Outside,
    worker: &Worker,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    let upgrades = tunnel::asks_for_upgrade(&request);
    let admitted = worker.look(|view| admit(&from.origin, view, &mut request));
    let service = match admitted {
        Ok(service) => service,
        Err(problem) => return refused(&problem, request.body()),
    };
    let told = told_party(&from.party, request.headers());
    let errand = Errand {
        caller: &Caller::Gateway,
        party: told.as_ref().unwrap_or(&from.party),
        service: &service,
        timeout: None,
        once: false,
        may_be_wide: from.may_be_wide,
    };
    send(worker, &errand, None, request, upgrades).await
}

/// Whose request a declared balancer passes on, by the mark that it has by now; `None` where it does not say, and of any other client.
fn told_party(connection: &Party, marked: &HeaderMap) -> Option<Party> {
    let Party::Balancer(own) = connection else {
        return None;
    };
    let client = marked.get(origin::FORWARDED_FOR)?.to_str().ok()?;
    let client: IpAddr = client.parse().ok()?;
    (client != *own).then(|| Party::client(client))
}

/// Where a request from outside leads; it is made ready to go there.
fn admit<B>(
    from: &Origin,
    view: &View,
    request: &mut Request<B>,
) -> Result<Arc<ResourceId>, Problem> {
    let Some(gateway) = &view.gateway else {
        return Err(Problem::new(Code::NoRoute, "this node has no gateway"));
    };
    admission::check(request.method(), request.uri(), request.headers())?;
    let host = admission::host(request)?;
    let name = host.as_ref().map_or("", |host| host.to_str().unwrap_or(""));
    let path = request.uri().path();
    let found = gateway.router.find(name, path).cloned();
    let service = found.ok_or_else(|| {
        let tells_routes = from.is_local() && !is_relayed(request.headers());
        no_route(&gateway.router, name, path, tells_routes)
    })?;
    let host = host.unwrap_or_else(|| gateway.host.clone());
    let headers = request.headers_mut();
    headers.insert(header::HOST, host);
    // First what `Connection` names, then the gateway's own word: nothing can strip that.
    wire::remove_hop_by_hop(headers);
    from.mark(headers, &gateway.trusted);
    Ok(service)
}

/// A proxy before the gateway asks for others.
fn is_relayed(headers: &HeaderMap) -> bool {
    let relayed = [header::FORWARDED, origin::FORWARDED_FOR, header::VIA];
    relayed.iter().any(|name| headers.contains_key(name))
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
    let caller = Caller::Service(door.caller.clone());
    let (kind, party) = match &refusal {
        None => (Kind::Doors, Party::Caller(caller.clone())),
        Some(_) => (Kind::Refused, Party::client(client.ip())),
    };
    let Some(place) = worker.place(kind, party.clone()) else {
        return;
    };
    bulkhead::serve(worker, stream, place, move |worker, stream, place| {
        let stream = ClientStream::patient(stream, place);
        at_door(worker, stream, caller, door, refusal)
    })
    .await;
}

async fn at_door(
    worker: Arc<Worker>,
    stream: ClientStream,
    caller: Caller,
    door: Arc<Door>,
    refusal: Option<Refusal>,
) {
    match (door.protocol, refusal) {
        (Protocol::Tcp, None) if door.undeclared => {
            Refusal::undeclared(&door).tell(worker.reports());
        }
        (Protocol::Tcp, None) => {
            let _busy = stream.keeper().busy();
            tunnel::serve_tcp(&worker, &caller, &door, stream).await;
        }
        (Protocol::Tcp, Some(refusal)) => refusal.tell(worker.reports()),
        (Protocol::Http, refusal) => serve_http_door(worker, stream, door, refusal).await,
    }
}

async fn serve_http_door(
    worker: Arc<Worker>,
    stream: ClientStream,
    door: Arc<Door>,
    refusal: Option<Refusal>,
) {
    let refusal = refusal.map(Arc::new);
    let caller = Arc::new(DoorsCaller::new(&door));
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

/// Whose a door is, as who calls and as who has its share.
struct DoorsCaller {
    caller: Caller,
    party: Party,
    /// [`Door::listen`] as a host, for who names none.
    host: HeaderValue,
}

impl DoorsCaller {
    fn new(door: &Door) -> Self {
        let caller = Caller::Service(door.caller.clone());
        let host = HeaderValue::from_str(&door.listen.to_string());
        Self {
            party: Party::Caller(caller.clone()),
            caller,
            host: host.expect("an address is ASCII"),
        }
    }
}

async fn through_door(
    worker: &Worker,
    opened: &Arc<Door>,
    caller: &DoorsCaller,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    let upgrades = tunnel::asks_for_upgrade(&request);
    if let Err(problem) = admit_at_door(&caller.host, &mut request) {
        return refused(&problem, request.body());
    }
    let view = worker.view();
    // What the door is now, not what it was when the connection came.
    let Some(door) = view.declared(opened) else {
        let refusal = Refusal::undeclared(opened);
        refusal.tell(worker.reports());
        return refused(&refusal.problem(), request.body());
    };
    let errand = Errand {
        caller: &caller.caller,
        party: &caller.party,
        service: &door.need,
        timeout: Some(door.timeout.duration()),
        once: door.once,
        may_be_wide: true,
    };
    send(worker, &errand, Some(door), request, upgrades).await
}

/// What is left of the request's `body` is not waited for, so no other request can follow it.
fn refused(problem: &Problem, body: &Incoming) -> Response<ResponseBody> {
    let mut response = admission::refusal(problem);
    if !body.is_end_stream() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// A service is believed about its own clients, and may pass on a deadline; our other headers are not its to set.
/// `door`: the host of a request that names none, as HTTP/1.0 allows and HTTP/1.1, which it becomes, does not.
fn admit_at_door<B>(door: &HeaderValue, request: &mut Request<B>) -> Result<(), Problem> {
    admission::check(request.method(), request.uri(), request.headers())?;
    let host = admission::host(request)?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, host.unwrap_or_else(|| door.clone()));
    wire::remove_hop_by_hop(headers);
    wire::remove_ours_but_deadline(headers);
    Ok(())
}

async fn send(
    worker: &Worker,
    errand: &Errand<'_>,
    door: Option<&Arc<Door>>,
    request: Request<Incoming>,
    upgrades: bool,
) -> Response<ResponseBody> {
    if upgrades {
        // Rare, and large: kept out of the future of every request.
        Box::pin(tunnel::upgrade(worker, errand, door, request)).await
    } else {
        forward::forward(worker, errand, request).await
    }
}

/// One HTTP/1.1 connection; requests on it are answered one after the other. A client that says nothing costs its place and no more.
pub async fn serve_http<Answer, Answered>(
    worker: &Arc<Worker>,
    stream: ClientStream,
    answer: Answer,
) where
    Answer: Fn(Arc<Worker>, Request<Incoming>) -> Answered,
    Answered: Future<Output = Response<ResponseBody>>,
{
    let speaks = tokio::select! {
        speaks = stream.speaks(HEADER_TIMEOUT) => speaks,
        () = worker.stopping() => false,
    };
    if speaks {
        // Large: made only for who speaks.
        Box::pin(converse(worker, stream, answer)).await;
    }
}

async fn converse<Answer, Answered>(worker: &Arc<Worker>, stream: ClientStream, answer: Answer)
where
    Answer: Fn(Arc<Worker>, Request<Incoming>) -> Answered,
    Answered: Future<Output = Response<ResponseBody>>,
{
    let talk = Arc::new(Talk::new(stream.keeper()));
    let stream = Edge::new(stream, talk.clone());
    speak(worker, stream, &talk, answer).await;
    talk.linger().await;
}

async fn speak<Answer, Answered>(
    worker: &Arc<Worker>,
    stream: Edge,
    talk: &Arc<Talk>,
    answer: Answer,
) where
    Answer: Fn(Arc<Worker>, Request<Incoming>) -> Answered,
    Answered: Future<Output = Response<ResponseBody>>,
{
    let service = service_fn(|mut request: Request<Incoming>| {
        let keeper = talk.request();
        if !request.body().is_end_stream() {
            // For who will wait for the rest of it.
            request.extensions_mut().insert(keeper.clone());
        }
        let (worker, answer) = (worker.clone(), &answer);
        async move {
            let answered = std::pin::pin!(answer(worker, request));
            let mut response = as_it_came(in_turn(answered).await);
            // What an upgraded connection has become is not known to be idle by its requests: it stays as it is.
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let last = response.headers().contains_key(header::CONNECTION);
                response.body_mut().pass(talk.answer(last));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(wire::MOST_HEADERS)
        .max_header_size(wire::MOST_HEADER_BYTES)
        .max_buf_size(worker.buffer_bytes())
        // Only where the answer has none (RFC 9110, 6.6.1).
        .auto_date_header(true)
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

/// An answer that waits for nothing, as a refusal is, waits for the others' turn. The HTTP library would answer all requests that a client has sent ahead
/// at once, and meanwhile nobody else.
async fn in_turn<Answered: Future>(mut answered: Pin<&mut Answered>) -> Answered::Output {
    let mut waited = false;
    let answer = poll_fn(|cx| {
        let polled = answered.as_mut().poll(cx);
        waited |= polled.is_pending();
        polled
    })
    .await;
    if !waited {
        tokio::task::yield_now().await;
    }
    answer
}

/// What the HTTP library would not write as it came: the length that a 304 tells of what it does not bring (RFC 9110, 8.6), and that a status which has
/// no phrase has none.
fn as_it_came(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    let status = response.status();
    if status == StatusCode::NOT_MODIFIED && response.headers().contains_key(header::CONTENT_LENGTH)
    {
        response.body_mut().tell_length_alone();
    }
    if status.canonical_reason().is_none() && response.extensions().get::<ReasonPhrase>().is_none()
    {
        let none = ReasonPhrase::from_static(b"");
        response.extensions_mut().insert(none);
    }
    response
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

    #[tokio::test]
    async fn what_waits_for_nothing_waits_for_its_turn() {
        async fn polls<F: Future>(answered: F) -> usize {
            let mut answered = std::pin::pin!(answered);
            let mut in_turn = std::pin::pin!(in_turn(answered.as_mut()));
            let mut polls = 0;
            poll_fn(|cx| {
                polls += 1;
                in_turn.as_mut().poll(cx)
            })
            .await;
            polls
        }
        assert_eq!(polls(std::future::ready(1)).await, 2);
        let waits = tokio::task::yield_now();
        assert_eq!(polls(waits).await, 2, "no longer than it does anyway");
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
        for (name, expected) in [("accept", false), ("x-forwarded-for", true), ("via", true)] {
            let request = Request::get("/").header(name, "x").body(()).unwrap();
            assert_eq!(is_relayed(request.headers()), expected, "{name}");
        }
    }
}
