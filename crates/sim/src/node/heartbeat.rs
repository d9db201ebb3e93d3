//! What the agent tells the server: each second, and soon when something changed.

use model::ids::NodeName;

use crate::world::{Event, Life, ToServer, World};

const HEARTBEAT_EVERY_MS: u64 = 1_000;
/// A watch that brought nothing for so long is asked for anew.
const WATCH_AGAIN_MS: u64 = 2_000;

impl World {
    pub(crate) fn beat(&mut self, name: &NodeName, life: Life) {
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let now_ms = self.now_ms;
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        if now_ms < agent.stalled_until_ms {
            let until = agent.stalled_until_ms;
            return self.put_off(
                until,
                Event::Heartbeat {
                    node: name.clone(),
                    life,
                },
            );
        }
        let soon = std::mem::take(&mut agent.beat_soon);
        agent.sequence += 1;
        let message = ToServer::Heartbeat {
            session: agent.session,
            sequence: agent.sequence,
            acknowledged: agent.generation,
            reports: agent.state.reports().cloned().collect(),
            sent_at: now,
        };
        let watch_is_old = now_ms >= agent.asked_ms + WATCH_AGAIN_MS;
        self.send_to_server(name, message);
        if watch_is_old {
            self.ask_watch(name);
        }
        if !soon {
            self.schedule(
                HEARTBEAT_EVERY_MS,
                Event::Heartbeat {
                    node: name.clone(),
                    life,
                },
            );
        }
    }

    /// Something changed: a heartbeat of its own, a few changes at a time.
    pub(super) fn beat_soon(&mut self, name: &NodeName, life: Life) {
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        if !std::mem::replace(&mut agent.beat_soon, true) {
            self.schedule(
                20,
                Event::Heartbeat {
                    node: name.clone(),
                    life,
                },
            );
        }
    }
}
