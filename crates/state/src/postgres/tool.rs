//! `mainland engine psql|dump|load|replace [ARGUMENTS]`: PostgreSQL's own programs, executed beside an engine, with its environment.
//!
//! | word | becomes | as |
//! |---|---|---|
//! | `psql` | `psql` | the owner |
//! | `dump` | `pg_dump` as plain SQL, without owners and privileges, without the outbox | the superuser: a dump is of everything |
//! | `load` | `psql` that reads SQL from stdin, all or nothing, as [`load`] lets it through; archives by `pg_restore` | the owner |
//! | `replace` | the same; what the database holds goes in the same transaction | the owner |
//!
//! Rows that wait in the outbox are left out of a dump: whoever has the database publishes them, and a copy must not publish them again.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use model::ids::ResourceName;
use model::state::{Postgres, role_password};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::access::{hand, superuser};
use super::load::{self, feed};
use super::outbox::Table;
use super::place::Place;
use super::programs::{self, Search};
use super::{Error, declared};
use crate::settings::Settings;

const DUMP: [&str; 3] = ["--no-owner", "--no-privileges", "--format=plain"];

/// An archive as the SQL that a dump would be.
const RESTORE: [&str; 4] = ["--no-owner", "--no-privileges", "--file", "-"];

/// Whether an engine has a tool of that name.
pub fn is_one(name: &str) -> bool {
    matches!(name, "psql" | "dump" | "load" | "replace")
}

/// Becomes the program. Returns when that failed.
pub fn tool(name: &str, arguments: &[OsString], settings: &Settings) -> ExitCode {
    let done = match name {
        "load" | "replace" => loading(name, arguments, settings)
            .map_err(|error| error.to_string())
            .and_then(feed::run),
        _ => command(name, arguments, settings)
            .map_err(|error| error.to_string())
            .and_then(|mut command| Err(command.exec().to_string())),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn loading(
    name: &str,
    arguments: &[OsString],
    settings: &Settings,
) -> Result<feed::Programs, Error> {
    let file = settings.current();
    let (postgres, secret) = declared(&file)?;
    let place = Place::of(settings, &file)?;
    let programs = programs::find(postgres.version, &Search::of_machine())?;
    let outbox = postgres.outbox.as_ref().map(Table::of);
    let emptying = (name == "replace").then(|| load::emptying(&place.database, outbox.as_ref()));
    let restriction = programs
        .psql_restricts(postgres.version)
        .then(|| format!("{:032x}", SmallRng::from_os_rng().random::<u128>()));
    let program = |name: &str| {
        let mut command = Command::new(programs.path(name));
        connect(&mut command, &place, &hand(), secret);
        command
    };
    let mut psql = program("psql");
    psql.args(load::arguments(emptying, restriction))
        .args(arguments);
    let mut restore = program("pg_restore");
    restore.args(RESTORE);
    Ok(feed::Programs {
        psql,
        asking: program("psql"),
        restore,
    })
}

fn command(name: &str, arguments: &[OsString], settings: &Settings) -> Result<Command, Error> {
    let file = settings.current();
    let (postgres, secret) = declared(&file)?;
    let place = Place::of(settings, &file)?;
    let programs = programs::find(postgres.version, &Search::of_machine())?;
    let (program, user, fixed) = match name {
        "psql" => ("psql", hand(), Vec::new()),
        _ => ("pg_dump", superuser(), dump_arguments(postgres)),
    };
    let mut command = Command::new(programs.path(program));
    command.args(fixed).args(arguments);
    connect(&mut command, &place, &user, secret);
    Ok(command)
}

fn dump_arguments(postgres: &Postgres) -> Vec<String> {
    let outbox = postgres.outbox.as_ref().map(Table::of);
    let excluded = outbox.map(|table| format!("--exclude-table={}", table.sql()));
    let fixed = DUMP.map(str::to_owned).into_iter();
    fixed.chain(excluded).collect()
}

fn connect(command: &mut Command, place: &Place, user: &ResourceName, secret: &str) {
    command
        .env("PGHOST", &place.socket)
        .env("PGPORT", place.port.to_string())
        .env("PGUSER", user.as_str())
        .env("PGDATABASE", &place.database)
        .env("PGPASSWORD", role_password(secret, user))
        .env("PGCLIENTENCODING", "UTF8")
        .env("PSQL_HISTORY", "/dev/null")
        .env("PGPASSFILE", "/dev/null")
        .env("PGSERVICEFILE", "/dev/null");
}
