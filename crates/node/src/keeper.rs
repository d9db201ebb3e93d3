//! Writes what the next agent must know, on a thread of its own: nobody who decides waits for the disk.
//!
//! What waits is bounded by what there is to know: of each file only the newest text waits. Texts of one file are written in their order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::layout;

/// Until what the disk refused is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// `None`: the file is to go.
type Text = Option<Vec<u8>>;

/// What waits for the disk.
struct Waiting {
    text: Text,
    /// A machine that loses its power must not forget it.
    durably: bool,
}

pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<PathBuf, Waiting>,
    /// Refused by the disk, and tried again after a while where nothing newer has come.
    refused: BTreeMap<PathBuf, Waiting>,
    try_again_at: Option<Instant>,
    /// The thread has some of it in hand.
    writing: bool,
    failed: Option<String>,
    over: bool,
}

impl Keeper {
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || of_thread.run())?;
        Ok(Self { shared })
    }

    pub fn write(&self, path: PathBuf, value: &impl Serialize) {
        let text = serde_json::to_vec(value).expect("what is kept is plain data");
        self.shared.put(path, Some(text), false);
    }

    /// As [`Keeper::write`], and on the disk itself before anything else is written.
    pub fn write_durably(&self, path: PathBuf, value: &impl Serialize) {
        let text = serde_json::to_vec(value).expect("what is kept is plain data");
        self.shared.put(path, Some(text), true);
    }

    pub fn remove(&self, path: PathBuf) {
        self.shared.put(path, None, false);
    }

    /// What the disk refused since this was asked last.
    pub fn failure(&self) -> Option<String> {
        self.shared.state().failed.take()
    }

    /// Waits until all is written, within bounds: who ends must not leave the disk behind what it did.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        state.try_again();
        self.shared.changed.notify_all();
        while state.writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_all();
    }
}

impl State {
    fn try_again(&mut self) {
        self.try_again_at = None;
        for (path, refused) in std::mem::take(&mut self.refused) {
            self.waiting.entry(path).or_insert(refused);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, path: PathBuf, text: Text, durably: bool) {
        let mut state = self.state();
        state.refused.remove(&path);
        state.waiting.insert(path, Waiting { text, durably });
        drop(state);
        self.changed.notify_all();
    }

    fn run(&self) {
        while let Some((path, waiting)) = self.next() {
            let done = write(&path, waiting.text.as_deref(), waiting.durably);
            let mut state = self.state();
            state.writing = false;
            if let Err(error) = done {
                state.failed = Some(error.to_string());
                if !state.waiting.contains_key(&path) {
                    state.refused.insert(path, waiting);
                    let again_at = Instant::now() + AGAIN_AFTER;
                    state.try_again_at.get_or_insert(again_at);
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<(PathBuf, Waiting)> {
        let mut state = self.state();
        loop {
            let is_due = |again_at| Instant::now() >= again_at;
            if state.try_again_at.is_some_and(is_due) {
                state.try_again();
            }
            if let Some(next) = state.waiting.pop_first() {
                state.writing = true;
                return Some(next);
            }
            if state.over {
                return None;
            }
            state = match state.try_again_at {
                None => {
                    let woken = self.changed.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
                Some(again_at) => {
                    let left = again_at.saturating_duration_since(Instant::now());
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

fn write(path: &Path, text: Option<&[u8]>, durably: bool) -> Result<(), layout::Error> {
    match text {
        Some(text) => {
            if let Some(folder) = path.parent() {
                layout::make_passage(folder)?;
            }
            match durably {
                true => layout::write_text_durably(path, text),
                false => layout::write_text(path, text),
            }
        }
        None => {
            layout::remove(path);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that was full, or mounted read-only for a while.
    #[test]
    fn what_the_disk_refused_is_tried_again_until_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("project/web-1.json");
        // Its folder can't be made.
        std::fs::write(folder.path().join("project"), "in the way").unwrap();
        let keeper = Keeper::start().unwrap();
        keeper.write(path.clone(), &1);
        keeper.flush(Duration::from_secs(10));
        assert!(keeper.failure().is_some() && !path.exists());
        std::fs::remove_file(folder.path().join("project")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while layout::read::<u32>(&path).ok().flatten() != Some(1) {
            assert!(Instant::now() < deadline, "it is not tried again");
            std::thread::yield_now();
        }
        // What is newer is not written over by what was refused before.
        std::fs::remove_dir_all(folder.path().join("project")).unwrap();
        std::fs::write(folder.path().join("project"), "in the way").unwrap();
        keeper.write(path.clone(), &2);
        keeper.flush(Duration::from_secs(10));
        std::fs::remove_file(folder.path().join("project")).unwrap();
        keeper.write(path.clone(), &3);
        keeper.flush(Duration::from_secs(10));
        assert_eq!(layout::read::<u32>(&path).unwrap(), Some(3));
    }

    #[test]
    fn nobody_waits_for_a_disk_that_stands_still_and_the_newest_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (slow, other) = (
            folder.path().join("slow.json"),
            folder.path().join("z.json"),
        );
        // Whoever opens it to write waits until somebody reads.
        let fifo = folder.path().join("slow.json.new");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let keeper = Keeper::start().unwrap();
        let began = Instant::now();
        for number in 0..1000 {
            keeper.write(slow.clone(), &number);
            keeper.write(other.clone(), &number);
        }
        assert!(began.elapsed() < Duration::from_secs(1));
        keeper.flush(Duration::from_millis(50));
        assert!(!other.exists(), "the disk stands still");
        let reader = std::fs::File::open(&fifo).unwrap();
        std::fs::remove_file(&fifo).ok();
        drop(reader);
        keeper.flush(Duration::from_secs(10));
        assert_eq!(layout::read::<u32>(&other).unwrap(), Some(999));
    }
}
