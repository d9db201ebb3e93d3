//! A request on its way through a queue, and the promise of its verdict.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::Error;

/// What a queue carries: a request that first runs and then, later, is told what became of it.
pub(crate) trait Job: Send {
    /// Runs the request. True: keep what it wrote.
    fn run(&mut self, connection: &Connection, path: &Path) -> bool;
    /// Tells the verdict: the request's own, unless what it rests on failed.
    fn tell(self: Box<Self>, fate: Result<(), Error>);
}

pub(crate) struct Request<Work, Told, T, E> {
    work: Option<Work>,
    told: Told,
    outcome: Option<Result<T, E>>,
}

impl<Work, Told, T, E> Request<Work, Told, T, E>
where
    Work: FnOnce(&Connection) -> Result<T, E> + Send,
    Told: FnOnce(Result<T, E>) + Send,
    T: Send,
    E: From<Error> + Send,
{
    pub(crate) fn new(work: Work, told: Told) -> Self {
        Request {
            work: Some(work),
            told,
            outcome: None,
        }
    }
}

impl<Work, Told, T, E> Job for Request<Work, Told, T, E>
where
    Work: FnOnce(&Connection) -> Result<T, E> + Send,
    Told: FnOnce(Result<T, E>) + Send,
    T: Send,
    E: From<Error> + Send,
{
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

    fn tell(self: Box<Self>, fate: Result<(), Error>) {
        let verdict = match (fate, self.outcome) {
            (Err(error), _) => Err(error.into()),
            (Ok(()), Some(outcome)) => outcome,
            (Ok(()), None) => unreachable!("a request is told its fate after it ran"),
        };
        (self.told)(verdict);
    }
}

/// The verdict to come. Await it, or [`wait`](Pending::wait) for it on a plain thread. Dropping it does not undo the request.
pub struct Pending<T, E> {
    receiver: oneshot::Receiver<Result<T, E>>,
    path: PathBuf,
}

impl<T, E: From<Error>> Pending<T, E> {
    pub(crate) fn new(path: PathBuf) -> (oneshot::Sender<Result<T, E>>, Self) {
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
                    path: self.path.clone(),
                }
                .into())
            })
        })
    }
}
