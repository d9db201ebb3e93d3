//! Placements a second: DESIGN's number is 100,000 on 10,000 nodes, zone spread on, one thread.

use std::time::Instant;

use super::table::Table;

/// Several sizes, so that one sees whether the cost of a placement grows with the cluster.
const SIZES: [(usize, usize); 4] = [(100, 3), (1_000, 3), (10_000, 3), (10_000, 100)];
const PLACEMENTS: usize = 200_000;
const WANTED_PER_SECOND: f64 = 100_000.0;

pub(super) fn run() -> Table {
    let mut table = Table::new(
        "Placing",
        format!(
            "{PLACEMENTS} instances of services with 100 copies each, spread over zones, reasons included, one thread."
        ),
        &[
            "nodes",
            "zones",
            "placements/s",
            "µs each",
            "refused",
            "skew between zones",
        ],
    );
    for (nodes, zones) in SIZES {
        let began = Instant::now();
        let rate = ::plan::bench::run(nodes, zones, PLACEMENTS, || began.elapsed());
        table.row([
            nodes.to_string(),
            zones.to_string(),
            format!("{:.0}", rate.per_second()),
            format!("{:.2}", 1e6 / rate.per_second()),
            rate.refused.to_string(),
            rate.skew.to_string(),
        ]);
        if nodes == 10_000 {
            let promise = format!("≥ 100,000/s on {nodes} nodes in {zones} zones");
            let kept = rate.per_second() >= WANTED_PER_SECOND && rate.refused == 0;
            table.promise(promise, kept);
        }
    }
    table
}
