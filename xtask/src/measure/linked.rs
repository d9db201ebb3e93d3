//! What only the build with `--features measure` has.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use store::sqlite::SqliteStore;
use system::bench::store::{Engine, EngineLoad};
use system::bench::table::Report;
use system::bench::{Place, floods, gateway, shop, topics, up};

use super::{Bench, plan};
use crate::step::cargo;

/// Printed, written to a file of its name in `bench/`, and an error when a number that DESIGN promises is missed.
pub(super) fn bench(root: &Path, name: Bench, json: bool) -> Result<()> {
    let report = measure(root, name)?;
    let text = report.to_markdown();
    match json {
        true => println!("{}", report.to_json()),
        false => println!("{text}"),
    }
    let path = root.join("bench").join(format!("{}.md", report.name));
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    let missed: Vec<String> = report
        .missed()
        .map(|hold| format!("\n  {}: {}", hold.promise, hold.measured))
        .collect();
    ensure!(missed.is_empty(), "missed:{}", missed.concat());
    Ok(())
}

fn measure(root: &Path, name: Bench) -> Result<Report> {
    match name {
        Bench::Floods => floods::run(&built(root)?),
        Bench::Gateway => gateway::run(&built(root)?),
        Bench::Plan => Ok(plan::run()),
        Bench::Shop => shop::run(&built(root)?),
        Bench::Store => system::bench::store::run(&built(root)?, &mut engine),
        Bench::Topics => topics::run(&built(root)?),
        Bench::Up => up::run(&built(root)?),
    }
}

/// Builds what the system's benches start, beside this program; `MAINLAND_BIN` names one that is there already.
fn built(root: &Path) -> Result<Place> {
    if std::env::var_os("MAINLAND_BIN").is_none() {
        build(root)?;
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().context("a program stands in a folder")?;
    Ok(Place {
        root: root.to_owned(),
        // A real disk, where /tmp may be memory.
        scratch: folder.to_owned(),
    })
}

fn build(root: &Path) -> Result<()> {
    let build = [
        "build",
        "--release",
        "--package",
        "mainland",
        "--package",
        "system",
        "--package",
        "shop",
        "--bins",
    ];
    cargo(root, &build)
}

fn engine(load: EngineLoad<'_>) -> Result<Engine> {
    let file = load.folder.join("store.db");
    let store = SqliteStore::open(store::sqlite::Options::new(file))?;
    let options = store::bench::Options {
        clients: load.clients,
        value_bytes: load.value_bytes,
        keys: load.keys,
        warm_up: load.warm_up,
        duration: load.time,
    };
    let report = store::bench::run(Arc::new(store), options)?;
    Ok(Engine {
        per_second: report.writes_per_second,
        p50: report.p50,
        p99: report.p99,
        max: report.max,
    })
}

pub(super) fn simulate(count: u64, seed: u64) -> Result<()> {
    let seeds = seed..seed.saturating_add(count);
    sim::main_loop(seeds).map_err(|failure| {
        let again = format!("run it again: cargo xtask sim 1 --seed {}", failure.seed);
        anyhow::Error::new(failure).context(again)
    })
}
