//! Writes what the next agent must know, on a thread of its own: nobody who decides waits for the disk.
//!
//! What waits is bounded by what there is to know: of each file only the newest text waits. Texts of one file are written in their order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::layout;

/// `None`: the file is to go.
type Text = Option<Vec<u8>>;

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
    waiting: BTreeMap<PathBuf, Text>,
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
        self.shared.put(path, Some(text));
    }

    pub fn remove(&self, path: PathBuf) {
        self.shared.put(path, None);
    }

    /// What the disk refused since this was asked last.
    pub fn failure(&self) -> Option<String> {
        self.shared.state().failed.take()
    }

    /// Waits until all is written, within bounds: who ends must not leave the disk behind what it did.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, path: PathBuf, text: Text) {
        self.state().waiting.insert(path, text);
        self.changed.notify_all();
    }

    fn run(&self) {
        while let Some((path, text)) = self.next() {
            let done = write(&path, text);
            let mut state = self.state();
            state.writing = false;
            if let Err(error) = done {
                state.failed = Some(error.to_string());
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<(PathBuf, Text)> {
        let mut state = self.state();
        loop {
            if let Some(next) = state.waiting.pop_first() {
                state.writing = true;
                return Some(next);
            }
            if state.over {
                return None;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn write(path: &Path, text: Text) -> Result<(), layout::Error> {
    match text {
        Some(text) => {
            if let Some(folder) = path.parent() {
                layout::make_passage(folder)?;
            }
            layout::write_text(path, &text)
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
