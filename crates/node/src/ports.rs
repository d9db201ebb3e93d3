//! The ports of instances, closed to who is neither root nor their service.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::ids::InstanceId;

use crate::agent::Agent;
use crate::core::Core;
use crate::firewall::Firewall;

/// Every port that an instance of this node has, and whose it is.
pub fn owned(core: &Core) -> BTreeMap<u16, u32> {
    let uid = |id: &InstanceId| {
        let owner = core.port_owners.get(id).unwrap_or(id);
        let known = core.state.instance(owner);
        let left = || Some(core.foreign.get(owner)?.uid);
        known.map(|known| known.desired().uid).or_else(left)
    };
    core.ports
        .iter()
        .filter_map(|(id, port)| Some((*port, uid(id)?)))
        .collect()
}

/// As [`owned`] has them now. False: they are not, and are tried again by [`run`].
pub async fn close_again(agent: &Agent) -> bool {
    let _placing = agent.places.read().await;
    // No port is closed any more.
    if agent.has_stopped() {
        return true;
    }
    let ports = agent.with(|core| owned(core));
    let set = agent.firewall.apply(ports).await;
    if let Err(error) = &set {
        tracing::warn!(%error, "the ports of instances are not closed as they should be");
    }
    set.is_ok()
}

/// Closes them again where that could not be done, for as long as the agent lives.
pub async fn run(agent: Arc<Agent>) {
    let mut pause = Firewall::pause();
    loop {
        agent.firewall.lacks().await;
        pause.wait().await;
        if close_again(&agent).await {
            pause.reset();
        }
    }
}
