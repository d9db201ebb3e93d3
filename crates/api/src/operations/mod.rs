//! Every operation as data: the OpenAPI document comes from it, and the server's tests check that each has a handler.

mod openapi;

pub use openapi::openapi;

use http::Method;
use model::boundary::AuditRecord;
use model::compute::{Release, Scale, Service};
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired, Rollout};
use model::ids::ProjectName;
use model::signals::{Event, LogLine};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use crate::wire;

/// One operation of the API.
pub struct Operation {
    pub id: &'static str,
    pub method: Method,
    /// `{name}` stands for one segment, `{*name}` for all that follow.
    pub path: &'static str,
    pub summary: &'static str,
    pub asks: Shape,
    pub answers: Shape,
    /// Whether a POST must carry an `Idempotency-Key`.
    pub keyed: bool,
}

/// What a body holds.
pub enum Shape {
    Nothing,
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// One JSON text a line.
    Lines(fn(&mut SchemaGenerator) -> Schema),
    Bytes,
    Frames,
}

fn json_of<T: JsonSchema>() -> Shape {
    Shape::Json(|generator| generator.subschema_for::<T>())
}

fn lines_of<T: JsonSchema>() -> Shape {
    Shape::Lines(|generator| generator.subschema_for::<T>())
}

fn operation(
    id: &'static str,
    method: Method,
    path: &'static str,
    asks: Shape,
    answers: Shape,
    summary: &'static str,
) -> Operation {
    Operation {
        id,
        method,
        path,
        summary,
        asks,
        answers,
        keyed: false,
    }
}

fn keyed(operation: Operation) -> Operation {
    Operation {
        keyed: true,
        ..operation
    }
}

/// All of them: for people and scripts first, then for nodes.
pub fn all() -> Vec<Operation> {
    let mut all = about();
    all.extend(of_projects());
    all.extend(of_resources());
    all.extend(of_keys());
    all.extend(of_services());
    all.extend(of_instances());
    all.extend(of_nodes());
    all.extend(for_nodes());
    all.extend(of_heartbeats());
    all
}

fn about() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "version",
            Method::GET,
            "/v1/version",
            Nothing,
            json_of::<wire::Version>(),
            "Which version answers",
        ),
        operation(
            "health",
            Method::GET,
            "/v1/health",
            Nothing,
            json_of::<wire::Health>(),
            "Whether the server decides",
        ),
        operation(
            "whoami",
            Method::GET,
            "/v1/whoami",
            Nothing,
            json_of::<wire::WhoAmI>(),
            "Who asks",
        ),
        operation(
            "openapi",
            Method::GET,
            "/v1/openapi.json",
            Nothing,
            json_of::<Value>(),
            "This document",
        ),
        operation(
            "audit",
            Method::GET,
            "/v1/audit",
            Nothing,
            json_of::<wire::List<AuditRecord>>(),
            "Who changed what, newest first",
        ),
        operation(
            "events",
            Method::GET,
            "/v1/events",
            Nothing,
            lines_of::<Event>(),
            "What happened anywhere; `?watch=true` goes on",
        ),
    ]
}

fn of_projects() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "listProjects",
            Method::GET,
            "/v1/projects",
            Nothing,
            json_of::<wire::List<ProjectName>>(),
            "Projects with anything declared",
        ),
        keyed(operation(
            "apply",
            Method::POST,
            "/v1/projects/{project}/apply",
            json_of::<wire::Apply>(),
            json_of::<wire::Applied>(),
            "Make many resources true in one step; `?dry_run=true` only says what it would do",
        )),
        operation(
            "deleteProject",
            Method::DELETE,
            "/v1/projects/{project}",
            Nothing,
            json_of::<Vec<wire::Change>>(),
            "Remove all of a project",
        ),
        operation(
            "status",
            Method::GET,
            "/v1/projects/{project}/status",
            Nothing,
            json_of::<wire::ProjectStatus>(),
            "How a project does",
        ),
        operation(
            "projectEvents",
            Method::GET,
            "/v1/projects/{project}/events",
            Nothing,
            lines_of::<Event>(),
            "What happened in a project; `?watch=true` goes on",
        ),
        operation(
            "explain",
            Method::GET,
            "/v1/projects/{project}/explain/{subject}",
            Nothing,
            json_of::<wire::Explanation>(),
            "Why a thing is as it is",
        ),
    ]
}

fn of_resources() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "listResources",
            Method::GET,
            "/v1/projects/{project}/{kind}",
            Nothing,
            json_of::<wire::List<Value>>(),
            "Resources of a kind; `?watch=true&from=REVISION` streams changes",
        ),
        operation(
            "getResource",
            Method::GET,
            "/v1/projects/{project}/{kind}/{name}",
            Nothing,
            json_of::<Value>(),
            "One resource; its revision is the ETag",
        ),
        operation(
            "putService",
            Method::PUT,
            "/v1/projects/{project}/services/{name}",
            json_of::<Service>(),
            json_of::<wire::Applied>(),
            "Apply one service; `If-Match` makes it conditional",
        ),
        operation(
            "deleteResource",
            Method::DELETE,
            "/v1/projects/{project}/{kind}/{name}",
            Nothing,
            json_of::<Vec<wire::Change>>(),
            "Remove a resource; data stays without `?delete_data=true`",
        ),
        operation(
            "setSecret",
            Method::PUT,
            "/v1/projects/{project}/secrets/{name}/value",
            json_of::<wire::SecretValue>(),
            json_of::<wire::SecretView>(),
            "Give a secret a value",
        ),
    ]
}

fn of_keys() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "listKeys",
            Method::GET,
            "/v1/projects/{project}/keys",
            Nothing,
            json_of::<wire::Keys>(),
            "Keys in the order of names: `?prefix=`, and `?after=NAME` for the next page",
        ),
        operation(
            "getKey",
            Method::GET,
            "/v1/projects/{project}/keys/{*name}",
            Nothing,
            Shape::Bytes,
            "A key's value; its revision is the ETag",
        ),
        operation(
            "putKey",
            Method::PUT,
            "/v1/projects/{project}/keys/{*name}",
            Shape::Bytes,
            json_of::<wire::KeyWritten>(),
            "Give a key a value of at most 64 KiB; `If-Match` and `If-None-Match: *` make it conditional",
        ),
        operation(
            "deleteKey",
            Method::DELETE,
            "/v1/projects/{project}/keys/{*name}",
            Nothing,
            json_of::<wire::KeyWritten>(),
            "Remove a key; `If-Match` makes it conditional",
        ),
    ]
}

fn of_services() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "scale",
            Method::PUT,
            "/v1/projects/{project}/scales/{service}",
            json_of::<wire::SetScale>(),
            json_of::<Scale>(),
            "Ask for a number of copies",
        ),
        operation(
            "listReleases",
            Method::GET,
            "/v1/projects/{project}/services/{service}/releases",
            Nothing,
            json_of::<wire::List<wire::ReleaseView>>(),
            "Releases, newest first",
        ),
        operation(
            "getRelease",
            Method::GET,
            "/v1/projects/{project}/services/{service}/releases/{number}",
            Nothing,
            json_of::<Release>(),
            "One release, whole",
        ),
        operation(
            "getRollout",
            Method::GET,
            "/v1/projects/{project}/rollouts/{service}",
            Nothing,
            json_of::<Rollout>(),
            "How the newest release rolls out",
        ),
        keyed(operation(
            "restart",
            Method::POST,
            "/v1/projects/{project}/services/{service}/restart",
            Nothing,
            json_of::<wire::Released>(),
            "Start every instance anew, as a rolling change",
        )),
        keyed(operation(
            "rollback",
            Method::POST,
            "/v1/projects/{project}/services/{service}/rollback",
            json_of::<wire::Rollback>(),
            json_of::<wire::Released>(),
            "Return to an earlier release's spec",
        )),
    ]
}

fn of_instances() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "listInstances",
            Method::GET,
            "/v1/projects/{project}/instances",
            Nothing,
            json_of::<wire::List<wire::InstanceView>>(),
            "What runs",
        ),
        operation(
            "logs",
            Method::GET,
            "/v1/projects/{project}/instances/{instance}/logs",
            Nothing,
            lines_of::<LogLine>(),
            "The output of an instance",
        ),
        operation(
            "exec",
            Method::POST,
            "/v1/projects/{project}/instances/{instance}/exec",
            Shape::Frames,
            Shape::Frames,
            "Run a command beside an instance",
        ),
        operation(
            "beginUpload",
            Method::PUT,
            "/v1/artifacts/{digest}",
            json_of::<wire::BeginUpload>(),
            json_of::<wire::UploadState>(),
            "Begin or resume an upload",
        ),
        operation(
            "uploadChunk",
            Method::PATCH,
            "/v1/artifacts/{digest}",
            Shape::Bytes,
            json_of::<wire::UploadState>(),
            "Bytes at `?offset=N`, at most 1 MiB",
        ),
        operation(
            "getArtifact",
            Method::GET,
            "/v1/artifacts/{digest}",
            Nothing,
            Shape::Bytes,
            "Bytes from `?offset=N` on",
        ),
    ]
}

fn of_nodes() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "listNodes",
            Method::GET,
            "/v1/nodes",
            Nothing,
            json_of::<wire::List<wire::NodeView>>(),
            "The machines",
        ),
        operation(
            "cordon",
            Method::PUT,
            "/v1/nodes/{node}/cordoned",
            json_of::<bool>(),
            json_of::<wire::NodeView>(),
            "No new placements on a node, or again",
        ),
        operation(
            "explainNode",
            Method::GET,
            "/v1/nodes/{node}/explain",
            Nothing,
            json_of::<wire::Explanation>(),
            "Why a node stands as it does",
        ),
        operation(
            "removeNode",
            Method::DELETE,
            "/v1/nodes/{node}",
            Nothing,
            json_of::<wire::NodeRemoved>(),
            "Remove a node for good that is lost, or cordoned and empty; `?dry_run=true` only says what it would cost",
        ),
        operation(
            "releaseBrake",
            Method::POST,
            "/v1/brake/release",
            Nothing,
            json_of::<wire::BrakeReleased>(),
            "Say that the nodes that vanished at once are gone: what ran there is replaced",
        ),
        operation(
            "makeJoinToken",
            Method::POST,
            "/v1/join-tokens",
            json_of::<wire::MakeJoinToken>(),
            json_of::<wire::MadeJoinToken>(),
            "Let a machine in",
        ),
    ]
}

fn for_nodes() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "join",
            Method::POST,
            "/v1/join",
            json_of::<wire::Join>(),
            json_of::<wire::Joined>(),
            "Become a node, with a join token",
        ),
        operation(
            "renew",
            Method::POST,
            "/v1/nodes/{node}/renew",
            json_of::<wire::CertificateRequest>(),
            json_of::<wire::Joined>(),
            "A fresh certificate for the node itself",
        ),
        operation(
            "serviceCertificate",
            Method::POST,
            "/v1/nodes/{node}/certificates/{project}/{service}",
            json_of::<wire::CertificateRequest>(),
            json_of::<wire::CertificateAnswer>(),
            "A certificate for a service placed there",
        ),
        operation(
            "secretValues",
            Method::GET,
            "/v1/nodes/{node}/secrets/{project}/{service}",
            Nothing,
            json_of::<wire::SecretValues>(),
            "Secrets of a service placed there",
        ),
    ]
}

fn of_heartbeats() -> Vec<Operation> {
    use Shape::Nothing;
    vec![
        operation(
            "heartbeat",
            Method::POST,
            "/v1/nodes/{node}/heartbeat",
            json_of::<Heartbeat>(),
            json_of::<HeartbeatAnswer>(),
            "What the node sees; renews its lease",
        ),
        operation(
            "desired",
            Method::GET,
            "/v1/nodes/{node}/desired",
            Nothing,
            lines_of::<NodeDesired>(),
            "What the node should run",
        ),
        operation(
            "tunnel",
            Method::GET,
            "/v1/nodes/{node}/tunnel",
            Nothing,
            Shape::Bytes,
            "Upgrade to `mainland-tunnel`: HTTP/2 on which the server asks and the node answers",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_distinct_ids_and_places() {
        let mut ids: Vec<_> = all().iter().map(|operation| operation.id).collect();
        let mut places: Vec<_> = all()
            .iter()
            .map(|operation| format!("{} {}", operation.method, operation.path))
            .collect();
        for names in [ids.len(), places.len()] {
            assert!(names > 30);
        }
        ids.sort_unstable();
        ids.dedup();
        places.sort_unstable();
        places.dedup();
        assert_eq!((ids.len(), places.len()), (all().len(), all().len()));
    }

    #[test]
    fn every_reference_of_the_document_resolves() {
        let document = openapi();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
