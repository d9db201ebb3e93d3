//! When a running instance is asked how it does, and what its answers make of it.

use std::time::Duration;

use model::compute::{Ask, Probe};

use crate::Instant;

/// A not-yet-ready instance is asked this often.
pub const NOT_READY_INTERVAL: Duration = Duration::from_millis(50);
/// One that has not been ready for this long is asked as rarely as its probe says: it costs the machine more than it gains its users.
pub const NOT_READY_PATIENCE: Duration = Duration::from_secs(60);
/// For its turn a probe waits this long where many are out.
pub const PROBE_WAIT: Duration = Duration::from_secs(10);
/// An answer that did not come this long after turn and timeout was lost: that counts as a failure, and it is asked anew.
const ANSWER_LOST_AFTER: Duration = Duration::from_secs(2);

/// One probe of one run.
#[derive(Debug, Default)]
pub(super) struct Probing {
    next_at: Instant,
    /// Outstanding since.
    asked_at: Option<Instant>,
    failures: u32,
}

impl Probing {
    pub(super) fn from(first_at: Instant) -> Self {
        Self {
            next_at: first_at,
            ..Self::default()
        }
    }

    /// Whether to ask now; notes that it was asked.
    pub(super) fn ask(&mut self, probe: &Probe, now: Instant) -> bool {
        if matches!(probe.ask, Ask::None) || now < self.wake(probe) {
            return false;
        }
        self.asked_at = Some(now);
        true
    }

    /// Whether it was asked and the answer will not come.
    pub(super) fn is_lost(&self, probe: &Probe, now: Instant) -> bool {
        self.asked_at.is_some() && now >= self.wake(probe)
    }

    /// The next question is counted from when the last was asked, so that a slow answer does not slow the pace.
    pub(super) fn answered(&mut self, good: bool, pause: Duration, now: Instant) {
        let asked_at = self.asked_at.take().unwrap_or(now);
        self.next_at = asked_at.after(pause).max(now);
        self.failures = if good {
            0
        } else {
            self.failures.saturating_add(1)
        };
    }

    /// As if it had not been asked; the next question comes at the usual pace.
    pub(super) fn not_asked(&mut self, pause: Duration, now: Instant) {
        let asked_at = self.asked_at.take().unwrap_or(now);
        self.next_at = asked_at.after(pause).max(now);
    }

    pub(super) fn has_failed(&self, probe: &Probe) -> bool {
        self.failures >= probe.times.failures.max(1)
    }

    pub(super) fn wake(&self, probe: &Probe) -> Instant {
        match self.asked_at {
            Some(asked_at) => {
                asked_at.after(PROBE_WAIT + probe.times.timeout.duration() + ANSWER_LOST_AFTER)
            }
            None => self.next_at,
        }
    }

    /// Ask at once, as after a process was continued.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.next_at = now;
    }
}
