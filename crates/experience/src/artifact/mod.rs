//! What `run` names, as bytes with a digest, uploaded.
//!
//! [`pack`] makes it: a file is sent as it is, a folder as a deterministic tar. The same files give the same digest on every machine,
//! so that nothing is sent twice. [`upload`] sends what the server lacks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use model::compute::ArtifactRef;
use model::units::Bytes;

mod ignored;
mod pack;
mod upload;

pub use ignored::IGNORE_FILE;
pub use pack::{check, make};

/// Bytes that are ready to be sent.
#[derive(Debug)]
pub struct Artifact {
    pub reference: ArtifactRef,
    /// The file or folder that it was made of.
    source: PathBuf,
    /// A folder's are in a file without a name, which goes with this.
    bytes: File,
}

/// What an artifact may be at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub size: Bytes,
    /// Files, folders and symlinks.
    pub entries: usize,
}

impl Default for Limits {
    /// What servers store and nodes unpack.
    fn default() -> Self {
        Self {
            size: Bytes(8 << 30),
            entries: 500_000,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} is missing", path = .0.display())]
    Missing(PathBuf),
    #[error("{path} is neither a file, a folder nor a symlink: remove it, or leave it out by a line in {IGNORE_FILE}", path = .0.display())]
    Special(PathBuf),
    #[error("the symlink {path} leads out of the folder, to {target}: replace it by what it leads to, or leave it out by a line in {IGNORE_FILE}", path = path.display(), target = target.display())]
    SymlinkOutside { path: PathBuf, target: PathBuf },
    #[error("{path} is larger than {limit}", path = path.display())]
    TooLarge { path: PathBuf, limit: Bytes },
    #[error("{path} is no list of what to leave out: {error}", path = path.display())]
    IgnoreFile { path: PathBuf, error: String },
    #[error("{path} holds more than {limit} files and folders: leave out what the program does not need, by {IGNORE_FILE}", path = path.display())]
    TooMany { path: PathBuf, limit: usize },
    #[error("{path} changed while it was read: try again", path = .0.display())]
    Changed(PathBuf),
    #[error("`{0}` can't be placed in a working directory: it must be a path inside of it")]
    UnsafeName(String),
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Error {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}
