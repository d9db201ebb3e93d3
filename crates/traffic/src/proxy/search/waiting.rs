//! Who waits for an endpoint.

use std::sync::atomic::Ordering;

use crate::proxy::reports::Reports;
use crate::proxy::view::Shared;

/// Requests of one service that wait for an endpoint at a time.
pub const MOST_WAITING: u32 = 1024;

/// Counts one that waits; `None` when too many do.
pub struct Waiting<'a> {
    shared: &'a Shared,
    /// When it is demand: there is no endpoint at all.
    demand: Option<&'a Reports>,
}

impl<'a> Waiting<'a> {
    pub fn new(shared: &'a Shared, demand: Option<&'a Reports>) -> Option<Self> {
        let before = shared.waiting.fetch_add(1, Ordering::Relaxed);
        if before >= MOST_WAITING {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if let Some(reports) = demand {
            shared.want();
            reports.touch();
        }
        Some(Self { shared, demand })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(reports) = self.demand {
            self.shared.unwant();
            reports.touch();
        }
    }
}
