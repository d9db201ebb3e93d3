//! Placements a second: DESIGN's number is 100,000 on 10,000 nodes, zone spread on, one thread.

use std::time::Instant;

use system::bench::median;
use system::bench::table::{Report, Table, grouped};

/// Several sizes, so that one sees whether the cost of a placement grows with the cluster.
const SIZES: [(usize, usize); 5] = [(100, 3), (1_000, 30), (10_000, 3), PROMISED, (10_000, 100)];
const PROMISED: (usize, usize) = (10_000, 30);
const PLACEMENTS: usize = 200_000;
const ROUNDS: usize = 5;
const WANTED_PER_SECOND: f64 = 100_000.0;

/// What several rounds of one size came to.
struct Rounds {
    per_second: Vec<f64>,
    refused: usize,
    skew: u32,
}

pub(super) fn run() -> Report {
    let mut report = Report::new("plan", "Placing");
    report.say(format!(
        "{} instances of services with 100 copies each, spread over zones, reasons included, one thread. {ROUNDS} rounds, medians.",
        grouped(PLACEMENTS as f64)
    ));
    report.say("Published of others, measured elsewhere: kube-scheduler 460/s; Nomad's C2M 1,500/s, with starts.");
    let mut table = Table::new(&[
        "nodes",
        "zones",
        "placements/s",
        "slowest round",
        "each",
        "refused",
        "skew between zones",
    ]);
    for size in SIZES {
        let rounds = rounds(size);
        table.row(row(size, &rounds));
        if size == PROMISED {
            hold(&mut report, &rounds);
        }
    }
    report.tables.push(table);
    report
}

fn rounds((nodes, zones): (usize, usize)) -> Rounds {
    let began = Instant::now();
    let rates: Vec<_> = (0..ROUNDS)
        .map(|_| ::plan::bench::run(nodes, zones, PLACEMENTS, || began.elapsed()))
        .collect();
    Rounds {
        per_second: rates.iter().map(|rate| rate.per_second()).collect(),
        refused: rates.iter().map(|rate| rate.refused).sum(),
        skew: rates.iter().map(|rate| rate.skew).max().unwrap_or(0),
    }
}

fn row((nodes, zones): (usize, usize), rounds: &Rounds) -> [String; 7] {
    let rates = rounds.per_second.iter().copied();
    let middle = median(rates.clone());
    [
        grouped(nodes as f64),
        zones.to_string(),
        grouped(middle),
        grouped(rates.fold(f64::INFINITY, f64::min)),
        format!("{:.2} µs", 1e6 / middle),
        rounds.refused.to_string(),
        rounds.skew.to_string(),
    ]
}

fn hold(report: &mut Report, rounds: &Rounds) {
    let middle = median(rounds.per_second.iter().copied());
    let promise = "≥ 100,000 placements/s on 10,000 nodes in 30 zones, none refused";
    let measured = format!("{}/s, {} refused", grouped(middle), rounds.refused);
    let held = middle >= WANTED_PER_SECOND && rounds.refused == 0;
    report.hold(promise, measured, held);
}
