//! Artifacts: what runs, as bytes with a digest.
//!
//! A file is its own bytes. A folder is a deterministic tar, made where it is uploaded from, so that the same folder has the same
//! digest on every machine and is uploaded once. [`store`] keeps them on servers and nodes; [`unpack`] makes a working directory of one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use model::ids::Digest;
use model::units::Bytes;
use sha2::{Digest as _, Sha256};

pub mod store;
pub mod unpack;

pub use store::ArtifactStore;

/// Largest artifact.
pub const SIZE_MAX: Bytes = Bytes(8 << 30);
/// Most files and folders in one.
pub const ENTRIES_MAX: usize = 500_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} in the artifact is neither a file, a folder nor a symlink: upload it without that", path = .0.display())]
    Special(PathBuf),
    #[error("the symlink {path} in the artifact leads out of it, to {target}: replace it by what it leads to", path = path.display(), target = target.display())]
    SymlinkOutside { path: PathBuf, target: PathBuf },
    #[error("{path} in the artifact lies behind a symlink or a file: upload it as a part of the folder that it is in", path = .0.display())]
    NotInFolder(PathBuf),
    #[error("{path} is larger than {limit}", path = path.display())]
    TooLarge { path: PathBuf, limit: Bytes },
    #[error("{path} holds more than {limit} files and folders", path = path.display())]
    TooMany { path: PathBuf, limit: usize },
    #[error("`{name}` can't be placed in a working directory: it must be a path inside of it", name = .0.display())]
    UnsafePath(PathBuf),
    #[error("the artifact {0} is not here")]
    Unknown(Digest),
    #[error("the upload of {digest} has {expected} bytes, not {offset}: go on from there")]
    Offset {
        digest: Digest,
        offset: u64,
        expected: u64,
    },
    #[error("the upload of {digest} has {received} of {size} bytes")]
    Incomplete {
        digest: Digest,
        received: u64,
        size: u64,
    },
    /// The bytes are not what the digest says; they were removed.
    #[error("the bytes of {digest} are not right: they are {found}; they have been discarded")]
    Mismatch { digest: Digest, found: Digest },
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// The digest of all that is left in `reader`, and its length.
pub fn digest_of(mut reader: impl Read) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut size = 0;
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok((Digest(hasher.finalize().into()), size));
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

/// Whether what is left in `file`, which lies at `path`, has this digest.
pub fn verify(file: &File, path: &Path, digest: Digest) -> Result<(), Error> {
    let (found, _) = digest_of(file).map_err(Error::io("reading", path))?;
    match found == digest {
        true => Ok(()),
        false => Err(Error::Mismatch { digest, found }),
    }
}
