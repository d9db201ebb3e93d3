//! Ending what `up` runs: each process in its own time, as far as it says itself, and by force after that.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::client::{Client, Transport};
use api::wire;
use rustix::process::Signal;

use super::STOP_TIMEOUT;
use super::layout::Layout;
use super::process::Identity;

/// Between looks at a node that does not take the word yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// For a node to say how long it may take to stop.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// `patience`: for its nodes.
pub async fn end_supervisor(supervisor: &Identity, patience: Duration) -> Result<()> {
    let pid = supervisor.pid;
    supervisor.signal(Signal::TERM).with_context(|| {
        format!("`up` (pid {pid}) can't be told to end: run `mainland down` as its user")
    })?;
    let ended = tokio::time::timeout(patience + STOP_TIMEOUT * 2, supervisor.ended()).await;
    ended.with_context(|| format!("`up` (pid {pid}) does not end"))
}

/// False: it has not ended, or not as asked.
pub async fn stop_node(socket: PathBuf, identity: Identity) -> bool {
    let mut deadline = Instant::now() + STOP_TIMEOUT;
    let client = Client::new(Transport::Unix(socket.clone()), None);
    let mut asked = false;
    while !asked && identity.alive() && Instant::now() < deadline {
        let patience = stops_within(socket.clone()).await;
        deadline = deadline.max(Instant::now() + patience);
        let ask = api::client::request(http::Method::POST, "/v1/stop?instances=true", Vec::new());
        asked = client.send_within(ask, patience).await.is_ok();
        if !asked {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
    let ended = tokio::time::timeout_at(deadline.into(), identity.ended()).await;
    asked && ended.is_ok()
}

/// How long a node is given: what it says itself, where that is more than what any is.
async fn stops_within(socket: PathBuf) -> Duration {
    let client = Client::new(Transport::Unix(socket), None);
    let asking = client.get::<wire::NodeStatus>("/v1/status");
    let said = tokio::time::timeout(STATUS_PATIENCE, asking).await;
    let said = said.ok().and_then(Result::ok);
    let within = said.and_then(|status| status.stops_within);
    within.map_or(Duration::ZERO, |within| within.duration()) + STOP_TIMEOUT
}

/// The same of the slowest of all.
pub async fn all_stop_within(layout: &Layout) -> Duration {
    let mut asking = tokio::task::JoinSet::new();
    for name in layout.known_nodes() {
        asking.spawn(stops_within(layout.node_socket(&name)));
    }
    let all = asking.join_all().await;
    all.into_iter().max().unwrap_or(STOP_TIMEOUT)
}

pub async fn end(identity: &Identity) {
    let _ = identity.signal(Signal::TERM);
    if tokio::time::timeout(STOP_TIMEOUT, identity.ended())
        .await
        .is_err()
    {
        let _ = identity.signal(Signal::KILL);
    }
}
