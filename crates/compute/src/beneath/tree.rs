//! Removing what a workload has made, however it is nested.
//!
//! A program makes folders in folders by `mkdir` and `chdir`, deeper than any path can name. So nothing here grows with the depth, neither the stack
//! nor what is held open: what lies below a folder of the top is moved up to the top, from descriptor to descriptor, and removed there in its turn.
//!
//! ```text
//! top ─┬─ x ─── y ─── z        top ─┬─ .removing-1 (y) ─── z        top ─┬─ .removing-2 (z)
//!      └─ file            ──►       └─ file                    ──►      └─ file              ──►  …
//! ```

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, renameat, unlinkat};
use rustix::io::Errno;

use super::Folder;

/// What is moved up to the top is called this and a number.
const MOVED: &str = ".removing-";
/// Folders that can't be moved are gone into instead, as where another file system is mounted: so many, one below the other.
const FIXED_MOST: usize = 16;
/// For its owner alone.
const PRIVATE: u32 = 0o700;
/// Looks at a folder that somebody still writes to, until it is given up.
const ROUNDS: usize = 3;

/// Removes what is at a path whose folders are ours, with all that is in it: a folder, a file, or a link itself. What is not there is fine.
///
/// A folder is its owner's alone from then on: what is moved up to it has left the folders that kept others out.
///
/// No link is followed. However deep the tree is, a few descriptors are open at a time, and memory is bounded.
///
/// # Errors
///
/// What the disk refuses, or `ENOTEMPTY` where somebody goes on filling it. Some of it may be gone then, and some be nearer to the top.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    for _ in 0..ROUNDS {
        match unlinkat(CWD, path, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            Err(Errno::NOENT) => return Ok(()),
            done => return Ok(done?),
        }
        let top = match Folder::open(path) {
            // Somebody else has removed it.
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
            top => top?,
        };
        top.set_mode(PRIVATE)?;
        clear(&top, 0)?;
        match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            done => return Ok(done?),
        }
    }
    Err(Errno::NOTEMPTY.into())
}

/// Removes what a removal that was given up has left moved up in a folder that is ours: before others may pass through it again. What is not there is
/// fine.
pub fn remove_moved(path: &Path) -> io::Result<()> {
    let folder = match Folder::open(path) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    for name in folder.names()? {
        let name = name?;
        if name.as_encoded_bytes().starts_with(MOVED.as_bytes()) {
            remove_tree(&path.join(&*name))?;
        }
    }
    Ok(())
}

/// Removes all that is in a folder. `fixed`: how many folders above it could not be moved.
fn clear(folder: &Folder, fixed: usize) -> io::Result<()> {
    let mut top = Top {
        folder,
        moved: 0,
        fixed,
    };
    for name in folder.names()? {
        top.remove(&name?)?;
    }
    // Those that were moved up last go first, so that few of them are there at a time. A number may be nobody's.
    while top.moved > 0 {
        let last = top.moved;
        top.remove(&moved_name(last))?;
        if top.moved == last {
            top.moved -= 1;
        }
    }
    Ok(())
}

fn moved_name(number: u64) -> OsString {
    format!("{MOVED}{number}").into()
}

/// Where folders are moved to.
struct Top<'a> {
    folder: &'a Folder,
    /// The highest number that was given to one of them and may still be there.
    moved: u64,
    fixed: usize,
}

impl Top<'_> {
    /// Removes what has this name in it. The folders in that, if it is one, are moved up.
    fn remove(&mut self, name: &OsStr) -> io::Result<()> {
        for _ in 0..ROUNDS {
            if is_removed(self.folder, name)? {
                return Ok(());
            }
            let below = match self.folder.folder(Path::new(name)) {
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
                below => below?,
            };
            for inner in below.names()? {
                let inner = inner?;
                if !is_removed(&below, &inner)? {
                    self.move_up(&below, &inner)?;
                }
            }
        }
        end(self.folder, name)
    }

    fn move_up(&mut self, from: &Folder, name: &OsStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            let to = moved_name(self.moved);
            match renameat(&from.0, name, &self.folder.0, &to) {
                // The workload has used that name itself.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(refused) if self.fixed == FIXED_MOST => return Err(refused.into()),
                Err(_) => {
                    clear(&from.folder(Path::new(name))?, self.fixed + 1)?;
                    return end(from, name);
                }
                Ok(()) => return Ok(()),
            }
        }
    }
}

/// Of a folder that is empty by now.
fn end(folder: &Folder, name: &OsStr) -> io::Result<()> {
    match unlinkat(&folder.0, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        done => Ok(done?),
    }
}

/// False: it is a folder that can't be removed as it is.
fn is_removed(folder: &Folder, name: &OsStr) -> io::Result<bool> {
    match unlinkat(&folder.0, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(&folder.0, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
