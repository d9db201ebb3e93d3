//! PostgreSQL's own process.
//!
//! ```text
//!          asked to end                     no transaction is open, or 2 s        14 s                3 s
//! running ─────────────▶ smart (SIGTERM) ─────────────────────────▶ fast (SIGINT) ────▶ immediate (SIGQUIT) ────▶ killed
//! ```
//!
//! A smart shutdown takes no new connections and waits for those that are open. Services keep theirs, so it is only waited for what they
//! have begun. The times together are less than an engine's grace.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::timeout;

use super::child;
use super::place::Place;
use super::programs::Programs;
use super::tuning;

const SMART: Duration = Duration::from_secs(2);
const FAST: Duration = Duration::from_secs(14);
const IMMEDIATE: Duration = Duration::from_secs(3);

pub struct Server {
    child: Child,
    pid: u32,
}

impl Server {
    /// # Errors
    ///
    /// It can't be executed.
    pub fn start(place: &Place, programs: &Programs) -> std::io::Result<Self> {
        let command = child::command(&programs.path("postgres"));
        let mut command = tokio::process::Command::from(command);
        command.arg("-D").arg(place.files());
        for setting in tuning::fixed(place) {
            command.arg("-c").arg(setting);
        }
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
        let pid = child.id().unwrap_or(0);
        Ok(Self { child, pid })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// # Errors
    ///
    /// It can't be waited for.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends it, after what is open: `quiet` comes when no transaction is.
    pub async fn stop(mut self, quiet: impl Future<Output = ()>) -> std::io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        tokio::select! {
            status = self.child.wait() => return status,
            _ = timeout(SMART, quiet) => {}
        }
        for (signal, patience) in [(Signal::INT, FAST), (Signal::QUIT, IMMEDIATE)] {
            self.signal(signal);
            if let Ok(status) = timeout(patience, self.child.wait()).await {
                return status;
            }
        }
        self.child.kill().await?;
        self.child.wait().await
    }

    fn signal(&self, signal: Signal) {
        // Not waited for yet, so the number is its own.
        if let (Some(_), Some(pid)) = (self.child.id(), Pid::from_raw(self.pid as i32)) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// How it ended, in words.
pub fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "in an unknown way".to_owned(),
    }
}
