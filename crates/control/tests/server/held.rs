//! A store whose disk stands still, or refuses, when a test says so.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::memory::MemoryStore;
use store::{
    BoxFuture, Error, Fault, LeaseId, List, Page, Record, Revision, Store, Transaction, Watcher,
};
use tokio::sync::watch;

/// What becomes of a transaction that writes below the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Disk {
    #[default]
    Works,
    /// It waits until the disk works again.
    Stands(&'static str),
    Refuses(&'static str),
}

#[derive(Clone)]
pub struct Held {
    pub inner: MemoryStore,
    disk: watch::Sender<Disk>,
    waiting: Arc<Mutex<usize>>,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            inner: MemoryStore::default(),
            disk: watch::Sender::new(Disk::Works),
            waiting: Arc::default(),
        }
    }
}

impl Held {
    pub fn set(&self, disk: Disk) {
        self.disk.send_replace(disk);
    }

    /// Transactions that were held so far.
    pub fn waiting(&self) -> usize {
        *self.waiting.lock().unwrap()
    }
}

fn writes(transaction: &Transaction, prefix: &str) -> bool {
    let mut keys = transaction.operations.iter().map(|one| one.key());
    keys.any(|key| key.starts_with(prefix))
}

impl Store for Held {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, Error>> {
        self.inner.get(key)
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Page, Error>> {
        self.inner.list(list)
    }

    /// As a real one: what was handed over is done whether or not somebody waits for it.
    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, Error>> {
        let store = self.clone();
        let done = tokio::spawn(async move {
            let mut disk = store.disk.subscribe();
            let now = disk.borrow_and_update().clone();
            match now {
                Disk::Stands(prefix) if writes(&transaction, prefix) => {
                    *store.waiting.lock().unwrap() += 1;
                    let _ = disk.wait_for(|disk| *disk != now).await;
                }
                Disk::Refuses(prefix) if writes(&transaction, prefix) => {
                    return Err(Error::Unavailable(Fault::new(std::io::Error::other(
                        "the disk is full",
                    ))));
                }
                _ => {}
            }
            store.inner.transact(transaction).await
        });
        Box::pin(async move { done.await.unwrap() })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Watcher, Error>> {
        self.inner.watch(prefix, after)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        self.inner.revision()
    }

    fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.compact(through)
    }

    fn grant(&self, time_to_live: Duration) -> BoxFuture<'_, Result<LeaseId, Error>> {
        self.inner.grant(time_to_live)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, Error>> {
        self.inner.revoke(lease)
    }

    fn expire(&self) -> BoxFuture<'_, Result<usize, Error>> {
        self.inner.expire()
    }
}
