//! Does what the agent decided, as the executor and the proxy of the machine do.

use model::compute::{DesiredInstance, Exit, ExitHow, Purpose};
use model::ids::{InstanceId, NodeName};
use model::traffic::Gate;
use plan::agent::{Input, Output, Question, Run};
use rand::Rng;

use super::disk::HeldUp;
use super::{Process, address};
use crate::workload::BROKEN;
use crate::world::{Life, World, short};

impl World {
    /// Does what the agent decided.
    pub(super) fn act(&mut self, name: &NodeName, life: Life, output: Output) {
        match output {
            Output::Prepare { instance, run } => self.prepare(name, life, instance, run),
            Output::Start { instance, run } => self.execute(name, life, instance, run),
            Output::Probe {
                instance,
                run,
                question,
            } => self.probe(name, life, instance, run, question),
            Output::SetGate { instance, gate } => self.set_gate(name, life, instance, gate),
            Output::Terminate { instance } => {
                if let Some(process) = self.nodes[name].processes.get(&instance).cloned() {
                    self.end_process(
                        name,
                        &process,
                        process.slow_to_end_ms,
                        ExitHow::Signal { signal: 15 },
                    );
                }
            }
            Output::Kill { instance } => self.kill(name, life, &instance),
            Output::Remove { instance } => {
                self.node(name).disk.exits.remove(&instance);
                self.write_record(name, &instance, None);
            }
            Output::RenewLease { instance, sent_at } => self.renew(name, &instance, sent_at),
            Output::Remember { instance } => self.remember(name, &instance),
            Output::Report { .. } => self.beat_soon(name, life),
            Output::WatchAnew => self.ask_watch(name),
            Output::Tell {
                instance, reason, ..
            } => {
                self.note(|| {
                    format!(
                        "{name}: {}: {reason}",
                        instance.as_ref().map_or("node", short)
                    )
                });
            }
        }
    }

    fn remember(&mut self, name: &NodeName, instance: &InstanceId) {
        let node = self.node(name);
        let known = node
            .agent
            .as_ref()
            .and_then(|agent| agent.state.instance(instance));
        if let Some(known) = known {
            let entry = (known.desired().clone(), known.history().clone());
            self.write_record(name, instance, Some(entry));
        }
    }

    /// A start that the disk holds up ends with it.
    fn kill(&mut self, name: &NodeName, life: Life, instance: &InstanceId) {
        if let Some(process) = self.nodes[name].processes.get(instance).cloned() {
            self.end_process(name, &process, 0, ExitHow::Signal { signal: 9 });
        }
        let Some(start) = self.node(name).held_up.remove(instance) else {
            return;
        };
        let run = match start.life == life {
            true => start.run,
            // As the next agent found it.
            false => 1,
        };
        let exit = Exit {
            how: ExitHow::Unknown,
            at: self.now().at,
        };
        let input = Input::Exited {
            instance: instance.clone(),
            run,
            exit,
            last_words: None,
        };
        self.tell_agent(1, name, life, input);
    }

    /// Ends what no agent knows of, and nobody is told.
    pub(super) fn clear(&mut self, name: &NodeName, instance: &InstanceId) {
        let node = self.node(name);
        let held_up = node.held_up.remove(instance).is_some();
        let ran = node.processes.remove(instance).is_some();
        if held_up || ran {
            self.note(|| format!("{name}: what is left of {} ends", short(instance)));
        }
    }

    /// Until the disk answers; a moment, most often.
    pub(super) fn held_up_ms(&self, name: &NodeName) -> u64 {
        let until = self.nodes[name].disk.stalls_until_ms;
        until.saturating_sub(self.now_ms)
    }

    fn prepare(&mut self, name: &NodeName, life: Life, instance: InstanceId, run: Run) {
        // What is in its place ends first: no record says what it is.
        self.clear(name, &instance);
        self.remember(name, &instance);
        let fails = self.rng.random_range(0..100) < self.failing_starts;
        let delay = self.held_up_ms(name) + self.rng.random_range(5..100);
        let input = match fails {
            true => Input::NotStarted {
                instance,
                run,
                error: "no such file".to_owned(),
            },
            false => Input::Prepared { instance, run },
        };
        self.tell_agent(delay, name, life, input);
    }

    fn execute(&mut self, name: &NodeName, life: Life, instance: InstanceId, run: Run) {
        let stalls = self.disk_stalls(name);
        let node = self.node(name);
        let known = node
            .agent
            .as_ref()
            .and_then(|agent| agent.state.instance(&instance));
        let Some(known) = known else { return };
        let desired = known.desired().clone();
        let start = HeldUp { life, run, desired };
        match stalls {
            true => drop(node.held_up.entry(instance).or_insert(start)),
            false => self.runs(name, instance, start),
        }
    }

    /// A process is there from this moment, whether or not the agent lives to hear of it.
    pub(super) fn runs(&mut self, name: &NodeName, instance: InstanceId, start: HeldUp) {
        let HeldUp { life, run, desired } = start;
        let becomes_ready = self.now_ms + self.rng.random_range(50..600);
        let slow_to_end_ms = self.rng.random_range(5..4_000);
        let delay = self.rng.random_range(2..20);
        let at = self.now().at;
        let node = self.node(name);
        let stops = desired.needs_lease();
        let agent = node.agent.as_ref().filter(|_| stops);
        let lease = agent.and_then(|agent| agent.state.lease().sent_at());
        let pid = node.next_pid;
        node.next_pid += 1;
        let process = Process {
            pid,
            service: desired.service.clone(),
            release: desired.release,
            purpose: desired.purpose,
            slot: desired.slot,
            epoch: desired.epoch,
            stops,
            run,
            ready_at_ms: (!desired.spec.env.contains_key(BROKEN)).then_some(becomes_ready),
            lease,
            falling: false,
            slow_to_end_ms,
        };
        let before = node.processes.insert(instance.clone(), process.clone());
        self.summary.starts += 1;
        self.note(|| format!("{name}: {} runs, pid {pid}", short(&instance)));
        if before.is_some() {
            self.violated(format!("{name}: {} was started twice", short(&instance)));
        }
        self.check_prepared(&process);
        self.open_volumes(name, &desired);
        if desired.purpose == Purpose::BeforeDeploy {
            let takes_ms = self.rng.random_range(50..4_000);
            let broken = desired.spec.env.contains_key(BROKEN);
            let code = i32::from(broken && self.rng.random::<bool>());
            self.end_process(name, &process, takes_ms, ExitHow::Code { code });
        }
        if let Some(lease) = lease {
            self.set_lease_timer(name, pid, lease);
        }
        let started = Input::Started {
            instance,
            run,
            pid,
            address: address(pid),
            at,
        };
        self.tell_agent(delay, name, life, started);
    }

    fn open_volumes(&mut self, name: &NodeName, desired: &DesiredInstance) {
        let Some(of) = self.volumes_of(desired) else {
            return;
        };
        let key = (of.service.clone(), of.slot);
        let found = self.nodes[name].disk.volumes.get(&key).copied();
        self.check_volumes(name, &of, found);
        self.node(name).disk.volumes.entry(key).or_insert(of.era);
    }

    fn probe(
        &mut self,
        name: &NodeName,
        life: Life,
        instance: InstanceId,
        run: Run,
        question: Question,
    ) {
        let delay = self.rng.random_range(1..5);
        let now_ms = self.now_ms;
        let process = self.nodes[name].processes.get(&instance);
        let answer = match process.is_some_and(|process| process.is_ready(now_ms)) {
            true => Ok(()),
            false => Err("connection refused".to_owned()),
        };
        let input = Input::Probed {
            instance,
            run,
            question,
            asked: None,
            answer,
        };
        self.tell_agent(delay, name, life, input);
    }

    /// The proxy waits for what is in flight behind a gate that closes.
    fn set_gate(&mut self, name: &NodeName, life: Life, instance: InstanceId, gate: Gate) {
        if gate == Gate::Leaving {
            let delay = self.rng.random_range(10..800);
            let input = Input::Drained { instance };
            self.tell_agent(delay, name, life, input);
        }
    }
}
