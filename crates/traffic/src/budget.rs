//! How many tries a destination may cost beyond the first: 20 % of its requests, and 10 a second.
//!
//! A bucket of tokens. Each request brings a fifth of a token, each second ten; a retry takes one. When a destination fails
//! altogether, retries then add a fifth to its load instead of multiplying it. What is not used is kept for about ten seconds (as linkerd's
//! budgets are by default): a copy that dies breaks all that it had in hand at one moment.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::load::Instant;

const MILLI: i64 = 1000;
const PER_REQUEST: i64 = MILLI / 5;
const PER_SECOND: i64 = 10 * MILLI;
/// What seconds bring is saved up for as many of them, and what requests bring beyond that is forgotten at this pace.
const KEPT_SECONDS: i64 = 10;
const MOST_OF_SECONDS: i64 = KEPT_SECONDS * PER_SECOND;
/// However busy: a thousand.
const MOST: i64 = 1000 * MILLI;

#[derive(Debug)]
pub struct Budget {
    milli_tokens: AtomicI64,
    refilled_at: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            milli_tokens: AtomicI64::new(PER_SECOND),
            refilled_at: AtomicU64::new(0),
        }
    }
}

impl Budget {
    /// A request came.
    pub fn deposit(&self, now: Instant) {
        self.refill(now);
        if self.milli_tokens.load(Relaxed) < MOST {
            self.milli_tokens.fetch_add(PER_REQUEST, Relaxed);
        }
    }

    /// Whether one more try may be made; takes its token.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.refill(now);
        let taken = self.milli_tokens.fetch_sub(MILLI, Relaxed) >= MILLI;
        if !taken {
            self.milli_tokens.fetch_add(MILLI, Relaxed);
        }
        taken
    }

    fn refill(&self, now: Instant) {
        let last = self.refilled_at.load(Relaxed);
        let elapsed_ms = now.0.saturating_sub(last) / 1_000_000;
        if elapsed_ms == 0 {
            return;
        }
        let won = self
            .refilled_at
            .compare_exchange(last, now.0, Relaxed, Relaxed)
            .is_ok();
        if won {
            let saved = self.milli_tokens.load(Relaxed);
            let room = (MOST_OF_SECONDS - saved).max(0);
            let earned = (elapsed_ms as i64).saturating_mul(PER_SECOND / 1000);
            let excess = (saved - MOST_OF_SECONDS).max(0);
            let elapsed_ms = (elapsed_ms as i64).min(KEPT_SECONDS * 1000);
            let forgotten = excess * elapsed_ms / (KEPT_SECONDS * 1000);
            self.milli_tokens
                .fetch_add(earned.min(room) - forgotten, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(budget: &Budget, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn ten_a_second_and_a_fifth_of_the_requests() {
        let second = 1_000_000_000;
        let budget = Budget::default();
        assert_eq!(drawn(&budget, Instant(0)), 10);
        assert_eq!(drawn(&budget, Instant(second)), 10);
        (0..100).for_each(|_| budget.deposit(Instant(second)));
        assert_eq!(drawn(&budget, Instant(second)), 20);
        assert_eq!(drawn(&budget, Instant(second)), 0);
        assert_eq!(
            drawn(&budget, Instant(1000 * second)),
            100,
            "the savings are bounded"
        );
    }

    #[test]
    fn what_the_requests_of_ten_seconds_brought_is_kept() {
        // For a minute 250 requests a second: a fifth of ten seconds of them is 500, beside the hundred.
        let budget = Budget::default();
        let ms = 1_000_000;
        (0..60_000 / 4).for_each(|n| budget.deposit(Instant(n * 4 * ms)));
        let drawn_at_once = drawn(&budget, Instant(60_000 * ms));
        assert!((550..650).contains(&drawn_at_once), "{drawn_at_once}");
        // Half a minute of silence, and only what seconds bring is left.
        let budget = Budget::default();
        (0..60_000 / 4).for_each(|n| budget.deposit(Instant(n * 4 * ms)));
        (0..300).for_each(|n| budget.refill(Instant((60_000 + n * 100) * ms)));
        let left = drawn(&budget, Instant(90_000 * ms));
        assert!((100..140).contains(&left), "{left}");
    }
}
