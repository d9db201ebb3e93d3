//! The last good snapshot on disk, so that a proxy that starts without an agent has a road.
//! It holds keys: mode 0600, replaced by rename.
//!
//! A thread of its own writes it ([`Saver`]): no traffic needs the disk, so a disk that stands still must stop nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::traffic::ProxySnapshot;

const NAME: &str = "snapshot.json";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is not a snapshot: {source}")]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

/// `None` when there is none yet.
pub fn load(directory: &Path) -> Result<Option<ProxySnapshot>, Error> {
    let path = directory.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(other) => return Err(failed("reading", &path)(other)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| Error::Malformed { path, source })
}

/// Keeps the newest snapshot; what came before it and is not written yet is dropped.
pub struct Saver<Kept = ProxySnapshot>(Arc<Desk<Kept>>);

struct Desk<Kept> {
    state: Mutex<State<Kept>>,
    changed: Condvar,
}

struct State<Kept> {
    waiting: Option<Kept>,
    writing: bool,
    over: bool,
}

impl Saver {
    pub fn start(directory: PathBuf) -> io::Result<Self> {
        Self::with(move |snapshot| save(&directory, snapshot))
    }
}

impl<Kept: Send + 'static> Saver<Kept> {
    fn with(save: impl Fn(&Kept) -> Result<(), Error> + Send + 'static) -> io::Result<Self> {
        let desk = Arc::new(Desk {
            state: Mutex::new(State {
                waiting: None,
                writing: false,
                over: false,
            }),
            changed: Condvar::new(),
        });
        let of_thread = desk.clone();
        std::thread::Builder::new()
            .name("snapshots".to_owned())
            .spawn(move || of_thread.run(save))?;
        Ok(Self(desk))
    }

    /// Returns at once.
    pub fn save(&self, snapshot: Kept) {
        self.0.state().waiting = Some(snapshot);
        self.0.changed.notify_all();
    }

    /// Waits until all is written, and no longer than this. Blocks the thread.
    pub fn flush(&self, patience: Duration) {
        let is_busy = |state: &mut State<Kept>| state.writing || state.waiting.is_some();
        let _ = self
            .0
            .changed
            .wait_timeout_while(self.0.state(), patience, is_busy);
    }
}

impl<Kept> Drop for Saver<Kept> {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.changed.notify_all();
    }
}

impl<Kept> Desk<Kept> {
    fn state(&self) -> MutexGuard<'_, State<Kept>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, save: impl Fn(&Kept) -> Result<(), Error>) {
        while let Some(snapshot) = self.next() {
            if let Err(error) = save(&snapshot) {
                tracing::warn!(%error, "the snapshot is in force but not kept");
            }
            self.state().writing = false;
            self.changed.notify_all();
        }
    }

    /// `None`: there is nothing left, and nothing comes any more.
    fn next(&self) -> Option<Kept> {
        let is_idle = |state: &mut State<Kept>| state.waiting.is_none() && !state.over;
        let waited = self.changed.wait_while(self.state(), is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.writing = state.waiting.is_some();
        state.waiting.take()
    }
}

/// Written beside, renamed over: a crash leaves the old or the new one. Not synced: after a power loss the agent sends it again.
fn save(directory: &Path, snapshot: &ProxySnapshot) -> Result<(), Error> {
    let path = directory.join(NAME);
    let beside = directory.join("snapshot.json.new");
    let text = serde_json::to_vec(snapshot).map_err(|source| Error::Malformed {
        path: path.clone(),
        source,
    })?;
    create_private(&beside)
        .and_then(|mut file| file.write_all(&text))
        .map_err(failed("writing", &beside))?;
    fs::rename(&beside, &path).map_err(failed("replacing", &path))
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_disk_that_stands_still_stops_nobody_and_gets_the_newest_at_last() {
        let (go, goes) = mpsc::sync_channel::<()>(1);
        let (saved, kept) = mpsc::sync_channel(2);
        let saver = Saver::with(move |snapshot| {
            let _ = goes.recv();
            let _ = saved.send(*snapshot);
            Ok(())
        })
        .unwrap();
        saver.save(1);
        // The thread has it in hand.
        while saver.0.state().waiting.is_some() {
            std::thread::yield_now();
        }
        for snapshot in 2..100 {
            saver.save(snapshot);
        }
        saver.flush(Duration::from_millis(10));
        assert!(kept.try_recv().is_err(), "nothing is written yet");
        drop(go);
        saver.flush(Duration::from_secs(10));
        let kept: Vec<u32> = kept.try_iter().collect();
        assert_eq!(kept, [1, 99]);
    }
}
