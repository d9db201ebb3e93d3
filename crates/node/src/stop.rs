//! The end of a node that is asked to stop: with all that runs there, and with what it has put on the machine outside of its directory. Each step
//! has a bound, so that a disk that stands still holds up no end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use plan::agent::Input;

use crate::agent::Agent;
use crate::firewall::NFT_PATIENCE;

/// Beyond all graces, until a node that was asked to stop ends whatever is left.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// For the last heartbeat to be answered, and for the answer to who asked to stop to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);

impl Agent {
    /// The agent ends; with `instances`, everything leaves the road and the machine first, then the proxy.
    pub async fn stop(self: &Arc<Self>, instances: bool) {
        if instances {
            self.stop_instances().await;
            self.end_placing().await;
            self.signals.stop_proxy.send_replace(true);
            let mut stopped = self.signals.proxy_stopped.subscribe();
            let _ = tokio::time::timeout(STOP_PATIENCE, stopped.wait_for(|stopped| *stopped)).await;
            self.firewall.remove().await;
            crate::prepare::forget_secrets(self);
        }
        let agent = self.clone();
        self.tasks.spawn(async move {
            // The answer to who asked is on its way.
            tokio::time::sleep(LAST_WORDS / 5).await;
            agent.signals.ended.send_replace(true);
        });
    }

    /// The longest that [`Agent::stop`] takes with what runs here now: each step of it has a bound.
    pub fn stops_within(&self) -> Duration {
        // Preparations, the proxy, and the firewall after the instances.
        self.instances_stop_within() + LAST_WORDS * 2 + STOP_PATIENCE * 2 + NFT_PATIENCE * 2
    }

    /// To drain, and to end.
    fn instances_stop_within(&self) -> Duration {
        let graces = self.with(|core| {
            let instances = core.state.instances();
            let known = instances.map(|(_, instance)| instance.desired().spec.grace);
            let left = core.foreign.values().map(|left| left.grace);
            known.chain(left).map(|grace| grace.duration()).max()
        });
        graces.unwrap_or_default() * 2 + STOP_PATIENCE
    }

    /// A preparation that is under way would bring back what is about to be taken away. One that a disk holds up is left behind: it looks again
    /// before it changes anything outside of the node's directory.
    async fn end_placing(&self) {
        self.stopped.store(true, Ordering::Release);
        let ended = tokio::time::timeout(STOP_PATIENCE, self.places.write()).await;
        if ended.is_err() {
            tracing::warn!(
                "a preparation is still under way; the node stops without waiting for it"
            );
        }
    }

    /// Whether what is outside of the node's directory is to go.
    pub fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    async fn stop_instances(self: &Arc<Self>) {
        self.tell(Input::StopAll);
        let deadline = tokio::time::Instant::now() + self.instances_stop_within();
        let mut still = tokio::time::interval(Duration::from_millis(20));
        while !self.with(|core| core.state.is_still()) && tokio::time::Instant::now() < deadline {
            still.tick().await;
        }
        let mut heard = self.signals.heard.subscribe();
        heard.mark_unchanged();
        self.signals.report.notify_one();
        let _ = tokio::time::timeout(LAST_WORDS, heard.changed()).await;
    }
}
