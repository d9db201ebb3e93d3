//! What came of the requests, within bounds: figures, confirmed orders, and the first kinds of failures.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::audit::Promises;
use crate::verify::{Receipt, Verdict};

/// Kinds of failures that are told apart.
const KINDS_MAX: usize = 20;
/// All further kinds.
const OTHER_KINDS: &str = "other kinds";
/// Confirmed orders that reads ask for: the latest.
const RECENT_MAX: usize = 256;
/// Longer latencies count as this long.
const LATENCY_MAX_US: u64 = 600_000_000;

/// Figures of a run.
pub struct Tally {
    pub sent: u64,
    /// Right answers to checkouts and reads.
    pub ok: u64,
    pub refused: u64,
    pub failed: u64,
    /// Those of the failed that were honest 503s.
    pub unavailable: u64,
    /// Requests that left later than they should have, because of this client.
    pub late: u64,
    /// How long requests were sent.
    pub sending: Duration,
    failures: BTreeMap<String, Failure>,
    promises: Promises,
    latency_us: Histogram<u64>,
}

/// One kind of failure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    pub count: u64,
    /// When in the run the first and last of the kind were sent.
    pub first_at_s: f64,
    pub last_at_s: f64,
    /// The first of the kind as it was.
    pub example: String,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            sent: 0,
            ok: 0,
            refused: 0,
            failed: 0,
            unavailable: 0,
            late: 0,
            sending: Duration::ZERO,
            failures: BTreeMap::new(),
            promises: Promises::default(),
            latency_us: Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
                .expect("the bounds are in order"),
        }
    }
}

impl Tally {
    /// Counts what came of the request that was scheduled at this time of the run.
    pub fn record(&mut self, at: Duration, latency: Duration, verdict: Verdict) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.saturating_record(latency_us);
        match verdict {
            Verdict::Ok => self.ok += 1,
            Verdict::Ordered(receipt) => {
                self.ok += 1;
                self.promises.receipts.push(receipt);
            }
            Verdict::Refused { key } => {
                self.refused += 1;
                self.promises.refusals.push(key);
            }
            Verdict::Unavailable { said, undone } => {
                self.unavailable += 1;
                self.promises.refusals.extend(undone);
                self.fail(at, said);
            }
            Verdict::Failed(text) => self.fail(at, text),
        }
    }

    fn fail(&mut self, at: Duration, example: String) {
        self.failed += 1;
        let mut kind = kind(&example);
        if !self.failures.contains_key(&kind) && self.failures.len() >= KINDS_MAX {
            OTHER_KINDS.clone_into(&mut kind);
        }
        let at_s = at.as_secs_f64();
        let failure = self.failures.entry(kind).or_insert(Failure {
            count: 0,
            first_at_s: at_s,
            last_at_s: at_s,
            example,
        });
        failure.count += 1;
        failure.first_at_s = failure.first_at_s.min(at_s);
        failure.last_at_s = failure.last_at_s.max(at_s);
    }

    pub fn failures(&self) -> &BTreeMap<String, Failure> {
        &self.failures
    }

    pub fn promises(&self) -> &Promises {
        &self.promises
    }

    /// One of the latest confirmed orders.
    pub fn recent(&self, pick: usize) -> Option<&Receipt> {
        let receipts = &self.promises.receipts;
        let recent = &receipts[receipts.len().saturating_sub(RECENT_MAX)..];
        (!recent.is_empty()).then(|| &recent[pick % recent.len()])
    }

    /// 0 of no requests.
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub fn orders_per_second(&self) -> f64 {
        match self.sending.is_zero() {
            true => 0.0,
            false => self.promises.receipts.len() as f64 / self.sending.as_secs_f64(),
        }
    }
}

/// The figures that need no audit.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            ok,
            refused,
            failed,
            ..
        } = self;
        write!(
            f,
            "sent {sent}, ok {ok}, refused {refused}, failed {failed}"
        )?;
        for (kind, failure) in &self.failures {
            write!(f, "\n{failure}: {kind}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first_at_s, self.last_at_s);
        match self.count {
            1 => write!(f, "failed once, at {first:.2} s"),
            count => write!(f, "failed {count} times, from {first:.2} to {last:.2} s"),
        }
    }
}

/// Failures that differ in ids and amounts only are one kind: words with a digit are one word. The status stays.
fn kind(failure: &str) -> String {
    let (status, rest) = failure.split_at_checked(3).unwrap_or((failure, ""));
    let mut kind = status.to_owned();
    for word in rest.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        let name = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        match name.contains(|c: char| c.is_ascii_digit()) {
            true => kind.extend(["#", &word[name.len()..]]),
            false => kind.push_str(word),
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_forget_ids_and_keep_the_status() {
        for (failure, expected) in [
            (
                "503 unavailable: {\"error\":\"no payment\"}",
                "503 unavailable: {\"error\":\"no payment\"}",
            ),
            (
                "500 unexpected: order 3f2a-77 is lost",
                "500 unexpected: order # is lost",
            ),
            (
                "201 the total must be 123: {\"order_id\":\"o-9\"}",
                "201 the total must be #: {\"order_id\":\"#\"}",
            ),
            ("no", "no"),
            ("äß", "äß"),
        ] {
            assert_eq!(kind(failure), expected);
        }
    }

    #[test]
    fn kinds_of_failures_are_bounded() {
        let mut tally = Tally::default();
        for number in 0..100u32 {
            let name: String = number
                .to_string()
                .chars()
                .map(|d| (d as u8 + 49) as char)
                .collect();
            let at = Duration::from_secs(u64::from(number));
            tally.record(at, Duration::ZERO, Verdict::Failed(format!("500 {name}")));
        }
        assert_eq!(tally.failed, 100);
        assert_eq!(tally.failures.len(), KINDS_MAX + 1);
        let others = &tally.failures[OTHER_KINDS];
        assert_eq!(
            (others.count, others.first_at_s, others.last_at_s),
            (80, 20.0, 99.0)
        );
    }

    #[test]
    fn latency_counts_for_every_verdict() {
        let mut tally = Tally::default();
        assert_eq!(tally.latency_ms(0.5), 0.0);
        for (ms, verdict) in [
            (10, Verdict::Ok),
            (
                20,
                Verdict::Refused {
                    key: "k".to_owned(),
                },
            ),
            (4000, Verdict::Failed("no answer in time".to_owned())),
        ] {
            tally.record(Duration::ZERO, Duration::from_millis(ms), verdict);
        }
        assert!((19.9..20.1).contains(&tally.latency_ms(0.5)));
        assert!((3990.0..4010.0).contains(&tally.latency_ms(1.0)));
    }
}
