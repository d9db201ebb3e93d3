//! The brake: when most nodes, or several zones, vanish at once, nothing is replaced until somebody says that they are gone.

use std::sync::Arc;

use api::wire;
use model::ids::NodeName;
use plan::nodes::{self, Input};

use crate::call::{self, Answer, Call};
use crate::problems;
use crate::state::Server;

/// An operator knows what the leader can't: that the nodes that vanished at once are gone. Repeated, it does nothing.
pub async fn release(server: Arc<Server>, call: Call) -> Answer {
    if server.leadership.is_fenced() {
        return Err(problems::fenced());
    }
    let now = server.clock.now();
    let given_up: Vec<NodeName> = server.with(|shared| {
        let brake = shared.nodes.brake().into_iter();
        let missing = brake
            .flat_map(|brake| brake.missing.iter().cloned())
            .collect();
        let outputs = nodes::step(&mut shared.nodes, Input::ReleaseBrake, now);
        shared.node_outputs.extend(outputs);
        missing
    });
    server.changed.notify_one();
    if !given_up.is_empty() {
        let gone = given_up
            .iter()
            .map(|node| format!("node {node} is given up"));
        server
            .audited(
                call.principal.name(),
                "brake.release",
                "nodes",
                gone.collect(),
            )
            .await;
    }
    Ok(call::json(&wire::BrakeReleased { given_up }))
}
