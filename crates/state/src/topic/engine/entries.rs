//! Each consumer, and what is known of all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::ids::ResourceName;
use model::state::{EngineFile, Subscription};
use rand::Rng as _;
use rand::rngs::SmallRng;
use tokio::sync::Notify;

use super::{Errand, LOOK, PULL_IN_FLIGHT, Plan};
use crate::topic::consumer::{Consumer, Delivery, Key, Limits, Position, Token};
use crate::topic::storage::retention::Measure;
use crate::topic::storage::{Leave, Left, Storage};

/// What a push consumer whose `on` has gone is remembered for.
const FORGET_PUSH_MS: u64 = 24 * 3_600_000;
/// What a pull consumer that does not pull is remembered for.
const FORGET_PULL_MS: u64 = 7 * 24 * 3_600_000;
/// What everybody has to come back after a start: nobody could come while the topic was down.
const RETURN_MS: u64 = 3_600_000;
/// Measuring that takes no longer is done whenever it is asked for.
const MEASURE_QUICK: Duration = Duration::from_millis(200);
/// What takes longer has pauses so many times as long. Until after them a topic may seem fuller than it is.
pub(super) const MEASURE_PAUSE: u32 = 10;
/// How exact it is known when a consumer was last there.
const SEEN_GRAIN_MS: u64 = 600_000;

pub(super) struct State {
    pub(super) file: Arc<EngineFile>,
    pub(super) consumers: BTreeMap<ResourceName, Entry>,
    /// Of some consumers the disk knows nothing yet.
    pub(super) newcomers: bool,
    pub(super) measure: Measure,
    /// When it was measured, and how long that took.
    pub(super) measured: Option<(Instant, Duration)>,
    pub(super) random: SmallRng,
    pub(super) stopping: bool,
}

pub(super) struct Entry {
    pub(super) consumer: Consumer,
    pub(super) pull: bool,
    /// The service that pulls under this name. `None`: none has since this is known.
    pub(super) owner: Option<ResourceName>,
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
    /// Deliveries that begin once that is stored.
    pub(super) begun: Vec<Delivery>,
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

    pub(super) fn measured(&mut self, measure: Measure, begun: Instant) {
        self.measure = measure;
        self.measured = Some((Instant::now(), begun.elapsed()));
    }

    /// It takes longer with each dead letter, and is done most often when there are many.
    pub(super) fn may_measure(&self) -> bool {
        self.measured
            .is_none_or(|(at, took)| took < MEASURE_QUICK || at.elapsed() >= took * MEASURE_PAUSE)
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
                owner: entry.owner.as_ref().map(ResourceName::to_string),
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
            woken |= !entry.begun.is_empty();
        }
        self.newcomers = self.consumers.values().any(Entry::is_new);
        woken
    }

    /// Who has been away for too long; who is there is noted.
    pub(super) fn forgotten(&mut self, now_ms: u64) -> Vec<ResourceName> {
        let mut forgotten = Vec::new();
        let may_consume = &self.file.settings.consumers;
        for (name, entry) in &mut self.consumers {
            if entry.subscription.is_some() {
                entry.seen(now_ms);
            } else if entry.is_forgotten(may_consume, now_ms) {
                forgotten.push(name.clone());
            }
        }
        forgotten
    }

    /// `None`: it has come back.
    pub(super) fn take_forgotten(&mut self, name: &ResourceName, now_ms: u64) -> Option<Entry> {
        let entry = self.consumers.get(name)?;
        let is_forgotten = entry.is_forgotten(&self.file.settings.consumers, now_ms);
        is_forgotten.then(|| self.consumers.remove(name)).flatten()
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
            owner: None,
            subscription: None,
            seen_ms: now_ms,
            seen_stored_ms: 0,
            floor: read,
            looking: false,
            dead: 0,
            begun: Vec::new(),
            ready: Arc::new(Notify::new()),
        }
    }

    pub(super) fn is_new(&self) -> bool {
        self.seen_stored_ms == 0
    }

    /// A service that may pull no more is remembered no longer than one whose `on` has gone.
    fn is_forgotten(&self, may_consume: &BTreeSet<ResourceName>, now_ms: u64) -> bool {
        let away_ms = now_ms.saturating_sub(self.seen_ms);
        let may = self
            .owner
            .as_ref()
            .is_none_or(|owner| may_consume.contains(owner));
        self.subscription.is_none() && away_ms > forget_after_ms(self.pull && may)
    }

    pub(super) fn restored(left: Left, attempts: u32, random: u32, now_ms: u64) -> Self {
        let seen_ms = last_seen(left.seen_ms, left.pull, now_ms);
        let mut entry = Self::new(left.read, seen_ms, u64::from(random) << 31);
        entry.pull = left.pull;
        entry.owner = left.owner.and_then(|name| ResourceName::new(name).ok());
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
            let failure = failure.map(|failure| failure.due_again(now_ms));
            entry.consumer.restore(position, key, failure.as_ref());
        }
        entry
    }

    pub(super) fn subscribe(&mut self, subscription: &Subscription, attempts: u32, now_ms: u64) {
        self.pull = false;
        self.owner = None;
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
        self.take_back();
        self.consumer.touch();
    }

    /// What has not begun yet never does.
    pub(super) fn take_back(&mut self) {
        for delivery in self.begun.drain(..) {
            self.consumer.untouched(delivery.token);
        }
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
        let errand = |delivery| Errand {
            consumer: name.clone(),
            subscription: subscription.clone(),
            door: file.doors.get(name).copied(),
            delivery,
        };
        let stored = |delivery: &mut Delivery| self.consumer.may_begin(delivery.token);
        let stored = self.begun.extract_if(.., stored);
        plan.errands.extend(stored.map(errand));
        let take = || self.consumer.take(now_ms);
        self.begun.extend(std::iter::from_fn(take));
    }

    /// Whether something waits for being stored.
    pub(super) fn is_urgent(&self) -> bool {
        !self.begun.is_empty() || self.consumer.is_urgent()
    }
}

fn forget_after_ms(pull: bool) -> u64 {
    match pull {
        true => FORGET_PULL_MS,
        false => FORGET_PUSH_MS,
    }
}

/// When a consumer was there that a start finds. The clock may have been another one when that was stored.
fn last_seen(seen_ms: u64, pull: bool, now_ms: u64) -> u64 {
    let returning = (now_ms + RETURN_MS).saturating_sub(forget_after_ms(pull));
    seen_ms.clamp(returning, now_ms)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn room_is_looked_for_in_pauses_once_that_takes_long() {
        let state = |took| State {
            file: Arc::new(crate::topic::tests::support::file(5, &[])),
            consumers: BTreeMap::new(),
            newcomers: false,
            measure: Measure::default(),
            measured: Some((Instant::now(), took)),
            random: SmallRng::from_os_rng(),
            stopping: false,
        };
        assert!(state(MEASURE_QUICK / 2).may_measure());
        assert!(!state(Duration::from_secs(60)).may_measure());
    }

    #[test]
    fn who_was_there_before_a_start_has_time_to_come_back() {
        let hour_ms = 3_600_000;
        let now_ms = 1000 * hour_ms;
        for (seen_ms, pull, left_ms) in [
            (now_ms, false, 24 * hour_ms),
            (now_ms - 20 * hour_ms, false, 4 * hour_ms),
            (now_ms - 100 * hour_ms, false, hour_ms),
            (now_ms - 100 * hour_ms, true, 68 * hour_ms),
            (now_ms - 200 * hour_ms, true, hour_ms),
            // The clock has been set back.
            (now_ms + 100 * hour_ms, false, 24 * hour_ms),
        ] {
            let seen = last_seen(seen_ms, pull, now_ms);
            assert_eq!(seen + forget_after_ms(pull) - now_ms, left_ms);
        }
    }
}
