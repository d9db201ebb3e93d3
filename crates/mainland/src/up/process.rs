//! A process that is started or adopted: known by boot id, pid and start time, watched by a pidfd.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use compute::identity::ProcessIdentity;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

/// Lines that are shown of what ended without being ready.
const LAST_WORDS: usize = 20;

/// As [`ProcessIdentity`], in the words that the file of `up` has always had for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub boot: String,
    pub pid: u32,
    /// Clock ticks since the boot: field 22 of /proc/PID/stat.
    pub started: u64,
}

impl Identity {
    /// `None`: it has ended, also where only its parent does not know yet.
    pub fn of(pid: u32) -> Option<Self> {
        let process = ProcessIdentity::of(pid).ok()?;
        process.is_alive().then_some(Self {
            boot: process.boot_id,
            pid,
            started: process.start_time,
        })
    }

    fn process(&self) -> ProcessIdentity {
        ProcessIdentity {
            boot_id: self.boot.clone(),
            pid: self.pid,
            start_time: self.started,
        }
    }

    pub fn alive(&self) -> bool {
        self.process().is_alive()
    }

    /// Whether a signal (SIGSTOP) keeps it from running: it is there, and does nothing.
    pub fn is_stopped(&self) -> bool {
        self.process().is_stopped()
    }

    /// Refused for a process of another user. One that has ended needs no signal.
    pub fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        // A pidfd taken before the identity is checked can't come to mean another process.
        let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        match self.alive() {
            true => rustix::process::pidfd_send_signal(fd, signal),
            false => Ok(()),
        }
    }

    /// Waits for its end, child or not.
    pub async fn ended(&self) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return;
        };
        let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) else {
            return;
        };
        if !self.alive() {
            return;
        }
        #[expect(
            deprecated,
            reason = "sound for an owned descriptor, which nobody else closes; its successor is unsafe to call"
        )]
        let watched = AsyncFd::new(fd);
        if let Ok(watched) = watched {
            let _ = watched.readable().await;
        }
    }
}

/// Who listens on a Unix socket, if anybody does.
pub fn listening_on(socket: &Path) -> Option<Identity> {
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Identity::of(u32::try_from(peer.pid.as_raw_nonzero().get()).ok()?)
}

/// What to start, and where its own words go.
pub struct Start<'a> {
    pub binary: &'a Path,
    pub words: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    pub log: &'a Path,
}

/// Starts it. It makes itself a session of its own, so that a ctrl-C at the terminal is not its concern.
pub fn start(start: Start<'_>) -> Result<Identity> {
    let log = crate::log::open(start.log)
        .with_context(|| format!("{} can't be written", start.log.display()))?;
    let mut child = Command::new(start.binary)
        .args(&start.words)
        .envs(start.environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("`{}` can't be started", start.words.join(" ")))?;
    let identity = child.id().and_then(Identity::of);
    // Its exit status is of no interest, but somebody must take it.
    tokio::spawn(async move { child.wait().await });
    identity.with_context(|| format!("`{}` ended at once", start.words.join(" ")))
}

/// The last lines that were written to a log since it had this length. A log that is shorter now has been begun anew.
pub fn last_words(log: &Path, before: u64) -> String {
    let said = std::fs::read(log).unwrap_or_default();
    let begin = usize::try_from(before).unwrap_or(usize::MAX);
    let said = String::from_utf8_lossy(said.get(begin..).unwrap_or(&said));
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_of_this_start_alone() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("up.log");
        assert_eq!(last_words(&log, 0), "");
        std::fs::write(&log, "error: long ago\n").unwrap();
        let before = log.metadata().unwrap().len();
        assert_eq!(last_words(&log, before), "");
        std::fs::write(&log, "error: long ago\nerror: now\n").unwrap();
        assert_eq!(last_words(&log, before), "error: now");
        std::fs::write(&log, "begun anew\n").unwrap();
        assert_eq!(last_words(&log, before), "begun anew");
    }

    #[test]
    fn a_process_is_known_until_it_ends() {
        let mut child = std::process::Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.alive());
        let other = Identity {
            started: identity.started + 1,
            ..identity.clone()
        };
        assert!(
            !other.alive(),
            "the same pid with another start is another process"
        );
        identity.signal(Signal::KILL).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(identity.ended());
        assert!(!identity.alive(), "a zombie is not alive");
        child.wait().unwrap();
    }
}
