//! The loop that lets leases expire.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::Store;

/// How late a lease may end at most, when the store is not overloaded.
pub const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(500);

/// Runs until dropped. Errors are logged and met again at the next turn: it is level, not edge.
pub async fn maintain(store: Arc<dyn Store>) {
    let mut interval = tokio::time::interval(MAINTENANCE_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        match store.expire().await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "leases expired"),
            Err(error) => tracing::warn!(%error, "expired leases could not be ended yet"),
        }
    }
}
