//! One instance: its phase, what its process did, and what is told about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use model::compute::{
    Ask, Completion, DesiredInstance, Exit, ExitHow, InstanceReport, InstanceState, Probe, Wanted,
};
use model::control::Reason;
use model::ids::{InstanceId, ResourceId, ResourceName};
use model::signals::Level;
use model::traffic::Gate;
use serde::{Deserialize, Serialize};

use super::probing::{NOT_READY_INTERVAL, NOT_READY_PATIENCE, Probing};
use super::{Adopted, Draw, EMPTY_AFTER, Input, Lease, Output, Question, Run};
use crate::backoff::{self, Backoff};
use crate::{Instant, Now};

/// A first start waits for its needs at most this long.
pub const WAIT_FOR_NEEDS: Duration = Duration::from_secs(30);
/// `alive` is first asked when the instance was ready, or after this.
const ALIVE_AFTER: Duration = Duration::from_secs(30);
/// A failing probe is no news so soon after the start.
const QUIET_START: Duration = Duration::from_secs(2);
/// A killed process that is still there is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What a node keeps on its disk about the past of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub starts: u32,
    pub backoff: Backoff,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
}

/// What an instance needs to know of everything else.
pub(super) struct World<'a> {
    pub lease: &'a Lease,
    pub reachable: &'a BTreeSet<ResourceId>,
    pub local: &'a BTreeSet<ResourceId>,
    /// Which sets of volumes are in use on this node, and by which instance.
    pub volumes: &'a BTreeMap<(ResourceId, u32), InstanceId>,
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
    Waiting { until: Instant },
    Preparing,
    Starting,
    Running,
    Draining { until: Instant },
    Stopping { why: Why, kill_at: Instant },
    BackingOff { until: Instant },
    Fenced,
    Stopped,
    Finished,
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
    suspended: bool,
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
            suspended: false,
            health: Probing::from(now),
            alive: Probing::from(now.after(ALIVE_AFTER)),
        }
    }

    fn serves(&self) -> bool {
        self.ready && !self.suspended
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

    pub fn has_process(&self) -> bool {
        use Phase::{Draining, Running, Starting, Stopping};
        matches!(
            self.phase,
            Starting | Running | Draining { .. } | Stopping { .. }
        )
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Waiting { .. })
    }
}

/// How it begins.
impl Instance {
    pub(super) fn new(desired: DesiredInstance, now: Now) -> Self {
        let report = blank_report(&desired);
        Self {
            desired,
            replacement: None,
            unwanted: false,
            phase: Phase::Waiting {
                until: now.instant.after(WAIT_FOR_NEEDS),
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
                ready,
                suspended,
            } => {
                let mut process = Process::new(pid, started_at, now.instant);
                process.ready = ready;
                process.ever_ready = ready;
                process.suspended = suspended;
                instance.gate = if process.serves() {
                    Gate::Open
                } else {
                    Gate::Shut
                };
                instance.process = Some(process);
                instance.address = Some(address);
                instance.phase = Phase::Running;
            }
            Adopted::Exited(exit) => instance.ended(exit, false, now, draw, outputs),
            Adopted::Absent if instance.has_finished() => instance.phase = Phase::Finished,
            // It waited for its needs in the life of the earlier agent.
            Adopted::Absent => instance.phase = Phase::BackingOff { until: now.instant },
        }
        instance
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

/// What happened to it.
impl Instance {
    pub(super) fn take(
        &mut self,
        input: Input,
        stopping: bool,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) {
        match input {
            Input::Prepared { run, .. } if run == self.run => {
                if matches!(self.phase, Phase::Preparing) {
                    self.phase = Phase::Starting;
                    outputs.push(Output::Start {
                        instance: self.desired.instance.clone(),
                        run,
                    });
                }
            }
            Input::NotStarted { run, error, .. } if run == self.run => {
                if matches!(self.phase, Phase::Preparing | Phase::Starting) {
                    let how = ExitHow::NotStarted { error };
                    self.ended(Exit { how, at: now.at }, stopping, now, draw, outputs);
                }
            }
            Input::Started {
                run,
                pid,
                address,
                at,
                ..
            } if run == self.run => self.started(pid, address, at, now, outputs),
            Input::Suspended { run, suspended, .. } if run == self.run => {
                self.suspended(suspended, now, outputs);
            }
            Input::Exited { run, exit, .. } if run == self.run && self.has_process() => {
                self.ended(exit, stopping, now, draw, outputs);
            }
            Input::Probed {
                run,
                question,
                answer,
                ..
            } if run == self.run => self.probed(question, answer, now, outputs),
            Input::Drained { .. } => {
                if matches!(self.phase, Phase::Draining { .. }) {
                    self.terminate(Why::Leave, now, outputs);
                }
            }
            _ => {}
        }
    }

    fn started(
        &mut self,
        pid: u32,
        address: String,
        at: Timestamp,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        if !matches!(self.phase, Phase::Starting) {
            return;
        }
        self.phase = Phase::Running;
        self.process = Some(Process::new(pid, Some(at), now.instant));
        self.address = Some(address);
        self.reason = None;
        self.history.starts = self.history.starts.saturating_add(1);
        outputs.push(Output::Remember {
            instance: self.desired.instance.clone(),
        });
        self.tell(
            Level::Info,
            Reason::new("started", format!("started, pid {pid}")),
            outputs,
        );
    }

    fn suspended(&mut self, suspended: bool, now: Now, outputs: &mut Vec<Output>) {
        let Some(process) = self.process.as_mut() else {
            return;
        };
        if process.suspended == suspended {
            return;
        }
        process.suspended = suspended;
        process.health.hurry(now.instant);
        let reason = match suspended {
            true => Reason::new(
                "suspended",
                "stopped by a signal: takes no requests until it is continued",
            ),
            false => {
                // What it answers now decides, not what it answered before.
                process.ready &= matches!(self.desired.spec.health.ask, Ask::None);
                process.not_ready_since = now.instant;
                Reason::new("continued", "continued after a signal had stopped it")
            }
        };
        self.reason = suspended.then(|| reason.clone());
        self.tell(Level::Warning, reason, outputs);
    }

    fn probed(
        &mut self,
        question: Question,
        answer: Result<(), String>,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        match question {
            Question::Health => self.health_answered(answer, now, outputs),
            Question::Alive => self.alive_answered(answer, now, outputs),
        }
    }

    fn health_answered(&mut self, answer: Result<(), String>, now: Now, outputs: &mut Vec<Output>) {
        let probe = &self.desired.spec.health;
        let Some(process) = self.process.as_mut() else {
            return;
        };
        let was_ready = process.ready;
        let pause = process.health_pause(probe, now.instant);
        process.health.answered(answer.is_ok(), pause, now.instant);
        match answer {
            Ok(()) if !was_ready => {
                let took = now.instant.since(process.since);
                let message = match process.is_ready() {
                    true => format!("ready {} ms after its start", took.as_millis()),
                    false => "answers its health probe again".to_owned(),
                };
                let pause = probe.times.every.duration();
                process.health.answered(true, pause, now.instant);
                process.alive.hurry(now.instant.after(pause));
                self.reason = None;
                self.tell(Level::Info, Reason::new("ready", message), outputs);
            }
            Ok(()) => {}
            Err(error) if was_ready && process.health.has_failed(probe) => {
                process.ready = false;
                process.not_ready_since = now.instant;
                process.health.hurry(now.instant.after(NOT_READY_INTERVAL));
                self.not_ready(error, true, outputs);
            }
            // An answer that changes from 50 ms to 50 ms is not reported each time.
            Err(error)
                if !was_ready
                    && self.reason.is_none()
                    && now.instant.since(process.since) >= QUIET_START =>
            {
                self.not_ready(error, false, outputs);
            }
            Err(_) => {}
        }
    }

    fn not_ready(&mut self, error: String, tell: bool, outputs: &mut Vec<Output>) {
        let reason = Reason::new("not-ready", format!("its health probe fails: {error}"));
        self.reason = Some(reason.clone());
        if tell {
            self.tell(Level::Warning, reason, outputs);
        }
    }

    fn alive_answered(&mut self, answer: Result<(), String>, now: Now, outputs: &mut Vec<Output>) {
        let (Some(probe), Some(process)) = (&self.desired.spec.alive, self.process.as_mut()) else {
            return;
        };
        process
            .alive
            .answered(answer.is_ok(), probe.times.every.duration(), now.instant);
        let failed = process.alive.has_failed(probe) && !process.suspended;
        if let (Err(error), true, Phase::Running) = (answer, failed, &self.phase) {
            let reason = Reason::new(
                "not-alive",
                format!("restarted: its alive probe fails: {error}"),
            );
            self.reason = Some(reason.clone());
            self.tell(Level::Warning, reason, outputs);
            self.terminate(Why::Restart, now, outputs);
        }
    }

    /// Its process ended, or there was none to begin with.
    fn ended(
        &mut self,
        exit: Exit,
        stopping: bool,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) {
        let process = self.process.take();
        let uptime = process.map_or(Duration::ZERO, |process| now.instant.since(process.since));
        self.history.last_exit = Some(exit.clone());
        let fenced = matches!(exit.how, ExitHow::LeaseLost)
            || matches!(
                self.phase,
                Phase::Stopping {
                    why: Why::Lease,
                    ..
                }
            );
        if self.leaves(stopping) {
            self.phase = Phase::Stopped;
            self.reason = None;
            let ended = backoff::ended(&exit.how);
            self.tell(
                Level::Info,
                Reason::new("stopped", format!("stopped: {ended}")),
                outputs,
            );
        } else if fenced {
            self.phase = Phase::Fenced;
            self.reason = Some(Reason::new(
                "lease-lost",
                "stopped because the servers did not answer (`on_partition: stop`); starts again when they do",
            ));
        } else if self.has_finished() {
            self.phase = Phase::Finished;
            self.reason = None;
            self.tell(Level::Info, Reason::new("finished", "finished"), outputs);
        } else {
            self.back_off(&exit, uptime, now, draw, outputs);
        }
        outputs.push(Output::Remember {
            instance: self.desired.instance.clone(),
        });
    }

    fn has_finished(&self) -> bool {
        let exit = self.history.last_exit.as_ref().map(|exit| &exit.how);
        matches!(exit, Some(ExitHow::Code { code: 0 }))
            && matches!(self.desired.spec.completion, Completion::OnSuccess)
    }

    fn back_off(
        &mut self,
        exit: &Exit,
        uptime: Duration,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) {
        let wait = self.history.backoff.next(uptime, draw.next());
        let mut reason = self.history.backoff.reason(exit, wait);
        if let (
            Phase::Stopping {
                why: Why::Restart, ..
            },
            Some(cause),
        ) = (&self.phase, &self.reason)
        {
            reason = reason.with_detail(vec![cause.message.clone()]);
        }
        self.phase = Phase::BackingOff {
            until: now.instant.after(wait),
        };
        let level = match (&exit.how, self.history.backoff.is_crash_loop()) {
            (ExitHow::OutOfMemory { .. } | ExitHow::NotStarted { .. }, _) | (_, true) => {
                Level::Error
            }
            _ => Level::Warning,
        };
        self.reason = Some(reason.clone());
        self.tell(level, reason, outputs);
    }
}

/// What it does next.
impl Instance {
    /// Moves as far as it can. False: it is gone.
    pub(super) fn advance(&mut self, world: &World<'_>, outputs: &mut Vec<Output>) -> bool {
        let there = self.move_on(world, outputs);
        self.settle_gate(outputs);
        self.settle_report(outputs);
        there
    }

    fn move_on(&mut self, world: &World<'_>, outputs: &mut Vec<Output>) -> bool {
        let now = world.now.instant;
        let leaves = self.leaves(world.stopping);
        match self.phase {
            // An agent that slept may be told only now that it is prepared: what it was allowed then it may not be now.
            Phase::Preparing if !leaves && self.must_stop(world) => self.wait_for_lease(),
            Phase::Preparing | Phase::Starting if !leaves => {}
            // Its process comes up in a moment; then it is stopped.
            Phase::Starting => {}
            Phase::Running if leaves => self.leave(world.now, outputs),
            Phase::Running if self.must_stop(world) => self.stop_without_lease(world, outputs),
            Phase::Running => self.ask(now, outputs),
            Phase::Draining { until } if now >= until => {
                let reason = Reason::new(
                    "drain-timeout",
                    "requests were still in flight after its grace",
                );
                self.tell(Level::Warning, reason, outputs);
                self.terminate(Why::Leave, world.now, outputs);
            }
            Phase::Draining { .. } if self.must_stop(world) => {
                self.stop_without_lease(world, outputs);
            }
            Phase::Draining { .. } => {}
            Phase::Stopping { why, kill_at } => self.kill_when_due(why, kill_at, now, outputs),
            _ if leaves => return self.rest(world, outputs),
            Phase::Waiting { until } => self.start_in_order(until, world, outputs),
            Phase::BackingOff { until } if now < until => {}
            Phase::BackingOff { .. } | Phase::Fenced => self.prepare(world, outputs),
            // It is wanted again.
            Phase::Stopped => {
                self.phase = Phase::Waiting {
                    until: now.after(WAIT_FOR_NEEDS),
                };
                self.start_in_order(now.after(WAIT_FOR_NEEDS), world, outputs);
            }
            Phase::Finished | Phase::Preparing => {}
        }
        true
    }

    /// Whether it is on its way out.
    fn leaves(&self, stopping: bool) -> bool {
        stopping
            || self.unwanted
            || self.replacement.is_some()
            || self.desired.wanted == Wanted::Leave
    }

    /// The set of volumes that is its.
    fn volumes(&self) -> Option<(ResourceId, u32)> {
        let project = self.desired.instance.project.clone();
        Some((
            ResourceId::new(project, self.desired.service.clone()),
            self.desired.slot?,
        ))
    }

    /// The set of volumes that it writes, or is about to: nobody else may until its process has ended.
    pub(super) fn holds_volumes(&self) -> Option<((ResourceId, u32), InstanceId)> {
        let holds = self.has_process() || matches!(self.phase, Phase::Preparing);
        self.volumes()
            .filter(|_| holds)
            .map(|volumes| (volumes, self.desired.instance.clone()))
    }

    fn stops_in_partition(&self) -> bool {
        self.desired.needs_lease()
    }

    /// Whether its shim is to be told of renewals. One that is being stopped for a lost lease stays on its way down.
    pub(super) fn holds_lease(&self) -> bool {
        let falling = matches!(
            self.phase,
            Phase::Stopping {
                why: Why::Lease,
                ..
            }
        );
        self.stops_in_partition() && self.has_process() && !falling
    }

    fn must_stop(&self, world: &World<'_>) -> bool {
        self.stops_in_partition() && world.lease.is_lost()
    }

    /// It leaves, and no process is left: rest, be replaced, or go. False: gone.
    fn rest(&mut self, world: &World<'_>, outputs: &mut Vec<Output>) -> bool {
        if let Some(next) = self.replacement.take() {
            let run = self.run;
            let (report, gate) = (self.report.clone(), self.gate);
            *self = Self::new(*next, world.now);
            self.run = run;
            self.report = report;
            self.gate = gate;
            return self.move_on(world, outputs);
        }
        if !matches!(self.phase, Phase::Finished) {
            self.phase = Phase::Stopped;
            self.reason = None;
        }
        !self.unwanted
    }

    fn start_in_order(&mut self, until: Instant, world: &World<'_>, outputs: &mut Vec<Output>) {
        let missing: Vec<&ResourceName> = self
            .desired
            .start_after
            .iter()
            .filter(|need| !self.is_reachable(need, world))
            .collect();
        if missing.is_empty() {
            return self.prepare(world, outputs);
        }
        let missing: Vec<&str> = missing.iter().map(|need| need.as_str()).collect();
        let missing = missing.join(", ");
        if world.now.instant < until {
            let message = format!("waits for {missing}");
            self.reason = Some(Reason::new("waits-for-needs", message));
            return;
        }
        let message = format!(
            "starts without {missing}: waited {} s",
            WAIT_FOR_NEEDS.as_secs()
        );
        self.tell(
            Level::Warning,
            Reason::new("starts-without-needs", message),
            outputs,
        );
        self.prepare(world, outputs);
    }

    fn is_reachable(&self, need: &ResourceName, world: &World<'_>) -> bool {
        let id = ResourceId::new(self.desired.instance.project.clone(), need.clone());
        world.reachable.contains(&id) || world.local.contains(&id)
    }

    fn prepare(&mut self, world: &World<'_>, outputs: &mut Vec<Output>) {
        if world.held {
            self.phase = Phase::Fenced;
            return;
        }
        if self.stops_in_partition() && !world.lease.allows_start(world.now.instant) {
            self.wait_for_lease();
            return;
        }
        if let Some(other) = self
            .volumes()
            .and_then(|volumes| world.volumes.get(&volumes))
            && *other != self.desired.instance
        {
            let message = format!("waits for {} to leave its volumes", other.name);
            self.phase = Phase::Fenced;
            self.reason = Some(Reason::new("waits-for-volumes", message));
            return;
        }
        self.phase = Phase::Preparing;
        self.run += 1;
        if self
            .reason
            .as_ref()
            .is_some_and(|reason| reason.code.starts_with("waits-for-"))
        {
            self.reason = None;
        }
        outputs.push(Output::Prepare {
            instance: self.desired.instance.clone(),
            run: self.run,
        });
    }

    fn wait_for_lease(&mut self) {
        self.phase = Phase::Fenced;
        let reason = Reason::new(
            "waits-for-lease",
            "starts when the servers answer (`on_partition: stop`): until then it may run elsewhere",
        );
        // Why it ended says more, if it did.
        self.reason.get_or_insert(reason);
    }

    /// Off the road first. One that was never sent a request has nothing to wait for.
    fn leave(&mut self, now: Now, outputs: &mut Vec<Output>) {
        if self
            .process
            .as_ref()
            .is_some_and(|process| process.ever_ready)
        {
            let until = now.instant.after(self.desired.spec.grace.duration());
            self.phase = Phase::Draining { until };
            self.reason = None;
        } else {
            self.terminate(Why::Leave, now, outputs);
        }
    }

    fn terminate(&mut self, why: Why, now: Now, outputs: &mut Vec<Output>) {
        self.phase = Phase::Stopping {
            why,
            kill_at: now.instant.after(self.desired.spec.grace.duration()),
        };
        outputs.push(Output::Terminate {
            instance: self.desired.instance.clone(),
        });
    }

    /// The shim ends it by its own timer; the agent only makes sure.
    fn stop_without_lease(&mut self, world: &World<'_>, outputs: &mut Vec<Output>) {
        let sent_at = world.lease.sent_at().unwrap_or(world.now.instant);
        self.phase = Phase::Stopping {
            why: Why::Lease,
            kill_at: sent_at.after(EMPTY_AFTER),
        };
        let reason = Reason::new(
            "lease-lost",
            "stops: the servers do not answer (`on_partition: stop`)",
        );
        self.reason = Some(reason.clone());
        self.tell(Level::Warning, reason, outputs);
    }

    fn kill_when_due(
        &mut self,
        why: Why,
        kill_at: Instant,
        now: Instant,
        outputs: &mut Vec<Output>,
    ) {
        if now < kill_at {
            return;
        }
        self.phase = Phase::Stopping {
            why,
            kill_at: now.after(KILL_AGAIN),
        };
        outputs.push(Output::Kill {
            instance: self.desired.instance.clone(),
        });
    }

    fn ask(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(process) = self.process.as_mut() else {
            return;
        };
        if process.suspended {
            return;
        }
        if matches!(self.desired.spec.health.ask, Ask::None) {
            process.is_ready();
        }
        let mut probe = |question| {
            outputs.push(Output::Probe {
                instance: self.desired.instance.clone(),
                run: self.run,
                question,
            });
        };
        if process.health.ask(&self.desired.spec.health, now) {
            probe(Question::Health);
        }
        let alive = self.desired.spec.alive.as_ref();
        if alive.is_some_and(|alive| process.alive.ask(alive, now)) {
            probe(Question::Alive);
        }
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { until } | Phase::Draining { until } | Phase::BackingOff { until } => {
                Some(until)
            }
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Running => self.next_question(),
            _ => None,
        }
    }

    fn next_question(&self) -> Option<Instant> {
        let process = self.process.as_ref().filter(|process| !process.suspended)?;
        let health = &self.desired.spec.health;
        let asked = (!matches!(health.ask, Ask::None)).then(|| process.health.wake(health));
        let alive = self.desired.spec.alive.as_ref();
        let alive = alive.filter(|alive| !matches!(alive.ask, Ask::None));
        asked
            .into_iter()
            .chain(alive.map(|alive| process.alive.wake(alive)))
            .min()
    }
}

/// What others are told.
impl Instance {
    fn settle_gate(&mut self, outputs: &mut Vec<Output>) {
        let gate = match self.phase {
            Phase::Running if self.is_ready() => Gate::Open,
            Phase::Draining { .. }
            | Phase::Stopping {
                why: Why::Leave | Why::Lease,
                ..
            } => Gate::Leaving,
            _ => Gate::Shut,
        };
        if gate != self.gate {
            self.gate = gate;
            outputs.push(Output::SetGate {
                instance: self.desired.instance.clone(),
                gate,
            });
        }
    }

    fn settle_report(&mut self, outputs: &mut Vec<Output>) {
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
            Phase::Preparing | Phase::Starting => InstanceState::Starting,
            Phase::Running => match self
                .process
                .as_ref()
                .is_some_and(|process| process.ever_ready)
            {
                true => InstanceState::Running,
                false => InstanceState::Starting,
            },
            Phase::Draining { .. } | Phase::Stopping { .. } => InstanceState::Draining,
            Phase::BackingOff { .. } | Phase::Fenced => InstanceState::Failed,
            Phase::Stopped => InstanceState::Stopped,
            Phase::Finished => InstanceState::Finished,
        }
    }

    fn tell(&self, level: Level, reason: Reason, outputs: &mut Vec<Output>) {
        let instance: InstanceId = self.desired.instance.clone();
        outputs.push(Output::Tell {
            instance: Some(instance),
            level,
            reason,
        });
    }
}

fn blank_report(desired: &DesiredInstance) -> InstanceReport {
    InstanceReport {
        instance: desired.instance.clone(),
        service: desired.service.clone(),
        release: desired.release,
        epoch: desired.epoch,
        state: InstanceState::Pending,
        ready: false,
        pid: None,
        address: None,
        restarts: 0,
        started_at: None,
        last_exit: None,
        reason: None,
    }
}
