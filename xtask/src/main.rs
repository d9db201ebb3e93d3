//! The project's own tasks, the same here and in CI: `cargo xtask check|test|bench|sim|tidy`.
//!
//! | module | task |
//! |---|---|
//! | [`check`] | everything that needs no run: format, clippy, tidy, dependencies |
//! | [`test`] | unit, integration and documentation tests; system tests with `--system` |
//! | [`tidy`] | the rules of the house that neither compiler nor clippy knows |
//! | [`measure`] | benchmarks and simulations, built optimised and apart |
//! | [`step`] | how a task runs programs and says what it runs |

mod check;
mod measure;
mod step;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Format, clippy, tidy, dependencies: everything that needs no run
    Check,
    /// Unit, integration and documentation tests
    Test {
        /// The system tests instead: the built binary against real programs
        #[arg(long)]
        system: bool,
    },
    /// The rules of the house: layers, purity, dead paths, lengths
    Tidy {
        /// Take down what has become shorter in xtask/ratchet.toml
        #[arg(long)]
        update: bool,
    },
    #[command(flatten)]
    Measure(measure::Task),
}

fn main() -> ExitCode {
    let root = root();
    let done = match Arguments::parse().task {
        Task::Check => check::run(&root),
        Task::Test { system: false } => test::run(&root),
        Task::Test { system: true } => test::run_system(&root),
        Task::Tidy { update } => tidy::run(&root, update),
        Task::Measure(task) => measure::run(&root, task),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace: the folder above this crate's own.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("xtask stands in the workspace")
        .to_owned()
}
