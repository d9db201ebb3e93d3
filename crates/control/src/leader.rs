//! The loop that decides: it looks at the whole world, asks `plan` what should be, writes that, and tells the nodes.
//!
//! ```text
//! store ──mirror──▶ World ─┐                       ┌─▶ fenced transaction ─▶ store
//!                          ├─ turn: nodes, services ┤
//! heartbeats ──▶ Observed ─┘                       └─▶ what each node should run ─▶ its watch
//! ```
//!
//! A turn takes no input but the state of the world. It runs when something changed and every 400 ms. What could not be written is not
//! retried but decided anew.

mod cleaning;
mod deciding;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::control::{NodeRecord, Reason, Standing};
use model::ids::{Generation, NodeName, ResourceId};
use model::signals::Level;
use model::timing::TICK_EVERY;
use plan::nodes::{self, Input, Output};
use plan::place::Cluster;
use plan::service::{Memory, Sight};
use plan::{Instant, Now};
use store::Revision;

use crate::desired;
use crate::draft::Draft;
use crate::events::About;
use crate::records::Key;
use crate::state::{CommitError, Server};

/// However little happens, everything is looked at this often.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(1);
/// Turns that follow each other at once, when each finds something to do, before others get their time.
const TURNS_AT_ONCE: usize = 8;
/// Records that one turn cleans away, or keeps of what nodes say, at most.
const STEPS_AT_ONCE: usize = 32;

/// What the leader remembers from turn to turn. All of it may be lost.
pub struct Leader {
    server: Arc<Server>,
    cluster: Cluster,
    memories: BTreeMap<ResourceId, Memory>,
    /// The revision of the placements that the cluster knows.
    counted: BTreeMap<ResourceId, Option<Revision>>,
    nodes_seen: BTreeMap<NodeName, Revision>,
    /// What the last look at the services rested on.
    basis: Option<Basis>,
    looked_at: Instant,
    wake: Option<Instant>,
    /// What the nodes were last told rested on.
    told: Option<(Revision, u64, u64, bool)>,
    counter: u64,
    cleaning: cleaning::Cleaning,
    keeping: told::Keeping,
    /// Violations already told.
    objections: BTreeMap<ResourceId, String>,
}

#[derive(Clone, PartialEq)]
struct Basis {
    world: Revision,
    observed: u64,
    sights: Vec<Sight>,
    braked: bool,
}

impl Leader {
    pub fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            cluster: Cluster::default(),
            memories: BTreeMap::new(),
            counted: BTreeMap::new(),
            nodes_seen: BTreeMap::new(),
            basis: None,
            looked_at: Instant::default(),
            wake: None,
            told: None,
            counter: 0,
            cleaning: cleaning::Cleaning::default(),
            keeping: told::Keeping::default(),
            objections: BTreeMap::new(),
        }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        loop {
            for _ in 0..TURNS_AT_ONCE {
                if !self.turn().await {
                    break;
                }
            }
            let pause = self.pause();
            tokio::select! {
                () = self.server.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Until the next turn. A deadline that had passed when all was looked at last changed nothing then, and hurries nothing now.
    fn pause(&self) -> Duration {
        let now = self.server.clock.now().instant;
        let wake = self.wake.filter(|wake| *wake > self.looked_at);
        let due = wake.map_or(TICK_EVERY, |wake| wake.since(now));
        due.clamp(Duration::from_millis(1), TICK_EVERY)
    }

    /// One look at everything. True: something was written, so there may be more to do.
    async fn turn(&mut self) -> bool {
        if self.server.leadership.is_fenced() {
            return false;
        }
        let started = self.server.turns.begin();
        let now = self.server.clock.now();
        let mut wrote = self.nodes(now).await;
        wrote |= self.keep_what_is_told(now).await;
        wrote |= self.services(now).await;
        wrote |= self.clean(now).await;
        self.tell();
        self.server.turns.end(started);
        self.server.with(|shared| shared.ready = true);
        wrote
    }

    /// Who is lost, who is back.
    async fn nodes(&mut self, now: Now) -> bool {
        let outputs = self.server.with(|shared| {
            let mut outputs = std::mem::take(&mut shared.node_outputs);
            let crate::state::Shared {
                world,
                nodes,
                observed,
                desired,
                ..
            } = shared;
            for (name, record) in &world.nodes {
                if self.nodes_seen.insert(name.clone(), record.modified) != Some(record.modified) {
                    outputs.extend(nodes::step(nodes, Input::Record(&record.value), now));
                    self.cluster.set_node(&record.value);
                    if let Some(key) = &record.key {
                        self.server.tunnels.close_others(name, Some(key));
                    }
                }
            }
            let seen = self.nodes_seen.keys();
            let gone = seen.filter(|name| !world.nodes.contains_key(*name));
            for name in gone.cloned().collect::<Vec<_>>() {
                outputs.extend(nodes::step(nodes, Input::Forget(&name), now));
                self.nodes_seen.remove(&name);
                self.cluster.remove_node(&name);
                observed.forget(&name);
                // Whoever follows what the node should run is told that it ends.
                desired.remove(&name);
                self.server.tunnels.close_others(&name, None);
            }
            outputs.extend(nodes::step(nodes, Input::Tick, now));
            outputs
        });
        let mut wrote = false;
        for output in outputs {
            wrote |= self.act_on_node(output).await;
        }
        wrote
    }

    async fn act_on_node(&mut self, output: Output) -> bool {
        match output {
            Output::Lost { node, reason } => self.stands(&node, Standing::Lost, reason).await,
            Output::Present { node, reason } => self.stands(&node, Standing::Present, reason).await,
            Output::BrakeOn { reason } => {
                tracing::warn!(%reason, "brake on");
                self.server.say(Level::Error, About::server(), reason);
                false
            }
            Output::BrakeOff { reason } => {
                self.server.say(Level::Info, About::server(), reason);
                false
            }
        }
    }

    /// Stores what was decided about a node, before anything rests on it.
    async fn stands(&mut self, name: &NodeName, standing: Standing, mut reason: Reason) -> bool {
        // The record stays for long, and is read without the event.
        let at = self.server.now().strftime("%Y-%m-%d %H:%M:%S UTC");
        reason.message = format!("{}, at {at}", reason.message);
        let record = self.server.look(|world| world.nodes.get(name).cloned());
        let Some(record) = record.filter(|record| record.standing != standing) else {
            return false;
        };
        let next = NodeRecord {
            standing,
            reason: reason.clone(),
            ..record.value.clone()
        };
        let mut draft = Draft::new();
        draft.put(Key::Node(name.clone()), Some(&record), &next);
        match self.server.commit(draft).await {
            Ok(_) => {
                self.cluster.set_node(&next);
                let level = if standing == Standing::Lost {
                    Level::Warning
                } else {
                    Level::Info
                };
                self.server.say(level, About::node(name), reason);
                true
            }
            Err(error) => {
                self.server
                    .with(|shared| shared.nodes.undo(name, record.standing));
                report(&error, "what was decided about a node could not be stored");
                matches!(error, CommitError::Conflict(_))
            }
        }
    }

    /// Tells every node what it should run, where that is something new.
    fn tell(&mut self) {
        let epoch = self.server.leadership.epoch;
        let (told, counter) = (&mut self.told, &mut self.counter);
        self.server.with(|shared| {
            let complete = shared.nodes.has_heard_all();
            let (observed, runs) = (shared.observed.version, shared.runs.version());
            let basis = (shared.world.changed, observed, runs, complete);
            if *told == Some(basis) {
                return;
            }
            *told = Some(basis);
            for (name, mut wanted) in desired::of_all(shared, complete) {
                let sender = shared.channel(&name);
                let known = sender
                    .borrow()
                    .as_ref()
                    .is_some_and(|known| desired::same(known, &wanted));
                if !known {
                    *counter += 1;
                    wanted.generation = Generation {
                        epoch,
                        counter: *counter,
                    };
                    sender.send_replace(Some(Arc::new(wanted)));
                }
            }
        });
    }
}

fn report(error: &CommitError, doing: &str) {
    match error {
        CommitError::Conflict(key) => {
            tracing::debug!(key, "{doing}: it changed meanwhile, deciding anew")
        }
        error => tracing::warn!(%error, "{doing}"),
    }
}
