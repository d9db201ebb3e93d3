//! A store whose disk stands still, or refuses, and whose watches miss something, when a test says so.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::memory::MemoryStore;
use store::{
    BoxFuture, Error, Fault, LeaseId, List, Operation, Page, Record, Revision, Store, Transaction,
    Watcher,
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
    /// What writes this text somewhere.
    RefusesWith(&'static str),
}

#[derive(Clone)]
pub struct Held {
    pub inner: MemoryStore,
    /// What watches see: the same transactions, but for what is hidden.
    shown: MemoryStore,
    hidden: Arc<Mutex<Option<&'static str>>>,
    order: Arc<tokio::sync::Mutex<()>>,
    disk: watch::Sender<Disk>,
    waiting: Arc<Mutex<usize>>,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            inner: MemoryStore::default(),
            shown: MemoryStore::default(),
            hidden: Arc::default(),
            order: Arc::default(),
            disk: watch::Sender::new(Disk::Works),
            waiting: Arc::default(),
        }
    }
}

impl Held {
    pub fn set(&self, disk: Disk) {
        self.disk.send_replace(disk);
    }

    /// From now on watches are not told of writes below the prefix.
    pub fn hide(&self, prefix: Option<&'static str>) {
        *self.hidden.lock().unwrap() = prefix;
    }

    async fn write(&self, transaction: Transaction) -> Result<Revision, Error> {
        let _turn = self.order.lock().await;
        let mut shown = Transaction::new();
        shown.operations = transaction.operations.clone();
        let revision = self.inner.transact(transaction).await?;
        if let Some(hidden) = *self.hidden.lock().unwrap() {
            let beside = |one: &Operation| !one.key().starts_with(hidden);
            shown.operations.retain(beside);
        }
        if shown.operations.is_empty() {
            shown = shown.put("key/nobody/nothing", "");
        }
        assert_eq!(self.shown.transact(shown).await?, revision);
        Ok(revision)
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

fn says(transaction: &Transaction, text: &str) -> bool {
    let mut operations = transaction.operations.iter();
    operations.any(|one| match one {
        Operation::Put { value, .. } => String::from_utf8_lossy(value).contains(text),
        Operation::Delete { .. } => false,
    })
}

fn full() -> Error {
    Error::Unavailable(Fault::new(std::io::Error::other("the disk is full")))
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
                Disk::Refuses(prefix) if writes(&transaction, prefix) => return Err(full()),
                Disk::RefusesWith(text) if says(&transaction, text) => return Err(full()),
                _ => {}
            }
            store.write(transaction).await
        });
        Box::pin(async move { done.await.unwrap() })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Watcher, Error>> {
        self.shown.watch(prefix, after)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        self.inner.revision()
    }

    fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.inner.compact(through).await?;
            self.shown.compact(through).await
        })
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
