//! What runs inside the writer's transaction.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::reading::{self, Marks, first_id, signed};
use super::schema::PLACES;
use super::{Failure, Shared};
use crate::{Change, Error, Event, LeaseId, Operation, Record, Revision, Transaction};

/// Every so many revisions a transaction also compacts a little: small and often.
const COMPACT_EVERY: u64 = 64;
/// Revisions one step of compaction covers. More than [`COMPACT_EVERY`], so that it catches up.
const COMPACT_STEP: u64 = 256;

/// A transaction that was run, to be told once it is durable.
pub(super) struct Done {
    revision: Revision,
    change: Option<Change>,
    compacted: Option<Revision>,
}

impl Done {
    pub(super) fn publish(self, shared: &Shared) -> Revision {
        if let Some(change) = self.change {
            shared.hub.publish(change);
        }
        if let Some(compacted) = self.compacted {
            shared.hub.compacted(compacted);
        }
        self.revision
    }
}

pub(super) fn transact(
    connection: &Connection,
    shared: &Shared,
    transaction: Transaction,
) -> Result<Done, Failure> {
    if let Some(conflict) = transaction.conflict(|key| reading::newest(connection, key))? {
        return Err(Error::Conflict(Box::new(conflict)).into());
    }
    let marks = reading::marks(connection)?;
    let mut row = NextRow::new(connection, marks.newest.next());
    for operation in transaction.operations {
        match operation {
            Operation::Put {
                lease: Some(lease),
                key,
                value,
            } => {
                shared.deadlines.check(lease, shared.clock.now())?;
                row.put(key.into(), value, Some(lease))?;
            }
            Operation::Put {
                lease: None,
                key,
                value,
            } => row.put(key.into(), value, None)?,
            Operation::Delete { key } => row.delete(key.into())?,
        }
    }
    let Some(change) = row.finish() else {
        return Ok(Done {
            revision: marks.newest,
            change: None,
            compacted: None,
        });
    };
    let compacted = compact_now_and_then(connection, shared, marks, change.revision)?;
    Ok(Done {
        revision: change.revision,
        change: Some(change),
        compacted,
    })
}

/// Appends the rows of one revision.
struct NextRow<'connection> {
    connection: &'connection Connection,
    revision: Revision,
    events: Vec<Event>,
}

/// What a new row of a key must know of the one before.
struct Head {
    deleted: bool,
    created: Revision,
    version: i64,
    lease: Option<LeaseId>,
}

impl<'connection> NextRow<'connection> {
    fn new(connection: &'connection Connection, revision: Revision) -> Self {
        NextRow {
            connection,
            revision,
            events: Vec::new(),
        }
    }

    fn put(
        &mut self,
        key: Arc<str>,
        value: bytes::Bytes,
        lease: Option<LeaseId>,
    ) -> Result<(), Failure> {
        let before = head(self.connection, &key)?.filter(|head| !head.deleted);
        let created = before.as_ref().map_or(self.revision, |head| head.created);
        let version = before.as_ref().map_or(0, |head| head.version) + 1;
        let lease_id = lease.map(|lease| signed(lease.0));
        self.connection
            .prepare_cached("INSERT INTO history (id, key, value, created, version, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![self.id(), &*key, &*value, signed(created.number()), version, lease_id])?;
        let (modified, version) = (self.revision, version.unsigned_abs());
        self.events.push(Event::Put(Record {
            key,
            value,
            created,
            modified,
            version,
            lease,
        }));
        Ok(())
    }

    fn delete(&mut self, key: Arc<str>) -> Result<(), Failure> {
        if head(self.connection, &key)?.is_none_or(|head| head.deleted) {
            return Ok(());
        }
        self.connection
            .prepare_cached("INSERT INTO history (id, key, value, created, version) VALUES (?1, ?2, NULL, 0, 0)")?
            .execute(params![self.id(), &*key])?;
        self.events.push(Event::Deleted {
            key,
            revision: self.revision,
        });
        Ok(())
    }

    /// None: nothing changed, so there is no revision.
    fn finish(self) -> Option<Change> {
        (!self.events.is_empty()).then_some(Change {
            revision: self.revision,
            events: self.events,
        })
    }

    fn id(&self) -> i64 {
        first_id(self.revision) + self.events.len() as i64
    }
}

const HEAD: &str = "SELECT value IS NULL, created, version, lease FROM history WHERE key = ?1 ORDER BY id DESC LIMIT 1";

fn head(connection: &Connection, key: &str) -> rusqlite::Result<Option<Head>> {
    let mut statement = connection.prepare_cached(HEAD)?;
    statement
        .query_row([key], |row| {
            Ok(Head {
                deleted: row.get(0)?,
                created: reading::revision(row, 1)?,
                version: row.get(2)?,
                lease: reading::lease(row, 3)?,
            })
        })
        .optional()
}

pub(super) fn grant(connection: &Connection, time_to_live: Duration) -> Result<LeaseId, Failure> {
    let milliseconds = i64::try_from(time_to_live.as_millis()).unwrap_or(i64::MAX);
    connection
        .prepare_cached("INSERT INTO lease (time_to_live_ms) VALUES (?1)")?
        .execute([milliseconds])?;
    Ok(LeaseId(connection.last_insert_rowid().unsigned_abs()))
}

/// Deletes the keys that hang on a lease, and the lease. One revision, as long as its keys fit in one.
pub(super) fn end_lease(
    connection: &Connection,
    lease: LeaseId,
) -> Result<(Vec<Change>, Revision), Failure> {
    let mut revision = reading::marks(connection)?.newest;
    let mut changes = Vec::new();
    for keys in attached(connection, lease)?.chunks(PLACES as usize) {
        let mut row = NextRow::new(connection, revision.next());
        keys.iter().try_for_each(|key| row.delete(key.clone()))?;
        if let Some(change) = row.finish() {
            revision = change.revision;
            changes.push(change);
        }
    }
    connection
        .prepare_cached("DELETE FROM lease WHERE id = ?1")?
        .execute([signed(lease.0)])?;
    Ok((changes, revision))
}

/// The keys whose newest row hangs on the lease.
fn attached(connection: &Connection, lease: LeaseId) -> rusqlite::Result<Vec<Arc<str>>> {
    let mut statement = connection
        .prepare_cached("SELECT DISTINCT key FROM history WHERE lease = ?1 ORDER BY key")?;
    let keys = statement.query_map([signed(lease.0)], |row| {
        Ok(row.get_ref(0)?.as_str()?.into())
    })?;
    let mut attached = Vec::new();
    for key in keys {
        let key: Arc<str> = key?;
        if head(connection, &key)?.is_some_and(|head| head.lease == Some(lease)) {
            attached.push(key);
        }
    }
    Ok(attached)
}

fn compact_now_and_then(
    connection: &Connection,
    shared: &Shared,
    marks: Marks,
    revision: Revision,
) -> Result<Option<Revision>, Failure> {
    let through =
        Revision::from_number(revision.number().saturating_sub(shared.retained_revisions));
    if !revision.number().is_multiple_of(COMPACT_EVERY) || through <= marks.compacted {
        return Ok(None);
    }
    Ok(Some(compact_to(connection, through)?))
}

/// One step towards `through`; answers how far the past is forgotten then.
pub(super) fn compact_to(connection: &Connection, through: Revision) -> Result<Revision, Failure> {
    let marks = reading::marks(connection)?;
    if through > marks.newest {
        return Err(Error::NotYet {
            asked: through,
            current: marks.newest,
        }
        .into());
    }
    if through <= marks.compacted {
        return Ok(marks.compacted);
    }
    let reached = through.min(Revision::from_number(
        marks.compacted.number() + COMPACT_STEP,
    ));
    let range = params![first_id(marks.compacted.next()), first_id(reached.next())];
    // What a row of the range replaced, in the range or before it.
    connection
        .prepare_cached(
            "DELETE FROM history WHERE id IN (
                 SELECT older.id FROM history newer CROSS JOIN history older
                 ON older.key = newer.key AND older.id < newer.id
                 WHERE newer.id >= ?1 AND newer.id < ?2)",
        )?
        .execute(range)?;
    connection
        .prepare_cached("DELETE FROM history WHERE id >= ?1 AND id < ?2 AND value IS NULL")?
        .execute(range)?;
    connection
        .prepare_cached("UPDATE mark SET compacted = ?1, newest = ?2")?
        .execute(params![
            signed(reached.number()),
            signed(marks.newest.number())
        ])?;
    Ok(reached)
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
}
