//! What is removed, in small pieces between other writes, and how much there is.
//!
//! Messages that every consumer is done with are removed, oldest first, when they are older than the retention's age, or while the topic is larger
//! than its size. What lies in a dead letter stays until that is redriven or discarded. Freed pages of the file are written anew, so the file stays
//! as large as the topic once was, and no larger.

use model::state::Retention;
use sqlite::Error;
use sqlite::rusqlite::{self, Connection, OptionalExtension as _, params};

use super::Storage;
use crate::topic::consumer::Position;
use crate::topic::event::OVERHEAD_BYTES;

/// Messages that one transaction removes.
const PIECE: usize = 512;

/// What a message costs, by its row: as [`Event::size`](crate::topic::event::Event::size), and a little more for its attributes.
const SIZE: &str =
    "octet_length(data) + coalesce(octet_length(key), 0) + coalesce(octet_length(dedup), 0)
    + coalesce(octet_length(content_type), 0) + coalesce(octet_length(attributes), 0) + 64";

/// What a piece of work left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measure {
    /// Up to here only dead letters are left.
    pub removed: Position,
    /// Bytes published up to there.
    pub removed_end: u64,
    /// Dead letters among the removed.
    pub kept: u64,
    pub kept_bytes: u64,
    /// Bytes published up to where everybody is done.
    pub floor_end: u64,
    /// Of dead letters: all of the letters, and of their messages those before that.
    pub dead_bytes: u64,
}

impl Storage {
    /// Removes a piece of what everybody is done with up to `floor` and that is not retained at `now_ms`; `None`: there is more. Only when all is
    /// removed does it look at each dead letter, which may be very many, and never on the writer's thread.
    ///
    /// # Errors
    ///
    /// Nothing was removed.
    pub async fn compact(
        &self,
        floor: Position,
        retention: Retention,
        now_ms: u64,
    ) -> Result<Option<Measure>, Error> {
        let end = self.hub().end();
        let age_ms = u64::try_from(retention.age.duration().as_millis()).unwrap_or(u64::MAX);
        let due = Due {
            floor,
            before_ms: now_ms.saturating_sub(age_ms),
            end: end.saturating_sub(retention.size.0),
        };
        let is_due = self.read(move |connection| is_due(connection, &due));
        if is_due.await? {
            let removed = self.write(move |connection| remove(connection, &due));
            if removed.await? == PIECE {
                return Ok(None);
            }
        }
        let left = self.read(move |connection| leftovers(connection, floor));
        let left = left.await?;
        let more = left.len() == PIECE;
        if !left.is_empty() {
            self.write(move |connection| remove_each(connection, &left))
                .await?;
        }
        match more {
            true => Ok(None),
            false => Ok(Some(self.measure(floor).await?)),
        }
    }

    /// # Errors
    ///
    /// It can't be read.
    pub async fn measure(&self, floor: Position) -> Result<Measure, Error> {
        self.read(move |connection| measure(connection, floor))
            .await
    }
}

/// What may go.
#[derive(Debug, Clone, Copy)]
struct Due {
    floor: Position,
    before_ms: u64,
    /// What lies before this many bytes is too much.
    end: u64,
}

impl Due {
    /// A message that begins after `start` bytes.
    fn covers(&self, position: i64, at: i64, start: i64) -> bool {
        position as u64 <= self.floor && ((at as u64) < self.before_ms || (start as u64) < self.end)
    }
}

fn removed(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    connection
        .prepare_cached("SELECT position, end FROM removed")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Whether there is anything to remove: asked of a reader, so that a quiet topic writes nothing.
fn is_due(connection: &Connection, due: &Due) -> rusqlite::Result<bool> {
    let (through, start) = removed(connection)?;
    let first = connection
        .prepare_cached(
            "SELECT position, at FROM message WHERE position > ?1 ORDER BY position LIMIT 1",
        )?
        .query_row([through], |row| {
            Ok(due.covers(row.get(0)?, row.get(1)?, start))
        })
        .optional()?;
    Ok(first == Some(true))
}

/// How many messages it looked at.
fn remove(connection: &Connection, due: &Due) -> rusqlite::Result<usize> {
    let (before, mut start) = removed(connection)?;
    let mut statement = connection.prepare_cached(
        "SELECT position, at, end FROM message WHERE position > ?1 ORDER BY position LIMIT ?2",
    )?;
    let mut rows = statement.query(params![before, PIECE as i64])?;
    let (mut through, mut count) = (None, 0);
    while let Some(row) = rows.next()? {
        let (position, at, end) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if !due.covers(position, at, start) {
            break;
        }
        through = Some((position, end));
        start = end;
        count += 1;
    }
    drop(rows);
    if let Some((position, end)) = through {
        connection
            .prepare_cached(
                "DELETE FROM message WHERE position > ?1 AND position <= ?2
                 AND position NOT IN (SELECT position FROM dead)",
            )?
            .execute([before, position])?;
        connection
            .prepare_cached("UPDATE removed SET position = ?1, end = ?2")?
            .execute([position, end])?;
    }
    Ok(count)
}

fn remove_each(connection: &Connection, positions: &[i64]) -> rusqlite::Result<()> {
    for position in positions {
        connection
            .prepare_cached(
                "DELETE FROM message WHERE position = ?1 AND NOT EXISTS (SELECT 1 FROM dead WHERE position = ?1)",
            )?
            .execute([position])?;
    }
    Ok(())
}

/// What once lay in a dead letter and does no more.
fn leftovers(connection: &Connection, floor: Position) -> rusqlite::Result<Vec<i64>> {
    let (through, _) = removed(connection)?;
    let mut statement = connection.prepare_cached(
        "SELECT position FROM message WHERE position <= ?1
         AND position NOT IN (SELECT position FROM dead) ORDER BY position LIMIT ?2",
    )?;
    let through = through.min(floor as i64);
    let rows = statement.query_map([through, PIECE as i64], |row| row.get(0))?;
    rows.collect()
}

fn measure(connection: &Connection, floor: Position) -> rusqlite::Result<Measure> {
    let (through, through_end) = removed(connection)?;
    let bytes =
        |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64));
    let (kept, kept_bytes) = connection
        .prepare_cached(&format!(
            "SELECT count(*), coalesce(sum({SIZE}), 0) FROM message WHERE position <= ?1"
        ))?
        .query_row([through], bytes)?;
    let (_, message_bytes) = connection
        .prepare_cached(&format!(
            "SELECT count(*), coalesce(sum({SIZE}), 0) FROM message
             WHERE position IN (SELECT position FROM dead WHERE position <= ?1)"
        ))?
        .query_row([floor as i64], bytes)?;
    let (letters, error_bytes) = connection
        .prepare_cached("SELECT count(*), coalesce(sum(octet_length(error)), 0) FROM dead")?
        .query_row([], bytes)?;
    let floor_end = connection
        .prepare_cached(
            "SELECT end FROM message WHERE position <= ?1 AND position > ?2 ORDER BY position DESC LIMIT 1",
        )?
        .query_row([floor as i64, through], |row| row.get::<_, i64>(0))
        .optional()?
        .unwrap_or(through_end);
    Ok(Measure {
        removed: through as u64,
        removed_end: through_end as u64,
        kept,
        kept_bytes,
        floor_end: floor_end as u64,
        dead_bytes: message_bytes + error_bytes + letters * OVERHEAD_BYTES,
    })
}
