//! What an instance does next: the arrows of the drawing in [`crate::agent`].

use model::compute::{Ask, Wanted};
use model::control::Reason;
use model::ids::{InstanceId, ResourceId, ResourceName};
use model::signals::Level;
use model::timing::KILL_AFTER;
use model::traffic::Protocol;

use super::{
    Instance, KILL_AGAIN, ORDER_AGAIN, Phase, Process, WAIT_FOR_NEEDS, Why, World, wait_for_needs,
};
use crate::agent::{Output, Question, Whose};
use crate::{Instant, Now};

/// What it does next.
impl Instance {
    /// Moves as far as it can. False: it is gone.
    pub(in crate::agent) fn advance(
        &mut self,
        world: &World<'_>,
        outputs: &mut Vec<Output>,
    ) -> bool {
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
            Phase::Preparing { .. } if !leaves && self.must_stop(world) => self.wait_for_lease(),
            Phase::Preparing { again_at } if !leaves => self.order_again(again_at, now, outputs),
            // If it leaves: its process comes up in a moment; then it is stopped.
            Phase::Starting { again_at } => self.order_again(again_at, now, outputs),
            Phase::Running if leaves => self.leave(world.now, outputs),
            Phase::Running if self.must_stop(world) => self.stop_without_lease(world, outputs),
            Phase::Running => {
                self.count_lost(world.now, outputs);
                if matches!(self.phase, Phase::Running) {
                    self.ask(now, outputs);
                }
            }
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
            Phase::Finished | Phase::Failed | Phase::Preparing { .. } => {}
        }
        true
    }

    /// Whether it is on its way out.
    pub(super) fn leaves(&self, stopping: bool) -> bool {
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
    pub(in crate::agent) fn holds_volumes(&self) -> Option<((ResourceId, u32), InstanceId)> {
        let holds = self.has_process() || matches!(self.phase, Phase::Preparing { .. });
        self.volumes()
            .filter(|_| holds)
            .map(|volumes| (volumes, self.desired.instance.clone()))
    }

    /// A stray of which the name alone is known may be one of its service, with any of its sets of volumes.
    fn who_has_its_volumes<'a>(&self, world: &World<'a>) -> Option<&'a InstanceId> {
        let own = self.volumes()?;
        let (service, _) = &own;
        let of_service = format!("{}-", service.name);
        let (name, slot) = (&service.name, Some(own.1));
        let may_have = |(stray, whose): &&(InstanceId, Option<Whose>)| {
            let has = match whose {
                Some(whose) => whose.service == *name && whose.slot == slot,
                None => stray.name.as_str().starts_with(&of_service),
            };
            stray.project == service.project && has
        };
        let known = world.volumes.get(&own);
        known.or_else(|| Some(&world.strays.iter().find(may_have)?.0))
    }

    fn stops_in_partition(&self) -> bool {
        self.desired.needs_lease()
    }

    /// Whether its shim is to be told of renewals. One that is being stopped for a lost lease stays on its way down.
    pub(in crate::agent) fn holds_lease(&self) -> bool {
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
            wait_for_needs(&self.desired).as_secs()
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
        if let Some(other) = self.who_has_its_volumes(world)
            && *other != self.desired.instance
        {
            let message = format!("waits for {} to leave its volumes", other.name);
            self.phase = Phase::Fenced;
            self.reason = Some(Reason::new("waits-for-volumes", message));
            return;
        }
        self.phase = Phase::Preparing {
            again_at: world.now.instant.after(ORDER_AGAIN),
        };
        self.run += 1;
        if self.has_waited() {
            self.reason = None;
        }
        outputs.push(Output::Prepare {
            instance: self.desired.instance.clone(),
            run: self.run,
        });
    }

    /// Whoever acts may not have heard the last one.
    fn order_again(&mut self, again_at: Instant, now: Instant, outputs: &mut Vec<Output>) {
        if now < again_at {
            return;
        }
        let (instance, run) = (self.desired.instance.clone(), self.run);
        let again_at = now.after(ORDER_AGAIN);
        match self.phase {
            Phase::Starting { .. } => {
                self.phase = Phase::Starting { again_at };
                outputs.push(Output::Start { instance, run });
            }
            _ => {
                self.phase = Phase::Preparing { again_at };
                outputs.push(Output::Prepare { instance, run });
            }
        }
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

    /// Off the road first. One that was never sent a request has nothing to wait for, and the pools of a database's callers never end by
    /// themselves: its engine knows best what is being done on their connections.
    fn leave(&mut self, now: Now, outputs: &mut Vec<Output>) {
        let spec = &self.desired.spec;
        let keeps_connections = spec.engine().is_some() && spec.protocol == Protocol::Tcp;
        let was_asked = self
            .process
            .as_ref()
            .is_some_and(|process| process.ever_ready && !process.drained);
        if was_asked && !keeps_connections {
            let until = now.instant.after(self.desired.spec.grace.duration());
            self.phase = Phase::Draining { until };
            self.reason = None;
        } else {
            self.terminate(Why::Leave, now, outputs);
        }
    }

    pub(super) fn terminate(&mut self, why: Why, now: Now, outputs: &mut Vec<Output>) {
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
            kill_at: sent_at.after(KILL_AFTER),
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

    /// An answer that does not come is one that says nothing good.
    fn count_lost(&mut self, now: Now, outputs: &mut Vec<Output>) {
        let Some(process) = self.process.as_ref().filter(|process| !process.suspended) else {
            return;
        };
        let lost = || Err("the answer was lost".to_owned());
        let health = process
            .health
            .is_lost(&self.desired.spec.health, now.instant);
        let alive = self.desired.spec.alive.as_ref();
        let alive = alive.is_some_and(|alive| process.alive.is_lost(alive, now.instant));
        if health {
            self.probed(Question::Health, None, lost(), now, outputs);
        }
        if alive {
            self.probed(Question::Alive, None, lost(), now, outputs);
        }
    }

    fn ask(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let once = self.runs_once();
        let Some(process) = self.process.as_mut() else {
            return;
        };
        if process.suspended || once {
            return;
        }
        let is_asked = !matches!(self.desired.spec.health.ask, Ask::None);
        if !is_asked && now >= process.runs_well_at() {
            process.is_ready();
            self.remember_ready(outputs);
        }
        let Some(process) = self.process.as_mut() else {
            return;
        };
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

    pub(in crate::agent) fn next_wake(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { until } | Phase::Draining { until } | Phase::BackingOff { until } => {
                Some(until)
            }
            Phase::Preparing { again_at } | Phase::Starting { again_at } => Some(again_at),
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Running => self.next_question(),
            _ => None,
        }
    }

    fn next_question(&self) -> Option<Instant> {
        let asked = |process: &&Process| !process.suspended && !self.runs_once();
        let process = self.process.as_ref().filter(asked)?;
        let health = &self.desired.spec.health;
        let asked = match health.ask {
            Ask::None => (!process.ready).then(|| process.runs_well_at()),
            _ => Some(process.health.wake(health)),
        };
        let alive = self.desired.spec.alive.as_ref();
        let alive = alive.filter(|alive| !matches!(alive.ask, Ask::None));
        asked
            .into_iter()
            .chain(alive.map(|alive| process.alive.wake(alive)))
            .min()
    }
}
