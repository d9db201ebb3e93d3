//! The figures, as one JSON object or as a table; what a person should know beside them; and whether they are good.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::audit::Findings;
use crate::settle::Settled;
use crate::tally::{Failure, Tally};

/// In the order in which it is printed; names are a contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub sent: u64,
    pub ok: u64,
    pub refused: u64,
    pub failed: u64,
    pub lost: u64,
    pub double_charged: u64,
    pub oversold: u64,
    pub uncompensated: u64,
    pub events_lost: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Those of the failed that were honest 503s.
    pub unavailable: u64,
    pub duplicated_effects: u64,
    /// Told, not a fault.
    pub stray_effects: u64,
    /// Requests that this client sent late.
    pub late: u64,
    pub orders_per_s: f64,
    pub settle_s: f64,
    pub orders_in_ledger: u64,
    pub attempts_in_ledger: u64,
    /// By kind.
    pub failures: BTreeMap<String, Failure>,
    #[serde(skip)]
    findings: Findings,
}

impl Report {
    pub fn new(tally: &Tally, settled: &Settled) -> Self {
        let findings = &settled.findings;
        Self {
            sent: tally.sent,
            ok: tally.ok,
            refused: tally.refused,
            failed: tally.failed,
            lost: findings.lost.count,
            double_charged: findings.double_charged.count,
            oversold: findings.oversold.count,
            uncompensated: findings.uncompensated.count,
            events_lost: findings.events_lost.count,
            p50_ms: rounded(tally.latency_ms(0.5)),
            p99_ms: rounded(tally.latency_ms(0.99)),
            max_ms: rounded(tally.latency_ms(1.0)),
            unavailable: tally.unavailable,
            duplicated_effects: findings.duplicated_effects.count,
            stray_effects: findings.stray_effects.count,
            late: tally.late,
            orders_per_s: rounded(tally.orders_per_second()),
            settle_s: rounded(settled.took.as_secs_f64()),
            orders_in_ledger: settled.orders as u64,
            attempts_in_ledger: settled.attempts as u64,
            failures: tally.failures().clone(),
            findings: findings.clone(),
        }
    }

    /// Whether the exit code must say so.
    pub fn is_bad(&self, allow_failed: bool) -> bool {
        !self.findings.are_none() || (self.failed > 0 && !allow_failed)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("figures and text")
    }

    pub fn to_table(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.rows() {
            let _ = writeln!(text, "{name:<20} {value:>12}");
        }
        text
    }

    fn rows(&self) -> [(&'static str, String); 17] {
        [
            ("sent", self.sent.to_string()),
            ("ok", self.ok.to_string()),
            ("refused", self.refused.to_string()),
            ("failed", self.failed.to_string()),
            ("  unavailable (503)", self.unavailable.to_string()),
            ("lost", self.lost.to_string()),
            ("double charged", self.double_charged.to_string()),
            ("oversold", self.oversold.to_string()),
            ("uncompensated", self.uncompensated.to_string()),
            ("events lost", self.events_lost.to_string()),
            ("duplicated effects", self.duplicated_effects.to_string()),
            ("p50", format!("{} ms", self.p50_ms)),
            ("p99", format!("{} ms", self.p99_ms)),
            ("max", format!("{} ms", self.max_ms)),
            ("orders a second", self.orders_per_s.to_string()),
            ("settled after", format!("{} s", self.settle_s)),
            ("orders in ledger", self.orders_in_ledger.to_string()),
        ]
    }

    /// What a person should know, line by line: kinds of failures, examples of findings, and whether this client was too slow.
    pub fn remarks(&self) -> String {
        let mut text = String::new();
        for (kind, failure) in &self.failures {
            let _ = writeln!(text, "{failure}: {kind}");
            if failure.example != *kind {
                let _ = writeln!(text, "    such as: {}", failure.example);
            }
        }
        let faults = self.findings.faults().into_iter();
        for (name, finding) in faults.chain([("stray_effects", &self.findings.stray_effects)]) {
            for example in &finding.examples {
                let _ = writeln!(text, "{name}: {example}");
            }
        }
        if self.late > 0 {
            let _ = writeln!(
                text,
                "{} requests left more than 50 ms late: this client had too little of the machine, and latencies look worse than the shop is",
                self.late
            );
        }
        text
    }
}

/// To hundredths.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::verify::Verdict;

    fn report(spoil: impl FnOnce(&mut Tally, &mut Settled)) -> Report {
        let mut tally = Tally::default();
        let mut settled = Settled {
            findings: Findings::default(),
            orders: 0,
            attempts: 0,
            took: Duration::from_millis(1234),
        };
        spoil(&mut tally, &mut settled);
        Report::new(&tally, &settled)
    }

    #[test]
    fn the_first_fields_are_the_contract() {
        let json = report(|_, _| {}).to_json();
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&json).unwrap();
        let names: Vec<&str> = object.keys().take(11).map(String::as_str).collect();
        assert_eq!(
            names.join(" "),
            "sent ok refused failed lost double_charged oversold uncompensated events_lost p50_ms p99_ms"
        );
        assert_eq!(object["settle_s"], 1.23);
    }

    #[test]
    fn any_fault_is_bad_and_failures_may_be_allowed() {
        let failed = |tally: &mut Tally| {
            let verdict = Verdict::Failed("500 unexpected: order 1".to_owned());
            tally.record(Duration::from_secs(2), Duration::ZERO, verdict);
        };
        assert!(!report(|_, _| {}).is_bad(false));
        assert!(!report(|_, settled| settled.findings.stray_effects.count = 1).is_bad(false));
        assert!(report(|tally, _| failed(tally)).is_bad(false));
        assert!(!report(|tally, _| failed(tally)).is_bad(true));
        for number in 0..6 {
            let bad = report(|_, settled| {
                let findings = &mut settled.findings;
                let counts = [
                    &mut findings.lost,
                    &mut findings.double_charged,
                    &mut findings.oversold,
                    &mut findings.uncompensated,
                    &mut findings.events_lost,
                    &mut findings.duplicated_effects,
                ];
                counts.into_iter().nth(number).unwrap().count = 1;
            });
            assert!(bad.is_bad(true), "fault {number}");
        }
    }

    #[test]
    fn remarks_tell_what_failed_when_and_how_late_the_client_was() {
        let report = report(|tally, settled| {
            let verdict = Verdict::Failed("500 unexpected: order 17".to_owned());
            tally.record(Duration::from_millis(2500), Duration::ZERO, verdict);
            tally.late = 3;
            settled.findings.lost.examples = vec!["order o1 is not there".to_owned()];
        });
        let remarks = report.remarks();
        for expected in [
            "failed once, at 2.50 s: 500 unexpected: order #",
            "such as: 500 unexpected: order 17",
            "lost: order o1 is not there",
            "3 requests left",
        ] {
            assert!(remarks.contains(expected), "{expected}: {remarks}");
        }
    }
}
