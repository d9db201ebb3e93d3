//! What the agent's executor, the shims and the proxy of a machine do. The agent's decisions are [`plan::agent`]'s.

use std::collections::BTreeMap;
use std::time::Duration;

use model::compute::{DesiredInstance, Exit, ExitHow};
use model::control::NodeDesired;
use model::ids::{Generation, InstanceId, NodeName, ResourceName, SessionId};
use model::traffic::{Gate, Road};
use plan::Instant;
use plan::agent::{
    self, Adopted, EMPTY_AFTER, History, Input, Output, Question, State, TERMINATE_AFTER,
};
use rand::Rng;

use crate::Bug;
use crate::workload::BROKEN;
use crate::world::{Event, Life, ToNode, ToServer, World, short};

const HEARTBEAT_EVERY_MS: u64 = 1_000;
/// A watch that brought nothing for so long is asked for anew.
const WATCH_AGAIN_MS: u64 = 2_000;

/// With the bug, what was asked for long ago counts as asked for later than anything.
const A_DAY: Duration = Duration::from_secs(86_400);

/// One machine. What is not in `agent` outlives the agent; `disk` outlives the machine's crash too.
pub(crate) struct Node {
    pub(crate) name: NodeName,
    /// How far its clock is ahead.
    pub(crate) offset_ms: u64,
    pub(crate) agent: Option<Agent>,
    pub(crate) processes: BTreeMap<InstanceId, Process>,
    disk: Disk,
    lives: Life,
    next_pid: u32,
    /// Until when the whole machine is down.
    pub(crate) down: bool,
    /// What its proxy goes by: kept when the agent ends.
    pub(crate) road: Road,
}

/// One life of the agent process.
pub(crate) struct Agent {
    pub(crate) life: Life,
    session: SessionId,
    sequence: u64,
    state: State,
    pub(crate) stalled_until_ms: u64,
    wake_ms: u64,
    beat_soon: bool,
    asked_ms: u64,
    pub(crate) generation: Option<Generation>,
}

/// A process and its shim.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) service: ResourceName,
    pub(crate) slot: Option<u32>,
    /// It must not run twice, and has a lease.
    stops: bool,
    run: agent::Run,
    ready_at_ms: Option<u64>,
    lease: Option<Instant>,
    /// On its way down by its shim's own timer.
    falling: bool,
    /// It takes this long to end after SIGTERM.
    slow_to_end_ms: u64,
}

#[derive(Default)]
struct Disk {
    desired: Option<NodeDesired>,
    instances: BTreeMap<InstanceId, (DesiredInstance, History)>,
    /// What the shims wrote while no agent looked.
    exits: BTreeMap<InstanceId, Exit>,
}

impl Node {
    pub(crate) fn new(name: NodeName, offset_ms: u64) -> Self {
        Self {
            name,
            offset_ms,
            agent: None,
            processes: BTreeMap::new(),
            disk: Disk::default(),
            lives: 0,
            next_pid: 1,
            down: false,
            road: Road::default(),
        }
    }

    fn of_life(&mut self, life: Life) -> Option<&mut Agent> {
        self.agent.as_mut().filter(|agent| agent.life == life)
    }
}

impl Process {
    pub(crate) fn is_ready(&self, now_ms: u64) -> bool {
        self.ready_at_ms.is_some_and(|at| now_ms >= at)
    }
}

impl World {
    fn node(&mut self, name: &NodeName) -> &mut Node {
        self.nodes
            .get_mut(name)
            .expect("nodes are never removed here")
    }

    pub(crate) fn start_agent(&mut self, name: &NodeName) {
        let seed = self.rng.random();
        let session = SessionId(self.rng.random());
        let node = self.node(name);
        if node.agent.is_some() || node.down {
            return;
        }
        node.lives += 1;
        let life = node.lives;
        node.agent = Some(Agent {
            life,
            session,
            sequence: 0,
            state: State::new(seed),
            stalled_until_ms: 0,
            wake_ms: u64::MAX,
            beat_soon: false,
            asked_ms: 0,
            generation: None,
        });
        self.note(|| format!("{name}: agent starts"));
        self.adopt(name, life);
        self.ask_watch(name);
        self.schedule(
            0,
            Event::Heartbeat {
                node: name.clone(),
                life,
            },
        );
    }

    /// What an agent finds: instances of an earlier one, with their processes, and the last desired state.
    fn adopt(&mut self, name: &NodeName, life: Life) {
        let now_ms = self.now_ms;
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let trusts = self.options.bug == Some(Bug::TrustsOldDesired);
        let node = self.node(name);
        let mut inputs = Vec::new();
        for (id, (desired, history)) in &node.disk.instances {
            let process = match (node.processes.get_mut(id), node.disk.exits.remove(id)) {
                (Some(process), _) => {
                    process.run = 1;
                    Adopted::Running {
                        pid: process.pid,
                        address: address(process.pid),
                        started_at: None,
                        ready: process.ready_at_ms.is_some_and(|at| now_ms >= at),
                        suspended: false,
                    }
                }
                (None, Some(exit)) => Adopted::Exited(exit),
                (None, None) => Adopted::Absent,
            };
            inputs.push(Input::Adopted {
                desired: Box::new(desired.clone()),
                history: history.clone(),
                process,
            });
        }
        let kept = node.disk.desired.clone().map(Box::new);
        let asked_at = trusts.then_some(now.after(A_DAY));
        inputs.extend(kept.map(|desired| Input::Desired { desired, asked_at }));
        for input in inputs {
            self.agent_takes(name, life, input);
        }
    }

    pub(crate) fn agent_takes(&mut self, name: &NodeName, life: Life, input: Input) {
        let now = self.now_on(self.nodes[name].offset_ms);
        let now_ms = self.now_ms;
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        if now_ms < agent.stalled_until_ms {
            let until = agent.stalled_until_ms;
            let input = Box::new(input);
            return self.put_off(
                until,
                Event::Agent {
                    node: name.clone(),
                    life,
                    input,
                },
            );
        }
        if agent.wake_ms <= now_ms {
            agent.wake_ms = u64::MAX;
        }
        let outputs = agent::step(&mut agent.state, input, now);
        for output in outputs {
            self.act(name, life, output);
        }
        self.set_timer(name, life);
    }

    fn set_timer(&mut self, name: &NodeName, life: Life) {
        let (now_ms, offset) = (self.now_ms, self.nodes[name].offset_ms);
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        let Some(wake) = agent.state.next_wake() else {
            return;
        };
        let wake_ms = (wake.0.as_millis() as u64)
            .saturating_sub(offset)
            .max(now_ms + 1);
        if wake_ms < agent.wake_ms {
            agent.wake_ms = wake_ms;
            let input = Box::new(Input::Tick);
            self.schedule(
                wake_ms - now_ms,
                Event::Agent {
                    node: name.clone(),
                    life,
                    input,
                },
            );
        }
    }

    /// Does what the agent decided.
    fn act(&mut self, name: &NodeName, life: Life, output: Output) {
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
            Output::Kill { instance } => {
                if let Some(process) = self.nodes[name].processes.get(&instance).cloned() {
                    self.end_process(name, &process, 0, ExitHow::Signal { signal: 9 });
                }
            }
            Output::Remove { instance } => {
                let disk = &mut self.node(name).disk;
                disk.instances.remove(&instance);
                disk.exits.remove(&instance);
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
            node.disk.instances.insert(instance.clone(), entry);
        }
    }

    fn prepare(&mut self, name: &NodeName, life: Life, instance: InstanceId, run: agent::Run) {
        self.remember(name, &instance);
        let fails = self.rng.random_range(0..100) < self.failing_starts;
        let delay = self.rng.random_range(5..100);
        let input = match fails {
            true => Input::NotStarted {
                instance,
                run,
                error: "no such file".to_owned(),
            },
            false => Input::Prepared { instance, run },
        };
        self.schedule(
            delay,
            Event::Agent {
                node: name.clone(),
                life,
                input: Box::new(input),
            },
        );
    }

    /// A process is there from this moment, whether or not the agent lives to hear of it.
    fn execute(&mut self, name: &NodeName, life: Life, instance: InstanceId, run: agent::Run) {
        let becomes_ready = self.now_ms + self.rng.random_range(50..600);
        let slow_to_end_ms = self.rng.random_range(5..4_000);
        let delay = self.rng.random_range(2..20);
        let at = self.now().at;
        let node = self.node(name);
        let Some(agent) = node.agent.as_ref() else {
            return;
        };
        let Some(known) = agent.state.instance(&instance) else {
            return;
        };
        let desired = known.desired().clone();
        let stops = desired.needs_lease();
        let lease = agent.state.lease().sent_at().filter(|_| stops);
        let pid = node.next_pid;
        node.next_pid += 1;
        let process = Process {
            pid,
            service: desired.service.clone(),
            slot: desired.slot,
            stops,
            run,
            ready_at_ms: (!desired.spec.env.contains_key(BROKEN)).then_some(becomes_ready),
            lease,
            falling: false,
            slow_to_end_ms,
        };
        let before = node.processes.insert(instance.clone(), process);
        self.summary.starts += 1;
        self.note(|| format!("{name}: {} runs, pid {pid}", short(&instance)));
        if before.is_some() {
            self.violated(format!("{name}: {} was started twice", short(&instance)));
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
        self.schedule(
            delay,
            Event::Agent {
                node: name.clone(),
                life,
                input: Box::new(started),
            },
        );
    }

    fn probe(
        &mut self,
        name: &NodeName,
        life: Life,
        instance: InstanceId,
        run: agent::Run,
        question: Question,
    ) {
        let delay = self.rng.random_range(1..5);
        let now_ms = self.now_ms;
        let process = self.nodes[name].processes.get(&instance);
        let answer = match process.is_some_and(|process| process.is_ready(now_ms)) {
            true => Ok(()),
            false => Err("connection refused".to_owned()),
        };
        let input = Box::new(Input::Probed {
            instance,
            run,
            question,
            answer,
        });
        self.schedule(
            delay,
            Event::Agent {
                node: name.clone(),
                life,
                input,
            },
        );
    }

    /// The proxy waits for what is in flight behind a gate that closes.
    fn set_gate(&mut self, name: &NodeName, life: Life, instance: InstanceId, gate: Gate) {
        if gate == Gate::Leaving {
            let delay = self.rng.random_range(10..800);
            let input = Box::new(Input::Drained { instance });
            self.schedule(
                delay,
                Event::Agent {
                    node: name.clone(),
                    life,
                    input,
                },
            );
        }
    }

    fn renew(&mut self, name: &NodeName, instance: &InstanceId, sent_at: Instant) {
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

    fn set_lease_timer(&mut self, name: &NodeName, pid: u32, lease: Instant) {
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
        let Some((instance, run)) =
            found.map(|(instance, process)| (instance.clone(), process.run))
        else {
            return;
        };
        node.processes.remove(&instance);
        let how = if node.down { ExitHow::Unknown } else { how };
        let exit = Exit { how, at };
        let life = node.agent.as_ref().map(|agent| agent.life);
        self.note(|| format!("{name}: {} ended: {:?}", short(&instance), exit.how));
        if let Some(life) = life {
            let input = Box::new(Input::Exited {
                instance: instance.clone(),
                run,
                exit: exit.clone(),
            });
            let event = Event::Agent {
                node: name.clone(),
                life,
                input,
            };
            self.schedule(delay, event);
        }
        // The shim's file stays until the next agent has read it.
        self.node(name).disk.exits.insert(instance, exit);
    }

    pub(crate) fn kill_agent(&mut self, name: &NodeName) {
        let node = self.node(name);
        if node.agent.take().is_some() {
            self.note(|| format!("{name}: agent is killed"));
        }
    }

    /// Everything on the machine ends at once.
    pub(crate) fn crash_machine(&mut self, name: &NodeName) {
        self.kill_agent(name);
        let at = self.now().at;
        let node = self.node(name);
        node.down = true;
        for (instance, _) in std::mem::take(&mut node.processes) {
            node.disk.exits.insert(
                instance,
                Exit {
                    how: ExitHow::Unknown,
                    at,
                },
            );
        }
        self.note(|| format!("{name}: machine is down"));
    }

    pub(crate) fn beat(&mut self, name: &NodeName, life: Life) {
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let now_ms = self.now_ms;
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        if now_ms < agent.stalled_until_ms {
            let until = agent.stalled_until_ms;
            return self.put_off(
                until,
                Event::Heartbeat {
                    node: name.clone(),
                    life,
                },
            );
        }
        let soon = std::mem::take(&mut agent.beat_soon);
        agent.sequence += 1;
        let message = ToServer::Heartbeat {
            session: agent.session,
            sequence: agent.sequence,
            acknowledged: agent.generation,
            reports: agent.state.reports().cloned().collect(),
            sent_at: now,
        };
        let watch_is_old = now_ms >= agent.asked_ms + WATCH_AGAIN_MS;
        self.send_to_server(name, message);
        if watch_is_old {
            self.ask_watch(name);
        }
        if !soon {
            self.schedule(
                HEARTBEAT_EVERY_MS,
                Event::Heartbeat {
                    node: name.clone(),
                    life,
                },
            );
        }
    }

    /// Something changed: a heartbeat of its own, a few changes at a time.
    fn beat_soon(&mut self, name: &NodeName, life: Life) {
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        if !std::mem::replace(&mut agent.beat_soon, true) {
            self.schedule(
                20,
                Event::Heartbeat {
                    node: name.clone(),
                    life,
                },
            );
        }
    }

    fn ask_watch(&mut self, name: &NodeName) {
        let now_ms = self.now_ms;
        let asked_at = self.now_on(self.nodes[name].offset_ms).instant;
        let Some(agent) = self.node(name).agent.as_mut() else {
            return;
        };
        agent.asked_ms = now_ms;
        let session = agent.session;
        self.send_to_server(name, ToServer::Watch { session, asked_at });
    }

    pub(crate) fn node_takes(&mut self, name: &NodeName, message: ToNode) {
        let now_ms = self.now_ms;
        let Some(agent) = self.node(name).agent.as_ref() else {
            return;
        };
        if now_ms < agent.stalled_until_ms {
            let until = agent.stalled_until_ms;
            return self.put_off(
                until,
                Event::ToNode {
                    message,
                    node: name.clone(),
                },
            );
        }
        let (life, current) = (agent.life, agent.session);
        match message {
            ToNode::Answer {
                session,
                answer,
                sent_at,
            } if session == current => {
                self.agent_takes(
                    name,
                    life,
                    Input::Renewed {
                        epoch: answer.epoch,
                        sent_at,
                    },
                );
            }
            ToNode::Desired {
                session,
                desired,
                asked_at,
            } if session == current => {
                self.take_desired(name, life, *desired, asked_at);
            }
            _ => {}
        }
    }

    fn take_desired(
        &mut self,
        name: &NodeName,
        life: Life,
        desired: NodeDesired,
        asked_at: Instant,
    ) {
        let replaces = self.options.bug == Some(Bug::PartialRoadReplaces);
        let trusts = self.options.bug == Some(Bug::TrustsOldDesired);
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let node = self.node(name);
        let Some(agent) = node.agent.as_mut() else {
            return;
        };
        if agent.generation < Some(desired.generation) {
            agent.generation = Some(desired.generation);
            let road = match replaces {
                true => desired.road.clone(),
                false => plan::road::merge(&node.road, &desired.road),
            };
            let before = std::mem::replace(&mut node.road, road);
            node.disk.desired = Some(desired.clone());
            self.check_road(name, &before, &desired.road);
            self.beat_soon(name, life);
        }
        let asked_at = Some(if trusts { now.after(A_DAY) } else { asked_at });
        self.agent_takes(
            name,
            life,
            Input::Desired {
                desired: Box::new(desired),
                asked_at,
            },
        );
    }
}

fn address(pid: u32) -> String {
    format!("127.0.0.1:{}", 20_000 + pid)
}
