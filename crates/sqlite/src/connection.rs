//! Opening connections: the settings that everything else relies on.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::{Error, Options};

/// Statements kept prepared per connection; more than any user of this crate has.
const PREPARED_STATEMENTS: usize = 64;
/// A log that once grew is cut to this many bytes when it starts anew.
const LOG_BYTES_KEPT: i64 = 16 << 20;
/// Page cache of a connection that reads, in KiB.
const READER_CACHE_KIB: i64 = 4096;
/// Of the one that writes: all that a busy store of ten thousand keys touches, or each compaction reads pages anew.
const WRITER_CACHE_KIB: i64 = 16_384;
/// How long a restarting checkpoint waits for readers, which are short.
const BUSY_TIMEOUT: Duration = Duration::from_millis(200);

/// The connection that writes: creates the file, brings its schema up to date.
pub(crate) fn open_writer(options: &Options) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = open(options, flags)?;
    let named = |error: rusqlite::Error| Error::from_sqlite(&options.path, &error);
    // First of all, since the settings below are written into the file.
    let is_ours = recognise(&connection, options)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(named)?;
    connection
        .pragma_update(None, "synchronous", options.synchronous())
        .map_err(named)?;
    connection
        .pragma_update(None, "wal_autocheckpoint", 0)
        .map_err(named)?;
    connection
        .pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)
        .map_err(named)?;
    connection
        .pragma_update(None, "cache_size", -WRITER_CACHE_KIB)
        .map_err(named)?;
    if !is_ours {
        connection
            .pragma_update(None, "application_id", options.application_id)
            .map_err(named)?;
    }
    migrate(&mut connection, options)?;
    Ok(connection)
}

/// A connection that only reads, and never checkpoints, not even when it closes.
pub(crate) fn open_reader(options: &Options) -> Result<Connection, Error> {
    let connection = open(options, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(|error| Error::from_sqlite(&options.path, &error))?;
    Ok(connection)
}

fn open(options: &Options, flags: OpenFlags) -> Result<Connection, Error> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = match options.vfs() {
        Some(vfs) => Connection::open_with_flags_and_vfs(&options.path, flags, vfs),
        None => Connection::open_with_flags(&options.path, flags),
    };
    connection
        .and_then(|connection| settle(&connection).map(|()| connection))
        .map_err(|error| Error::from_sqlite(&options.path, &error))
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Plans must not depend on bound values: with a partial index each binding would prepare the statement anew.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

/// Whether the file is marked as ours; a new one is not yet. One of another application is refused.
fn recognise(connection: &Connection, options: &Options) -> Result<bool, Error> {
    let named = |error: rusqlite::Error| Error::from_sqlite(&options.path, &error);
    let found: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(named)?;
    if found == options.application_id {
        return Ok(true);
    }
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(named)?;
    match (found, tables) {
        (0, 0) => Ok(false),
        _ => Err(Error::Foreign {
            path: options.path.clone(),
            found,
            expected: options.application_id,
        }),
    }
}

/// Runs the migrations the file has not seen, each with its number in one transaction.
fn migrate(connection: &mut Connection, options: &Options) -> Result<(), Error> {
    let named = |error: rusqlite::Error| Error::from_sqlite(&options.path, &error);
    let found: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .map_err(named)?
        .try_into()
        .unwrap_or(0);
    let known = options.migrations.len();
    if found > known {
        return Err(Error::Newer {
            path: options.path.clone(),
            found,
            known,
        });
    }
    for (index, migration) in options.migrations.iter().enumerate().skip(found) {
        migrate_once(connection, migration, index + 1).map_err(named)?;
    }
    Ok(())
}

fn migrate_once(
    connection: &mut Connection,
    migration: &str,
    version: usize,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(migration)?;
    transaction.pragma_update(None, "user_version", version as i64)?;
    transaction.commit()
}

/// The file whose lock says that a process has the database open.
pub(crate) fn lock_path(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    name.into()
}
