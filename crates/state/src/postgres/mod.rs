//! A managed PostgreSQL: found on the machine, made, tuned, watched, and told who may come in.
//!
//! | module | what it knows |
//! |---|---|
//! | [`programs`] | which versions are on the machine |
//! | [`place`] | where the database lies |
//! | [`files`] | making its files, and taking them over from a server before |
//! | [`provision`] | having them made, by root for a user without a name |
//! | [`tuning`] | what it is told at each start |
//! | [`server`], [`child`] | its process |
//! | [`access`], [`password`], [`roles`] | who comes in how |
//! | [`extensions`] | what is made as superuser for those who are none |
//! | [`govern`] | making a running server what was declared |
//! | [`outbox`] | rows that become messages |
//! | [`room`] | whether the disk is full |
//! | [`health`], [`answers`] | what the node is told |
//! | [`tool`](mod@tool), [`load`] | `psql`, `dump`, `load` and `replace` beside it |
//!
//! ```text
//! find ─▶ make files ─▶ end leftovers ─▶ start ─▶ recover ─▶ database, owner, outbox, roles, extensions ─▶ serve ─▶ stop
//! ```
//!
//! When PostgreSQL's process ends, so does the engine's, with a failure that says how: the node starts both again.

mod access;
mod answers;
pub mod child;
mod extensions;
mod files;
mod govern;
mod health;
mod load;
mod outbox;
mod password;
mod place;
mod programs;
mod provision;
mod roles;
mod room;
mod server;
mod tool;
mod tuning;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use model::state::{Engine, EngineFile, Postgres};
use model::units::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

pub use self::programs::installed;
pub use self::provision::{INIT, INIT_FILES, init, init_files};
pub use self::tool::{is_one as is_tool, tool};

use self::access::Access;
use self::answers::{Answers, Purpose};
use self::extensions::Extensions;
use self::govern::Governor;
use self::health::Health;
use self::outbox::{Relay, Table};
use self::place::Place;
use self::programs::{Programs, Search};
use self::server::{Server, how};
use crate::admin;
use crate::settings::Settings;

/// How long the reason of a failure can be asked for that a new start would not mend.
const FAILURE_SHOWN: Duration = Duration::from_secs(3);
/// Between two looks at whether a transaction is open, when it ends.
const QUIET_LOOK: Duration = Duration::from_millis(20);
const QUIET: &str = "select not exists (select from pg_stat_activity
    where backend_type = 'client backend' and xact_start is not null and pid <> pg_backend_pid() and application_name <> 'mainland')";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("PostgreSQL refuses to run as root: an engine runs as a user of its own")]
    Root,
    #[error("this engine was told to be a topic, not a database")]
    NotADatabase,
    #[error("this engine was told no secret to derive its passwords from")]
    NoSecret,
    #[error(transparent)]
    Programs(#[from] programs::Error),
    #[error(transparent)]
    Place(#[from] place::Error),
    #[error(transparent)]
    Files(#[from] files::Error),
    #[error("{doing}: {source}")]
    System {
        doing: &'static str,
        source: std::io::Error,
    },
    #[error("PostgreSQL ended {}", how(*.0))]
    Ended(ExitStatus),
    #[error(
        "PostgreSQL ended {}, and the disk of {} has {left} left, which is too little to write its log: make room, and it starts by itself",
        how(*status), volume.display()
    )]
    Full {
        status: ExitStatus,
        volume: PathBuf,
        left: Bytes,
    },
}

impl Error {
    fn system(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { doing, source }
    }

    /// Of a server that nobody asked to end. It may be for want of room, unless it was killed.
    fn ended(status: ExitStatus, volume: &Path) -> Self {
        let lacking = status.code().and_then(|_| room::lacking(volume));
        match lacking {
            Some(left) => Self::Full {
                status,
                volume: volume.to_owned(),
                left,
            },
            None => Self::Ended(status),
        }
    }

    /// Whether a person should be able to read why before it is tried again.
    fn is_lasting(&self) -> bool {
        !matches!(self, Self::Ended(_))
    }
}

/// The whole process of a database's engine. Returns when it was asked to end.
///
/// # Errors
///
/// It can't be started, or PostgreSQL ended by itself.
pub fn run(settings: Settings) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("starting"))?;
    runtime.block_on(answer_and_keep(settings))
}

async fn answer_and_keep(settings: Settings) -> Result<(), Error> {
    let file = settings.current();
    let health = Arc::new(Health::default());
    let extensions = Arc::new(Extensions::default());
    let table = declared(&file)
        .ok()
        .and_then(|(postgres, _)| postgres.outbox.as_ref().map(Table::of));
    let answers = Arc::new(Answers::new(health.clone(), table, extensions));
    let mut stop = Stop::new()?;
    let socket = settings.socket.clone();
    let router = answers::router(answers.clone());
    tokio::spawn(async move {
        if let Err(error) = admin::serve(&socket, router).await {
            tracing::error!("answering on {}: {error}", socket.display());
        }
    });
    tokio::spawn(settings.clone().follow());
    let outcome = keep(&settings, &file, &answers, &mut stop).await;
    if let Err(error) = &outcome
        && error.is_lasting()
    {
        health.starting(&error.to_string());
        tokio::select! {
            () = stop.asked() => {}
            () = until_tried_again(error) => {}
        }
    }
    outcome
}

async fn until_tried_again(error: &Error) {
    match error {
        Error::Full { volume, .. } => room::made(volume).await,
        _ => tokio::time::sleep(FAILURE_SHOWN).await,
    }
}

/// From nothing to a server that runs, until either is to end.
async fn keep(
    settings: &Settings,
    file: &EngineFile,
    answers: &Answers,
    stop: &mut Stop,
) -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Err(Error::Root);
    }
    let (postgres, secret) = declared(file)?;
    let place = Place::of(settings, file)?;
    files::check_version(&place, postgres.version)?;
    let programs = programs::find(postgres.version, &Search::of_machine())?;
    place.check_socket_folder()?;
    let _alone = place.lock()?;
    tokio::select! {
        prepared = prepare(&place, &programs, file, &answers.health) => prepared?,
        () = stop.asked() => return Ok(()),
    }
    let server = Server::start(&place, &programs).map_err(Error::system("starting PostgreSQL"))?;
    answers.health.server_is(server.pid());
    let access = Access {
        place,
        secret: secret.to_owned(),
        version: postgres.version,
    };
    let _ = answers.access.set(access.clone());
    let attending = attend(settings, &access, postgres, answers);
    watch(server, attending, answers, stop, &access.place.volume).await
}

/// Files that a server can start with.
async fn prepare(
    place: &Place,
    programs: &Programs,
    file: &EngineFile,
    health: &Health,
) -> Result<(), Error> {
    let (postgres, secret) = declared(file)?;
    if !place.files().exists() {
        health.starting("making the files of the database");
    }
    files::make(place, programs, secret).await?;
    match files::was_cut_off(place) {
        true => health.recovers(),
        false => health.starting("starting"),
    }
    files::end_leftovers(place).await?;
    let libraries = extensions::libraries(postgres, programs);
    let configuration = tuning::configuration(file.memory, postgres, &libraries);
    Ok(files::configure(place, &configuration)?)
}

/// What is done beside a running server.
fn attend(
    settings: &Settings,
    access: &Access,
    postgres: &Postgres,
    answers: &Answers,
) -> JoinSet<()> {
    let mut attending = JoinSet::new();
    let governor = Governor {
        access: access.clone(),
        settings: settings.clone(),
        health: answers.health.clone(),
        outbox: answers.outbox.clone(),
        extensions: answers.extensions.clone(),
    };
    attending.spawn(governor.run());
    if let Some(topic) = &postgres.outbox {
        let health = answers.health.clone();
        let relay = Relay::new(access.clone(), settings.clone(), health, topic.clone());
        attending.spawn(relay.run());
    }
    attending
}

async fn watch(
    mut server: Server,
    attending: JoinSet<()>,
    answers: &Answers,
    stop: &mut Stop,
    volume: &Path,
) -> Result<(), Error> {
    let doing = "waiting for PostgreSQL";
    tokio::select! {
        status = server.ended() => {
            return Err(Error::ended(status.map_err(Error::system(doing))?, volume));
        }
        () = stop.asked() => {}
    }
    // One that is open: a server that ends takes no more.
    let client = answers.client(Purpose::Health).await;
    answers.health.starting("stopping");
    // A batch that was on its way to the topic is published again, under the ids it had.
    drop(attending);
    let quiet = async {
        while let Ok(client) = &client {
            match client.query_one(QUIET, &[]).await {
                Ok(row) if !row.get::<_, bool>(0) => tokio::time::sleep(QUIET_LOOK).await,
                _ => break,
            }
        }
    };
    let status = server.stop(quiet).await.map_err(Error::system(doing))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Ended(status)),
    }
}

/// What was declared, with the secret.
fn declared(file: &EngineFile) -> Result<(&Postgres, &str), Error> {
    match (&file.engine, &file.secret) {
        (Engine::Topic(_), _) => Err(Error::NotADatabase),
        (Engine::Postgres(_), None) => Err(Error::NoSecret),
        (Engine::Postgres(postgres), Some(secret)) => Ok((postgres, secret)),
    }
}

/// SIGTERM or SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self, Error> {
        let taken = |kind| signal(kind).map_err(Error::system("taking signals"));
        Ok(Self {
            terminate: taken(SignalKind::terminate())?,
            interrupt: taken(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
