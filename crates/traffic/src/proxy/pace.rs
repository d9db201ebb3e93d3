//! How fast the body of a request comes, from a client that anybody may be.
//!
//! A request has its place at a copy for as long as its body flows. Who sends a byte now and then would have it for ever.

use std::time::Duration;

use tokio::time::Instant;

/// While the client was waited for so long in all,
const WINDOW: Duration = Duration::from_secs(300);
/// so much has come. That is 3 bytes a second: a modem brings a thousand times as much, a line of a log every ten seconds some times as much. Apache asks for 500 a second
/// (`RequestReadTimeout`).
const LEAST_BYTES: usize = 1024;

/// Of one body. Only time in which the client is waited for counts, not that in which the copy does not read.
pub struct Pace {
    window: Duration,
    least: usize,
    waits_since: Option<Instant>,
    waited: Duration,
    came: usize,
}

impl Pace {
    pub fn of_a_client() -> Self {
        Self::new(WINDOW, LEAST_BYTES)
    }

    /// `least`: bytes that are to come in each `window`.
    pub fn new(window: Duration, least: usize) -> Self {
        Self {
            window,
            least,
            waits_since: None,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// Nothing is there.
    pub fn waits(&mut self, now: Instant) {
        self.waits_since.get_or_insert(now);
    }

    /// Whether a body of which `bytes` more came is too slow.
    pub fn is_too_slow(&mut self, bytes: usize, now: Instant) -> bool {
        if let Some(since) = self.waits_since.take() {
            self.waited += now.saturating_duration_since(since);
        }
        self.came = self.came.saturating_add(bytes);
        if self.waited < self.window {
            return false;
        }
        let is_slow = self.came < self.least;
        (self.waited, self.came) = (Duration::ZERO, 0);
        is_slow
    }

    /// What a client that is too slow is told.
    pub fn missed(&self) -> String {
        format!(
            "fewer than {} bytes came in {} s in which it was waited for",
            self.least,
            self.window.as_secs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a piece of `bytes` has to come every so many seconds, until the client is given up; `None`: never, in an hour.
    fn given_up_after(every: u64, bytes: usize) -> Option<u64> {
        let mut pace = Pace::of_a_client();
        let began = Instant::now();
        (1..=3600 / every).find(|piece| {
            let at = |piece: u64| began + Duration::from_secs(piece * every);
            pace.waits(at(piece - 1));
            pace.is_too_slow(bytes, at(*piece))
        })
    }

    #[test]
    fn who_trickles_is_given_up_and_who_is_slow_is_not() {
        for (every, bytes, expected) in [
            (60, 1, Some(5)),
            (20, 1, Some(15)),
            (1, 3, Some(300)),
            (1, 4, None),
            // A line of a log now and then, a modem.
            (10, 60, None),
            (20, 100, None),
            (1, 3000, None),
        ] {
            let given_up = given_up_after(every, bytes);
            assert_eq!(given_up, expected, "{bytes} bytes every {every} s");
        }
    }

    #[test]
    fn time_in_which_nobody_waits_for_the_client_does_not_count() {
        let mut pace = Pace::of_a_client();
        let mut now = Instant::now();
        for _ in 0..100 {
            pace.waits(now);
            now += Duration::from_secs(1);
            assert!(!pace.is_too_slow(1, now));
            // The copy does not read.
            now += Duration::from_secs(600);
        }
    }
}
