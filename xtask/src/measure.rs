//! Benchmarks and simulations.
//!
//! What they measure is linked in, and only the optimised build says anything. So the everyday `xtask` has none of it: it runs
//! itself anew, built with `--release --features measure`.

use std::path::Path;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Task {}

pub(crate) fn run(_root: &Path, task: Task) -> Result<()> {
    match task {}
}
