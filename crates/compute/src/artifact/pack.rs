//! Making an artifact of a file or folder.
//!
//! A folder becomes a tar whose bytes depend on nothing but paths, contents and permission bits: entries sorted by path, no
//! times, no owners, no setuid bits.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use model::compute::{ArtifactForm, ArtifactRef};
use model::units::Bytes;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::{ENTRIES_MAX, Error, digest_of};

/// Permission bits that are kept.
const MODE_MASK: u32 = 0o777;

/// A made artifact.
#[derive(Debug)]
pub struct Made {
    pub reference: ArtifactRef,
    /// Its bytes, from the start. A folder's are in a file without a name, which goes with this.
    pub bytes: File,
}

/// Makes an artifact of `source`. A file will be placed under `name`, a relative path; for a folder it is not used.
///
/// `spool` is a folder on a disk with room for the tar.
pub fn make(source: &Path, name: &str, limit: Bytes, spool: &Path) -> Result<Made, Error> {
    let metadata = match fs::metadata(source) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Missing(source.to_owned()));
        }
        Err(error) => return Err(Error::io("reading", source)(error)),
    };
    if metadata.is_dir() {
        make_folder(source, limit, spool)
    } else if metadata.is_file() {
        make_file(source, name, &metadata, limit)
    } else {
        Err(Error::Special(source.to_owned()))
    }
}

fn make_file(source: &Path, name: &str, metadata: &Metadata, limit: Bytes) -> Result<Made, Error> {
    let name = inside(Path::new(name)).ok_or_else(|| Error::UnsafePath(name.into()))?;
    if metadata.len() > limit.0 {
        return Err(Error::TooLarge {
            path: source.to_owned(),
            limit,
        });
    }
    let mut bytes = File::open(source).map_err(Error::io("opening", source))?;
    let (digest, size) = digest_of(&bytes).map_err(Error::io("reading", source))?;
    bytes
        .seek(SeekFrom::Start(0))
        .map_err(Error::io("reading", source))?;
    let executable = metadata.permissions().mode() & 0o111 != 0;
    let form = ArtifactForm::File {
        name: name.to_string_lossy().into_owned(),
        executable,
    };
    Ok(Made {
        reference: ArtifactRef {
            digest,
            form,
            size: Bytes(size),
        },
        bytes,
    })
}

fn make_folder(source: &Path, limit: Bytes, spool: &Path) -> Result<Made, Error> {
    let entries = list(source)?;
    let file = nameless(spool).map_err(Error::io("making a file in", spool))?;
    let mut builder = Builder::new(Hashing {
        file,
        hasher: Sha256::new(),
        size: 0,
    });
    for entry in &entries {
        append(&mut builder, source, entry)?;
        if builder.get_ref().size > limit.0 {
            return Err(Error::TooLarge {
                path: source.to_owned(),
                limit,
            });
        }
    }
    let finished = builder.into_inner().map_err(Error::io("packing", source))?;
    let mut bytes = finished.file;
    bytes
        .seek(SeekFrom::Start(0))
        .map_err(Error::io("packing", source))?;
    let reference = ArtifactRef {
        digest: model::ids::Digest(finished.hasher.finalize().into()),
        form: ArtifactForm::Folder,
        size: Bytes(finished.size),
    };
    Ok(Made { reference, bytes })
}

/// A file that is already removed: it goes with its handle, whatever happens.
fn nameless(spool: &Path) -> io::Result<File> {
    let path = spool.join(format!(
        ".mainland-{}-{:x}",
        std::process::id(),
        crate::lease::Moment::now().0
    ));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

struct Hashing {
    file: File,
    hasher: Sha256,
    size: u64,
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

/// All that is below `root`, as sorted relative paths.
fn list(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let full = root.join(&folder);
        for entry in fs::read_dir(&full).map_err(Error::io("reading", &full))? {
            let entry = entry.map_err(Error::io("reading", &full))?;
            let path = folder.join(entry.file_name());
            if entry
                .file_type()
                .map_err(Error::io("reading", &full))?
                .is_dir()
            {
                folders.push(path.clone());
            }
            found.push(path);
            if found.len() > ENTRIES_MAX {
                return Err(Error::TooMany {
                    path: root.to_owned(),
                    limit: ENTRIES_MAX,
                });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn append(builder: &mut Builder<Hashing>, root: &Path, path: &Path) -> Result<(), Error> {
    let full = root.join(path);
    let metadata = fs::symlink_metadata(&full).map_err(Error::io("reading", &full))?;
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(metadata.permissions().mode() & MODE_MASK);
    header.set_size(0);
    let kind = metadata.file_type();
    let packed = if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        builder.append_data(&mut header, path, io::empty())
    } else if kind.is_symlink() {
        let target = fs::read_link(&full).map_err(Error::io("reading", &full))?;
        if !stays_inside(path, &target) {
            return Err(Error::SymlinkOutside { path: full, target });
        }
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(MODE_MASK);
        builder.append_link(&mut header, path, &target)
    } else if kind.is_file() {
        return append_file(builder, header, path, &full, metadata.len());
    } else {
        return Err(Error::Special(full));
    };
    packed.map_err(Error::io("packing", &full))
}

fn append_file(
    builder: &mut Builder<Hashing>,
    mut header: Header,
    path: &Path,
    full: &Path,
    size: u64,
) -> Result<(), Error> {
    let mut file = File::open(full).map_err(Error::io("opening", full))?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    // A file that shrank while it was read would shift all that follows in the tar; one that grew would be cut.
    let mut exactly = Exactly {
        file: (&mut file).take(size),
        left: size,
    };
    builder
        .append_data(&mut header, path, &mut exactly)
        .map_err(Error::io("packing", full))?;
    let grown = file.read(&mut [0]).map_err(Error::io("reading", full))? != 0;
    if grown {
        Err(Error::Changed(full.to_owned()))
    } else {
        Ok(())
    }
}

struct Exactly<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.left -= count as u64;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it shrank while it was read",
            ));
        }
        Ok(count)
    }
}

/// The path without `.` parts; `None` when it is absolute, empty or climbs.
pub(crate) fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!clean.as_os_str().is_empty()).then_some(clean)
}

/// Whether a symlink at `path` with this target stays below the root, read part by part.
pub(crate) fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() as i64 - 1;
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_stay_inside_like_a_table() {
        let table = [
            ("a", "b", true),
            ("a", "../b", false),
            ("x/a", "../b", true),
            ("x/a", "../../b", false),
            ("a", "/etc/passwd", false),
            ("a", "b/../../c", false),
            ("x/a", "./y/../../b", true),
        ];
        for (path, target, expected) in table {
            assert_eq!(
                stays_inside(Path::new(path), Path::new(target)),
                expected,
                "{path} -> {target}"
            );
        }
    }

    #[test]
    fn names_are_made_safe_like_a_table() {
        let table = [
            ("./checkout", Some("checkout")),
            ("bin/./x", Some("bin/x")),
            ("/bin/x", None),
            ("../x", None),
            (".", None),
            ("", None),
        ];
        for (name, expected) in table {
            assert_eq!(
                inside(Path::new(name)),
                expected.map(PathBuf::from),
                "{name}"
            );
        }
    }
}
