//! Durable publishes: 64 publishers, each one message after the other, beside NATS JetStream and a quorum queue of RabbitMQ, each with a sync before
//! the acknowledgement, on the same disk in the same run.
//!
//! | module | what it holds |
//! |---|---|
//! | `drive` | one closed-loop load for all of them |
//! | `ours` | `mainland engine` as a topic, over HTTP/1.1 |
//! | `nats` | a NATS server with JetStream, in its text protocol |
//! | `rabbitmq` | RabbitMQ, in AMQP 0-9-1 |
//!
//! Every client speaks its protocol itself, in one write and one read for each message, so that none is measured by a cheaper client than another.

mod drive;
mod nats;
mod ours;
mod rabbitmq;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};

use self::drive::{Contestant, Load};
use super::peers::Running;
use super::table::{Report, Table, grouped};
use super::wire::Writes;
use super::{Place, median};

const ROUNDS: usize = 5;
const LOAD: Load = Load {
    publishers: 64,
    message_bytes: 256,
    warm_up: Duration::from_millis(1000),
    time: Duration::from_secs(4),
};
/// As a multiple of NATS JetStream at equal sync.
const TIMES: f64 = 3.0;

/// One that takes part, and its rounds.
struct Part {
    name: &'static str,
    /// What it does about the disk before it acknowledges.
    sync: &'static str,
    running: Running,
    contestant: Rc<dyn Contestant>,
    rounds: Vec<Writes>,
    per_sync: Option<f64>,
}

/// Measures.
pub fn run(place: &Place) -> Result<Report> {
    let folder = tempfile::tempdir_in(&place.scratch).context("a folder for the data")?;
    let mut report = Report::new("topics", "Durable publishes");
    let mut parts = vec![ours::start(folder.path())?];
    parts.extend(nats::start(place, folder.path(), &mut report)?);
    parts.extend(rabbitmq::start(place, folder.path(), &mut report)?);
    for _ in 0..ROUNDS {
        for part in &mut parts {
            let writes = drive::run(&part.contestant, part.running.pid(), LOAD)?;
            part.rounds.push(writes);
        }
    }
    for part in &mut parts {
        part.per_sync = drive::publishes_per_sync(&part.contestant, part.running.pid(), LOAD)?;
    }
    tell(&parts, &mut report);
    Ok(report)
}

fn tell(parts: &[Part], report: &mut Report) {
    report.say(format!(
        "{} publishers, each on a connection of its own, publish messages of {} bytes, each one after the other; each is acknowledged after it is on the \
         disk. Nobody consumes. The load has one thread and is the same code but for the protocol. {ROUNDS} rounds of {} s in turn, medians.",
        LOAD.publishers,
        LOAD.message_bytes,
        LOAD.time.as_secs()
    ));
    report.say(
        "\"Publishes / sync\" was counted in a run of its own under `strace`, which slows everybody down: it shows that all do sync, and how many \
         publishes share one.",
    );
    let rate = |part: &Part| median(part.rounds.iter().map(|one| one.per_second));
    let nats = parts
        .iter()
        .find(|part| part.name.starts_with("NATS"))
        .map(rate);
    report.tables.push(table(parts, nats));
    report.fact(
        "peers' configurations",
        "bench/peers/nats.conf, bench/peers/rabbitmq.conf",
    );
    let promise = format!("a topic ≥ {TIMES} × NATS at equal sync");
    match nats {
        Some(nats) => {
            let ours = rate(&parts[0]);
            report.hold(
                promise,
                format!("{:.2} ×", ours / nats),
                ours >= TIMES * nats,
            );
        }
        None => report.hold(promise, "not measured: nats-server is missing", false),
    }
}

fn table(parts: &[Part], nats: Option<f64>) -> Table {
    let mut table = Table::new(&[
        "what",
        "publishes/s",
        "× NATS",
        "each round",
        "p50",
        "p99",
        "max",
        "server CPU / publish",
        "publishes / sync",
        "before it acknowledges",
    ]);
    for part in parts {
        table.row(row(part, nats));
    }
    table
}

fn row(part: &Part, nats: Option<f64>) -> Vec<String> {
    let of = |value: fn(&Writes) -> f64| median(part.rounds.iter().map(value));
    let rate = of(|one| one.per_second);
    let each = part.rounds.iter();
    let each = each.map(|one| format!("{:.1}", one.per_second / 1000.0));
    let millis = |seconds: f64| format!("{:.2} ms", seconds * 1e3);
    vec![
        part.name.to_owned(),
        grouped(rate),
        nats.map_or(String::new(), |nats| format!("{:.2}", rate / nats)),
        format!("{} k", each.collect::<Vec<_>>().join(" ")),
        millis(of(|one| one.p50.as_secs_f64())),
        millis(of(|one| one.p99.as_secs_f64())),
        millis(of(|one| one.max.as_secs_f64())),
        format!("{:.1} µs", of(|one| one.server_cpu.as_secs_f64()) * 1e6),
        part.per_sync
            .map_or("?".to_owned(), |count| format!("{count:.1}")),
        part.sync.to_owned(),
    ]
}
