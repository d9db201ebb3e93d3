//! A life of the agent: what it finds when it starts, what it takes in, and its one timer.

use std::collections::BTreeMap;

use model::ids::{NodeName, SessionId};
use model::timing::SERVERS_CHANCE;
use model::traffic::Gate;
use plan::agent::{self, Adopted, Input, State};
use rand::Rng;

use super::heartbeat::Telling;
use super::{A_DAY, Agent, address};
use crate::Bug;
use crate::faults::Fault;
use crate::world::{Event, Life, World};

impl World {
    pub(crate) fn start_agent(&mut self, name: &NodeName) {
        if self.disk_stalls(name) {
            let after_ms = self.held_up_ms(name) + 1;
            return self.schedule(after_ms, Event::Fault(Fault::StartAgent(name.clone())));
        }
        let seed = self.rng.random();
        let session = SessionId(self.rng.random());
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let node = self.node(name);
        if node.agent.is_some() || node.down {
            return;
        }
        let mut state = State::new(seed);
        state.wait_for_servers(now.after(SERVERS_CHANCE));
        node.lives += 1;
        let life = node.lives;
        node.agent = Some(Agent {
            life,
            session,
            telling: Telling::default(),
            state,
            stalled_until_ms: 0,
            wake_ms: u64::MAX,
            asked_ms: 0,
            to_keep: None,
            unwritten: BTreeMap::new(),
        });
        self.note(|| format!("{name}: agent starts"));
        self.adopt(name, life);
        if self.nodes[name].disk.is_removed {
            return self.agent_takes(name, life, Input::StopAll);
        }
        self.ask_watch(name);
        let now_ms = self.now_ms;
        self.beat_at(name, life, now_ms);
    }

    /// What an agent finds: instances of an earlier one, with their processes, and the last desired state.
    fn adopt(&mut self, name: &NodeName, life: Life) {
        let now_ms = self.now_ms;
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let trusts = self.options.bug == Some(Bug::TrustsOldDesired);
        let forgets = self.options.bug == Some(Bug::ForgetsRoad);
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
                        gate: match process.ready_at_ms.is_some_and(|at| now_ms >= at) {
                            true => Gate::Open,
                            false => Gate::Shut,
                        },
                        suspended: false,
                    }
                }
                (None, _) if node.held_up.contains_key(id) => Adopted::Unknown,
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
        if let Some(desired) = kept.as_ref().filter(|_| !forgets) {
            node.road = desired.road.clone();
        }
        let asked_at = trusts.then_some(now.after(A_DAY));
        inputs.extend(kept.map(|desired| Input::Desired { desired, asked_at }));
        for input in inputs {
            self.agent_takes(name, life, input);
        }
        // What the disk had not taken is not known any more.
        let forgot = std::mem::take(&mut self.node(name).forgot);
        self.check_road(name, forgot);
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

    /// Something happens on the agent's machine, for this life of it.
    pub(super) fn tell_agent(&mut self, in_ms: u64, name: &NodeName, life: Life, input: Input) {
        let node = name.clone();
        let input = Box::new(input);
        self.schedule(in_ms, Event::Agent { node, life, input });
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
            self.tell_agent(wake_ms - now_ms, name, life, Input::Tick);
        }
    }

    pub(crate) fn kill_agent(&mut self, name: &NodeName) {
        let node = self.node(name);
        if let Some(agent) = node.agent.take() {
            node.forgot |= agent.to_keep.is_some();
            self.note(|| format!("{name}: agent is killed"));
        }
    }
}
