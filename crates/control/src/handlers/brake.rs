//! The brake: when most nodes, or several zones, vanish at once, nothing is replaced until somebody says that they are gone.

use std::sync::Arc;

use api::wire;
use model::ids::NodeName;
use plan::nodes::{self, Input};

use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::problems;
use crate::state::{Server, Shared};

/// An operator knows what the leader can't: that the nodes that vanished at once are gone. Repeated, it does nothing.
pub async fn release(server: Arc<Server>, call: Call) -> Answer {
    if server.leadership.is_fenced() {
        return Err(problems::fenced());
    }
    let given_up: Vec<NodeName> = server.with(|shared| missing_now(shared));
    if given_up.is_empty() {
        return Ok(call::json(&wire::BrakeReleased { given_up }));
    }
    let gone = given_up
        .iter()
        .map(|node| format!("node {node} is given up"));
    let deed = Deed::new(call.principal.name(), "brake.release", "nodes");
    server.keep(&deed, gone.collect()).await?;
    let now = server.clock.now();
    let given_up = server.with(|shared| {
        // Who came back while the record was written is not given up.
        let missing = missing_now(shared);
        let outputs = nodes::step(&mut shared.nodes, Input::ReleaseBrake, now);
        shared.node_outputs.extend(outputs);
        missing
    });
    server.changed.notify_one();
    Ok(call::json(&wire::BrakeReleased { given_up }))
}

/// The nodes for which the brake is on.
fn missing_now(shared: &Shared) -> Vec<NodeName> {
    let brake = shared.nodes.brake().into_iter();
    brake
        .flat_map(|brake| brake.missing.iter().cloned())
        .collect()
}
