//! What a person does beside the copies of a service: a command run as one of them would be, and a connection to one that is ready. Both live
//! for as long as the person's own connection.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api::problem::Problem;
use api::stream::Frame;
use api::wire::InstanceView;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, header};
use http_body_util::BodyExt;
use model::boundary::PrincipalName;
use model::compute::InstanceState;
use model::control::Reason;
use model::ids::{InstanceId, NodeName, ResourceId};
use plan::service::Sight;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::auditor::Deed;
use crate::call::{Answer, Call};
use crate::problems;
use crate::runs::Bars;
use crate::state::{Server, Shared};
use crate::tunnel::Party;
use crate::views;

/// Frames that who asked has not yet taken.
const FRAMES_MAX: usize = 16;
/// For a node to fetch what it lacks and to begin.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what the node says.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Of who connects to what, one record in this time.
const RECORD_EVERY: Duration = Duration::from_secs(60);
/// Whose records are remembered for that. Who is not gets a record for each connection.
const CONNECTED_MAX: usize = 256;
const NO_TUNNEL: &str = "its connection for commands is not there at the moment";
const FRAMES_TYPE: &str = "application/vnd.mainland.frames";

/// One that a person runs. Dropped, it is placed no more, and its node ends it with all it started.
struct Held {
    server: Arc<Server>,
    of: Party,
    instance: InstanceId,
    node: NodeName,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.server
            .with(|shared| shared.runs.remove(&self.instance));
        self.server.changed.notify_one();
    }
}

/// The head of the answer is there at once. What follows is told while it begins, and then what the command says.
pub async fn run(server: Arc<Server>, mut call: Call) -> Answer {
    let service = call.resource("service")?;
    let (at, now) = (server.now(), server.clock.now());
    let placed = server.with(|shared| {
        let bars = bars(&server, shared, now);
        let (runs, world) = (&mut shared.runs, &shared.world);
        runs.add(world, &service, &bars, at)
    });
    let (instance, node) = placed?;
    let held = Held {
        server: server.clone(),
        of: Party {
            by: call.principal.name(),
            project: service.project.clone(),
        },
        instance,
        node,
    };
    let deed = Deed::new(call.principal.name(), "run", service);
    server.keep(&deed, Vec::new()).await?;
    server.changed.notify_one();
    let body = call.takes_body();
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    tokio::spawn(async move {
        let carried = tokio::select! {
            carried = carry(&held, body, &sender) => carried,
            () = sender.closed() => Ok(()),
        };
        if let Err(why) = carried {
            let _ = sender.send(Frame::Failed(why.into()).encode()).await;
        }
    });
    let frames = stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), receiver))
    });
    let mut answer = Response::new(Body::from_stream(frames));
    let frames = http::HeaderValue::from_static(FRAMES_TYPE);
    answer.headers_mut().insert(header::CONTENT_TYPE, frames);
    Ok(answer)
}

/// A node that is not heard can begin nothing now. An agent of another version may not know what a run is, and could read nothing more of what it is
/// told; and commands go by the tunnel.
fn bars(server: &Server, shared: &Shared, now: plan::Now) -> Bars {
    let mut bars = Bars::default();
    for name in shared.world.nodes.keys() {
        let heard = shared.observed.nodes.get(name);
        let heard = heard.filter(|_| shared.nodes.sight(name, now) == Sight::Heard);
        let Some(node) = heard else {
            let why = Reason::new("not-heard", "it is not heard");
            bars.never.push((name.clone(), why));
            continue;
        };
        if node.version != server.version {
            let (agent, own) = (&node.version, server.version);
            let why = format!("its agent is of version {agent}, the server of {own}");
            bars.never
                .push((name.clone(), Reason::new("other-version", why)));
        } else if !server.tunnels.is_open(name) {
            let why = Reason::new("no-tunnel", NO_TUNNEL);
            bars.rather_not.push((name.clone(), why));
        }
    }
    bars
}

async fn carry(held: &Held, body: Body, sender: &mpsc::Sender<Bytes>) -> Result<(), String> {
    let in_words = |problem: Problem| problem.to_string();
    until_it_runs(held, sender).await?;
    let path = path_of(&held.instance, "exec", "");
    let request = request(&held.node, &path, body).map_err(in_words)?;
    let answer = held
        .server
        .tunnels
        .carry(&held.node, &held.of, request)
        .await;
    let mut body = pin!(answer.map_err(in_words)?.into_body());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("its node is not heard any more: {error}"))?;
        if let Ok(bytes) = frame.into_data()
            && sender.send(bytes).await.is_err()
        {
            break;
        }
    }
    Ok(())
}

/// What it waits for is told, each thing once.
async fn until_it_runs(held: &Held, sender: &mpsc::Sender<Bytes>) -> Result<(), String> {
    let deadline = Instant::now() + START_PATIENCE;
    let mut told = None;
    loop {
        match look(held) {
            Seen::Runs => return Ok(()),
            Seen::Failed(why) => return Err(why),
            Seen::Begins(reason) => {
                if let Some(reason) = reason.filter(|reason| told.as_ref() != Some(reason)) {
                    let line = format!("mainland: {}\n", reason.message);
                    let _ = sender.send(Frame::Stderr(line.into()).encode()).await;
                    told = Some(reason);
                }
            }
        }
        if Instant::now() >= deadline {
            let waited = START_PATIENCE.as_secs();
            return Err(format!(
                "node {} did not begin it within {waited} s",
                held.node
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is known of one that is to begin.
enum Seen {
    Begins(Option<Reason>),
    Runs,
    Failed(String),
}

fn look(held: &Held) -> Seen {
    let now = held.server.clock.now();
    held.server.with(|shared| {
        if shared.nodes.sight(&held.node, now) != Sight::Heard {
            return Seen::Failed(format!(
                "node {}, where it was to run, is not heard",
                held.node
            ));
        }
        let Some(report) = shared.observed.report(&held.node, &held.instance) else {
            return Seen::Begins(None);
        };
        let reason = report.reason.clone();
        match report.state {
            InstanceState::Running if held.server.tunnels.is_open(&held.node) => Seen::Runs,
            InstanceState::Running => {
                let why = format!("node {}: {NO_TUNNEL}", held.node);
                Seen::Begins(Some(Reason::new("waits-for-tunnel", why)))
            }
            InstanceState::Failed | InstanceState::Finished | InstanceState::Stopped => {
                let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
                Seen::Failed(format!("it can't be started on node {}{why}", held.node))
            }
            _ => Seen::Begins(reason.filter(|reason| reason.code.starts_with("waits-for-"))),
        }
    })
}

/// One connection. Each goes to a ready copy of its own, so that a copy that leaves ends no more than what it has.
pub async fn connect(server: Arc<Server>, mut call: Call) -> Answer {
    let service = call.resource("service")?;
    let query = call.request.uri().query();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let (instance, node) = ready_copy(&server, &service)?;
    let by = call.principal.name();
    keep_once_a_minute(&server, by.clone(), &service).await?;
    let request = request(
        &node,
        &path_of(&instance, "connect", &query),
        call.takes_body(),
    )?;
    let of = Party {
        by,
        project: service.project,
    };
    server.tunnels.carry(&node, &of, request).await
}

/// Connections come by the thousand from one command: a record for each would push out those of changes.
async fn keep_once_a_minute(
    server: &Server,
    by: PrincipalName,
    service: &ResourceId,
) -> Result<(), Problem> {
    let who = (by.clone(), service.clone());
    let now = server.clock.now().instant;
    let is_known = server.with(|shared| {
        let connected = &mut shared.connected;
        connected.retain(|_, at| now.since(*at) < RECORD_EVERY);
        connected.contains_key(&who)
    });
    if is_known {
        return Ok(());
    }
    server
        .keep(&Deed::new(by, "connect", service), Vec::new())
        .await?;
    server.with(|shared| {
        if shared.connected.len() < CONNECTED_MAX {
            shared.connected.insert(who, now);
        }
    });
    Ok(())
}

/// One of them, by chance.
fn ready_copy(server: &Server, service: &ResourceId) -> Result<(InstanceId, NodeName), Problem> {
    let now = server.clock.now();
    let views = server.with(|shared| {
        let world = &shared.world;
        let entry = world.services.get(service).and_then(|entry| entry.live());
        let record = entry.ok_or_else(|| problems::no_service(world, service))?;
        if record.spec.is_external() {
            let title = format!("{service} is external: it runs elsewhere");
            let remedy =
                "connect to the addresses that it declares; `mainland get services` shows them";
            return Err(Problem::new(422, "not-run-here", title).remedy(remedy));
        }
        let views = views::instances(shared, &service.project, now);
        let own = views
            .into_iter()
            .filter(|view| view.service == service.name);
        Ok(own.collect::<Vec<_>>())
    })?;
    let mut ready: Vec<_> = views.iter().filter(|view| view.ready).collect();
    let is_reached = |view: &&InstanceView| {
        let node = view.node.as_ref();
        node.is_some_and(|node| server.tunnels.is_open(node))
    };
    // Where none is, who asks is told of one that it can't be.
    if ready.iter().any(is_reached) {
        ready.retain(is_reached);
    }
    let drawn = OsRng.try_next_u32().unwrap_or(0) as usize;
    let chosen = ready.get(drawn % ready.len().max(1));
    if let Some((view, node)) = chosen.and_then(|view| Some((view, view.node.clone()?))) {
        return Ok((
            InstanceId::new(service.project.clone(), view.name.clone()),
            node,
        ));
    }
    let reason = views.iter().find_map(|view| {
        let reason = view.reason.as_ref()?;
        Some(format!("{}: {reason}", view.name))
    });
    let problem = Problem::unavailable("no-ready-copy", format!("no copy of {service} is ready"));
    let problem = match reason {
        Some(reason) => problem.detail(reason),
        None => problem,
    };
    Err(problem.remedy(format!("`mainland explain {}` says why", service.name)))
}

fn path_of(instance: &InstanceId, what: &str, query: &str) -> String {
    format!(
        "/v1/instances/{}/{}/{what}{query}",
        instance.project, instance.name
    )
}

fn request(node: &NodeName, path: &str, body: Body) -> Result<Request<Body>, Problem> {
    Request::post(format!("http://{node}{path}"))
        .header(header::CONTENT_TYPE, FRAMES_TYPE)
        .body(body)
        .map_err(|error| Problem::invalid(error.to_string()))
}
