//! The handlers, by room of the API. Each takes the server and a call that `authorize` let through.

mod about;
mod artifacts;
mod beside;
mod brake;
mod deploys;
mod engines;
mod instances;
mod joining;
mod keyring;
mod keys;
mod leaving;
mod nodes;
mod projects;
mod resources;
mod secrets;
mod services;
mod steering;

use crate::dispatch::Handler;

pub use services::{rollout_of, serving_instead};

macro_rules! handler {
    ($($path:tt)+) => {
        Some(|server, call| Box::pin($($path)+(server, call)))
    };
}

/// The handler of an operation.
pub fn of(operation: &str) -> Option<Handler> {
    match operation {
        "version" => handler!(about::version),
        "health" => handler!(about::health),
        "whoami" => handler!(about::whoami),
        "openapi" => handler!(about::openapi),
        "audit" => handler!(about::audit),
        "auditChain" => handler!(about::audit_chain),
        "events" | "projectEvents" => handler!(about::events),
        "listProjects" => handler!(projects::list),
        "apply" => handler!(projects::apply),
        "holdDeploy" => handler!(deploys::hold),
        "endDeploy" => handler!(deploys::end),
        "deleteProject" => handler!(projects::delete),
        "status" => handler!(projects::status),
        "explain" => handler!(projects::explain),
        "listResources" => handler!(resources::list),
        "getResource" => handler!(resources::get),
        "deleteResource" => handler!(resources::delete),
        "putService" => handler!(services::put),
        "listKeys" => handler!(keys::list),
        "getKey" => handler!(keys::get),
        "putKey" => handler!(keys::put),
        "deleteKey" => handler!(keys::delete),
        "scale" => handler!(services::scale),
        "listReleases" => handler!(services::releases),
        "getRelease" => handler!(services::release),
        "getRollout" => handler!(services::rollout),
        "steerRollout" => handler!(steering::steer),
        "restart" => handler!(services::restart),
        "rollback" => handler!(services::rollback),
        "keyring" => handler!(keyring::status),
        "rotateKeyring" => handler!(keyring::rotate),
        "setSecret" => handler!(secrets::set),
        "secretValues" => handler!(secrets::values),
        "listInstances" => handler!(instances::list),
        "logs" => handler!(instances::logs),
        "exec" => handler!(instances::exec),
        "run" => handler!(beside::run),
        "connect" => handler!(beside::connect),
        "askEngine" => handler!(engines::ask),
        "tellEngine" => handler!(engines::tell),
        "beginUpload" => handler!(artifacts::begin),
        "uploadChunk" => handler!(artifacts::chunk),
        "getArtifact" => handler!(artifacts::get),
        "listNodes" => handler!(nodes::list),
        "cordon" => handler!(nodes::cordon),
        "removeNode" => handler!(leaving::remove),
        "releaseBrake" => handler!(brake::release),
        "explainNode" => handler!(nodes::explain),
        "makeJoinToken" => handler!(joining::make_join_token),
        "join" => handler!(joining::join),
        "renew" => handler!(joining::renew),
        "serviceCertificate" => handler!(joining::service_certificate),
        "heartbeat" => handler!(nodes::heartbeat),
        "desired" => handler!(nodes::desired),
        "tunnel" => handler!(nodes::tunnel),
        _ => None,
    }
}
