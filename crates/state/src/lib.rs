//! The engines that keep the data of users.
//!
//! An engine is an ordinary workload with a volume: a node runs it as it runs any other, under a user of its own. Its process is `mainland engine`,
//! which finds what it is to be in the file that the node's agent wrote ([`model::state::EngineFile`]) and answers the agent on a Unix socket.
//!
//! | module | what it keeps |
//! |---|---|
//! | [`topic`] | messages: published, pushed to consumers, pulled; on SQLite |
//! | [`postgres`] | a database: a PostgreSQL found on the machine, made, tuned and watched; and its outbox |
//! | [`settings`] | what an engine is told, and told anew while it runs |
//! | [`admin`] | the socket on which it answers its node |
//!
//! [`run`] is the whole process.

pub mod admin;
pub mod postgres;
pub mod settings;
pub mod topic;

use std::ffi::OsString;
use std::process::ExitCode;

use model::state::Engine;

/// `mainland engine`; `words` are those after it.
///
/// | words | what it is |
/// |---|---|
/// | `psql`, `dump`, `load` or `replace`, and arguments | a program of PostgreSQL's, beside a database's engine ([`postgres::tool`](fn@postgres::tool)) |
/// | `init`, a volume and its owner's uid | the making of a database's files, as root ([`postgres::init`]) |
/// | `init-files`, and a folder | what that executes as somebody else ([`postgres::init_files`]) |
/// | `child`, and what an engine gives it | what an engine executes ([`postgres::child`]) |
/// | others, which tell engines apart in a list of processes | the engine that the environment names, until it is asked to end |
///
/// What stops it is written to stderr, which is the instance's log.
pub fn run(words: &[OsString]) -> ExitCode {
    let first = words.first().and_then(|word| word.to_str()).unwrap_or("");
    if first == postgres::child::WORD {
        return postgres::child::main(&words[1..]);
    }
    match (first, words) {
        (postgres::INIT, [_, volume, owner]) => {
            return said(postgres::init(volume.as_ref(), owner));
        }
        (postgres::INIT_FILES, [_, folder]) => {
            return said(postgres::init_files(folder.as_ref()));
        }
        _ => {}
    }
    let settings = settings::Settings::from_environment().map_err(|error| error.to_string());
    match settings {
        Ok(settings) if postgres::is_tool(first) => postgres::tool(first, &words[1..], &settings),
        settings => said(settings.and_then(run_engine)),
    }
}

fn said(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run_engine(settings: settings::Settings) -> Result<(), String> {
    // Refused where there is one already; then that has the words.
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_target(false)
        // The log of an instance has times of its own.
        .without_time()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .log_internal_errors(false)
        .try_init();
    match settings.current().engine {
        Engine::Postgres(_) => postgres::run(settings).map_err(|error| error.to_string()),
        Engine::Topic(_) => topic::run(settings).map_err(|error| error.to_string()),
    }
}
