//! The handle that users of a database hold.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, TrySendError, bounded};
use rusqlite::Connection;

use crate::job::{Job, Request};
use crate::{Error, Pending, Steps, connection, reader, writer};

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Options {
    pub path: PathBuf,
    /// Marks the file as ours; a file with another id is refused.
    pub application_id: i32,
    /// Run in order, each once in the life of the file. Append only.
    pub migrations: &'static [&'static str],
    /// Threads that read, each with a connection of its own.
    pub readers: usize,
    /// Requests that may wait, for the writer and for the readers each; more are refused with [`Error::Overloaded`].
    pub queue: usize,
    /// Requests that share one transaction and its sync at most.
    pub batch: usize,
    #[cfg(any(test, feature = "testing"))]
    pub testing: crate::testing::Settings,
}

impl Options {
    pub fn new(
        path: impl Into<PathBuf>,
        application_id: i32,
        migrations: &'static [&'static str],
    ) -> Self {
        Options {
            path: path.into(),
            application_id,
            migrations,
            readers: 2,
            queue: 8192,
            batch: 512,
            #[cfg(any(test, feature = "testing"))]
            testing: Default::default(),
        }
    }

    /// The file layer below SQLite; None: the system's.
    pub(crate) fn vfs(&self) -> Option<&str> {
        #[cfg(any(test, feature = "testing"))]
        if let Some(disk) = &self.testing.disk {
            return Some(disk.name());
        }
        None
    }

    pub(crate) fn synchronous(&self) -> &'static str {
        #[cfg(any(test, feature = "testing"))]
        if let Some(weaker) = self.testing.synchronous {
            return weaker;
        }
        "FULL"
    }
}

/// An open database. Cheap to clone; the last clone closes the file, after the requests that are already queued.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

impl Database {
    /// Opens or creates the file, takes its lock, runs missing migrations and starts the threads.
    pub fn open(options: Options) -> Result<Database, Error> {
        let lock = lock(&options)?;
        let writing = connection::open_writer(&options)?;
        let readers = options.readers.max(1);
        let reading: Vec<_> = (0..readers)
            .map(|_| connection::open_reader(&options))
            .collect::<Result<_, _>>()?;
        let (writes, write_queue) = bounded(options.queue);
        let (reads, read_queue) = bounded(options.queue);
        let path: Arc<Path> = options.path.clone().into();
        let mut threads = vec![writer::spawn(
            writing,
            write_queue,
            options.batch,
            path.clone(),
            lock,
        )];
        threads.extend(
            reading
                .into_iter()
                .map(|connection| reader::spawn(connection, read_queue.clone(), path.clone())),
        );
        let queues = Some(Queues { writes, reads });
        Ok(Database {
            inner: Arc::new(Inner {
                path,
                queues,
                threads,
            }),
        })
    }

    /// Queues `work` for the next transaction. An error of `work` undoes what it wrote, and nothing else.
    ///
    /// The verdict comes after the sync, also that of a refused request: it may rest on what others wrote before it in the
    /// same transaction.
    pub fn write<T, E>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Pending<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (sender, pending) = Pending::new(self.inner.path.clone());
        let request = Request::new(Steps::Many, work, std::convert::identity, sender);
        self.inner
            .submit(|queues| &queues.writes, Box::new(request));
        pending
    }

    /// As [`write`](Database::write), and then calls `after` with what became of it, on the writer's thread and in the order of
    /// commits; its answer is the verdict. `after` must be short and must not block. It is not called when the queue is full.
    ///
    /// Asked inside of a tokio runtime, that runtime must run until the verdict is there: a task in it hands verdicts over.
    pub fn write_then<Work, After, T, Answer, E>(
        &self,
        steps: Steps,
        work: Work,
        after: After,
    ) -> impl Future<Output = Result<Answer, E>> + Send + use<Work, After, T, Answer, E>
    where
        Work: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        After: FnOnce(Result<T, E>) -> Result<Answer, E> + Send + 'static,
        T: Send + 'static,
        Answer: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (sender, pending) = Pending::new(self.inner.path.clone());
        let request = Request::new(steps, work, after, sender).at_home();
        self.inner
            .submit(|queues| &queues.writes, Box::new(request));
        pending
    }

    /// Runs `work` on a snapshot of what is committed. It should be short: an old snapshot keeps the log from starting anew.
    pub fn read<T, E>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Pending<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (sender, pending) = Pending::new(self.inner.path.clone());
        let request = Request::new(Steps::Many, work, std::convert::identity, sender);
        self.inner.submit(|queues| &queues.reads, Box::new(request));
        pending
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

struct Queues {
    writes: Sender<Box<dyn Job>>,
    reads: Sender<Box<dyn Job>>,
}

struct Inner {
    path: Arc<Path>,
    queues: Option<Queues>,
    threads: Vec<JoinHandle<()>>,
}

impl Inner {
    fn submit(&self, queue: impl FnOnce(&Queues) -> &Sender<Box<dyn Job>>, job: Box<dyn Job>) {
        let path = || self.path.to_path_buf();
        let (mut job, reason) = match &self.queues {
            None => (job, Error::Closed { path: path() }),
            Some(queues) => match queue(queues).try_send(job) {
                Ok(()) => return,
                Err(TrySendError::Full(job)) => (job, Error::Overloaded { path: path() }),
                Err(TrySendError::Disconnected(job)) => (job, Error::Closed { path: path() }),
            },
        };
        job.refuse(reason);
        job.deliver();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queues = None;
        let current = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // A callback may hold the last handle; a thread cannot wait for itself.
            if thread.thread().id() != current && thread.join().is_err() {
                tracing::error!(path = %self.path.display(), "a database thread panicked");
            }
        }
    }
}

/// Held while the database is open. SQLite itself would let a second process in and make both wait for each other.
fn lock(options: &Options) -> Result<Option<File>, Error> {
    if options.vfs().is_some() {
        return Ok(None);
    }
    let path = options.path.clone();
    let unwritable = |error: std::io::Error| Error::Unwritable {
        path: path.clone(),
        detail: error.to_string(),
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(connection::lock_path(&options.path))
        .map_err(unwritable)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path }),
        Err(TryLockError::Error(error)) => Err(unwritable(error)),
    }
}
