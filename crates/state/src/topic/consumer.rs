//! What one consumer is done with, has on its way, and gets next. Pure: time and randomness are handed in.
//!
//! ```text
//!  offer ──► waiting ──(first of its key)──► ready ──take──► in flight ──done──► gone
//!                                             ▲ ▲               │ │
//!                                             │ └──── away ─────┘ │ failed, or the lease ran out
//!                                             │                   ▼
//!                                           retry ◄──recorded── recording ──recorded, attempts used up──► dead
//! ```
//!
//! Everything up to `read` that is not open is done, so a consumer is stored as `read` and the few open positions. An attempt is written down
//! ([`Consumer::changes`], [`Consumer::recorded`]) before it is made ([`Consumer::may_begin`]), so that whoever ends amid it, the consumer or the
//! topic, can't be met by the same message for ever; a dead message is written down before the next of its key goes.
//!
//! [`changes`] is what must be written down, [`pauses`] how long a message or a consumer waits.
//!
//! Messages of one key are taken one after the other; those without a key in any order.

mod changes;
mod pauses;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use self::changes::{Changes, Failure};
use self::pauses::{away_pause, retry_pause};

/// The place of a message in its topic: 1, 2, 3, …
pub type Position = u64;
/// Who has a message: no two deliveries share one.
pub type Token = u64;
/// Messages with the same key stay in order.
pub type Key = Arc<str>;

/// Messages that one consumer may have looked at and not be done with. A key that is stuck holds its successors here: from this many on its
/// consumer (and nobody else) waits for it.
pub const OPEN_MAX: usize = 8192;
/// With those that came back from the dead letter: what is beyond stays there.
const REDRIVEN_MAX: usize = 2 * OPEN_MAX;
/// Looked at ahead of need, so that there is always something to take.
const READY_MIN: usize = 64;
/// What a consumer may ask for by `Retry-After`.
const RETRY_AFTER_MAX_MS: u64 = 300_000;
/// What is kept of an error.
const ERROR_BYTES: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub in_flight: u32,
    /// Failed deliveries until a message is dead.
    pub attempts: u32,
}

/// A message handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub position: Position,
    /// 1 for the first.
    pub attempt: u32,
    pub token: Token,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Behind another of its key.
    Waiting,
    Ready,
    InFlight {
        token: Token,
        until_ms: u64,
        /// The version with which it is stored that it begins.
        version: u64,
    },
    /// Its failure is not stored yet.
    Recording {
        retry_at_ms: u64,
        error: String,
    },
    Retry {
        at_ms: u64,
    },
}

#[derive(Debug)]
struct Open {
    key: Option<Key>,
    /// Failed deliveries.
    attempts: u32,
    state: State,
}

/// No copy answers: nothing is wrong with the messages.
#[derive(Debug, Clone, Copy)]
struct Away {
    times: u32,
    until_ms: u64,
}

#[derive(Debug)]
pub struct Consumer {
    limits: Limits,
    read: Position,
    open: BTreeMap<Position, Open>,
    /// For each key with open messages: those that wait for another of them.
    lines: HashMap<Key, BTreeSet<Position>>,
    ready: BTreeSet<Position>,
    /// Of retries and leases.
    timers: BTreeSet<(u64, Position)>,
    tokens: HashMap<Token, Position>,
    next_token: Token,
    away: Option<Away>,
    recording: BTreeSet<Position>,
    recovered: Vec<Position>,
    redriven: Vec<Position>,
    /// Grows with each change that is worth being stored.
    version: u64,
    recorded: u64,
    retrying: u64,
}

impl Consumer {
    /// `first_token` makes tokens of another life of the process strangers.
    pub fn new(read: Position, limits: Limits, first_token: Token) -> Self {
        Self {
            limits,
            read,
            open: BTreeMap::new(),
            lines: HashMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeSet::new(),
            tokens: HashMap::new(),
            next_token: first_token,
            away: None,
            recording: BTreeSet::new(),
            recovered: Vec::new(),
            redriven: Vec::new(),
            version: 1,
            recorded: 0,
            retrying: 0,
        }
    }

    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Puts an open message back after a restart, in the order of positions.
    pub fn restore(&mut self, position: Position, key: Option<Key>, failure: Option<&Failure>) {
        self.insert(position, key);
        let Some(failure) = failure else { return };
        let Some(open) = self.open.get_mut(&position) else {
            return;
        };
        open.attempts = failure.attempts;
        self.retrying += 1;
        if open.state == State::Ready {
            self.retry_at(position, failure.retry_at_ms);
        }
    }

    /// The next message to be looked at.
    pub fn next_position(&self) -> Position {
        self.read + 1
    }

    /// Whether it should look at more.
    pub fn wants(&self) -> bool {
        let ahead = READY_MIN.max(self.limits.in_flight as usize);
        self.ready.len() < ahead && self.open.len() < OPEN_MAX
    }

    /// Looks at the next message.
    pub fn offer(&mut self, position: Position, key: Option<Key>) {
        if position <= self.read {
            return;
        }
        self.read = position;
        self.insert(position, key);
        self.version += 1;
    }

    /// Nothing is left up to there of what it has not looked at.
    pub fn skip(&mut self, through: Position) {
        if through > self.read {
            self.read = through;
            self.version += 1;
        }
    }

    /// Back from the dead letter, with all attempts before it: ahead of those of its key that have not begun.
    /// False: it is not done with it as it is, or has as many before it as it may.
    pub fn redrive(&mut self, position: Position, key: Option<Key>) -> bool {
        let is_full = self.open.len() >= REDRIVEN_MAX;
        if is_full || position > self.read || self.open.contains_key(&position) {
            return false;
        }
        self.insert(position, key);
        self.redriven.push(position);
        self.version += 1;
        true
    }

    fn insert(&mut self, position: Position, key: Option<Key>) {
        let state = match &key {
            None => State::Ready,
            Some(key) => match self.lines.get_mut(key) {
                Some(waiting) => {
                    waiting.insert(position);
                    State::Waiting
                }
                None => {
                    self.lines.insert(key.clone(), BTreeSet::new());
                    State::Ready
                }
            },
        };
        if state == State::Ready {
            self.ready.insert(position);
        }
        let open = Open {
            key,
            attempts: 0,
            state,
        };
        self.open.insert(position, open);
    }

    /// The next delivery, if one may begin now: once that is stored ([`Consumer::may_begin`]).
    pub fn take(&mut self, now_ms: u64) -> Option<Delivery> {
        while self.can_give(now_ms) {
            let position = self.ready.pop_first()?;
            let open = self.open.get_mut(&position)?;
            self.version += 1;
            if open.attempts >= self.limits.attempts {
                // The last attempt ended with the topic, or fewer are declared since.
                self.give_up(position);
                continue;
            }
            let token = self.next_token;
            self.next_token += 1;
            let attempt = open.attempts + 1;
            open.state = State::InFlight {
                token,
                until_ms: u64::MAX,
                version: self.version,
            };
            self.tokens.insert(token, position);
            return Some(Delivery {
                position,
                attempt,
                token,
            });
        }
        None
    }

    /// Whether it is stored that this attempt begins.
    pub fn may_begin(&self, token: Token) -> bool {
        let open = self.tokens.get(&token).and_then(|at| self.open.get(at));
        matches!(open, Some(Open { state: State::InFlight { version, .. }, .. }) if *version <= self.recorded)
    }

    /// To the dead letter, for the reason that is stored.
    fn give_up(&mut self, position: Position) {
        if let Some(open) = self.open.get_mut(&position) {
            open.state = State::Recording {
                retry_at_ms: 0,
                error: String::new(),
            };
            self.recording.insert(position);
        }
    }

    /// How many may be on their way: one at a time finds out whether a consumer that was away is back.
    fn width(&self, now_ms: u64) -> usize {
        match self.away {
            None => self.limits.in_flight as usize,
            Some(away) if away.until_ms <= now_ms => 1,
            Some(_) => 0,
        }
    }

    /// Takes a delivery back from who has it. False: they have it no more.
    fn give_back(&mut self, token: Token) -> Option<Position> {
        let position = self.tokens.remove(&token)?;
        if let Some(Open {
            state: State::InFlight { until_ms, .. },
            ..
        }) = self.open.get(&position)
        {
            self.timers.remove(&(*until_ms, position));
        }
        Some(position)
    }

    /// A receipt. False: this delivery is not theirs any more.
    pub fn done(&mut self, token: Token) -> bool {
        let Some(position) = self.give_back(token) else {
            return false;
        };
        self.away = None;
        self.remove(position);
        true
    }

    /// Whether who has the token still has the message; its lease ends at `until_ms` now.
    pub fn extend(&mut self, token: Token, until_ms: u64) -> bool {
        let Some(position) = self.tokens.get(&token).copied() else {
            return false;
        };
        if let Some(open) = self.open.get_mut(&position)
            && let State::InFlight { until_ms: old, .. } = &mut open.state
        {
            self.timers.remove(&(*old, position));
            *old = until_ms;
            self.timers.insert((until_ms, position));
        }
        true
    }

    pub fn holds(&self, token: Token) -> bool {
        self.tokens.contains_key(&token)
    }

    /// A failed attempt. `random` is of [0, 1). False: this delivery is not theirs any more.
    pub fn failed(
        &mut self,
        token: Token,
        error: &str,
        retry_after_ms: Option<u64>,
        now_ms: u64,
        random: f64,
    ) -> bool {
        let Some(position) = self.give_back(token) else {
            return false;
        };
        self.away = None;
        let attempts = self.open.get(&position).map_or(0, |open| open.attempts);
        let asked = retry_after_ms.unwrap_or(0).min(RETRY_AFTER_MAX_MS);
        let wait_ms = retry_pause(attempts + 1, random).max(asked);
        self.fail(position, error, now_ms + wait_ms);
        true
    }

    /// It did not come to anybody: as if it had not been taken. False: this delivery is not theirs any more.
    pub fn untouched(&mut self, token: Token) -> bool {
        let Some(position) = self.give_back(token) else {
            return false;
        };
        if let Some(open) = self.open.get_mut(&position) {
            open.state = State::Ready;
            self.ready.insert(position);
        }
        self.version += 1;
        true
    }

    /// Nobody was there to take it: not an attempt. All of the consumer waits. False: this delivery is not theirs any more.
    pub fn absent(&mut self, token: Token, now_ms: u64, random: f64) -> bool {
        if !self.untouched(token) {
            return false;
        }
        let times = match self.away {
            // Sent before it was known that nobody is there.
            Some(away) if now_ms < away.until_ms => return true,
            Some(away) => away.times.saturating_add(1),
            None => 1,
        };
        let until_ms = now_ms + 10 + away_pause(times, random);
        self.away = Some(Away { times, until_ms });
        true
    }

    fn fail(&mut self, position: Position, error: &str, retry_at_ms: u64) {
        let Some(open) = self.open.get_mut(&position) else {
            return;
        };
        self.retrying += u64::from(open.attempts == 0);
        open.attempts += 1;
        open.state = State::Recording {
            retry_at_ms,
            error: shortened(error),
        };
        self.recording.insert(position);
        self.version += 1;
    }

    fn retry_at(&mut self, position: Position, at_ms: u64) {
        if let Some(open) = self.open.get_mut(&position) {
            open.state = State::Retry { at_ms };
            self.ready.remove(&position);
            self.timers.insert((at_ms, position));
        }
    }

    /// Whatever is due at `now_ms`: retries, and leases that ran out.
    pub fn tick(&mut self, now_ms: u64) {
        while let Some(&(at_ms, position)) = self.timers.first() {
            if at_ms > now_ms {
                return;
            }
            self.timers.pop_first();
            self.due(position, now_ms);
        }
    }

    fn due(&mut self, position: Position, now_ms: u64) {
        let Some(open) = self.open.get_mut(&position) else {
            return;
        };
        match open.state {
            State::Retry { .. } => {
                open.state = State::Ready;
                self.ready.insert(position);
            }
            State::InFlight { token, .. } => {
                self.tokens.remove(&token);
                self.fail(position, "the lease ran out", now_ms);
            }
            State::Waiting | State::Ready | State::Recording { .. } => {}
        }
    }

    /// When [`Consumer::tick`] or [`Consumer::take`] has something to do again, if nothing happens before.
    pub fn next_timer(&self) -> Option<u64> {
        let timer = self.timers.first().map(|(at_ms, _)| *at_ms);
        let asks = self.limits.in_flight > 0 && !self.ready.is_empty() && self.tokens.is_empty();
        let away = self.away.filter(|_| asks);
        [timer, away.map(|away| away.until_ms)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Done or dead: the next of its key may go.
    fn remove(&mut self, position: Position) {
        let Some(open) = self.open.remove(&position) else {
            return;
        };
        self.version += 1;
        if open.attempts > 0 {
            self.retrying -= 1;
            self.recovered.push(position);
        }
        let Some(key) = open.key else { return };
        let next = self.lines.get_mut(&key).and_then(BTreeSet::pop_first);
        let Some(next) = next else {
            self.lines.remove(&key);
            return;
        };
        if let Some(open) = self.open.get_mut(&next) {
            open.state = State::Ready;
            self.ready.insert(next);
        }
    }

    /// What is stored of it beside its messages has changed.
    pub fn touch(&mut self) {
        self.version += 1;
    }

    /// Messages looked at and not done with.
    pub fn open_count(&self) -> u64 {
        self.open.len() as u64
    }

    /// The oldest message it is not done with, if `newest` is the newest of the topic.
    pub fn oldest(&self, newest: Position) -> Option<Position> {
        let unread = (self.read < newest).then_some(self.read + 1);
        self.open.keys().next().copied().or(unread)
    }

    pub fn backlog(&self, newest: Position) -> u64 {
        newest.saturating_sub(self.read) + self.open_count()
    }

    pub fn in_flight(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Messages that failed and will be tried again.
    pub fn retrying(&self) -> u64 {
        self.retrying
    }

    /// Whether a delivery may begin now.
    pub fn can_give(&self, now_ms: u64) -> bool {
        !self.ready.is_empty() && self.tokens.len() < self.width(now_ms)
    }
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(ERROR_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
#[path = "consumer_tests.rs"]
mod tests;
