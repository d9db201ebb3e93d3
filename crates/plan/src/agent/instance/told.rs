//! What others are told of an instance: its gate, its report, its events.

use model::compute::{InstanceReport, InstanceState};
use model::control::Reason;
use model::ids::InstanceId;
use model::signals::Level;
use model::traffic::Gate;

use super::{Instance, Phase, Process, Why, blank_report};
use crate::agent::Output;

/// What others are told.
impl Instance {
    pub(super) fn settle_gate(&mut self, outputs: &mut Vec<Output>) {
        let gate = match self.phase {
            Phase::Running if self.is_ready() => Gate::Open,
            // Taken over on its way out: so it stays, until it is told to leave or answers its probe.
            Phase::Running if self.gate == Gate::Leaving => Gate::Leaving,
            // A probe that fails may tell of load alone: what it has begun, it may end.
            Phase::Running if self.process.as_ref().is_some_and(Process::falters) => Gate::Held,
            Phase::Draining { .. }
            | Phase::Stopping {
                why: Why::Leave | Why::Lease,
                ..
            } => Gate::Leaving,
            _ => Gate::Shut,
        };
        if gate != self.gate {
            self.gate = gate;
            if let Some(process) = &mut self.process {
                process.drained = false;
            }
            outputs.push(Output::SetGate {
                instance: self.desired.instance.clone(),
                gate,
            });
        }
    }

    pub(super) fn settle_report(&mut self, outputs: &mut Vec<Output>) {
        let report = self.make_report();
        if report != self.report {
            self.report = report;
            outputs.push(Output::Report {
                instance: self.desired.instance.clone(),
            });
        }
    }

    fn make_report(&self) -> InstanceReport {
        let process = self.process.as_ref();
        InstanceReport {
            state: self.state(),
            ready: self.is_ready(),
            was_ready: self.history.was_ready,
            never_started: !self.history.has_run() && !self.has_process(),
            pid: process.map(|process| process.pid),
            address: self.address.clone(),
            restarts: self.history.starts.saturating_sub(1),
            started_at: process.and_then(|process| process.started_at),
            last_exit: self.history.last_exit.clone(),
            reason: self.reason.clone(),
            ..blank_report(&self.desired)
        }
    }

    fn state(&self) -> InstanceState {
        match self.phase {
            Phase::Waiting { .. } => InstanceState::Pending,
            Phase::Preparing { .. } if self.has_waited() => InstanceState::Pending,
            Phase::Preparing { .. } | Phase::Starting { .. } => InstanceState::Starting,
            Phase::Running if self.runs_once() => InstanceState::Running,
            Phase::Running => match self
                .process
                .as_ref()
                .is_some_and(|process| process.ever_ready)
            {
                true => InstanceState::Running,
                false => InstanceState::Starting,
            },
            Phase::Draining { .. } | Phase::Stopping { .. } => InstanceState::Draining,
            Phase::BackingOff { .. } | Phase::Fenced | Phase::Failed => InstanceState::Failed,
            Phase::Stopped => InstanceState::Stopped,
            Phase::Finished => InstanceState::Finished,
        }
    }

    pub(super) fn tell(&self, level: Level, reason: Reason, outputs: &mut Vec<Output>) {
        let instance: InstanceId = self.desired.instance.clone();
        outputs.push(Output::Tell {
            instance: Some(instance),
            level,
            reason,
        });
    }
}
