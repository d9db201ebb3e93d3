//! `db list`, `connect`, `dump`, `load`.
//!
//! The programs of PostgreSQL run beside the engine, as its user, and their streams travel as those of `exec` do: this machine needs none of them,
//! and no port of the database is open to it.

mod whole;

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use api::client::Client;
use api::wire::{EngineKind, EngineView};
use model::ids::{ProjectName, ResourceName};
use model::state::{EngineStatus, Table};
use tempfile::NamedTempFile;

use crate::engines;
use crate::exec::{Place, Streams};
use crate::failure::Failure;
use crate::output::{Output, size, span, table, word};
use crate::topic::silence;
use crate::{Globals, assent, notice};

use self::whole::Whole;

const STDIO: &str = "-";
/// The exit code of psql that lost its connection.
const PSQL_DISCONNECTED: u8 = 2;
/// As a shell tells that somebody pressed ctrl-C.
const INTERRUPTED: u8 = 130;
/// Tables that a question names.
const NAMED_MOST: usize = 5;

#[derive(Debug, clap::Subcommand)]
pub enum Db {
    /// List databases
    List(List),
    /// Open psql, or run one statement
    Connect(Connect),
    /// Write a database out as SQL
    Dump(Dump),
    /// Read what `dump` wrote into a database, all or nothing
    Load(Load),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mainland db list\n  mainland db list -o json")]
pub struct List {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "You are the database's owner there. Without a terminal, psql reads standard input.\n\n\
                  Examples:\n  mainland db connect orders-db\n  mainland db connect orders-db -c 'select count(*) from orders'\n  \
                  mainland db connect orders-db -- --csv < report.sql"
)]
pub struct Connect {
    /// The database
    database: ResourceName,
    /// One statement, instead of standard input
    #[arg(short, long, value_name = "SQL")]
    command: Option<String>,
    /// More for psql
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A consistent picture of the moment it began. The outbox is not in it: what waits there is on its way.\n\n\
                  Examples:\n  mainland db dump orders-db > orders.sql\n  mainland db dump orders-db -f orders.sql\n  \
                  mainland db dump orders-db | zstd > orders.sql.zst"
)]
pub struct Dump {
    /// The database
    database: ResourceName,
    /// Into a file, which is there only once it is whole; `-` is standard output, a terminal too
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "One transaction: when anything fails, nothing is loaded, and the line is named. With --replace, all stays as it was then; \
                  what uses the database waits meanwhile. Rows of the outbox stay in any case: they are on their way.\n\n\
                  Examples:\n  mainland db load orders-db orders.sql\n  mainland db dump orders-db | mainland db load copy-db -\n  \
                  mainland db load --replace orders-db orders.sql"
)]
pub struct Load {
    /// The database
    database: ResourceName,
    /// SQL, as `dump` writes it; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// All that the database holds goes, and this takes its place
    #[arg(long)]
    replace: bool,
    /// Do not ask where the database holds something
    #[arg(short, long)]
    yes: bool,
}

impl Db {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self {
            Self::List(command) => command.run(globals).await,
            Self::Connect(command) => command.run(globals).await,
            Self::Dump(command) => command.run(globals).await,
            Self::Load(command) => command.run(globals).await,
        }
    }
}

impl List {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let databases = engines::listed(&client, &project, EngineKind::Database).await?;
        let none = format!("{project} has no databases");
        self.output
            .list(&databases, &none, || database_table(&databases))?;
        Ok(0)
    }
}

/// A line for each database.
pub fn database_table(databases: &[EngineView]) -> String {
    let head = [
        "DATABASE",
        "STATE",
        "VERSION",
        "SIZE",
        "CONNECTIONS",
        "OUTBOX",
        "ACCESS",
        "NOTE",
    ];
    table(head, databases.iter().map(row))
}

fn row(view: &EngineView) -> [String; 8] {
    let access: Vec<_> = view
        .access
        .iter()
        .map(|(service, access)| format!("{service}:{}", word(access)))
        .collect();
    let access = access.join(" ");
    let (name, state) = (view.name.to_string(), word(&view.state));
    let dash = || "-".to_owned();
    let Some(EngineStatus::Postgres {
        version,
        size: bytes,
        connections,
        connections_max,
        outbox_backlog,
        outbox_oldest_ms,
        ..
    }) = &view.status
    else {
        return [
            name,
            state,
            dash(),
            dash(),
            dash(),
            dash(),
            access,
            silence(view),
        ];
    };
    let outbox = match outbox_backlog {
        0 => "0".to_owned(),
        rows => format!("{rows} ({})", span(*outbox_oldest_ms)),
    };
    [
        name,
        state,
        version.clone(),
        size(bytes.0),
        format!("{connections}/{connections_max}"),
        outbox,
        access,
        String::new(),
    ]
}

/// The program of an engine that works on its data: `mainland` is the node's own binary there.
fn tool(name: &str) -> Vec<String> {
    ["mainland", "engine", name].map(str::to_owned).to_vec()
}

/// Where the engine of a database runs. What else the project has by that name is not one.
async fn find(globals: &Globals, name: &ResourceName) -> Result<Place, Failure> {
    let client = globals.client()?;
    if let Ok(project) = globals.project(&client).await {
        is_database(&client, &project, name).await?;
    }
    Place::find(globals, name.as_str()).await
}

/// With the server gone, the node knows.
async fn is_database(
    client: &Client,
    project: &ProjectName,
    name: &ResourceName,
) -> Result<(), Failure> {
    use api::client::Error;
    match client.engine_status(project, name).await {
        Ok(EngineStatus::Topic { .. }) => Err(Failure::failed(format!(
            "`{name}` is a topic [not-found]\n  remedy: `mainland db list` names databases"
        ))),
        Err(Error::Refused(problem)) if problem.status != 504 => {
            Err(Error::Refused(problem).into())
        }
        _ => Ok(()),
    }
}

impl Connect {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let place = find(globals, &self.database).await?;
        let is_asked = self.command.is_some();
        let terminal =
            !is_asked && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let streams = Streams {
            input: (!is_asked).then(|| Box::new(std::io::stdin()) as Box<dyn Read + Send>),
            output: Box::new(std::io::stdout()),
        };
        place.run(self.arguments(), terminal, streams).await
    }

    fn arguments(self) -> Vec<String> {
        let command = self.command.into_iter();
        let command = command.flat_map(|command| ["-c".to_owned(), command]);
        tool("psql")
            .into_iter()
            .chain(command)
            .chain(self.arguments)
            .collect()
    }
}

impl Dump {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        if self.file.is_none() && std::io::stdout().is_terminal() {
            return Err(Failure::usage(
                "a dump is not for a terminal: name a file with -f, redirect it with >, or say -f - for the terminal all the same",
            ));
        }
        let place = find(globals, &self.database).await?;
        match &self.file {
            Some(path) if path.as_os_str() != STDIO => into_file(&place, path).await,
            _ => dump(&place, Box::new(std::io::stdout())).await,
        }
    }
}

async fn dump(place: &Place, output: Box<dyn Write + Send>) -> Result<u8, Failure> {
    let streams = Streams {
        input: None,
        output,
    };
    place.run(tool("dump"), false, streams).await
}

/// What was there stays until the dump is whole.
async fn into_file(place: &Place, path: &Path) -> Result<u8, Failure> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!("{} can't be written: {error}", path.display()))
    };
    // A pipe or a device can't be replaced.
    if std::fs::metadata(path).is_ok_and(|known| !known.is_file()) {
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        return dump(place, Box::new(file)).await;
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Dropped before it has its name, it is removed.
    let file = NamedTempFile::new_in(folder).map_err(failed)?;
    let output = file.reopen().map_err(failed)?;
    let code = tokio::select! {
        code = dump(place, Box::new(output)) => code?,
        _ = tokio::signal::ctrl_c() => INTERRUPTED,
    };
    if code != 0 {
        return Ok(code);
    }
    file.as_file().sync_all().map_err(failed)?;
    let kept = file.persist(path).map_err(|error| failed(error.error))?;
    let bytes = kept.metadata().map_err(failed)?.len();
    notice(&format!("{} has {}", path.display(), size(bytes)));
    Ok(0)
}

impl Load {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let is_stdin = self.file.as_os_str() == STDIO;
        if !is_stdin && self.file.is_dir() {
            return Err(directory(&self.file, &self.database));
        }
        let input: Box<dyn Read + Send> = match is_stdin {
            true => Box::new(Whole::new(std::io::stdin())),
            false => Box::new(Whole::new(File::open(&self.file).map_err(|error| {
                Failure::failed(format!("{} can't be read: {error}", self.file.display()))
            })?)),
        };
        let place = find(globals, &self.database).await?;
        if !self.yes {
            self.ask(globals).await?;
        }
        if is_stdin && std::io::stdin().is_terminal() {
            notice("type SQL, then ctrl-D");
        }
        let streams = Streams {
            input: Some(input),
            output: Box::new(std::io::stdout()),
        };
        let word = if self.replace { "replace" } else { "load" };
        self.tell(place.run(tool(word), false, streams).await?)
    }

    /// psql's own codes mean other things to it.
    fn tell(&self, code: u8) -> Result<u8, Failure> {
        let database = &self.database;
        match (code, self.replace) {
            (0, false) => notice(&format!("{database} is loaded")),
            (0, true) => notice(&format!("{database} is replaced")),
            (PSQL_DISCONNECTED, _) => {
                return Err(Failure::unknown(format!(
                    "PostgreSQL ended the connection; all was loaded into {database} or nothing was: look before you do it again"
                )));
            }
            (_, false) => notice(&format!("nothing was loaded into {database}")),
            (_, true) => notice(&format!("{database} is as it was")),
        }
        Ok(u8::from(code != 0))
    }

    async fn ask(&self, globals: &Globals) -> Result<(), Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let tables = client.tables(&project, &self.database).await?;
        match (self.replace, tables.is_empty()) {
            (false, true) => Ok(()),
            (false, false) => assent(&format!(
                "{} has tables already: {}. Load into it?",
                self.database,
                some_of(&tables)
            )),
            (true, _) => assent(&replacement(&self.database, &tables)),
        }
    }
}

/// pg_dump's format of many files can't be read as a stream.
fn directory(path: &Path, database: &ResourceName) -> Failure {
    let path = path.display();
    let what = match Path::new(&path.to_string()).join("toc.dat").exists() {
        true => "a dump in pg_dump's directory format",
        false => "a directory",
    };
    Failure::failed(format!(
        "{path} is {what}, not one file\n  remedy: pg_restore -f - {path} | mainland db load {database} -"
    ))
}

fn replacement(database: &ResourceName, tables: &[Table]) -> String {
    let held = match tables.is_empty() {
        true => "It has no tables.".to_owned(),
        false => format!("Its tables: {}.", some_of(tables)),
    };
    format!("All that {database} holds goes, for what is loaded. {held} Replace it?")
}

fn some_of(tables: &[Table]) -> String {
    let names: Vec<_> = tables
        .iter()
        .take(NAMED_MOST)
        .map(|table| table.name.as_str())
        .collect();
    let more = match tables.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(command: Option<&str>, arguments: &[&str]) -> Vec<String> {
        let connect = Connect {
            database: "db".parse().unwrap(),
            command: command.map(str::to_owned),
            arguments: arguments.iter().map(|one| (*one).to_owned()).collect(),
        };
        connect.arguments()
    }

    #[test]
    fn psql_is_told_what_was_asked_for() {
        let tool = ["mainland", "engine", "psql"];
        assert_eq!(connect(None, &[]), tool);
        assert_eq!(
            connect(Some("select 1"), &["--csv"])[3..],
            ["-c", "select 1", "--csv"]
        );
    }

    #[test]
    fn a_directory_is_named_with_the_command_that_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let database = "db".parse().unwrap();
        let said = || directory(folder.path(), &database).message;
        assert!(
            said().contains("is a directory, not one file"),
            "{}",
            said()
        );
        std::fs::write(folder.path().join("toc.dat"), "PGDMP").unwrap();
        let remedy = format!(
            "pg_restore -f - {} | mainland db load db -",
            folder.path().display()
        );
        assert!(
            said().contains("directory format") && said().contains(&remedy),
            "{}",
            said()
        );
    }

    #[test]
    fn a_question_names_some_tables() {
        let table = |index: usize| Table {
            schema: "public".to_owned(),
            name: format!("t{index}"),
            rows: 1,
            size: model::units::Bytes(1),
        };
        let tables: Vec<_> = (0..7).map(table).collect();
        let database = "db".parse().unwrap();
        for (tables, expected) in [
            (&tables[..0], "It has no tables."),
            (&tables[..1], "Its tables: t0."),
            (&tables[..], "Its tables: t0, t1, t2, t3, t4 and 2 more."),
        ] {
            assert_eq!(
                replacement(&database, tables),
                format!("All that db holds goes, for what is loaded. {expected} Replace it?")
            );
        }
    }

    #[test]
    fn a_database_is_listed_with_who_may_do_what() {
        let view = |status: serde_json::Value| -> EngineView {
            serde_json::from_value(serde_json::json!({
                "name": "db", "kind": "database", "state": "running", "status": status,
                "access": { "orders": "write", "reports": "read" },
            }))
            .unwrap()
        };
        let silent = database_table(&[view(serde_json::Value::Null)]);
        assert!(silent.contains("no answer"), "{silent}");
        let text = database_table(&[view(serde_json::json!({
            "kind": "postgres", "version": "15.8", "size": "1048576", "connections": 3, "connections_max": 50,
            "outbox_backlog": 4, "outbox_oldest_ms": 9000,
        }))]);
        for part in ["1.0 MiB", "3/50", "4 (9s)", "orders:write reports:read"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
