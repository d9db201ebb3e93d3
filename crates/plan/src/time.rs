//! Time as the decisions see it.

use std::time::Duration;

use jiff::Timestamp;

/// A moment on a monotonic clock that began when its process did. Every deadline rests on it, so a clock that is set by an hour moves none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub Duration);

impl Instant {
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// Zero when `earlier` is in fact later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The moment of a decision, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For deadlines.
    pub instant: Instant,
    /// To stamp records with; nothing is decided by it.
    pub at: Timestamp,
}
