//! The layout of an instance's directory and the records in it. See the crate's page for the picture.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::compute::Exit;
use model::ids::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::identity::ProcessIdentity;
use crate::runtime::Identity;

pub(crate) const SOCKET: &str = "shim.sock";
/// Room set aside at the start, so that the exit can be recorded on a full disk.
const EXIT_RECORD_BYTES: usize = 1024;

pub fn work_directory(directory: &Path) -> PathBuf {
    directory.join("work")
}

/// How the line begins that the shim writes into the output when a run begins.
pub const STARTED: &str = "started as pid";

/// Where the binary's sink is to write the output.
pub fn log_directory(directory: &Path) -> PathBuf {
    directory.join("logs")
}

/// `prepared.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepared {
    pub artifact: Option<Digest>,
    /// Whom the copy belongs to.
    pub owner: Option<Identity>,
}

/// `shim.json`: what a later agent needs to recognise shim and workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub shim: ProcessIdentity,
    pub workload: ProcessIdentity,
    pub started_at: Timestamp,
    pub cgroup: Option<Group>,
}

/// The process records of a directory; `None` when the file is missing or torn.
pub fn read_record(directory: &Path) -> Option<Record> {
    read_json(&directory.join("shim.json"))
}

/// How the last run ended; `None` while it runs, or when nothing is known.
pub fn read_exit(directory: &Path) -> Option<Exit> {
    read_json(&directory.join("exit.json"))
}

pub(crate) fn read_prepared(directory: &Path) -> Option<Prepared> {
    read_json(&directory.join("prepared.json"))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

pub(crate) fn write_prepared(directory: &Path, prepared: &Prepared) -> io::Result<()> {
    write_json(&directory.join("prepared.json"), prepared)
}

pub(crate) fn write_record(directory: &Path, record: &Record) -> io::Result<()> {
    write_json(&directory.join("shim.json"), record)
}

/// Records the exit without taking new room on the disk, if [`reserve_exit`] was called before.
pub(crate) fn write_exit(directory: &Path, exit: &Exit) -> io::Result<()> {
    let mut text = serde_json::to_vec(exit)?;
    // Padding with spaces leaves no rest of the reserved bytes behind the record.
    text.resize(text.len().max(EXIT_RECORD_BYTES), b' ');
    let reserved = directory.join("exit.json.new");
    let mut file = open_private(&reserved, false)?;
    file.write_all(&text)?;
    fs::rename(&reserved, directory.join("exit.json"))
}

/// Sets room aside for the exit record, and removes what an earlier run left.
pub(crate) fn reserve_exit(directory: &Path) -> io::Result<()> {
    remove_if_there(&directory.join("exit.json"))?;
    let mut file = open_private(&directory.join("exit.json.new"), true)?;
    file.write_all(&[b' '; EXIT_RECORD_BYTES])
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let mut file = open_private(&fresh, true)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    fs::rename(&fresh, path)
}

/// Readable for us alone, also where it was there before and others could read it.
pub(crate) fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    remove_if_there(path)?;
    open_private(path, true)?.write_all(text)
}

fn open_private(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(truncate)
        .mode(0o600)
        .open(path)
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
