//! How far consumers are: what they have open, and what failed.

use std::collections::HashMap;
use std::sync::Arc;

use sqlite::Error;
use sqlite::rusqlite::{self, Connection, OptionalExtension as _, params};

use super::{Storage, Tail, delete, letters, position_and_key, read_tail};
use crate::topic::consumer::{Changes, Failure, Key, Position};

/// The error of an attempt that was under way when the topic ended.
const TOPIC_ENDED: &str =
    "the topic ended before it was told what became of it; whether it was done is unknown";

/// A consumer as it was left.
#[derive(Debug, Clone)]
pub struct Left {
    pub name: String,
    pub pull: bool,
    pub owner: Option<String>,
    pub seen_ms: u64,
    pub read: Position,
    pub open: Vec<(Position, Option<Key>)>,
    pub failures: HashMap<Position, Failure>,
    pub dead: u64,
}

/// A consumer as it is to be left.
#[derive(Debug, Clone)]
pub struct Leave {
    pub name: String,
    pub pull: bool,
    pub owner: Option<String>,
    pub seen_ms: u64,
    pub changes: Changes,
}

impl Storage {
    /// Leaves consumers as they are now, all or none.
    ///
    /// # Errors
    ///
    /// Nothing was stored, or, after a failed sync, nobody knows.
    pub async fn leave(&self, consumers: Arc<Vec<Leave>>, now_ms: u64) -> Result<(), Error> {
        self.write(move |connection| {
            consumers
                .iter()
                .try_for_each(|leave| leave_one(connection, leave, now_ms))
        })
        .await
    }

    /// How many consumers have something in hand, as the file says.
    #[cfg(test)]
    pub async fn begun(&self) -> Result<i64, Error> {
        self.read(|connection| {
            let query = "SELECT count(*) FROM consumer WHERE length(begun) > 0";
            connection.query_row(query, [], |row| row.get(0))
        })
        .await
    }

    /// Forgets a consumer and its dead letters.
    ///
    /// # Errors
    ///
    /// It is not forgotten.
    pub async fn forget(&self, name: String) -> Result<(), Error> {
        self.write(move |connection| {
            for table in ["failure", "dead", "consumer"] {
                let column = if table == "consumer" {
                    "name"
                } else {
                    "consumer"
                };
                connection.execute(&format!("DELETE FROM {table} WHERE {column} = ?1"), [&name])?;
            }
            Ok(())
        })
        .await
    }
}

fn leave_one(connection: &Connection, leave: &Leave, now_ms: u64) -> rusqlite::Result<()> {
    let (name, changes) = (&leave.name, &leave.changes);
    connection
        .prepare_cached("INSERT OR REPLACE INTO consumer VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            name,
            leave.pull,
            leave.seen_ms as i64,
            changes.read as i64,
            packed(&changes.open),
            packed(&changes.begun),
            leave.owner,
        ])?;
    for failure in &changes.failed {
        connection
            .prepare_cached("INSERT OR REPLACE INTO failure VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
                name,
                failure.position as i64,
                failure.attempts,
                failure.retry_at_ms as i64,
                failure.error,
            ])?;
    }
    for position in &changes.recovered {
        delete(connection, "failure", name, *position)?;
    }
    for position in &changes.redriven {
        delete(connection, "dead", name, *position)?;
    }
    for failure in &changes.dead {
        // Without an error of its own, it has that of the attempt before.
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO dead VALUES (?1, ?2, ?3, coalesce(nullif(?4, ''),
                     (SELECT error FROM failure WHERE consumer = ?1 AND position = ?2), ''), ?5)",
            )?
            .execute(params![
                name,
                failure.position as i64,
                failure.attempts,
                failure.error,
                now_ms as i64,
            ])?;
        delete(connection, "failure", name, failure.position)?;
    }
    Ok(())
}

/// What was with somebody when the topic ended has failed: nobody will ever tell what became of it.
pub(super) fn count_begun(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare("SELECT name, begun FROM consumer WHERE length(begun) > 0")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
    })?;
    for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
        let (name, begun) = row;
        for position in unpacked(&begun) {
            connection
                .prepare_cached(
                    "INSERT INTO failure VALUES (?1, ?2, 1, 0, ?3) ON CONFLICT DO
                     UPDATE SET attempts = attempts + 1, retry_at = 0, error = excluded.error",
                )?
                .execute(params![name, position as i64, TOPIC_ENDED])?;
        }
        connection.execute("UPDATE consumer SET begun = x'' WHERE name = ?1", [&name])?;
    }
    Ok(())
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<(Tail, Vec<Left>)> {
    let tail = read_tail(connection)?;
    let mut statement =
        connection.prepare("SELECT name, pull, seen, read, open, owner FROM consumer")?;
    let rows = statement.query_map([], |row| {
        let left = Left {
            name: row.get(0)?,
            pull: row.get(1)?,
            owner: row.get(5)?,
            seen_ms: row.get::<_, i64>(2)? as u64,
            read: row.get::<_, i64>(3)? as u64,
            open: Vec::new(),
            failures: HashMap::new(),
            dead: 0,
        };
        Ok((left, row.get::<_, Vec<u8>>(4)?))
    })?;
    let mut all = Vec::new();
    for row in rows {
        let (mut left, open) = row?;
        left.open = open_messages(connection, &unpacked(&open))?;
        left.failures = failures(connection, &left.name)?;
        left.dead = letters::count(connection, &left.name)?;
        all.push(left);
    }
    Ok((tail, all))
}

fn open_messages(
    connection: &Connection,
    positions: &[Position],
) -> rusqlite::Result<Vec<(Position, Option<Key>)>> {
    let mut statement =
        connection.prepare("SELECT position, key FROM message WHERE position = ?1")?;
    let mut open = Vec::with_capacity(positions.len());
    for position in positions {
        open.extend(
            statement
                .query_row([*position as i64], position_and_key)
                .optional()?,
        );
    }
    Ok(open)
}

fn failures(
    connection: &Connection,
    consumer: &str,
) -> rusqlite::Result<HashMap<Position, Failure>> {
    let mut statement = connection
        .prepare("SELECT position, attempts, retry_at, error FROM failure WHERE consumer = ?1")?;
    let rows = statement.query_map([consumer], |row| {
        Ok(Failure {
            position: row.get::<_, i64>(0)? as u64,
            attempts: row.get(1)?,
            retry_at_ms: row.get::<_, i64>(2)? as u64,
            error: row.get(3)?,
        })
    })?;
    rows.map(|row| row.map(|failure| (failure.position, failure)))
        .collect()
}

/// Growing positions as the differences between them, seven bits in a byte.
fn packed(positions: &[Position]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(positions.len() + 8);
    let mut before = 0;
    for position in positions {
        let mut rest = position - before;
        before = *position;
        while rest >= 0x80 {
            bytes.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    bytes
}

fn unpacked(bytes: &[u8]) -> Vec<Position> {
    let (mut positions, mut before, mut value, mut shift) = (Vec::new(), 0, 0, 0);
    for byte in bytes {
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            before += value;
            positions.push(before);
            (value, shift) = (0, 0);
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_packed_and_unpacked() {
        for positions in [
            vec![],
            vec![1],
            vec![1, 2, 300, 301, 1 << 40, (1 << 40) + 127, (1 << 40) + 255],
        ] {
            assert_eq!(unpacked(&packed(&positions)), positions);
        }
    }

    #[test]
    fn close_positions_take_a_byte_each() {
        let positions: Vec<Position> = (1..=8192).collect();
        assert_eq!(packed(&positions).len(), 8192);
    }
}
