//! How many tries a destination may cost beyond the first: 20 % of its requests, and 10 a second.
//!
//! A bucket of tokens. Each request brings a fifth of a token, each second ten; a retry takes one. When a destination fails
//! altogether, retries then add a fifth to its load instead of multiplying it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::load::Instant;

const MILLI: i64 = 1000;
const PER_REQUEST: i64 = MILLI / 5;
const PER_SECOND: i64 = 10 * MILLI;
/// What may be saved up: ten seconds' worth.
const MOST: i64 = 10 * PER_SECOND;

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
    pub fn deposit(&self) {
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
            let earned = (elapsed_ms as i64 * PER_SECOND / 1000).min(MOST);
            let room = MOST - self.milli_tokens.load(Relaxed);
            self.milli_tokens
                .fetch_add(earned.min(room.max(0)), Relaxed);
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
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(drawn(&budget, Instant(second)), 20);
        assert_eq!(drawn(&budget, Instant(second)), 0);
        assert_eq!(
            drawn(&budget, Instant(1000 * second)),
            100,
            "the savings are bounded"
        );
    }
}
