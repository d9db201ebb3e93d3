//! The caller's side: one HTTP request from a gateway or a door to an endpoint, and again elsewhere when it fails and may.

use std::time::Duration;

use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response};
use model::ids::ResourceId;
use model::traffic::Address;
use tokio::time::{Instant, timeout_at};

use super::body::{Guards, Kept, RequestBody, ResponseBody};
use super::callee::{self, Head};
use super::failure::{Failure, chain};
use super::held;
use super::search::{Chosen, Search};
use super::view::{Caller, Place, Target};
use super::wire;
use super::worker::Worker;
use crate::problem::{Code, Problem};
use crate::retry::{Facts, is_idempotent};

/// When a caller asks for no timeout and the callee's is not known.
const LONGEST: Duration = Duration::from_secs(30);

/// Whom a request is from and where it goes.
pub struct Errand<'a> {
    pub caller: &'a Caller,
    pub service: &'a ResourceId,
    /// What the caller asks for, instead of what the callee says.
    pub timeout: Option<Duration>,
    /// [`model::traffic::Door::once`].
    pub once: bool,
}

impl Errand<'_> {
    /// The end of the time for the whole request: a deadline that came with it only shortens it.
    pub fn deadline(&self, worker: &Worker, parts: &Parts) -> Instant {
        let own = self.timeout.unwrap_or_else(|| {
            let view = worker.view();
            let destination = view.destinations.get(self.service);
            destination.map_or(LONGEST, |it| it.traffic.timeout.duration())
        });
        let asked = wire::deadline(&parts.headers);
        Instant::now() + asked.map_or(own, |asked| asked.min(own))
    }
}

/// Answers one request. The deadline holds until the answer begins; its body may take as long as it flows.
pub async fn forward(
    worker: &Worker,
    errand: &Errand<'_>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let (mut parts, incoming) = request.into_parts();
    let deadline = errand.deadline(worker, &parts);
    wire::remove_hop_by_hop(&mut parts.headers);
    parts.headers.remove(http::header::EXPECT);
    let kept = Kept::new(incoming);
    search(worker, errand, &parts, &kept, deadline)
        .await
        .map(as_http1)
        .unwrap_or_else(|problem| refuse(worker, errand, &problem))
}

/// What the instance or the mesh spoke is no business of the client's connection.
fn as_http1(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    *response.version_mut() = Version::HTTP_11;
    response
}

/// The problem as an answer; a refused call is also told to the agent.
pub fn refuse(worker: &Worker, errand: &Errand<'_>, problem: &Problem) -> Response<ResponseBody> {
    if problem.code == Code::CallerNotDeclared {
        worker.reports().call_refused(
            errand.caller.to_string(),
            errand.service.clone(),
            problem.detail.clone(),
        );
    }
    wire::problem_response(problem)
}

pub fn out_of_time(service: &ResourceId) -> Problem {
    Problem::new(
        Code::DeadlineExceeded,
        format!(
            "service {service} did not answer in time; whether the request was done is unknown"
        ),
    )
}

async fn search(
    worker: &Worker,
    errand: &Errand<'_>,
    parts: &Parts,
    kept: &Kept,
    deadline: Instant,
) -> Result<Response<ResponseBody>, Problem> {
    let has_key = parts.headers.contains_key(wire::IDEMPOTENCY_KEY);
    let idempotent = !errand.once && is_idempotent(&parts.method, has_key);
    let mut search = Search::new(worker, errand.service, errand.once);
    loop {
        let chosen = match timeout_at(deadline, search.next()).await {
            Ok(chosen) => chosen?,
            // It is still known that nothing began.
            Err(_) if !search.may_have_begun() => return Err(search.nobody_in_time()),
            Err(_) => return Err(out_of_time(errand.service)),
        };
        let attempt = Attempt {
            worker,
            errand,
            parts,
            idempotent,
            deadline,
        };
        let made = timeout_at(deadline, attempt.make(&chosen, kept.body())).await;
        match made.map_err(|_| out_of_time(errand.service))? {
            Ok(mut response) => {
                chosen.answered(worker.now(), !is_gateway_failure(response.status()));
                response.body_mut().guards().in_flight = Some(chosen.in_flight);
                return Ok(response);
            }
            Err(failure) => {
                let facts = Facts {
                    idempotent,
                    replayable: kept.replayable(),
                };
                let failed = Box::pin(search.failed(chosen, failure, facts));
                let again = timeout_at(deadline, failed).await;
                again.unwrap_or_else(|_| Err(out_of_time(errand.service)))?;
            }
        }
    }
}

fn is_gateway_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

struct Attempt<'a> {
    worker: &'a Worker,
    errand: &'a Errand<'a>,
    parts: &'a Parts,
    idempotent: bool,
    deadline: Instant,
}

impl Attempt<'_> {
    async fn make(
        &self,
        chosen: &Chosen,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Failure> {
        match &chosen.endpoint().place {
            Place::Instance(target) if target.node == chosen.view.node => {
                self.here(chosen, target, body).await
            }
            Place::Instance(target) => self.over_the_mesh(chosen, target, body).await,
            Place::External(address) => self.outside(address, body).await,
        }
    }

    fn head(&self) -> Head<'_> {
        let mut headers = self.parts.headers.clone();
        let left = self.deadline.saturating_duration_since(Instant::now());
        headers.insert(wire::DEADLINE, HeaderValue::from(left.as_millis() as u64));
        Head {
            method: &self.parts.method,
            uri: &self.parts.uri,
            headers,
            idempotent: self.idempotent,
        }
    }

    async fn here(
        &self,
        chosen: &Chosen,
        target: &Target,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Failure> {
        let to = callee::Address {
            service: self.errand.service,
            instance: &target.instance,
            epoch: target.epoch,
            insist: chosen.insists,
        };
        callee::call(
            self.worker,
            &chosen.view,
            self.errand.caller,
            &to,
            self.head(),
            body,
        )
        .await
    }

    async fn over_the_mesh(
        &self,
        chosen: &Chosen,
        target: &Target,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Failure> {
        let caller = self.errand.caller.service();
        let peers = &self.worker.peers;
        let (mut sender, seat) = peers
            .for_request(&chosen.view, caller, target, &chosen.destination.shared)
            .await?;
        let head = self.head();
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = mesh_uri(head.uri);
        *request.headers_mut() = head.headers;
        address_to(&mut request, chosen, target);
        if self.errand.once {
            let headers = request.headers_mut();
            headers.insert(wire::ONCE, HeaderValue::from_static("1"));
        }
        held::hold(&mut request, &sender, peers.ticket());
        let response = send_over_the_mesh(&mut sender, request).await?;
        let (parts, incoming) = response.into_parts();
        let guards = Guards {
            seat,
            ..Guards::default()
        };
        Ok(Response::from_parts(
            parts,
            ResponseBody::incoming(incoming, guards),
        ))
    }

    /// HTTP/1.1 without TLS. The host asked for is the one that is dialled.
    async fn outside(
        &self,
        address: &Address,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut head = self.head();
        wire::remove_ours(&mut head.headers);
        if let Some(host) = host_of(address) {
            head.headers.insert(http::header::HOST, host);
        }
        let request = callee::request_to_instance(head, body);
        let (response, lease) = self
            .worker
            .instances
            .send(address, request, self.idempotent)
            .await?;
        let (mut parts, incoming) = response.into_parts();
        wire::remove_hop_by_hop(&mut parts.headers);
        let guards = Guards {
            lease: Some(lease),
            ..Guards::default()
        };
        Ok(Response::from_parts(
            parts,
            ResponseBody::incoming(incoming, guards),
        ))
    }
}

fn host_of(address: &Address) -> Option<HeaderValue> {
    let text = match address {
        Address::External { host, port: 80 } => host.clone(),
        Address::External { host, port } => format!("{host}:{port}"),
        Address::Tcp { address } => address.to_string(),
        Address::Unix { .. } => return None,
    };
    HeaderValue::from_str(&text).ok()
}

/// The answer of the instance; what the other proxy says of a request that did not get there becomes a failure.
pub async fn send_over_the_mesh(
    sender: &mut SendRequest<RequestBody>,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, Failure> {
    let response = sender
        .try_send_request(request)
        .await
        .map_err(|mut error| {
            let begun = error.take_message().is_none() && !surely_unprocessed(error.error());
            let reason = chain(error.error());
            if begun {
                Failure::broken(reason)
            } else {
                Failure::unreachable(reason)
            }
        })?;
    match callee::failure_in(&response) {
        Some(failure) => Err(failure),
        None => Ok(response),
    }
}

/// Which instance the peer shall hand it to.
pub fn address_to<B>(request: &mut Request<B>, chosen: &Chosen, target: &Target) {
    let headers = request.headers_mut();
    headers.insert(wire::SERVICE, chosen.destination.header.clone());
    if chosen.insists {
        headers.insert(wire::INSIST, HeaderValue::from_static("1"));
    }
    headers.insert(wire::INSTANCE, target.instance_header.clone());
    headers.insert(wire::EPOCH, target.epoch_header.clone());
}

/// HTTP/2 wants scheme and authority; the host that the client asked for travels in its own header, untouched.
fn mesh_uri(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static("mesh"));
    parts.path_and_query = uri.path_and_query().cloned();
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    Uri::from_parts(parts).unwrap_or_default()
}

/// The peer said that it did not look at the stream: REFUSED_STREAM, or a GOAWAY that names an earlier one as the last.
fn surely_unprocessed(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(h2) = current.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (h2.is_go_away()
                    && h2.is_remote()
                    && h2.reason() == Some(h2::Reason::NO_ERROR));
        }
        cause = current.source();
    }
    false
}
