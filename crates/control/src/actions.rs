//! What each operation asks for, in the words of the boundary.

use api::operations::Operation;
use api::problem::Problem;
use boundary::authorize::{Action, NodeWants, Placed, Verb};
use http::Method;
use model::boundary::Principal;
use model::ids::Digest;

use crate::call::Call;
use crate::records::artifact_of;
use crate::state::Server;

pub fn of(server: &Server, operation: &str, call: &Call) -> Result<Action, Problem> {
    Ok(match operation {
        "health" => Action::Health,
        "version" | "openapi" => Action::Version,
        "whoami" => return whoami(call),
        "join" => Action::Join,
        "audit" | "events" => cluster(Verb::Read, operation, None),
        "auditChain" => cluster(Verb::Read, "audit", None),
        "keyring" => cluster(Verb::Read, "keyring", None),
        "rotateKeyring" => cluster(Verb::Operate, "keyring", None),
        "listProjects" => cluster(Verb::Read, "projects", None),
        "listNodes" => cluster(Verb::Read, "nodes", None),
        "explainNode" => cluster(Verb::Read, "nodes", Some(call.text("node"))),
        "cordon" => cluster(Verb::Operate, "nodes", Some(call.text("node"))),
        "removeNode" => cluster(Verb::Delete, "nodes", Some(call.text("node"))),
        "releaseBrake" => cluster(Verb::Operate, "nodes", None),
        "makeJoinToken" => cluster(Verb::Write, "join-tokens", None),
        "beginUpload" | "uploadChunk" => {
            cluster(Verb::Write, "artifacts", Some(call.text("digest")))
        }
        "getArtifact" => artifact(server, call)?,
        "renew" => node(call, NodeWants::Certificate)?,
        "heartbeat" => node(call, NodeWants::Heartbeat)?,
        "desired" => node(call, NodeWants::Desired)?,
        "tunnel" => node(call, NodeWants::Tunnel)?,
        "serviceCertificate" => {
            let service = call.resource("service")?;
            let placed = placed(server, call)?;
            node(call, NodeWants::ServiceCertificate { service, placed })?
        }
        "secretValues" => {
            // The values that this service needs: together, as one secret of its name.
            let secret = call.resource("service")?;
            let placed = placed(server, call)?;
            node(call, NodeWants::Secret { secret, placed })?
        }
        other => resource(other, call)?,
    })
}

/// What an operation does, as people say it: the end of *to …* and *may not …*.
pub fn words(operation: &str) -> &'static str {
    match operation {
        "health" => "ask for health",
        "version" => "ask for the version",
        "openapi" => "read the API's description",
        "whoami" => "ask who you are",
        "audit" | "auditChain" => "read the audit log",
        "events" => "read the events of the cluster",
        "projectEvents" => "read the events of a project",
        "listProjects" => "list projects",
        "apply" => "apply to a project",
        "holdDeploy" | "endDeploy" => "deploy to a project",
        "steerRollout" => "steer a rollout",
        "deleteProject" => "delete a project",
        "status" => "see the status of a project",
        "explain" => "ask why a thing is as it is",
        "listResources" => "list what a project declares",
        "getResource" => "read what a project declares",
        "deleteResource" => "delete what a project declares",
        "putService" => "change a service",
        "setSecret" => "set a secret",
        "keyring" => "look at the key ring",
        "rotateKeyring" => "rotate the key ring",
        "listKeys" => "list keys",
        "getKey" => "read a key",
        "putKey" => "write a key",
        "deleteKey" => "delete a key",
        "scale" => "scale a service",
        "listReleases" => "list releases",
        "getRelease" => "read a release",
        "getRollout" => "see a rollout",
        "restart" => "restart a service",
        "rollback" => "roll a service back",
        "listInstances" => "list instances",
        "logs" => "read logs",
        "exec" => "run a command in an instance",
        "run" => "run a command as a service",
        "connect" => "connect to a service",
        "askEngine" => "look into a database or topic",
        "tellEngine" => "change what is in a database or topic",
        "beginUpload" | "uploadChunk" => "upload an artifact",
        "getArtifact" => "read an artifact",
        "listNodes" => "list nodes",
        "explainNode" => "ask why a node is as it is",
        "cordon" => "cordon a node",
        "removeNode" => "remove a node",
        "releaseBrake" => "release the brake",
        "makeJoinToken" => "make a join token",
        "join" => "join as a node",
        "renew" => "renew a node's certificate",
        "serviceCertificate" => "get a service's certificate",
        "secretValues" => "read the values of secrets",
        "heartbeat" => "report as a node",
        "desired" => "ask what a node is to run",
        "tunnel" => "open a node's tunnel",
        _ => "do this",
    }
}

/// Operations that change something, and so go on when who asked is gone. What a node says of itself is none, and what somebody runs in an
/// instance ends with their connection.
pub fn changes(operation: &Operation) -> bool {
    let id = operation.id;
    operation.method != Method::GET
        && !matches!(
            id,
            "heartbeat" | "renew" | "serviceCertificate" | "exec" | "run" | "connect"
        )
}

/// Operations whose refusal is worth a line in the audit log.
pub fn is_change(operation: &str) -> bool {
    !matches!(
        operation,
        "heartbeat"
            | "renew"
            | "serviceCertificate"
            | "uploadChunk"
            | "beginUpload"
            | "holdDeploy"
            | "putKey"
            | "deleteKey"
    )
}

fn whoami(call: &Call) -> Result<Action, Problem> {
    match call.principal {
        Principal::Anonymous => Err(Problem::unauthenticated()),
        _ => Ok(Action::Version),
    }
}

fn cluster(verb: Verb, kind: &str, name: Option<&str>) -> Action {
    Action::Cluster {
        verb,
        kind: kind.to_owned(),
        name: name.map(str::to_owned),
    }
}

fn node(call: &Call, wants: NodeWants) -> Result<Action, Problem> {
    Ok(Action::Node {
        node: call.node()?,
        wants,
    })
}

fn placed(server: &Server, call: &Call) -> Result<Placed, Problem> {
    let (service, node) = (call.resource("service")?, call.node()?);
    Ok(Placed::here(
        server.with(|shared| shared.is_placed(&service, &node)),
    ))
}

/// A node asks as itself; anyone else as of the cluster.
fn artifact(server: &Server, call: &Call) -> Result<Action, Problem> {
    let digest: Digest = call.parameter("digest")?;
    let Principal::Node { name } = &call.principal else {
        return Ok(cluster(Verb::Read, "artifacts", Some(call.text("digest"))));
    };
    let here = server.with(|shared| {
        let services = shared
            .world
            .services
            .iter()
            .filter(|(id, _)| shared.is_placed(id, name));
        let mut specs = services.flat_map(|(_, entry)| {
            let current = entry.record.as_ref().map(|record| &record.spec);
            entry
                .releases
                .values()
                .map(|release| &release.spec)
                .chain(current)
        });
        specs.any(|spec| artifact_of(&spec.work) == Some(digest))
    });
    let wants = NodeWants::Artifact {
        digest,
        placed: Placed::here(here),
    };
    Ok(Action::Node {
        node: name.clone(),
        wants,
    })
}

fn resource(operation: &str, call: &Call) -> Result<Action, Problem> {
    let (verb, kind) = match operation {
        "apply" | "holdDeploy" | "endDeploy" => (Verb::Write, "resources"),
        "deleteProject" => (Verb::Delete, "resources"),
        "status" | "explain" => (Verb::Read, "status"),
        "projectEvents" => (Verb::Read, "events"),
        "listResources" | "getResource" => (Verb::Read, call.text("kind")),
        "deleteResource" => (Verb::Delete, call.text("kind")),
        "listKeys" | "getKey" => (Verb::Read, "keys"),
        "putKey" => (Verb::Write, "keys"),
        "deleteKey" => (Verb::Delete, "keys"),
        "putService" => (Verb::Write, "services"),
        "setSecret" => (Verb::Write, "secrets"),
        "scale" => (Verb::Write, "scales"),
        "listReleases" | "getRelease" => (Verb::Read, "releases"),
        "getRollout" => (Verb::Read, "rollouts"),
        "restart" | "rollback" | "steerRollout" | "run" | "connect" => (Verb::Operate, "services"),
        "listInstances" | "logs" => (Verb::Read, "instances"),
        "exec" => (Verb::Operate, "instances"),
        "askEngine" => (Verb::Read, "engines"),
        "tellEngine" => (Verb::Operate, "engines"),
        other => {
            return Err(Problem::internal(format!(
                "nothing says who may do `{other}`"
            )));
        }
    };
    let name = ["name", "service"]
        .into_iter()
        .find_map(|name| call.segment(name));
    Ok(Action::Resource {
        verb,
        project: call.project()?,
        kind: kind.to_owned(),
        // A route's name is a host and a path, and a key's may be a path: neither is a resource's name.
        name: name.and_then(|name| name.parse().ok()),
    })
}
