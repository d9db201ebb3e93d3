//! The clock that agent and shim share, and the lease of an instance with `on_partition: stop`.
//!
//! A lease runs from the moment at which the last *successful* renewal was *sent*. Whoever grants leases counts from when it
//! received it, which is later; so the instance is gone before its replacement may start.
//!
//! That holds as long as the clock goes on. In a virtual machine that is paused, or moved live to another host, it stands still with all else: once
//! resumed, what the lease should have ended runs on for what was left of it, up to 3.5 s, beside its replacement. No timer in the machine can do
//! better. The epoch of the replacement is higher: requests of others go there by then, and its node, once heard, is told to end the old one. What
//! that does by itself meanwhile (it calls, it writes to a shared disk) is refused by nobody.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds: the same for all processes of the machine, never set, and going on while
/// the machine sleeps, so that a lease runs out on a closed laptop too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        Self(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait.as_nanos() as u64))
    }

    /// How long after `earlier` it is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
