//! A request on its way through a queue, and the promise of its verdict.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::Error;

/// What a queue carries: a request that first runs, then learns what became of it, and then tells who asked.
pub(crate) trait Job: Send {
    fn steps(&self) -> Steps;
    /// Runs the request. True: keep what it wrote.
    fn run(&mut self, connection: &Connection, path: &Path) -> bool;
    /// Makes the verdict: the request's own, unless what it rests on failed.
    fn settle(&mut self, fate: Result<(), Error>);
    /// Makes the verdict of a request that never ran.
    fn refuse(&mut self, reason: Error);
    /// Hands the verdict over to who waits for it.
    fn deliver(self: Box<Self>);
    /// The runtime whose task waits, if the verdict may be handed over there.
    fn home(&self) -> Option<&Handle>;
}

impl dyn Job {
    pub(crate) fn tell(mut self: Box<Self>, fate: Result<(), Error>) {
        self.settle(fate);
        self.deliver();
    }
}

/// How much a write does, which says what undoing it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// At most one row changes, and nothing can fail after that: SQLite itself undoes a failing statement. Were the promise
    /// broken, the whole transaction would be given up.
    One,
    /// A savepoint holds the state before.
    Many,
}

pub(crate) struct Request<Work, After, T, Answer, E> {
    steps: Steps,
    work: Option<Work>,
    after: Option<After>,
    outcome: Option<Result<T, E>>,
    verdict: Option<Result<Answer, E>>,
    sender: oneshot::Sender<Result<Answer, E>>,
    home: Option<Handle>,
}

impl<Work, After, T, Answer, E> Request<Work, After, T, Answer, E>
where
    Work: FnOnce(&Connection) -> Result<T, E> + Send,
    After: FnOnce(Result<T, E>) -> Result<Answer, E> + Send,
    T: Send,
    Answer: Send,
    E: From<Error> + Send,
{
    pub(crate) fn new(
        steps: Steps,
        work: Work,
        after: After,
        sender: oneshot::Sender<Result<Answer, E>>,
    ) -> Self {
        Request {
            steps,
            work: Some(work),
            after: Some(after),
            outcome: None,
            verdict: None,
            sender,
            home: None,
        }
    }

    /// Lets a task of this runtime, if we are in one, hand the verdict over.
    pub(crate) fn at_home(self) -> Self {
        Request {
            home: Handle::try_current().ok(),
            ..self
        }
    }
}

impl<Work, After, T, Answer, E> Job for Request<Work, After, T, Answer, E>
where
    Work: FnOnce(&Connection) -> Result<T, E> + Send,
    After: FnOnce(Result<T, E>) -> Result<Answer, E> + Send,
    T: Send,
    Answer: Send,
    E: From<Error> + Send,
{
    fn steps(&self) -> Steps {
        self.steps
    }

    fn run(&mut self, connection: &Connection, path: &Path) -> bool {
        let Some(work) = self.work.take() else {
            return false;
        };
        // A panic is one request's bug; the thread serves all the others.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(connection))).unwrap_or_else(|_| {
            let detail = "the request panicked".to_owned();
            Err(Error::Request {
                path: path.to_owned(),
                detail,
            }
            .into())
        });
        let keep = outcome.is_ok();
        self.outcome = Some(outcome);
        keep
    }

    fn settle(&mut self, fate: Result<(), Error>) {
        let outcome = match (fate, self.outcome.take()) {
            (Err(error), _) => Err(error.into()),
            (Ok(()), Some(outcome)) => outcome,
            (Ok(()), None) => unreachable!("a request is told its fate after it ran"),
        };
        self.verdict = self.after.take().map(|after| after(outcome));
    }

    fn refuse(&mut self, reason: Error) {
        self.verdict = Some(Err(reason.into()));
    }

    fn deliver(self: Box<Self>) {
        if let Some(verdict) = self.verdict {
            let _ = self.sender.send(verdict);
        }
    }

    fn home(&self) -> Option<&Handle> {
        self.home.as_ref()
    }
}

/// Hands verdicts over: those for one runtime by a task of its own there, which wakes it once and not for each.
pub(crate) fn deliver_all(mut jobs: Vec<Box<dyn Job>>) {
    while let Some(first) = jobs.first() {
        let home = first.home().cloned();
        let id = home.as_ref().map(Handle::id);
        let (here, elsewhere) = jobs
            .into_iter()
            .partition(|job| job.home().map(Handle::id) == id);
        jobs = elsewhere;
        match home {
            Some(home) => drop(home.spawn(async move { deliver_each(here) })),
            None => deliver_each(here),
        }
    }
}

fn deliver_each(jobs: Vec<Box<dyn Job>>) {
    for job in jobs {
        job.deliver();
    }
}

/// The verdict to come. Await it, or [`wait`](Pending::wait) for it on a plain thread. Dropping it does not undo the request.
pub struct Pending<T, E> {
    receiver: oneshot::Receiver<Result<T, E>>,
    path: Arc<Path>,
}

impl<T, E: From<Error>> Pending<T, E> {
    pub(crate) fn new(path: Arc<Path>) -> (oneshot::Sender<Result<T, E>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Pending { receiver, path })
    }

    /// Blocks this thread until the verdict is there: for threads, tests, and the moment of opening.
    pub fn wait(mut self) -> Result<T, E> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self).poll(&mut context) {
                Poll::Ready(verdict) => return verdict,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<T, E: From<Error>> Future for Pending<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(context).map(|received| {
            received.unwrap_or_else(|_| {
                Err(Error::Closed {
                    path: self.path.to_path_buf(),
                }
                .into())
            })
        })
    }
}
