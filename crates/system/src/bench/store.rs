//! Durable writes over the wire: 64 clients, each one write after the other, beside etcd on the same disk in the same run.
//!
//! | module | what it holds |
//! |---|---|
//! | `server` | `mainland server` of our own, and how to put a key |
//! | `etcd` | a single etcd node, and how to put a key in its own protocol |
//!
//! Rounds alternate, so that a disk that becomes slow does so for all. Both servers live throughout; the one that is not asked is idle.

mod etcd;
mod server;

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cpu;
use super::table::{Report, Table, grouped};
use super::wire::{Load, Target, Writes};
use super::{Place, median, wire};

const ROUNDS: usize = 5;
const LOAD: Load = Load {
    clients: 64,
    value_bytes: 256,
    keys: 10_000,
    warm_up: Duration::from_millis(1000),
    time: Duration::from_secs(4),
};
/// As multiples of single-node etcd over the wire: DESIGN's number, and that of `docs/decisions/008-the-engine-alone-four-times-etcd.md`.
const WIRE_TIMES: f64 = 2.0;
const ENGINE_TIMES: f64 = 4.0;
const SYNCS: usize = 200;

/// What the engine alone does, without a server around it.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

/// How the engine is asked to do what [`LOAD`] says: the caller links it, for nothing here knows the inside.
#[derive(Debug, Clone, Copy)]
pub struct EngineLoad<'a> {
    /// A fresh folder.
    pub folder: &'a Path,
    pub clients: usize,
    pub value_bytes: usize,
    pub keys: usize,
    pub warm_up: Duration,
    pub time: Duration,
}

/// Core-seconds for each second of a run.
#[derive(Debug, Clone, Copy)]
struct Cores {
    server: f64,
    client: f64,
}

/// All rounds of all that take part.
#[derive(Default)]
struct Rounds {
    engine: Vec<(Engine, Cores)>,
    mainland: Vec<Writes>,
    etcd: Vec<Writes>,
}

/// Measures; `engine` runs the engine alone.
pub fn run(
    place: &Place,
    engine: &mut dyn FnMut(EngineLoad<'_>) -> Result<Engine>,
) -> Result<Report> {
    let folder = tempfile::tempdir_in(&place.scratch).context("a folder for the data")?;
    let mut report = Report::new("store", "Durable writes");
    introduce(&mut report, folder.path())?;
    let mainland = server::Server::start(folder.path())?;
    let etcd = etcd::Etcd::start(place, folder.path(), &mut report)?;
    let mut rounds = Rounds::default();
    for round in 0..ROUNDS {
        let folder = folder.path().join(format!("engine-{round}"));
        std::fs::create_dir(&folder)?;
        rounds.engine.push(alone(&folder, engine)?);
        rounds
            .mainland
            .push(over_the_wire(mainland.target(), mainland.pid())?);
        if let Some(etcd) = &etcd {
            rounds.etcd.push(over_the_wire(etcd.target(), etcd.pid())?);
        }
    }
    rounds.tell(&mut report);
    Ok(report)
}

/// The engine in this process: its clients are on this thread, the engine on all others.
fn alone(
    folder: &Path,
    engine: &mut dyn FnMut(EngineLoad<'_>) -> Result<Engine>,
) -> Result<(Engine, Cores)> {
    let load = EngineLoad {
        folder,
        clients: LOAD.clients,
        value_bytes: LOAD.value_bytes,
        keys: LOAD.keys,
        warm_up: LOAD.warm_up,
        time: LOAD.time,
    };
    let (all, client, begin) = (
        cpu::of_this_process(),
        cpu::of_this_thread(),
        Instant::now(),
    );
    let done = engine(load)?;
    let client = cpu::of_this_thread() - client;
    let seconds = begin.elapsed().as_secs_f64();
    let cores = Cores {
        server: (cpu::of_this_process() - all)
            .saturating_sub(client)
            .as_secs_f64()
            / seconds,
        client: client.as_secs_f64() / seconds,
    };
    Ok((done, cores))
}

fn over_the_wire(target: Rc<dyn Target>, pid: u32) -> Result<Writes> {
    wire::run(&target, pid, LOAD)
}

fn introduce(report: &mut Report, folder: &Path) -> Result<()> {
    report.say(format!(
        "{} clients write values of {} bytes, each one after the other; a write is answered after it is on the disk. Over the wire each client has \
         an HTTP/2 connection of its own: to `mainland server` it PUTs `/v1/projects/bench/keys/NAME`, to etcd it calls `etcdserverpb.KV/Put` by \
         gRPC. The client is the same code for both and has one thread. {ROUNDS} rounds of {} s in turn, medians.",
        LOAD.clients,
        LOAD.value_bytes,
        LOAD.time.as_secs()
    ));
    let sync = sync_latency(folder)?;
    report.fact("one synced write of 4 KiB", format!("{sync:.0?}, median"));
    report.fact("peer's configuration", "bench/peers/etcd.yaml");
    Ok(())
}

/// What the disk takes for a small write with `fdatasync`: what no durable write one by one can beat.
fn sync_latency(folder: &Path) -> Result<Duration> {
    use std::io::Write as _;
    let mut file = std::fs::File::create(folder.join("sync"))?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let begin = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(Duration::from_secs_f64(median(times)))
}

impl Rounds {
    fn tell(&self, report: &mut Report) {
        let engine = median(self.engine.iter().map(|(one, _)| one.per_second));
        let mainland = median(self.mainland.iter().map(|one| one.per_second));
        let etcd =
            (!self.etcd.is_empty()).then(|| median(self.etcd.iter().map(|one| one.per_second)));
        report.tables.push(self.table(etcd));
        hold(report, "over the wire", mainland, WIRE_TIMES, etcd);
        hold(report, "the engine alone", engine, ENGINE_TIMES, etcd);
    }

    fn table(&self, etcd: Option<f64>) -> Table {
        let mut table = Table::new(&[
            "what",
            "writes/s",
            "× etcd",
            "each round",
            "p50",
            "p99",
            "max",
            "server CPU / write",
            "client CPU / write",
            "cores: server + client",
        ]);
        table.row(engine_row(&self.engine, etcd));
        table.row(wire_row("mainland server, HTTP/2", &self.mainland, etcd));
        if !self.etcd.is_empty() {
            table.row(wire_row("etcd, gRPC", &self.etcd, etcd));
        }
        table
    }
}

fn hold(report: &mut Report, what: &str, rate: f64, times: f64, etcd: Option<f64>) {
    let promise = format!("{what} ≥ {times} × etcd");
    match etcd {
        Some(etcd) => {
            let measured = format!("{:.2} ×", rate / etcd);
            report.hold(promise, measured, rate >= times * etcd);
        }
        None => report.hold(promise, "not measured: etcd is missing", false),
    }
}

fn engine_row(rounds: &[(Engine, Cores)], etcd: Option<f64>) -> Vec<String> {
    let of = |value: fn(&(Engine, Cores)) -> f64| median(rounds.iter().map(value));
    let mut row = rates(
        "the engine alone (SQLite)",
        rounds.iter().map(|(one, _)| one.per_second).collect(),
        etcd,
    );
    row.extend([
        millis(of(|(one, _)| one.p50.as_secs_f64())),
        millis(of(|(one, _)| one.p99.as_secs_f64())),
        millis(of(|(one, _)| one.max.as_secs_f64())),
        micros(of(|(one, cores)| cores.server / one.per_second)),
        micros(of(|(one, cores)| cores.client / one.per_second)),
        format!(
            "{:.2} + {:.2}",
            of(|(_, cores)| cores.server),
            of(|(_, cores)| cores.client)
        ),
    ]);
    row
}

fn wire_row(what: &str, rounds: &[Writes], etcd: Option<f64>) -> Vec<String> {
    let of = |value: fn(&Writes) -> f64| median(rounds.iter().map(value));
    let mut row = rates(
        what,
        rounds.iter().map(|one| one.per_second).collect(),
        etcd,
    );
    row.extend([
        millis(of(|one| one.p50.as_secs_f64())),
        millis(of(|one| one.p99.as_secs_f64())),
        millis(of(|one| one.max.as_secs_f64())),
        micros(of(|one| one.server_cpu.as_secs_f64())),
        micros(of(|one| one.client_cpu.as_secs_f64())),
        format!(
            "{:.2} + {:.2}",
            of(|one| one.server_cores),
            of(|one| one.client_cores)
        ),
    ]);
    row
}

/// Name, median, ratio and each round.
fn rates(what: &str, rates: Vec<f64>, etcd: Option<f64>) -> Vec<String> {
    let middle = median(rates.iter().copied());
    let times = etcd.map_or(String::new(), |etcd| format!("{:.2}", middle / etcd));
    let thousands = rates.iter().map(|rate| format!("{:.1}", rate / 1000.0));
    let each = format!("{} k", thousands.collect::<Vec<_>>().join(" "));
    vec![what.to_owned(), grouped(middle), times, each]
}

fn millis(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

fn micros(seconds: f64) -> String {
    format!("{:.1} µs", seconds * 1e6)
}
