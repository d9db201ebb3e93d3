//! Making a working directory of an artifact's bytes, which nobody has to trust.
//!
//! Nothing is written outside of the directory: a path may not climb, and symlinks are made last, so that no file can be
//! written through one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Path, PathBuf};

use model::compute::{ArtifactForm, ArtifactRef};
use model::path::{inside, stays_inside};
use tar::{Archive, Entry, EntryType};

use super::{ENTRIES_MAX, Error, SIZE_MAX};
use crate::runtime::Identity;

/// Unpacks the artifact's bytes at `source` into the empty or missing `directory`, all of it owned by `owner` if given.
pub fn unpack(
    reference: &ArtifactRef,
    source: &Path,
    directory: &Path,
    owner: Option<Identity>,
) -> Result<(), Error> {
    let bytes = File::open(source).map_err(Error::io("opening", source))?;
    fs::create_dir_all(directory).map_err(Error::io("making", directory))?;
    let mut target = Target {
        root: directory,
        owner,
        left: SIZE_MAX.0,
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
    root: &'a Path,
    owner: Option<Identity>,
    /// Bytes that may still be written.
    left: u64,
}

impl Target<'_> {
    fn unpack_tar(&mut self, bytes: File) -> Result<(), Error> {
        let mut archive = Archive::new(io::BufReader::with_capacity(128 << 10, bytes));
        let root = self.root.to_owned();
        let mut symlinks = Vec::new();
        let mut modes = Vec::new();
        let entries = archive
            .entries()
            .map_err(Error::io("unpacking into", &root))?;
        for (index, entry) in entries.enumerate() {
            if index >= ENTRIES_MAX {
                return Err(Error::TooMany {
                    path: root,
                    limit: ENTRIES_MAX,
                });
            }
            let entry = entry.map_err(Error::io("unpacking into", &root))?;
            self.unpack_entry(entry, &mut symlinks, &mut modes)?;
        }
        for (path, target) in symlinks {
            self.link(&path, &target)?;
        }
        // Last, and the deepest first: a folder without the write bit could not be filled.
        for (path, mode) in modes.into_iter().rev() {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(Error::io("setting the mode of", &path))?;
        }
        Ok(())
    }

    fn unpack_entry<R: Read>(
        &mut self,
        entry: Entry<'_, R>,
        symlinks: &mut Vec<(PathBuf, PathBuf)>,
        modes: &mut Vec<(PathBuf, u32)>,
    ) -> Result<(), Error> {
        let read = |error| Error::io("unpacking into", self.root)(error);
        let named = entry.path().map_err(read)?.into_owned();
        let path = inside(&named).ok_or(Error::UnsafePath(named))?;
        let mode = entry.header().mode().map_err(read)? & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => {
                let full = self.make_folder(&path)?;
                modes.push((full, mode));
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

    /// Makes the folder and those above it; each is a real folder of ours, since symlinks come last.
    fn make_folder(&self, path: &Path) -> Result<PathBuf, Error> {
        let mut full = self.root.to_owned();
        for part in path.components() {
            full.push(part);
            match fs::create_dir(&full) {
                Ok(()) => self.give(&full)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && full.is_dir() => {}
                Err(error) => return Err(Error::io("making", &full)(error)),
            }
        }
        Ok(full)
    }

    fn write_file(&mut self, path: &Path, bytes: impl Read, mode: u32) -> Result<(), Error> {
        self.make_folder(path.parent().unwrap_or(Path::new("")))?;
        let full = self.root.join(path);
        let written = |error| Error::io("writing", &full)(error);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&full)
            .map_err(written)?;
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

    fn link(&self, path: &Path, target: &Path) -> Result<(), Error> {
        self.make_folder(path.parent().unwrap_or(Path::new("")))?;
        let full = self.root.join(path);
        symlink(target, &full).map_err(Error::io("linking", &full))?;
        self.give(&full)
    }

    fn give(&self, path: &Path) -> Result<(), Error> {
        match self.owner {
            Some(owner) => lchown(path, Some(owner.uid), Some(owner.gid))
                .map_err(Error::io("giving away", path)),
            None => Ok(()),
        }
    }
}
