//! The engines under test, and a clock that only tests move.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::memory::{self, MemoryStore};
use store::sqlite::{self, SqliteStore};
use store::{Clock, Store};
use tempfile::TempDir;

#[derive(Default)]
pub struct ManualClock {
    now: Mutex<Duration>,
}

impl ManualClock {
    pub fn advance(&self, by: Duration) {
        *self.now.lock().unwrap() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.now.lock().unwrap()
    }
}

/// One engine, fresh.
pub struct Bench {
    pub store: Arc<dyn Store>,
    pub clock: Arc<ManualClock>,
    _directory: Option<TempDir>,
}

pub const RETAINED_BY_DEFAULT: u64 = 10_000;

pub fn memory(retained_revisions: u64) -> Bench {
    let clock = Arc::new(ManualClock::default());
    let store = MemoryStore::new(memory::Options {
        retained_revisions,
        clock: clock.clone(),
    });
    Bench {
        store: Arc::new(store),
        clock,
        _directory: None,
    }
}

pub fn sqlite(retained_revisions: u64) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let mut options = sqlite::Options::new(directory.path().join("store.db"));
    options.retained_revisions = retained_revisions;
    options.clock = clock.clone();
    let store = Arc::new(SqliteStore::open(options).unwrap());
    Bench {
        store,
        clock,
        _directory: Some(directory),
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}
