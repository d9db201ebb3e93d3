//! What agent, shim and trampoline say to each other: JSON, a line each, over pipes and `shim.sock`.
//!
//! Agent and shim may be of different versions, since a shim outlives an update of the binary: fields are only ever added,
//! with a default, and an unknown request is answered by [`Notice::Refused`].

use jiff::Timestamp;
use model::compute::Exit;
use model::units::{Bytes, Span};
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::instance::Record;
use crate::lease::Moment;
use crate::runtime::{Environment, Identity};

/// Longest line on the socket.
pub(crate) const LINE_MAX_BYTES: usize = 16 << 10;
/// Most that a launch may take: arguments and environment together are bounded by the kernel to 2 MiB, of which JSON makes six times as much where
/// every byte is a control character.
pub(crate) const LAUNCH_MAX_BYTES: u64 = 16 << 20;

/// Agent to shim, on stdin, to its end: all that one run needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub program: Program,
    pub memory: Bytes,
    pub grace: Span,
    /// `Some`: stop when the lease that was sent then is not renewed.
    pub lease_sent_at: Option<Moment>,
}

/// Shim to trampoline (and agent to trampoline, for exec): what to become.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    pub argv: Vec<String>,
    pub environment: Environment,
    pub identity: Option<Identity>,
    pub cgroup: Option<Group>,
    pub open_files: u64,
    /// The path of a terminal to be its stdin, stdout and stderr.
    #[serde(default)]
    pub terminal: Option<String>,
    /// The process with which it dies. `None`: it outlives who started it.
    #[serde(default)]
    pub dies_with: Option<u32>,
}

/// Shim to agent, on stdout: one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Launched {
    Started {
        pid: u32,
        at: Timestamp,
    },
    NotStarted {
        error: String,
        /// There was no lease to start it with.
        #[serde(default)]
        lease_over: bool,
    },
}

/// Agent to shim, on the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// SIGTERM now, SIGKILL after the grace.
    Stop {
        grace: Span,
    },
    Kill,
    Signal {
        signal: i32,
    },
    /// A renewal that was sent then has succeeded.
    Renew {
        sent_at: Moment,
    },
}

/// Shim to agent, on the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Notice {
    /// The first line of every connection.
    Hello {
        record: Record,
        stopped: Option<i32>,
    },
    Stopped {
        signal: i32,
    },
    Continued,
    /// Processes that are still there after SIGKILL, in words. Said again as long as it is so; nothing is recorded before they are gone.
    Unkillable {
        processes: Vec<String>,
    },
    /// The last one: the record is on disk, nothing of the workload is left.
    Exited {
        exit: Exit,
    },
    Refused {
        error: String,
    },
}

/// Why the trampoline could not become the program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub doing: String,
    /// The number of the operating system's error, when it was one.
    pub errno: Option<i32>,
    pub error: String,
}
