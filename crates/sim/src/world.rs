//! Time, the queue of events, and who talks to whom.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use model::compute::InstanceReport;
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired};
use model::ids::{InstanceId, NodeName, SessionId};
use plan::agent::Input;
use plan::{Instant, Now};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::faults::Fault;
use crate::invariants::Invariants;
use crate::node::Node;
use crate::server::Server;
use crate::store::Store;
use crate::{Bug, Failure, Options, Summary, faults, workload};

/// Lines of history that a failure shows.
const TRACE_LINES: usize = 250;
/// A run with more events than this is in a loop.
const MOST_EVENTS: u64 = 2_000_000;

/// Which life of a process an event is for: one for an earlier life is dropped, as its timers and connections would be.
pub(crate) type Life = u64;

#[derive(Debug, Clone)]
pub(crate) enum Event {
    ToServer {
        message: ToServer,
        node: NodeName,
    },
    ToNode {
        message: ToNode,
        node: NodeName,
    },
    /// The server looks at everything.
    Reconcile(Life),
    /// The agent's timer, or something that happened on its machine.
    Agent {
        node: NodeName,
        life: Life,
        input: Box<Input>,
    },
    Heartbeat {
        node: NodeName,
        life: Life,
    },
    /// The timer of the shim of the process with this pid.
    LeaseDue {
        node: NodeName,
        pid: u32,
    },
    ProcessEnds {
        node: NodeName,
        pid: u32,
        how: model::compute::ExitHow,
    },
    /// A disk that stood still answers again.
    DiskGoesOn(NodeName),
    Fault(Fault),
}

impl Event {
    /// The machine on which it happens.
    fn machine(&self) -> Option<&NodeName> {
        match self {
            Self::ToNode { node, .. }
            | Self::Agent { node, .. }
            | Self::Heartbeat { node, .. }
            | Self::LeaseDue { node, .. }
            | Self::ProcessEnds { node, .. }
            | Self::DiskGoesOn(node)
            | Self::Fault(Fault::StartAgent(node)) => Some(node),
            Self::ToServer { .. } | Self::Reconcile(_) | Self::Fault(_) => None,
        }
    }
}

/// From a node. Numbers tell what was sent before what.
#[derive(Debug, Clone)]
pub(crate) enum ToServer {
    Heartbeat {
        heartbeat: Box<Heartbeat>,
        sent_at: Instant,
        /// All that the node sees: only the invariants look at it.
        observed: Vec<InstanceReport>,
    },
    Watch {
        session: SessionId,
        asked_at: Instant,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum ToNode {
    Answer {
        session: SessionId,
        sequence: u64,
        answer: HeartbeatAnswer,
        sent_at: Instant,
    },
    Desired {
        session: SessionId,
        desired: Box<NodeDesired>,
        asked_at: Instant,
    },
    /// It is no node any more.
    Removed,
}

/// How the network is at the moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    /// In hundredths.
    pub(crate) loss: u32,
    pub(crate) most_delay_ms: u64,
    /// Until when nothing gets through from the node, or to it. Milliseconds.
    pub(crate) cut_from: BTreeMap<NodeName, u64>,
    pub(crate) cut_to: BTreeMap<NodeName, u64>,
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) options: Options,
    pub(crate) now_ms: u64,
    pub(crate) rng: StdRng,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    pub(crate) store: Store,
    /// The one that nodes and users reach.
    pub(crate) server: Option<Server>,
    /// One that was stopped for a while, and followed by another meanwhile.
    pub(crate) old_server: Option<Server>,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) network: Network,
    pub(crate) invariants: Invariants,
    pub(crate) summary: Summary,
    /// Starts fail now. In hundredths.
    pub(crate) failing_starts: u32,
    trace: VecDeque<String>,
    broken: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut store = Store::new(options.bug != Some(Bug::NoFence));
        store.services = workload::services();
        store.nodes = workload::nodes()
            .into_iter()
            .map(|node| (node.name.clone(), node))
            .collect();
        let nodes = store.nodes.keys().map(|name| {
            (
                name.clone(),
                Node::new(name.clone(), rng.random_range(0..1_000_000)),
            )
        });
        let nodes = nodes.collect();
        Self {
            seed,
            options,
            now_ms: 0,
            rng,
            queue: BTreeMap::new(),
            scheduled: 0,
            store,
            server: None,
            old_server: None,
            nodes,
            network: Network {
                most_delay_ms: 20,
                ..Network::default()
            },
            invariants: Invariants::default(),
            summary: Summary::default(),
            failing_starts: 0,
            trace: VecDeque::new(),
            broken: None,
        }
    }

    pub(crate) fn run(mut self) -> Result<Summary, Failure> {
        self.start_server();
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.start_agent(&node);
        }
        faults::schedule(&mut self);
        let end = self.options.faults_for_ms + self.options.recover_within_ms;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now_ms = at;
            self.summary.events += 1;
            if self.now_ms > end || self.summary.events > MOST_EVENTS {
                let missing = self.not_as_wanted().unwrap_or_default();
                return Err(self.failure(format!("not as wanted long after the faults: {missing}")));
            }
            self.happen(event);
            self.check_moment();
            if let Some(what) = self.broken.take() {
                return Err(self.failure(what));
            }
            if self.has_recovered() {
                break;
            }
        }
        Ok(self.summary)
    }

    fn happen(&mut self, event: Event) {
        let frozen_until = event
            .machine()
            .map(|name| &self.nodes[name])
            .filter(|node| node.is_frozen(self.now_ms))
            .map(|node| node.frozen_until_ms);
        if let Some(until) = frozen_until {
            return self.put_off(until, event);
        }
        match event {
            Event::ToServer { message, node } => self.server_takes(&node, message),
            Event::ToNode { message, node } => self.node_takes(&node, message),
            Event::Reconcile(life) => self.reconcile(life),
            Event::Agent { node, life, input } => self.agent_takes(&node, life, *input),
            Event::Heartbeat { node, life } => self.beat(&node, life),
            Event::LeaseDue { node, pid } => self.lease_due(&node, pid),
            Event::ProcessEnds { node, pid, how } => self.process_ends(&node, pid, how),
            Event::DiskGoesOn(node) => self.disk_goes_on(&node),
            Event::Fault(fault) => self.strike(fault),
        }
    }

    pub(crate) fn schedule(&mut self, in_ms: u64, event: Event) {
        self.scheduled += 1;
        self.queue
            .insert((self.now_ms + in_ms, self.scheduled), event);
    }

    /// Takes what a process that was stopped (not killed) would have done, to when it goes on.
    pub(crate) fn put_off(&mut self, until_ms: u64, event: Event) {
        self.schedule(until_ms.saturating_sub(self.now_ms) + 1, event);
    }

    pub(crate) fn send_to_server(&mut self, node: &NodeName, message: ToServer) {
        let cut = self
            .network
            .cut_from
            .get(node)
            .is_some_and(|until| self.now_ms < *until);
        if let Some(delay) = self.travel(cut) {
            self.schedule(
                delay,
                Event::ToServer {
                    message,
                    node: node.clone(),
                },
            );
        }
    }

    pub(crate) fn send_to_node(&mut self, node: &NodeName, message: ToNode) {
        self.check_removed(node, &message);
        let cut = self
            .network
            .cut_to
            .get(node)
            .is_some_and(|until| self.now_ms < *until);
        if let Some(delay) = self.travel(cut) {
            self.schedule(
                delay,
                Event::ToNode {
                    message,
                    node: node.clone(),
                },
            );
        }
    }

    /// How long a message is under way; `None`: it is lost.
    fn travel(&mut self, cut: bool) -> Option<u64> {
        let lost = self.rng.random_range(0..100) < self.network.loss;
        let delay = self.rng.random_range(1..=self.network.most_delay_ms);
        (!cut && !lost).then_some(delay)
    }

    /// The moment on the server's clock, which began with the world.
    pub(crate) fn now(&self) -> Now {
        self.now_on(0)
    }

    /// The moment on a clock that reads `offset_ms` more.
    pub(crate) fn now_on(&self, offset_ms: u64) -> Now {
        let at = Timestamp::from_millisecond(1_700_000_000_000 + self.now_ms as i64);
        Now {
            instant: Instant(std::time::Duration::from_millis(self.now_ms + offset_ms)),
            at: at.expect("a time in this century"),
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace
            .push_back(format!("{:>7} {}", self.now_ms, line()));
    }

    /// Something that must hold does not; the first is told.
    pub(crate) fn violated(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    fn failure(&self, what: String) -> Failure {
        Failure {
            seed: self.seed,
            step: self.summary.events,
            what,
            trace: self.trace.iter().cloned().collect(),
        }
    }
}

pub(crate) fn short(instance: &InstanceId) -> &str {
    instance.name.as_str()
}
