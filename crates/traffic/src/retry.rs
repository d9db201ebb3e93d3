//! Whether a failed try may be repeated, and after how long.
//!
//! A request that surely did not begin may always be sent elsewhere. One that may have begun is repeated only when repeating is
//! harmless: its method is idempotent (RFC 9110, 9.2.2) or it carries an `Idempotency-Key`, and its body can be sent again.

use std::time::Duration;

use http::Method;
use rand::Rng;

/// How a try failed, as far as repeating it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The endpoint, or its gate, refused before anything began.
    NotBegun,
    /// No connection could be made: nothing began, and the endpoint is suspect.
    Unreachable,
    /// It was sent, and no answer came: it may have been done.
    Broken,
}

/// What is known of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    pub idempotent: bool,
    /// The whole body is still at hand.
    pub replayable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Elsewhere, outside the budget.
    Elsewhere,
    /// Elsewhere, if the budget has a token.
    IfBudget,
    GiveUp,
}

pub fn verdict(stage: Stage, facts: Facts) -> Verdict {
    match stage {
        _ if !facts.replayable => Verdict::GiveUp,
        Stage::NotBegun | Stage::Unreachable => Verdict::Elsewhere,
        Stage::Broken if facts.idempotent => Verdict::IfBudget,
        Stage::Broken => Verdict::GiveUp,
    }
}

pub fn is_idempotent(method: &Method, has_idempotency_key: bool) -> bool {
    has_idempotency_key
        || matches!(
            *method,
            Method::GET
                | Method::HEAD
                | Method::OPTIONS
                | Method::PUT
                | Method::DELETE
                | Method::TRACE
        )
}

/// Asks for nothing to be changed (RFC 9110, 9.2.1): two copies may work on it at the same time.
pub fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

/// Ours; no answer that somebody watches for takes longer, and what works for longer is not given up: it is only asked for elsewhere as well.
const LONGEST_TRY: Duration = Duration::from_secs(5);
/// For a copy that was last seen to hang.
const TRY_OF_SUSPECT: Duration = Duration::from_millis(250);
/// A connection that does not come about within a second never does: one lost SYN is sent again after that.
pub const LONGEST_DIAL: Duration = Duration::from_secs(1);

/// How long one try may be without an answer, until a safe request is also sent elsewhere; the first to answer is taken. That is Envoy's
/// `hedge_on_per_try_timeout`, the hedged request of Dean and Barroso, "The Tail at Scale" (2013). Half of the time for the whole request, so
/// that another try has as much, and 5 s at most.
pub fn try_time(whole: Duration, suspect: bool) -> Duration {
    let most = if suspect { TRY_OF_SUSPECT } else { LONGEST_TRY };
    (whole / 2).min(most)
}

/// How long a connection may take to come about: half of what is left, so that another copy can be asked, and 1 s at most.
pub fn dial_time(left: Duration) -> Duration {
    (left / 2).min(LONGEST_DIAL)
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Full jitter (AWS, "Exponential backoff and jitter"): anything from nothing to a bound that doubles.
pub fn pause(round: u32, random: &mut impl Rng) -> Duration {
    let bound = (FIRST_PAUSE * (1 << round.min(8))).min(LONGEST_PAUSE);
    bound.mul_f64(random.random::<f64>())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn what_may_be_repeated() {
        use Stage::{Broken, NotBegun, Unreachable};
        use Verdict::{Elsewhere, GiveUp, IfBudget};
        for (stage, idempotent, replayable, expected) in [
            (NotBegun, false, true, Elsewhere),
            (NotBegun, true, true, Elsewhere),
            (NotBegun, true, false, GiveUp),
            (Unreachable, false, true, Elsewhere),
            (Unreachable, false, false, GiveUp),
            (Broken, true, true, IfBudget),
            (Broken, false, true, GiveUp),
            (Broken, true, false, GiveUp),
        ] {
            let facts = Facts {
                idempotent,
                replayable,
            };
            assert_eq!(verdict(stage, facts), expected, "{stage:?} {facts:?}");
        }
    }

    #[test]
    fn methods_and_keys() {
        for (method, key, expected) in [
            (Method::GET, false, true),
            (Method::DELETE, false, true),
            (Method::POST, false, false),
            (Method::PATCH, false, false),
            (Method::POST, true, true),
        ] {
            assert_eq!(is_idempotent(&method, key), expected, "{method} {key}");
        }
    }

    #[test]
    fn a_try_leaves_time_for_another() {
        let ms = Duration::from_millis;
        for (whole, suspect, of_try, of_dial) in [
            (ms(30_000), false, ms(5000), ms(1000)),
            (ms(30_000), true, ms(250), ms(1000)),
            (ms(500), false, ms(250), ms(250)),
            (ms(200), true, ms(100), ms(100)),
        ] {
            assert_eq!(try_time(whole, suspect), of_try);
            assert_eq!(dial_time(whole), of_dial);
        }
    }

    #[test]
    fn pauses_are_jittered_and_bounded() {
        let mut random = SmallRng::seed_from_u64(1);
        for round in 0..50 {
            let bound = Duration::from_millis((10u64 << round.min(8)).min(250));
            assert!(pause(round, &mut random) <= bound);
        }
        assert_ne!(pause(9, &mut random), pause(9, &mut random));
    }
}
