//! The writer thread: group commit and checkpoints.
//!
//! ```text
//! idle ──request──► BEGIN ──► (savepoint ·) work (· release) ──► (more waiting? again, up to `batch`) ──► COMMIT + sync ──► tell all
//!   ▲                              │ SQLite rolled everything back (full disk, I/O error):                            │
//!   │                              └──► tell all so far the error ──► BEGIN                                           │
//!   └──────────────────────────────── checkpoint when the log is long, or after a pause ◄────────────────────────────┘
//! ```

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rusqlite::Connection;

use crate::job::{Job, deliver_all};
use crate::{Error, Steps};

/// Pages in the log from which on it is folded into the file: 4 MiB.
const LOG_PAGES: i64 = 1000;
/// Pages from which on the writer waits for readers, so that the log starts anew: 64 MiB.
const LOG_PAGES_TOO_MANY: i64 = 16_000;
/// A pause this long is used to fold a short log.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) fn spawn(
    connection: Connection,
    queue: Receiver<Box<dyn Job>>,
    batch: usize,
    path: Arc<Path>,
    lock: Option<File>,
) -> JoinHandle<()> {
    let mut writer = Writer {
        connection,
        queue,
        batch: batch.max(1),
        told: Vec::new(),
        path,
        unfolded: true,
    };
    std::thread::Builder::new()
        .name("sqlite-writer".into())
        .spawn(move || {
            writer.serve();
            // The file first, then the lock that guards it.
            drop(writer);
            drop(lock);
        })
        .expect("the system can start a thread")
}

struct Writer {
    connection: Connection,
    queue: Receiver<Box<dyn Job>>,
    batch: usize,
    /// Requests that ran in the open transaction and wait for its fate.
    told: Vec<Box<dyn Job>>,
    path: Arc<Path>,
    /// The log may hold what the file does not.
    unfolded: bool,
}

impl Writer {
    fn serve(&mut self) {
        while let Some(job) = self.next() {
            self.transact(job);
            self.keep_log_short();
        }
        // The next opener finds nothing to recover.
        self.checkpoint("TRUNCATE");
    }

    /// The next request; uses a pause to fold the log. None: all handles are gone and the queue is empty.
    fn next(&mut self) -> Option<Box<dyn Job>> {
        if !self.unfolded {
            return self.queue.recv().ok();
        }
        match self.queue.recv_timeout(PAUSE) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                self.unfolded = false;
                self.checkpoint("PASSIVE");
                self.queue.recv().ok()
            }
        }
    }

    /// One transaction: `first` and whatever waits behind it.
    fn transact(&mut self, first: Box<dyn Job>) {
        if let Err(error) = self.execute("BEGIN IMMEDIATE") {
            return first.tell(Err(Error::from_sqlite(&self.path, &error)));
        }
        let mut waiting = Some(first);
        while let Some(job) = waiting {
            if !self.run(job) {
                return;
            }
            let room = self.told.len() < self.batch;
            waiting = if room {
                self.queue.try_recv().ok()
            } else {
                None
            };
        }
        self.commit();
    }

    /// Runs one request, in a savepoint if it takes many steps. False: the whole transaction is gone, and all in it were told so.
    fn run(&mut self, mut job: Box<dyn Job>) -> bool {
        let steps = job.steps();
        if steps == Steps::Many
            && let Err(error) = self.execute("SAVEPOINT request")
        {
            job.tell(Err(Error::from_sqlite(&self.path, &error)));
            self.abandon(self.rolled_back());
            return false;
        }
        let before = self.connection.total_changes();
        let keep = job.run(&self.connection, &self.path);
        if self.connection.is_autocommit() {
            // SQLite ends the transaction itself after some errors; the request that met it knows which.
            let fate = if keep {
                Err(self.rolled_back())
            } else {
                Ok(())
            };
            job.tell(fate);
            self.abandon(self.rolled_back());
            return false;
        }
        self.told.push(job);
        let settled = match (steps, keep) {
            (Steps::Many, true) => self.execute("RELEASE request"),
            (Steps::Many, false) => self
                .execute("ROLLBACK TO request")
                .and_then(|()| self.execute("RELEASE request")),
            (Steps::One, true) => Ok(()),
            (Steps::One, false) if self.connection.total_changes() == before => Ok(()),
            (Steps::One, false) => {
                self.abandon(self.half_done());
                return false;
            }
        };
        if let Err(error) = settled {
            self.abandon(Error::from_sqlite(&self.path, &error));
            return false;
        }
        true
    }

    fn commit(&mut self) {
        self.unfolded = true;
        match self.execute("COMMIT") {
            Ok(()) => self.conclude(&Ok(())),
            Err(error) => self.abandon(Error::from_commit(&self.path, &error)),
        }
    }

    /// Everyone in the transaction learns its fate.
    fn conclude(&mut self, fate: &Result<(), Error>) {
        let mut told = std::mem::take(&mut self.told);
        for job in &mut told {
            job.settle(fate.clone());
        }
        deliver_all(told);
    }

    /// Gives the transaction up; everyone in it learns why.
    fn abandon(&mut self, reason: Error) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            tracing::error!(path = %self.path.display(), %error, "rolling back failed");
        }
        tracing::warn!(path = %self.path.display(), %reason, requests = self.told.len(), "a transaction was given up");
        self.conclude(&Err(reason));
    }

    /// Why SQLite rolled back by itself: its error reached only the request that met it.
    fn rolled_back(&self) -> Error {
        let detail = "the transaction was rolled back by a full disk or an I/O error".to_owned();
        Error::InputOutput {
            path: self.path.to_path_buf(),
            detail,
        }
    }

    /// Why everything was rolled back: a request that promised one step wrote, and then failed.
    fn half_done(&self) -> Error {
        let detail =
            "a request failed after its one step, which could be undone only with all others"
                .to_owned();
        Error::Request {
            path: self.path.to_path_buf(),
            detail,
        }
    }

    fn keep_log_short(&mut self) {
        match self.log_pages() {
            pages if pages >= LOG_PAGES_TOO_MANY => self.checkpoint("RESTART"),
            pages if pages >= LOG_PAGES => self.checkpoint("PASSIVE"),
            _ => {}
        }
    }

    /// Pages in the log that are not yet in the file.
    fn log_pages(&self) -> i64 {
        self.connection
            .prepare_cached("PRAGMA wal_checkpoint(NOOP)")
            .and_then(|mut statement| {
                statement.query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
            })
            .unwrap_or(0)
    }

    /// A checkpoint that fails costs nothing but a longer log: it is tried again later.
    fn checkpoint(&self, mode: &str) {
        let statement = format!("PRAGMA wal_checkpoint({mode})");
        let folded = self.connection.query_row(&statement, [], |_| Ok(()));
        if let Err(error) = folded {
            tracing::warn!(path = %self.path.display(), %error, "the log could not be folded into the database");
        }
    }

    fn execute(&self, statement: &str) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(statement)?
            .execute([])
            .map(|_| ())
    }
}
