//! Processes, how they end, and the shim's own timer: it ends what must not run twice, whatever the agent does.

use model::compute::{Exit, ExitHow};
use model::ids::{InstanceId, NodeName};
use model::timing::{EMPTY_AFTER, TERMINATE_AFTER};
use plan::Instant;
use plan::agent::Input;
use rand::Rng;

use super::Process;
use crate::Bug;
use crate::world::{Event, World, short};

impl World {
    pub(super) fn renew(&mut self, name: &NodeName, instance: &InstanceId, sent_at: Instant) {
        let Some(process) = self.node(name).processes.get_mut(instance) else {
            return;
        };
        if process.stops && !process.falling {
            process.lease = process.lease.max(Some(sent_at));
            let (pid, lease) = (process.pid, process.lease);
            if let Some(lease) = lease {
                self.set_lease_timer(name, pid, lease);
            }
        }
    }

    pub(super) fn set_lease_timer(&mut self, name: &NodeName, pid: u32, lease: Instant) {
        let due = lease.after(TERMINATE_AFTER).0.as_millis() as u64;
        let in_ms = due
            .saturating_sub(self.nodes[name].offset_ms)
            .saturating_sub(self.now_ms);
        self.schedule(
            in_ms,
            Event::LeaseDue {
                node: name.clone(),
                pid,
            },
        );
    }

    /// The shim's own timer: SIGTERM now, everything gone when the lease is over, whatever the agent does.
    pub(crate) fn lease_due(&mut self, name: &NodeName, pid: u32) {
        let offset = self.nodes[name].offset_ms;
        let now = self.now_on(offset).instant;
        let ignores = self.options.bug == Some(Bug::ShimIgnoresLease);
        let node = self.node(name);
        let Some(process) = node
            .processes
            .values_mut()
            .find(|process| process.pid == pid)
        else {
            return;
        };
        let Some(lease) = process
            .lease
            .filter(|lease| now.since(*lease) >= TERMINATE_AFTER)
        else {
            return;
        };
        if process.falling || ignores {
            return;
        }
        process.falling = true;
        let process = process.clone();
        let left = lease.after(EMPTY_AFTER).since(now).as_millis() as u64;
        self.note(|| format!("{name}: the lease of pid {pid} ran out"));
        self.end_process(
            name,
            &process,
            process.slow_to_end_ms.min(left),
            ExitHow::LeaseLost,
        );
    }

    pub(crate) fn end_process(
        &mut self,
        name: &NodeName,
        process: &Process,
        in_ms: u64,
        how: ExitHow,
    ) {
        self.schedule(
            in_ms,
            Event::ProcessEnds {
                node: name.clone(),
                pid: process.pid,
                how,
            },
        );
    }

    pub(crate) fn process_ends(&mut self, name: &NodeName, pid: u32, how: ExitHow) {
        let at = self.now().at;
        let delay = self.rng.random_range(1..10);
        let node = self.node(name);
        let found = node
            .processes
            .iter()
            .find(|(_, process)| process.pid == pid);
        let Some((instance, process)) =
            found.map(|(instance, process)| (instance.clone(), process.clone()))
        else {
            return;
        };
        node.processes.remove(&instance);
        let run = process.run;
        let how = if node.down { ExitHow::Unknown } else { how };
        if how == (ExitHow::Code { code: 0 }) {
            self.invariants.ended_well(&process);
        }
        let node = self.node(name);
        let exit = Exit { how, at };
        let life = node.agent.as_ref().map(|agent| agent.life);
        self.note(|| format!("{name}: {} ended: {:?}", short(&instance), exit.how));
        if let Some(life) = life {
            let input = Input::Exited {
                instance: instance.clone(),
                run,
                exit: exit.clone(),
                last_words: None,
            };
            self.tell_agent(delay, name, life, input);
        }
        // The shim's file stays until the next agent has read it.
        self.node(name).disk.exits.insert(instance, exit);
    }
}
