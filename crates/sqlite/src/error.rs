//! What can go wrong, as an operator or a caller would tell it apart.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Every error can be cloned, since one failed commit is the verdict of many requests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "no space left for the database {path}: nothing was written; free some space, it needs no restart"
    )]
    DiskFull { path: PathBuf },
    #[error(
        "cannot write the database {path} ({detail}); check that its directory exists and that this user may write there"
    )]
    Unwritable { path: PathBuf, detail: String },
    #[error(
        "reading or writing the database {path} failed ({detail}); check the disk and the system's log"
    )]
    InputOutput { path: PathBuf, detail: String },
    #[error(
        "the database {path} is damaged or is no database ({detail}); restore it from a backup"
    )]
    Corrupt { path: PathBuf, detail: String },
    #[error("the database {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error(
        "the file {path} belongs to another application (id {found:#010x}, expected {expected:#010x})"
    )]
    Foreign {
        path: PathBuf,
        found: i32,
        expected: i32,
    },
    #[error(
        "the database {path} has format {found}, and this version knows only {known}; use a newer version"
    )]
    Newer {
        path: PathBuf,
        found: usize,
        known: usize,
    },
    /// The sync of a commit failed: the write may or may not be there after a restart.
    #[error("whether the write to {path} is durable is unknown ({detail})")]
    OutcomeUnknown { path: PathBuf, detail: String },
    #[error("too many requests are waiting for the database {path}; try again later")]
    Overloaded { path: PathBuf },
    #[error("the database {path} is closed")]
    Closed { path: PathBuf },
    /// A bug: wrong SQL, a broken constraint, a panic in a request.
    #[error("a request to the database {path} went wrong ({detail})")]
    Request { path: PathBuf, detail: String },
}

impl Error {
    /// Names what SQLite reported about the database at `path`.
    pub fn from_sqlite(path: &Path, error: &rusqlite::Error) -> Error {
        let path = path.to_owned();
        let detail = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Error::DiskFull { path },
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                Error::Unwritable { path, detail }
            }
            Some(
                ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory | ErrorCode::NoLargeFileSupport,
            ) => Error::InputOutput { path, detail },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Error::Corrupt { path, detail }
            }
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed,
            ) => Error::InUse { path },
            _ => Error::Request { path, detail },
        }
    }

    /// The same for a failed COMMIT: after a failed sync nobody knows what the disk kept.
    pub(crate) fn from_commit(path: &Path, error: &rusqlite::Error) -> Error {
        match Error::from_sqlite(path, error) {
            Error::InputOutput { path, detail } => Error::OutcomeUnknown { path, detail },
            other => other,
        }
    }
}
