//! The files of a database: made once, configured at each start, and nobody else's when the server starts.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use model::state::role_password;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;

use super::access::superuser;
use super::child;
use super::place::{self, Place, SETTINGS_FILE, UNFINISHED};
use super::programs::Programs;
use super::tuning;

/// For a server of an engine before to end after SIGQUIT, which a process that is stopped does not hear, and after SIGKILL.
const LEFTOVER_SIGNALS: [(Signal, Duration); 2] = [
    (Signal::QUIT, Duration::from_secs(1)),
    (Signal::KILL, Duration::from_secs(5)),
];
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Of what initdb said, the end.
const TOLD_BYTES: usize = 2000;
/// What initdb says where no list of users has its own.
const NAMELESS: &str = "could not look up effective user ID";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Place(#[from] place::Error),
    #[error("making the database's files: {0}")]
    Initdb(String),
    #[error(
        "making the database's files: initdb refuses a user without a name, and uid {0} has none on this machine; give it one (useradd --uid {0} mainland; in a container, a line in its /etc/passwd: mainland:x:{0}:{0}::/:/bin/false), or run Mainland as root"
    )]
    Nameless(u32),
    #[error(
        "{} is of PostgreSQL {is}, which {declared} can't open, and is left as it is: declare `postgres: {is}` again; a second database with `postgres: {declared}` takes what `mainland db dump` and `mainland db load` bring",
        path.display()
    )]
    OtherVersion {
        path: PathBuf,
        is: String,
        declared: u32,
    },
    #[error("{0} processes of a server before are still there after SIGKILL")]
    Leftovers(usize),
}

/// Makes the files if there are none. What a first start left half made is begun anew.
///
/// # Errors
///
/// `initdb` failed.
pub async fn make(place: &Place, programs: &Programs, secret: &str) -> Result<(), Error> {
    let files = place.files();
    if files.exists() {
        return Ok(());
    }
    let unfinished = place.volume.join(UNFINISHED);
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(place::Error::io(&unfinished)(error).into());
        }
        _ => {}
    }
    make_in(&unfinished, programs, secret).await?;
    fs::rename(&unfinished, &files).map_err(place::Error::io(&files))?;
    sync(&place.volume)
}

/// Makes the files in a folder that is empty or not there, and has them on the disk.
///
/// # Errors
///
/// `initdb` failed.
pub async fn make_in(folder: &Path, programs: &Programs, secret: &str) -> Result<(), Error> {
    initdb(folder, programs, &role_password(secret, &superuser())).await?;
    append(&folder.join("postgresql.conf"), &tuning::include())?;
    sync_all_below(folder)
}

/// Of files that are there.
///
/// # Errors
///
/// They are of another version, or can't be read.
pub fn check_version(place: &Place, declared: u32) -> Result<(), Error> {
    let files = place.files();
    if !files.exists() {
        return Ok(());
    }
    let path = files.join("PG_VERSION");
    let is = fs::read_to_string(&path).map_err(place::Error::io(&path))?;
    match is.trim() == declared.to_string() {
        true => Ok(()),
        false => Err(Error::OtherVersion {
            path: files,
            is: is.trim().to_owned(),
            declared,
        }),
    }
}

async fn initdb(folder: &Path, programs: &Programs, password: &str) -> Result<(), Error> {
    let mut command = tokio::process::Command::from(child::command(&programs.path("initdb")));
    command
        .arg("--pgdata")
        .arg(folder)
        .arg(format!("--username={}", superuser()))
        // The password goes through a pipe: neither a file nor the list of processes has it.
        .args(["--pwfile=/dev/stdin", "--auth=scram-sha-256"])
        .args(["--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"])
        // Synced once, as a whole, before it gets its name.
        .args([
            "--text-search-config=english",
            "--no-instructions",
            "--no-sync",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let told = |error: io::Error| Error::Initdb(error.to_string());
    let mut child = command.spawn().map_err(told)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says why.
        let _ = stdin.write_all(format!("{password}\n").as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(told)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(why_not_made(&last_words(&output.stderr))),
    }
}

fn why_not_made(words: &str) -> Error {
    match words.contains(NAMELESS) {
        true => Error::Nameless(rustix::process::geteuid().as_raw()),
        false => Error::Initdb(words.to_owned()),
    }
}

fn last_words(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(TOLD_BYTES);
    let text = String::from_utf8_lossy(&bytes[from..]);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

/// Writes what PostgreSQL reads at its start.
///
/// # Errors
///
/// A file can't be written.
pub fn configure(place: &Place, configuration: &str) -> Result<(), Error> {
    write(&place.files().join(SETTINGS_FILE), configuration)?;
    write(&place.access_file(), &super::access::rules(&place.database))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    Ok(fs::write(path, text).map_err(place::Error::io(path))?)
}

fn append(path: &Path, text: &str) -> Result<(), Error> {
    let appended = fs::OpenOptions::new().append(true).open(path);
    let written = appended.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    Ok(written.map_err(place::Error::io(path))?)
}

/// Some thousand files: one call for their whole file system is faster than one for each.
fn sync_all_below(folder: &Path) -> Result<(), Error> {
    let opened = fs::File::open(folder);
    let synced = opened.and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    Ok(synced.map_err(place::Error::io(folder))?)
}

fn sync(folder: &Path) -> Result<(), Error> {
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    Ok(synced.map_err(place::Error::io(folder))?)
}

/// Whether the server that had the files did not end by itself.
pub fn was_cut_off(place: &Place) -> bool {
    place.files().join("postmaster.pid").exists()
}

/// Ends what lives of a server before: the engine that holds the lock is the only one whose server may have the files open.
///
/// # Errors
///
/// It can't be killed.
pub async fn end_leftovers(place: &Place) -> Result<(), Error> {
    for (signal, patience) in LEFTOVER_SIGNALS {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let left = working_in(&place.files());
            if left.is_empty() {
                return remove_lock_files(place);
            }
            for pid in left {
                let _ = kill_process(pid, signal);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    match working_in(&place.files()).len() {
        0 => remove_lock_files(place),
        count => Err(Error::Leftovers(count)),
    }
}

/// They name a process. Nobody has the files, so that one is dead and not waited for, or by now some other: PostgreSQL would refuse to
/// start for it.
fn remove_lock_files(place: &Place) -> Result<(), Error> {
    let in_files = place.files().join("postmaster.pid");
    for path in [in_files, place.socket_lock_file()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(place::Error::io(&path)(error).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Every process of a server works in the folder of its files.
fn working_in(folder: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let works = |number: &i32| {
        fs::read_link(format!("/proc/{number}/cwd")).is_ok_and(|work| work == folder)
    };
    numbers.filter(works).filter_map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_one_line() {
        let text = b"initdb: error: no\n\nhint: yes\n";
        assert_eq!(last_words(text), "initdb: error: no; hint: yes");
    }
}
