//! Connections whose bytes are passed on as they are: TCP doors, and HTTP connections that become something else (WebSocket).
//!
//! Between proxies a connection is one CONNECT stream. An upgrade is an ordinary HTTP/1.1 exchange *inside* such a tunnel, so the
//! mesh need not know what it becomes.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, Uri, Version, header};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use model::ids::ResourceId;
use model::traffic::Door;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout_at;
use tokio_util::either::Either;

use super::body::{Guards, RequestBody, ResponseBody};
use super::callee;
use super::client::ClientStream;
use super::failure::{Failure, chain, is_gateway_failure};
use super::forward::{self, Errand, Time, out_of_time};
use super::gate::Pass;
use super::instances;
use super::mesh;
use super::refusal::Refusal;
use super::search::{Chosen, Search, Slot};
use super::shares::Party;
use super::stream::Stream;
use super::upgrades::{self, Holding};
use super::view::{Caller, Place, Target};
use super::wire;
use super::worker::{Common, Worker};
use crate::problem::Problem;
use crate::retry::{Facts, LONGEST_DIAL, try_time};

/// Bytes read at once in each direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// A way to an instance for bytes: a connection, or a stream of the mesh.
type Io = Either<Stream, TokioIo<Upgraded>>;

/// An open tunnel and what must last as long as it does.
pub struct Tunnel {
    io: Io,
    pass: Option<Pass>,
    slot: Option<Slot>,
}

/// Copies both ways until both have ended; the end of one direction is passed on alone.
pub async fn carry(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
) {
    // A connection that breaks ends the tunnel; there is nobody else to tell.
    let _ =
        tokio::io::copy_bidirectional_with_sizes(&mut one, &mut other, BUFFER_BYTES, BUFFER_BYTES)
            .await;
}

/// A TCP door: finds an endpoint and carries the connection.
pub async fn serve_tcp(worker: &Worker, caller: &Caller, door: &Arc<Door>, client: ClientStream) {
    let service = &door.need;
    let party = &Party::Caller(caller.clone());
    match open(worker, caller, party, service).await {
        Ok(tunnel) => {
            let leave = Leave::new(worker, caller, door, tunnel.pass.as_ref());
            tokio::select! {
                () = carry(client, tunnel.io) => {}
                () = leave.taken_away() => {}
            }
            drop((tunnel.pass, tunnel.slot));
        }
        Err(problem) => {
            let errand = Errand {
                caller,
                party,
                service,
                timeout: None,
                once: false,
                may_be_wide: false,
            };
            forward::refuse(worker, &errand, &problem);
            tracing::debug!(%service, detail = problem.detail, "a connection found no endpoint");
        }
    }
}

/// What a caller's open connection rests on, beside both ends: that it declares the need, and that the callee's side, where that is here, knows it.
struct Leave {
    common: Arc<Common>,
    caller: Caller,
    door: Arc<Door>,
    callee_is_here: bool,
}

impl Leave {
    fn new(worker: &Worker, caller: &Caller, door: &Arc<Door>, pass: Option<&Pass>) -> Self {
        Self {
            common: worker.common(),
            caller: caller.clone(),
            door: door.clone(),
            callee_is_here: pass.is_some(),
        }
    }

    /// Completes when it is there no more, which is told.
    async fn taken_away(&self) {
        let (common, door) = (&self.common, &self.door);
        let undeclared = common.until_view(|view| view.is_undeclared(door));
        let forbidden = async {
            match self.callee_is_here {
                true => common.until_forbidden(&self.caller, &door.need).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = undeclared => Refusal::undeclared(door).tell(&common.reports),
            () = forbidden => {}
        }
    }
}

/// Nothing of the connection has been sent before it is open, so that any failure may be repeated.
const REPEATABLE: Facts = Facts {
    idempotent: true,
    replayable: true,
};

async fn open(
    worker: &Worker,
    caller: &Caller,
    party: &Party,
    service: &ResourceId,
) -> Result<Tunnel, Problem> {
    let mut search = Search::new(worker, party, service, false, false);
    loop {
        let mut chosen = search.next().await?;
        match dial(worker, caller, &chosen).await {
            Ok((io, pass)) => {
                chosen.answered(worker.now(), true);
                return Ok(Tunnel {
                    io,
                    pass,
                    slot: chosen.take_slot(),
                });
            }
            Err(failure) => search.failed(chosen, failure, REPEATABLE).await?,
        }
    }
}

async fn dial(
    worker: &Worker,
    caller: &Caller,
    chosen: &Chosen,
) -> Result<(Io, Option<Pass>), Failure> {
    match &chosen.endpoint().place {
        Place::Instance(target) if target.node == chosen.view.node => {
            let to = callee::Address {
                service: &chosen.asked.destination.service,
                instance: &target.instance,
                epoch: target.epoch,
                insist: chosen.insists,
                patience: LONGEST_DIAL,
            };
            let (local, pass) = callee::enter(&chosen.view, caller, &to)?;
            let stream = instances::connect(&local.address, LONGEST_DIAL).await?;
            Ok((Io::Left(stream), Some(pass)))
        }
        Place::Instance(target) => Ok((over_the_mesh(worker, caller, chosen, target).await?, None)),
        Place::External(address) => {
            let stream = instances::connect(address, LONGEST_DIAL).await?;
            Ok((Io::Left(stream), None))
        }
    }
}

async fn over_the_mesh(
    worker: &Worker,
    caller: &Caller,
    chosen: &Chosen,
    target: &Target,
) -> Result<Io, Failure> {
    let mut sender = worker
        .peers
        .for_tunnel(&chosen.view, caller.service(), target, LONGEST_DIAL)
        .await?;
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::from_static("mesh:1");
    mesh::address_to(&mut request, chosen, target);
    let response = mesh::send(&mut sender, request).await?;
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|error| Failure::broken(chain(&error)))?;
    Ok(Io::Right(TokioIo::new(upgraded)))
}

const WEBSOCKET: &str = "websocket";

/// Whether a request asks to become a WebSocket (RFC 6455, 4.1). Any other upgrade is an offer that a server may ignore, and that of an HTTP/1.0 request
/// one that it must ignore (RFC 9110, 7.8): the request is served as it is, its body with it.
pub fn asks_for_upgrade<B: Body>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().contains_key(header::UPGRADE)
        && *request.method() == Method::GET
        && request.body().is_end_stream()
        && wire::has_token(request.headers(), &header::UPGRADE, WEBSOCKET)
        && wire::has_token(request.headers(), &header::CONNECTION, "upgrade")
}

/// What a client takes of a service's connections; nothing where the service is not known, which is told elsewhere.
fn share(
    worker: &Worker,
    client: &Party,
    service: &ResourceId,
) -> Result<Option<Holding>, Problem> {
    let view = worker.view();
    let Some(destination) = view.destinations.get(service) else {
        return Ok(None);
    };
    let most = upgrades::share(destination);
    let share = worker.upgrades().take(client, service, most);
    share
        .map(Some)
        .ok_or_else(|| upgrades::share_is_taken(service))
}

/// Passes on a request that asks for an upgrade, over a connection of its own.
pub async fn upgrade(
    worker: &Worker,
    errand: &Errand<'_>,
    door: Option<&Arc<Door>>,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    let share = match errand.party {
        // It does not say whose it is.
        Party::Balancer(_) => None,
        party => match share(worker, party, errand.service) {
            Ok(share) => share,
            Err(problem) => return forward::refuse(worker, errand, &problem),
        },
    };
    let client = hyper::upgrade::on(&mut request);
    let (parts, _) = request.into_parts();
    let time = errand.time(worker, &parts);
    let asked = timeout_at(time.end(), ask(worker, errand, parts, time)).await;
    let result = asked.unwrap_or_else(|_| Err(out_of_time(errand.service)));
    let (mut response, pass, slot) = match result {
        Ok(answer) => answer,
        Err(problem) => return forward::refuse(worker, errand, &problem),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, incoming) = response.into_parts();
        wire::remove_hop_by_hop(&mut parts.headers);
        wire::remove_ours(&mut parts.headers);
        let guards = Guards {
            slot,
            pass,
            ..Guards::default()
        };
        let body = ResponseBody::incoming(incoming, guards);
        return forward::as_http1(Response::from_parts(parts, body));
    }
    let instance = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    wire::remove_ours(&mut parts.headers);
    let leave = door.map(|door| Leave::new(worker, errand.caller, door, pass.as_ref()));
    tokio::spawn(async move {
        let taken_away = async {
            match &leave {
                Some(leave) => leave.taken_away().await,
                None => std::future::pending().await,
            }
        };
        if let (Ok(client), Ok(instance)) = tokio::join!(client, instance) {
            let (client, instance) = (TokioIo::new(client), TokioIo::new(instance));
            tokio::select! {
                () = upgrades::carry_until_idle(client, instance, upgrades::IDLE) => {}
                () = taken_away => {}
            }
        }
        drop((pass, slot, share));
    });
    Response::from_parts(parts, ResponseBody::empty())
}

/// An answer's head, and what lasts as long as what comes after it.
type Asked = (Response<Incoming>, Option<Pass>, Option<Slot>);

/// A copy is judged by the head of its answer: that a connection came about says nothing of one that accepts and never answers.
async fn ask(
    worker: &Worker,
    errand: &Errand<'_>,
    mut parts: http::request::Parts,
    time: Time,
) -> Result<Asked, Problem> {
    let asked = parts.headers.clone();
    let headers = &mut parts.headers;
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
    let search = Search::new(worker, errand.party, errand.service, false, errand.once);
    let mut search = search.keeping(&asked);
    let facts = Facts {
        idempotent: !errand.once,
        ..REPEATABLE
    };
    loop {
        let mut chosen = search.next().await?;
        let tried = {
            let mut tried = std::pin::pin!(ask_one(worker, errand, &chosen, &parts));
            let end = chosen.asked.at + try_time(time.whole(), chosen.asked.suspect);
            match timeout_at(end, tried.as_mut()).await {
                Ok(tried) => tried,
                Err(_) => {
                    // It goes on: what is upgraded is not asked for twice.
                    let _elsewhere = search.silent(&chosen.asked);
                    let tried = tried.await;
                    if tried.is_ok() {
                        chosen.endpoint().load.revive();
                    }
                    tried
                }
            }
        };
        match tried {
            Ok((response, pass)) => {
                chosen.answered(worker.now(), !is_gateway_failure(response.status()));
                return Ok((response, pass, chosen.take_slot()));
            }
            Err(failure) => search.failed(chosen, failure, facts).await?,
        }
    }
}

async fn ask_one(
    worker: &Worker,
    errand: &Errand<'_>,
    chosen: &Chosen,
    parts: &http::request::Parts,
) -> Result<(Response<Incoming>, Option<Pass>), Failure> {
    let (io, pass) = dial(worker, errand.caller, chosen).await?;
    let mut headers = parts.headers.clone();
    if let Place::External(address) = &chosen.endpoint().place {
        forward::address_outside(&mut headers, address);
    }
    let head = callee::Head {
        method: &parts.method,
        uri: &parts.uri,
        headers,
        idempotent: false,
    };
    let request = callee::request_to_instance(head, RequestBody::Empty);
    let answered = exchange(io, request).await;
    let response = answered.map_err(|error| Failure::broken(chain(&error)))?;
    Ok((response, pass))
}

async fn exchange(io: Io, request: Request<RequestBody>) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        // Its errors reach the request, or the upgraded stream.
        let _ = connection.with_upgrades().await;
    });
    sender.send_request(request).await
}
