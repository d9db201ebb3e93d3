//! CPU per request, throughput and latency of the gateway, beside nginx and HAProxy in front of the same backend.
//!
//! | module | what it holds |
//! |---|---|
//! | `contestant` | the gateways: started, configured, their processes known |
//! | `wrk` | a closed-loop load that is cheaper than what it loads |
//!
//! Every gateway has one core, and so one worker; the load and the backend have another. They take turns in rounds.

mod contestant;
mod wrk;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use self::contestant::Contestant;
use super::cpu::{Stretch, on_core};
use super::peers::{NGINX, Running, WRK, allow_many_files, configure, free_addresses};
use super::table::{Report, Table, grouped};
use super::{Place, median};
use crate::{cloud, load};

const ROUNDS: usize = 3;
const CONNECTIONS: usize = 64;
const TIME: Duration = Duration::from_secs(5);
/// Requests a second of the open-loop load: well below what any of them can do.
const RATE: u32 = 2000;
const GATEWAY_CORE: usize = 0;
const LOAD_CORE: usize = 1;
const HOST: &str = "bench.localhost";

/// One round with one gateway.
struct Round {
    flat_out: Option<FlatOut>,
    steady: Steady,
}

/// As fast as it can, the load waiting for each answer.
#[derive(Clone, Copy)]
struct FlatOut {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    failed: u64,
    cpu_each: Duration,
}

/// On a schedule that does not wait.
#[derive(Clone, Copy)]
struct Steady {
    p50_ms: f64,
    p99_ms: f64,
    failed: u64,
    cpu_each: Duration,
}

pub fn run(place: &Place) -> Result<Report> {
    allow_many_files()?;
    let folder = tempfile::tempdir_in(&place.scratch).context("a folder for the peers")?;
    let mut report = Report::new("gateway", "Gateway");
    introduce(&mut report);
    let wrk = WRK.find(&place.root);
    let found = wrk.as_ref().map_or("missing", |wrk| &wrk.version);
    report.fact("load", found);
    let [address] = free_addresses()?;
    let _backend = backend(place, folder.path(), address)?;
    let contestants = contestant::all(place, folder.path(), address, &mut report)?;
    let mut rounds: Vec<Vec<Round>> = contestants.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (one, rounds) in contestants.iter().zip(&mut rounds) {
            let flat_out = match &wrk {
                Some(wrk) => Some(flat_out(&wrk.path, one)?),
                None => None,
            };
            let steady = steady(one)?;
            rounds.push(Round { flat_out, steady });
        }
    }
    report.tables.push(table(&contestants, &rounds));
    Ok(report)
}

fn introduce(report: &mut Report) {
    report.say(format!(
        "HTTP/1.1 with connections kept on both sides, a small answer from one backend (nginx, `return 200`), no log of requests, retries on, one \
         worker each on a core of its own; load and backend share another. Flat out: wrk with {CONNECTIONS} connections, {} s. Steady: {} requests/s, \
         open-loop, latency from the scheduled time. {ROUNDS} rounds in turn, medians. CPU is user and system time of the gateway's own processes, \
         divided by the requests.",
        TIME.as_secs(),
        grouped(f64::from(RATE)),
    ));
    report.say("No number is held here yet.");
    report.fact("peers' configurations", "bench/peers");
}

/// What answers behind every gateway.
fn backend(place: &Place, folder: &Path, address: SocketAddr) -> Result<Running> {
    let nginx = NGINX
        .find(&place.root)
        .context("no backend without nginx")?;
    let values = [
        ("BACKEND", address.to_string()),
        ("FOLDER", folder.display().to_string()),
    ];
    let configuration = configure(&place.root, "backend.conf", &values, folder)?;
    let mut command = Command::new(nginx.path);
    command.args(["-e", "stderr", "-c"]).arg(configuration);
    let mut running = on_core(LOAD_CORE, || {
        Running::start("backend", &mut command, folder)
    })?;
    running.until_accepting(address)?;
    Ok(running)
}

fn flat_out(wrk: &Path, one: &Contestant) -> Result<FlatOut> {
    let stretch = Stretch::begin(one.processes());
    let report = on_core(LOAD_CORE, || {
        wrk::run(wrk, one.address, HOST, CONNECTIONS, TIME)
    })?;
    Ok(FlatOut {
        per_second: report.per_second,
        p50: report.p50,
        p99: report.p99,
        failed: report.failed,
        cpu_each: stretch.used().div_f64(report.requests as f64),
    })
}

fn steady(one: &Contestant) -> Result<Steady> {
    let load = load::Load::get(one.address, HOST, "/", RATE, TIME);
    let stretch = Stretch::begin(one.processes());
    let running = on_core(LOAD_CORE, || load::start(&cloud::load_program(), &load))?;
    let report = running.finish()?;
    if report.failed > 0 {
        eprintln!("{}: {:?}", one.name, report.failures);
    }
    Ok(Steady {
        p50_ms: report.p50_ms,
        p99_ms: report.p99_ms,
        failed: report.failed,
        cpu_each: stretch.used().div_f64(report.sent as f64),
    })
}

fn table(contestants: &[Contestant], rounds: &[Vec<Round>]) -> Table {
    let mut table = Table::new(&[
        "gateway",
        "CPU/request flat out",
        "× best peer",
        "requests/s",
        "p50",
        "p99",
        "CPU/request steady",
        "p50",
        "p99",
        "failed",
    ]);
    let best = best_peer(rounds);
    for (one, rounds) in contestants.iter().zip(rounds) {
        let mut row = vec![one.name.to_owned()];
        row.extend(flat_out_cells(rounds, best));
        row.extend(steady_cells(rounds));
        row.push(failed(rounds).to_string());
        table.row(row);
    }
    table
}

/// The lowest CPU per request flat out of the peers, who stand behind Mainland and the bare forwarder.
fn best_peer(rounds: &[Vec<Round>]) -> Option<f64> {
    let peers = rounds
        .iter()
        .skip(2)
        .filter_map(|rounds| cpu_flat_out(rounds));
    peers.min_by(f64::total_cmp)
}

fn cpu_flat_out(rounds: &[Round]) -> Option<f64> {
    let all: Option<Vec<f64>> = rounds
        .iter()
        .map(|round| Some(round.flat_out?.cpu_each.as_secs_f64()))
        .collect();
    all.map(median)
}

fn flat_out_cells(rounds: &[Round], best: Option<f64>) -> Vec<String> {
    let Some(cpu) = cpu_flat_out(rounds) else {
        return vec!["not measured".to_owned(); 5];
    };
    let of = |value: fn(&FlatOut) -> f64| {
        let all = rounds.iter().filter_map(|round| round.flat_out.as_ref());
        median(all.map(value))
    };
    vec![
        micros(cpu),
        best.map_or(String::new(), |best| format!("{:.2}", cpu / best)),
        grouped(of(|one| one.per_second)),
        millis(of(|one| one.p50.as_secs_f64() * 1e3)),
        millis(of(|one| one.p99.as_secs_f64() * 1e3)),
    ]
}

fn steady_cells(rounds: &[Round]) -> Vec<String> {
    let of = |value: fn(&Steady) -> f64| median(rounds.iter().map(|round| value(&round.steady)));
    vec![
        micros(of(|one| one.cpu_each.as_secs_f64())),
        millis(of(|one| one.p50_ms)),
        millis(of(|one| one.p99_ms)),
    ]
}

fn failed(rounds: &[Round]) -> u64 {
    let failed = |round: &Round| round.steady.failed + round.flat_out.map_or(0, |one| one.failed);
    rounds.iter().map(failed).sum()
}

fn micros(seconds: f64) -> String {
    format!("{:.1} µs", seconds * 1e6)
}

fn millis(milliseconds: f64) -> String {
    format!("{milliseconds:.2} ms")
}
