//! What people ask the engines of databases and topics: forwarded over the tunnel of the node that runs it, to the engine's own socket.

use std::sync::Arc;
use std::time::Duration;

use api::problem::Problem;
use api::wire::{EngineView, InstanceView};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, header};
use model::compute::InstanceState;
use model::control::Reason;
use model::ids::{ProjectName, ResourceId};
use model::state::EngineStatus;
use tokio::time::{Instant, timeout_at};

use super::projects;
use crate::auditor::Deed;
use crate::call::{Answer, Call};
use crate::problems;
use crate::state::Server;
use crate::views;

/// Longest answer: a message of the longest data, whose every byte JSON writes as six at worst.
const ANSWERED_MAX_BYTES: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(5);
/// For what `status` asks of all engines together: a person waits for it.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// Engines that are asked for their status at one time.
const STATUS_AT_ONCE: usize = 64;

pub async fn ask(server: Arc<Server>, call: Call) -> Answer {
    let (_, request) = request(&server, &call, Method::GET, Bytes::new())?;
    answer(&server, request).await
}

pub async fn tell(server: Arc<Server>, mut call: Call) -> Answer {
    let body = call.bytes().await?;
    let (id, request) = request(&server, &call, Method::POST, body)?;
    // The path alone: a body may hold what is nobody's business.
    let told = vec![format!("POST /{}", call.text("path"))];
    let deed = Deed::new(call.principal.name(), "tell", id);
    server.keep(&deed, told).await?;
    answer(&server, request).await
}

/// What each engine of a project says of itself, all asked at once.
pub async fn views(server: &Server, project: &ProjectName) -> Vec<EngineView> {
    let now = server.clock.now();
    let engines = server.with(|shared| views::engines(shared, project, now));
    let deadline = Instant::now() + STATUS_PATIENCE;
    stream::iter(engines)
        .map(|(view, instance)| with_status(server, view, instance, deadline))
        .buffered(STATUS_AT_ONCE)
        .collect()
        .await
}

/// What an engine that runs says that a person should know: why it doesn't serve, or what of it is not as declared. One that doesn't run is told by
/// what is told of its instance.
pub async fn word(server: &Server, project: &ProjectName, name: &str) -> Vec<Reason> {
    let now = server.clock.now();
    let engines = server.with(|shared| views::engines(shared, project, now));
    let is_it = |(view, _): &(EngineView, _)| {
        view.name.as_str() == name && view.state == InstanceState::Running
    };
    let Some((view, instance)) = engines.into_iter().find(is_it) else {
        return Vec::new();
    };
    let deadline = Instant::now() + STATUS_PATIENCE;
    let asked = with_status(server, view, instance, deadline).await;
    let extensions = views::of_extensions(&asked);
    asked.silence.into_iter().chain(extensions).collect()
}

async fn with_status(
    server: &Server,
    mut view: EngineView,
    instance: Option<InstanceView>,
    deadline: Instant,
) -> EngineView {
    match timeout_at(deadline, status(server, instance.as_ref())).await {
        Ok(Ok(status)) => view.status = Some(status),
        Ok(Err(reason)) => view.silence = Some(reason),
        Err(_) => {
            let text = format!("no answer within {STATUS_PATIENCE:?}");
            view.silence = Some(Reason::new("no-answer", text));
        }
    }
    view
}

async fn status(server: &Server, instance: Option<&InstanceView>) -> Result<EngineStatus, Reason> {
    let of_problem = |problem: Problem| Reason::new(problem.code, problem.title);
    let instance = running(instance).map_err(of_problem)?;
    let target = Target::of(instance, "status", None).map_err(of_problem)?;
    let request = target
        .request(Method::GET, HeaderMap::new(), Bytes::new())
        .map_err(of_problem)?;
    let answered = forward(server, &target, request).await;
    let (_, body) = answered.map_err(of_problem)?;
    serde_json::from_slice(&body)
        .map_err(|error| Reason::new("no-answer", format!("its answer can't be read: {error}")))
}

/// A request with where it goes.
struct Asked {
    target: Target,
    request: Request<Body>,
}

fn request(
    server: &Server,
    call: &Call,
    method: Method,
    body: Bytes,
) -> Result<(ResourceId, Asked), Problem> {
    let id = call.resource("name")?;
    let instance = instance_of(server, &id)?;
    let query = call.request.uri().query();
    let target = Target::of(running(instance.as_ref())?, call.text("path"), query)?;
    let request = target.request(method, passed_on(call.headers()), body)?;
    Ok((id, Asked { target, request }))
}

async fn answer(server: &Server, asked: Asked) -> Answer {
    let Asked { target, request } = asked;
    let forwarding = forward(server, &target, request);
    let forwarded = tokio::time::timeout(PATIENCE, forwarding).await;
    let (head, body) = forwarded.map_err(|_| {
        let title = format!("{} did not answer within {PATIENCE:?}", target.instance);
        Problem::new(504, "no-answer", title).remedy(format!(
            "what was asked may be done; see `mainland logs {}`",
            target.instance
        ))
    })??;
    Ok(Response::from_parts(head, Body::from(body)))
}

/// The engine's answer, whole. What it refuses is a problem.
async fn forward(
    server: &Server,
    target: &Target,
    request: Request<Body>,
) -> Result<(http::response::Parts, Bytes), Problem> {
    let asked = server
        .tunnels
        .ask(&target.node, request, ANSWERED_MAX_BYTES);
    let (head, body) = asked.await?.map_err(|why| {
        let title = format!("the answer of {} did not come whole", target.instance);
        Problem::new(502, "no-answer", title).detail(why)
    })?;
    match head.status.is_success() {
        true => Ok((plain(head), body)),
        false => Err(refusal(target, &head, &body)),
    }
}

/// Without the headers that were about the connection on which it came.
fn plain(head: http::response::Parts) -> http::response::Parts {
    let mut plain = Response::new(()).into_parts().0;
    plain.status = head.status;
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        plain.headers.insert(header::CONTENT_TYPE, kind.clone());
    }
    plain
}

fn refusal(target: &Target, head: &http::response::Parts, body: &[u8]) -> Problem {
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return problem;
    }
    let said = String::from_utf8_lossy(body);
    let said = match (said.trim(), head.status) {
        ("", StatusCode::NOT_FOUND) => "what was asked is nothing that it has".to_owned(),
        ("", status) => status.to_string(),
        (said, _) => said.chars().take(1000).collect(),
    };
    let code = match head.status {
        StatusCode::NOT_FOUND => "not-found",
        StatusCode::SERVICE_UNAVAILABLE => "not-ready",
        _ => "engine",
    };
    Problem::new(
        head.status.as_u16(),
        code,
        format!("{} refuses: {said}", target.instance),
    )
}

/// Where an engine answers.
struct Target {
    node: model::ids::NodeName,
    instance: model::ids::InstanceName,
    uri: String,
}

impl Target {
    fn of(instance: &InstanceView, path: &str, query: Option<&str>) -> Result<Self, Problem> {
        let is_plain = |part: &str| {
            !matches!(part, "" | "." | "..")
                && part
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.'))
        };
        if !path.split('/').all(is_plain) {
            return Err(Problem::invalid(format!(
                "`{path}` is no path of an engine"
            )));
        }
        let node = instance.node.clone().ok_or_else(|| not_running(instance))?;
        let (project, name) = (&instance.project, &instance.name);
        let query = query.map_or(String::new(), |query| format!("?{query}"));
        Ok(Self {
            uri: format!("http://{node}/v1/instances/{project}/{name}/engine/{path}{query}"),
            node,
            instance: name.clone(),
        })
    }

    fn request(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Request<Body>, Problem> {
        let request = Request::builder().method(method).uri(&self.uri);
        let mut request = request
            .body(Body::from(body))
            .map_err(|error| Problem::invalid(error.to_string()))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// What says what a body is, and the attributes of an event: nothing of who asked.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let passes =
        |name: &HeaderName| *name == header::CONTENT_TYPE || name.as_str().starts_with("ce-");
    headers
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn instance_of(server: &Server, id: &ResourceId) -> Result<Option<InstanceView>, Problem> {
    let now = server.clock.now();
    let engines = server.with(|shared| {
        let known = shared.world.has_project(&id.project);
        known.then(|| views::engines(shared, &id.project, now))
    });
    let engines = engines.ok_or_else(|| projects::unknown(server, &id.project))?;
    let found = engines.iter().find(|(view, _)| view.name == id.name);
    found.map(|(_, instance)| instance.clone()).ok_or_else(|| {
        let names = engines.iter().map(|(view, _)| view.name.as_str());
        problems::missing(
            format!("database or topic {id}"),
            id.name.as_str(),
            names,
            "`mainland db list` and `mainland topic list` name them",
        )
    })
}

/// An instance whose process may be there.
fn running(instance: Option<&InstanceView>) -> Result<&InstanceView, Problem> {
    let Some(instance) = instance else {
        let title = "it has no instance yet";
        return Err(Problem::unavailable("not-running", title).remedy("see `mainland ps`"));
    };
    let may_answer = matches!(
        instance.state,
        InstanceState::Starting | InstanceState::Running | InstanceState::Draining
    );
    may_answer
        .then_some(instance)
        .ok_or_else(|| not_running(instance))
}

fn not_running(instance: &InstanceView) -> Problem {
    let state = serde_json::to_value(instance.state).unwrap_or_default();
    let state = state.as_str().unwrap_or_default();
    let title = format!("{} does not run: it is {state}", instance.name);
    let problem = Problem::unavailable("not-running", title)
        .remedy(format!("see `mainland explain {}`", instance.name));
    match &instance.reason {
        Some(reason) => problem.detail(reason.message.clone()),
        None => problem,
    }
}
