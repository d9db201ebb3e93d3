//! One instance: what is known of it, and how it begins. What happens to it is in [`heard`], what it does next in [`moves`], what others are
//! told in [`told`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use model::compute::{DesiredInstance, Exit, ExitHow, InstanceReport, Probe, Purpose};
use model::control::Reason;
use model::ids::{InstanceId, ResourceId};
use model::traffic::Gate;
use serde::{Deserialize, Serialize};

use super::probing::{NOT_READY_INTERVAL, NOT_READY_PATIENCE, Probing};
use super::{Adopted, Draw, Lease, Output, Run, Whose};
use crate::backoff::Backoff;
use crate::{Instant, Now};

mod heard;
mod moves;
mod told;

/// A first start waits for its needs at most this long.
pub const WAIT_FOR_NEEDS: Duration = Duration::from_secs(30);
/// What runs once waits longer: its failure would be final.
pub const WAIT_FOR_NEEDS_ONCE: Duration = Duration::from_secs(300);
/// `alive` is first asked when the instance was ready, or after this.
const ALIVE_AFTER: Duration = Duration::from_secs(30);
/// What is asked nothing (`health: none`) is ready once it has run this long: a program that ends at once, for lack of a file or a setting, was never
/// ready, and its volumes have no home yet. Longer than an interpreter takes to find that out, shorter than what a rollout watches the first
/// new copy for ([`model::compute::RolloutOptions::default_ready_for`]).
pub const RUNS_WELL_AFTER: Duration = Duration::from_secs(2);
/// A failing probe is no news so soon after the start.
const QUIET_START: Duration = Duration::from_secs(2);
/// One whose answer is another than before is news at most this often.
const NEWS_INTERVAL: Duration = Duration::from_secs(1);
/// An order to prepare or to start is given again after this, in case it was lost. Whoever is at it already goes on.
const ORDER_AGAIN: Duration = Duration::from_secs(60);
/// A killed process that is still there is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What a node keeps on its disk about the past of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub starts: u32,
    pub backoff: Backoff,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// Its last end was wanted, so that work that runs once has not had its run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// Something of it ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ran: bool,
    /// It answered its probe, or ended well, once. The home of its volumes rests on it, which nobody may have heard at that moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_ready: bool,
}

impl History {
    /// Also as an earlier version kept it.
    fn has_run(&self) -> bool {
        let exit = self.last_exit.as_ref().map(|exit| &exit.how);
        let ended = exit.is_some_and(|how| !matches!(how, ExitHow::NotStarted { .. }));
        self.ran || self.starts > 0 || ended
    }
}

/// What an instance needs to know of everything else.
pub(super) struct World<'a> {
    pub lease: &'a Lease,
    pub reachable: &'a BTreeSet<ResourceId>,
    pub local: &'a BTreeSet<ResourceId>,
    /// Which sets of volumes are in use on this node, and by which instance.
    pub volumes: &'a BTreeMap<(ResourceId, u32), InstanceId>,
    /// What may live of instances of which nobody knows what they should be.
    pub strays: &'a [(InstanceId, Option<Whose>)],
    pub stopping: bool,
    /// Nothing is started yet: see [`super::State::wait_for_servers`].
    pub held: bool,
    pub now: Now,
}

/// One instance of this node.
#[derive(Debug)]
pub struct Instance {
    desired: DesiredInstance,
    /// A newer placement under the same name; it begins when this one has ended.
    replacement: Option<Box<DesiredInstance>>,
    /// The desired state no longer names it.
    unwanted: bool,
    phase: Phase,
    run: Run,
    process: Option<Process>,
    address: Option<String>,
    history: History,
    reason: Option<Reason>,
    gate: Gate,
    report: InstanceReport,
}

#[derive(Debug)]
enum Phase {
    Waiting {
        until: Instant,
    },
    Preparing {
        again_at: Instant,
    },
    Starting {
        again_at: Instant,
    },
    Running,
    Draining {
        until: Instant,
    },
    Stopping {
        why: Why,
        kill_at: Instant,
    },
    BackingOff {
        until: Instant,
    },
    Fenced,
    Stopped,
    Finished,
    /// Ended badly, and runs once.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Leave,
    Restart,
    Lease,
}

/// What is known of a running process.
#[derive(Debug)]
struct Process {
    pid: u32,
    started_at: Option<Timestamp>,
    since: Instant,
    ready: bool,
    ever_ready: bool,
    not_ready_since: Instant,
    /// When it was last told why its health probe fails.
    failure_told_at: Option<Instant>,
    /// When it was last told that it could not be asked.
    not_asked_told_at: Option<Instant>,
    suspended: bool,
    /// Nobody is inside any more, though it has not been told to leave: it was taken over on its way out.
    drained: bool,
    health: Probing,
    alive: Probing,
}

impl Process {
    fn new(pid: u32, started_at: Option<Timestamp>, now: Instant) -> Self {
        Self {
            pid,
            started_at,
            since: now,
            ready: false,
            ever_ready: false,
            not_ready_since: now,
            failure_told_at: None,
            not_asked_told_at: None,
            suspended: false,
            drained: false,
            health: Probing::from(now),
            alive: Probing::from(now.after(ALIVE_AFTER)),
        }
    }

    /// It runs and was ready, and its probe fails now.
    fn falters(&self) -> bool {
        self.ever_ready && !self.ready && !self.suspended
    }

    fn serves(&self) -> bool {
        self.ready && !self.suspended
    }

    /// When it counts as ready where nothing is asked of it.
    fn runs_well_at(&self) -> Instant {
        self.since.after(RUNS_WELL_AFTER)
    }

    fn is_ready(&mut self) -> bool {
        let first = !self.ever_ready;
        self.ready = true;
        self.ever_ready = true;
        first
    }

    fn health_pause(&self, probe: &Probe, now: Instant) -> Duration {
        let patient = !self.ready && now.since(self.not_ready_since) < NOT_READY_PATIENCE;
        match patient {
            true => NOT_READY_INTERVAL,
            false => probe.times.every.duration(),
        }
    }
}

/// For those who act and those who show.
impl Instance {
    pub fn desired(&self) -> &DesiredInstance {
        &self.desired
    }

    pub fn service(&self) -> ResourceId {
        ResourceId::new(
            self.desired.instance.project.clone(),
            self.desired.service.clone(),
        )
    }

    pub fn run(&self) -> Run {
        self.run
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// `127.0.0.1:PORT`, once it was started.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub fn gate(&self) -> Gate {
        self.gate
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    pub fn report(&self) -> &InstanceReport {
        &self.report
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Running) && self.process.as_ref().is_some_and(Process::serves)
    }

    /// Whether whoever prepares it for this run should go on.
    pub fn prepares(&self, run: Run) -> bool {
        self.run == run && matches!(self.phase, Phase::Preparing { .. })
    }

    /// Whether whoever starts it for this run should.
    pub fn starts(&self, run: Run) -> bool {
        self.run == run && matches!(self.phase, Phase::Starting { .. })
    }

    /// Whether its reason is that of a wait, which ends by itself or by what somebody does.
    fn has_waited(&self) -> bool {
        let waits = |reason: &Reason| reason.code.starts_with("waits-for-");
        self.reason.as_ref().is_some_and(waits)
    }

    pub fn has_process(&self) -> bool {
        use Phase::{Draining, Running, Starting, Stopping};
        matches!(
            self.phase,
            Starting { .. } | Running | Draining { .. } | Stopping { .. }
        )
    }

    /// It runs to its end once, is asked nothing and called by nobody.
    pub(super) fn runs_once(&self) -> bool {
        self.desired.purpose != Purpose::Serve
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Waiting { .. })
    }
}

/// How it begins.
impl Instance {
    pub(super) fn new(desired: DesiredInstance, now: Now) -> Self {
        let report = blank_report(&desired);
        let wait = wait_for_needs(&desired);
        Self {
            desired,
            replacement: None,
            unwanted: false,
            phase: Phase::Waiting {
                until: now.instant.after(wait),
            },
            run: 0,
            process: None,
            address: None,
            history: History::default(),
            reason: None,
            gate: Gate::Shut,
            report,
        }
    }

    pub(super) fn adopt(
        desired: DesiredInstance,
        history: History,
        process: Adopted,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) -> Self {
        let mut instance = Self::new(desired, now);
        instance.history = history;
        instance.run = 1;
        match process {
            Adopted::Running {
                pid,
                address,
                started_at,
                gate,
                suspended,
            } => {
                let mut process = Process::new(pid, started_at, now.instant);
                process.ready = gate == Gate::Open;
                // One that leaves may never have been: it is treated as if it were, since requests may be in flight.
                process.ever_ready = gate != Gate::Shut;
                process.suspended = suspended;
                instance.history.ran = true;
                instance.history.was_ready |= matches!(gate, Gate::Open | Gate::Held);
                instance.gate = gate;
                instance.process = Some(process);
                instance.address = Some(address);
                instance.phase = Phase::Running;
            }
            Adopted::Living => instance.terminate(Why::Restart, now, outputs),
            Adopted::Unknown => {
                instance.phase = Phase::Stopping {
                    why: Why::Restart,
                    kill_at: now.instant,
                };
            }
            Adopted::Exited(exit) => instance.ended(exit, None, false, now, draw, outputs),
            Adopted::Absent if instance.has_finished() => instance.phase = Phase::Finished,
            Adopted::Absent if instance.has_failed() => instance.fail(None, outputs),
            // It waited for its needs in the life of the earlier agent.
            Adopted::Absent => instance.phase = Phase::BackingOff { until: now.instant },
        }
        instance
    }

    /// One whose record is lost. What it has done is not known, so it counts as one that ran: what it may have written is somebody's to delete.
    pub(super) fn found(
        desired: DesiredInstance,
        process: Adopted,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) -> Self {
        let history = History {
            ran: true,
            ..History::default()
        };
        Self::adopt(desired, history, process, now, draw, outputs)
    }

    /// What a newer desired state says of it.
    pub(super) fn take_desired(&mut self, desired: DesiredInstance) {
        self.unwanted = false;
        let same = desired.epoch == self.desired.epoch && desired.release == self.desired.release;
        if same {
            self.replacement = None;
            self.desired = desired;
        } else {
            self.replacement = Some(Box::new(desired));
        }
    }

    pub(super) fn is_unwanted(&mut self) {
        self.unwanted = true;
        self.replacement = None;
    }
}

/// How long a first start waits for its needs.
fn wait_for_needs(desired: &DesiredInstance) -> Duration {
    match desired.purpose {
        Purpose::Serve => WAIT_FOR_NEEDS,
        Purpose::BeforeDeploy => WAIT_FOR_NEEDS_ONCE,
        // A person looks on, and may have come because a need is down.
        Purpose::Run => Duration::ZERO,
    }
}

fn blank_report(desired: &DesiredInstance) -> InstanceReport {
    InstanceReport::blank(
        desired.instance.clone(),
        desired.service.clone(),
        desired.release,
        desired.epoch,
    )
}
