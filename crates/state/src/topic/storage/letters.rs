//! The dead letters: what a consumer refused until its attempts were used up, with the last error, until somebody decides.

use model::state::DeadLetters;
use sqlite::Error;
use sqlite::rusqlite::{self, Connection, Row, params};

use super::{MESSAGE, PAGE_MAX, Storage, page, read_message};
use crate::topic::consumer::{Key, Position};
use crate::topic::event::Message;

/// Dead letters that one request moves.
const MOVE_MAX: usize = 4096;

/// A dead message of one consumer.
#[derive(Debug, Clone)]
pub struct Letter {
    pub consumer: String,
    pub attempts: u32,
    pub error: String,
    pub died_ms: u64,
    pub message: Message,
}

/// A dead letter by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub consumer: String,
    pub position: Position,
    pub key: Option<Key>,
}

impl Storage {
    /// Dead letters behind a position, oldest first: at most `limit`, and a mebibyte.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn letters(
        &self,
        consumer: Option<String>,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Letter>, Error> {
        let limit = limit.min(PAGE_MAX);
        self.read(move |connection| {
            let columns = MESSAGE.replace("position, at", "message.position, message.at");
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {columns}, dead.consumer, dead.attempts, dead.error, dead.at
                 FROM dead JOIN message USING (position)
                 WHERE position > ?1 AND (?2 IS NULL OR dead.consumer = ?2) ORDER BY position LIMIT ?3"
            ))?;
            let rows = statement.query(params![after as i64, consumer, limit as i64])?;
            page(rows, read_letter, |letter| letter.message.event.size() + letter.error.len() as u64)
        })
        .await
    }

    /// Where the dead letters are that `which` names, oldest first; at most 4,096 of them.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn places(&self, which: DeadLetters) -> Result<Vec<Place>, Error> {
        self.read(move |connection| places(connection, &which))
            .await
    }

    /// Takes dead letters away for good. Those that were there.
    ///
    /// # Errors
    ///
    /// All of them are still there.
    pub async fn discard(&self, which: DeadLetters) -> Result<Vec<Place>, Error> {
        self.write(move |connection| {
            let places = places(connection, &which)?;
            for place in &places {
                super::delete(connection, "dead", &place.consumer, place.position)?;
            }
            Ok(places)
        })
        .await
    }
}

pub(super) fn count(connection: &Connection, consumer: &str) -> rusqlite::Result<u64> {
    let count = "SELECT count(*) FROM dead WHERE consumer = ?1";
    let count = connection.query_row(count, [consumer], |row| row.get::<_, i64>(0))?;
    Ok(count as u64)
}

fn read_letter(row: &Row<'_>) -> rusqlite::Result<Letter> {
    Ok(Letter {
        message: read_message(row)?,
        consumer: row.get(7)?,
        attempts: row.get(8)?,
        error: row.get(9)?,
        died_ms: row.get::<_, i64>(10)? as u64,
    })
}

fn places(connection: &Connection, which: &DeadLetters) -> rusqlite::Result<Vec<Place>> {
    let consumer = which.consumer.as_ref().map(|name| name.as_str());
    let positions = which.positions.as_ref();
    let positions = positions.map(|positions| serde_json::to_string(positions).unwrap_or_default());
    let mut statement = connection.prepare_cached(
        "SELECT consumer, position, key FROM dead JOIN message USING (position)
         WHERE (?1 IS NULL OR consumer = ?1) AND (?2 IS NULL OR position IN (SELECT value FROM json_each(?2)))
         ORDER BY position LIMIT ?3",
    )?;
    let rows = statement.query_map(params![consumer, positions, MOVE_MAX as i64], |row| {
        Ok(Place {
            consumer: row.get(0)?,
            position: row.get::<_, i64>(1)? as u64,
            key: row.get::<_, Option<String>>(2)?.map(Key::from),
        })
    })?;
    rows.collect()
}
