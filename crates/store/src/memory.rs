//! The engine without a disk: for tests, simulation, and as the plainest statement of the contract.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::lease::Deadlines;
use crate::record::check_known;
use crate::transaction::{check_key, prefix_end};
use crate::watch::{Hub, REPLAYED_AT_ONCE, Source, under};
use crate::{
    BoxFuture, Change, Clock, Condition, Error, Event, LeaseId, List, MonotonicClock, Operation,
    Page, Record, Revision, Store, Transaction, Watcher,
};

#[derive(Clone)]
pub struct Options {
    /// Revisions that stay readable before the newest.
    pub retained_revisions: u64,
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            retained_revisions: 10_000,
            clock: Arc::new(MonotonicClock::default()),
        }
    }
}

/// A store that is forgotten with the process. Cheap to clone.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    hub: Arc<Hub>,
    deadlines: Deadlines,
    options: Options,
}

#[derive(Default)]
struct State {
    revision: Revision,
    compacted: Revision,
    /// Each key's known history, oldest first; never empty.
    keys: BTreeMap<Arc<str>, Vec<Version>>,
    /// All changes after `compacted`.
    log: VecDeque<Arc<Change>>,
    leases: u64,
}

struct Version {
    revision: Revision,
    /// None: deleted.
    record: Option<Record>,
}

impl MemoryStore {
    pub fn new(options: Options) -> MemoryStore {
        let hub = Arc::new(Hub::new(Revision::ZERO, Revision::ZERO));
        let (state, deadlines) = (Mutex::default(), Deadlines::default());
        MemoryStore {
            inner: Arc::new(Inner {
                state,
                hub,
                deadlines,
                options,
            }),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new(Options::default())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transact(&self, transaction: Transaction) -> Result<Revision, Error> {
        transaction.check()?;
        let mut state = self.state();
        let holds =
            |condition: &Condition| Ok::<_, Error>(condition.holds(state.newest(condition.key())));
        if let Some(conflict) = transaction.conflict(holds)? {
            return Err(Error::Conflict(Box::new(conflict)));
        }
        let revision = state.revision.next();
        let mut events = Vec::with_capacity(transaction.operations.len());
        for operation in transaction.operations {
            events.extend(self.event(&state, revision, operation)?);
        }
        Ok(self.commit(&mut state, events))
    }

    fn event(
        &self,
        state: &State,
        revision: Revision,
        operation: Operation,
    ) -> Result<Option<Event>, Error> {
        match operation {
            Operation::Put { key, value, lease } => {
                if let Some(lease) = lease {
                    self.deadlines.check(lease, self.options.clock.now())?;
                }
                let before = state.newest(&key);
                let created = before.map_or(revision, |record| record.created);
                let version = before.map_or(0, |record| record.version) + 1;
                let key = key.into();
                Ok(Some(Event::Put(Record {
                    key,
                    value,
                    created,
                    modified: revision,
                    version,
                    lease,
                })))
            }
            Operation::Delete { key } => Ok(state.newest(&key).map(|record| Event::Deleted {
                key: record.key.clone(),
                revision,
            })),
        }
    }

    /// Makes the events the next revision and tells the watchers. No events: no revision.
    fn commit(&self, state: &mut State, events: Vec<Event>) -> Revision {
        if events.is_empty() {
            return state.revision;
        }
        let change = Change {
            revision: state.revision.next(),
            events,
        };
        state.apply(&change);
        self.hub.publish(change);
        let retained = Revision::from_number(
            state
                .revision
                .number()
                .saturating_sub(self.options.retained_revisions),
        );
        if retained > state.compacted {
            self.compact(state, retained);
        }
        state.revision
    }

    fn compact(&self, state: &mut State, through: Revision) {
        state.compact(through);
        self.hub.compacted(through);
    }

    fn end(&self, lease: LeaseId) -> Revision {
        let mut state = self.state();
        let revision = state.revision.next();
        let attached = state
            .keys
            .values()
            .filter_map(|versions| versions.last()?.record.as_ref());
        let events = attached
            .filter(|record| record.lease == Some(lease))
            .map(|record| Event::Deleted {
                key: record.key.clone(),
                revision,
            })
            .collect();
        let revision = self.commit(&mut state, events);
        self.deadlines.forget(lease);
        revision
    }
}

impl State {
    fn newest(&self, key: &str) -> Option<&Record> {
        self.keys.get(key)?.last()?.record.as_ref()
    }

    fn apply(&mut self, change: &Change) {
        self.revision = change.revision;
        for event in &change.events {
            let (key, record) = match event {
                Event::Put(record) => (record.key.clone(), Some(record.clone())),
                Event::Deleted { key, .. } => (key.clone(), None),
            };
            self.keys.entry(key).or_default().push(Version {
                revision: change.revision,
                record,
            });
        }
        self.log.push_back(Arc::new(change.clone()));
    }

    fn list(&self, list: &List) -> Result<Page, Error> {
        let at = list.at.unwrap_or(self.revision);
        check_known(at, self.compacted, self.revision)?;
        let records = self
            .range(list)
            .filter_map(|versions| {
                versions
                    .iter()
                    .rev()
                    .find(|version| version.revision <= at)?
                    .record
                    .clone()
            })
            .take(list.records() + 1)
            .collect();
        Ok(Page::cut(list, records, at))
    }

    fn range(&self, list: &List) -> impl Iterator<Item = &Vec<Version>> {
        let start = match &list.after {
            Some(after) if **after >= *list.prefix => Bound::Excluded(after.to_string()),
            _ => Bound::Included(list.prefix.clone()),
        };
        let end = prefix_end(&list.prefix);
        self.keys
            .range::<str, _>((start.as_ref().map(String::as_str), Bound::Unbounded))
            .take_while(move |(key, _)| end.as_deref().is_none_or(|end| &***key < end))
            .map(|(_, versions)| versions)
    }

    /// Forgets, for each key that changed up to `through`, what it was before its newest change up to there.
    fn compact(&mut self, through: Revision) {
        while self
            .log
            .front()
            .is_some_and(|change| change.revision <= through)
        {
            let Some(change) = self.log.pop_front() else {
                break;
            };
            for event in &change.events {
                self.compact_key(event.key(), change.revision);
            }
        }
        self.compacted = self.compacted.max(through);
    }

    fn compact_key(&mut self, key: &str, revision: Revision) {
        let Some(versions) = self.keys.get_mut(key) else {
            return;
        };
        versions.retain(|version| {
            version.revision > revision
                || (version.revision == revision && version.record.is_some())
        });
        if versions.is_empty() {
            self.keys.remove(key);
        }
    }
}

impl Source for Inner {
    fn replay<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<(Vec<Change>, Revision), Error>> {
        Box::pin(async move {
            let state = self.state();
            check_known(after, state.compacted, state.revision)?;
            let through = state
                .revision
                .min(Revision::from_number(after.number() + REPLAYED_AT_ONCE));
            let first = state.log.partition_point(|change| change.revision <= after);
            let changes = state
                .log
                .iter()
                .skip(first)
                .take_while(|change| change.revision <= through);
            Ok((
                changes.filter_map(|change| under(prefix, change)).collect(),
                through,
            ))
        })
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, Error>> {
        Box::pin(async move {
            check_key(key)?;
            Ok(self.inner.state().newest(key).cloned())
        })
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Page, Error>> {
        Box::pin(async move { self.inner.state().list(&list) })
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(async move { self.inner.transact(transaction) })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Watcher, Error>> {
        Box::pin(async move {
            let current = self.inner.state().revision;
            self.inner.hub.check(after, current)?;
            Ok(Watcher::new(
                prefix,
                after,
                self.inner.hub.clone(),
                self.inner.clone(),
            ))
        })
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(async move { Ok(self.inner.state().revision) })
    }

    fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let mut state = self.inner.state();
            if through > state.revision {
                return Err(Error::NotYet {
                    asked: through,
                    current: state.revision,
                });
            }
            self.inner.compact(&mut state, through);
            Ok(())
        })
    }

    fn grant(&self, time_to_live: Duration) -> BoxFuture<'_, Result<LeaseId, Error>> {
        Box::pin(async move {
            let mut state = self.inner.state();
            state.leases += 1;
            let lease = LeaseId(state.leases);
            self.inner
                .deadlines
                .start(lease, time_to_live, self.inner.options.clock.now());
            Ok(lease)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.inner
                .deadlines
                .keep_alive(lease, self.inner.options.clock.now())
        })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(async move {
            self.inner.deadlines.end(lease)?;
            Ok(self.inner.end(lease))
        })
    }

    fn expire(&self) -> BoxFuture<'_, Result<usize, Error>> {
        Box::pin(async move {
            let due = self.inner.deadlines.end_due(self.inner.options.clock.now());
            for lease in &due {
                self.inner.end(*lease);
            }
            Ok(due.len())
        })
    }
}
