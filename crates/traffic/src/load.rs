//! What is known of one endpoint: latency as a peak EWMA, requests in flight, and whether it is being avoided.
//!
//! Shared by all workers and kept across snapshots. Every field is an atomic that is read and written without order between
//! them: a lost update costs one sample, never a wrong answer.
//!
//! The peak EWMA is Finagle's: a sample above the average replaces it at once, one below pulls it down with a decay of 10 s. So a
//! slow answer is felt immediately and forgiven slowly.
//! <https://github.com/twitter/finagle/blob/develop/finagle-core/src/main/scala/com/twitter/finagle/loadbalancer/PeakEwma.scala>

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const DECAY: Duration = Duration::from_secs(10);

/// Counted against an endpoint that has not answered yet, so that it does not draw everything until its first answer.
const UNKNOWN_LATENCY_NANOS: f64 = 1_000_000.0;

/// Failures in a row until an endpoint is ejected.
const FAILURES_TO_EJECT: u32 = 3;
const FIRST_EJECTION: Duration = Duration::from_secs(1);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);

/// How long an endpoint that refused as *not begun* is asked last: its gate is closed, and a new snapshot is on its way.
const REST: Duration = Duration::from_millis(250);

/// How long a copy that hung gets none but safe requests, which are also sent elsewhere when it does not answer.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

/// Time since the proxy started. The clock is read once per event and handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    fn after(self, length: Duration) -> u64 {
        self.0 + length.as_nanos() as u64
    }
}

/// One endpoint's statistics, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Load {
    latency_nanos: AtomicU64,
    sampled_at: AtomicU64,
    in_flight: AtomicU32,
    failures: AtomicU32,
    ejections: AtomicU32,
    ejected_until: AtomicU64,
    resting_until: AtomicU64,
    answered_at: AtomicU64,
    suspect_until: AtomicU64,
    /// When it first broke off since it last answered; 0: it has not.
    broke_at: AtomicU64,
}

impl Load {
    /// Smaller is better: expected latency times the requests that would be in flight.
    pub fn cost(&self, now: Instant) -> f64 {
        let latency = f64::from_bits(self.latency_nanos.load(Relaxed));
        let in_flight = f64::from(self.in_flight.load(Relaxed));
        if latency == 0.0 {
            return UNKNOWN_LATENCY_NANOS * in_flight;
        }
        // What is forgotten is unknown again, not nothing: what is in flight counts, however long ago the last answer came.
        let known = self.decay(now);
        let latency = latency * known + UNKNOWN_LATENCY_NANOS.min(latency) * (1.0 - known);
        latency * (in_flight + 1.0)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// An answer that began after `latency`.
    pub fn observe(&self, latency: Duration, now: Instant) {
        self.answers(now);
        self.sample(latency, now);
    }

    /// An answer that says nothing of how long one takes.
    pub fn answers(&self, now: Instant) {
        self.answered_at.store(now.0, Relaxed);
        if self.broke_at.load(Relaxed) != 0 {
            self.broke_at.store(0, Relaxed);
        }
    }

    /// Somebody left, or gave it up, who had waited for this long: an answer would have taken longer still.
    pub fn waited(&self, length: Duration, now: Instant) {
        let known = f64::from_bits(self.latency_nanos.load(Relaxed)) * self.decay(now);
        if length.as_nanos() as f64 > known {
            self.sample(length, now);
        }
    }

    fn sample(&self, latency: Duration, now: Instant) {
        let sample = latency.as_nanos() as f64;
        let before = f64::from_bits(self.latency_nanos.load(Relaxed));
        let weight = self.decay(now);
        let next = if sample > before {
            sample
        } else {
            before * weight + sample * (1.0 - weight)
        };
        self.latency_nanos.store(next.to_bits(), Relaxed);
        self.sampled_at.store(now.0, Relaxed);
    }

    /// e^(−t/10 s) since the last sample: an endpoint that nobody asks slowly becomes attractive again.
    fn decay(&self, now: Instant) -> f64 {
        let elapsed = now.0.saturating_sub(self.sampled_at.load(Relaxed)) as f64;
        (-elapsed / DECAY.as_nanos() as f64).exp()
    }

    pub fn succeeded(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.ejections.store(0, Relaxed);
            self.suspect_until.store(0, Relaxed);
        }
    }

    /// A try that began at `began` has had its time. When nobody was answered since, the endpoint hangs, and that is ejected at once.
    /// Whether it is taken to hang.
    pub fn silent(&self, began: Instant, now: Instant, may_eject: bool) -> bool {
        self.waited(Duration::from_nanos(now.0 - began.0), now);
        if self.answered_at.load(Relaxed) > began.0 {
            return false;
        }
        self.suspect_until.store(now.after(SUSPECT_FOR), Relaxed);
        self.failures.fetch_max(FAILURES_TO_EJECT - 1, Relaxed);
        self.failed(now, may_eject);
        true
    }

    /// It was slow and did not hang: the try that was given up as silent was answered after all.
    pub fn revive(&self) {
        self.succeeded();
        self.ejected_until.store(0, Relaxed);
    }

    /// It hung lately, and has answered nobody since.
    pub fn is_suspect(&self, now: Instant) -> bool {
        self.suspect_until.load(Relaxed) > now.0
    }

    /// A failed connection, a broken answer or a 502, 503, 504. `may_eject` is false when half of the endpoints are out already.
    pub fn failed(&self, now: Instant, may_eject: bool) {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        if failures >= FAILURES_TO_EJECT && may_eject && !self.ejected(now) {
            let times = self.ejections.fetch_add(1, Relaxed).min(5);
            let length = (FIRST_EJECTION * (1 << times)).min(LONGEST_EJECTION);
            self.ejected_until.store(now.after(length), Relaxed);
        }
    }

    /// A try that began at `began` broke off. Whether the copy had it in hand when it first broke off since it last answered: then what came down with it is
    /// one death, however much. What it was sent later, and broke off as well, is not.
    pub fn broke_off(&self, began: Instant, now: Instant) -> bool {
        let first = self
            .broke_at
            .compare_exchange(0, now.0.max(1), Relaxed, Relaxed);
        first.is_ok() || first.is_err_and(|first| began.0 <= first)
    }

    /// It refused before it began.
    pub fn rest(&self, now: Instant) {
        self.resting_until.store(now.after(REST), Relaxed);
    }

    pub fn ejected(&self, now: Instant) -> bool {
        self.ejected_until.load(Relaxed) > now.0
    }

    pub fn avoided(&self, now: Instant) -> bool {
        self.ejected(now) || self.resting_until.load(Relaxed) > now.0
    }

    /// Counts one more in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }
}

#[derive(Debug)]
pub struct InFlight(Arc<Load>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    #[test]
    fn a_peak_is_felt_at_once_and_forgiven_slowly() {
        let load = Load::default();
        load.observe(Duration::from_millis(10), at(1));
        load.observe(Duration::from_millis(100), at(1));
        assert_eq!(load.cost(at(1)), 100e6);
        load.observe(Duration::from_millis(10), at(2));
        let after_a_second = load.cost(at(2));
        assert!((90e6..93e6).contains(&after_a_second), "{after_a_second}");
        load.observe(Duration::from_millis(10), at(32));
        assert!(load.cost(at(32)) < 15e6);
    }

    #[test]
    fn cost_grows_with_what_is_in_flight_and_falls_when_it_ends() {
        let load = Arc::new(Load::default());
        load.observe(Duration::from_millis(10), at(1));
        let one = load.begin();
        let two = load.begin();
        assert_eq!(load.cost(at(1)), 30e6);
        drop((one, two));
        assert_eq!(load.cost(at(1)), 10e6);
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn what_is_in_flight_counts_however_long_ago_the_last_answer_came() {
        let asked = [Load::default(), Load::default()].map(Arc::new);
        asked[0].observe(Duration::from_millis(30), at(1));
        for now in [60, 600, 60_000].map(at) {
            let mut held = Vec::new();
            let mut counts = [0, 0];
            for _ in 0..40 {
                let cheaper = usize::from(asked[1].cost(now) < asked[0].cost(now));
                counts[cheaper] += 1;
                held.push(asked[cheaper].begin());
            }
            assert!(counts.iter().all(|count| *count >= 15), "{counts:?}");
        }
    }

    #[test]
    fn three_failures_in_a_row_eject_longer_each_time() {
        let load = Load::default();
        load.failed(at(1), true);
        load.failed(at(1), true);
        load.succeeded();
        load.failed(at(1), true);
        load.failed(at(1), true);
        assert!(
            !load.ejected(at(1)),
            "a success between them starts the count anew"
        );
        load.failed(at(1), true);
        assert!(load.ejected(at(1)) && !load.ejected(at(2)));
        load.failed(at(2), true);
        assert!(load.ejected(at(3)) && !load.ejected(at(4)));
    }

    #[test]
    fn one_that_answers_nobody_is_out_at_once_and_suspect_until_it_answers() {
        let load = Load::default();
        load.observe(Duration::from_millis(1), at(9));
        let hangs = load.silent(at(8), at(13), true);
        assert!(!hangs && !load.ejected(at(13)), "others were answered");
        assert!(load.silent(at(10), at(15), true));
        assert!(load.ejected(at(15)) && !load.ejected(at(16)));
        assert!(load.is_suspect(at(60)) && !load.is_suspect(at(75)));
        assert!(load.cost(at(15)) >= 5e9, "what was waited for is its cost");
        load.silent(at(16), at(17), true);
        assert!(load.ejected(at(18)) && !load.ejected(at(19)));
        load.revive();
        assert!(!load.ejected(at(18)) && !load.is_suspect(at(18)));
    }

    #[test]
    fn what_a_copy_had_in_hand_when_it_died_is_known() {
        let load = Load::default();
        load.observe(Duration::from_millis(1), at(1));
        assert!(load.broke_off(at(2), at(5)));
        for (began, in_hand) in [(1, true), (3, true), (5, true), (6, false), (7, false)] {
            assert_eq!(load.broke_off(at(began), at(8)), in_hand, "{began}");
        }
        load.observe(Duration::from_millis(1), at(9));
        assert!(load.broke_off(at(6), at(10)), "it has answered since");
    }

    #[test]
    fn nothing_is_ejected_beyond_the_cap() {
        let load = Load::default();
        (0..9).for_each(|_| load.failed(at(1), false));
        assert!(!load.ejected(at(1)));
    }
}
