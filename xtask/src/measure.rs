//! Benchmarks, and the simulation of the whole system.
//!
//! | module | what it measures | peers |
//! |---|---|---|
//! | `gateway` | CPU and latency per request through the proxy | nginx, HAProxy, a bare hyper forwarder |
//! | `plan` | placements a second, zone spread on | (kube-scheduler, Nomad: published) |
//! | `store` | durable writes a second, 64 clients | etcd on the same disk in the same run |
//! | `up` | exec to ready and to the example serving; memory and CPU at rest | |
//!
//! What they measure is linked in, and only the optimised build says anything. So the everyday `xtask` has none of it: it runs
//! itself anew, built with `--release --features measure`.

use std::path::Path;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};

#[cfg(feature = "measure")]
mod etcd;
#[cfg(feature = "measure")]
mod gateway;
#[cfg(feature = "measure")]
mod plan;
#[cfg(feature = "measure")]
mod store;
#[cfg(feature = "measure")]
mod table;
#[cfg(feature = "measure")]
mod up;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// How fast it is, beside its peers in the same run
    Bench {
        name: Bench,
        /// Write the table to bench/NAME.md too
        #[arg(long)]
        save: bool,
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
    /// What a bench runs beside itself, in a process of its own
    #[command(hide = true)]
    Role { role: Role, words: Vec<String> },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    /// Answers every request
    Backend,
    /// A proxy with nothing on
    Forwarder,
    /// Our proxy
    Proxy,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Bench {
    /// CPU and latency per request through the proxy
    Gateway,
    /// Placements a second on 10,000 nodes
    Plan,
    /// Durable writes a second
    Store,
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
    let (name, save) = match task {
        Task::Bench { name, save } => (name, save),
        Task::Sim { count, seed } => return simulate(count, seed),
        Task::Role { role, words } => return gateway::role(role, &words),
    };
    let (file, table) = match name {
        Bench::Gateway => ("gateway", gateway::run(root)?),
        Bench::Plan => ("plan", plan::run()),
        Bench::Store => ("store", store::run()?),
        Bench::Up => ("up", up::run(root)?),
    };
    let text = table.to_markdown();
    println!("{text}");
    if save {
        let folder = root.join("bench");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{file}.md")), text)?;
    }
    Ok(())
}

#[cfg(feature = "measure")]
fn simulate(count: u64, seed: u64) -> Result<()> {
    let seeds = seed..seed.saturating_add(count);
    sim::main_loop(seeds).map_err(|failure| {
        let again = format!("run it again: cargo xtask sim 1 --seed {}", failure.seed);
        anyhow::Error::new(failure).context(again)
    })
}
