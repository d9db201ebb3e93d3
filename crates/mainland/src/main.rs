//! The binary; the one place that knows every crate.
//!
//! | module | what it starts |
//! |---|---|
//! | [`up`] | `up`, `down`, `start`, `chaos`: the supervisor of the others on one machine |
//! | [`processes`] | `server`, `agent`, `proxy`, `shim`, `shim-exec`: the production processes |
//! | [`state::run`] | `engine`: what keeps a database or a topic |
//!
//! Everything else that a user types is in the crate `experience`.

mod processes;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use experience::Globals;
use experience::failure::Failure;

/// What a request allocates on one thread the store's writer often frees on another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// From one machine to a whole cloud
#[derive(Debug, Parser)]
#[command(
    name = "mainland",
    version,
    propagate_version = true,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Begin:  mainland up        See:  mainland ps, status, logs, explain        End:  mainland down"
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Up(up::Up),
    Down(up::Down),
    Start(up::Start),
    Chaos(up::Chaos),
    #[command(flatten)]
    Client(experience::Command),
    /// Print the completion script of a shell
    #[command(
        after_help = "Example:\n  mainland completion bash > /etc/bash_completion.d/mainland"
    )]
    Completion {
        shell: clap_complete::Shell,
    },
    /// Print the version, of the server as well if one answers
    #[command(after_help = "Example:\n  mainland version")]
    Version,
    Server(processes::Server),
    Agent(processes::Agent),
}

fn main() -> ExitCode {
    // The processes of an instance's life come first: they are many, and small.
    let mut words = std::env::args_os().skip(1);
    match words.next().as_deref().and_then(|word| word.to_str()) {
        Some("shim") => processes::shim(&words.collect::<Vec<OsString>>()),
        Some("shim-exec") => compute::shim::exec_main(&words.collect::<Vec<OsString>>()),
        Some("engine") => state::run(&words.collect::<Vec<OsString>>()),
        Some("proxy") => processes::proxy(words),
        _ => run(Cli::parse()),
    }
}

fn run(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            Failure::failed(format!("the runtime can't be started: {error}")).print();
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(dispatch(cli));
    // A thread that reads the terminal must not hold the end up.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !failure.message.is_empty() {
                failure.print();
            }
            ExitCode::from(failure.exit_code)
        }
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let globals = cli.globals;
    match cli.command {
        Command::Up(command) => command.run(globals).await,
        Command::Down(command) => command.run(globals).await,
        Command::Start(command) => command.run(globals).await,
        Command::Chaos(command) => command.run(&globals),
        Command::Client(command) => command.run(&globals).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mainland", &mut script);
            experience::output::say(String::from_utf8_lossy(&script).trim_end())?;
            Ok(0)
        }
        Command::Version => version(&globals).await,
        Command::Server(command) => command.run(&globals).await,
        Command::Agent(command) => command.run(&globals).await,
    }
}

async fn version(globals: &Globals) -> Result<u8, Failure> {
    experience::output::say(&format!("mainland {VERSION}"))?;
    if let Ok(client) = globals.client()
        && let Ok(server) = client.version().await
    {
        experience::output::say(&format!(
            "server   {} at {}",
            server.version,
            client.transport()
        ))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
