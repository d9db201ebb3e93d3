//! From a request to its handler: one table, from the operations of `api`. Every request resolves to a principal and passes `authorize`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::operations::{self, Operation};
use api::problem::Problem;
use api::wire::Kind;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};
use boundary::authorize::authorize;
use boundary::token::Token;
use futures_util::FutureExt;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use model::boundary::Principal;
use tls::PeerId;

use crate::actions;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::handlers;
use crate::idempotency;
use crate::identity;
use crate::problems;
use crate::seats::Seat;
use crate::state::Server;
use crate::strangers;

/// A body beyond this is left unread when its request is refused.
const DISCARDED_MAX_BYTES: usize = 64 << 10;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

pub type Handler = fn(Arc<Server>, Call) -> Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What the acceptor knows of the other side.
#[derive(Clone)]
pub struct Peer {
    /// Of its certificate, which was checked.
    pub id: Option<PeerId>,
    /// When that certificate ends, and with it the connection.
    pub ends_at: Option<jiff::Timestamp>,
    /// The connection's own.
    pub seat: Arc<Seat>,
}

/// Every operation of the API with its handler.
pub fn router(server: &Arc<Server>) -> Router {
    let operations: Vec<Arc<Operation>> = operations::all().into_iter().map(Arc::new).collect();
    let mut router = Router::new();
    for place in places(&operations) {
        if let Some(method) = route(server, &place) {
            router = router.route(place.path, method);
        }
    }
    let title = "this path does not take this method";
    router
        .fallback(leads_nowhere(server.clone(), || {
            Problem::not_found("this path")
        }))
        .method_not_allowed_fallback(leads_nowhere(server.clone(), move || {
            Problem::new(405, "method-not-allowed", title)
        }))
}

/// Answers where no operation is, within the bounds that those have for a stranger.
fn leads_nowhere(
    server: Arc<Server>,
    problem: impl Fn() -> Problem + Clone + Send + Sync + 'static,
) -> impl Fn(Request<Body>) -> Pin<Box<dyn Future<Output = Response> + Send>> + Clone {
    move |request| {
        let problem = problem().remedy("see /v1/openapi.json");
        let server = server.clone();
        async move {
            match principal(&server, &request) {
                Ok(Principal::Anonymous) | Err(_) if is_crowded(&request) => {
                    return call::refused(&strangers::busy());
                }
                Ok(Principal::Anonymous) | Err(_) => server.refusal_rate.refuse().await,
                Ok(_) => {}
            }
            call::refused(&problem)
        }
        .boxed()
    }
}

/// An operation at a path.
struct Place {
    path: &'static str,
    operation: Arc<Operation>,
    /// The `{kind}` that the path spells out.
    kind: Option<Kind>,
}

/// Where the operations are. One for any `{kind}` is also at the paths that others have for one kind, which would hide it there.
fn places(operations: &[Arc<Operation>]) -> Vec<Place> {
    let mut places = Vec::new();
    for operation in operations {
        places.push(Place {
            path: operation.path,
            operation: operation.clone(),
            kind: None,
        });
        for kind in Kind::ALL
            .into_iter()
            .filter(|_| operation.path.contains("{kind}"))
        {
            let shape = shape(&operation.path.replace("{kind}", kind.as_str()));
            let mut hiding = operations
                .iter()
                .filter(|other| self::shape(other.path) == shape);
            let Some(path) = hiding.clone().next().map(|other| other.path) else {
                continue;
            };
            if !hiding.any(|other| other.method == operation.method) {
                places.push(Place {
                    path,
                    operation: operation.clone(),
                    kind: Some(kind),
                });
            }
        }
    }
    places
}

/// A path without the names of its parameters.
fn shape(path: &str) -> String {
    let parts = path
        .split('/')
        .map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

fn route(server: &Arc<Server>, place: &Place) -> Option<MethodRouter> {
    let handler = handlers::of(place.operation.id)?;
    let filter = match place.operation.method {
        Method::PUT => MethodFilter::PUT,
        Method::POST => MethodFilter::POST,
        Method::PATCH => MethodFilter::PATCH,
        Method::DELETE => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    };
    let (server, operation, kind) = (server.clone(), place.operation.clone(), place.kind);
    Some(on(filter, move |mut request: Request<Body>| {
        let (server, operation) = (server.clone(), operation.clone());
        if let Some(kind) = kind {
            request.extensions_mut().insert(kind);
        }
        async move { answer(server, operation, handler, request).await }
    }))
}

async fn answer(
    server: Arc<Server>,
    operation: Arc<Operation>,
    handler: Handler,
    request: Request<Body>,
) -> Response {
    let answered = handle(server.clone(), operation, handler, request).boxed();
    match answered.await {
        Ok(response) => response,
        Err(problem) => {
            if matches!(problem.status, 401 | 403) {
                server.refusal_rate.refuse().await;
            }
            call::refused(&problem)
        }
    }
}

/// Who asks, and whether they may, before anything of the body is read.
async fn handle(
    server: Arc<Server>,
    operation: Arc<Operation>,
    handler: Handler,
    request: Request<Body>,
) -> Answer {
    let principal = match principal(&server, &request) {
        Ok(principal) => principal,
        Err(problem) => {
            if !is_crowded(&request) {
                discard(&server, request.into_body()).await;
            }
            return Err(problem);
        }
    };
    if principal == Principal::Anonymous && is_crowded(&request) {
        return Err(strangers::busy());
    }
    let call = Call::new(principal, &operation, request).await?;
    let action = actions::of(&server, operation.id, &call)?;
    if let Err(refusal) = authorize(&call.principal, &action) {
        let refusal = refusal.in_words(&call.principal, actions::words(operation.id));
        let deed = deed(&operation, &call);
        server.refused(&deed, &refusal.reason.code, &refusal.reason.message);
        discard(&server, call.request.into_body()).await;
        return Err(problems::of_refusal(&refusal));
    }
    match actions::changes(&operation) {
        true => to_its_end(server, move |server| run(server, operation, handler, call)).await,
        false => run(server, operation, handler, call).await,
    }
}

/// Whether too much is asked at once on the connection of a stranger, which then ends.
fn is_crowded(request: &Request<Body>) -> bool {
    let Some(peer) = request.extensions().get::<Peer>() else {
        return false;
    };
    let crowded = peer.seat.answers() > strangers::ANSWERS_MOST;
    if crowded {
        peer.seat.close();
    }
    crowded
}

/// A change that was begun is done, kept and remembered whether or not who asked for it still waits.
async fn to_its_end<F>(server: Arc<Server>, work: impl FnOnce(Arc<Server>) -> F) -> Answer
where
    F: Future<Output = Answer> + Send + 'static,
{
    let permit = server.gates.changes.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        Problem::unavailable("busy", "too many changes are under way")
            .remedy("repeat it in a moment")
    })?;
    let work = work(server);
    let done = tokio::spawn(async move {
        let _permit = permit;
        work.await
    });
    done.await
        .unwrap_or_else(|panic| Err(Problem::internal(panic.to_string())))
}

async fn run(
    server: Arc<Server>,
    operation: Arc<Operation>,
    handler: Handler,
    call: Call,
) -> Answer {
    let is_change = operation.method != Method::GET && actions::is_change(operation.id);
    let change = is_change.then(|| deed(&operation, &call));
    let answered = match operation.keyed {
        true => idempotency::once(server.clone(), handler, call).await,
        false => handler(server.clone(), call).await,
    };
    if let (Err(problem), Some(deed)) = (&answered, change) {
        server.refused(&deed, &problem.code, &problem.title);
    }
    answered
}

/// What is asked, as a refusal names it.
fn deed(operation: &Operation, call: &Call) -> Deed {
    Deed::new(
        call.principal.name(),
        operation.id,
        call.request.uri().path(),
    )
}

/// Takes a small body off the wire before a refusal: over HTTP/2 an answer to a request that is still being sent resets its stream, which
/// some clients take for a failure and never read the answer. Where many are refused at once, only some are given this.
pub async fn discard(server: &Server, mut body: Body) {
    let Ok(_permit) = server.gates.discards.try_acquire() else {
        return;
    };
    let whole = async {
        let mut length = 0;
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.data_ref().map_or(0, bytes::Bytes::len);
            if length > DISCARDED_MAX_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, whole).await;
}

/// Who asks: the certificate's name, else the token's.
fn principal(server: &Server, request: &Request<Body>) -> Result<Principal, Problem> {
    let peer = request.extensions().get::<Peer>();
    if let Some(id) = peer.and_then(|peer| peer.id.as_ref()) {
        let principal = tls::principal(&id.name);
        server.look(|world| identity::admits(world, &principal, &id.key))?;
        return Ok(principal);
    }
    let Some(value) = request.headers().get(header::AUTHORIZATION) else {
        return Ok(Principal::Anonymous);
    };
    let text = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("Bearer "));
    // A join token is no principal: `join` itself looks at it.
    let Some(Ok(token)) = text.map(str::parse::<Token>) else {
        return Ok(Principal::Anonymous);
    };
    let (hash, now) = (token.hash(), server.now());
    let name = server.look(|world| {
        let record = world.tokens.get(&hash)?;
        record.admits_hash(hash, now).ok()?;
        Some(record.name.clone())
    });
    if let (Some(_), Some(peer)) = (&name, peer) {
        peer.seat.prove();
    }
    Ok(
        name.map_or(Principal::Anonymous, |name| Principal::Administrator {
            name,
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_table_has_a_handler() {
        let without: Vec<_> = operations::all()
            .iter()
            .map(|operation| operation.id)
            .filter(|id| handlers::of(id).is_none())
            .collect();
        assert!(without.is_empty(), "{without:?}");
        assert!(handlers::of("nothing").is_none());
    }

    #[test]
    fn every_operation_of_the_table_has_words() {
        let without: Vec<_> = operations::all()
            .iter()
            .map(|operation| operation.id)
            .filter(|id| actions::words(id) == actions::words("nothing"))
            .collect();
        assert!(without.is_empty(), "{without:?}");
    }

    #[test]
    fn keyed_operations_are_posts() {
        for operation in operations::all().iter().filter(|operation| operation.keyed) {
            assert_eq!(operation.method, Method::POST, "{}", operation.id);
        }
    }
}
