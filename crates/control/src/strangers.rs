//! What somebody may have the server do who has not said who they are: little, and within bounds that all of them share.
//!
//! Some bodies have to be read before it can be known who asks: the signing request of a node whose certificate has ended. Of those some are
//! read at a time. Where all places are taken a newcomer gets the oldest's: a request that came whole is read at once, whoever else sends
//! theirs slowly or not at all.
//!
//! Who asks in vain and asks again at once would have the server answer nobody else: beyond some refusals a second, each waits for its answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::problem::Problem;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::call::{self, Call};

/// Requests of strangers answered at once on one connection. Beyond it the connection ends: who asks and takes no answer makes the server
/// keep all of them.
pub const ANSWERS_MOST: usize = 64;
/// Bodies of strangers that are read at once. Each has at most [`SMALL_BODY_MAX_BYTES`](api::operations::SMALL_BODY_MAX_BYTES).
const BODIES_MOST: usize = 64;
/// A stranger's body has this long. A signing request has some 500 bytes, and comes with its head.
const BODY_TIMEOUT: Duration = Duration::from_secs(3);

/// Refusals a second that are answered at once, whoever asks: people mistype, and scripts try several times.
const REFUSED_AT_ONCE: u32 = 100;
/// How long an answer beyond them waits. With [`ANSWERS_MOST`] on a connection, and each client's share of connections, that bounds what refusing
/// costs.
const REFUSED_WAIT: Duration = Duration::from_millis(250);

/// The refusals of the second that goes on.
pub struct RefusalRate(Mutex<(Instant, u32)>);

impl Default for RefusalRate {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), 0)))
    }
}

impl RefusalRate {
    /// Returns when one more may be refused.
    pub async fn refuse(&self) {
        if self.is_beyond(Instant::now()) {
            tokio::time::sleep(REFUSED_WAIT).await;
        }
    }

    fn is_beyond(&self, now: Instant) -> bool {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(refused.0) >= Duration::from_secs(1) {
            *refused = (now, 0);
        }
        refused.1 = refused.1.saturating_add(1);
        refused.1 > REFUSED_AT_ONCE
    }
}

/// The bodies of strangers that are being read.
#[derive(Default)]
pub struct Bodies(Mutex<Reading>);

#[derive(Default)]
struct Reading {
    next: u64,
    oldest_first: BTreeMap<u64, Arc<Notify>>,
}

/// One of them. It is free again when it goes.
struct Place<'b> {
    bodies: &'b Bodies,
    number: u64,
    displaced: Arc<Notify>,
}

impl Bodies {
    /// The body, whole, as what it must be.
    ///
    /// # Errors
    ///
    /// `too-slow` (408) and `busy` (503) where it does not come in time, beside those of [`Call::json`].
    pub async fn json<T: DeserializeOwned>(&self, call: &mut Call) -> Result<T, Problem> {
        let place = self.take();
        let read = tokio::time::timeout(BODY_TIMEOUT, call.bytes());
        let bytes = tokio::select! {
            read = read => read.map_err(|_| too_slow())??,
            () = place.displaced.notified() => return Err(busy()),
        };
        call::parse_json(&bytes)
    }

    fn take(&self) -> Place<'_> {
        let mut reading = self.lock();
        if reading.oldest_first.len() >= BODIES_MOST
            && let Some((_, oldest)) = reading.oldest_first.pop_first()
        {
            oldest.notify_one();
        }
        reading.next += 1;
        let (number, displaced) = (reading.next, Arc::new(Notify::new()));
        reading.oldest_first.insert(number, displaced.clone());
        drop(reading);
        Place {
            bodies: self,
            number,
            displaced,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.bodies.lock().oldest_first.remove(&self.number);
    }
}

fn too_slow() -> Problem {
    let title = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
    Problem::new(408, "too-slow", title).remedy("send it with the head of the request")
}

/// What one is told of whom too much is going on.
pub fn busy() -> Problem {
    let title = "too many who have not said who they are ask at once";
    Problem::unavailable("busy", title).remedy("repeat it in a moment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_in_a_loop_waits_and_who_is_refused_now_and_then_does_not() {
        let rate = RefusalRate::default();
        let began = Instant::now();
        for _ in 0..REFUSED_AT_ONCE {
            rate.refuse().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        rate.refuse().await;
        assert_eq!(began.elapsed(), REFUSED_WAIT);
        tokio::time::advance(Duration::from_secs(1)).await;
        let later = Instant::now();
        rate.refuse().await;
        assert_eq!(later.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_newcomer_gets_the_oldest_place() {
        let bodies = Bodies::default();
        let mut places: Vec<_> = (0..BODIES_MOST).map(|_| bodies.take()).collect();
        let newest = bodies.take();
        places[0].displaced.notified().await;
        assert_eq!(bodies.lock().oldest_first.len(), BODIES_MOST);
        // Who was displaced gives nobody's place back.
        drop(places.remove(0));
        assert_eq!(bodies.lock().oldest_first.len(), BODIES_MOST);
        drop((places, newest));
        assert!(bodies.lock().oldest_first.is_empty());
    }
}
