//! Watching: recent changes are handed on in process, older ones are read from the engine, forgotten ones are an error.
//!
//! ```text
//! commit ──► Hub (the last changes, bounded) ──wakes──► Watcher: after my position?
//!                                                        ├─ in the hub: take them
//!                                                        ├─ older: Source::replay
//!                                                        └─ compacted: Error::Compacted
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::record::check_known;
use crate::{BoxFuture, Change, Error, Revision};

/// Changes the hub keeps at most, and their bytes.
const RECENT_CHANGES: usize = 1024;
const RECENT_BYTES: usize = 8 << 20;
/// Changes a watcher takes at once.
const TAKEN_AT_ONCE: usize = 64;
/// Revisions that one replay covers.
pub(crate) const REPLAYED_AT_ONCE: u64 = 256;

/// Where a watcher reads what the hub no longer has.
pub(crate) trait Source: Send + Sync {
    /// The changes under `prefix` after the revision, and the revision up to which these are all.
    fn replay<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<(Vec<Change>, Revision), Error>>;
}

/// The newest changes, in order, for all watchers of one store.
pub(crate) struct Hub {
    recent: Mutex<Recent>,
    newest: watch::Sender<Revision>,
}

struct Recent {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Every change after this revision is in `changes`.
    complete_after: Revision,
    compacted: Revision,
}

enum Next {
    Nothing,
    Changes(Vec<Arc<Change>>),
    Older,
}

impl Hub {
    pub(crate) fn new(current: Revision, compacted: Revision) -> Hub {
        let changes = VecDeque::new();
        let recent = Recent {
            changes,
            bytes: 0,
            complete_after: current,
            compacted,
        };
        Hub {
            recent: Mutex::new(recent),
            newest: watch::Sender::new(current),
        }
    }

    /// Must be called in the order of revisions, once each is durable.
    pub(crate) fn publish(&self, change: Change) {
        let revision = change.revision;
        self.recent().push(change);
        self.newest.send_replace(revision);
    }

    pub(crate) fn compacted(&self, through: Revision) {
        let mut recent = self.recent();
        recent.compacted = recent.compacted.max(through);
    }

    /// Refuses a watch that could not see everything. `current` may be ahead of the hub: a commit is readable before it is told.
    pub(crate) fn check(&self, after: Revision, current: Revision) -> Result<(), Error> {
        let compacted = self.recent().compacted;
        check_known(after, compacted, current)
    }

    fn after(&self, position: Revision) -> Next {
        let recent = self.recent();
        if position < recent.complete_after {
            return Next::Older;
        }
        let first = recent
            .changes
            .partition_point(|change| change.revision <= position);
        let changes: Vec<_> = recent
            .changes
            .iter()
            .skip(first)
            .take(TAKEN_AT_ONCE)
            .cloned()
            .collect();
        if changes.is_empty() {
            Next::Nothing
        } else {
            Next::Changes(changes)
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn push(&mut self, change: Change) {
        self.bytes += bytes(&change);
        self.changes.push_back(Arc::new(change));
        while self.changes.len() > RECENT_CHANGES || self.bytes > RECENT_BYTES {
            let Some(oldest) = self.changes.pop_front() else {
                break;
            };
            self.bytes -= bytes(&oldest);
            self.complete_after = oldest.revision;
        }
    }
}

fn bytes(change: &Change) -> usize {
    change.events.iter().map(|event| event.bytes()).sum()
}

/// Follows all changes under a prefix, in order, none skipped.
pub struct Watcher {
    prefix: String,
    hub: Arc<Hub>,
    source: Arc<dyn Source>,
    newest: watch::Receiver<Revision>,
    /// Read, but not yet handed out.
    ready: VecDeque<Change>,
    /// All up to here was handed out or is in `ready`.
    read: Revision,
    handed_out: Revision,
}

impl Watcher {
    pub(crate) fn new(
        prefix: &str,
        after: Revision,
        hub: Arc<Hub>,
        source: Arc<dyn Source>,
    ) -> Watcher {
        let newest = hub.newest.subscribe();
        let prefix = prefix.to_owned();
        Watcher {
            prefix,
            hub,
            source,
            newest,
            ready: VecDeque::new(),
            read: after,
            handed_out: after,
        }
    }

    /// The next change. May be cancelled: nothing is lost. After an error that is not [`Error::Compacted`] it may be called again.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                self.handed_out = if self.ready.is_empty() {
                    self.read
                } else {
                    change.revision
                };
                return Ok(change);
            }
            match self.hub.after(self.read) {
                Next::Changes(changes) => self.take(changes),
                Next::Older => self.replay().await?,
                Next::Nothing => {
                    // Answers at once if a change came since it answered last, so none slips in between. Cannot fail: we hold the hub.
                    let _ = self.newest.changed().await;
                }
            }
        }
    }

    /// Everything up to here was handed out: where to resume.
    pub fn revision(&self) -> Revision {
        self.handed_out
    }

    fn take(&mut self, changes: Vec<Arc<Change>>) {
        for change in changes {
            self.read = change.revision;
            self.ready.extend(under(&self.prefix, &change));
        }
        self.nothing_ready_is_all_handed_out();
    }

    async fn replay(&mut self) -> Result<(), Error> {
        let (changes, through) = self.source.replay(&self.prefix, self.read).await?;
        self.ready.extend(changes);
        self.read = through;
        self.nothing_ready_is_all_handed_out();
        Ok(())
    }

    fn nothing_ready_is_all_handed_out(&mut self) {
        if self.ready.is_empty() {
            self.handed_out = self.read;
        }
    }
}

/// The part of a change under a prefix, if there is one.
pub(crate) fn under(prefix: &str, change: &Change) -> Option<Change> {
    let events: Vec<_> = change
        .events
        .iter()
        .filter(|event| event.key().starts_with(prefix))
        .cloned()
        .collect();
    (!events.is_empty()).then_some(Change {
        revision: change.revision,
        events,
    })
}
