//! The binary; the one place that knows every crate.
//!
//! | module | what it starts |
//! |---|---|
//! | [`up`] | `up`, `down`, `start`, `chaos`: the supervisor of the others on one machine |
//! | [`processes`] | `server`, `agent`, `proxy`, `shim`, `shim-exec`, `shim-watchdog`, `hold`: the production processes |
//! | [`complete`] | nothing: what a shell may offer next |
//! | [`tips`] | nothing: what is said of a command line that is not understood |
//! | [`state::run`] | `engine`: what keeps a database or a topic |
//!
//! Everything else that a user types is in the crate `experience`.

mod complete;
mod log;
mod processes;
mod tips;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use experience::Globals;
use experience::failure::Failure;
use experience::output::Output;

/// What a request allocates on one thread the store's writer often frees on another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// After standard input, output and error.
const FIRST_BESIDES_STANDARD: i32 = 3;

/// A server that is asked for its version and says nothing has none to tell.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);

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
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version, of the server as well if one answers
    #[command(
        after_help = "-o prints {version, server}; `server` is {version, address}, or null where none answers within 2 s.\n\n\
                      Examples:\n  mainland version\n  mainland version -o json | jq -r .version"
    )]
    Version {
        #[command(flatten)]
        output: Output,
    },
    /// Look for what this machine lacks
    Doctor(experience::doctor::Doctor),
    Server(processes::Server),
    Agent(processes::Agent),
}

fn main() -> ExitCode {
    // What the caller has open besides is nobody's business below: least of all that of the programs that run as services.
    close_fds::set_fds_cloexec(FIRST_BESIDES_STANDARD, &[]);
    compute::shim::hear_signals();
    // The processes of an instance's life come first: they are many, and small.
    let mut words = std::env::args_os().skip(1);
    match words.next().as_deref().and_then(|word| word.to_str()) {
        Some("shim") => processes::shim(&words.collect::<Vec<OsString>>()),
        Some("shim-exec") => compute::shim::exec_main(&words.collect::<Vec<OsString>>()),
        Some("hold") => compute::shim::hold_main(),
        Some("shim-watchdog") => compute::shim::watchdog_main(&words.collect::<Vec<OsString>>()),
        Some("engine") => state::run(&words.collect::<Vec<OsString>>()),
        Some("proxy") => processes::proxy(words),
        _ if complete::answered(Cli::command) => ExitCode::SUCCESS,
        _ => match Cli::try_parse() {
            Ok(cli) => run(cli),
            Err(error) => {
                let words = std::env::args_os().skip(1);
                let words: Vec<_> = words.map(|word| word.to_string_lossy().into()).collect();
                tips::explained(error, Cli::command(), &words).exit()
            }
        },
    }
}

fn run(cli: Cli) -> ExitCode {
    let made = match cli.command {
        Command::Agent(_) => node::agent::runtime(),
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build(),
    };
    let runtime = match made {
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
    let globals = cli.globals.proving(processes::proven);
    let globals = globals.knowing_killed(up::killed_nodes);
    match cli.command {
        Command::Up(command) => command.run(globals).await,
        Command::Down(command) => command.run(globals).await,
        Command::Start(command) => command.run(globals).await,
        Command::Chaos(command) => command.run(&globals).await,
        Command::Client(command) => command.run(&globals).await,
        Command::Doctor(command) => command.run(&globals, &state::postgres::installed()).await,
        Command::Completion { shell } => {
            let script = complete::script(&shell.to_string()).map_err(Failure::from_error)?;
            experience::output::say(script.trim())?;
            Ok(0)
        }
        Command::Version { output } => version(&globals, output).await,
        Command::Server(command) => command.run(&globals).await,
        Command::Agent(command) => command.run(&globals).await,
    }
}

/// What programs are told of versions.
#[derive(serde::Serialize)]
struct Versions {
    version: &'static str,
    server: Option<ServerVersion>,
}

#[derive(serde::Serialize)]
struct ServerVersion {
    version: String,
    address: String,
}

async fn version(globals: &Globals, output: Output) -> Result<u8, Failure> {
    let versions = Versions {
        version: VERSION,
        server: server_version(globals).await,
    };
    output.print(&versions, || match &versions.server {
        Some(server) => {
            let ServerVersion { version, address } = server;
            format!("mainland {VERSION}\nserver   {version} at {address}")
        }
        None => format!("mainland {VERSION}"),
    })?;
    Ok(0)
}

async fn server_version(globals: &Globals) -> Option<ServerVersion> {
    let client = globals.client().ok()?;
    let asked = tokio::time::timeout(SERVER_PATIENCE, client.version());
    let version = asked.await.ok()?.ok()?.version;
    let address = client.transport().to_string();
    Some(ServerVersion { version, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Each command, by the words that lead to it.
    fn all(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
        for inner in command.get_subcommands() {
            if inner.get_name() == "help" || inner.is_hide_set() {
                continue;
            }
            let words = format!("{words} {}", inner.get_name());
            found.push((words.clone(), inner.clone()));
            all(inner, &words, found);
        }
    }

    fn commands() -> Vec<(String, clap::Command)> {
        let mut root = Cli::command();
        root.build();
        let mut found = Vec::new();
        all(&root, "mainland", &mut found);
        assert!(found.len() > 50, "{}", found.len());
        found
    }

    #[test]
    fn each_command_says_in_a_line_what_it_is_for_and_shows_an_example() {
        let mut wrong = Vec::new();
        for (words, command) in commands() {
            let about = command.get_about().map(ToString::to_string);
            match about.as_deref() {
                None | Some("") => wrong.push(format!("{words}: no purpose")),
                Some(about) if about.contains('\n') || about.ends_with('.') => {
                    wrong.push(format!("{words}: more than a line: {about}"));
                }
                Some(_) => {}
            }
            let help = command.get_after_help().map(ToString::to_string);
            let example = help.unwrap_or_default();
            // An example is of the command itself.
            let own = words.rsplit(' ').next().unwrap_or_default().to_owned();
            if !example.contains("Example") || !example.contains(&own) {
                wrong.push(format!("{words}: no example"));
            }
            for argument in command.get_arguments() {
                let name = argument.get_id();
                if argument.get_help().is_none() && !argument.is_hide_set() {
                    wrong.push(format!("{words}: {name} is not described"));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn what_reports_takes_an_output_for_programs() {
        // They start, end, follow or hand through something, or print one text that has its own format.
        let others = [
            "up",
            "down",
            "start",
            "chaos kill",
            "server",
            "agent",
            "completion",
            "schema",
            "wait",
            "exec",
            "run",
            "connect",
            "key get",
            "db connect",
            "db dump",
            "db load",
        ];
        let others: Vec<_> = others.iter().map(|one| format!("mainland {one}")).collect();
        for (words, command) in commands() {
            if command.has_subcommands() && words != "mainland nodes" {
                continue;
            }
            let mut arguments = command.get_arguments();
            let takes = arguments.any(|argument| argument.get_long() == Some("output"));
            assert_eq!(takes, !others.contains(&words), "{words}");
        }
    }

    #[test]
    fn what_waits_takes_a_time_to_wait_for() {
        for (words, command) in commands() {
            let has = |name| {
                command
                    .get_arguments()
                    .find(|argument| argument.get_long() == Some(name))
            };
            let Some(timeout) = has("timeout") else {
                assert!(has("wait").is_none(), "{words}");
                continue;
            };
            let help = timeout.get_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("such as"), "{words}: {help}");
        }
    }

    #[test]
    fn absurd_arguments_are_refused_with_their_bounds() {
        let table: [(&[&str], &str); 8] = [
            (&["scale", "web", "999999999"], "0..=1000"),
            (&["scale", "web", "-1"], "-1"),
            (&["wait", "--timeout", "0"], "such as `2s`"),
            (&["wait", "--timeout", "-1"], "such as `2s`"),
            (&["wait", "--timeout", "-1s"], "such as `2s`"),
            (
                &["wait", "--timeout", "99999999999999999999d"],
                "such as `2s`",
            ),
            (&["up", "--zones", "0"], "1..=9"),
            (&["up", "--zones", "100"], "1..=9"),
        ];
        for (words, expected) in table {
            let words = std::iter::once(&"mainland").chain(words);
            let error = Cli::try_parse_from(words.clone()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
            assert!(error.to_string().contains(expected), "{words:?}: {error}");
        }
        let long = ["mainland", "wait", "--timeout", "10000000000h"];
        assert!(Cli::try_parse_from(long).is_ok());
    }
}
