//! One statement for all who ask at the same time.
//!
//! A round trip and a commit cost the same for one row as for fifty. Who asks while nothing is under way is served at once; who asks while
//! a statement is under way is gathered for the next one, so the batches grow with the load and nobody waits when there is none. Each
//! is told after the commit, and told what became of its own.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::database::Error;

/// In one statement.
pub const TOGETHER: usize = 64;
/// Who comes when as many wait is refused.
const WAITING: usize = 1024;
/// Who waits behind a statement that hangs isn't kept for both.
const TOLD_WITHIN: Duration = Duration::from_secs(4);

/// Does one kind of thing.
pub struct Batcher<Asked, Told> {
    waiting: mpsc::Sender<Waiting<Asked, Told>>,
}

struct Waiting<Asked, Told> {
    asked: Asked,
    tell: oneshot::Sender<Result<Told, Error>>,
}

impl<Asked, Told> Batcher<Asked, Told>
where
    Asked: Clone + Send + 'static,
    Told: Send + 'static,
{
    /// `work` does what several ask and tells each, in their order. `gather`: how long the first waits for others; zero where somebody
    /// waits for the answer.
    pub fn new<Work, Doing>(gather: Duration, work: Work) -> Self
    where
        Work: Fn(Vec<Asked>) -> Doing + Send + Sync + 'static,
        Doing: Future<Output = Result<Vec<Told>, Error>> + Send + 'static,
    {
        let (waiting, asked) = mpsc::channel(WAITING);
        tokio::spawn(serve(asked, gather, work));
        Self { waiting }
    }

    pub async fn ask(&self, asked: Asked) -> Result<Told, Error> {
        let (tell, told) = oneshot::channel();
        let waiting = self.waiting.try_send(Waiting { asked, tell });
        waiting.map_err(|_| Error::Unavailable("too many wait for the database".to_owned()))?;
        let lost = |_| Err(Error::Unavailable("what was asked was lost".to_owned()));
        match timeout(TOLD_WITHIN, told).await {
            Ok(told) => told.unwrap_or_else(lost),
            Err(_) => Err(Error::Unavailable("no answer in time".to_owned())),
        }
    }
}

async fn serve<Asked: Clone, Told, Doing>(
    mut queue: mpsc::Receiver<Waiting<Asked, Told>>,
    gather: Duration,
    work: impl Fn(Vec<Asked>) -> Doing,
) where
    Doing: Future<Output = Result<Vec<Told>, Error>>,
{
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, TOGETHER).await > 0 {
        let until = Instant::now() + gather;
        while !gather.is_zero() && batch.len() < TOGETHER {
            let room = TOGETHER - batch.len();
            match timeout_at(until, queue.recv_many(&mut batch, room)).await {
                Ok(came) if came > 0 => {}
                _ => break,
            }
        }
        // Nothing is done for who doesn't wait any more.
        batch.retain(|waiting| !waiting.tell.is_closed());
        do_all(std::mem::take(&mut batch), &work).await;
    }
}

/// What the database refuses to do for all is tried for each: one who asks for the impossible spoils nothing for the others.
async fn do_all<Asked: Clone, Told, Doing>(
    batch: Vec<Waiting<Asked, Told>>,
    work: &impl Fn(Vec<Asked>) -> Doing,
) where
    Doing: Future<Output = Result<Vec<Told>, Error>>,
{
    if batch.is_empty() {
        return;
    }
    let asked = batch.iter().map(|waiting| waiting.asked.clone()).collect();
    match work(asked).await {
        Ok(told) => {
            for (waiting, told) in batch.into_iter().zip(told) {
                let _ = waiting.tell.send(Ok(told));
            }
        }
        Err(error) if batch.len() == 1 || matches!(error, Error::Unavailable(_)) => {
            for waiting in batch {
                let _ = waiting.tell.send(Err(error.clone()));
            }
        }
        Err(_) => {
            for waiting in batch {
                let told = work(vec![waiting.asked]).await;
                let told = told.and_then(|told| told.into_iter().next().ok_or_else(nothing_said));
                let _ = waiting.tell.send(told);
            }
        }
    }
}

fn nothing_said() -> Error {
    Error::Unavailable("nothing was said of it".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Semaphore;

    use super::*;

    /// How many were in each statement.
    type Sizes = Arc<Mutex<Vec<usize>>>;

    /// Doubles numbers, one statement at a time as permits come; a 13 spoils its batch, and a 99 the connection.
    fn doubling() -> (Batcher<i64, i64>, Arc<Semaphore>, Sizes) {
        let go = Arc::new(Semaphore::new(0));
        let sizes = Sizes::default();
        let (may, seen) = (Arc::clone(&go), Arc::clone(&sizes));
        let batcher = Batcher::new(Duration::ZERO, move |asked: Vec<i64>| {
            seen.lock().expect("sizes").push(asked.len());
            let may = Arc::clone(&may);
            async move {
                may.acquire().await.expect("open").forget();
                match asked.as_slice() {
                    all if all.contains(&13) => Err(Error::Rule("thirteen".to_owned())),
                    all if all.contains(&99) => Err(Error::Unavailable("gone".to_owned())),
                    all => Ok(all.iter().map(|number| number * 2).collect()),
                }
            }
        });
        (batcher, go, sizes)
    }

    async fn ask(numbers: &[i64]) -> (Vec<Result<i64, String>>, Vec<usize>) {
        let (batcher, go, sizes) = doubling();
        let batcher = Arc::new(batcher);
        let mut askers = Vec::new();
        for number in numbers.iter().copied() {
            let batcher = Arc::clone(&batcher);
            askers.push(tokio::spawn(async move { batcher.ask(number).await }));
            // It gets as far as it can.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        go.add_permits(100);
        let mut told = Vec::new();
        for asker in askers {
            let one = asker.await.expect("no panic");
            told.push(one.map_err(|error| error.to_string()));
        }
        let sizes = sizes.lock().expect("sizes").clone();
        (told, sizes)
    }

    #[tokio::test]
    async fn the_first_goes_alone_and_the_others_together() {
        let (told, sizes) = ask(&[1, 2, 3, 4]).await;
        assert_eq!(told, [Ok(2), Ok(4), Ok(6), Ok(8)]);
        assert_eq!(sizes, [1, 3]);
    }

    #[tokio::test]
    async fn who_asks_for_the_impossible_spoils_nothing_for_others() {
        let (told, sizes) = ask(&[1, 2, 13, 4]).await;
        let refused = Err("the rule thirteen would be broken".to_owned());
        assert_eq!(told, [Ok(2), Ok(4), refused, Ok(8)]);
        assert_eq!(sizes, [1, 3, 1, 1, 1]);
    }

    #[tokio::test]
    async fn a_database_that_is_gone_is_asked_once_for_all() {
        let (told, sizes) = ask(&[1, 2, 99, 4]).await;
        let gone = || Err("gone".to_owned());
        assert_eq!(told, [Ok(2), gone(), gone(), gone()]);
        assert_eq!(sizes, [1, 3]);
    }
}
