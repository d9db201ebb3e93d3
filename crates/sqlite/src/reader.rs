//! A reader thread: each request sees one snapshot.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use rusqlite::Connection;

use crate::Error;
use crate::job::Job;

pub(crate) fn spawn(
    connection: Connection,
    queue: Receiver<Box<dyn Job>>,
    path: Arc<Path>,
) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name("sqlite-reader".into())
        .spawn(move || {
            for job in queue {
                answer(&connection, &path, job);
            }
        })
        .expect("the system can start a thread")
}

fn answer(connection: &Connection, path: &Path, mut job: Box<dyn Job>) {
    let begun = connection
        .prepare_cached("BEGIN")
        .and_then(|mut statement| statement.execute([]));
    if let Err(error) = begun {
        return job.tell(Err(Error::from_sqlite(path, &error)));
    }
    job.run(connection, path);
    let ended = connection
        .prepare_cached("ROLLBACK")
        .and_then(|mut statement| statement.execute([]));
    if let Err(error) = ended
        && !connection.is_autocommit()
    {
        tracing::error!(path = %path.display(), %error, "a snapshot could not be released");
    }
    job.tell(Ok(()));
}
