//! What the writer knows without asking the file: the ends of the history, and the newest rows of the keys it met lately.
//!
//! It always says what the open transaction would. A request notes what it wrote once nothing of it can fail any more, so one
//! that is refused leaves nothing here; when a whole transaction is given up, everything is forgotten and read anew.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::reading::{self, Marks};
use crate::{Change, Condition, Event, Record, Revision};

/// Keys of one generation; there are two. A key and its numbers take some 200 bytes.
const KEYS: usize = 16_384;
/// Values are kept only where a condition looked at them, as all writes of a leader do at its claim, and only short ones.
const VALUE_MAX_BYTES: usize = 1024;

#[derive(Default)]
pub(super) struct Known {
    marks: Option<Marks>,
    recent: HashMap<Arc<str>, Option<Head>>,
    /// Full once; replaced by `recent` when that is full. What is asked for moves over.
    older: HashMap<Arc<str>, Option<Head>>,
}

/// A key's newest row, if that is no deletion.
pub(super) struct Head {
    /// Its value is empty if it is not known.
    pub(super) record: Record,
    value_is_known: bool,
}

impl Known {
    pub(super) fn marks(&mut self, connection: &Connection) -> rusqlite::Result<Marks> {
        if let Some(marks) = self.marks {
            return Ok(marks);
        }
        let marks = reading::marks(connection)?;
        self.marks = Some(marks);
        Ok(marks)
    }

    /// The record of a key, perhaps without its value.
    pub(super) fn record(
        &mut self,
        connection: &Connection,
        key: &str,
    ) -> rusqlite::Result<Option<&Record>> {
        if !self.recent.contains_key(key) {
            let (key, head) = match self.older.remove_entry(key) {
                Some(moved) => moved,
                None => (key.into(), head(connection, key)?),
            };
            self.keep(key, head);
        }
        Ok(self
            .recent
            .get(key)
            .and_then(Option::as_ref)
            .map(|head| &head.record))
    }

    pub(super) fn holds(
        &mut self,
        connection: &Connection,
        condition: &Condition,
    ) -> rusqlite::Result<bool> {
        if matches!(condition, Condition::Value { .. }) && !self.knows_value(condition.key()) {
            let record = reading::newest(connection, condition.key())?;
            let holds = condition.holds(record.as_ref());
            self.keep_value(condition.key(), record);
            return Ok(holds);
        }
        Ok(condition.holds(self.record(connection, condition.key())?))
    }

    fn knows_value(&self, key: &str) -> bool {
        match self.recent.get(key) {
            Some(Some(head)) => head.value_is_known,
            Some(None) => true,
            None => false,
        }
    }

    fn keep_value(&mut self, key: &str, record: Option<Record>) {
        if record
            .as_ref()
            .is_some_and(|record| record.value.len() > VALUE_MAX_BYTES)
        {
            return;
        }
        let head = record.map(|record| Head {
            record,
            value_is_known: true,
        });
        self.keep(key.into(), head);
    }

    /// What a request wrote.
    pub(super) fn note(&mut self, change: &Change) {
        if let Some(marks) = &mut self.marks {
            marks.newest = change.revision;
        }
        for event in &change.events {
            match event {
                Event::Put(record) => self.keep(record.key.clone(), Some(Head::of(record))),
                Event::Deleted { key, .. } => self.keep(key.clone(), None),
            }
        }
    }

    /// How far a request compacted.
    pub(super) fn note_compacted(&mut self, through: Revision) {
        if let Some(marks) = &mut self.marks {
            marks.compacted = through;
        }
    }

    /// What was noted is not in the file, or nobody knows whether it is.
    pub(super) fn forget(&mut self) {
        *self = Known::default();
    }

    fn keep(&mut self, key: Arc<str>, head: Option<Head>) {
        if self.recent.len() >= KEYS {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, head);
    }
}

impl Head {
    fn of(record: &Record) -> Head {
        Head {
            record: Record {
                key: record.key.clone(),
                value: Bytes::new(),
                ..*record
            },
            value_is_known: false,
        }
    }
}

const HEAD: &str = "SELECT id, key, iif(value IS NULL, NULL, x''), created, version, lease FROM history WHERE key = ?1 ORDER BY id DESC LIMIT 1";

fn head(connection: &Connection, key: &str) -> rusqlite::Result<Option<Head>> {
    let mut statement = connection.prepare_cached(HEAD)?;
    let record = statement
        .query_row([key], reading::record)
        .optional()?
        .flatten();
    Ok(record.map(|record| Head {
        record,
        value_is_known: false,
    }))
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    /// A plan that depends on bound values is made anew for each write, which costs more than the write.
    #[test]
    fn the_hot_statement_is_prepared_once() {
        let directory = tempfile::tempdir().unwrap();
        let options = crate::sqlite::Options::new(directory.path().join("store.db")).database;
        let database = ::sqlite::Database::open(options).unwrap();
        let prepared_again = database.write(|connection| {
            for key in ["a", "b", "c"] {
                assert!(head(connection, key).unwrap().is_none());
            }
            let statement = connection.prepare_cached(HEAD).unwrap();
            Ok::<_, ::sqlite::Error>((
                statement.get_status(StatementStatus::Run),
                statement.get_status(StatementStatus::RePrepare),
            ))
        });
        assert_eq!(prepared_again.wait(), Ok((3, 0)));
    }

    fn record(key: &str, version: u64) -> Record {
        Record {
            key: key.into(),
            value: Bytes::from_static(b"value"),
            created: Revision::from_number(1),
            modified: Revision::from_number(version),
            version,
            lease: None,
        }
    }

    fn put(record: Record) -> Change {
        Change {
            revision: record.modified,
            events: vec![Event::Put(record)],
        }
    }

    #[test]
    fn as_many_keys_are_known_as_fit_and_the_rest_is_read() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(super::super::schema::MIGRATIONS[0])
            .unwrap();
        let mut known = Known::default();
        known.note(&put(record("stays", 1)));
        for number in 0..5 * KEYS {
            if number % 1000 == 0 {
                // In use all the time, so known all the time: the file has no such key.
                let stays = known.record(&connection, "stays").unwrap();
                assert_eq!(stays.map(|record| record.version), Some(1));
            }
            known.note(&put(record(&format!("other/{number}"), 2)));
            assert!(known.recent.len() + known.older.len() <= 2 * KEYS);
        }
        assert!(known.record(&connection, "other/0").unwrap().is_none());
        let newest = format!("other/{}", 5 * KEYS - 1);
        assert!(known.record(&connection, &newest).unwrap().is_some());
    }

    #[test]
    fn a_newer_row_hides_the_one_of_the_older_generation() {
        let connection = Connection::open_in_memory().unwrap();
        let mut known = Known::default();
        known.note(&put(record("a", 1)));
        for number in 0..KEYS {
            known.note(&put(record(&format!("other/{number}"), 2)));
        }
        known.note(&put(record("a", 3)));
        let version = |known: &mut Known| {
            let record = known.record(&connection, "a").unwrap();
            record.map(|record| record.version)
        };
        assert_eq!(version(&mut known), Some(3));
        for number in 0..KEYS {
            known.note(&put(record(&format!("another/{number}"), 4)));
        }
        assert_eq!(version(&mut known), Some(3));
    }
}
