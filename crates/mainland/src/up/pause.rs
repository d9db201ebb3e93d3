//! How long a process that just ended rests before it is started again.

use std::time::{Duration, Instant};

/// A process that dies again and again is started anew no faster than this.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(50);
/// After this long alive, a death counts as the first again.
const RESTART_FORGET: Duration = Duration::from_secs(10);

/// How long to wait before the next start of what just ended.
#[derive(Default)]
pub(super) struct Pause {
    last: Option<Instant>,
    length: Duration,
}

impl Pause {
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let recent = self.last.is_some_and(|last| now - last < RESTART_FORGET);
        self.length = match recent {
            true => (self.length * 2).min(RESTART_PAUSE_MAX),
            false => RESTART_PAUSE_MIN,
        };
        self.last = Some(now);
        self.length
    }
}
