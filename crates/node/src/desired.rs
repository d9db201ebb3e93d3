//! Hears what the node should run, and keeps it on disk.

use std::sync::Arc;

use futures_util::StreamExt;
use model::control::{NodeDesired, Reason};
use model::ids::ResourceId;
use model::signals::Level;
use plan::Instant;
use plan::agent::Input;

use crate::agent::Agent;
use crate::pause::Pause;
use crate::{clock, layout};

/// Watches for as long as the agent lives.
pub async fn run(agent: Arc<Agent>) {
    let mut pause = Pause::of_connection();
    'anew: loop {
        let asked_at = clock::instant();
        let client = agent.identities.client();
        match client.watch_desired(&agent.config.name).await {
            Ok(mut stream) => loop {
                let told = tokio::select! {
                    told = stream.next() => told,
                    // The connection is good; what came over it so far is not to be relied on.
                    () = agent.signals.watch_anew.notified() => continue 'anew,
                };
                match told {
                    Some(Ok(desired)) => {
                        pause.reset();
                        take(&agent, desired, Some(asked_at));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the watch of the desired state broke");
                        break;
                    }
                    None => break,
                }
            },
            Err(error) => tracing::debug!(%error, "the desired state can't be watched"),
        }
        pause.wait().await;
    }
}

/// `asked_at`: `None` for what was kept on disk.
pub fn take(agent: &Arc<Agent>, mut desired: NodeDesired, asked_at: Option<Instant>) {
    let generation = desired.generation;
    let is_new = agent.with(|core| {
        let is_new = core.state.generation() < Some(generation);
        if is_new {
            core.road = plan::road::merge(&core.road, &desired.road);
            desired.road = core.road.clone();
            core.removed.clone_from(&desired.removed);
        }
        is_new
    });
    if is_new && asked_at.is_some() {
        // Done before it is acknowledged, and not done again by who reads it from disk.
        for service in std::mem::take(&mut desired.forget_volumes) {
            forget(agent, &service);
        }
        keep(agent, &desired);
    }
    agent.tell(Input::Desired {
        desired: Box::new(desired),
        asked_at,
    });
    if is_new {
        agent.signals.road.send_replace(());
        agent.signals.certify.notify_one();
        // That it was taken is what the server waits for.
        agent.signals.report.notify_one();
    }
}

fn forget(agent: &Arc<Agent>, service: &ResourceId) {
    match agent.layout.forget_volumes(service) {
        Ok(None) => {}
        Ok(Some(gone)) => {
            let message = format!("the volumes of {service} are deleted, as somebody asked");
            agent.with(|core| {
                agent.say(
                    core,
                    None,
                    Level::Info,
                    Reason::new("volumes-forgotten", message),
                )
            });
            tokio::task::spawn_blocking(move || std::fs::remove_dir_all(gone));
        }
        Err(error) => agent.with(|core| agent.disk_refuses(core, &error)),
    }
}

fn keep(agent: &Agent, desired: &NodeDesired) {
    if let Err(error) = layout::write(&agent.layout.desired(), desired) {
        agent.with(|core| agent.disk_refuses(core, &error));
    }
}
