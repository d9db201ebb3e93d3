//! When what has ended is started again: each process after a rest of its own, so that one that dies again and again holds up no other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use node::pause::Pause;

/// A process that dies again and again is started anew no faster than this.
const MOST: Duration = Duration::from_secs(5);
const FIRST: Duration = Duration::from_millis(50);
/// After this long without a death, the next one counts as the first again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// All that rest now, and how long those that died lately have rested. As many as there are processes of `up`.
#[derive(Default)]
pub(super) struct Again {
    rests: BTreeMap<String, Rest>,
    due: BTreeMap<String, Due>,
}

/// The rests of one process.
struct Rest {
    pause: Pause,
    died: Instant,
    /// Deaths in a row.
    deaths: u32,
}

/// One that rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    at: Instant,
    /// The how manieth of its ends in a row this is, which nobody has been told yet. 0: it could not be started.
    pub deaths: u32,
}

impl Again {
    /// It has just ended, and rests no less than `least`.
    pub(super) fn ended(&mut self, name: &str, least: Duration, now: Instant) {
        let (rest, deaths) = self.rest(name, now);
        let at = now + rest.max(least);
        self.due.insert(name.to_owned(), Due { at, deaths });
    }

    /// It should be there and is not. Nothing changes for one that rests already.
    pub(super) fn missing(&mut self, name: &str, now: Instant) {
        if !self.due.contains_key(name) {
            let at = now + self.rest(name, now).0;
            self.due.insert(name.to_owned(), Due { at, deaths: 0 });
        }
    }

    /// How long until the first of them has rested.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        let due = self.due.values().map(|due| due.at).min();
        due.map(|at| at.saturating_duration_since(now))
    }

    /// Those that have rested.
    pub(super) fn rested(&mut self, now: Instant) -> BTreeMap<String, Due> {
        self.due.extract_if(.., |_, due| due.at <= now).collect()
    }

    fn rest(&mut self, name: &str, now: Instant) -> (Duration, u32) {
        let rest = self.rests.entry(name.to_owned()).or_insert_with(|| Rest {
            pause: Pause::new(FIRST, MOST),
            died: now,
            deaths: 0,
        });
        if now.saturating_duration_since(rest.died) >= FORGOTTEN_AFTER {
            rest.pause.reset();
            rest.deaths = 0;
        }
        rest.died = now;
        rest.deaths = rest.deaths.saturating_add(1);
        (rest.pause.draw(), rest.deaths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_dies_again_and_again_rests_longer_and_holds_up_no_other() {
        let mut again = Again::default();
        let mut now = Instant::now();
        let mut rests = Vec::new();
        for _ in 0..10 {
            again.ended("b", Duration::ZERO, now);
            let rest = again.next(now).unwrap();
            assert!(again.rested(now).is_empty(), "before it has rested");
            now += rest;
            rests.push(rest);
            assert_eq!(again.rested(now)["b"].deaths, rests.len() as u32);
        }
        assert!(rests[0] <= FIRST, "{rests:?}");
        assert!(
            rests[9] >= MOST / 2 && rests[9] <= MOST,
            "bounded: {rests:?}"
        );
        again.ended("b", Duration::ZERO, now);
        again.ended("server", Duration::ZERO, now);
        assert!(again.next(now).unwrap() <= FIRST, "the server's first");
        let rested = again.rested(now + FIRST);
        assert_eq!(rested.keys().collect::<Vec<_>>(), ["server"]);
        // A long life is a new beginning.
        now += MOST + FORGOTTEN_AFTER;
        again.rested(now);
        again.ended("b", Duration::ZERO, now);
        assert!(again.next(now).unwrap() <= FIRST);
    }

    #[test]
    fn what_is_missing_is_looked_for_once_and_told_as_ended_only_if_it_was_seen() {
        let mut again = Again::default();
        let now = Instant::now();
        let settles = Duration::from_millis(200);
        again.ended("b", settles, now);
        again.missing("b", now);
        again.missing("c", now);
        again.missing("c", now);
        assert!(again.next(now).unwrap() <= FIRST, "c does not wait for b");
        assert!(again.rested(now).is_empty());
        let rested = again.rested(now + settles);
        assert_eq!(
            (rested["b"].deaths, rested["c"].deaths, rested.len()),
            (1, 0, 2)
        );
        assert_eq!(again.next(now), None);
    }
}
