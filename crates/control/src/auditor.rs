//! Keeps the audit log: a chain of records in the store. A record is written in the transaction of its change, so that neither is ever there
//! without the other; what changes nothing in the store is done after its record is there.
//!
//! Changes take turns, and who has the turn has the [`Chain`].

use api::wire::AuditChain;
use boundary::audit::Filter;
use model::boundary::audit::{Head, Link};
use model::boundary::{AuditOutcome, AuditRecord, PrincipalName};
use store::{Error, Fault, List, Revision, Store, Transaction};

use crate::draft::Draft;
use crate::records::{AUDIT, AUDIT_HEAD, encode};

/// Links read at once.
const PAGE: u64 = 256;
/// Looks at it, where the store forgets the past between head and links.
const WALK_ATTEMPTS: usize = 5;
/// Links of one answer to who walks along the chain.
const WALKED_AT_ONCE: usize = 500;
/// Bytes of records in one answer, but for the last of them.
const ANSWERED_MAX_BYTES: usize = 8 << 20;
/// Links dropped in one transaction.
const DROPPED_AT_ONCE: usize = 100;

/// What somebody does, as the log names it.
#[derive(Debug, Clone)]
pub struct Deed {
    pub by: PrincipalName,
    pub action: &'static str,
    pub on: String,
}

impl Deed {
    pub fn new(by: PrincipalName, action: &'static str, on: impl ToString) -> Self {
        let on = on.to_string();
        Self { by, action, on }
    }

    fn record(&self, at: jiff::Timestamp, detail: Vec<String>) -> AuditRecord {
        AuditRecord {
            sequence: None,
            at,
            principal: self.by.clone(),
            action: self.action.to_owned(),
            on: self.on.clone(),
            outcome: AuditOutcome::Done,
            times: 1,
            detail,
        }
    }
}

/// How much is kept. Some records more are there until they are dropped.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub records: u64,
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            records: 100_000,
            bytes: 64 << 20,
        }
    }
}

/// The end of the chain. Unknown while a record is on its way to the store, and after its outcome was not told: it is then read anew.
///
/// Each write of the head is conditioned on the record that it follows. So a write that is still on its way, of who went meanwhile, never comes
/// after a newer one.
#[derive(Default)]
pub struct Chain {
    head: Option<StoredHead>,
    bounds: Bounds,
}

/// The head as it is stored; absent before the first record.
#[derive(Clone, Default)]
struct StoredHead {
    head: Head,
    modified: Option<Revision>,
}

impl Chain {
    /// Adds a record to a draft that has lines for it. [`Chain::added`] is to be told once the draft is written.
    pub async fn add(
        &mut self,
        store: &dyn Store,
        deed: &Deed,
        at: jiff::Timestamp,
        draft: &mut Draft,
    ) -> Result<Head, Error> {
        let stored = match self.head.take() {
            Some(stored) => stored,
            None => read_head(store).await?,
        };
        let (link, next) = stored
            .head
            .link(&deed.record(at, std::mem::take(&mut draft.lines)));
        draft.add_record(place(link.sequence), &link);
        match stored.modified {
            Some(modified) => draft.replace_record(AUDIT_HEAD, modified, &next),
            None => draft.add_record(AUDIT_HEAD.to_owned(), &next),
        }
        Ok(next)
    }

    /// The head was written, at this revision.
    pub fn added(&mut self, head: Head, at: Revision) {
        self.head = Some(StoredHead {
            head,
            modified: Some(at),
        });
    }

    /// What drops the oldest records where there are too many. [`Chain::added`] is to be told its head once it is written.
    pub async fn prune(&mut self, store: &dyn Store) -> Result<Option<(Transaction, Head)>, Error> {
        let Some((head, modified)) = self
            .head
            .as_ref()
            .and_then(|stored| Some((&stored.head, stored.modified?)))
        else {
            return Ok(None);
        };
        let surplus = head.records().saturating_sub(self.bounds.records);
        let is_full = head.bytes > self.bounds.bytes && head.records() > 1;
        if surplus < DROPPED_AT_ONCE as u64 && !is_full {
            return Ok(None);
        }
        let most = (head.records() - 1).min(DROPPED_AT_ONCE as u64);
        let mut links = links(store, None, head.first, most + 1).await?;
        let Some(first) = links.pop().filter(|_| !links.is_empty()) else {
            return Ok(None);
        };
        let next = head.pruned(&links, &first);
        let places = links.iter().map(|link| place(link.sequence));
        let transaction = places.fold(Transaction::new(), Transaction::delete);
        let transaction = transaction
            .if_modified(AUDIT_HEAD, modified)
            .put(AUDIT_HEAD, encode(&next));
        self.head = None;
        Ok(Some((transaction, next)))
    }
}

fn place(sequence: u64) -> String {
    format!("{AUDIT}{sequence:020}")
}

/// The head, and the revision that it is of.
async fn head_at(store: &dyn Store) -> Result<(Head, Revision), Error> {
    let list = List::prefix(AUDIT_HEAD).limit(1);
    let page = store.list(list).await?;
    let found = page.records.first();
    match found.map(|record| serde_json::from_slice(&record.value)) {
        Some(Ok(head)) => Ok((head, page.revision)),
        // It says what is wrong.
        _ => Ok((read_head(store).await?.head, page.revision)),
    }
}

/// The head as it is stored. None where there are records is no empty log: nothing is changed then.
async fn read_head(store: &dyn Store) -> Result<StoredHead, Error> {
    let broken = |what: String| Error::Unavailable(Fault::new(std::io::Error::other(what)));
    if let Some(record) = store.get(AUDIT_HEAD).await? {
        let head = serde_json::from_slice(&record.value);
        let head =
            head.map_err(|error| broken(format!("the audit log's head can't be read: {error}")))?;
        let modified = Some(record.modified);
        return Ok(StoredHead { head, modified });
    }
    let any = store.list(List::prefix(AUDIT).limit(1)).await?;
    match any.records.is_empty() {
        true => Ok(StoredHead::default()),
        false => Err(broken("the audit log's head is missing".to_owned())),
    }
}

/// At most so many links from one on, as far as they can be read: what can't is a break that who walks along finds.
async fn links(
    store: &dyn Store,
    at: Option<Revision>,
    from: u64,
    most: u64,
) -> Result<Vec<Link>, Error> {
    let limit = usize::try_from(most).unwrap_or(usize::MAX);
    let list = List {
        at,
        after: Some(place(from.saturating_sub(1)).into()),
        ..List::prefix(AUDIT).limit(limit)
    };
    let page = store.list(list).await?;
    let read = page.records.iter();
    Ok(read
        .filter_map(|record| serde_json::from_slice(&record.value).ok())
        .collect())
}

/// The newest records that match, newest first.
pub async fn newest(
    store: &dyn Store,
    filter: &Filter,
    most: usize,
) -> Result<Vec<AuditRecord>, Error> {
    let head = read_head(store).await?.head;
    let (mut found, mut bytes, mut end) = (Vec::new(), 0, head.next);
    while end > head.first && found.len() < most && bytes < ANSWERED_MAX_BYTES {
        let begin = end.saturating_sub(PAGE).max(head.first);
        for link in links(store, None, begin, end - begin).await?.iter().rev() {
            let record = link.record().filter(|record| filter.matches(record));
            if let Some(record) = record.filter(|_| found.len() < most) {
                bytes += link.record.len();
                found.push(record);
            }
        }
        end = begin;
    }
    Ok(found)
}

/// A piece of the chain, oldest first, with where all of it ends.
pub async fn walk(store: &dyn Store, from: u64) -> Result<AuditChain, Error> {
    let mut attempts = 0;
    let (head, mut links) = loop {
        attempts += 1;
        match page(store, from).await {
            // That revision is forgotten already.
            Err(Error::Compacted { .. }) if attempts < WALK_ATTEMPTS => {}
            page => break page?,
        }
    };
    let mut bytes = 0;
    let beyond = links.iter().position(|link| {
        let is_beyond = bytes > ANSWERED_MAX_BYTES;
        bytes += link.record.len();
        is_beyond
    });
    links.truncate(beyond.unwrap_or(links.len()));
    Ok(AuditChain { head, links })
}

/// Both as of one revision: what is added or dropped meanwhile is seen by the next look.
async fn page(store: &dyn Store, from: u64) -> Result<(Head, Vec<Link>), Error> {
    let (head, at) = head_at(store).await?;
    let from = from.max(head.first);
    let links = links(store, Some(at), from, WALKED_AT_ONCE as u64).await?;
    Ok((head, links))
}

#[cfg(test)]
mod tests {
    use model::boundary::audit::Walk;
    use store::memory::MemoryStore;
    use store::{BoxFuture, LeaseId, Page, Record};

    use super::*;

    async fn keep(chain: &mut Chain, store: &MemoryStore, index: usize) {
        let deed = Deed::new(PrincipalName("admin:root".to_owned()), "scale", "shop/web");
        let mut draft = Draft::new();
        draft.note(format!("replicas: {index}"));
        let now = jiff::Timestamp::UNIX_EPOCH;
        let head = chain.add(store, &deed, now, &mut draft).await.unwrap();
        let at = store.transact(draft.transaction).await.unwrap();
        chain.added(head, at);
    }

    async fn is_whole(store: &MemoryStore) -> u64 {
        let mut page = walk(store, 1).await.unwrap();
        let mut way = Walk::begin(&page.head);
        while !page.links.is_empty() {
            page.links.iter().for_each(|link| way.take(link).unwrap());
            page = walk(store, way.next()).await.unwrap();
        }
        way.end(&page.head).unwrap();
        page.head.records()
    }

    #[tokio::test]
    async fn the_oldest_go_and_the_chain_stays_whole() {
        let store = MemoryStore::default();
        let bounds = Bounds {
            records: 150,
            bytes: u64::MAX,
        };
        let mut chain = Chain { head: None, bounds };
        for index in 0..700 {
            // As if what became of a transaction was not told.
            if index % 50 == 0 {
                chain.head = None;
            }
            keep(&mut chain, &store, index).await;
            if let Some((transaction, head)) = chain.prune(&store).await.unwrap() {
                let at = store.transact(transaction).await.unwrap();
                chain.added(head, at);
            }
            assert!(chain.head.as_ref().unwrap().head.records() < 250);
        }
        let kept = is_whole(&store).await;
        assert!((150..250).contains(&kept), "{kept}");
        let newest = newest(&store, &Filter::default(), 300).await.unwrap();
        assert_eq!(newest.len() as u64, kept);
        assert_eq!(newest[0].detail, ["replicas: 699"]);
        assert_eq!(newest[0].sequence, Some(700));
    }

    /// A store in which the oldest records go right after somebody has looked at the head.
    struct Pruned(MemoryStore, std::sync::Mutex<Chain>);

    impl Pruned {
        async fn prune(&self) {
            let mut chain = std::mem::take(&mut *self.1.lock().unwrap());
            if let Some((transaction, head)) = chain.prune(&self.0).await.unwrap() {
                let at = self.0.transact(transaction).await.unwrap();
                chain.added(head, at);
            }
            *self.1.lock().unwrap() = chain;
        }
    }

    impl Store for Pruned {
        fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, Error>> {
            Box::pin(async move {
                let record = self.0.get(key).await;
                self.prune().await;
                record
            })
        }
        fn list(&self, list: List) -> BoxFuture<'_, Result<Page, Error>> {
            Box::pin(async move {
                let is_head = list.prefix == AUDIT_HEAD;
                let page = self.0.list(list).await;
                if is_head {
                    self.prune().await;
                }
                page
            })
        }
        fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, Error>> {
            self.0.transact(transaction)
        }
        fn watch<'a>(
            &'a self,
            prefix: &'a str,
            after: Revision,
        ) -> BoxFuture<'a, Result<store::Watcher, Error>> {
            self.0.watch(prefix, after)
        }
        fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
            self.0.revision()
        }
        fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), Error>> {
            self.0.compact(through)
        }
        fn grant(&self, life: std::time::Duration) -> BoxFuture<'_, Result<LeaseId, Error>> {
            self.0.grant(life)
        }
        fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), Error>> {
            self.0.keep_alive(lease)
        }
        fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, Error>> {
            self.0.revoke(lease)
        }
        fn expire(&self) -> BoxFuture<'_, Result<usize, Error>> {
            self.0.expire()
        }
    }

    #[tokio::test]
    async fn records_that_go_while_somebody_looks_are_not_called_missing() {
        let store = MemoryStore::default();
        let bounds = Bounds {
            records: 150,
            bytes: u64::MAX,
        };
        let mut chain = Chain { head: None, bounds };
        for index in 0..350 {
            keep(&mut chain, &store, index).await;
        }
        let store = Pruned(store, std::sync::Mutex::new(chain));
        let mut before = u64::MAX;
        loop {
            let page = walk(&store, 1).await.unwrap();
            let mut way = Walk::begin(&page.head);
            page.links.iter().for_each(|link| way.take(link).unwrap());
            way.end(&page.head).unwrap();
            if std::mem::replace(&mut before, page.head.records()) == page.head.records() {
                break;
            }
        }
        assert!(before < 250, "{before}");
    }

    #[tokio::test]
    async fn long_records_are_bounded_by_their_bytes() {
        let store = MemoryStore::default();
        let bounds = Bounds {
            records: u64::MAX,
            bytes: 4096,
        };
        let mut chain = Chain { head: None, bounds };
        for index in 0..100 {
            keep(&mut chain, &store, index).await;
            while let Some((transaction, head)) = chain.prune(&store).await.unwrap() {
                let at = store.transact(transaction).await.unwrap();
                chain.added(head, at);
            }
        }
        assert!(is_whole(&store).await < 50);
    }

    /// Who prunes may go while the store still writes: others add records before that is done.
    #[tokio::test]
    async fn an_older_head_never_comes_over_a_newer_one() {
        let store = MemoryStore::default();
        let bounds = Bounds {
            records: 1,
            bytes: u64::MAX,
        };
        let mut chain = Chain { head: None, bounds };
        for index in 0..150 {
            keep(&mut chain, &store, index).await;
        }
        let (late, _) = chain.prune(&store).await.unwrap().unwrap();
        let deed = Deed::new(PrincipalName("admin:root".to_owned()), "scale", "shop/web");
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut added_late = Draft::new();
        let mut other = Chain::default();
        let added = other.add(&store, &deed, now, &mut added_late).await;
        added.unwrap();
        keep(&mut Chain::default(), &store, 150).await;
        for late in [late, added_late.transaction] {
            let refused = store.transact(late).await;
            assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
        }
        assert_eq!(is_whole(&store).await, 151);
    }

    #[tokio::test]
    async fn a_head_that_is_gone_is_no_empty_log() {
        let store = MemoryStore::default();
        keep(&mut Chain::default(), &store, 1).await;
        let cut = Transaction::new().delete(AUDIT_HEAD);
        store.transact(cut).await.unwrap();
        let mut draft = Draft::new();
        let deed = Deed::new(PrincipalName("admin:root".to_owned()), "scale", "shop/web");
        let now = jiff::Timestamp::UNIX_EPOCH;
        let added = Chain::default().add(&store, &deed, now, &mut draft).await;
        assert!(matches!(added, Err(Error::Unavailable(_))));
    }
}
