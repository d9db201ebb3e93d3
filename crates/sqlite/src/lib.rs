//! The one way Mainland uses SQLite.
//!
//! A [`Database`] owns a file. One thread, the [writer](writer), takes requests from a bounded queue, runs many of them in one
//! transaction (in a savepoint where it takes one, so that each has its own verdict), syncs once, and tells the verdicts only then. The same
//! thread folds the write-ahead log back into the file. A few [reader](reader) threads answer short questions on snapshots.
//!
//! ```text
//! write(work) ──► bounded queue ──► writer: BEGIN · work · work · … · COMMIT + sync ──► verdicts, in commit order
//! read(work)  ──► bounded queue ──► reader: snapshot · work ──► answer
//! ```
//!
//! Settings, each for a reason: bundled SQLite (distributions ship versions with the WAL-reset bug), WAL, `synchronous=FULL` (an
//! acknowledged write survives a power loss), no mmap (an I/O error must be an error, not a signal), no automatic checkpoints
//! (nobody but the writer checkpoints). A lock file beside the database keeps a second process out.
//!
//! A full disk refuses what did not fit and nothing else: once there is room again, the next write succeeds.

mod connection;
mod database;
mod error;
mod job;
mod reader;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub use database::{Database, Options};
pub use error::Error;
pub use job::{Pending, Steps};
pub use rusqlite;
