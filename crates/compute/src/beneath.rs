//! Files inside of folders that a workload can write to, as root reaches them: by descriptors, never by a path that the workload can bend.
//!
//! A path whose folders all belong to root means what root made it mean. Below the first folder that is a workload's, every name may be a link to
//! somewhere else, and become one between two looks. There a name is opened from the folder's own descriptor, through no link, and what is done
//! is done to what was opened. <https://man7.org/linux/man-pages/man2/openat2.2.html>

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, Stat, chownat, mkdirat, openat, openat2, statat,
    symlinkat,
};
use rustix::io::Errno;

use crate::runtime::Identity;

mod tree;

pub use tree::{remove_moved, remove_tree};

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A folder that is held open: names in it are of this folder, whatever becomes of its own name.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    /// By a path whose folders are ours. The last of it may be a workload's, and is no link.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(openat(CWD, path, FOLDER, Mode::empty())?))
    }

    /// The folder at a path below this one; an empty one means this.
    ///
    /// # Errors
    ///
    /// Also where any part of it is a link (`ELOOP`, or `ENOTDIR`), or leads out.
    pub fn folder(&self, below: &Path) -> io::Result<Self> {
        Ok(Self(open_beneath(self.0.as_fd(), below, FOLDER)?))
    }

    /// A regular file, to be read. Whatever else may stand there (a link, a pipe that nobody writes to) is an error, at once.
    pub fn file(&self, below: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = open_beneath(self.0.as_fd(), below, flags | OFlags::CLOEXEC)?;
        let file = File::from(opened);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(not(below, "a file")),
        }
    }

    /// A Unix socket, as a path that leads to that very socket for as long as what is returned lives.
    pub fn socket(&self, below: &Path) -> io::Result<Socket> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(open_beneath(self.0.as_fd(), below, flags)?);
        match file.metadata()?.file_type().is_socket() {
            true => Ok(Socket(file)),
            false => Err(not(below, "a socket")),
        }
    }

    /// Makes a folder of this name in it; what has the name already is an error.
    pub fn make_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(mkdirat(&self.0, name, Mode::from_raw_mode(0o777))?)
    }

    /// Makes a file of this name in it, to be written, which nobody but its owner may use; what has the name already is an error.
    pub fn make_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        Ok(openat(&self.0, name, flags | OFlags::CLOEXEC, mode)?.into())
    }

    /// Makes a symlink of this name in it; what has the name already is an error.
    pub fn make_link(&self, name: &OsStr, target: &Path) -> io::Result<()> {
        Ok(symlinkat(target, &self.0, name)?)
    }

    /// Of the folder itself.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.0)?)
    }

    /// Of what has this name in it; of a link, of the link itself.
    pub fn stat_of(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub fn give(&self, owner: Identity) -> io::Result<()> {
        let (uid, gid) = ids(owner);
        Ok(rustix::fs::fchown(&self.0, Some(uid), Some(gid))?)
    }

    /// Of what has this name in it; of a link, of the link itself.
    pub fn give_entry(&self, name: &OsStr, owner: Identity) -> io::Result<()> {
        let (uid, gid) = ids(owner);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(chownat(&self.0, name, Some(uid), Some(gid), flags)?)
    }

    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.0, Mode::from_raw_mode(mode))?)
    }

    /// The names in it, without `.` and `..`, in no order.
    pub fn names(&self) -> io::Result<impl Iterator<Item = io::Result<Box<OsStr>>> + use<>> {
        let entries = Dir::read_from(&self.0)?;
        let name = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
            let entry = entry?;
            let name: Box<OsStr> = OsStr::from_bytes(entry.file_name().to_bytes()).into();
            Ok(name)
        };
        let is_own = |name: &io::Result<Box<OsStr>>| !matches!(name, Ok(name) if **name == *"." || **name == *"..");
        Ok(entries.map(name).filter(is_own))
    }
}

/// See [`Folder::socket`].
#[derive(Debug)]
pub struct Socket(File);

impl Socket {
    /// Of this process alone.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

fn ids(owner: Identity) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (
        rustix::fs::Uid::from_raw(owner.uid),
        rustix::fs::Gid::from_raw(owner.gid),
    )
}

fn not(path: &Path, what: &str) -> io::Error {
    io::Error::other(format!("{} is not {what}", path.display()))
}

fn open_beneath(folder: BorrowedFd<'_>, below: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = match below.as_os_str().is_empty() {
        true => Path::new("."),
        false => below,
    };
    match openat2(folder, path, flags, Mode::empty(), RESOLVE) {
        // A kernel before 5.6, or a sandbox that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(folder, path, flags),
        opened => Ok(opened?),
    }
}

/// The same, one folder after the other.
fn step_by_step(folder: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => names.push(name),
            _ => return Err(Errno::XDEV.into()),
        }
    }
    let last = names.pop().unwrap_or(OsStr::new("."));
    let mut at: Option<OwnedFd> = None;
    for name in names {
        let from = at.as_ref().map_or(folder, AsFd::as_fd);
        at = Some(openat(from, name, FOLDER, Mode::empty())?);
    }
    let from = at.as_ref().map_or(folder, AsFd::as_fd);
    Ok(openat(from, last, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    type Open = fn(BorrowedFd<'_>, &Path, OFlags) -> io::Result<OwnedFd>;

    #[test]
    fn nothing_is_reached_through_a_link_or_outside() {
        let place = tempfile::tempdir().unwrap();
        let outside = place.path().join("outside");
        fs::create_dir_all(outside.join("deep")).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), "x").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink("a", root.join("inner")).unwrap();
        symlink(outside.join("secret"), root.join("a/secret")).unwrap();
        symlink(&root, place.path().join("root-link")).unwrap();

        let folder = Folder::open(&root).unwrap();
        let ways: [Open; 2] = [open_beneath, step_by_step];
        for open in ways {
            let opens = |path: &str| open(folder.0.as_fd(), Path::new(path), FOLDER).is_ok();
            assert!(opens(".") && opens("a") && opens("a/b"));
            for path in [
                "link",
                "link/deep",
                "relative",
                "inner",
                "inner/b",
                "..",
                "a/../..",
                "/",
                "a/file",
            ] {
                assert!(!opens(path), "{path}");
            }
        }
        assert!(folder.folder(Path::new("")).is_ok());
        assert!(folder.file(Path::new("a/file")).is_ok());
        assert!(folder.file(Path::new("a/secret")).is_err());
        assert!(folder.file(Path::new("a")).is_err());
        assert!(Folder::open(&place.path().join("root-link")).is_err());
    }

    #[test]
    fn a_pipe_that_nobody_writes_to_holds_nobody_up() {
        let place = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(place.path().join("pipe"))
            .status();
        assert!(made.unwrap().success());
        let folder = Folder::open(place.path()).unwrap();
        assert!(folder.file(Path::new("pipe")).is_err());
        assert!(folder.socket(Path::new("pipe")).is_err());
    }

    #[test]
    fn a_socket_is_reached_and_a_link_to_another_is_not() {
        let place = tempfile::tempdir().unwrap();
        let other = place.path().join("other");
        let _other = std::os::unix::net::UnixListener::bind(&other).unwrap();
        let own = place.path().join("own");
        fs::create_dir(&own).unwrap();
        let _own = std::os::unix::net::UnixListener::bind(own.join("s")).unwrap();
        symlink(&other, own.join("bent")).unwrap();
        let folder = Folder::open(&own).unwrap();
        let socket = folder.socket(Path::new("s")).unwrap();
        // Renamed meanwhile, it still is the one that was opened.
        fs::rename(own.join("s"), own.join("t")).unwrap();
        std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
        assert!(folder.socket(Path::new("bent")).is_err());
    }
}
