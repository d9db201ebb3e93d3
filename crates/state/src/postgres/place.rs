//! Where one database lies on the machine.
//!
//! | what | where |
//! |---|---|
//! | the files of the database | `$DATA_DIR/pgdata`, made as `$DATA_DIR/pgdata.new` |
//! | the lock that one engine at a time holds | `$DATA_DIR/engine.lock` |
//! | PostgreSQL's socket | beside [`model::state::ENGINE_SOCKET`], in a folder that only the engine's user enters |

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use model::state::{EngineFile, database_name};
use rustix::fs::{FlockOperation, flock};

use crate::settings::Settings;

pub const SETTINGS_FILE: &str = "mainland.conf";
/// The files of the database, in the volume.
pub const FILES: &str = "pgdata";
/// Files that are not complete yet.
pub const UNFINISHED: &str = "pgdata.new";
/// Of a Unix socket's path, with the byte that ends it.
const SOCKET_PATH_MAX: usize = 107;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} is too long a path for PostgreSQL's socket ({SOCKET_PATH_MAX} bytes)",
        .0.display()
    )]
    TooLong(PathBuf),
    #[error(
        "{} must be the engine's own and closed to others (mode 0700): PostgreSQL's socket lies in it",
        .0.display()
    )]
    Open(PathBuf),
    #[error("another engine has {}", .0.display())]
    Taken(PathBuf),
    #[error(
        "a database can't be called `{0}`: PostgreSQL or Mainland has that name for itself; choose another"
    )]
    Reserved(String),
}

impl Error {
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

#[derive(Debug, Clone)]
pub struct Place {
    pub volume: PathBuf,
    /// The folder of PostgreSQL's socket.
    pub socket: PathBuf,
    pub port: u16,
    /// Of the database, and of the role that owns all in it.
    pub database: String,
}

impl Place {
    /// # Errors
    ///
    /// Its name is PostgreSQL's own, or a path is too long.
    pub fn of(settings: &Settings, file: &EngineFile) -> Result<Self, Error> {
        let volume = settings
            .data
            .canonicalize()
            .map_err(Error::io(&settings.data))?;
        let socket = settings.socket.parent().unwrap_or(Path::new("/"));
        let place = Self {
            volume,
            socket: socket.to_owned(),
            port: settings.port,
            database: database_name(&file.name),
        };
        let path = socket.join(format!(".s.PGSQL.{}", settings.port));
        match path.as_os_str().len() {
            0..SOCKET_PATH_MAX => {}
            _ => return Err(Error::TooLong(path)),
        }
        match is_reserved(&place.database) {
            false => Ok(place),
            true => Err(Error::Reserved(file.name.to_string())),
        }
    }

    pub fn files(&self) -> PathBuf {
        self.volume.join(FILES)
    }

    /// Of PostgreSQL's socket.
    pub fn socket_lock_file(&self) -> PathBuf {
        self.socket.join(format!(".s.PGSQL.{}.lock", self.port))
    }

    /// Who may come in how.
    pub fn access_file(&self) -> PathBuf {
        self.files().join("mainland.hba.conf")
    }

    /// Held until the engine ends: two engines never write the same files.
    ///
    /// # Errors
    ///
    /// Another engine holds it.
    pub fn lock(&self) -> Result<File, Error> {
        let path = self.volume.join("engine.lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Taken(self.volume.clone())),
            Err(error) => Err(Error::io(&path)(error.into())),
        }
    }

    /// # Errors
    ///
    /// Others could reach PostgreSQL's socket.
    pub fn check_socket_folder(&self) -> Result<(), Error> {
        let metadata = self.socket.metadata().map_err(Error::io(&self.socket))?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        match own && metadata.permissions().mode() & 0o077 == 0 {
            true => Ok(()),
            false => Err(Error::Open(self.socket.clone())),
        }
    }
}

/// Names of databases and of roles in one: the database's owner is a role of its name.
fn is_reserved(database: &str) -> bool {
    let taken = [
        "postgres",
        "template0",
        "template1",
        "mainland",
        "public",
        "none",
    ];
    taken.contains(&database) || database.starts_with("pg_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_postgresql_are_reserved() {
        for (name, reserved) in [
            ("orders_db", false),
            ("mainland", true),
            ("postgres", true),
            ("template1", true),
            ("pg_orders", true),
            ("pgorders", false),
        ] {
            assert_eq!(is_reserved(name), reserved, "{name}");
        }
    }
}
