//! What an agent is told.

use jiff::Timestamp;
use model::compute::{DesiredInstance, Exit};
use model::control::{NodeDesired, Reason};
use model::ids::{Epoch, InstanceId, ResourceName};
use model::traffic::Gate;

use super::{History, Run};
use crate::Instant;

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// Found when the agent started, before anything else is told: an instance of an earlier agent, with its process if one is left.
    Adopted {
        desired: Box<DesiredInstance>,
        history: History,
        process: Adopted,
    },
    /// Found as well, of an instance whose record can't be read, or not wholly: what it should be nobody here knows. It is no [`Adopted::Running`].
    Found {
        instance: InstanceId,
        /// `None`: its name alone is known.
        whose: Option<Whose>,
        process: Adopted,
    },
    /// Nothing of it is left on this node.
    Gone { instance: InstanceId },
    /// What the node should run. `asked_at`: when the watch that brought it was asked for; `None` for what was kept on disk.
    Desired {
        desired: Box<NodeDesired>,
        asked_at: Option<Instant>,
    },
    /// Artifact, secrets, directories and port are there.
    Prepared { instance: InstanceId, run: Run },
    /// It can't be prepared yet: what is missing is somebody's to give, and whoever prepares it goes on trying. No failure of the instance.
    Lacks {
        instance: InstanceId,
        run: Run,
        reason: Reason,
    },
    /// It can't be prepared or executed.
    NotStarted {
        instance: InstanceId,
        run: Run,
        error: String,
    },
    Started {
        instance: InstanceId,
        run: Run,
        pid: u32,
        address: String,
        at: Timestamp,
    },
    /// A signal stopped the process (SIGSTOP), or it goes on.
    Suspended {
        instance: InstanceId,
        run: Run,
        suspended: bool,
    },
    /// These processes of it are still there after SIGKILL, in words. Nothing is started in its place before it is told that it exited.
    Unkillable {
        instance: InstanceId,
        run: Run,
        processes: Vec<String>,
    },
    Exited {
        instance: InstanceId,
        run: Run,
        exit: Exit,
        /// The last line that it wrote to stderr, if that is known.
        last_words: Option<String>,
    },
    Probed {
        instance: InstanceId,
        run: Run,
        question: Question,
        /// The address of the port that the probe is about, where it has one.
        asked: Option<String>,
        answer: Result<(), String>,
    },
    /// The node could not ask: it has no descriptor to spare, or too many others are being asked. That says nothing of the instance.
    NotAsked {
        instance: InstanceId,
        run: Run,
        question: Question,
        why: String,
    },
    /// The proxy has nothing in flight behind the gate of a leaving instance.
    Drained { instance: InstanceId },
    /// A heartbeat sent at that moment was answered by the leader of that epoch.
    Renewed { epoch: Epoch, sent_at: Instant },
    /// Everything leaves: the node is asked to stop with what it runs.
    StopAll,
    /// A deadline of [`super::State::next_wake`] may have passed.
    Tick,
}

/// What every version says of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    pub service: ResourceName,
    /// Its set of volumes.
    pub slot: Option<u32>,
}

/// What is left of an instance of an earlier agent.
#[derive(Debug, Clone)]
pub enum Adopted {
    Running {
        pid: u32,
        address: String,
        started_at: Option<Timestamp>,
        /// As it stood. An open one is believed until probes say otherwise, so that a restart of the agent refuses no request; and where one let
        /// requests in flight go on, they do.
        gate: Gate,
        suspended: bool,
    },
    /// It runs, and nobody here can say as what: its lease is renewed, and it goes on until it is wanted as something else, or not at all. Then it
    /// is ended as any other, SIGTERM first.
    Living,
    /// Something of it may live, and nobody can say what: it is killed before it is started again.
    Unknown,
    /// It ended while no agent looked.
    Exited(Exit),
    /// It was not running when the earlier agent ended.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Question {
    /// May it be sent requests?
    Health,
    /// Is it worth keeping?
    Alive,
}

/// The instance that an input is about.
pub(super) fn subject(input: &Input) -> &InstanceId {
    match input {
        Input::Prepared { instance, .. }
        | Input::Lacks { instance, .. }
        | Input::NotStarted { instance, .. }
        | Input::Started { instance, .. }
        | Input::Suspended { instance, .. }
        | Input::Unkillable { instance, .. }
        | Input::Exited { instance, .. }
        | Input::Probed { instance, .. }
        | Input::NotAsked { instance, .. }
        | Input::Found { instance, .. }
        | Input::Gone { instance }
        | Input::Drained { instance } => instance,
        Input::Adopted { desired, .. } => &desired.instance,
        Input::Desired { .. } | Input::Renewed { .. } | Input::StopAll | Input::Tick => {
            unreachable!("these are about the whole node")
        }
    }
}
