//! The embedded engine: one SQLite file, every acknowledged change synced.
//!
//! - [`schema`]: one table of all changes that are not compacted; the newest row of a key is its record.
//! - [`reading`]: records, pages and replays out of a snapshot.
//! - [`known`]: what the writer need not read for each write.
//! - [`writing`]: transactions, the end of leases, compaction; run inside the writer's group commit.

mod known;
mod reading;
mod schema;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::sqlite::{Database, Steps};
use rusqlite::Connection;

use self::known::Known;
use crate::lease::Deadlines;
use crate::transaction::check_key;
use crate::watch::{Hub, Source};
use crate::{
    BoxFuture, Change, Clock, Error, LeaseId, List, MonotonicClock, Page, Record, Revision, Store,
    Transaction, Watcher,
};

#[derive(Clone)]
pub struct Options {
    /// How the file is opened; see [`Options::new`].
    pub database: ::sqlite::Options,
    /// Revisions that stay readable before the newest.
    pub retained_revisions: u64,
    pub clock: Arc<dyn Clock>,
}

impl Options {
    pub fn new(path: impl Into<PathBuf>) -> Options {
        Options {
            database: ::sqlite::Options::new(path, schema::APPLICATION_ID, schema::MIGRATIONS),
            retained_revisions: 10_000,
            clock: Arc::new(MonotonicClock::default()),
        }
    }
}

/// A store in a file. Cheap to clone; the file is closed with the last clone and the last watcher.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    shared: Arc<Shared>,
}

/// What requests need on the writer's thread. Holds no [`Database`], which must not close itself.
struct Shared {
    path: PathBuf,
    hub: Arc<Hub>,
    deadlines: Deadlines,
    retained_revisions: u64,
    clock: Arc<dyn Clock>,
    /// Used by the writer's thread alone; nobody waits for the lock.
    known: Mutex<Known>,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqliteStore {
    /// Opens or creates the file. Blocks for as long as the disk takes.
    pub fn open(options: Options) -> Result<SqliteStore, Error> {
        let path = options.database.path.clone();
        let database = Database::open(options.database)?;
        let named = path.clone();
        let (marks, leases) = database
            .read(move |connection| {
                reading::marks(connection)
                    .and_then(|marks| Ok((marks, reading::leases(connection)?)))
                    .map_err(|error| Failure::from(error).at(&named))
            })
            .wait()?;
        let shared = Shared {
            path,
            hub: Arc::new(Hub::new(marks.newest, marks.compacted)),
            deadlines: Deadlines::default(),
            retained_revisions: options.retained_revisions,
            clock: options.clock,
            known: Mutex::default(),
        };
        let now = shared.clock.now();
        leases
            .into_iter()
            .for_each(|(lease, time_to_live)| shared.deadlines.start(lease, time_to_live, now));
        Ok(SqliteStore {
            inner: Arc::new(Inner {
                database,
                shared: Arc::new(shared),
            }),
        })
    }
}

impl Inner {
    /// Runs `work` in the next transaction; once that is durable, `after` on the writer's thread, in the order of commits.
    async fn write<T: Send + 'static, Answer: Send + 'static>(
        &self,
        steps: Steps,
        work: impl FnOnce(&Connection, &Shared) -> Result<T, Failure> + Send + 'static,
        after: impl FnOnce(T, &Shared) -> Answer + Send + 'static,
    ) -> Result<Answer, Error> {
        let (working, telling) = (self.shared.clone(), self.shared.clone());
        let work = move |connection: &Connection| {
            work(connection, &working).map_err(|failure| failure.at(&working.path))
        };
        let after = move |outcome: Result<T, Error>| {
            if let Err(Error::Unavailable(_) | Error::OutcomeUnknown(_)) = &outcome {
                telling.known().forget();
            }
            outcome.map(|done| after(done, &telling))
        };
        self.database.write_then(steps, work, after).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.shared.clone();
        self.database
            .read(move |connection| work(connection).map_err(|failure| failure.at(&shared.path)))
            .await
    }

    async fn marks(&self) -> Result<reading::Marks, Error> {
        self.read(|connection| Ok(reading::marks(connection)?))
            .await
    }

    /// Deletes the keys of a lease that `deadlines` already refuses.
    async fn end(&self, lease: LeaseId) -> Result<Revision, Error> {
        self.write(
            Steps::Many,
            move |connection, shared| writing::end_lease(connection, shared, lease),
            move |(changes, revision), shared| {
                changes
                    .into_iter()
                    .for_each(|change| shared.hub.publish(change));
                shared.deadlines.forget(lease);
                revision
            },
        )
        .await
    }

    /// One step of compaction; answers how far it came.
    async fn compact_step(&self, through: Revision) -> Result<Revision, Error> {
        self.write(
            Steps::Many,
            move |connection, shared| writing::compact_to(connection, &mut shared.known(), through),
            |reached, shared| {
                shared.hub.compacted(reached);
                reached
            },
        )
        .await
    }
}

/// An error inside a request: the contract's, or SQLite's to be named.
pub(crate) enum Failure {
    Store(Error),
    Sqlite(rusqlite::Error),
}

impl Failure {
    fn at(self, path: &Path) -> Error {
        match self {
            Failure::Store(error) => error,
            Failure::Sqlite(error) => ::sqlite::Error::from_sqlite(path, &error).into(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Sqlite(error)
    }
}

impl Source for Inner {
    fn replay<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<(Vec<Change>, Revision), Error>> {
        let prefix = prefix.to_owned();
        Box::pin(self.read(move |connection| reading::replay(connection, &prefix, after)))
    }
}

impl Store for SqliteStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, Error>> {
        Box::pin(async move {
            check_key(key)?;
            let key = key.to_owned();
            self.inner
                .read(move |connection| Ok(reading::newest(connection, &key)?))
                .await
        })
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Page, Error>> {
        Box::pin(
            self.inner
                .read(move |connection| reading::list(connection, &list)),
        )
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(async move {
            transaction.check()?;
            let steps = match transaction.operations.len() {
                0 | 1 => Steps::One,
                _ => Steps::Many,
            };
            self.inner
                .write(
                    steps,
                    |connection, shared| writing::transact(connection, shared, transaction),
                    |done, shared| done.publish(shared),
                )
                .await
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Watcher, Error>> {
        Box::pin(async move {
            let marks = self.inner.marks().await?;
            self.inner.shared.hub.check(after, marks.newest)?;
            Ok(Watcher::new(
                prefix,
                after,
                self.inner.shared.hub.clone(),
                self.inner.clone(),
            ))
        })
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(async move { Ok(self.inner.marks().await?.newest) })
    }

    fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            // In steps, so that other requests need not wait for all of it.
            while self.inner.compact_step(through).await? < through {}
            Ok(())
        })
    }

    fn grant(&self, time_to_live: Duration) -> BoxFuture<'_, Result<LeaseId, Error>> {
        Box::pin(async move {
            let work =
                move |connection: &Connection, _: &Shared| writing::grant(connection, time_to_live);
            let started = move |lease, shared: &Shared| {
                shared
                    .deadlines
                    .start(lease, time_to_live, shared.clock.now());
                lease
            };
            self.inner.write(Steps::One, work, started).await
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), Error>> {
        let shared = &self.inner.shared;
        Box::pin(async move { shared.deadlines.keep_alive(lease, shared.clock.now()) })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(async move {
            self.inner.shared.deadlines.end(lease)?;
            self.inner.end(lease).await
        })
    }

    fn expire(&self) -> BoxFuture<'_, Result<usize, Error>> {
        Box::pin(async move {
            let due = self
                .inner
                .shared
                .deadlines
                .end_due(self.inner.shared.clock.now());
            for lease in &due {
                self.inner.end(*lease).await?;
            }
            Ok(due.len())
        })
    }
}
