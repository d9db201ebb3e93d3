//! What a store holds and what it tells about changes.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Error, LeaseId, Limits, Revision};

/// A key's value and its history in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Arc<str>,
    pub value: Bytes,
    /// When the key began to exist (again).
    pub created: Revision,
    /// When it changed last.
    pub modified: Revision,
    /// 1 when created, one more with each put.
    pub version: u64,
    /// Deleted when this lease ends.
    pub lease: Option<LeaseId>,
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(Record),
    Deleted { key: Arc<str>, revision: Revision },
}

impl Event {
    pub fn key(&self) -> &str {
        match self {
            Event::Put(record) => &record.key,
            Event::Deleted { key, .. } => key,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Event::Put(record) => record.key.len() + record.value.len(),
            Event::Deleted { key, .. } => key.len(),
        }
    }
}

/// All that one transaction changed (for a watcher: under its prefix). Never split, so a watcher resumes after its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// A question for a page of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    pub prefix: String,
    /// As of this revision; None: as of now.
    pub at: Option<Revision>,
    /// Only keys after this one: the last key of the page before.
    pub after: Option<Arc<str>>,
    /// At most [`Limits::page_records`].
    pub limit: usize,
}

impl List {
    pub fn prefix(prefix: impl Into<String>) -> List {
        List {
            prefix: prefix.into(),
            at: None,
            after: None,
            limit: Limits::ALL.page_records,
        }
    }

    pub fn at(self, revision: Revision) -> List {
        List {
            at: Some(revision),
            ..self
        }
    }

    pub fn limit(self, limit: usize) -> List {
        List { limit, ..self }
    }

    pub(crate) fn records(&self) -> usize {
        self.limit.clamp(1, Limits::ALL.page_records)
    }
}

/// An answer to a [`List`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub records: Vec<Record>,
    /// The page shows the store as of this revision; a watch that starts after it misses nothing.
    pub revision: Revision,
    pub(crate) next: Option<List>,
}

impl Page {
    /// The question for the next page of the same revision. None: this is the last.
    pub fn next(&self) -> Option<List> {
        self.next.clone()
    }

    /// A page out of one record more than asked for, if there is one more.
    pub(crate) fn cut(list: &List, mut records: Vec<Record>, revision: Revision) -> Page {
        let more = records.len() > list.records();
        records.truncate(list.records());
        let after = records
            .last()
            .filter(|_| more)
            .map(|record| record.key.clone());
        let next = after.map(|after| List {
            at: Some(revision),
            after: Some(after),
            ..list.clone()
        });
        Page {
            records,
            revision,
            next,
        }
    }
}

/// Whether a revision can be asked about: neither forgotten nor still to come.
pub(crate) fn check_known(
    asked: Revision,
    compacted: Revision,
    current: Revision,
) -> Result<(), Error> {
    if asked < compacted {
        Err(Error::Compacted { asked, compacted })
    } else if asked > current {
        Err(Error::NotYet { asked, current })
    } else {
        Ok(())
    }
}
