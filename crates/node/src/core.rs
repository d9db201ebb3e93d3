//! What an agent knows, all under one lock, and how its loops hear that there is something for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use compute::runtime::InstanceSpec;
use model::boundary::KeyFingerprint;
use model::control::{NodeEvent, Reason};
use model::ids::{Generation, InstanceId, ResourceId};
use model::signals::Level;
use model::traffic::{ProxySnapshot, Road};
use plan::agent::{Question, Run, State};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use crate::doors::Doors;
use crate::instances::Order;
use crate::layout::{self, Layout};
use crate::machine::Machine;
use crate::pause;

/// Events that wait for the next heartbeat; the oldest stay.
pub const EVENTS_MAX: usize = 64;

/// Under the lock.
pub struct Core {
    pub state: State,
    pub ports: BTreeMap<InstanceId, u16>,
    pub specs: BTreeMap<InstanceId, Arc<InstanceSpec>>,
    pub running: BTreeMap<InstanceId, Running>,
    pub workers: BTreeMap<InstanceId, mpsc::Sender<Order>>,
    /// The last probe of each kind that was sent out.
    pub asking: BTreeMap<(InstanceId, Question), AbortHandle>,
    pub events: VecDeque<NodeEvent>,
    pub road: Road,
    /// Keys of nodes that were removed.
    pub removed: BTreeSet<KeyFingerprint>,
    pub doors: Doors,
    pub demand: BTreeMap<ResourceId, u32>,
    /// Secrets of the services here, as last given: in memory only.
    pub secrets: BTreeMap<ResourceId, api::wire::SecretValues>,
    /// Of the last snapshot that the proxy was told.
    pub told: Generation,
    /// What it was told on the connection that lives now.
    pub told_snapshot: Option<ProxySnapshot>,
    /// The proxy has taken a snapshot and its connection lives.
    pub proxy_answers: bool,
    /// Where it listens for callers of this node, once it has said so; and where it can't as somebody else does.
    pub open_doors: Option<BTreeSet<SocketAddr>>,
    pub refused_doors: BTreeSet<SocketAddr>,
    /// What of the last snapshot it could not do.
    pub proxy_refuses: Option<String>,
    /// The servers answered the last heartbeat.
    pub connected: bool,
    pub machine: Machine,
    /// What a person should mend of instances here, for as long as it is so.
    pub notices: BTreeMap<InstanceId, Reason>,
}

/// Which run a process belongs to. `pid` is not known while it is being started.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    pub run: Run,
    pub pid: Option<u32>,
}

/// How loops hear that there is something for them: levels, not messages.
pub struct Signals {
    /// The next deadline may have changed.
    pub wake: Notify,
    /// The servers should hear something.
    pub report: Notify,
    pub watch_anew: Notify,
    pub certify: Notify,
    /// The proxy should hear something.
    pub road: watch::Sender<()>,
    pub acknowledged: watch::Sender<Generation>,
    /// Heartbeats that were answered.
    pub heard: watch::Sender<u64>,
    /// The proxy is to stop; and has stopped.
    pub stop_proxy: watch::Sender<bool>,
    pub proxy_stopped: watch::Sender<bool>,
    pub ended: watch::Sender<bool>,
    /// Why this node is to run nothing, once that is so.
    pub over: watch::Sender<Option<String>>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            report: Notify::new(),
            watch_anew: Notify::new(),
            certify: Notify::new(),
            road: watch::Sender::new(()),
            acknowledged: watch::Sender::new(Generation::default()),
            heard: watch::Sender::new(0),
            stop_proxy: watch::Sender::new(false),
            proxy_stopped: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            over: watch::Sender::new(None),
        }
    }
}

impl Core {
    pub fn open(layout: &Layout, machine: Machine) -> Self {
        let doors = layout::read(&layout.doors()).unwrap_or_else(|error| {
            tracing::warn!(%error, "doors are given anew");
            None
        });
        let snapshot = kept_snapshot(layout);
        Self {
            state: State::new(pause::draw()),
            ports: BTreeMap::new(),
            specs: BTreeMap::new(),
            running: BTreeMap::new(),
            workers: BTreeMap::new(),
            asking: BTreeMap::new(),
            events: VecDeque::new(),
            road: Road::default(),
            removed: BTreeSet::new(),
            doors: doors.unwrap_or_default(),
            demand: BTreeMap::new(),
            secrets: BTreeMap::new(),
            told: snapshot
                .map(|snapshot| snapshot.generation)
                .unwrap_or_default(),
            told_snapshot: None,
            proxy_answers: false,
            open_doors: None,
            refused_doors: BTreeSet::new(),
            proxy_refuses: None,
            connected: false,
            machine,
            notices: BTreeMap::new(),
        }
    }

    pub fn services(&self) -> BTreeSet<ResourceId> {
        self.state
            .instances()
            .map(|(_, instance)| instance.service())
            .collect()
    }

    pub fn push_event(&mut self, instance: Option<InstanceId>, level: Level, reason: Reason) {
        let at = jiff::Timestamp::now();
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(NodeEvent {
                at,
                level,
                instance,
                reason,
            });
        }
    }
}

/// What the proxy last kept: which gates stood open, and how far generations were counted.
pub fn kept_snapshot(layout: &Layout) -> Option<ProxySnapshot> {
    layout::read(&layout.kept_snapshot()).ok().flatten()
}
