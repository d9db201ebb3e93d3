//! What pulling and looking at the topic need of the engine.

use std::sync::Arc;

use http::StatusCode;
use model::ids::ResourceName;
use model::state::ConsumerStatus;
use tokio::sync::Notify;

use super::entries::Entry;
use super::{Engine, PULL_IN_FLIGHT, declared};
use crate::topic::consumer::{Delivery, Limits, Position, Token};
use crate::topic::problem::Problem;
use crate::topic::storage::retention::Measure;

/// Pull consumers of one topic.
const PULL_CONSUMERS_MAX: usize = 256;

impl Engine {
    /// Makes the pull consumer if it is not there; it begins behind `read`, or with what is published from now on. True: the disk
    /// does not know it yet.
    ///
    /// # Errors
    ///
    /// Its name belongs to a service that is pushed to, or there are too many.
    pub fn pull_consumer(&self, name: &ResourceName, earliest: bool) -> Result<bool, Problem> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        let newest = self.storage.hub().newest();
        let read = if earliest {
            state.measure.removed
        } else {
            newest
        };
        let first_token = state.first_token();
        if let Some(entry) = state.consumers.get_mut(name) {
            entry.seen(now_ms);
            return match entry.pull {
                true => Ok(entry.is_new()),
                false => Err(conflict(format!(
                    "`{name}` is pushed to: it consumes by `on`"
                ))),
            };
        }
        let pulling = state.consumers.values().filter(|entry| entry.pull).count();
        if pulling >= PULL_CONSUMERS_MAX {
            let detail = format!("a topic has at most {PULL_CONSUMERS_MAX} pull consumers");
            return Err(conflict(detail));
        }
        let mut entry = Entry::new(read, now_ms, first_token);
        entry.pull = true;
        entry.consumer.set_limits(Limits {
            in_flight: PULL_IN_FLIGHT,
            attempts: declared(&state.file).attempts,
        });
        state.consumers.insert(name.clone(), entry);
        state.newcomers = true;
        self.storage.hub().listen(true);
        Ok(true)
    }

    /// Takes up to `most` messages; whoever has them has to [`Engine::lend`] them, or give them back.
    pub fn take(&self, name: &ResourceName, most: usize) -> Vec<Delivery> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        if state.stopping {
            return Vec::new();
        }
        let Some(entry) = state.consumers.get_mut(name) else {
            return Vec::new();
        };
        entry.consumer.tick(now_ms);
        let take = || entry.consumer.take(now_ms);
        let taken: Vec<Delivery> = std::iter::from_fn(take).take(most).collect();
        drop(state);
        if !taken.is_empty() {
            self.wake();
        }
        taken
    }

    /// What wakes when the consumer has something ready. `None`: it will have nothing.
    pub fn ready(&self, name: &ResourceName) -> Option<Arc<Notify>> {
        let state = self.state();
        let entry = state.consumers.get(name).filter(|_| !state.stopping);
        entry.map(|entry| entry.ready.clone())
    }

    /// Whether all tokens are held.
    pub fn holds_all(&self, name: &ResourceName, tokens: &[Token]) -> bool {
        let state = self.state();
        let entry = state.consumers.get(name);
        entry.is_some_and(|entry| tokens.iter().all(|token| entry.consumer.holds(*token)))
    }

    pub fn extend(&self, name: &ResourceName, tokens: &[Token], lease_ms: u64) {
        let until_ms = self.clock.now_ms().saturating_add(lease_ms);
        if let Some(entry) = self.state().consumers.get_mut(name) {
            for token in tokens {
                entry.consumer.extend(*token, until_ms);
            }
        }
        self.wake();
    }

    /// Each consumer as it is, with its oldest message.
    pub fn consumers(&self) -> Vec<(ResourceName, ConsumerStatus, Option<Position>)> {
        let newest = self.storage.hub().newest();
        let state = self.state();
        let status = |entry: &Entry| ConsumerStatus {
            backlog: entry.consumer.backlog(newest),
            oldest_ms: 0,
            in_flight: entry.consumer.in_flight(),
            retrying: entry.consumer.retrying(),
            dead: entry.dead,
        };
        let consumers = state.consumers.iter();
        consumers
            .map(|(name, entry)| (name.clone(), status(entry), entry.consumer.oldest(newest)))
            .collect()
    }

    /// As last measured: at most a second ago, unless there are very many dead letters.
    pub fn measure(&self) -> Measure {
        self.state().measure
    }
}

pub fn conflict(detail: impl Into<String>) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "conflict",
        "That can't be done now",
        detail,
    )
}
