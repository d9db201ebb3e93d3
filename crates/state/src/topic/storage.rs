//! A topic's file: messages, how far consumers are, failed attempts, dead letters.
//!
//! - [`schema`]: the tables.
//! - [`consumers`]: how far they are.
//! - [`hub`]: what was just published, in memory, so that fast consumers read nothing from the disk.
//! - [`letters`]: the dead letters.
//! - [`retention`]: what is removed, and how much there is.
//!
//! Everything that is written goes through the one writer of the `sqlite` crate and is told after the sync. Positions are given by that thread,
//! so they are in the order of commits: who has seen a position has seen all before it.

mod consumers;
pub mod hub;
pub mod letters;
pub mod retention;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlite::rusqlite::{self, Connection, OptionalExtension as _, Row, Rows, params};
use sqlite::{Database, Error, Steps};

pub use self::consumers::{Leave, Left};
use self::hub::Hub;
use super::consumer::{Key, Position};
use super::event::{Event, Message};

/// Rows of one answer.
pub const PAGE_MAX: usize = 1000;
/// Bytes of the messages of one answer, unless the first alone has more.
const PAGE_BYTES: u64 = 1 << 20;

pub fn options(path: impl Into<PathBuf>) -> sqlite::Options {
    let mut options = sqlite::Options::new(path, schema::APPLICATION_ID, schema::MIGRATIONS);
    // One may look at very many dead letters, while messages are read for deliveries.
    options.readers = 2;
    options
}

/// Where a published event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub position: Position,
    /// It was there already.
    pub duplicate: bool,
}

#[derive(Clone)]
pub struct Storage {
    database: Database,
    shared: Arc<Shared>,
}

/// What requests need on the writer's thread.
struct Shared {
    path: PathBuf,
    hub: Arc<Hub>,
    /// Used by the writer's thread alone; nobody waits for the lock. None: to be read again.
    tail: Mutex<Option<Tail>>,
    /// Whether a version before left messages whose names leave out the publisher.
    has_unowned: bool,
}

/// The newest message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tail {
    pub position: Position,
    /// Bytes published in the life of the topic.
    pub end: u64,
}

/// What one request has stored, and what is the newest since.
type Stored = (Vec<Published>, Vec<Arc<Event>>, Tail);

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Option<Tail>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self, error: &rusqlite::Error) -> Error {
        Error::from_sqlite(&self.path, error)
    }
}

impl Storage {
    /// Opens or creates the file. Blocks for as long as the disk takes.
    ///
    /// # Errors
    ///
    /// The file can't be opened, or is none of ours.
    pub fn open(options: sqlite::Options) -> Result<(Self, Vec<Left>), Error> {
        let path = options.path.clone();
        let database = Database::open(options)?;
        let named = path.clone();
        let counted = move |connection: &Connection| {
            consumers::count_begun(connection).map_err(|error| Error::from_sqlite(&named, &error))
        };
        match database.write(counted).wait() {
            // Nothing begins before there is room; until then it can be looked at.
            Err(error @ Error::DiskFull { .. }) => {
                tracing::warn!(%error, "what was being delivered is not counted");
            }
            counted => counted?,
        }
        let named = path.clone();
        let ((tail, left), has_unowned) = database
            .read(move |connection| {
                let loaded = consumers::load(connection);
                let loaded = loaded.and_then(|loaded| Ok((loaded, has_unowned(connection)?)));
                loaded.map_err(|error| Error::from_sqlite(&named, &error))
            })
            .wait()?;
        let shared = Shared {
            path,
            hub: Arc::new(Hub::new(tail)),
            tail: Mutex::default(),
            has_unowned,
        };
        let storage = Self {
            database,
            shared: Arc::new(shared),
        };
        Ok((storage, left))
    }

    pub fn hub(&self) -> &Arc<Hub> {
        &self.shared.hub
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Whether the topic has messages whose names leave out the publisher, as versions before stored them; as it was when it was opened.
    pub fn has_unowned(&self) -> bool {
        self.shared.has_unowned
    }

    /// Stores events, in order and all or none. Answers after the sync.
    ///
    /// # Errors
    ///
    /// Nothing was stored, or, after a failed sync, nobody knows.
    pub fn publish(
        &self,
        events: Vec<Arc<Event>>,
    ) -> impl Future<Output = Result<Vec<Published>, Error>> + Send + use<> {
        let steps = match events.len() {
            1 => Steps::One,
            _ => Steps::Many,
        };
        let (working, telling) = (self.shared.clone(), self.shared.clone());
        let work = move |connection: &Connection| {
            let mut tail = *working.tail();
            let published = insert_all(connection, &mut tail, &events);
            let published = published.map_err(|error| working.named(&error))?;
            *working.tail() = tail;
            Ok((published, events, tail.unwrap_or_default()))
        };
        let after = move |outcome: Result<Stored, Error>| {
            let (published, events, tail) = match outcome {
                Ok(done) => done,
                Err(error) => {
                    // What others stored in the same transaction may be gone too.
                    *telling.tail() = None;
                    return Err(error);
                }
            };
            telling.hub.tell(&published, &events, tail);
            Ok(published)
        };
        self.database.write_then(steps, work, after)
    }

    /// Positions and keys behind `after`.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn keys_after(
        &self,
        after: Position,
        limit: usize,
    ) -> Result<Vec<(Position, Option<Key>)>, Error> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT position, key FROM message WHERE position > ?1 ORDER BY position LIMIT ?2",
            )?;
            let rows =
                statement.query_map(params![after as i64, limit as i64], position_and_key)?;
            rows.collect()
        })
        .await
    }

    /// # Errors
    ///
    /// It can't be read.
    pub async fn message(&self, position: Position) -> Result<Option<Message>, Error> {
        if let Some(message) = self.hub().get(position) {
            return Ok(Some(message));
        }
        self.read(move |connection| message(connection, position))
            .await
    }

    /// Messages behind `after`: at most `limit`, and a mebibyte.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn messages_after(
        &self,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Message>, Error> {
        let limit = limit.min(PAGE_MAX);
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {MESSAGE} FROM message WHERE position > ?1 ORDER BY position LIMIT ?2"
            ))?;
            let rows = statement.query(params![after as i64, limit as i64])?;
            page(rows, read_message, |message| message.event.size())
        })
        .await
    }

    /// When the first message at `position` or behind it was published.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub async fn time_at(&self, position: Position) -> Result<Option<u64>, Error> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT at FROM message WHERE position >= ?1 ORDER BY position LIMIT 1",
            )?;
            let at = statement.query_row([position as i64], |row| row.get::<_, i64>(0));
            Ok(at.optional()?.map(|at| at as u64))
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.shared.clone();
        let work =
            move |connection: &Connection| work(connection).map_err(|error| shared.named(&error));
        self.database.read(work).await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (working, telling) = (self.shared.clone(), self.shared.clone());
        let work =
            move |connection: &Connection| work(connection).map_err(|error| working.named(&error));
        let after = move |outcome: Result<T, Error>| {
            if outcome.is_err() {
                *telling.tail() = None;
            }
            outcome
        };
        self.database.write_then(Steps::Many, work, after).await
    }
}

const MESSAGE: &str = "position, at, key, dedup, content_type, attributes, data";

fn insert_all(
    connection: &Connection,
    tail: &mut Option<Tail>,
    events: &[Arc<Event>],
) -> rusqlite::Result<Vec<Published>> {
    let mut newest = match *tail {
        Some(tail) => tail,
        None => read_tail(connection)?,
    };
    let published = events
        .iter()
        .map(|event| insert(connection, &mut newest, event))
        .collect::<rusqlite::Result<_>>()?;
    *tail = Some(newest);
    Ok(published)
}

fn insert(connection: &Connection, tail: &mut Tail, event: &Event) -> rusqlite::Result<Published> {
    if let Some(position) = known_before(connection, event)? {
        return Ok(Published {
            position,
            duplicate: true,
        });
    }
    let next = Tail {
        position: tail.position + 1,
        end: tail.end + event.size(),
    };
    let attributes = (!event.attributes.is_empty())
        .then(|| serde_json::to_string(&event.attributes).unwrap_or_default());
    let inserted = connection
        .prepare_cached(
            "INSERT INTO message (position, end, at, key, dedup, content_type, attributes, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (dedup) WHERE dedup IS NOT NULL DO NOTHING",
        )?
        .execute(params![
            next.position as i64,
            next.end as i64,
            event.at_ms as i64,
            event.key.as_deref(),
            event.dedup,
            event.content_type,
            attributes,
            &event.data[..],
        ])?;
    if inserted == 0 {
        let position = connection
            .prepare_cached("SELECT position FROM message WHERE dedup = ?1")?
            .query_row([&event.dedup], |row| row.get::<_, i64>(0))?;
        return Ok(Published {
            position: position as u64,
            duplicate: true,
        });
    }
    *tail = next;
    Ok(Published {
        position: next.position,
        duplicate: false,
    })
}

/// What a version before stored a moment ago of the same name and says the same, though it does not say who published it.
fn known_before(connection: &Connection, event: &Event) -> rusqlite::Result<Option<Position>> {
    let Some(name) = &event.dedup_before else {
        return Ok(None);
    };
    let known = connection
        .prepare_cached(&format!("SELECT {MESSAGE} FROM message WHERE dedup = ?1"))?
        .query_row([name], read_message)
        .optional()?;
    let known = known.filter(|known| event.repeats(&known.event));
    Ok(known.map(|known| known.position))
}

/// Names that say the publisher begin with a line's end, and no others do.
fn has_unowned(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM message WHERE dedup IS NOT NULL AND dedup >= char(11))",
        [],
        |row| row.get(0),
    )
}

/// The newest message, even if it is removed already.
fn read_tail(connection: &Connection) -> rusqlite::Result<Tail> {
    let tail = |row: &Row<'_>| {
        Ok(Tail {
            position: row.get::<_, i64>(0)? as u64,
            end: row.get::<_, i64>(1)? as u64,
        })
    };
    let newest = connection
        .prepare_cached("SELECT position, end FROM message ORDER BY position DESC LIMIT 1")?
        .query_row([], tail)
        .optional()?;
    let removed = connection
        .prepare_cached("SELECT position, end FROM removed")?
        .query_row([], tail)?;
    Ok(match newest {
        Some(newest) if newest.position > removed.position => newest,
        _ => removed,
    })
}

fn message(connection: &Connection, position: Position) -> rusqlite::Result<Option<Message>> {
    connection
        .prepare_cached(&format!(
            "SELECT {MESSAGE} FROM message WHERE position = ?1"
        ))?
        .query_row([position as i64], read_message)
        .optional()
}

fn read_message(row: &Row<'_>) -> rusqlite::Result<Message> {
    let attributes = row.get_ref(5)?.as_str_or_null()?;
    let attributes = attributes.and_then(|text| serde_json::from_str(text).ok());
    let event = Event {
        at_ms: row.get::<_, i64>(1)? as u64,
        key: row.get::<_, Option<String>>(2)?.map(Key::from),
        dedup: row.get(3)?,
        dedup_before: None,
        content_type: row.get(4)?,
        attributes: attributes.unwrap_or_default(),
        data: row.get::<_, Vec<u8>>(6)?.into(),
    };
    Ok(Message {
        position: row.get::<_, i64>(0)? as u64,
        event: Arc::new(event),
    })
}

/// As many as one answer has.
fn page<T>(
    mut rows: Rows<'_>,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    size: impl Fn(&T) -> u64,
) -> rusqlite::Result<Vec<T>> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let one = read(row)?;
        bytes += size(&one);
        if bytes > PAGE_BYTES && !page.is_empty() {
            break;
        }
        page.push(one);
    }
    Ok(page)
}

fn position_and_key(row: &Row<'_>) -> rusqlite::Result<(Position, Option<Key>)> {
    let key = row.get::<_, Option<String>>(1)?;
    Ok((row.get::<_, i64>(0)? as u64, key.map(Key::from)))
}

fn delete(
    connection: &Connection,
    table: &str,
    consumer: &str,
    position: Position,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(&format!(
            "DELETE FROM {table} WHERE consumer = ?1 AND position = ?2"
        ))?
        .execute(params![consumer, position as i64])
        .map(|_| ())
}
