//! `mainland engine init VOLUME OWNER`, as root: the files of a database, in a volume whose owner has no name.
//!
//! `initdb` refuses a user that no list of the machine has, as those that a node gives its services; PostgreSQL itself does not mind. So the files
//! are made by a user with a name, given to the owner, and only then put in their place. The volume is open meanwhile for others to pass through:
//!
//! ```text
//! root: init VOLUME OWNER ─▶ postgres: init-files VOLUME/pgdata.new ─▶ initdb
//! ```
//!
//! What the database is to be comes by stdin, as an [`EngineFile`]. A volume that has files is left as it is. Where the node is not
//! root the engine makes them itself.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use model::state::EngineFile;
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Gid, Mode, OFlags, Uid, chownat, flock, openat,
};

use super::child::{self, OWN_PROGRAM};
use super::place::{FILES, UNFINISHED};
use super::programs::{self, Search};
use super::{declared, files};

/// What a node executes.
pub const INIT: &str = "init";
/// What that executes as a user with a name: `mainland engine init-files FOLDER`.
pub const INIT_FILES: &str = "init-files";
/// Who may make files, the first that the machine has. Packages of PostgreSQL make the one.
const MAKERS: [&str; 2] = ["postgres", "nobody"];
const USERS: &str = "/etc/passwd";
/// Modes of a volume.
const PASSED_THROUGH: u32 = 0o711;
const CLOSED: u32 = 0o700;

/// The whole process.
///
/// # Errors
///
/// In words, for the node.
pub fn init(volume: &Path, owner: &OsStr) -> Result<(), String> {
    let told = |error: io::Error| format!("making the database's files: {error}");
    // One that an agent before started may be at it still.
    let alone = File::open(volume).map_err(told)?;
    let locked = flock(&alone, FlockOperation::NonBlockingLockExclusive);
    locked.map_err(|_| "the database's files are being made already")?;
    let files = volume.join(FILES);
    if files.exists() {
        return Ok(());
    }
    let owner = owner.to_str().and_then(|uid| uid.parse().ok());
    let owner = owner.ok_or("the owner of a volume is a number")?;
    let (uid, gid) = maker()?;
    let folder = volume.join(UNFINISHED);
    // Root's until all is in its place: nobody can put a link where root is about to make, give away or rename something.
    own(&alone, 0, PASSED_THROUGH).map_err(told)?;
    begin_anew(&folder, uid, gid).map_err(told)?;
    let made = child::command(Path::new(OWN_PROGRAM))
        .args(["engine", INIT_FILES])
        .arg(&folder)
        .uid(uid)
        .gid(gid)
        .current_dir("/")
        .stdin(Stdio::inherit())
        .output()
        .map_err(told)?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).trim().to_owned());
    }
    give_away(CWD, &folder, owner).map_err(told)?;
    let placed = fs::rename(&folder, &files);
    let given = placed.and_then(|()| own(&alone, owner, CLOSED));
    let synced = given.and_then(|()| alone.sync_all());
    synced.map_err(told)
}

/// Of the folder itself, whatever its name leads to by now.
fn own(folder: &File, owner: u32, mode: u32) -> io::Result<()> {
    std::os::unix::fs::fchown(folder, Some(owner), Some(owner))?;
    folder.set_permissions(fs::Permissions::from_mode(mode))
}

/// The whole process that makes them, as whoever runs it, in a folder that is empty.
///
/// # Errors
///
/// In words, for who started it.
pub fn init_files(folder: &Path) -> Result<(), String> {
    let told: EngineFile =
        serde_json::from_reader(io::stdin()).map_err(|error| error.to_string())?;
    let (postgres, secret) = declared(&told).map_err(|error| error.to_string())?;
    let programs = programs::find(postgres.version, &Search::of_machine());
    let programs = programs.map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let making = files::make_in(folder, &programs, secret);
    runtime.block_on(making).map_err(|error| error.to_string())
}

fn maker() -> Result<(u32, u32), String> {
    let users = fs::read_to_string(USERS).unwrap_or_default();
    let found = MAKERS.iter().find_map(|name| numbers(&users, name));
    found.ok_or_else(|| {
        format!(
            "making the database's files: initdb needs a user with a name that is not root, and {USERS} has neither {}; add one: useradd --system {}",
            MAKERS.join(" nor "),
            MAKERS[0]
        )
    })
}

/// Of a user in the list of users.
fn numbers(users: &str, name: &str) -> Option<(u32, u32)> {
    let mut lines = users.lines().map(|line| line.split(':'));
    let mut fields =
        lines.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    (uid != 0).then_some((uid, gid))
}

/// What an earlier try left half made is gone.
fn begin_anew(folder: &Path, uid: u32, gid: u32) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(folder)?;
    lchown(folder, Some(uid), Some(gid))
}

/// With all that lies below it, without following links: who made it may have put anything there.
fn give_away(parent: BorrowedFd<'_>, name: &Path, owner: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match openat(parent, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(()),
        opened => opened?,
    };
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        if name != Path::new(".") && name != Path::new("..") {
            give_away(folder.as_fd(), name, owner)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\n\nnobody:x:65534:65533:n:/:/bin/false\nbroken:x\nodd:x:0:7::/:\n";
        for (name, expected) in [
            ("nobody", Some((65534, 65533))),
            ("nobod", None),
            ("broken", None),
            ("odd", None),
        ] {
            assert_eq!(numbers(users, name), expected, "{name}");
        }
    }
}
