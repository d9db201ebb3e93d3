//! What runs: listed from placements and reports; logs and exec are asked of the node.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api::problem::Problem;
use api::wire;
use axum::body::Body;
use futures_util::{StreamExt, stream};
use http::{Method, Request, header};
use model::ids::{InstanceName, NodeName, ProjectName};

use super::projects;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::state::Server;
use crate::tunnel::{self, Party};
use crate::views;

/// Nodes that are asked at once for the output of an instance that is gone.
const ASKED_AT_ONCE: usize = 32;
/// How long all of them are asked for it.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(3);

pub async fn list(server: Arc<Server>, call: Call) -> Answer {
    let project = call.project()?;
    let now = server.clock.now();
    let (items, known, revision) = server.with(|shared| {
        let items = views::instances(shared, &project, now);
        (
            items,
            shared.world.has_project(&project),
            shared.world.revision.to_string(),
        )
    });
    if items.is_empty() && !known {
        return Err(projects::unknown(&server, &project));
    }
    Ok(call::json(&wire::List { items, revision }))
}

/// The output of what is gone is looked for: the node that had it keeps it for a while.
pub async fn logs(server: Arc<Server>, call: Call) -> Answer {
    let project = call.project()?;
    let instance: InstanceName = call.parameter("instance")?;
    match node_of(&server, &project, &instance) {
        Ok(node) => forward(server, call, &node, "logs").await,
        Err(unknown) if unknown.status == 404 => {
            let known = server.look(|world| world.has_project(&project));
            let path = path_of(&call, "logs")?;
            match known {
                true => search(&server, &party(&call, project), path)
                    .await
                    .unwrap_or(Err(unknown)),
                false => Err(unknown),
            }
        }
        Err(problem) => Err(problem),
    }
}

/// The first answer of a node that knows the path. Where none does, why one that may could not be asked. `None`: all that answered know nothing.
async fn search(server: &Arc<Server>, of: &Party, path: String) -> Option<Answer> {
    let asked = server.tunnels.nodes().into_iter().map(|node| {
        let uri = format!("http://{node}{path}");
        ask(server.clone(), node, of.clone(), uri)
    });
    let mut answers = pin!(stream::iter(asked).buffer_unordered(ASKED_AT_ONCE));
    let mut busy = None;
    let searching = async {
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) if answer.status().is_success() => return Some(answer),
                Err(problem) if problem.code == tunnel::BUSY => busy = Some(problem),
                Ok(_) | Err(_) => {}
            }
        }
        None
    };
    let found = tokio::time::timeout(SEARCH_TIMEOUT, searching).await;
    match found.ok().flatten() {
        Some(answer) => Some(Ok(answer)),
        None => busy.map(Err),
    }
}

/// Who asked may read the answer as slowly as they like.
async fn ask(server: Arc<Server>, node: NodeName, of: Party, uri: String) -> Answer {
    let request = Request::get(uri).body(Body::empty());
    let request = request.map_err(|error| Problem::invalid(error.to_string()))?;
    server.tunnels.carry(&node, &of, request).await
}

fn party(call: &Call, project: ProjectName) -> Party {
    Party {
        by: call.principal.name(),
        project,
    }
}

pub async fn exec(server: Arc<Server>, call: Call) -> Answer {
    let on = format!("{}/{}", call.text("project"), call.text("instance"));
    let by = call.principal.name();
    let project = call.project()?;
    let node = node_of(&server, &project, &call.parameter("instance")?)?;
    server.keep(&Deed::new(by, "exec", on), Vec::new()).await?;
    forward(server, call, &node, "exec").await
}

/// Asks the instance's node over its tunnel; bodies go both ways as they come.
async fn forward(server: Arc<Server>, mut call: Call, node: &NodeName, what: &str) -> Answer {
    let uri = format!("http://{node}{}", path_of(&call, what)?);
    let method = if what == "exec" {
        Method::POST
    } else {
        Method::GET
    };
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(value) = call.headers().get(header::CONTENT_TYPE) {
        request = request.header(header::CONTENT_TYPE, value);
    }
    let body = if what == "exec" {
        call.takes_body()
    } else {
        Body::empty()
    };
    let of = party(&call, call.project()?);
    let request = request
        .body(body)
        .map_err(|error| Problem::invalid(error.to_string()))?;
    if !server.tunnels.is_open(node) {
        return Err(tunnel::unreachable(node, &silence(&server, node)));
    }
    server.tunnels.carry(node, &of, request).await
}

/// What a node is asked for, with the query as it came.
fn path_of(call: &Call, what: &str) -> Result<String, Problem> {
    let project = call.project()?;
    let instance: InstanceName = call.parameter("instance")?;
    let query = call.request.uri().query();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Ok(format!("/v1/instances/{project}/{instance}/{what}{query}"))
}

fn node_of(
    server: &Server,
    project: &ProjectName,
    instance: &InstanceName,
) -> Result<NodeName, Problem> {
    let (placed, pending, culprit) = server.look(|world| {
        let entries = world
            .services
            .iter()
            .filter(|(id, _)| id.project == *project);
        // What a release was judged by is gone, and its node keeps its output for a while.
        let culprits = entries
            .clone()
            .filter_map(|(_, entry)| entry.rollout.as_ref()?.culprit.as_ref());
        let culprit = culprits
            .into_iter()
            .find(|culprit| culprit.instance == *instance)
            .map(|culprit| culprit.node.clone());
        let groups: Vec<_> = entries
            .filter_map(|(_, entry)| entry.placements.as_ref())
            .collect();
        let placements = groups.iter().flat_map(|group| &group.placements);
        let placed = placements
            .clone()
            .find(|placed| placed.instance == *instance)
            .map(|placed| placed.node.clone());
        let pending = groups
            .iter()
            .flat_map(|group| &group.pending)
            .find(|pending| pending.instance == *instance)
            .cloned();
        (placed, pending, culprit)
    });
    match (placed, pending) {
        (Some(node), _) => Ok(node),
        (None, Some(pending)) => Err(Problem::conflict(
            "pending",
            format!("{instance} runs nowhere yet: {}", pending.reason),
        )),
        (None, None) => culprit.ok_or_else(|| {
            Problem::not_found(format!("instance {project}/{instance}"))
                .remedy("`mainland ps` lists what runs; a node keeps the output of the last few that left it")
        }),
    }
}

/// Why a node can't be asked, and since when.
fn silence(server: &Server, node: &NodeName) -> String {
    let now = server.clock.now().instant;
    server.with(|shared| match shared.observed.nodes.get(node) {
        Some(observed) => {
            let heard = now.since(observed.heard).as_secs_f64();
            format!("it has no tunnel open and was last heard {heard:.1} s ago")
        }
        None => "it was not heard since this server began".to_owned(),
    })
}
