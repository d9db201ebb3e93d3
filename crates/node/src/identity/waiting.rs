//! How long an agent that comes back waits for the servers to hear it.

use std::time::Duration;

use model::timing::LOST_AFTER;
use tokio::time::Instant;

use crate::removal::AWAITED;

/// As long as an agent may count as heard that is not there any more, with room for one more question.
const HEARD_FOR: Duration = LOST_AFTER.saturating_add(Duration::from_secs(1));

/// What an agent that comes back is told while it has to wait.
#[derive(Default)]
pub(super) struct Waiting {
    /// When it was told so last.
    told: Option<Instant>,
    /// Since when it is told that another is heard.
    twice: Option<Instant>,
}

impl Waiting {
    pub(super) fn was_told_lately(&self) -> bool {
        self.told.is_some_and(|told| told.elapsed() < HEARD_FOR)
    }

    /// Whether it is told so for too long.
    pub(super) fn is_over(&mut self, code: &str) -> bool {
        let now = Instant::now();
        self.told = Some(now);
        if code == AWAITED {
            // The server bounds that itself: a stall of it, or its restart, makes it longer.
            self.twice = None;
            return false;
        }
        // An agent that was killed a moment ago on another place may still count as heard.
        now - *self.twice.get_or_insert(now) >= HEARD_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::removal::TWICE;

    /// Being awaited is no end, however long it takes; and what is told after it has its own time.
    #[tokio::test(start_paused = true)]
    async fn only_who_is_heard_elsewhere_for_long_gives_up() {
        let mut waiting = Waiting::default();
        assert!(!waiting.was_told_lately());
        let tell = [(AWAITED, 60, false), (TWICE, 4, false), (AWAITED, 9, false)];
        let over = [(TWICE, 4, false), (TWICE, 1, false), (TWICE, 0, true)];
        for (code, seconds, expected) in tell.into_iter().chain(over) {
            assert_eq!(waiting.is_over(code), expected, "{code} {seconds}");
            assert!(waiting.was_told_lately());
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    }
}
