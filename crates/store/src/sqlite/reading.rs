//! Records, pages and replays out of one snapshot.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Failure;
use super::schema::PLACES;
use crate::record::check_known;
use crate::transaction::prefix_end;
use crate::watch::REPLAYED_AT_ONCE;
use crate::{Change, Event, LeaseId, List, Page, Record, Revision};

/// The ends of the known history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    pub(super) compacted: Revision,
    pub(super) newest: Revision,
}

pub(super) fn marks(connection: &Connection) -> rusqlite::Result<Marks> {
    let mut statement = connection.prepare_cached(
        "SELECT compacted, max(newest, (SELECT coalesce(max(id), 0) / 65536 FROM history)) FROM mark",
    )?;
    statement.query_row([], |row| {
        Ok(Marks {
            compacted: revision(row, 0)?,
            newest: revision(row, 1)?,
        })
    })
}

pub(super) fn leases(connection: &Connection) -> rusqlite::Result<Vec<(LeaseId, Duration)>> {
    let mut statement = connection.prepare_cached("SELECT id, time_to_live_ms FROM lease")?;
    let rows = statement.query_map([], |row| {
        let milliseconds: i64 = row.get(1)?;
        Ok((
            LeaseId(unsigned(row.get(0)?)),
            Duration::from_millis(unsigned(milliseconds)),
        ))
    })?;
    rows.collect()
}

pub(super) fn newest(connection: &Connection, key: &str) -> rusqlite::Result<Option<Record>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, key, value, created, version, lease FROM history WHERE key = ?1 ORDER BY id DESC LIMIT 1",
    )?;
    Ok(statement.query_row([key], record).optional()?.flatten())
}

pub(super) fn list(connection: &Connection, list: &List) -> Result<Page, Failure> {
    let marks = marks(connection)?;
    let at = list.at.unwrap_or(marks.newest);
    check_known(at, marks.compacted, marks.newest)?;
    let mut newest_of_each_key = connection.prepare_cached(
        "SELECT max(id) FROM history WHERE key >= ?1 AND key < ?2 AND key > ?3 AND id < ?4
         GROUP BY key ORDER BY key",
    )?;
    let mut by_id = connection.prepare_cached(
        "SELECT id, key, value, created, version, lease FROM history WHERE id = ?1",
    )?;
    let after = list.after.as_deref().unwrap_or("");
    let bounds = params![
        list.prefix,
        End::of(&list.prefix),
        after,
        first_id(at.next())
    ];
    let mut ids = newest_of_each_key.query(bounds)?;
    let mut records = Vec::new();
    while records.len() <= list.records()
        && let Some(row) = ids.next()?
    {
        let id: i64 = row.get(0)?;
        records.extend(by_id.query_row([id], record)?);
    }
    Ok(Page::cut(list, records, at))
}

/// The changes under a prefix after a revision, at most [`REPLAYED_AT_ONCE`] revisions on.
pub(super) fn replay(
    connection: &Connection,
    prefix: &str,
    after: Revision,
) -> Result<(Vec<Change>, Revision), Failure> {
    let marks = marks(connection)?;
    check_known(after, marks.compacted, marks.newest)?;
    let through = marks
        .newest
        .min(Revision::from_number(after.number() + REPLAYED_AT_ONCE));
    let mut statement = connection.prepare_cached(
        "SELECT id, key, value, created, version, lease FROM history WHERE id >= ?1 AND id < ?2 ORDER BY id",
    )?;
    let mut rows = statement.query(params![first_id(after.next()), first_id(through.next())])?;
    let mut changes: Vec<Change> = Vec::new();
    while let Some(row) = rows.next()? {
        if row
            .get_ref(1)?
            .as_str()
            .map_err(rusqlite::Error::from)?
            .starts_with(prefix)
        {
            append(&mut changes, event(row)?, modified(row)?);
        }
    }
    Ok((changes, through))
}

fn append(changes: &mut Vec<Change>, event: Event, revision: Revision) {
    match changes.last_mut() {
        Some(change) if change.revision == revision => change.events.push(event),
        _ => changes.push(Change {
            revision,
            events: vec![event],
        }),
    }
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    match record(row)? {
        Some(record) => Ok(Event::Put(record)),
        None => Ok(Event::Deleted {
            key: key(row)?,
            revision: modified(row)?,
        }),
    }
}

/// A row of the history: id, key, value, created, version, lease. None: deleted.
pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<Option<Record>> {
    let Some(value) = row.get_ref(2)?.as_blob_or_null()? else {
        return Ok(None);
    };
    Ok(Some(Record {
        key: key(row)?,
        value: Bytes::copy_from_slice(value),
        created: revision(row, 3)?,
        modified: modified(row)?,
        version: unsigned(row.get(4)?),
        lease: lease(row, 5)?,
    }))
}

fn key(row: &Row<'_>) -> rusqlite::Result<Arc<str>> {
    Ok(row.get_ref(1)?.as_str()?.into())
}

fn modified(row: &Row<'_>) -> rusqlite::Result<Revision> {
    Ok(Revision::from_number(unsigned(
        row.get::<_, i64>(0)? / PLACES,
    )))
}

fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    Ok(Revision::from_number(unsigned(row.get(column)?)))
}

fn lease(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<LeaseId>> {
    Ok(row
        .get::<_, Option<i64>>(column)?
        .map(|id| LeaseId(unsigned(id))))
}

/// The id that the first row of a revision would have.
pub(super) fn first_id(revision: Revision) -> i64 {
    signed(revision.number()).saturating_mul(PLACES)
}

/// SQLite's integers are signed; ours never reach the sign.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    number.max(0).unsigned_abs()
}

/// The upper bound of a prefix. A blob sorts after every text, so an empty one bounds nothing.
enum End {
    Text(String),
    None,
}

impl End {
    fn of(prefix: &str) -> End {
        prefix_end(prefix).map_or(End::None, End::Text)
    }
}

impl ToSql for End {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            End::Text(text) => text.to_sql(),
            End::None => Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&[]))),
        }
    }
}
