//! Making an artifact of a file or folder.
//!
//! A folder becomes a tar whose bytes depend on nothing but paths, contents and permission bits: entries sorted by path, no
//! times, no owners, no setuid bits.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use model::compute::{ArtifactForm, ArtifactRef};
use model::ids::Digest;
use model::path::{inside, stays_inside};
use model::units::Bytes;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::ignored::Ignored;
use super::{Artifact, Error, Limits};

/// Permission bits that are kept.
const MODE_MASK: u32 = 0o777;
/// Written to the spool at once.
const WRITE_BYTES: usize = 128 << 10;
/// Reasons why a folder can't be uploaded that are told at once.
const TOLD_MOST: usize = 5;

/// Makes an artifact of `source`. A file will be placed under `name`, a relative path; for a folder it is not used.
///
/// `spool` is a folder on a disk with room for the tar.
pub fn make(source: &Path, name: &str, limits: Limits, spool: &Path) -> Result<Artifact, Error> {
    let metadata = fs::metadata(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::Missing(source.to_owned()),
        _ => Error::io("reading", source)(error),
    })?;
    if metadata.is_dir() {
        of_folder(source, limits, spool)
    } else if metadata.is_file() {
        of_file(source, name, limits)
    } else {
        Err(Error::Special(source.to_owned()))
    }
}

fn of_file(source: &Path, name: &str, limits: Limits) -> Result<Artifact, Error> {
    let name = inside(Path::new(name)).ok_or_else(|| Error::UnsafeName(name.to_owned()))?;
    let bytes = File::open(source).map_err(Error::io("opening", source))?;
    let metadata = bytes.metadata().map_err(Error::io("reading", source))?;
    if metadata.len() > limits.size.0 {
        return Err(too_large(source, limits));
    }
    let mut hasher = Sha256::new();
    exactly(&bytes, metadata.len(), source, |content| {
        io::copy(content, &mut hasher).map_err(Error::io("reading", source))
    })?;
    let form = ArtifactForm::File {
        name: name.to_string_lossy().into_owned(),
        executable: metadata.permissions().mode() & 0o111 != 0,
    };
    let reference = ArtifactRef {
        digest: Digest(hasher.finalize().into()),
        form,
        size: Bytes(metadata.len()),
    };
    Ok(Artifact {
        reference,
        source: source.to_owned(),
        bytes,
    })
}

fn of_folder(source: &Path, limits: Limits, spool: &Path) -> Result<Artifact, Error> {
    let paths = list(source, limits)?;
    // A file without a name goes with its handle, whatever happens.
    let file = tempfile::tempfile_in(spool).map_err(Error::io("making a file in", spool))?;
    let mut packer = Packer {
        root: source,
        limits,
        builder: Builder::new(Hashing::of(file)),
    };
    for path in &paths {
        packer.append(path)?;
    }
    packer.finish()
}

/// All that is below `root`, as sorted relative paths.
fn list(root: &Path, limits: Limits) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::new(), Ignored::default())];
    while let Some((folder, ignored)) = folders.pop() {
        let ignored = ignored.with(root, &folder)?;
        let full = root.join(&folder);
        let read = |error| Error::io("reading", &full)(error);
        for entry in fs::read_dir(&full).map_err(read)? {
            let entry = entry.map_err(read)?;
            let path = folder.join(entry.file_name());
            let is_folder = entry.file_type().map_err(read)?.is_dir();
            if ignored.leaves_out(root, &path, is_folder) {
                continue;
            }
            if is_folder {
                folders.push((path.clone(), ignored.clone()));
            }
            found.push(path);
            if found.len() > limits.entries {
                return Err(Error::TooMany {
                    path: root.to_owned(),
                    limit: limits.entries,
                });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Why `source` could not be made an artifact, as far as that is seen without reading files: up to [`TOLD_MOST`] reasons. By the same functions
/// that [`make`] goes by.
pub fn check(source: &Path, limits: Limits) -> Vec<Error> {
    let Ok(metadata) = fs::metadata(source) else {
        return vec![Error::Missing(source.to_owned())];
    };
    if metadata.is_file() && metadata.len() > limits.size.0 {
        return vec![too_large(source, limits)];
    }
    if metadata.is_file() {
        return Vec::new();
    }
    if !metadata.is_dir() {
        return vec![Error::Special(source.to_owned())];
    }
    let paths = match list(source, limits) {
        Ok(paths) => paths,
        Err(error) => return vec![error],
    };
    let mut size = 0_u64;
    let mut errors = Vec::new();
    for path in paths {
        match look(source, &path) {
            Ok(Found::File(metadata)) => size = size.saturating_add(metadata.len()),
            Ok(Found::Folder(_) | Found::Link(..)) => {}
            Err(error) => errors.push(error),
        }
    }
    errors.truncate(TOLD_MOST);
    if size > limits.size.0 {
        errors.push(too_large(source, limits));
    }
    errors
}

/// What a path below the root is.
enum Found {
    Folder(Metadata),
    /// With where it leads, which is within the root.
    Link(Metadata, PathBuf),
    File(Metadata),
}

fn look(root: &Path, path: &Path) -> Result<Found, Error> {
    let full = root.join(path);
    let metadata = fs::symlink_metadata(&full).map_err(Error::io("reading", &full))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        Ok(Found::Folder(metadata))
    } else if kind.is_file() {
        Ok(Found::File(metadata))
    } else if kind.is_symlink() {
        let target = fs::read_link(&full).map_err(Error::io("reading", &full))?;
        match stays_inside(path, &target) {
            true => Ok(Found::Link(metadata, target)),
            false => Err(Error::SymlinkOutside { path: full, target }),
        }
    } else {
        Err(Error::Special(full))
    }
}

struct Packer<'a> {
    root: &'a Path,
    limits: Limits,
    builder: Builder<Hashing>,
}

impl Packer<'_> {
    fn append(&mut self, path: &Path) -> Result<(), Error> {
        let full = self.root.join(path);
        match look(self.root, path)? {
            Found::Folder(metadata) => {
                let mut header = header(EntryType::Directory, &metadata, 0);
                let appended = self.builder.append_data(&mut header, path, io::empty());
                appended.map_err(Error::io("packing", &full))?;
            }
            Found::Link(metadata, target) => {
                let mut header = header(EntryType::Symlink, &metadata, 0);
                let appended = self.builder.append_link(&mut header, path, &target);
                appended.map_err(Error::io("packing", &full))?;
            }
            Found::File(metadata) => self.append_file(path, &full, &metadata)?,
        }
        self.admit(0)
    }

    fn append_file(&mut self, path: &Path, full: &Path, metadata: &Metadata) -> Result<(), Error> {
        let size = metadata.len();
        // Before it fills the spool.
        self.admit(size)?;
        let file = File::open(full).map_err(Error::io("opening", full))?;
        let mut header = header(EntryType::Regular, metadata, size);
        exactly(&file, size, full, |content| {
            let appended = self.builder.append_data(&mut header, path, content);
            appended.map_err(Error::io("packing", full))
        })
    }

    /// Whether this many bytes more are still within the limit.
    fn admit(&self, more: u64) -> Result<(), Error> {
        let size = self.builder.get_ref().size.saturating_add(more);
        if size > self.limits.size.0 {
            return Err(too_large(self.root, self.limits));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Artifact, Error> {
        let packed = |error| Error::io("packing", self.root)(error);
        self.builder.finish().map_err(packed)?;
        self.admit(0)?;
        let written = self.builder.into_inner().map_err(packed)?;
        let bytes = written.file.into_inner();
        let reference = ArtifactRef {
            digest: Digest(written.hasher.finalize().into()),
            form: ArtifactForm::Folder,
            size: Bytes(written.size),
        };
        Ok(Artifact {
            reference,
            source: self.root.to_owned(),
            bytes: bytes.map_err(|error| packed(error.into_error()))?,
        })
    }
}

fn header(kind: EntryType, metadata: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.permissions().mode() & MODE_MASK);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Has `read` take all of a file that is `size` bytes long.
///
/// One that shrank meanwhile would shift all that follows it in a tar; one that grew would be cut.
fn exactly<T>(
    file: &File,
    size: u64,
    path: &Path,
    read: impl FnOnce(&mut io::Take<&File>) -> Result<T, Error>,
) -> Result<(), Error> {
    let mut content = file.take(size.saturating_add(1));
    read(&mut content)?;
    if content.limit() == 1 {
        Ok(())
    } else {
        Err(Error::Changed(path.to_owned()))
    }
}

fn too_large(path: &Path, limits: Limits) -> Error {
    Error::TooLarge {
        path: path.to_owned(),
        limit: limits.size,
    }
}

/// Knows digest and size of what went through it.
struct Hashing {
    file: BufWriter<File>,
    hasher: Sha256,
    size: u64,
}

impl Hashing {
    fn of(file: File) -> Self {
        Self {
            file: BufWriter::with_capacity(WRITE_BYTES, file),
            hasher: Sha256::new(),
            size: 0,
        }
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests;
