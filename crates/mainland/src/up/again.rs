//! When what has ended is started again: each process after a rest of its own, so that one that dies again and again holds up no other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use node::pause::Pause;

/// A process that dies again and again is started anew no faster than this.
const MOST: Duration = Duration::from_secs(5);
const FIRST: Duration = Duration::from_millis(50);
/// After this long without a death, the next one rests as the first does.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// After this long without a death, the next one is told as the first is. One that lives for less than this each time ends again and again.
const TOLD_ANEW_AFTER: Duration = Duration::from_secs(5 * 60);

/// All that rest now, and how long those that died lately have rested. As many as there are processes of `up`.
#[derive(Default)]
pub(super) struct Again {
    rests: BTreeMap<String, Rest>,
    due: BTreeMap<String, Due>,
}

/// The rests of one process.
struct Rest {
    pause: Pause,
    /// When it ended, or was not there, last.
    died: Instant,
    /// Deaths in a row.
    deaths: u32,
    /// Why it could not be started, as was told last.
    told: Option<String>,
}

/// One that rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    at: Instant,
    /// The how manieth of its ends in a row this is, which nobody has been told yet. 0: it was not there.
    pub deaths: u32,
}

impl Again {
    /// It has just ended, and rests no less than `least`.
    pub(super) fn ended(&mut self, name: &str, least: Duration, now: Instant) {
        let rest = self.rest(name, now);
        rest.deaths = rest.deaths.saturating_add(1);
        let deaths = rest.deaths;
        let at = now + rest.pause.draw().max(least);
        self.due.insert(name.to_owned(), Due { at, deaths });
    }

    /// It should be there and is not. Nothing changes for one that rests already.
    pub(super) fn missing(&mut self, name: &str, now: Instant) {
        if !self.due.contains_key(name) {
            let at = now + self.rest(name, now).pause.draw();
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

    /// It could not be started: whether that is to be told, as a reason that it was not told of last time.
    pub(super) fn is_news(&mut self, name: &str, why: &str) -> bool {
        let Some(rest) = self.rests.get_mut(name) else {
            return true;
        };
        let is_news = rest.told.as_deref() != Some(why);
        rest.told = Some(why.to_owned());
        is_news
    }

    fn rest(&mut self, name: &str, now: Instant) -> &mut Rest {
        let rest = self.rests.entry(name.to_owned()).or_insert_with(|| Rest {
            pause: Pause::new(FIRST, MOST),
            died: now,
            deaths: 0,
            told: None,
        });
        let lived = now.saturating_duration_since(rest.died);
        if lived >= FORGOTTEN_AFTER {
            rest.pause.reset();
        }
        if lived >= TOLD_ANEW_AFTER {
            rest.deaths = 0;
            rest.told = None;
        }
        rest.died = now;
        rest
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

    /// Each of its deaths would be told, for ever, as though it were the first.
    #[test]
    fn one_that_lives_for_a_while_each_time_ends_again_and_again() {
        let mut again = Again::default();
        let mut now = Instant::now();
        for (lived, deaths) in [(0, 1), (12, 2), (60, 3), (299, 4), (301, 1), (1, 2)] {
            now += Duration::from_secs(lived);
            again.ended("b", Duration::ZERO, now);
            let rest = again.next(now).unwrap();
            assert!(lived < 10 || rest <= FIRST, "{lived}: {rest:?}");
            assert_eq!(again.rested(now + rest)["b"].deaths, deaths, "{lived}");
        }
    }

    #[test]
    fn why_one_can_t_be_started_is_told_once() {
        let mut again = Again::default();
        let mut now = Instant::now();
        let (full, at_once) = ("No space left on device", "`agent` ended at once");
        for (why, is_news) in [
            (full, true),
            (full, false),
            (at_once, true),
            (at_once, false),
            (full, true),
        ] {
            now += MOST;
            again.missing("b", now);
            again.rested(now + MOST);
            assert_eq!(again.is_news("b", why), is_news, "{why}");
        }
        // That it was not there is no death.
        again.ended("b", Duration::ZERO, now);
        assert_eq!(again.rested(now + MOST)["b"].deaths, 1);
        again.missing("b", now + TOLD_ANEW_AFTER);
        assert!(again.is_news("b", full), "it lived");
    }
}
