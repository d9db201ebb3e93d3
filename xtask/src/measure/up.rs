//! From exec to ready, to the example serving; then memory and CPU of Mainland's own processes at rest.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use system::cloud::Cloud;
use system::{load, proc, wait};

use super::table::Table;
use crate::step::cargo;

/// How often it is begun anew: the median counts.
const RUNS: usize = 5;
const SERVING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long CPU time at rest is counted.
const REST: Duration = Duration::from_secs(20);

pub(super) fn run(root: &Path) -> Result<Table> {
    cargo(
        root,
        &[
            "build",
            "--release",
            "--package",
            "mainland",
            "--package",
            "system",
            "--bins",
        ],
    )?;
    let manifest = root.join("examples/first");
    let mut table = Table::new(
        "Up",
        format!(
            "`mainland up examples/first`, {RUNS} times with a new data directory; medians, and the slowest."
        ),
        &[
            "zones",
            "exec → ready",
            "slowest",
            "exec → serving",
            "slowest",
            "PSS at rest",
            "CPU at rest",
        ],
    );
    for zones in [1, 3] {
        measure(&manifest, zones, &mut table)?;
    }
    Ok(table)
}

fn measure(manifest: &Path, zones: u32, table: &mut Table) -> Result<()> {
    let begins = (0..RUNS)
        .map(|_| begin(manifest, zones))
        .collect::<Result<Vec<_>>>()?;
    let ready = sorted(begins.iter().map(|begin| begin.ready));
    let serving = sorted(begins.iter().map(|begin| begin.serving));
    let rest = at_rest(manifest, zones)?;
    table.row([
        zones.to_string(),
        seconds(ready[RUNS / 2]),
        seconds(ready[RUNS - 1]),
        seconds(serving[RUNS / 2]),
        seconds(serving[RUNS - 1]),
        format!("{:.1} MB", rest.pss_bytes as f64 / 1e6),
        format!("{:.2} %", rest.cpu_share * 100.0),
    ]);
    if zones == 1 {
        table.promise(
            "ready < 0.5 s with one zone",
            ready[RUNS / 2] < Duration::from_millis(500),
        );
        table.promise("PSS < 60 MB with one zone", rest.pss_bytes < 60_000_000);
        table.promise(
            "CPU at rest < 1 % of a core with one zone",
            rest.cpu_share < 0.01,
        );
    } else {
        table.promise(
            "serving < 3 s with three zones",
            serving[RUNS / 2] < Duration::from_secs(3),
        );
    }
    Ok(())
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times
}

struct Begin {
    ready: Duration,
    serving: Duration,
}

/// From exec until ready, and until the example answers through the gateway.
fn begin(manifest: &Path, zones: u32) -> Result<Begin> {
    let mut cloud = Cloud::new(manifest, zones)?;
    let began = Instant::now();
    let ready = cloud.up()?;
    wait_until_it_serves(&cloud);
    let serving = began.elapsed();
    cloud.down()?;
    Ok(Begin { ready, serving })
}

fn wait_until_it_serves(cloud: &Cloud) {
    wait::until("the example serves", SERVING_TIMEOUT, || {
        let one = load::Load::get(
            cloud.gateway,
            "first.localhost",
            "/api/",
            1,
            Duration::from_secs(1),
        );
        let report = load::run(&one).map_err(|error| error.to_string())?;
        if report.ok == 1 {
            Ok(())
        } else {
            Err(format!("{:?}", report.failures))
        }
    });
}

struct AtRest {
    pss_bytes: u64,
    /// Of one core.
    cpu_share: f64,
}

fn at_rest(manifest: &Path, zones: u32) -> Result<AtRest> {
    let mut cloud = Cloud::new(manifest, zones)?;
    cloud.up()?;
    wait_until_it_serves(&cloud);
    let own = cloud.processes();
    let cpu = || {
        own.iter()
            .filter_map(|pid| proc::cpu_time(*pid))
            .sum::<Duration>()
    };
    let (before, began) = (cpu(), Instant::now());
    rest();
    let cpu_share = (cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let pss_bytes = own
        .iter()
        .filter_map(|pid| proc::pss_bytes(*pid).ok())
        .sum();
    cloud.down()?;
    Ok(AtRest {
        pss_bytes,
        cpu_share,
    })
}

#[expect(clippy::disallowed_methods, reason = "rest is what is measured")]
fn rest() {
    std::thread::sleep(REST);
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
