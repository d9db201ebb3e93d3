//! The callee's side: who may call, the gate, and the instance behind it. Used by the mesh and, without a wire, by callers on
//! the same node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use model::boundary::KeyFingerprint;
use model::ids::{Epoch, InstanceId, ResourceId};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission;
use super::body::{Guards, RequestBody, ResponseBody};
use super::failure::Failure;
use super::gate::Pass;
use super::held::{Taken, Tickets};
use super::instances;
use super::peers;
use super::shares::{Keeper, Kind, Party, Place};
use super::tls;
use super::tunnel;
use super::view::{Caller, Local, View};
use super::window::{MOST_WINDOW, Width};
use super::wire;
use super::worker::Worker;
use crate::problem::{Code, Problem};
use crate::retry::{LONGEST_DIAL, Stage, is_idempotent};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A caller that is gone must not keep its requests in flight for ever.
const PING_EVERY: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(5);

/// Which instance a request is meant for.
pub struct Address<'a> {
    pub service: &'a ResourceId,
    pub instance: &'a InstanceId,
    pub epoch: Epoch,
    /// No better copy is left: one that is held is to take it all the same.
    pub insist: bool,
    /// For a connection to the instance to come about.
    pub patience: Duration,
}

/// The head of a request, ready for an instance.
pub struct Head<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: HeaderMap,
    pub idempotent: bool,
}

/// Passes the gate or says why not.
pub fn enter(
    view: &View,
    caller: &Caller,
    to: &Address<'_>,
) -> Result<(Arc<Local>, Pass), Failure> {
    let local = view
        .local
        .get(to.instance)
        .filter(|local| local.service == *to.service && local.epoch == to.epoch)
        .ok_or_else(|| Failure::not_begun(format!("{} is not here", to.instance)))?;
    if !view.knows_callers(to.service) {
        let why = format!("{} is not to be called here", to.instance);
        return Err(Failure::not_begun(why));
    }
    view.permits(caller, to.service)
        .map_err(|reason| Failure::Refused { reason })?;
    match local.gate.enter(to.insist) {
        Ok(pass) => Ok((local.clone(), pass)),
        Err(refused) => Err(Failure::not_begun(refused.as_str())),
    }
}

/// Sends one request through the gate to the instance, and gives it up when the gate is shut meanwhile.
pub async fn call(
    worker: &Worker,
    view: &View,
    caller: &Caller,
    to: &Address<'_>,
    head: Head<'_>,
    body: RequestBody,
) -> Result<Response<ResponseBody>, Failure> {
    let (local, pass) = enter(view, caller, to)?;
    let idempotent = head.idempotent;
    let mut request = request_to_instance(head, body);
    if local.told_callers
        && let Some(service) = caller.service()
    {
        let name = wire::reason(&service.to_string());
        request.headers_mut().insert(wire::CALLER, name);
    }
    let shut = local.gate.when_shut();
    let sent = worker
        .instances
        .send(&local.address, request, idempotent, to.patience);
    let (response, lease) = tokio::select! {
        biased;
        answer = sent => answer?,
        () = shut => return Err(Failure::broken("the copy became unreachable")),
    };
    let (mut parts, incoming) = response.into_parts();
    wire::remove_hop_by_hop(&mut parts.headers);
    wire::remove_ours(&mut parts.headers);
    let guards = Guards {
        pass: Some(pass),
        lease: Some(lease),
        ..Guards::default()
    };
    Ok(Response::from_parts(
        parts,
        ResponseBody::incoming(incoming, guards),
    ))
}

/// In origin form, as servers expect it.
pub fn request_to_instance(head: Head<'_>, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = origin_form(head.uri);
    *request.headers_mut() = head.headers;
    *request.version_mut() = Version::HTTP_11;
    wire::join_cookies(request.headers_mut());
    if has_unusual_body(&request) {
        let headers = request.headers_mut();
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    request
}

/// A body of unknown length, where hyper takes none for granted and would leave it out unsaid.
fn has_unusual_body(request: &Request<RequestBody>) -> bool {
    let body = request.body();
    matches!(*request.method(), Method::GET | Method::HEAD)
        && !body.is_end_stream()
        && body.size_hint().exact().is_none()
}

fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() {
        return uri.clone();
    }
    match uri.path_and_query() {
        Some(path) => Uri::from(path.clone()),
        None => Uri::default(),
    }
}

/// One connection of another proxy.
pub async fn serve(worker: Arc<Worker>, stream: TcpStream, client: SocketAddr) {
    let Some(place) = worker.place(Kind::Handshakes, Party::client(client.ip())) else {
        return;
    };
    let Some((stream, own_end)) = shake_hands(&worker, stream, &place).await else {
        return;
    };
    let peer = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let life = tls::Life::new(SystemTime::now(), own_end, peer);
    let Some(id) = tls::peer_id(&worker.view().tls, peer) else {
        return tracing::debug!("a peer's certificate names nobody who is let in");
    };
    let Some(caller) = worker.view().caller(id.name) else {
        return tracing::debug!("a peer's certificate names no caller of this cluster");
    };
    // Not by the caller: all gateways of the cluster are one.
    let party = Party::Peer(id.key.clone());
    let Some(peers_place) = worker.place(Kind::Mesh, party) else {
        return;
    };
    drop(place);
    let is_of_crowds = Width::of(stream.get_ref().1.alpn_protocol()).is_of_crowds();
    let serve = move |worker| {
        let peer = Arc::new(Peer {
            worker,
            caller,
            key: id.key,
            tickets: Arc::default(),
            keeper: peers_place.keeper(),
        });
        converse(peer, stream, life, peers_place)
    };
    match is_of_crowds.then(|| worker.bulkhead()).flatten() {
        Some(bulkhead) => bulkhead.serve(serve),
        None => serve(worker).await,
    }
}

async fn converse(peer: Arc<Peer>, stream: TlsStream<TcpStream>, life: tls::Life, place: Place) {
    let width = Width::of(stream.get_ref().1.alpn_protocol());
    let (worker, key) = (peer.worker.clone(), peer.key.clone());
    let service = service_fn(move |request| {
        let peer = peer.clone();
        async move { Ok::<_, std::convert::Infallible>(peer.answer(request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(SILENCE)
        .initial_stream_window_size(width.window())
        .max_frame_size(width.frame())
        .initial_connection_window_size(MOST_WINDOW)
        .max_concurrent_streams(width.streams())
        // As many may be given up at once: callers are trusted to, when their own clients leave.
        .max_pending_accept_reset_streams(width.streams() as usize)
        .max_local_error_reset_streams(width.streams() as usize)
        .max_header_list_size(2 * wire::MOST_HEADER_BYTES as u32)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = worker.stopping() => connection.as_mut().graceful_shutdown(),
        () = life.until_notice() => connection.as_mut().graceful_shutdown(),
        // Nothing is asked on it; what is on its way here is told that it did not begin.
        () = place.given_up() => connection.as_mut().graceful_shutdown(),
        () = worker.until_removed(&key) => return tracing::debug!("a peer was removed"),
    }
    tokio::select! {
        _ = connection.as_mut() => {}
        () = worker.until_removed(&key) => tracing::debug!("a peer was removed"),
        () = life.until_end() => tracing::debug!("a peer's connection ended with its certificate"),
    }
}

/// The TLS of a peer, and when our own certificate ends.
async fn shake_hands(
    worker: &Worker,
    stream: TcpStream,
    place: &Place,
) -> Option<(TlsStream<TcpStream>, SystemTime)> {
    // A peer that is gone by now is noticed in the handshake.
    let _ = peers::prepare(&stream);
    let (acceptor, own_end) = {
        let view = worker.view();
        (
            TlsAcceptor::from(view.tls.server.clone()),
            view.tls.server_end,
        )
    };
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => accepted,
        () = place.given_up() => return None,
    };
    match accepted {
        Ok(Ok(stream)) => return Some((stream, own_end)),
        Ok(Err(error)) => tracing::debug!(%error, "a peer was not let in"),
        Err(_) => tracing::debug!("a peer did not finish its handshake"),
    }
    None
}

/// Who calls on one connection.
struct Peer {
    worker: Arc<Worker>,
    caller: Caller,
    key: KeyFingerprint,
    tickets: Arc<Tickets>,
    keeper: Keeper,
}

impl Peer {
    /// The connection is kept while a stream is open.
    async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let busy = self.keeper.busy();
        let mut response = self.answer_one(request).await;
        response.body_mut().keep(busy);
        response
    }

    async fn answer_one(&self, mut request: Request<Incoming>) -> Response<ResponseBody> {
        if let Some(ticket) = Tickets::asked_for(request.headers()) {
            return self.is_taken(ticket).await;
        }
        let view = self.worker.view();
        if !view.tls.admits(&self.key) {
            return failed(Failure::Refused {
                reason: "the node of the caller was removed from this cluster".to_owned(),
            });
        }
        let Some((service, instance, epoch)) = target(request.headers()) else {
            return failed(Failure::not_begun("the request names no instance"));
        };
        if let Err(problem) = admit(&request) {
            return admission::refusal(&problem);
        }
        let to = Address {
            service: &service,
            instance: &instance,
            epoch,
            insist: request.headers().contains_key(wire::INSIST),
            patience: LONGEST_DIAL,
        };
        let result = if request.method() == Method::CONNECT {
            Box::pin(self.tunnel_to_instance(&view, &to, &mut request)).await
        } else {
            self.pass_on(&view, &to, request).await
        };
        result.unwrap_or_else(|failure| {
            if let Failure::Refused { reason } = &failure {
                self.worker.reports().call_refused(
                    self.caller.to_string(),
                    service.clone(),
                    reason.clone(),
                );
            }
            failed(failure)
        })
    }

    async fn is_taken(&self, ticket: u64) -> Response<ResponseBody> {
        if self.tickets.is_taken(ticket).await {
            return Response::new(ResponseBody::empty());
        }
        failed(Failure::not_begun("the body was not taken"))
    }

    async fn pass_on(
        &self,
        view: &View,
        to: &Address<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let (mut parts, incoming) = request.into_parts();
        let ticket = self.tickets.ticket(&parts.headers);
        let once = parts.headers.contains_key(wire::ONCE);
        wire::remove_ours_but_deadline(&mut parts.headers);
        let has_key = parts.headers.contains_key(wire::IDEMPOTENCY_KEY);
        let head = Head {
            idempotent: !once && is_idempotent(&parts.method, has_key),
            method: &parts.method,
            uri: &parts.uri,
            headers: parts.headers,
        };
        let body = match (incoming.is_end_stream(), ticket) {
            (true, _) => RequestBody::Empty,
            (false, None) => RequestBody::Once(incoming),
            (false, Some(ticket)) => RequestBody::Taken(Taken::new(incoming, ticket)),
        };
        call(&self.worker, view, &self.caller, to, head, body).await
    }

    /// A connection as one stream: its bytes go to the instance until both sides have ended, or the caller may no longer call.
    async fn tunnel_to_instance(
        &self,
        view: &View,
        to: &Address<'_>,
        request: &mut Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let (local, pass) = enter(view, &self.caller, to)?;
        let stream = instances::connect(&local.address, to.patience).await?;
        let upgrade = hyper::upgrade::on(request);
        let busy = self.keeper.busy();
        let (common, caller) = (self.worker.common(), self.caller.clone());
        tokio::spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                let carried = tunnel::carry(TokioIo::new(upgraded), stream);
                tokio::select! {
                    () = carried => {}
                    () = common.until_forbidden(&caller, &local.service) => {}
                }
            }
            drop((pass, busy));
        });
        Ok(Response::new(ResponseBody::empty()))
    }
}

/// The same as at the gateway, for another proxy may be older, or hold a stolen certificate. A tunnel is what `CONNECT` is for between proxies.
fn admit<B>(request: &Request<B>) -> Result<(), Problem> {
    admission::named_host(request.headers())?;
    if request.method() == Method::CONNECT {
        return Ok(());
    }
    admission::check(request.method(), request.uri(), request.headers())
}

fn target(headers: &HeaderMap) -> Option<(ResourceId, InstanceId, Epoch)> {
    let text = |name| headers.get(name)?.to_str().ok();
    Some((
        text(wire::SERVICE)?.parse().ok()?,
        text(wire::INSTANCE)?.parse().ok()?,
        Epoch(text(wire::EPOCH)?.parse().ok()?),
    ))
}

/// A failure as it travels back: the header says how far the request came.
fn failed(failure: Failure) -> Response<ResponseBody> {
    let (name, status, code, reason) = match failure {
        Failure::Refused { reason } => (
            wire::REFUSED,
            StatusCode::FORBIDDEN,
            Code::CallerNotDeclared,
            reason,
        ),
        Failure::Try { stage, reason } => {
            let (name, status) = match stage {
                Stage::NotBegun => (wire::NOT_BEGUN, StatusCode::SERVICE_UNAVAILABLE),
                Stage::Unreachable => (wire::UNREACHABLE, StatusCode::SERVICE_UNAVAILABLE),
                Stage::Broken => (wire::BROKEN, StatusCode::BAD_GATEWAY),
            };
            let code = if stage == Stage::Broken {
                Code::UpstreamBroken
            } else {
                Code::NoEndpoint
            };
            (name, status, code, reason)
        }
    };
    let value = wire::reason(&reason);
    let mut response = wire::problem_response(&Problem::new(code, reason));
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    response
}

/// The failure in a peer's answer, if it is one of the proxy and not of the instance.
pub fn failure_in<B>(response: &Response<B>) -> Option<Failure> {
    let suspicious = matches!(
        response.status(),
        StatusCode::FORBIDDEN | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE
    );
    if !suspicious {
        return None;
    }
    let text = |name| {
        let value = response.headers().get(name)?;
        Some(value.to_str().unwrap_or_default().to_owned())
    };
    None.or_else(|| text(wire::REFUSED).map(|reason| Failure::Refused { reason }))
        .or_else(|| text(wire::NOT_BEGUN).map(Failure::not_begun))
        .or_else(|| text(wire::UNREACHABLE).map(Failure::unreachable))
        .or_else(|| text(wire::BROKEN).map(Failure::broken))
}
