//! The right to run what must never run twice.

use std::time::Duration;

use model::ids::Epoch;

use crate::Instant;

/// From when the last answered heartbeat was *sent*: instances that must stop in a partition get SIGTERM.
pub const TERMINATE_AFTER: Duration = Duration::from_millis(2500);
/// From the same moment: they are killed and their cgroups empty. A replacement starts no earlier.
pub const EMPTY_AFTER: Duration = Duration::from_millis(3500);

/// What an agent knows of its own lease.
#[derive(Debug, Default)]
pub struct Lease {
    /// The highest epoch of a leader that was heard; a lower one is fenced and renews nothing.
    leader: Epoch,
    sent_at: Option<Instant>,
    lost: bool,
    /// When the last loss was noticed.
    lost_at: Instant,
    /// The desired state in hand was asked for after the lease was last lost.
    confirmed: bool,
}

impl Lease {
    /// Whether the answer to what was sent at `sent_at` counts.
    pub(super) fn renew(&mut self, epoch: Epoch, sent_at: Instant, now: Instant) -> bool {
        if epoch < self.leader {
            return false;
        }
        self.leader = epoch;
        self.sent_at = self.sent_at.max(Some(sent_at));
        let held = self.is_held(now);
        self.lost &= !held;
        held
    }

    pub(super) fn confirm(&mut self, epoch: Epoch, asked_at: Option<Instant>) {
        self.leader = self.leader.max(epoch);
        self.confirmed |= asked_at.is_some_and(|asked_at| asked_at >= self.lost_at);
    }

    /// True once for each loss.
    pub(super) fn notice_loss(&mut self, now: Instant) -> bool {
        if self.lost || self.sent_at.is_none() || self.is_held(now) {
            return false;
        }
        self.lost = true;
        self.lost_at = now;
        self.confirmed = false;
        true
    }

    pub fn is_held(&self, now: Instant) -> bool {
        self.sent_at
            .is_some_and(|sent_at| now.since(sent_at) < TERMINATE_AFTER)
    }

    /// It was held in this life of the agent, and is no longer. (A new agent's instances keep the lease that their shims hold.)
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether what must never run twice may be started.
    pub fn allows_start(&self, now: Instant) -> bool {
        self.confirmed && self.is_held(now)
    }

    pub fn sent_at(&self) -> Option<Instant> {
        self.sent_at
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.sent_at
            .filter(|_| !self.lost)
            .map(|sent_at| sent_at.after(TERMINATE_AFTER))
    }
}
