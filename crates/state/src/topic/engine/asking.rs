//! What pulling and looking at the topic need of the engine.

use std::sync::Arc;

use http::StatusCode;
use model::ids::{ResourceId, ResourceName};
use model::state::ConsumerStatus;
use tokio::sync::Notify;

use super::entries::{Entry, State};
use super::{Engine, PULL_IN_FLIGHT, declared};
use crate::topic::consumer::{Delivery, Limits, Position, Token};
use crate::topic::problem::Problem;
use crate::topic::storage::retention::Measure;

/// Pull consumers of one topic.
const PULL_CONSUMERS_MAX: usize = 256;
/// And of one service, where few services may pull. Each keeps messages from being removed.
const PULL_CONSUMERS_EACH: usize = 32;

impl Engine {
    /// The service that calls, if it may pull.
    ///
    /// # Errors
    ///
    /// It declares no such thing, or nobody says who calls.
    pub fn who_may_consume(&self, caller: Option<ResourceId>) -> Result<ResourceName, Problem> {
        let state = self.state();
        let topic = &state.file.name;
        let Some(caller) = caller else {
            return Err(forbidden(
                "no proxy says which service calls: call by the URL that the service is given",
            ));
        };
        let is_declared = state.file.settings.consumers.contains(&caller.name);
        match caller.project == state.file.project && is_declared {
            true => Ok(caller.name),
            false => Err(forbidden(format!(
                "service {} does not declare needs: [{topic}: consume]; what it declares lets it publish",
                caller.name
            ))),
        }
    }

    /// Whether a consumer is the service's own; one that nobody has made is.
    ///
    /// # Errors
    ///
    /// It is another's.
    pub fn check_owner(&self, name: &ResourceName, service: &ResourceName) -> Result<(), Problem> {
        let state = self.state();
        let entry = state.consumers.get(name);
        match entry.and_then(|entry| entry.owner.as_ref()) {
            Some(owner) if owner != service => Err(of_another(name, owner)),
            _ => Ok(()),
        }
    }

    /// Makes the pull consumer if it is not there; it begins behind `read`, or with what is published from now on. True: the disk
    /// does not know it yet.
    ///
    /// # Errors
    ///
    /// Its name belongs to another service, or there are too many.
    pub fn pull_consumer(
        &self,
        name: &ResourceName,
        service: &ResourceName,
        earliest: bool,
    ) -> Result<bool, Problem> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        let newest = self.storage.hub().newest();
        let read = if earliest {
            state.measure.removed
        } else {
            newest
        };
        let first_token = state.first_token();
        if let Some(is_new) = state.come_back(name, service, now_ms)? {
            return Ok(is_new);
        }
        let mut entry = Entry::new(read, now_ms, first_token);
        entry.pull = true;
        entry.owner = Some(service.clone());
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
            owner: entry.owner.clone(),
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

impl State {
    /// Whether the disk knows a consumer that is there; `None`: it may be made.
    fn come_back(
        &mut self,
        name: &ResourceName,
        service: &ResourceName,
        now_ms: u64,
    ) -> Result<Option<bool>, Problem> {
        let may_consume = &self.file.settings.consumers;
        let Some(entry) = self.consumers.get_mut(name) else {
            return self.check_share(service).map(|()| None);
        };
        if !entry.pull {
            let detail = format!("`{name}` is pushed to: it consumes by `on`");
            return Err(conflict(detail));
        }
        match &entry.owner {
            Some(owner) if owner == service => {}
            Some(owner) if may_consume.contains(owner) => return Err(of_another(name, owner)),
            // Its service is gone, or was not known: it goes on with this one.
            _ => {
                self.check_share(service)?;
                let entry = self.consumers.get_mut(name);
                if let Some(entry) = entry {
                    entry.owner = Some(service.clone());
                    entry.consumer.touch();
                }
            }
        }
        let entry = self.consumers.get_mut(name);
        Ok(entry.map(|entry| {
            entry.seen(now_ms);
            entry.is_new()
        }))
    }

    fn check_share(&self, service: &ResourceName) -> Result<(), Problem> {
        let pulling = self.consumers.values().filter(|entry| entry.pull);
        let own = pulling
            .clone()
            .filter(|entry| entry.owner.as_ref() == Some(service));
        let services = self.file.settings.consumers.len().max(1);
        let share = (PULL_CONSUMERS_MAX / services).clamp(1, PULL_CONSUMERS_EACH);
        if own.count() >= share {
            return Err(conflict(format!(
                "service {service} has {share} consumers of this topic, which is its share; one that does not pull is forgotten after 7 days"
            )));
        }
        if pulling.count() >= PULL_CONSUMERS_MAX {
            let detail = format!("a topic has at most {PULL_CONSUMERS_MAX} pull consumers");
            return Err(conflict(detail));
        }
        Ok(())
    }
}

fn of_another(name: &ResourceName, owner: &ResourceName) -> Problem {
    forbidden(format!(
        "`{name}` is the consumer of service {owner}: choose another name"
    ))
}

fn forbidden(detail: impl Into<String>) -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "may-not-consume",
        "This may not be consumed",
        detail,
    )
}

pub fn conflict(detail: impl Into<String>) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "conflict",
        "That can't be done now",
        detail,
    )
}
