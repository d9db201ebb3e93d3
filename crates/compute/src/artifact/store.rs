//! Artifacts on disk, for servers and nodes: uploaded in chunks that can be resumed, whole or not there at all.
//!
//! ```text
//! ROOT/sha256/HEX           complete, verified and synced
//! ROOT/incoming/HEX-SIZE    an upload under way; its length is how much was received
//! ```
//!
//! Who may remove what is decided elsewhere: by the server from the releases, by a node from its placements.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::SystemTime;

use model::ids::Digest;
use model::units::Bytes;

use super::{Error, SIZE_MAX, digest_of};

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All of it is here.
    Complete,
    /// The next byte that is wanted.
    Partial { received: u64 },
}

/// A complete artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: Bytes,
    pub stored_at: SystemTime,
}

#[derive(Debug)]
pub struct ArtifactStore {
    complete: PathBuf,
    incoming: PathBuf,
    /// An upload changes under a lock of its own, so that two clients with the same artifact take turns, and nobody waits while another's is read.
    /// Those that somebody holds or waits for.
    uploads: Mutex<BTreeMap<Digest, Weak<Mutex<()>>>>,
}

impl ArtifactStore {
    /// Opens the store, making its folders when missing.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let store = Self {
            complete: root.join("sha256"),
            incoming: root.join("incoming"),
            uploads: Mutex::default(),
        };
        // What one service is made of is not for another to read.
        for folder in [root, &store.complete, &store.incoming] {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(folder);
            made.map_err(Error::io("making", folder))?;
        }
        Ok(store)
    }

    fn turn_of(&self, digest: Digest) -> Arc<Mutex<()>> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.retain(|_, turn| turn.strong_count() > 0);
        let known = uploads.get(&digest).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let turn = Arc::default();
            uploads.insert(digest, Arc::downgrade(&turn));
            turn
        })
    }

    /// Begins an upload, or says where one that was begun goes on.
    pub fn begin(&self, digest: Digest, size: Bytes) -> Result<Progress, Error> {
        if size > SIZE_MAX {
            return Err(Error::TooLarge {
                path: digest.to_string().into(),
                limit: SIZE_MAX,
            });
        }
        let turn = self.turn_of(digest);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.contains(digest) {
            return Ok(Progress::Complete);
        }
        if let Some(upload) = self.upload(digest)? {
            if upload.size == size.0 {
                return Ok(Progress::Partial {
                    received: upload.received,
                });
            }
            fs::remove_file(&upload.path).map_err(Error::io("removing", &upload.path))?;
        }
        let path = self.incoming.join(format!("{}-{}", digest.hex(), size.0));
        File::create(&path).map_err(Error::io("making", &path))?;
        Ok(Progress::Partial { received: 0 })
    }

    /// Adds bytes at `offset`, which must be what was received so far; returns what is then received.
    pub fn append(&self, digest: Digest, offset: u64, bytes: &[u8]) -> Result<u64, Error> {
        let turn = self.turn_of(digest);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let upload = self.upload(digest)?.ok_or(Error::Unknown(digest))?;
        if upload.received != offset {
            return Err(Error::Offset {
                digest,
                offset,
                expected: upload.received,
            });
        }
        let received = offset + bytes.len() as u64;
        if received > upload.size {
            return Err(Error::TooLarge {
                path: digest.to_string().into(),
                limit: Bytes(upload.size),
            });
        }
        let written = |error| Error::io("writing", &upload.path)(error);
        let mut file = OpenOptions::new()
            .append(true)
            .open(&upload.path)
            .map_err(written)?;
        if let Err(error) = file.write_all(bytes) {
            // What a full disk took of it would be counted as received.
            let _ = file.set_len(offset);
            return Err(written(error));
        }
        Ok(received)
    }

    /// How long an upload is to be, or an artifact is.
    pub fn upload_size(&self, digest: Digest) -> Result<Bytes, Error> {
        match self.upload(digest)? {
            Some(upload) => Ok(Bytes(upload.size)),
            None => self.size(digest),
        }
    }

    /// Ends an upload: verifies the digest, syncs, and makes it visible. Wrong bytes are discarded.
    pub fn commit(&self, digest: Digest) -> Result<(), Error> {
        self.check(digest)?;
        self.place(digest)
    }

    /// Verifies the digest of an upload that is whole, and syncs it. Wrong bytes are discarded.
    pub fn check(&self, digest: Digest) -> Result<(), Error> {
        let turn = self.turn_of(digest);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(upload) = self.whole(digest)? else {
            return Ok(());
        };
        let file = File::open(&upload.path).map_err(Error::io("opening", &upload.path))?;
        let (found, _) = digest_of(&file).map_err(Error::io("reading", &upload.path))?;
        if found != digest {
            fs::remove_file(&upload.path).map_err(Error::io("removing", &upload.path))?;
            return Err(Error::Mismatch { digest, found });
        }
        file.sync_all().map_err(Error::io("syncing", &upload.path))
    }

    /// Makes an upload visible that was found right ([`check`](Self::check)).
    pub fn place(&self, digest: Digest) -> Result<(), Error> {
        let turn = self.turn_of(digest);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(upload) = self.whole(digest)? else {
            return Ok(());
        };
        let path = self.path(digest);
        fs::rename(&upload.path, &path).map_err(Error::io("placing", &path))?;
        File::open(&self.complete)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("syncing", &self.complete))
    }

    /// The upload, all of it received. `None`: it is an artifact already.
    fn whole(&self, digest: Digest) -> Result<Option<Upload>, Error> {
        if self.contains(digest) {
            return Ok(None);
        }
        let upload = self.upload(digest)?.ok_or(Error::Unknown(digest))?;
        match upload.received == upload.size {
            true => Ok(Some(upload)),
            false => Err(Error::Incomplete {
                digest,
                received: upload.received,
                size: upload.size,
            }),
        }
    }

    pub fn contains(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Where the artifact's bytes are, or would be.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.complete.join(digest.hex())
    }

    pub fn size(&self, digest: Digest) -> Result<Bytes, Error> {
        match fs::metadata(self.path(digest)) {
            Ok(metadata) => Ok(Bytes(metadata.len())),
            Err(error) => Err(self.missing_or(digest, error)),
        }
    }

    /// The bytes from `offset` on.
    pub fn read(&self, digest: Digest, offset: u64) -> Result<File, Error> {
        let open = || {
            let mut file = File::open(self.path(digest))?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(file)
        };
        open().map_err(|error| self.missing_or(digest, error))
    }

    fn missing_or(&self, digest: Digest, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::NotFound => Error::Unknown(digest),
            _ => Error::io("reading", &self.path(digest))(error),
        }
    }

    /// Reads all of it again. A corrupt one is removed, so that it is fetched again.
    pub fn verify(&self, digest: Digest) -> Result<(), Error> {
        let path = self.path(digest);
        let file = self.read(digest, 0)?;
        let verified = super::verify(&file, &path, digest);
        let Err(Error::Mismatch { .. }) = verified else {
            return verified;
        };
        let turn = self.turn_of(digest);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Another one may lie there by now. No other has this inode, which is open.
        let read = file.metadata().map_err(Error::io("reading", &path))?.ino();
        if fs::metadata(&path).is_ok_and(|now| now.ino() == read) {
            self.remove(digest)?;
        }
        verified
    }

    /// All that is complete.
    pub fn list(&self) -> Result<Vec<Stored>, Error> {
        let read = |error| Error::io("reading", &self.complete)(error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.complete).map_err(read)? {
            let entry = entry.map_err(read)?;
            let Some(digest) = parse_hex(&entry.file_name().to_string_lossy()) else {
                continue;
            };
            // It may have been removed since the folder was read.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let stored_at = metadata.modified().map_err(read)?;
            found.push(Stored {
                digest,
                size: Bytes(metadata.len()),
                stored_at,
            });
        }
        found.sort_by_key(|stored| stored.digest);
        Ok(found)
    }

    /// Removes a complete artifact. One that is gone is fine; whoever reads it reads on.
    pub fn remove(&self, digest: Digest) -> Result<(), Error> {
        let path = self.path(digest);
        crate::instance::remove_if_there(&path).map_err(Error::io("removing", &path))
    }

    /// Gives up uploads that were not touched since `before`.
    pub fn remove_stale_uploads(&self, before: SystemTime) -> Result<(), Error> {
        let read = |error| Error::io("reading", &self.incoming)(error);
        for entry in fs::read_dir(&self.incoming).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let digest = name.split_once('-').and_then(|(hex, _)| parse_hex(hex));
            let turn = digest.map(|digest| self.turn_of(digest));
            let turn = turn.as_ref().map(|turn| turn.try_lock());
            // Somebody works on it just now.
            if matches!(turn, Some(Err(TryLockError::WouldBlock))) {
                continue;
            }
            let touched = match entry.metadata().and_then(|metadata| metadata.modified()) {
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                touched => touched.map_err(read)?,
            };
            if touched < before {
                fs::remove_file(entry.path()).map_err(read)?;
            }
        }
        Ok(())
    }

    fn upload(&self, digest: Digest) -> Result<Option<Upload>, Error> {
        let read = |error| Error::io("reading", &self.incoming)(error);
        let prefix = format!("{}-", digest.hex());
        for entry in fs::read_dir(&self.incoming).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(size) = name
                .strip_prefix(&prefix)
                .and_then(|size| size.parse().ok())
            else {
                continue;
            };
            let received = entry.metadata().map_err(read)?.len();
            return Ok(Some(Upload {
                path: entry.path(),
                size,
                received,
            }));
        }
        Ok(None)
    }
}

struct Upload {
    path: PathBuf,
    size: u64,
    received: u64,
}

fn parse_hex(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}
