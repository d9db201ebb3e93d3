//! The right to run what must never run twice.

use model::ids::Epoch;
use model::timing::TERMINATE_AFTER;

use crate::Instant;

/// What an answer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewal {
    /// It came too late, or from a fenced leader.
    Void,
    Prolonged,
    /// It was not held, and now it is.
    Gained,
}

/// What an agent knows of its own lease.
#[derive(Debug, Default)]
pub struct Lease {
    /// The highest epoch of a leader that was heard; a lower one is fenced and renews nothing.
    leader: Epoch,
    sent_at: Option<Instant>,
    lost: bool,
    /// When an answer first gave it after it was lost, or at all. It is held without a gap since then.
    held_since: Option<Instant>,
    /// When the desired state in hand was asked for.
    asked_at: Option<Instant>,
}

impl Lease {
    /// Whether the answer to what was sent at `sent_at` counts.
    pub(super) fn renew(&mut self, epoch: Epoch, sent_at: Instant, now: Instant) -> Renewal {
        if epoch < self.leader {
            return Renewal::Void;
        }
        self.leader = epoch;
        self.sent_at = self.sent_at.max(Some(sent_at));
        if !self.is_held(now) {
            return Renewal::Void;
        }
        self.lost = false;
        match self.held_since.replace(self.held_since.unwrap_or(now)) {
            Some(_) => Renewal::Prolonged,
            None => Renewal::Gained,
        }
    }

    pub(super) fn confirm(&mut self, epoch: Epoch, asked_at: Option<Instant>) {
        self.leader = self.leader.max(epoch);
        self.asked_at = self.asked_at.max(asked_at);
    }

    /// True once for each loss.
    pub(super) fn notice_loss(&mut self, now: Instant) -> bool {
        if self.lost || self.sent_at.is_none() || self.is_held(now) {
            return false;
        }
        self.lost = true;
        self.held_since = None;
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

    /// Whether a server told a desired state in this life of the agent.
    pub(super) fn was_told(&self) -> bool {
        self.asked_at.is_some()
    }

    /// Whether what must never run twice may be started: the desired state in hand was asked for when the lease was already held, and it was held
    /// ever since. One asked for earlier may have been answered before the servers decided that this node is lost, even if the lease came
    /// back meanwhile.
    pub fn allows_start(&self, now: Instant) -> bool {
        let confirmed = self
            .held_since
            .is_some_and(|since| self.asked_at >= Some(since));
        confirmed && self.is_held(now)
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
