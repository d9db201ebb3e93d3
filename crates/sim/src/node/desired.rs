//! What the agent is told to run, and by which road its machine goes.

use model::control::NodeDesired;
use model::ids::NodeName;
use plan::Instant;
use plan::agent::Input;

use super::A_DAY;
use crate::Bug;
use crate::world::{Life, ToServer, World};

impl World {
    /// It runs nothing any more, and neither does the next agent. Whoever was let in again meanwhile hears what was said before.
    pub(super) fn is_removed(&mut self, name: &NodeName, life: Life) {
        if !self.store.removed.contains(name) || self.nodes[name].disk.is_removed {
            return;
        }
        self.node(name).disk.is_removed = true;
        self.note(|| format!("{name}: is no node any more"));
        self.agent_takes(name, life, Input::StopAll);
    }

    pub(super) fn ask_watch(&mut self, name: &NodeName) {
        let now_ms = self.now_ms;
        let asked_at = self.now_on(self.nodes[name].offset_ms).instant;
        let Some(agent) = self.node(name).agent.as_mut() else {
            return;
        };
        agent.asked_ms = now_ms;
        let session = agent.session;
        self.send_to_server(name, ToServer::Watch { session, asked_at });
    }

    pub(super) fn take_desired(
        &mut self,
        name: &NodeName,
        life: Life,
        mut desired: NodeDesired,
        asked_at: Instant,
    ) {
        let replaces = self.options.bug == Some(Bug::PartialRoadReplaces);
        let trusts = self.options.bug == Some(Bug::TrustsOldDesired);
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let node = self.node(name);
        let Some(agent) = &node.agent else { return };
        if agent.state.generation() < Some(desired.generation) {
            let complete = desired.road.complete;
            let road = match replaces {
                true => desired.road.clone(),
                false => plan::road::merge(&node.road, &desired.road),
            };
            node.road.clone_from(&road);
            desired.road = road;
            if let Some(agent) = &mut node.agent {
                agent.to_keep = Some(desired.clone());
            }
            self.check_road(name, complete);
            self.keep_desired(name);
            self.beat_soon(name, life);
        }
        let asked_at = Some(if trusts { now.after(A_DAY) } else { asked_at });
        self.agent_takes(
            name,
            life,
            Input::Desired {
                desired: Box::new(desired),
                asked_at,
            },
        );
        self.remove_strays(name);
    }

    /// What is left of instances without a record, and is not wanted: once a server has said what is.
    fn remove_strays(&mut self, name: &NodeName) {
        let node = self.node(name);
        let Some(agent) = &node.agent else { return };
        let left = node.processes.keys().chain(node.held_up.keys());
        let strays: Vec<_> = left
            .filter(|id| agent.state.instance(id).is_none())
            .cloned()
            .collect();
        for stray in strays {
            self.clear(name, &stray);
        }
    }
}
