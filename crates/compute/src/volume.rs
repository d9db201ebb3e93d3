//! Whose the files in a volume are.
//!
//! A volume belongs to its service's user. Restored by root, or kept from a cluster that gave its services other users, it may not: a volume whose
//! top is another's changes hands wholly; single files of another are left, and told.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Stat};

use crate::beneath::Folder;
use crate::runtime::Identity;

/// How far somebody looks.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub entries: usize,
    pub time: Duration,
}

/// At each start of an instance: what root has put in place is most often all of it, or at the top.
pub const AT_A_START: Bounds = Bounds {
    entries: 10_000,
    time: Duration::from_millis(500),
};

/// Files that the volume's user can't read and write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub count: u64,
    /// There may be more: not all was looked at.
    pub more: bool,
    /// The first that was found, from the volume on, and whose it is.
    pub example: PathBuf,
    pub owner: u32,
}

/// Gives a volume that is another's to its user, with all that was that other's in it.
///
/// # Errors
///
/// What the disk refuses.
pub fn take_over(volume: &Path, owner: Identity) -> io::Result<()> {
    let top = Folder::open(volume)?;
    let before = top.stat()?;
    if before.st_uid == owner.uid && before.st_gid == owner.gid {
        return Ok(());
    }
    let mut below = vec![PathBuf::new()];
    while let Some(path) = below.pop() {
        let folder = top.folder(&path)?;
        for name in folder.names()? {
            let name = name?;
            let stat = folder.stat_of(&name)?;
            // Another name of a file of root's may have been made by whoever could write here.
            let is_roots = stat.st_uid == 0 && stat.st_nlink > 1 && !is_folder(&stat);
            if stat.st_uid == before.st_uid && !is_roots {
                folder.give_entry(&name, owner)?;
            }
            if is_folder(&stat) {
                below.push(path.join(&*name));
            }
        }
    }
    // Last, so that what is broken off is done again.
    top.give(owner)
}

/// Looks for files that the volume's user can't read and write.
///
/// # Errors
///
/// What the disk refuses.
pub fn foreign(volume: &Path, owner: Identity, bounds: Bounds) -> io::Result<Option<Foreign>> {
    let deadline = Instant::now() + bounds.time;
    let top = Folder::open(volume)?;
    let mut found: Option<Foreign> = None;
    let mut left = bounds.entries;
    // In breadth: what was restored most often begins at the top.
    let mut below = VecDeque::from([PathBuf::new()]);
    while let Some(path) = below.pop_front() {
        // What goes meanwhile is nobody's.
        let Ok(folder) = top.folder(&path) else {
            continue;
        };
        for name in folder.names()? {
            if left == 0 || Instant::now() >= deadline {
                return Ok(found.map(|found| Foreign {
                    more: true,
                    ..found
                }));
            }
            left -= 1;
            let name = name?;
            let Ok(stat) = folder.stat_of(&name) else {
                continue;
            };
            if !may_use(&stat, owner) {
                let example = || Foreign {
                    count: 0,
                    more: false,
                    example: path.join(&*name),
                    owner: stat.st_uid,
                };
                found.get_or_insert_with(example).count += 1;
            }
            if is_folder(&stat) {
                below.push_back(path.join(&*name));
            }
        }
    }
    Ok(found)
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Reads and writes it, and looks into it if it is a folder. What is its own it can make so itself.
fn may_use(stat: &Stat, owner: Identity) -> bool {
    let needed = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => 0o7,
        FileType::Symlink => 0o0,
        _ => 0o6,
    };
    let bits = match stat.st_gid == owner.gid {
        true => stat.st_mode >> 3,
        false => stat.st_mode,
    };
    stat.st_uid == owner.uid || bits & needed == needed
}
