//! The control plane's memory: what somebody decided, versioned, watched, and never half written.
//!
//! A store holds [records](Record): a key such as `res/shop/checkout`, some bytes, and when they changed. Every transaction that
//! changes something makes a new [`Revision`]; all its changes carry it. Readers may ask for the past as long as it is not
//! compacted, watchers follow from any revision on and are told [`Error::Compacted`] when they no longer can. Nothing is ever
//! skipped in silence.
//!
//! - [`Store`]: the contract, as a trait object; [`Transaction`] with its [`Condition`]s; [`Watcher`]; [leases](LeaseId).
//! - [`memory`] and [`sqlite`]: the engines. One conformance suite in `tests/` holds all of them to the contract.
//! - [`maintain`]: the loop that lets leases expire.
//! - [`bench`](bench::run): how many durable writes a second an engine takes.

pub mod bench;
mod error;
mod lease;
mod limits;
mod maintain;
pub mod memory;
mod record;
mod revision;
pub mod sqlite;
mod transaction;
mod watch;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use error::{Conflict, Error, Fault};
pub use lease::{Clock, LeaseId, MonotonicClock};
pub use limits::Limits;
pub use maintain::{MAINTENANCE_INTERVAL, maintain};
pub use record::{Change, Event, List, Page, Record};
pub use revision::{InvalidRevision, Revision};
pub use transaction::{Condition, Operation, Transaction};
pub use watch::Watcher;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The contract of every engine. Used as `Arc<dyn Store>`.
///
/// Dropping a future does not undo what it asked for: its outcome is then unknown.
pub trait Store: Send + Sync {
    /// The newest record of `key`.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, Error>>;

    /// One page of records in the order of keys, as of one revision.
    fn list(&self, list: List) -> BoxFuture<'_, Result<Page, Error>>;

    /// All operations if all conditions hold, else nothing and [`Error::Conflict`]. Answers the revision of the change, or the
    /// current one if nothing changed. Once answered, it survives a power loss (where the engine is durable at all).
    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, Error>>;

    /// What changed under `prefix` after the revision, and from then on what changes.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Watcher, Error>>;

    /// The revision of the newest change.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>>;

    /// Forgets the past before `through`: lists and watches from before it answer [`Error::Compacted`].
    fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), Error>>;

    /// A lease that ends `time_to_live` after its last sign of life. After a restart of the store every lease starts anew.
    fn grant(&self, time_to_live: Duration) -> BoxFuture<'_, Result<LeaseId, Error>>;

    /// A sign of life. [`Error::LeaseUnknown`] once the lease has ended, even if its keys are not deleted yet.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), Error>>;

    /// Ends the lease and deletes its keys in one transaction.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, Error>>;

    /// Ends every lease whose time is over; answers how many. [`maintain`] calls this.
    fn expire(&self) -> BoxFuture<'_, Result<usize, Error>>;
}

/// All records under a prefix as of one revision, page after page; starts anew when the past is compacted meanwhile.
pub async fn list_all(store: &dyn Store, prefix: &str) -> Result<(Vec<Record>, Revision), Error> {
    const ATTEMPTS: usize = 5;
    let mut compacted = None;
    for _ in 0..ATTEMPTS {
        match list_once(store, prefix).await {
            Err(error @ Error::Compacted { .. }) => compacted = Some(error),
            answer => return answer,
        }
    }
    Err(compacted.expect("every attempt was answered with compacted"))
}

async fn list_once(store: &dyn Store, prefix: &str) -> Result<(Vec<Record>, Revision), Error> {
    let mut page = store.list(List::prefix(prefix)).await?;
    let mut records = std::mem::take(&mut page.records);
    while let Some(next) = page.next() {
        page = store.list(next).await?;
        records.append(&mut page.records);
    }
    Ok((records, page.revision))
}
