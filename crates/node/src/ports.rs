//! The ports of instances, closed to who is neither root nor their service.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::ids::InstanceId;

use crate::agent::Agent;
use crate::core::Core;
use crate::firewall::{Error, Firewall};

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

/// Closes them where that is asked for, and again where it could not be done, for as long as the agent lives.
pub async fn run(agent: Arc<Agent>) {
    let mut pause = Firewall::pause();
    let mut said = String::new();
    loop {
        agent.firewall.lacks().await;
        while let Err(error) = close(&agent).await {
            // While `nft` does not answer it is the same each time.
            let error = error.to_string();
            if error != said {
                tracing::warn!(
                    error,
                    "the ports of instances are not closed as they should be"
                );
            }
            said = error;
            pause.wait().await;
        }
        said.clear();
        pause.reset();
    }
}

/// As [`owned`] has them.
async fn close(agent: &Agent) -> Result<(), Error> {
    agent.firewall.find_out().await?;
    let ports = || agent.with(|core| owned(core));
    match agent.firewall.apply(ports).await {
        // No port is closed any more.
        Err(Error::Gone) => Ok(()),
        done => done,
    }
}
