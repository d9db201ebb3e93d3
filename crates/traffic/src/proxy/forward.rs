//! The caller's side: one HTTP request from a gateway or a door to an endpoint, and again elsewhere when it fails and may.

use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Version};
use hyper::body::Incoming;
use hyper::{Request, Response};
use model::ids::ResourceId;
use model::traffic::Address;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::body::{Guards, RequestBody, ResponseBody};
use super::callee::{self, Head};
use super::failure::{Failure, is_gateway_failure};
use super::held;
use super::kept::Kept;
use super::mesh;
use super::pace::Pace;
use super::search::{Asked, Chosen, Search};
use super::shares::Party;
use super::view::{Caller, Place, Target};
use super::wire;
use super::worker::Worker;
use crate::problem::{Code, Problem};
use crate::retry::{Facts, dial_time, is_idempotent, is_safe, try_time};

/// When a caller asks for no timeout and the callee's is not known.
const LONGEST: Duration = Duration::from_secs(30);

/// Whom a request is from and where it goes.
pub struct Errand<'a> {
    pub caller: &'a Caller,
    /// Who has its share of what the service takes.
    pub party: &'a Party,
    pub service: &'a ResourceId,
    /// What the caller asks for, instead of what the callee says.
    pub timeout: Option<Duration>,
    /// [`model::traffic::Door::once`].
    pub once: bool,
    /// [`super::bulkhead::may_be_wide`].
    pub may_be_wide: bool,
}

impl Errand<'_> {
    /// The time for the whole request: a deadline that came with it only shortens it.
    pub fn time(&self, worker: &Worker, parts: &Parts) -> Time {
        let own = self.timeout.unwrap_or_else(|| {
            worker.look(|view| {
                let destination = view.destinations.get(self.service);
                destination.map_or(LONGEST, |it| it.traffic.timeout.duration())
            })
        });
        let asked = wire::deadline(&parts.headers);
        Time {
            began: Instant::now(),
            whole: asked.map_or(own, |asked| asked.min(own)),
        }
    }
}

/// The time for a request, until its answer begins. While the client still sends, it runs from what came last.
#[derive(Clone, Copy)]
pub struct Time {
    began: Instant,
    whole: Duration,
}

impl Time {
    pub fn whole(&self) -> Duration {
        self.whole
    }

    pub fn end(&self) -> Instant {
        self.began + self.whole
    }

    /// With a body, which may still be coming.
    fn end_with(&self, kept: &Kept) -> Instant {
        kept.moved().unwrap_or(self.began) + self.whole
    }

    fn left(&self, kept: &Kept) -> Duration {
        self.end_with(kept)
            .saturating_duration_since(Instant::now())
    }
}

/// Answers one request. The deadline holds until the answer begins; its body may take as long as it flows, as may the request's own.
pub async fn forward(
    worker: &Worker,
    errand: &Errand<'_>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let (mut parts, incoming) = request.into_parts();
    let time = errand.time(worker, &parts);
    parts.headers.remove(http::header::EXPECT);
    // A service may take its time, since that costs nobody but itself.
    let pace = (*errand.caller == Caller::Gateway).then(Pace::of_a_client);
    let kept = Kept::new(incoming, parts.extensions.remove(), pace);
    let result = search(worker, errand, &parts, &kept, time).await;
    kept.is_answered();
    let mut response = result
        .map(as_http1)
        .unwrap_or_else(|problem| refuse(worker, errand, &problem));
    if !kept.is_whole() {
        // What is left of the body is not waited for, so no other request can follow it.
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What the instance or the mesh spoke is no business of the client's connection.
pub fn as_http1(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
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

/// The client's own fault, and nobody else's.
fn client_broke_off(why: &str) -> Problem {
    Problem::new(
        Code::RequestBroken,
        format!("the request's body broke off before its end ({why}); it was not delivered"),
    )
}

async fn search(
    worker: &Worker,
    errand: &Errand<'_>,
    parts: &Parts,
    kept: &Kept,
    time: Time,
) -> Result<Response<ResponseBody>, Problem> {
    let has_key = parts.headers.contains_key(wire::IDEMPOTENCY_KEY);
    let idempotent = !errand.once && is_idempotent(&parts.method, has_key);
    let attempt = Attempt {
        worker,
        errand,
        parts,
        idempotent,
        kept,
        time,
    };
    let safe = !errand.once && is_safe(&parts.method);
    let search = Search::new(worker, errand.party, errand.service, safe, errand.once);
    let mut search = search.keeping(&parts.headers).sending(kept);
    loop {
        let chosen = match timeout_at(time.end_with(kept), search.next()).await {
            Ok(chosen) => chosen?,
            // It is still known that nothing began.
            Err(_) if !search.may_have_begun() => return Err(search.nobody_in_time()),
            Err(_) => return Err(out_of_time(errand.service)),
        };
        let (mut chosen, tried) = attempt.first(chosen, &mut search).await;
        match tried {
            Tried::Answered(mut response) => {
                response.body_mut().guards().slot = chosen.take_slot();
                chosen.keep(&parts.headers, response.headers_mut());
                return Ok(response);
            }
            Tried::Failed(failure) => {
                if let Some(why) = kept.broken() {
                    return Err(client_broke_off(&why));
                }
                let facts = Facts {
                    idempotent: attempt.idempotent,
                    replayable: kept.replayable(),
                };
                let failed = Box::pin(search.failed(chosen, failure, facts));
                let again = timeout_at(time.end_with(kept), failed).await;
                again.unwrap_or_else(|_| Err(out_of_time(errand.service)))?;
            }
            Tried::OutOfTime => {
                search.out_of_time(&chosen.asked);
                return Err(out_of_time(errand.service));
            }
        }
    }
}

/// What became of a try.
#[expect(
    clippy::large_enum_variant,
    reason = "it is made once a try and moved at once; a box would cost each answer an allocation"
)]
pub enum Tried {
    Answered(Response<ResponseBody>),
    Failed(Failure),
    /// The time for the whole request is over.
    OutOfTime,
}

impl From<Result<Response<ResponseBody>, Failure>> for Tried {
    fn from(result: Result<Response<ResponseBody>, Failure>) -> Self {
        match result {
            Ok(response) => Self::Answered(response),
            Err(failure) => Self::Failed(failure),
        }
    }
}

struct Attempt<'a> {
    worker: &'a Worker,
    errand: &'a Errand<'a>,
    parts: &'a Parts,
    idempotent: bool,
    kept: &'a Kept,
    time: Time,
}

impl Attempt<'_> {
    /// Tries `chosen`, and where it is silent others beside it. Returns the endpoint that the outcome is of.
    async fn first(&self, chosen: Chosen, search: &mut Search<'_>) -> (Chosen, Tried) {
        let (other, tried) = {
            let mut first = std::pin::pin!(self.make(&chosen));
            match timeout_at(self.end_of_try(&chosen.asked), first.as_mut()).await {
                Ok(result) => (None, result.into()),
                // Rare, and large: kept out of the future of every request.
                Err(_) => Box::pin(self.outlast(&chosen, first, search)).await,
            }
        };
        (other.unwrap_or(chosen), tried)
    }

    /// A try's time runs from when the client has sent all: until then the endpoint may well wait for the client.
    fn end_of_try(&self, asked: &Asked) -> Instant {
        let from = match self.kept.moved() {
            Some(moved) if self.kept.is_whole() => moved.max(asked.at),
            Some(_) => Instant::now(),
            None => asked.at,
        };
        from + try_time(self.time.whole, asked.suspect)
    }

    /// The first try is silent, and goes on; a safe request is sent elsewhere as well. The first answer is taken.
    async fn outlast(
        &self,
        chosen: &Chosen,
        mut first: Pin<&mut impl Future<Output = Result<Response<ResponseBody>, Failure>>>,
        search: &mut Search<'_>,
    ) -> (Option<Chosen>, Tried) {
        let mut others = FuturesUnordered::new();
        let mut first_goes_on = true;
        let mut latest = Some(chosen.asked.clone());
        loop {
            let end = self.time.end_with(self.kept);
            let of_try = latest.as_ref().map(|asked| self.end_of_try(asked));
            let wake = of_try.map_or(end, |of_try| of_try.min(end));
            tokio::select! {
                biased;
                result = first.as_mut(), if first_goes_on => match Tried::from(result) {
                    Tried::Failed(failure) if !others.is_empty() => {
                        search.failed_beside_others(chosen, &failure);
                        first_goes_on = false;
                    }
                    tried => return (None, chosen.after_all(tried)),
                },
                Some((other, tried)) = others.next(), if !others.is_empty() => match tried {
                    Tried::Failed(failure) if first_goes_on || !others.is_empty() => {
                        search.failed_beside_others(&other, &failure);
                    }
                    tried => return (Some(other), tried),
                },
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= self.time.end_with(self.kept) {
                        return (None, Tried::OutOfTime);
                    }
                    if let Some(slow) = latest.take_if(|slow| now >= self.end_of_try(slow))
                        && let Some(other) = search.silent(&slow)
                    {
                        latest = Some(other.asked.clone());
                        others.push(self.beside(other));
                    }
                }
            }
        }
    }

    async fn beside(&self, other: Chosen) -> (Chosen, Tried) {
        let tried = self.make(&other).await.into();
        (other, tried)
    }

    async fn make(&self, chosen: &Chosen) -> Result<Response<ResponseBody>, Failure> {
        let body = self.kept.body();
        let mut response = match &chosen.endpoint().place {
            Place::Instance(target) if target.node == chosen.view.node => {
                self.here(chosen, target, body).await
            }
            Place::Instance(target) => self.over_the_mesh(chosen, target, body).await,
            Place::External(address) => self.outside(address, body).await,
        }?;
        // What it says of a request that its client broke off is no word about itself.
        let well = !is_gateway_failure(response.status()) || self.kept.broken().is_some();
        chosen.answered(self.worker.now(), well);
        let settled = response.body_mut().settle().await;
        settled.map_err(|error| Failure::broken(format!("its answer broke off: {error}")))?;
        Ok(response)
    }

    fn patience(&self) -> Duration {
        dial_time(self.time.left(self.kept))
    }

    fn head(&self) -> Head<'_> {
        let mut headers = self.parts.headers.clone();
        let left = self.time.left(self.kept);
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
            patience: self.patience(),
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
        let service = &chosen.asked.destination.shared;
        let wide_for = self.errand.may_be_wide.then_some(service);
        let mut way = peers
            .for_request(&chosen.view, caller, target, wide_for, self.patience())
            .await?;
        let head = self.head();
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = mesh::uri(head.uri);
        *request.headers_mut() = head.headers;
        mesh::address_to(&mut request, chosen, target);
        if self.errand.once {
            let headers = request.headers_mut();
            headers.insert(wire::ONCE, HeaderValue::from_static("1"));
        }
        if way.can_be_asked {
            held::hold(&mut request, &way.sender, peers.ticket());
        }
        let response = mesh::send(&mut way.sender, request).await?;
        let (parts, incoming) = response.into_parts();
        let guards = Guards {
            seat: way.seat,
            ..Guards::default()
        };
        Ok(Response::from_parts(
            parts,
            ResponseBody::from_mesh(incoming, guards),
        ))
    }

    /// HTTP/1.1 without TLS.
    async fn outside(
        &self,
        address: &Address,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut head = self.head();
        address_outside(&mut head.headers, address);
        let request = callee::request_to_instance(head, body);
        let (response, lease) = self
            .worker
            .instances
            .send(address, request, self.idempotent, self.patience())
            .await?;
        let (mut parts, incoming) = response.into_parts();
        wire::remove_hop_by_hop(&mut parts.headers);
        wire::remove_ours(&mut parts.headers);
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

/// Makes a request's headers ready for what runs elsewhere: the host asked for is the one that is dialled, and ours are no business of its.
pub fn address_outside(headers: &mut HeaderMap, address: &Address) {
    wire::remove_ours(headers);
    if let Some(host) = host_of(address) {
        headers.insert(http::header::HOST, host);
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
