//! Durable writes a second, each synced before it is acknowledged: the engine alone, and etcd on the same disk in the same run.

use std::sync::Arc;
use std::time::Duration;

use ::store::bench::{Options, Report};
use ::store::sqlite::SqliteStore;
use anyhow::{Context as _, Result};

use super::etcd::Etcd;
use super::table::Table;

/// DESIGN's number for the engine alone, as a multiple of single-node etcd over the wire.
const ENGINE_TIMES: f64 = 10.0;

pub(super) fn run() -> Result<Table> {
    let options = Options {
        duration: Duration::from_secs(5),
        ..Options::default()
    };
    let mut table = Table::new(
        "Durable writes",
        format!(
            "{} clients that each write one value of {} bytes after the other, {} s each, one after the other on the same disk.",
            options.clients,
            options.value_bytes,
            options.duration.as_secs()
        ),
        &["what", "writes/s", "p50", "p99", "max"],
    );
    // Beside the program itself: /tmp may be memory, where a sync costs nothing.
    let here = std::env::current_exe()?;
    let here = here.parent().context("a program stands in a folder")?;
    let folder = tempfile::tempdir_in(here)?;
    let engine = engine(folder.path(), options)?;
    row(&mut table, "the engine alone (SQLite)", &engine);
    match Etcd::start(&folder.path().join("etcd"))? {
        None => eprintln!("etcd is not installed: its row is left out"),
        Some(etcd) => {
            let peer = etcd.measure(options)?;
            row(&mut table, "etcd, one node, gRPC over loopback", &peer);
            let times = engine.writes_per_second / peer.writes_per_second;
            let promise = format!("the engine alone ≥ 10 × etcd ({times:.1} ×)");
            table.promise(promise, times >= ENGINE_TIMES);
        }
    }
    Ok(table)
}

fn engine(folder: &std::path::Path, options: Options) -> Result<Report> {
    let store = SqliteStore::open(::store::sqlite::Options::new(folder.join("store.db")))?;
    Ok(::store::bench::run(Arc::new(store), options)?)
}

fn row(table: &mut Table, what: &str, report: &Report) {
    table.row([
        what.to_owned(),
        format!("{:.0}", report.writes_per_second),
        format!("{:.2?}", report.p50),
        format!("{:.2?}", report.p99),
        format!("{:.2?}", report.max),
    ]);
}
