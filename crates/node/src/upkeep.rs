//! What must be done again and again: certificates renewed, artifacts collected.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::compute::Work;

use crate::agent::Agent;
use crate::{artifacts, identity};

/// Between looks at what could be collected.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60);
/// Between looks at certificates; shorter while one could not be had.
const CERTIFY_INTERVAL: Duration = Duration::from_secs(5);
const CERTIFY_AGAIN: Duration = Duration::from_secs(3);
/// Not heard for so long, a node asks for another certificate, good though its own seems.
const UNHEARD_PATIENCE: Duration = Duration::from_secs(10);

/// Keeps certificates fresh: the node's own, and one for each service here.
pub async fn certify(agent: Arc<Agent>) {
    let mut asked = Instant::now();
    let mut said = String::new();
    loop {
        let unheard = !agent.with(|core| core.connected);
        let anyway = unheard && asked.elapsed() >= UNHEARD_PATIENCE;
        if anyway {
            asked = Instant::now();
        }
        let wait = match certify_once(&agent, anyway).await {
            Ok(()) if unheard => CERTIFY_AGAIN,
            Ok(()) => CERTIFY_INTERVAL,
            Err(error) => {
                // While no server is there it is the same each time.
                let error = error.to_string();
                if error != said {
                    tracing::warn!(error, "certificates");
                }
                said = error;
                CERTIFY_AGAIN
            }
        };
        let _ = tokio::time::timeout(wait, agent.signals.certify.notified()).await;
    }
}

async fn certify_once(agent: &Arc<Agent>, anyway: bool) -> Result<(), identity::Error> {
    if agent.identities.renew(anyway).await? {
        agent.signals.road.send_replace(());
        // The connection that the watch is on still shows the old one.
        agent.signals.watch_anew.notify_one();
    }
    let services = agent.with(|core| core.services());
    let left = agent.with(|core| core.left_services());
    let has_use: BTreeSet<_> = services.union(&left).cloned().collect();
    // Before the desired state is known nothing is forgotten.
    if agent.with(|core| core.state.generation().is_some()) && agent.identities.keep_only(&has_use)
    {
        agent.signals.road.send_replace(());
    }
    for service in has_use {
        if agent.identities.certify(&service).await? {
            agent.signals.road.send_replace(());
        }
    }
    Ok(())
}

/// Removes artifacts that no instance uses.
pub async fn collect(agent: Arc<Agent>) {
    let mut unused = BTreeSet::new();
    loop {
        tokio::time::sleep(COLLECT_INTERVAL).await;
        let used = agent.with(|core| {
            let specs = core
                .state
                .instances()
                .map(|(_, instance)| &instance.desired().spec.work);
            specs
                .filter_map(|work| match work {
                    Work::Process { artifact, .. } => {
                        artifact.as_ref().map(|artifact| artifact.digest)
                    }
                    Work::External { .. } | Work::Engine { .. } => None,
                })
                .collect()
        });
        let store = agent.store.clone();
        let collected = tokio::task::spawn_blocking(move || {
            let result = artifacts::collect(&store, &used, &mut unused);
            (result, unused)
        });
        unused = match collected.await {
            Ok((Ok(()), unused)) => unused,
            Ok((Err(error), unused)) => {
                tracing::warn!(%error, "artifacts can't be collected");
                unused
            }
            Err(_) => BTreeSet::new(),
        };
    }
}
