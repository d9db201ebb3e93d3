//! What runs inside the writer's transaction.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};

use super::known::Known;
use super::reading::{first_id, signed};
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
    let known = &mut *shared.known();
    if let Some(conflict) = transaction.conflict(|condition| known.holds(connection, condition))? {
        return Err(Error::Conflict(Box::new(conflict)).into());
    }
    let marks = known.marks(connection)?;
    let mut row = NextRow::new(connection, known, marks.newest.next());
    for operation in transaction.operations {
        match operation {
            Operation::Put { key, value, lease } => {
                if let Some(lease) = lease {
                    shared.deadlines.check(lease, shared.clock.now())?;
                }
                row.put(key.into(), value, lease)?;
            }
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
    known.note(&change);
    Ok(Done {
        revision: change.revision,
        compacted: compact_now_and_then(connection, shared, known, change.revision),
        change: Some(change),
    })
}

/// Appends the rows of one revision.
struct NextRow<'writer> {
    connection: &'writer Connection,
    known: &'writer mut Known,
    revision: Revision,
    events: Vec<Event>,
}

impl<'writer> NextRow<'writer> {
    fn new(connection: &'writer Connection, known: &'writer mut Known, revision: Revision) -> Self {
        NextRow {
            connection,
            known,
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
        let before = self.known.record(self.connection, &key)?;
        let created = before.map_or(self.revision, |before| before.created);
        let version = before.map_or(0, |before| before.version) + 1;
        self.connection
            .prepare_cached("INSERT INTO history (id, key, value, created, version, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                self.id(),
                &*key,
                &*value,
                signed(created.number()),
                signed(version),
                lease.map(|lease| signed(lease.0))
            ])?;
        let modified = self.revision;
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
        if self.known.record(self.connection, &key)?.is_none() {
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
    shared: &Shared,
    lease: LeaseId,
) -> Result<(Vec<Change>, Revision), Failure> {
    let known = &mut *shared.known();
    let mut revision = known.marks(connection)?.newest;
    let mut changes = Vec::new();
    for keys in attached(connection, known, lease)?.chunks(PLACES as usize) {
        let mut row = NextRow::new(connection, known, revision.next());
        keys.iter().try_for_each(|key| row.delete(key.clone()))?;
        if let Some(change) = row.finish() {
            revision = change.revision;
            changes.push(change);
        }
    }
    connection
        .prepare_cached("DELETE FROM lease WHERE id = ?1")?
        .execute([signed(lease.0)])?;
    changes.iter().for_each(|change| known.note(change));
    Ok((changes, revision))
}

/// The keys whose newest row hangs on the lease.
fn attached(
    connection: &Connection,
    known: &mut Known,
    lease: LeaseId,
) -> rusqlite::Result<Vec<Arc<str>>> {
    let mut statement = connection
        .prepare_cached("SELECT DISTINCT key FROM history WHERE lease = ?1 ORDER BY key")?;
    let keys = statement.query_map([signed(lease.0)], |row| {
        Ok(row.get_ref(0)?.as_str()?.into())
    })?;
    let mut attached = Vec::new();
    for key in keys {
        let key: Arc<str> = key?;
        let record = known.record(connection, &key)?;
        if record.is_some_and(|record| record.lease == Some(lease)) {
            attached.push(key);
        }
    }
    Ok(attached)
}

/// In a savepoint of its own: what comes along with a write must not make it fail, and is tried again later.
fn compact_now_and_then(
    connection: &Connection,
    shared: &Shared,
    known: &mut Known,
    revision: Revision,
) -> Option<Revision> {
    let through =
        Revision::from_number(revision.number().saturating_sub(shared.retained_revisions));
    if !revision.number().is_multiple_of(COMPACT_EVERY) || through == Revision::ZERO {
        return None;
    }
    match compact_apart(connection, known, through) {
        Ok(reached) => Some(reached),
        Err(failure) => {
            let error = failure.at(&shared.path);
            known.forget();
            tracing::warn!(%error, "the past could not be forgotten");
            None
        }
    }
}

fn compact_apart(
    connection: &Connection,
    known: &mut Known,
    through: Revision,
) -> Result<Revision, Failure> {
    let execute = |statement| connection.prepare_cached(statement)?.execute([]);
    execute("SAVEPOINT compaction")?;
    let reached = compact_to(connection, known, through);
    // If SQLite has given the whole transaction up there is nothing to go back to, and the writer sees that for itself.
    if reached.is_err() && !connection.is_autocommit() {
        execute("ROLLBACK TO compaction")?;
    }
    if !connection.is_autocommit() {
        execute("RELEASE compaction")?;
    }
    reached
}

/// One step towards `through`; answers how far the past is forgotten then.
pub(super) fn compact_to(
    connection: &Connection,
    known: &mut Known,
    through: Revision,
) -> Result<Revision, Failure> {
    let marks = known.marks(connection)?;
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
    known.note_compacted(reached);
    Ok(reached)
}
