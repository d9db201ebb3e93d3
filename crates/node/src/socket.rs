//! The node's own API: the same handler on its Unix socket, for who is on the machine, and through the tunnel, for the servers.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`wire::NodeStatus`] |
//! | `GET /v1/instances`, `GET /v1/projects/{project}/instances` | what runs here |
//! | `GET …/instances/{project}/{instance}/logs?tail=&follow=` | JSON lines of [`model::signals::LogLine`] |
//! | `POST …/instances/{project}/{instance}/exec` | frames, both ways |
//! | `POST …/instances/{project}/{instance}/connect?port=` | frames, both ways: one TCP connection to the instance |
//! | any `…/instances/{project}/{instance}/engine/{path}` | what the instance's engine answers at `/{path}` |
//! | `POST /v1/stop?instances=true` | the agent ends; with instances, everything else on the node first |
//!
//! Where an instance is named, `/v1/projects/{project}/instances/{instance}/…`, as at a server, is understood as well.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::client::{Body, streamed, whole};
use api::problem::{self, Problem};
use api::stream::json_line;
use api::wire;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use model::compute::{InstanceReport, Purpose};
use model::ids::{InstanceId, ProjectName};
use model::units::Span;
use serde::Serialize;
use signals::logs::Reader;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};

use crate::agent::Agent;
use crate::{connect, engine, exec};

/// Connections at a time: the tools of one machine.
const CONNECTIONS_MAX: usize = 64;
/// Between looks at a log that is followed.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
/// Looks at a log whose instance is gone, until somebody put it aside: it is done when the instance is removed.
const ROUNDS_WITHOUT_INSTANCE: u32 = 50;
const TAIL_DEFAULT: usize = 100;
const TAIL_MAX: usize = 100_000;
/// Batches of lines that were not yet taken.
const BATCHES_MAX: usize = 4;

/// The lock on the directory makes sure that a socket there is nobody else's.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub async fn run(agent: Arc<Agent>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: it passes.
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(agent.clone(), request));
            let served = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(error, "a connection to the node's socket broke");
            }
            drop(place);
        });
    }
}

/// Answers one request, whoever asks: only root, the node's own user and the servers get here.
pub async fn answer(
    agent: Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    Ok(match route(agent, request).await {
        Ok(response) => response,
        Err(problem) => of_problem(&problem),
    })
}

fn of_problem(problem: &Problem) -> Response<Body> {
    let mut response = Response::new(whole(serde_json::to_vec(problem).unwrap_or_default()));
    *response.status_mut() =
        StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set_type(&mut response, problem::CONTENT_TYPE);
    response
}

fn set_type(response: &mut Response<Body>, content_type: &'static str) {
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
}

async fn route(
    agent: Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Box<Problem>> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let get = request.method() == Method::GET;
    let post = request.method() == Method::POST;
    match parts.as_slice() {
        ["v1", "status"] if get => Ok(json(&status(&agent))),
        ["v1", "instances"] if get => Ok(json(&views(&agent, None))),
        ["v1", "projects", project, "instances"] if get => Ok(json(&listed(&agent, project)?)),
        ["v1", "instances", project, instance, "logs"]
        | ["v1", "projects", project, "instances", instance, "logs"]
            if get =>
        {
            let query = request.uri().query();
            match (find(&agent, project, instance), gone(project, instance)) {
                (Ok(id), _) => logs(Log::of(&agent, id), query),
                (Err(_), Some(id)) if agent.layout.kept_log(&id).is_dir() => {
                    logs(Log::kept(&agent, id), query)
                }
                (Err(unknown), _) => Err(unknown),
            }
        }
        ["v1", "instances", project, instance, "exec"]
        | ["v1", "projects", project, "instances", instance, "exec"]
            if post =>
        {
            let id = find(&agent, project, instance)?;
            Ok(exec::answer(agent, id, request.into_body()))
        }
        ["v1", "instances", project, instance, "connect"] if post => {
            let id = find(&agent, project, instance)?;
            let port = parameter(request.uri().query(), "port").map(str::to_owned);
            connect::answer(&agent, &id, port.as_deref(), request.into_body()).await
        }
        ["v1", "instances", project, instance, "engine", rest @ ..]
        | [
            "v1",
            "projects",
            project,
            "instances",
            instance,
            "engine",
            rest @ ..,
        ] => {
            let id = find(&agent, project, instance)?;
            engine::forward(&agent, &id, &rest.join("/"), request).await
        }
        ["v1", "stop"] if post => {
            let instances = parameter(request.uri().query(), "instances") == Some("true");
            stop(&agent, instances).await;
            Ok(json(&()))
        }
        _ => Err(Problem::not_found(format!("{} {path}", request.method())).into()),
    }
}

/// Begun, it is done, whether or not who asked still waits: a node that runs nothing for ever helps nobody.
async fn stop(agent: &Arc<Agent>, instances: bool) {
    let of_task = agent.clone();
    let stopping = agent
        .tasks
        .spawn(async move { of_task.stop(instances).await });
    let _ = stopping.await;
}

fn json(value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(whole(
        serde_json::to_vec(value).expect("wire types are plain data"),
    ));
    set_type(&mut response, "application/json");
    response
}

fn status(agent: &Agent) -> wire::NodeStatus {
    let (connected, refused) = agent.with(|core| (core.connected, core.proxy_refuses.clone()));
    let refused = refused.map(|error| format!("the proxy refuses: {error}"));
    let limits = agent.firewall.limit().into_iter();
    let limits = limits.chain(agent.limits.iter().cloned());
    wire::NodeStatus {
        node: agent.config.name.clone(),
        zone: agent.config.zone.clone(),
        instances: views(agent, None),
        connected,
        limits: limits.chain(refused).collect(),
        stops_within: Some(Span(agent.stops_within())),
    }
}

fn views(agent: &Agent, project: Option<&ProjectName>) -> Vec<wire::InstanceView> {
    let reports: Vec<_> = agent.with(|core| {
        let known = core.state.instances();
        known
            .map(|(_, one)| (one.report().clone(), one.desired().purpose))
            .collect()
    });
    let asked = |id: &InstanceId| project.is_none_or(|project| *project == id.project);
    reports
        .into_iter()
        .filter(|(report, _): &(InstanceReport, Purpose)| asked(&report.instance))
        .map(|(report, purpose)| wire::InstanceView {
            name: report.instance.name,
            service: report.service,
            node: Some(agent.config.name.clone()),
            zone: Some(agent.config.zone.clone()),
            state: report.state,
            ready: report.ready,
            pid: report.pid,
            address: report.address,
            restarts: report.restarts,
            version: report.release,
            purpose,
            project: report.instance.project,
            started_at: report.started_at,
            reason: report.reason,
        })
        .collect()
}

fn listed(agent: &Agent, project: &str) -> Result<wire::List<wire::InstanceView>, Box<Problem>> {
    let project = ProjectName::new(project).map_err(|error| Problem::invalid(error.to_string()))?;
    Ok(wire::List {
        items: views(agent, Some(&project)),
        revision: String::new(),
    })
}

fn find(agent: &Agent, project: &str, instance: &str) -> Result<InstanceId, Box<Problem>> {
    let id: InstanceId = format!("{project}/{instance}").parse().map_err(|_| {
        Problem::invalid(format!(
            "`{project}/{instance}` is not the name of an instance"
        ))
    })?;
    let known = agent.with(|core| core.state.instance(&id).is_some());
    known.then_some(()).ok_or_else(|| {
        let node = &agent.config.name;
        Problem::not_found(format!("instance `{id}` on node `{node}`"))
            .remedy("`mainland ps` lists what runs where")
    })?;
    Ok(id)
}

fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .next()
}

/// One that may have been here.
fn gone(project: &str, instance: &str) -> Option<InstanceId> {
    format!("{project}/{instance}").parse().ok()
}

/// Where the output of an instance is, and where it goes when the instance does.
struct Log {
    agent: Arc<Agent>,
    id: InstanceId,
    folder: PathBuf,
    kept: PathBuf,
}

impl Log {
    fn of(agent: &Arc<Agent>, id: InstanceId) -> Self {
        let folder = compute::instance::log_directory(&agent.layout.instance(&id));
        Self {
            agent: agent.clone(),
            kept: agent.layout.kept_log(&id),
            folder,
            id,
        }
    }

    fn kept(agent: &Arc<Agent>, id: InstanceId) -> Self {
        let kept = agent.layout.kept_log(&id);
        Self {
            agent: agent.clone(),
            folder: kept.clone(),
            kept,
            id,
        }
    }

    fn instance_is_known(&self) -> bool {
        self.agent
            .with(|core| core.state.instance(&self.id).is_some())
    }

    /// Whether what is read has been put aside: nothing is written to it any more.
    fn is_put_aside(&self) -> bool {
        !self.folder.is_dir() && self.kept.is_dir()
    }
}

fn logs(log: Log, query: Option<&str>) -> Result<Response<Body>, Box<Problem>> {
    let follow = parameter(query, "follow") == Some("true") && log.folder != log.kept;
    let tail = match parameter(query, "tail") {
        Some(text) => text
            .parse()
            .map_err(|_| Problem::invalid(format!("`tail={text}` is not a number")))?,
        None => TAIL_DEFAULT,
    };
    let (batches, receiver) = mpsc::channel(BATCHES_MAX);
    tokio::spawn(async move {
        if let Err(error) = read_log(&log, tail.min(TAIL_MAX), follow, &batches).await {
            tracing::debug!(error, "a log can't be read");
        }
    });
    let mut response = Response::new(streamed(into_stream(receiver)));
    set_type(&mut response, "application/x-ndjson");
    Ok(response)
}

pub fn into_stream<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures_util::Stream<Item = T> + Send + 'static {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}

/// Until the end, or for as long as somebody listens. What is followed ends when the instance is gone and its last line was read, wherever that
/// lies by then.
async fn read_log(
    log: &Log,
    tail: usize,
    follow: bool,
    batches: &mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let mut reader = open_log(&log.folder, tail, follow, batches).await?;
    let mut follow = follow;
    let mut rounds_without_instance = 0;
    loop {
        // Looked at before the reading: what was written by then is read.
        let is_known = !follow || log.instance_is_known();
        let (read, returned) = blocking(move || {
            let read = reader.read_batch();
            (read, reader)
        })
        .await?;
        reader = returned;
        let batch = read.map_err(|error| error.to_string())?;
        if batch.lines.is_empty() {
            if !follow {
                return Ok(());
            }
            if !is_known && log.is_put_aside() {
                reader = Reader::from_position(&log.kept, reader.position());
                follow = false;
                continue;
            }
            rounds_without_instance = if is_known {
                0
            } else {
                rounds_without_instance + 1
            };
            if rounds_without_instance > ROUNDS_WITHOUT_INSTANCE {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_INTERVAL) => continue,
                () = batches.closed() => return Ok(()),
            }
        }
        let lines: Vec<u8> = batch.lines.iter().flat_map(json_line).collect();
        if batches.send(lines.into()).await.is_err() {
            return Ok(());
        }
    }
}

/// An instance that has not begun has no log yet.
async fn open_log(
    folder: &Path,
    tail: usize,
    follow: bool,
    batches: &mpsc::Sender<Bytes>,
) -> Result<Reader, String> {
    loop {
        let log = folder.to_owned();
        let opened = blocking(move || Reader::tail(&log, tail)).await?;
        match opened {
            Ok(reader) => return Ok(reader),
            Err(error) if !follow => return Err(error.to_string()),
            Err(_) => tokio::select! {
                () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
                () = batches.closed() => return Err("nobody listens".to_owned()),
            },
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())
}
