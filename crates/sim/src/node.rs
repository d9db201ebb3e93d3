//! One machine: what the agent's executor, the shims and the proxy do. The agent's decisions are [`plan::agent`]'s.
//!
//! | module | what it plays |
//! |---|---|
//! | [`agent`] | a life of the agent: what it finds, what it takes, its timer |
//! | [`executor`] | what is done with what the agent decided |
//! | [`shim`] | processes, how they end, and the timer that ends them without an agent |
//! | [`heartbeat`] | what the agent tells the server |
//! | [`desired`] | what the agent is told |
//! | [`disk`] | what is kept, and a disk that stands still for a while |

mod agent;
mod desired;
mod disk;
mod executor;
mod heartbeat;
mod shim;

use std::collections::BTreeMap;
use std::time::Duration;

use model::compute::{DesiredInstance, Exit, ExitHow, Purpose};
use model::control::NodeDesired;
use model::ids::{Epoch, InstanceId, NodeName, ReleaseNumber, ResourceName, SessionId};
use model::timing::EMPTY_AFTER;
use model::traffic::Road;
use plan::Instant;
use plan::agent::{History, Run, State};

use self::disk::{Disk, HeldUp};
use self::heartbeat::Telling;
use crate::Bug;
use crate::world::{Event, Life, ToNode, World};

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
    /// Starts that the disk holds up: their shims are there, and go on with or without an agent.
    held_up: BTreeMap<InstanceId, HeldUp>,
    lives: Life,
    /// An agent ended before the disk had taken what it was told.
    forgot: bool,
    next_pid: u32,
    pub(crate) down: bool,
    /// Until when nothing on it runs: agent, shims and processes are there, and go on later.
    pub(crate) frozen_until_ms: u64,
    /// What its proxy goes by: kept when the agent ends.
    pub(crate) road: Road,
}

/// One life of the agent process.
pub(crate) struct Agent {
    pub(crate) life: Life,
    session: SessionId,
    telling: Telling,
    state: State,
    pub(crate) stalled_until_ms: u64,
    wake_ms: u64,
    asked_ms: u64,
    /// The newest desired state, until it is on the disk.
    to_keep: Option<NodeDesired>,
    /// Records that wait for the disk; `None`: to be removed.
    unwritten: BTreeMap<InstanceId, Option<(DesiredInstance, History)>>,
}

/// A process and its shim.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) service: ResourceName,
    pub(crate) release: ReleaseNumber,
    pub(crate) purpose: Purpose,
    pub(crate) slot: Option<u32>,
    pub(crate) epoch: Epoch,
    /// It must not run twice, and has a lease.
    stops: bool,
    run: Run,
    ready_at_ms: Option<u64>,
    lease: Option<Instant>,
    /// On its way down by its shim's own timer.
    falling: bool,
    /// It takes this long to end after SIGTERM.
    slow_to_end_ms: u64,
}

impl Node {
    pub(crate) fn new(name: NodeName, offset_ms: u64) -> Self {
        Self {
            name,
            offset_ms,
            agent: None,
            processes: BTreeMap::new(),
            disk: Disk::default(),
            held_up: BTreeMap::new(),
            lives: 0,
            forgot: false,
            next_pid: 1,
            down: false,
            frozen_until_ms: 0,
            road: Road::default(),
        }
    }

    pub(crate) fn is_frozen(&self, now_ms: u64) -> bool {
        now_ms < self.frozen_until_ms
    }

    fn of_life(&mut self, life: Life) -> Option<&mut Agent> {
        self.agent.as_mut().filter(|agent| agent.life == life)
    }
}

impl Process {
    /// Whether it may run on by the lease that it holds.
    pub(crate) fn lease_runs(&self, now: Instant) -> bool {
        self.stops
            && self
                .lease
                .is_some_and(|lease| now.since(lease) < EMPTY_AFTER)
    }

    pub(crate) fn is_ready(&self, now_ms: u64) -> bool {
        self.ready_at_ms.is_some_and(|at| now_ms >= at)
    }
}

impl World {
    fn node(&mut self, name: &NodeName) -> &mut Node {
        self.nodes
            .get_mut(name)
            .expect("machines stay, whatever becomes of the node")
    }

    /// Nothing on the machine runs for a while, and nobody there knows: time goes on.
    pub(crate) fn freeze_machine(&mut self, name: &NodeName, for_ms: u64) {
        let until = self.now_ms + for_ms;
        let stops_clock = self.options.bug == Some(Bug::FrozenTimeDoesNotCount);
        let node = self.node(name);
        if !node.down {
            node.frozen_until_ms = node.frozen_until_ms.max(until);
            let leases = node
                .processes
                .values_mut()
                .map(|process| &mut process.lease);
            for lease in leases.filter(|_| stops_clock).flatten() {
                *lease = lease.after(Duration::from_millis(for_ms));
            }
            self.note(|| format!("{name}: machine stands still until {until}"));
        }
    }

    pub(crate) fn is_node_again(&mut self, name: &NodeName) {
        self.node(name).disk.is_removed = false;
    }

    /// Everything on the machine ends at once.
    pub(crate) fn crash_machine(&mut self, name: &NodeName) {
        self.kill_agent(name);
        let at = self.now().at;
        let node = self.node(name);
        node.down = true;
        node.frozen_until_ms = 0;
        node.road = Road::default();
        node.held_up.clear();
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
                sequence,
                answer,
                sent_at,
            } if session == current => self.take_answer(name, life, sequence, &answer, sent_at),
            ToNode::Desired {
                session,
                desired,
                asked_at,
            } if session == current => {
                self.take_desired(name, life, *desired, asked_at);
            }
            ToNode::Removed => self.is_removed(name, life),
            _ => {}
        }
    }
}

fn address(pid: u32) -> String {
    format!("127.0.0.1:{}", 20_000 + pid)
}
