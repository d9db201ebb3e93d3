//! Benchmarks, and the simulation of the whole system.
//!
//! | bench | what it measures | where |
//! |---|---|---|
//! | `floods` | what others notice of a client that means ill, and memory; uploads beside the direct rate | `system::bench::floods` |
//! | `gateway` | CPU and latency per request through the gateway, beside nginx and HAProxy | `system::bench::gateway` |
//! | `plan` | placements a second, zone spread on | `plan::bench` |
//! | `shop` | orders a second of the example store, and where the time of one goes | `system::bench::shop` |
//! | `store` | durable writes a second, beside etcd on the same disk | `system::bench::store`, `store::bench` |
//! | `topics` | durable publishes a second, beside NATS JetStream and RabbitMQ at equal sync | `system::bench::topics` |
//! | `up` | exec to ready and to serving; memory and CPU at rest | `system::bench::up` |
//!
//! What they measure is linked in, and only the optimised build says anything. So the everyday `xtask` has none of it: it runs
//! itself anew, built with `--release --features measure`.

use std::path::Path;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};

#[cfg(feature = "measure")]
mod linked;
#[cfg(feature = "measure")]
mod plan;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// How fast it is, beside its peers in the same run; the table goes to bench/NAME.md too. Fails when a promised number is missed
    Bench {
        name: Bench,
        /// Print JSON instead of the table
        #[arg(long)]
        json: bool,
    },
    /// The whole system from seeds; a seed that fails is told, and fails again
    Sim {
        /// How many seeds
        #[arg(default_value_t = 100)]
        count: u64,
        /// The first of them
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// What others notice of a client that means ill; uploads beside the direct rate
    Floods,
    /// CPU and latency per request through the gateway
    Gateway,
    /// Placements a second on 10,000 nodes
    Plan,
    /// Orders a second of the example store
    Shop,
    /// Durable writes a second
    Store,
    /// Durable publishes a second
    Topics,
    /// From exec to ready, to serving; memory and CPU at rest
    Up,
}

#[cfg(not(feature = "measure"))]
pub(crate) fn run(root: &Path, _: Task) -> Result<()> {
    let build = [
        "run",
        "--release",
        "--package",
        "xtask",
        "--features",
        "measure",
        "--",
    ];
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments = arguments.iter().map(String::as_str);
    crate::step::cargo(
        root,
        &build.into_iter().chain(arguments).collect::<Vec<_>>(),
    )
}

#[cfg(feature = "measure")]
pub(crate) fn run(root: &Path, task: Task) -> Result<()> {
    match task {
        Task::Bench { name, json } => linked::bench(root, name, json),
        Task::Sim { count, seed } => linked::simulate(count, seed),
    }
}
