//! Each consumer, and what is known of all.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::ids::ResourceName;
use model::state::{EngineFile, Subscription};
use rand::Rng as _;
use rand::rngs::SmallRng;
use tokio::sync::Notify;

use super::{Errand, LOOK, PULL_IN_FLIGHT, Plan};
use crate::topic::consumer::{Consumer, Key, Limits, Position, Token};
use crate::topic::storage::retention::Measure;
use crate::topic::storage::{Leave, Left, Storage};

/// What a push consumer whose `on` has gone is remembered for.
const FORGET_PUSH_MS: u64 = 24 * 3_600_000;
/// What a pull consumer that does not pull is remembered for.
const FORGET_PULL_MS: u64 = 7 * 24 * 3_600_000;
/// How exact it is known when a consumer was last there.
const SEEN_GRAIN_MS: u64 = 600_000;

pub(super) struct State {
    pub(super) file: Arc<EngineFile>,
    pub(super) consumers: BTreeMap<ResourceName, Entry>,
    /// Of some consumers the disk knows nothing yet.
    pub(super) newcomers: bool,
    pub(super) measure: Measure,
    pub(super) random: SmallRng,
    pub(super) stopping: bool,
}

pub(super) struct Entry {
    pub(super) consumer: Consumer,
    pub(super) pull: bool,
    /// As declared now; `None` for pull consumers, and where the `on` has gone.
    pub(super) subscription: Option<Subscription>,
    pub(super) seen_ms: u64,
    /// 0: it is not stored at all.
    pub(super) seen_stored_ms: u64,
    /// Everything up to here is done, and that is stored.
    pub(super) floor: Position,
    /// Somebody reads for it.
    pub(super) looking: bool,
    pub(super) dead: u64,
    /// Wakes who pulls.
    pub(super) ready: Arc<Notify>,
}

impl State {
    /// Tokens of this process are strangers to any other.
    pub(super) fn first_token(&mut self) -> Token {
        u64::from(self.random.random::<u32>()) << 31
    }

    pub(super) fn unfinished(&self, end: u64) -> u64 {
        match self.consumers.is_empty() {
            true => 0,
            false => end.saturating_sub(self.measure.floor_end) + self.measure.dead_bytes,
        }
    }

    /// Everybody is done with everything up to here.
    pub(super) fn floor(&self, newest: Position) -> Position {
        let floors = self.consumers.values().map(|entry| entry.floor);
        floors.min().unwrap_or(newest)
    }

    pub(super) fn leave(&self) -> Vec<Leave> {
        let changed = self.consumers.iter().filter_map(|(name, entry)| {
            Some(Leave {
                name: name.to_string(),
                pull: entry.pull,
                seen_ms: entry.seen_ms,
                changes: entry.consumer.changes()?,
            })
        });
        changed.collect()
    }

    /// True: something can go on.
    pub(super) fn left(&mut self, leave: &[Leave]) -> bool {
        let mut woken = false;
        for (name, entry) in &mut self.consumers {
            let Some(leave) = leave.iter().find(|leave| leave.name == name.as_str()) else {
                continue;
            };
            let changes = &leave.changes;
            entry.consumer.recorded(changes);
            entry.floor = changes.floor();
            entry.seen_stored_ms = leave.seen_ms;
            entry.dead += changes.dead.len() as u64;
            entry.dead = entry.dead.saturating_sub(changes.redriven.len() as u64);
            woken |= !changes.failed.is_empty() || !changes.dead.is_empty();
        }
        self.newcomers = self.consumers.values().any(Entry::is_new);
        woken
    }

    /// Who has been away for too long; who is there is noted.
    pub(super) fn forgotten(&mut self, now_ms: u64) -> Vec<ResourceName> {
        let mut forgotten = Vec::new();
        for (name, entry) in &mut self.consumers {
            if entry.subscription.is_some() {
                entry.seen(now_ms);
                continue;
            }
            let most_ms = if entry.pull {
                FORGET_PULL_MS
            } else {
                FORGET_PUSH_MS
            };
            if now_ms.saturating_sub(entry.seen_ms) > most_ms {
                forgotten.push(name.clone());
            }
        }
        forgotten
    }
}

impl Entry {
    pub(super) fn new(read: Position, now_ms: u64, first_token: Token) -> Self {
        // Until it is told of its limits nothing begins.
        let limits = Limits {
            in_flight: 0,
            attempts: u32::MAX,
        };
        Self {
            consumer: Consumer::new(read, limits, first_token),
            pull: false,
            subscription: None,
            seen_ms: now_ms,
            seen_stored_ms: 0,
            floor: read,
            looking: false,
            dead: 0,
            ready: Arc::new(Notify::new()),
        }
    }

    fn is_new(&self) -> bool {
        self.seen_stored_ms == 0
    }

    pub(super) fn restored(left: Left, attempts: u32, random: u32) -> Self {
        let mut entry = Self::new(left.read, left.seen_ms, u64::from(random) << 31);
        entry.pull = left.pull;
        entry.dead = left.dead;
        entry.seen_stored_ms = left.seen_ms;
        entry.floor = left
            .open
            .first()
            .map_or(left.read, |(first, _)| left.read.min(first - 1));
        if left.pull {
            entry.consumer.set_limits(Limits {
                in_flight: PULL_IN_FLIGHT,
                attempts,
            });
        }
        for (position, key) in left.open {
            let failure = left.failures.get(&position);
            entry.consumer.restore(position, key, failure);
        }
        entry
    }

    pub(super) fn subscribe(&mut self, subscription: &Subscription, attempts: u32, now_ms: u64) {
        self.pull = false;
        self.subscription = Some(subscription.clone());
        self.consumer.set_limits(Limits {
            in_flight: subscription.max_in_flight,
            attempts,
        });
        self.seen(now_ms);
    }

    /// Its `on` has gone: it gets nothing until that is back.
    pub(super) fn unsubscribe(&mut self, attempts: u32, now_ms: u64) {
        self.consumer.set_limits(Limits {
            in_flight: 0,
            attempts,
        });
        self.seen_ms = now_ms;
        self.consumer.touch();
    }

    pub(super) fn seen(&mut self, now_ms: u64) {
        self.seen_ms = now_ms;
        if now_ms.saturating_sub(self.seen_stored_ms) > SEEN_GRAIN_MS {
            self.consumer.touch();
        }
    }

    /// Looks at what was just published. True: it needs what is on the disk.
    pub(super) fn look_at_hand(&mut self, storage: &Storage, newest: Position) -> bool {
        while self.consumer.wants() && !self.looking {
            let next = self.consumer.next_position();
            if next > newest {
                return false;
            }
            match storage.hub().get(next) {
                Some(message) => self.consumer.offer(next, message.event.key.clone()),
                None => {
                    self.looking = true;
                    return true;
                }
            }
        }
        false
    }

    /// Looks at what was read from the disk, when `newest` was the newest; `None`: it could not be read.
    pub(super) fn look_at(&mut self, read: Option<Vec<(Position, Option<Key>)>>, newest: Position) {
        let Some(page) = read else { return };
        let is_last = page.len() < LOOK;
        for (position, key) in page {
            if !self.consumer.wants() {
                return;
            }
            self.consumer.offer(position, key);
        }
        if is_last {
            // What is not there any more never comes.
            self.consumer.skip(newest);
        }
    }

    pub(super) fn hand_out(
        &mut self,
        name: &ResourceName,
        file: &EngineFile,
        now_ms: u64,
        plan: &mut Plan,
    ) {
        if self.pull {
            if self.consumer.can_give(now_ms) {
                self.ready.notify_waiters();
            }
            return;
        }
        let Some(subscription) = &self.subscription else {
            return;
        };
        let take = || self.consumer.take(now_ms, None);
        plan.errands
            .extend(std::iter::from_fn(take).map(|delivery| Errand {
                consumer: name.clone(),
                subscription: subscription.clone(),
                door: file.doors.get(name).copied(),
                delivery,
            }));
    }
}
