//! CPU and latency per proxied request: our proxy with all its defaults on, nginx, HAProxy, and a forwarder of bare hyper.
//!
//! ```text
//! load (this process, 64 connections) ──▶ contender (processes of its own) ──▶ backend (a process of its own)
//! ```
//!
//! The contenders take turns, several rounds of them, so that what else the machine does meets all alike. Throughput is bounded by
//! the load's own core; the CPU time that the contender's processes used for a request is the steadier figure.
//!
//! - [`contender`]: how each is started, and ended
//! - [`load`]: the closed loop of 64 connections
//! - [`roles`]: backend and bare forwarder
//! - [`ours`]: what our proxy is told

mod contender;
mod load;
mod ours;
mod roles;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use self::contender::{Contender, KINDS};
use super::Role;
use super::table::Table;

const ROUNDS: usize = 3;
const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
const TIME: Duration = Duration::from_secs(4);

/// What one turn of a contender came to.
#[derive(Clone, Copy)]
struct Turn {
    cpu_per_request_us: f64,
    requests_per_second: f64,
    p50: Duration,
    p99: Duration,
}

pub(super) fn run(root: &Path) -> Result<Table> {
    let backend = Contender::backend()?;
    let mut contenders = Vec::new();
    for kind in KINDS {
        match Contender::start(kind, root, backend.address)? {
            Some(contender) => contenders.push((kind, contender, Vec::new())),
            None => eprintln!("{} is not installed: its row is left out", kind.name()),
        }
    }
    for _ in 0..ROUNDS {
        for (_, contender, turns) in &mut contenders {
            turns.push(measure(contender)?);
        }
    }
    let mut table = Table::new(
        "Gateway",
        format!(
            "{CONNECTIONS} connections, each with one request after the other, HTTP/1.1 to a backend that answers with 128 bytes. \
             Medians of {ROUNDS} rounds of {} s.",
            TIME.as_secs()
        ),
        &["proxy", "CPU per request", "requests/s", "p50", "p99"],
    );
    let medians: Vec<_> = contenders
        .iter()
        .map(|(kind, _, turns)| (*kind, median(turns)))
        .collect();
    for (kind, turn) in &medians {
        table.row([
            kind.name().to_owned(),
            format!("{:.1} µs", turn.cpu_per_request_us),
            format!("{:.0}", turn.requests_per_second),
            format!("{:.2?}", turn.p50),
            format!("{:.2?}", turn.p99),
        ]);
    }
    promise(&mut table, &medians);
    Ok(table)
}

fn measure(contender: &Contender) -> Result<Turn> {
    load::run(contender.address, CONNECTIONS, WARM_UP)?;
    let before = contender.cpu_time();
    let report = load::run(contender.address, CONNECTIONS, TIME)?;
    let cpu = contender.cpu_time() - before;
    let requests = report.sorted.len();
    Ok(Turn {
        cpu_per_request_us: cpu.as_secs_f64() * 1e6 / requests as f64,
        requests_per_second: requests as f64 / TIME.as_secs_f64(),
        p50: report.at(0.5),
        p99: report.at(0.99),
    })
}

fn median(turns: &[Turn]) -> Turn {
    let middle = |figure: fn(&Turn) -> f64| {
        let mut figures: Vec<f64> = turns.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Turn {
        cpu_per_request_us: middle(|turn| turn.cpu_per_request_us),
        requests_per_second: middle(|turn| turn.requests_per_second),
        p50: Duration::from_secs_f64(middle(|turn| turn.p50.as_secs_f64())),
        p99: Duration::from_secs_f64(middle(|turn| turn.p99.as_secs_f64())),
    }
}

/// DESIGN section 9: at least level with the best of the peers, and at most 1.15 times a bare forwarder.
fn promise(table: &mut Table, medians: &[(contender::Kind, Turn)]) {
    use contender::Kind;
    let cpu = |wanted: Kind| {
        let found = medians.iter().find(|(kind, _)| *kind == wanted);
        found.map(|(_, turn)| turn.cpu_per_request_us)
    };
    let Some(ours) = cpu(Kind::Mainland) else {
        return;
    };
    if let Some(best) = cpu(Kind::Nginx)
        .into_iter()
        .chain(cpu(Kind::Haproxy))
        .reduce(f64::min)
    {
        let promise = format!("CPU at most that of the better peer ({:.2} ×)", ours / best);
        table.promise(promise, ours <= best);
    }
    if let Some(bare) = cpu(Kind::Bare) {
        let promise = format!("CPU ≤ 1.15 × bare hyper forwarder ({:.2} ×)", ours / bare);
        table.promise(promise, ours <= 1.15 * bare);
    }
}

/// What runs in a process of its own: `role backend ADDRESS`, `role forwarder ADDRESS BACKEND`, `role proxy FOLDER`.
pub(super) fn role(role: Role, words: &[String]) -> Result<()> {
    match (role, words) {
        (Role::Backend, [address]) => roles::backend(address.parse()?),
        (Role::Forwarder, [address, backend]) => {
            roles::forwarder(address.parse()?, backend.parse()?)
        }
        (Role::Proxy, [folder]) => ours::run(Path::new(folder)),
        _ => anyhow::bail!("a role with other words"),
    }
}
