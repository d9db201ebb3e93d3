//! What goes on beside deliveries: writing down how far consumers are, removing what is not retained, moving dead letters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use model::ids::ResourceName;
use model::state::DeadLetters;

use super::entries::MEASURE_PAUSE;
use super::{AGAIN, Clock, Engine, GROUP, declared};
use crate::topic::problem::Problem;
use crate::topic::storage::letters::Place;

/// How often the topic looks for what is not retained any more.
const COMPACT_EVERY: Duration = Duration::from_secs(1);

impl Engine {
    pub(super) fn check_room(&self, more: u64) -> Result<(), Problem> {
        let state = self.state();
        let size = declared(&state.file).retention.size.0;
        let unfinished = state.unfinished(self.storage.hub().end());
        // What everybody is done with can be removed, and does not count.
        if unfinished + more <= size {
            return Ok(());
        }
        let slowest = state.consumers.iter().min_by_key(|(_, entry)| entry.floor);
        let newest = self.storage.hub().newest();
        let detail = match slowest {
            Some((name, entry)) => format!(
                "{unfinished} bytes of at most {size} wait; the slowest consumer is `{name}`: {} messages behind, {} dead",
                entry.consumer.backlog(newest),
                entry.dead
            ),
            None => format!("{more} bytes are more than the topic's size of {size}"),
        };
        let status = StatusCode::INSUFFICIENT_STORAGE;
        Err(Problem::new(
            status,
            "topic-full",
            "The topic is full",
            detail,
        ))
    }

    /// Writes down how far consumers are.
    ///
    /// # Errors
    ///
    /// It is not written, and will be tried again.
    pub async fn flush(&self) -> Result<(), sqlite::Error> {
        let Ok(_one_at_a_time) = self.flushing.acquire().await else {
            return Ok(());
        };
        let leave = Arc::new(self.state().leave());
        if !leave.is_empty() {
            self.storage.leave(leave.clone(), Clock::wall_ms()).await?;
            let woken = self.state().left(&leave);
            if woken {
                self.wake();
            }
        }
        self.measure_if_filling().await
    }

    /// Room must be known of at once when there is little.
    async fn measure_if_filling(&self) -> Result<(), sqlite::Error> {
        let floor = {
            let state = self.state();
            let size = declared(&state.file).retention.size.0;
            let is_filling = state.unfinished(self.storage.hub().end()) >= size / 2;
            if !is_filling || !state.may_measure() {
                return Ok(());
            }
            state.floor(self.storage.hub().newest())
        };
        let begun = Instant::now();
        let measure = self.storage.measure(floor).await?;
        self.state().measured(measure, begun);
        Ok(())
    }

    /// Flushes for as long as the process lives.
    pub async fn keep_flushing(&self) {
        loop {
            tokio::select! {
                () = self.urgent.notified() => {}
                () = self.dirty.notified() => {
                    let _ = tokio::time::timeout(GROUP, self.urgent.notified()).await;
                }
            }
            while let Err(error) = self.flush().await {
                tracing::warn!(%error, "how far consumers are can't be stored; trying again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Removes what is not retained, for as long as the process lives.
    pub async fn keep_compacting(&self) {
        loop {
            let begun = Instant::now();
            match self.compact(Clock::wall_ms()).await {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => {
                    let pause = COMPACT_EVERY.max(begun.elapsed() * MEASURE_PAUSE);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "removing old messages failed; trying again");
                    tokio::time::sleep(COMPACT_EVERY).await;
                }
            }
        }
    }

    /// One piece of it, and forgotten consumers. True: there is more.
    ///
    /// # Errors
    ///
    /// Nothing was removed.
    pub async fn compact(&self, wall_ms: u64) -> Result<bool, sqlite::Error> {
        let forgotten = self.state().forgotten(self.clock.now_ms());
        for name in forgotten {
            self.forget(name).await?;
        }
        let Ok(_not_while_flushing) = self.flushing.acquire().await else {
            return Ok(false);
        };
        let (floor, retention) = {
            let state = self.state();
            let floor = state.floor(self.storage.hub().newest());
            (floor, declared(&state.file).retention)
        };
        let begun = Instant::now();
        let measure = self.storage.compact(floor, retention, wall_ms).await?;
        let Some(measure) = measure else {
            return Ok(true);
        };
        self.state().measured(measure, begun);
        Ok(false)
    }

    async fn forget(&self, name: ResourceName) -> Result<(), sqlite::Error> {
        let Ok(_not_while_flushing) = self.flushing.acquire().await else {
            return Ok(());
        };
        // Who comes from here on is new.
        let Some(entry) = self.state().take_forgotten(&name, self.clock.now_ms()) else {
            return Ok(());
        };
        if let Err(error) = self.storage.forget(name.to_string()).await {
            self.state().consumers.entry(name).or_insert(entry);
            return Err(error);
        }
        tracing::info!(consumer = %name, "a consumer that has gone for long is forgotten");
        Ok(())
    }

    /// Brings dead letters back to their consumers. How many.
    ///
    /// # Errors
    ///
    /// It is not known to be stored; they are still dead letters, and may be delivered.
    pub async fn redrive(&self, which: DeadLetters) -> Result<usize, sqlite::Error> {
        let places = self.storage.places(which).await?;
        let mut redriven = 0;
        {
            let mut state = self.state();
            for Place {
                consumer,
                position,
                key,
            } in &places
            {
                let entry = ResourceName::new(consumer.clone()).ok();
                let entry = entry.and_then(|name| state.consumers.get_mut(&name));
                if let Some(entry) = entry {
                    redriven += usize::from(entry.consumer.redrive(*position, key.clone()));
                }
            }
        }
        self.flush().await?;
        self.wake();
        Ok(redriven)
    }

    /// Takes dead letters away for good. How many.
    ///
    /// # Errors
    ///
    /// None was taken away.
    pub async fn discard(&self, which: DeadLetters) -> Result<usize, sqlite::Error> {
        let places = self.storage.discard(which).await?;
        let mut state = self.state();
        for place in &places {
            let name = ResourceName::new(place.consumer.clone()).ok();
            if let Some(entry) = name.and_then(|name| state.consumers.get_mut(&name)) {
                entry.dead = entry.dead.saturating_sub(1);
            }
        }
        Ok(places.len())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use sqlite::testing::Disk;

    use super::*;
    use crate::topic::tests::support::{Service, block_on, file, open};

    #[test]
    fn who_comes_back_while_it_is_being_forgotten_is_there() {
        let email = Service::willing();
        let here = file(5, &[("email", 8, &email)]);
        let engine = open(&Disk::new(), here.clone(), Clock::start());
        engine.told(Arc::new(file(5, &[])));
        let name = ResourceName::new("email").unwrap();
        engine.state().consumers.get_mut(&name).unwrap().seen_ms = 0;
        block_on(async {
            let mut forgetting = pin!(engine.forget(name.clone()));
            let begun = std::future::poll_fn(|context| {
                Poll::Ready(forgetting.as_mut().poll(context).is_pending())
            });
            assert!(begun.await);
            engine.told(Arc::new(here));
            forgetting.await.unwrap();
        });
        assert!(engine.state().consumers[&name].subscription.is_some());
    }
}
