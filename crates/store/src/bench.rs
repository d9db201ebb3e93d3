//! How many durable writes a second an engine takes, and how long each waits.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{Error, Store, Transaction};

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tasks that each write one record after the other.
    pub clients: usize,
    pub value_bytes: usize,
    /// Different keys, written in turn.
    pub keys: usize,
    pub warm_up: Duration,
    pub duration: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            clients: 64,
            value_bytes: 256,
            keys: 10_000,
            warm_up: Duration::from_millis(500),
            duration: Duration::from_secs(5),
        }
    }
}

/// What was measured, warm-up left out.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub clients: usize,
    pub writes: usize,
    pub writes_per_second: f64,
    pub p50: Duration,
    pub p90: Duration,
    pub p99: Duration,
    pub p999: Duration,
    pub max: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} clients: {:.0} writes/s, p50 {:?}, p90 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
            self.clients, self.writes_per_second, self.p50, self.p90, self.p99, self.p999, self.max
        )
    }
}

/// Runs the clients on a runtime of one thread, so that the engine has the other core.
pub fn run(store: Arc<dyn Store>, options: Options) -> Result<Report, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("the system can start a runtime");
    runtime.block_on(measure(store, options))
}

async fn measure(store: Arc<dyn Store>, options: Options) -> Result<Report, Error> {
    let start = Instant::now() + options.warm_up;
    let clients: Vec<_> = (0..options.clients.max(1))
        .map(|client| tokio::spawn(write_until_the_end(store.clone(), options, client, start)))
        .collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.append(&mut client.await.expect("a client does not panic")?);
    }
    Ok(report(latencies, options))
}

/// One client: the latency of each write that began after `start`.
async fn write_until_the_end(
    store: Arc<dyn Store>,
    options: Options,
    client: usize,
    start: Instant,
) -> Result<Vec<Duration>, Error> {
    let value = Bytes::from(vec![b'x'; options.value_bytes]);
    let end = start + options.duration;
    let mut latencies = Vec::new();
    for turn in 0.. {
        let begun = Instant::now();
        if begun >= end {
            break;
        }
        let key = format!(
            "bench/{:08}",
            (turn * options.clients + client) % options.keys.max(1)
        );
        store
            .transact(Transaction::new().put(key, value.clone()))
            .await?;
        if begun >= start {
            latencies.push(begun.elapsed());
        }
    }
    Ok(latencies)
}

fn report(mut latencies: Vec<Duration>, options: Options) -> Report {
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies
            .get(index.min(latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    Report {
        clients: options.clients,
        writes: latencies.len(),
        writes_per_second: latencies.len() as f64 / options.duration.as_secs_f64(),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
    }
}
