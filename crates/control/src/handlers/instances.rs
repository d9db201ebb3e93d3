//! What runs: listed from placements and reports; logs and exec are asked of the node.

use std::sync::Arc;

use api::problem::Problem;
use api::wire;
use axum::body::Body;
use http::{Method, Request, header};
use model::ids::{InstanceName, NodeName, ProjectName};

use super::projects;
use crate::call::{self, Answer, Call};
use crate::state::Server;
use crate::tunnel;
use crate::views;

pub async fn list(server: Arc<Server>, call: Call) -> Answer {
    let project = call.project()?;
    let now = server.clock.now();
    let (items, known, revision) = server.with(|shared| {
        let items = views::instances(shared, &project, now);
        (
            items,
            shared.world.projects().contains(&project),
            shared.world.revision.to_string(),
        )
    });
    if items.is_empty() && !known {
        return Err(projects::unknown(&server, &project));
    }
    Ok(call::json(&wire::List { items, revision }))
}

pub async fn logs(server: Arc<Server>, call: Call) -> Answer {
    forward(server, call, "logs").await
}

pub async fn exec(server: Arc<Server>, call: Call) -> Answer {
    let on = format!("{}/{}", call.text("project"), call.text("instance"));
    let by = call.principal.name();
    let answer = forward(server.clone(), call, "exec").await?;
    server.audited(by, "exec", on, Vec::new()).await;
    Ok(answer)
}

/// Asks the instance's node over its tunnel; bodies go both ways as they come.
async fn forward(server: Arc<Server>, mut call: Call, what: &str) -> Answer {
    let project = call.project()?;
    let instance: InstanceName = call.parameter("instance")?;
    let node = node_of(&server, &project, &instance)?;
    let query = call
        .request
        .uri()
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let uri = format!("http://{node}/v1/instances/{project}/{instance}/{what}{query}");
    let method = if what == "exec" {
        Method::POST
    } else {
        Method::GET
    };
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(value) = call.headers.get(header::CONTENT_TYPE) {
        request = request.header(header::CONTENT_TYPE, value);
    }
    let body = if what == "exec" {
        call.takes_body()
    } else {
        Body::empty()
    };
    let request = request
        .body(body)
        .map_err(|error| Problem::invalid(error.to_string()))?;
    if !server.tunnels.is_open(&node) {
        return Err(tunnel::unreachable(&node, &silence(&server, &node)));
    }
    server.tunnels.forward(&node, request).await
}

fn node_of(
    server: &Server,
    project: &ProjectName,
    instance: &InstanceName,
) -> Result<NodeName, Problem> {
    let (placed, pending) = server.look(|world| {
        let groups = world
            .services
            .iter()
            .filter(|(id, _)| id.project == *project);
        let groups: Vec<_> = groups
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
        (placed, pending)
    });
    match (placed, pending) {
        (Some(node), _) => Ok(node),
        (None, Some(pending)) => Err(Problem::conflict(
            "pending",
            format!("{instance} runs nowhere yet: {}", pending.reason),
        )),
        (None, None) => Err(Problem::not_found(format!("instance {project}/{instance}"))
            .remedy("`mainland ps` lists what runs")),
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
