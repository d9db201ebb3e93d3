//! Making a working directory of an artifact's bytes, which nobody has to trust.
//!
//! Nothing is made outside of the directory. A path may not climb; symlinks are made last, so that nothing else can lie behind one; and everything is
//! made from descriptor to descriptor, through no link: not through one that stands there either, whoever made it.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use model::compute::{ArtifactForm, ArtifactRef};
use model::path::{inside, stays_inside};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{ENTRIES_MAX, Error, SIZE_MAX};
use crate::beneath::Folder;
use crate::runtime::Identity;

/// What may stand between the contents of two files: a header, and names that are too long for one. It is read into memory.
const HEADERS_MAX_BYTES: u64 = 64 << 10;
/// What Linux takes as one path, with the byte that ends it.
const PATH_MAX_BYTES: usize = 4096;

/// Unpacks the artifact's bytes at `source` into the empty or missing `directory`, all of it owned by `owner` if given.
pub fn unpack(
    reference: &ArtifactRef,
    source: &Path,
    directory: &Path,
    owner: Option<Identity>,
) -> Result<(), Error> {
    let bytes = File::open(source).map_err(Error::io("opening", source))?;
    fs::create_dir_all(directory).map_err(Error::io("making", directory))?;
    let root = Folder::open(directory).map_err(Error::io("opening", directory))?;
    let mut target = Target {
        root,
        directory,
        owner,
        left: SIZE_MAX.0,
        folders: 0,
    };
    match &reference.form {
        ArtifactForm::File { name, executable } => {
            let path = inside(Path::new(name)).ok_or_else(|| Error::UnsafePath(name.into()))?;
            let mode = if *executable { 0o755 } else { 0o644 };
            target.write_file(&path, bytes, mode)
        }
        ArtifactForm::Folder => target.unpack_tar(bytes),
    }
}

struct Target<'a> {
    root: Folder,
    /// Its path, to be told.
    directory: &'a Path,
    owner: Option<Identity>,
    /// Bytes that may still be written.
    left: u64,
    /// That were made so far: a path of one entry may name many.
    folders: usize,
}

impl Target<'_> {
    fn unpack_tar(&mut self, bytes: File) -> Result<(), Error> {
        let budget = Cell::new(0);
        let mut archive = Archive::new(Metered {
            inner: io::BufReader::with_capacity(128 << 10, bytes),
            budget: &budget,
        });
        let directory = self.directory;
        let read = |error| Error::io("unpacking into", directory)(error);
        let mut symlinks = Vec::new();
        let mut modes = Vec::new();
        let mut count = 0;
        let mut entries = archive.entries().map_err(read)?;
        loop {
            budget.set(HEADERS_MAX_BYTES);
            let Some(entry) = entries.next() else { break };
            if count == ENTRIES_MAX {
                return Err(self.too_many());
            }
            count += 1;
            budget.set(u64::MAX);
            self.unpack_entry(entry.map_err(read)?, &mut symlinks, &mut modes)?;
        }
        for (path, target) in symlinks {
            self.link(&path, &target)?;
        }
        // Last, and the deepest first: a folder without the write bit could not be filled.
        for (path, mode) in modes.into_iter().rev() {
            let folder = self.root.folder(&path);
            let set = folder.and_then(|folder| folder.set_mode(mode));
            set.map_err(|error| self.refused("setting the mode of", &path, error))?;
        }
        Ok(())
    }

    fn unpack_entry<R: Read>(
        &mut self,
        entry: Entry<'_, R>,
        symlinks: &mut Vec<(PathBuf, PathBuf)>,
        modes: &mut Vec<(PathBuf, u32)>,
    ) -> Result<(), Error> {
        let read = |error| Error::io("unpacking into", self.directory)(error);
        let named = entry.path().map_err(read)?.into_owned();
        let path = inside(&named).ok_or(Error::UnsafePath(named))?;
        let mode = entry.header().mode().map_err(read)? & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => {
                self.folder(&path)?;
                modes.push((path, mode));
                Ok(())
            }
            EntryType::Symlink => {
                let target = entry
                    .link_name()
                    .map_err(read)?
                    .unwrap_or_default()
                    .into_owned();
                if !stays_inside(&path, &target) {
                    return Err(Error::SymlinkOutside { path, target });
                }
                symlinks.push((path, target));
                Ok(())
            }
            EntryType::Regular => self.write_file(&path, entry, mode),
            _ => Err(Error::Special(path)),
        }
    }

    /// The folder at a path of the artifact, made with those above it where they are missing. Each is a real folder, below the root.
    fn folder(&mut self, path: &Path) -> Result<Folder, Error> {
        let opened = match path.as_os_str().len() < PATH_MAX_BYTES {
            true => self.root.folder(path),
            false => Err(Errno::NAMETOOLONG.into()),
        };
        match opened {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => self.make_folder(path),
            opened => opened.map_err(|error| self.refused("opening", path, error)),
        }
    }

    fn make_folder(&mut self, path: &Path) -> Result<Folder, Error> {
        let mut at = PathBuf::new();
        let mut folder = self.root.folder(&at);
        for part in path {
            let above = folder.map_err(|error| self.refused("opening", &at, error))?;
            at.push(part);
            if self.folders == ENTRIES_MAX {
                return Err(self.too_many());
            }
            match above.make_folder(part) {
                Ok(()) => {
                    self.folders += 1;
                    self.give(&above, &at)?;
                }
                Err(there) if there.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.refused("making", &at, error)),
            }
            folder = above.folder(Path::new(part));
        }
        folder.map_err(|error| self.refused("opening", path, error))
    }

    fn write_file(&mut self, path: &Path, bytes: impl Read, mode: u32) -> Result<(), Error> {
        let folder = self.folder(above(path))?;
        let full = self.directory.join(path);
        let written = |error| Error::io("writing", &full)(error);
        let name = path.file_name().unwrap_or_default();
        let mut file = folder.make_file(name).map_err(written)?;
        let size =
            io::copy(&mut bytes.take(self.left.saturating_add(1)), &mut file).map_err(written)?;
        self.left = self.left.checked_sub(size).ok_or(Error::TooLarge {
            path: path.to_owned(),
            limit: SIZE_MAX,
        })?;
        file.set_permissions(fs::Permissions::from_mode(mode))
            .map_err(written)?;
        if let Some(owner) = self.owner {
            fchown(&file, Some(owner.uid), Some(owner.gid)).map_err(written)?;
        }
        Ok(())
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<(), Error> {
        let folder = self.folder(above(path))?;
        let made = folder.make_link(path.file_name().unwrap_or_default(), target);
        made.map_err(|error| self.refused("linking", path, error))?;
        self.give(&folder, path)
    }

    /// What has just been made at `path`, in `folder`.
    fn give(&self, folder: &Folder, path: &Path) -> Result<(), Error> {
        let Some(owner) = self.owner else {
            return Ok(());
        };
        let given = folder.give_entry(path.file_name().unwrap_or_default(), owner);
        given.map_err(|error| self.refused("giving away", path, error))
    }

    fn refused(&self, doing: &'static str, path: &Path, error: io::Error) -> Error {
        match Errno::from_io_error(&error) {
            Some(Errno::LOOP | Errno::NOTDIR) => Error::NotInFolder(path.to_owned()),
            _ => Error::io(doing, &self.directory.join(path))(error),
        }
    }

    fn too_many(&self) -> Error {
        Error::TooMany {
            path: self.directory.to_owned(),
            limit: ENTRIES_MAX,
        }
    }
}

fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Gives no more than the budget: names of any length would be read into memory.
struct Metered<'a, R> {
    inner: R,
    budget: &'a Cell<u64>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.budget.get()).unwrap_or(usize::MAX);
        if most == 0 && !buffer.is_empty() {
            let most = HEADERS_MAX_BYTES >> 10;
            let said = format!("more than {most} KiB between the contents of two files");
            return Err(io::Error::other(said));
        }
        let room = buffer.len().min(most);
        let count = self.inner.read(&mut buffer[..room])?;
        self.budget.set(self.budget.get() - count as u64);
        Ok(count)
    }
}
