//! Leases: keys that live as long as someone gives signs of life.
//!
//! That a lease exists is durable; when it ends is not, since a restarted store cannot know which signs of life it missed. So
//! after a restart every lease starts anew. Ending goes in two steps, that a late sign of life cannot save a half-ended lease:
//! `Deadlines` forgets the lease (from now on it is refused), then a transaction deletes its keys.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub(crate) u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "lease-{}", self.0)
    }
}

/// Time that only goes forward, since some moment of no meaning.
pub trait Clock: Send + Sync {
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
pub struct MonotonicClock {
    start: Instant,
}

impl Default for MonotonicClock {
    fn default() -> Self {
        MonotonicClock {
            start: Instant::now(),
        }
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// When each lease ends.
#[derive(Default)]
pub(crate) struct Deadlines {
    leases: Mutex<HashMap<LeaseId, Deadline>>,
}

#[derive(Clone, Copy)]
struct Deadline {
    time_to_live: Duration,
    end: Duration,
    /// Being ended: its keys are about to go.
    ending: bool,
}

impl Deadlines {
    pub(crate) fn start(&self, lease: LeaseId, time_to_live: Duration, now: Duration) {
        let deadline = Deadline {
            time_to_live,
            // A lease longer than time itself ends never.
            end: now.saturating_add(time_to_live),
            ending: false,
        };
        self.with(|leases| leases.insert(lease, deadline));
    }

    pub(crate) fn keep_alive(&self, lease: LeaseId, now: Duration) -> Result<(), Error> {
        self.with(|leases| match leases.get_mut(&lease) {
            Some(deadline) if !deadline.ending && now < deadline.end => {
                deadline.end = now.saturating_add(deadline.time_to_live);
                Ok(())
            }
            _ => Err(Error::LeaseUnknown(lease)),
        })
    }

    pub(crate) fn check(&self, lease: LeaseId, now: Duration) -> Result<(), Error> {
        let lives = self.with(|leases| {
            leases
                .get(&lease)
                .is_some_and(|deadline| !deadline.ending && now < deadline.end)
        });
        if lives {
            Ok(())
        } else {
            Err(Error::LeaseUnknown(lease))
        }
    }

    /// Those whose time is over, marked as ending; also those marked before whose keys could not be deleted then.
    pub(crate) fn end_due(&self, now: Duration) -> Vec<LeaseId> {
        self.with(|leases| {
            let due = leases
                .iter_mut()
                .filter(|(_, deadline)| deadline.ending || now >= deadline.end);
            let mut ended: Vec<_> = due
                .map(|(lease, deadline)| {
                    deadline.ending = true;
                    *lease
                })
                .collect();
            ended.sort();
            ended
        })
    }

    pub(crate) fn end(&self, lease: LeaseId) -> Result<(), Error> {
        self.with(|leases| match leases.get_mut(&lease) {
            Some(deadline) => {
                deadline.ending = true;
                Ok(())
            }
            None => Err(Error::LeaseUnknown(lease)),
        })
    }

    pub(crate) fn forget(&self, lease: LeaseId) {
        self.with(|leases| leases.remove(&lease));
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<LeaseId, Deadline>) -> T) -> T {
        work(&mut self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_longer_than_time_ends_never() {
        let (deadlines, lease) = (Deadlines::default(), LeaseId(1));
        let now = Duration::from_secs(1_000_000);
        deadlines.start(lease, Duration::MAX, now);
        deadlines.keep_alive(lease, now * 2).unwrap();
        deadlines.check(lease, now * 1000).unwrap();
        assert!(deadlines.end_due(now * 1000).is_empty());
    }
}
