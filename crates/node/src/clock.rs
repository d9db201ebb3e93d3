//! The clock that agent, shims and the step share.

use compute::lease::Moment;
use jiff::Timestamp;
use plan::{Instant, Now};
use std::time::Duration;

pub fn now() -> Now {
    Now {
        instant: instant(),
        at: Timestamp::now(),
    }
}

/// On `CLOCK_BOOTTIME`: never set, and it counts while the machine sleeps.
pub fn instant() -> Instant {
    Instant(Duration::from_nanos(Moment::now().0))
}

pub fn moment(instant: Instant) -> Moment {
    Moment(u64::try_from(instant.0.as_nanos()).unwrap_or(u64::MAX))
}
