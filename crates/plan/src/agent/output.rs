//! What an agent says is to be done.

use model::control::Reason;
use model::ids::InstanceId;
use model::signals::Level;
use model::traffic::Gate;

use super::{Question, Run};
use crate::Instant;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Fetch the artifact and the secrets, make the directories, pick the port; answer `Prepared` or `NotStarted`.
    Prepare {
        instance: InstanceId,
        run: Run,
    },
    /// Execute; answer `Started` or `NotStarted`.
    Start {
        instance: InstanceId,
        run: Run,
    },
    /// Ask once; answer `Probed`.
    Probe {
        instance: InstanceId,
        run: Run,
        question: Question,
    },
    SetGate {
        instance: InstanceId,
        gate: Gate,
    },
    /// SIGTERM.
    Terminate {
        instance: InstanceId,
    },
    /// SIGKILL to all that is left of it.
    Kill {
        instance: InstanceId,
    },
    /// Forget its process, port and working directory; its volumes stay.
    Remove {
        instance: InstanceId,
    },
    /// Tell the shim that the lease was renewed by what was sent at that moment.
    RenewLease {
        instance: InstanceId,
        sent_at: Instant,
    },
    /// Keep its [`super::History`] on the node's disk.
    Remember {
        instance: InstanceId,
    },
    /// What the server should be told about it changed; it is gone if [`super::State::report`] knows nothing.
    Report {
        instance: InstanceId,
    },
    /// The lease was lost, or gained: what the watch of the desired state has brought so far starts nothing that must not run twice; ask anew.
    WatchAnew,
    /// Something a person should read.
    Tell {
        instance: Option<InstanceId>,
        level: Level,
        reason: Reason,
    },
}
