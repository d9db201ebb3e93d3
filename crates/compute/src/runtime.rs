//! What an agent drives: the [`Runtime`] trait, what it hands in ([`InstanceSpec`]) and what it hears back ([`Event`]).
//!
//! ```text
//!             prepare            start                      Exited
//! (nothing) ──────────► prepared ──────► running ─────────────────────► ended
//!                           ▲            │     ▲                          │
//!                           │    Stopped ▼     │ Continued                │ start again, or remove
//!                           │           frozen ┘                          │
//!                           └─────────────────────────────────────────────┘
//! ```
//!
//! A runtime decides nothing: when to restart, how long to wait and where an instance belongs is the agent's. Everything
//! that it needs is in the spec; it reads no configuration and no secret store.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use model::compute::expansion::{Piece, pieces};
use model::compute::{ArtifactRef, Exit, ExitHow, OnPartition};
use model::ids::{Digest, InstanceId, ResourceName};
use model::units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::lease::Moment;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The default limit of open files: enough for a busy server, and what systemd gives a service as its hard limit.
pub const DEFAULT_OPEN_FILES: u64 = 524_288;

/// As the first word of a command: the binary that the agent itself is. The kernel's link to it needs no way through folders, which the user of an
/// instance may not pass, and leads to the right file even after an update has replaced it.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Runs instances. The same instance is named by its directory throughout, which belongs to the runtime from `prepare` to
/// `remove`.
pub trait Runtime: Send + Sync {
    /// Makes the working directory from the artifact and links the volumes. Doing it again for the same artifact does
    /// nothing, and keeps what the workload wrote there.
    fn prepare<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), Error>>;

    /// Starts the workload. With an error there will be no event, and nothing of it lives: whatever was begun has been ended by then, however
    /// long that takes. What can't be ended meanwhile is told by [`Happening::Unkillable`].
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<Started, Error>>;

    /// Takes over what an earlier agent left in the directory.
    fn adopt<'a>(
        &'a self,
        instance: &'a InstanceId,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<Adopted, Error>>;

    /// Runs one more program as the instance's user, in its working directory and cgroup.
    fn exec<'a>(
        &'a self,
        spec: &'a InstanceSpec,
        command: ExecCommand,
    ) -> BoxFuture<'a, Result<Session, Error>>;

    /// SIGTERM now, SIGKILL after `grace`. Returns at once, whether its shim answers or not; the end is told by [`Happening::Exited`].
    fn stop<'a>(
        &'a self,
        instance: &'a InstanceId,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// SIGKILL to all of it, now, with or without its shim. Called again where it did not help: then a shim that does not answer is ended as
    /// well, and what is still there is told by [`Happening::Unkillable`].
    fn kill<'a>(
        &'a self,
        instance: &'a InstanceId,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Any other signal to the main process.
    fn signal<'a>(
        &'a self,
        instance: &'a InstanceId,
        signal: i32,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Tells every running instance with a lease that a renewal sent at `sent_at` succeeded. Never blocks.
    fn renew(&self, sent_at: Moment);

    /// Kills what still runs, then removes directory, cgroup and secret files. Volumes stay.
    fn remove<'a>(
        &'a self,
        instance: &'a InstanceId,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<(), Error>>;
}

/// All that is needed to run one instance, resolved.
#[derive(Debug, Clone)]
pub struct InstanceSpec {
    pub instance: InstanceId,
    /// The instance's own directory. Made by `prepare`; the folder above it must exist.
    pub directory: PathBuf,
    pub artifact: Option<Artifact>,
    /// After [`expand`].
    pub argv: Vec<String>,
    pub environment: Environment,
    /// `None`: the uid and gid of the agent.
    pub identity: Option<Identity>,
    pub volumes: Vec<VolumeMount>,
    /// Secrets given as files. Removed with the instance.
    pub secret_files: Vec<SecretFile>,
    pub memory: Bytes,
    pub cpu: MilliCpu,
    /// Processes and threads together, where a cgroup may be used.
    pub pids: u32,
    pub open_files: u64,
    /// Between SIGTERM and SIGKILL, when the shim itself has to decide.
    pub grace: Duration,
    pub on_partition: OnPartition,
    /// When the last successful renewal was sent; counts with [`OnPartition::Stop`] only.
    pub lease_sent_at: Moment,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// In the node's artifact store.
    pub path: PathBuf,
    pub reference: ArtifactRef,
}

/// Environment variables. Its debug form shows the names only: values may be secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Environment(pub BTreeMap<String, String>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Whom the workload runs as. Supplementary groups are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

/// A volume's directory, which must exist; it appears as `./NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    pub name: ResourceName,
    pub directory: PathBuf,
}

/// A secret written to a file for the workload alone (mode 0400). Its debug form hides the contents.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// Best on a file system in memory. The folder is made when missing.
    pub path: PathBuf,
    pub contents: Vec<u8>,
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretFile").field(&self.path).finish()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub pid: u32,
    pub at: Timestamp,
}

/// What was found in an instance's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// It runs; events follow. `frozen`: stopped by a signal.
    Running { started: Started, frozen: bool },
    /// It ended while no agent was there.
    Ended { exit: Exit },
    /// It was never started.
    NotStarted,
}

/// Something that happened to a running instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub instance: InstanceId,
    /// Of the workload: tells one run from the next.
    pub pid: u32,
    pub what: Happening,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// Frozen by a signal such as SIGSTOP.
    Stopped {
        signal: i32,
    },
    Continued,
    /// These processes are still there after SIGKILL, in words. Told once for each change.
    Unkillable {
        processes: Vec<String>,
    },
    /// Nothing of it is left. The last event of a run.
    Exited(Exit),
}

/// A program to run beside the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCommand {
    pub argv: Vec<String>,
    /// A terminal of this size, for interactive use; `None`: three pipes.
    pub terminal: Option<TerminalSize>,
    /// Given up before its exit, it is killed with all that it started; without a cgroup, with its process group. What it leaves when it exits
    /// by itself goes on, as part of the instance.
    pub apart: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A program that [`Runtime::exec`] started. Dropping `exit` kills it, and what [`ExecCommand::apart`] says.
pub struct Session {
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// Empty with a terminal, which has one stream.
    pub error: Box<dyn AsyncRead + Send + Unpin>,
    /// Code 127: no such program; 126: it can't be executed; the reason is on `error`.
    pub exit: BoxFuture<'static, io::Result<ExitHow>>,
    /// With a terminal: changes its size.
    pub resize: Option<Box<dyn Fn(TerminalSize) -> io::Result<()> + Send + Sync>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The artifact's bytes on this node are not what its digest says. They were removed: fetch them again.
    #[error(
        "artifact {digest} was corrupt on this node and has been discarded; it is fetched again"
    )]
    CorruptArtifact { digest: Digest },
    #[error(transparent)]
    Artifact(#[from] crate::artifact::Error),
    /// The workload never ran; what a user should read.
    #[error("{error}")]
    NotStarted { error: String },
    /// `on_partition: stop`, and no server has answered for so long that it may not begin. It never ran.
    #[error("its lease ran out before it was started")]
    LeaseOver,
    #[error("{0} is already running")]
    Running(InstanceId),
    #[error("{0} is not running")]
    NotRunning(InstanceId),
    /// Its shim takes no more requests: it stands still. It can be killed.
    #[error("the shim of {0} does not answer")]
    Mute(InstanceId),
    /// Nothing may be started in its place.
    #[error("still there after SIGKILL: {}", processes.join(", "))]
    StillThere { processes: Vec<String> },
    #[error("the volume `{name}` has no directory {directory} on this node", directory = directory.display())]
    VolumeMissing {
        name: ResourceName,
        directory: PathBuf,
    },
    #[error("the volume `{name}` can't be linked in: the artifact holds something of that name")]
    VolumeHidden { name: ResourceName },
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// Replaces `$NAME` and `${NAME}` by the environment's values, as [`pieces`] reads them.
pub fn expand(argument: &str, environment: &Environment) -> String {
    let text = pieces(argument).map(|piece| match piece {
        Piece::Text(text) => text,
        Piece::Variable { name, written } => {
            environment.0.get(name).map_or(written, String::as_str)
        }
    });
    text.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_like_a_table() {
        let pairs = [("PORT", "8080"), ("HOST", "a$PORT"), ("EMPTY", "")];
        let environment = Environment(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        );
        let table = [
            ("", ""),
            ("plain", "plain"),
            ("$PORT", "8080"),
            ("--listen=:${PORT}/x", "--listen=:8080/x"),
            ("$PORT$PORT", "80808080"),
            ("${PORT}ms", "8080ms"),
            ("$PORTx", "$PORTx"),
            ("x$EMPTY.", "x."),
            ("$HOST", "a$PORT"),
            ("$$PORT", "$PORT"),
            ("$1 ${} ${PORT $", "$1 ${} ${PORT $"),
            ("${UNKNOWN}-$i", "${UNKNOWN}-$i"),
            ("ä$PORTä", "ä8080ä"),
        ];
        for (argument, expected) in table {
            assert_eq!(expand(argument, &environment), expected, "{argument}");
        }
    }

    #[test]
    fn secrets_are_not_in_the_debug_form() {
        let environment = Environment([("KEY".to_owned(), "hunter2".to_owned())].into());
        let file = SecretFile {
            path: "/x".into(),
            contents: b"hunter2".to_vec(),
        };
        let shown = format!("{environment:?} {file:?}");
        assert!(
            shown.contains("KEY") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
