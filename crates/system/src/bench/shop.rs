//! Orders a second of the example store, and where the time of one goes.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Place;
use super::cpu::Stretch;
use super::table::{Report, Table};
use crate::cloud::{Cloud, Instance};
use crate::proc;
use crate::shop::{self, Audit};

/// Checkouts a second that are tried one after the other; reads come on top.
const RATES: [u32; 5] = [50, 100, 200, 300, 400];
const SECONDS: u32 = 15;
/// At this rate it is looked where the time goes.
const LOOKED_AT: u32 = 200;
const P99_MAX_MS: f64 = 500.0;
const SERVING_WITHIN: Duration = Duration::from_secs(3);

fn books_are_right(audit: &Audit) -> bool {
    audit.wrong() == [0; 6]
}

fn carried(audit: &Audit) -> bool {
    audit.failed == 0 && books_are_right(audit) && audit.p99_ms < P99_MAX_MS
}

pub fn run(place: &Place) -> Result<Report> {
    let mut report = Report::new("shop", "The shop");
    report.say(format!(
        "`mainland up examples/shop --zones 3`, and `shop-load` on the same machine: open loop, each answer checked, a quarter as many reads as \
         checkouts; {SECONDS} s at each rate, then orders, charges, stock and what the workers did are audited. Latency counts from the scheduled time."
    ));
    report.tables = vec![
        Table::new(&["checkouts/s", "orders/s", "failed", "p50", "p99", "books"]),
        Table::new(&["process", "CPU of one order", "share"]),
    ];
    let folder = tempfile::tempdir()?;
    shop::copy(&place.root.join("examples/shop"), folder.path())?;
    let mut cloud = Cloud::new(&folder.path().join("mainland.yaml"), 3)?;
    let first = cloud.up()?;
    cloud.down()?;
    let again = cloud.up()?;
    report.fact("first start, serving after", seconds(first));
    report.hold(
        format!(
            "exec → serving < {} s, second start",
            SERVING_WITHIN.as_secs()
        ),
        seconds(again),
        again < SERVING_WITHIN,
    );
    rates(&cloud, &mut report)?;
    cloud.down()?;
    Ok(report)
}

fn rates(cloud: &Cloud, report: &mut Report) -> Result<()> {
    let mut most = 0.0_f64;
    let mut books = true;
    // What is made at first (connections, plans) is no part of it.
    load(cloud, RATES[0], 5)?;
    for rate in RATES {
        let stretches = (rate == LOOKED_AT).then(|| kinds(cloud)).transpose()?;
        let audit = load(cloud, rate, SECONDS)?;
        if let Some(stretches) = stretches {
            where_it_goes(&stretches, audit.orders_per_s * f64::from(SECONDS), report);
        }
        report.tables[0].row([
            rate.to_string(),
            format!("{:.0}", audit.orders_per_s),
            format!("{} of {}", audit.failed, audit.sent),
            format!("{:.1} ms", audit.p50_ms),
            format!("{:.0} ms", audit.p99_ms),
            if books_are_right(&audit) {
                "right"
            } else {
                "WRONG"
            }
            .to_owned(),
        ]);
        books &= books_are_right(&audit);
        if carried(&audit) {
            most = most.max(audit.orders_per_s);
        }
    }
    report.fact(
        format!("most orders/s with none failed and p99 < {P99_MAX_MS} ms"),
        format!("{most:.0}"),
    );
    report.hold(
        "the books are right at every rate",
        books.to_string(),
        books,
    );
    Ok(())
}

fn where_it_goes(stretches: &BTreeMap<String, Stretch>, orders: f64, report: &mut Report) {
    let mut used: Vec<(&String, f64)> = stretches
        .iter()
        .map(|(kind, stretch)| (kind, stretch.used().as_secs_f64()))
        .collect();
    used.sort_by(|a, b| b.1.total_cmp(&a.1));
    let all: f64 = used.iter().map(|(_, seconds)| seconds).sum();
    let mut row = |kind: &str, seconds: f64| {
        report.tables[1].row([
            kind.to_owned(),
            format!("{:.0} µs", seconds / orders * 1e6),
            format!("{:.0} %", seconds / all * 100.0),
        ]);
    };
    for (kind, seconds) in used {
        row(kind, seconds);
    }
    row("all, but for the load", all);
}

/// What runs now by kind: Mainland's own processes by their command, the others by their service.
fn kinds(cloud: &Cloud) -> Result<BTreeMap<String, Stretch>> {
    let mut kinds: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for kind in ["proxy", "agent", "server", "shim", "shim-watchdog"] {
        kinds.insert(
            kind.to_owned(),
            cloud.processes_with(&[&format!(" {kind} ")]),
        );
    }
    for Instance { service, pid, .. } in cloud.ps()? {
        let all = pid.into_iter().flat_map(with_descendants);
        kinds.entry(service).or_default().extend(all);
    }
    Ok(kinds
        .into_iter()
        .map(|(kind, processes)| (kind, Stretch::begin(processes)))
        .collect())
}

fn with_descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        all.extend(proc::children(pid));
        next += 1;
    }
    all
}

fn load(cloud: &Cloud, rate: u32, seconds: u32) -> Result<Audit> {
    let output = shop::load(cloud.gateway, rate, seconds)
        .stderr(Stdio::inherit())
        .output()
        .context("shop-load can't be run")?;
    serde_json::from_slice(&output.stdout).context("shop-load says nothing")
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
