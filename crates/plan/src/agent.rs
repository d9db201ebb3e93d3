//! The agent's own reconcile: what a node does about each instance that it should run. [`step`] takes what happened and says what to do.
//!
//! Each instance is a machine of its own:
//!
//! ```text
//!              needs answer,        artifact,          process
//!              or 30 s              secrets there      is there
//!   Waiting ───────────▶ Preparing ───────▶ Starting ───────▶ Running ◀─▶ ready │ not ready │ suspended
//!                         ▲  ▲  │ failed      │ failed         │ │ │        gate: Open │ Shut │ Shut
//!          back-off over  │  │  ▼             ▼   exited alone │ │ │
//!                         └─ BackingOff ◀─────┴────────────────┘ │ │ lease lost, `on_partition: stop`
//!                            │                    `alive` failed │ └──────▶ Stopping(lease) ──▶ Fenced
//!                            │                        Stopping ◀─┤            the shim stops it   │
//!                            │                       (restart)   │ leave     Preparing ◀──────────┘
//!                            │                                   ▼        lease held, desired state confirmed
//!                            │      Drained, or the grace    Draining     gate: Leaving
//!                            │      Stopping(leave) ◀────────────┘
//!                            │        TERM, grace, KILL
//!                            ▼            ▼
//!                          Stopped │ Finished ──▶ (absent from a newer desired state) removed
//!                             └───────────────▶ (a new epoch of the same name) Waiting
//! ```
//!
//! It is level-triggered: a step folds its input into the state and then moves every instance as far as the whole state allows, so that a lost
//! or repeated input costs time and nothing else. What is told of an earlier run of an instance is ignored by its run number.
//!
//! An instance with `on_partition: stop` is started only while the node holds its lease *and* the desired state in hand was asked for after the
//! lease was last gained: an older one may name what runs elsewhere by now.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::InstanceReport;
use model::control::{NodeDesired, Reason};
use model::ids::{Generation, InstanceId, ResourceId};
use model::signals::Level;
use model::traffic::{Gate, Road};

use crate::{Instant, Now};

mod input;
mod instance;
mod lease;
mod output;
mod probing;
#[cfg(test)]
mod tests;

use input::subject;
pub use input::{Adopted, Input, Question, Whose};
pub use instance::{History, Instance};
pub use lease::Lease;
use lease::Renewal;
pub use output::Output;
pub use probing::{NOT_READY_INTERVAL, NOT_READY_PATIENCE, PROBE_WAIT};

/// Counts the preparations of one instance in one life of the agent: 1 is an adopted process or the first start.
pub type Run = u32;

/// What an agent knows.
#[derive(Debug)]
pub struct State {
    instances: BTreeMap<InstanceId, Instance>,
    /// What an earlier agent left of others, which no desired state has named since.
    strays: BTreeMap<InstanceId, Stray>,
    generation: Option<Generation>,
    lease: Lease,
    /// Instances that the desired state names in words of a later version: what is known of them stays as it is.
    foreign: BTreeSet<InstanceId>,
    /// Services with an endpoint, as the road last said.
    reachable: BTreeSet<ResourceId>,
    stopping: bool,
    /// Until then nothing is started unless the servers confirm what is known from disk.
    hold: Option<Instant>,
    draw: Draw,
}

/// What is left of an instance of which nobody here knows what it should be.
#[derive(Debug)]
struct Stray {
    whose: Option<Whose>,
    process: Adopted,
}

impl Stray {
    /// Something of it may.
    fn lives(&self) -> bool {
        matches!(
            self.process,
            Adopted::Running { .. } | Adopted::Living | Adopted::Unknown
        )
    }
}

/// One step: what is known, what happened and when → what to do.
pub fn step(state: &mut State, input: Input, now: Now) -> Vec<Output> {
    let mut outputs = Vec::new();
    state.notice_lost_lease(now, &mut outputs);
    state.end_hold(now, &mut outputs);
    let touched = state.fold(input, now, &mut outputs);
    state.advance(touched, now, &mut outputs);
    outputs
}

/// Which instances an input may move.
enum Touched {
    One(InstanceId),
    All,
}

impl State {
    /// `seed` feeds the jitter of back-offs.
    pub fn new(seed: u64) -> Self {
        Self {
            instances: BTreeMap::new(),
            strays: BTreeMap::new(),
            generation: None,
            lease: Lease::default(),
            foreign: BTreeSet::new(),
            reachable: BTreeSet::new(),
            stopping: false,
            hold: None,
            draw: Draw(seed),
        }
    }

    /// A new agent knows only what an earlier one kept, and the servers may have decided otherwise since: until `until` they are given the
    /// chance to say so before anything is started. What runs goes on.
    pub fn wait_for_servers(&mut self, until: Instant) {
        self.hold = Some(until);
    }

    pub fn instances(&self) -> impl Iterator<Item = (&InstanceId, &Instance)> {
        self.instances.iter()
    }

    pub fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.get(id)
    }

    /// What the server is told about an instance. `None`: it is gone.
    pub fn report(&self, id: &InstanceId) -> Option<&InstanceReport> {
        self.instances.get(id).map(Instance::report)
    }

    pub fn reports(&self) -> impl Iterator<Item = &InstanceReport> {
        self.instances.values().map(Instance::report)
    }

    /// Whether the desired state names it in words of a later version.
    pub fn is_foreign(&self, id: &InstanceId) -> bool {
        self.foreign.contains(id)
    }

    /// Whether something may live of an instance that no desired state has named yet.
    pub fn is_living_stray(&self, id: &InstanceId) -> bool {
        self.strays.get(id).is_some_and(Stray::lives)
    }

    /// Of the last desired state that was taken.
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whether no process of any instance is left.
    pub fn is_still(&self) -> bool {
        let lives = self.instances.values().any(Instance::has_process);
        !lives && self.living_strays().next().is_none()
    }

    /// When to call [`step`] with [`Input::Tick`] at the latest.
    pub fn next_wake(&self) -> Option<Instant> {
        let instances = self.instances.values().filter_map(Instance::next_wake);
        instances
            .chain(self.lease.next_wake())
            .chain(self.hold)
            .min()
    }

    /// Of which something may live.
    fn living_strays(&self) -> impl Iterator<Item = (&InstanceId, &Stray)> {
        self.strays.iter().filter(|(_, stray)| stray.lives())
    }

    fn whose_strays(&self) -> Vec<(InstanceId, Option<Whose>)> {
        let strays = self.living_strays();
        let strays = strays.map(|(id, stray)| (id.clone(), stray.whose.clone()));
        strays.collect()
    }

    fn notice_lost_lease(&mut self, now: Now, outputs: &mut Vec<Output>) {
        if !self.lease.notice_loss(now.instant) {
            return;
        }
        outputs.push(Output::WatchAnew);
        outputs.push(Output::Tell {
            instance: None,
            level: Level::Warning,
            reason: Reason::new(
                "lease-lost",
                "the servers do not answer: instances with `on_partition: stop` are stopped, the others go on",
            ),
        });
        self.advance(Touched::All, now, outputs);
    }

    fn end_hold(&mut self, now: Now, outputs: &mut Vec<Output>) {
        if self.hold.is_some_and(|until| now.instant >= until) {
            self.hold = None;
            self.advance(Touched::All, now, outputs);
        }
    }

    fn fold(&mut self, input: Input, now: Now, outputs: &mut Vec<Output>) -> Touched {
        match input {
            Input::Adopted {
                desired,
                history,
                process,
            } => {
                let id = desired.instance.clone();
                let adopted =
                    Instance::adopt(*desired, history, process, now, &mut self.draw, outputs);
                self.strays.remove(&id);
                self.instances.insert(id.clone(), adopted);
                Touched::One(id)
            }
            Input::Desired { desired, asked_at } => {
                self.take_desired(*desired, asked_at, now, outputs);
                Touched::All
            }
            Input::Renewed { epoch, sent_at } => {
                let renewal = self.lease.renew(epoch, sent_at, now.instant);
                if renewal != Renewal::Void {
                    self.renew_leases(sent_at, outputs);
                }
                if renewal == Renewal::Gained {
                    outputs.push(Output::WatchAnew);
                }
                Touched::All
            }
            Input::StopAll => {
                self.stopping = true;
                outputs.extend(self.living_strays().map(end));
                Touched::All
            }
            Input::Found {
                instance,
                whose,
                process,
            } => {
                self.strays.insert(instance, Stray { whose, process });
                Touched::All
            }
            Input::Gone { instance } => {
                self.strays.remove(&instance);
                Touched::All
            }
            // Those who waited for its end may begin.
            Input::Exited { instance, exit, .. } if self.is_living_stray(&instance) => {
                if let Some(stray) = self.strays.get_mut(&instance) {
                    stray.process = Adopted::Exited(exit);
                }
                Touched::All
            }
            Input::Tick => Touched::All,
            other => self.fold_into_one(other, now, outputs),
        }
    }

    fn fold_into_one(&mut self, input: Input, now: Now, outputs: &mut Vec<Output>) -> Touched {
        let id = subject(&input).clone();
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.take(input, self.stopping, now, &mut self.draw, outputs);
        }
        Touched::One(id)
    }

    fn renew_leases(&self, sent_at: Instant, outputs: &mut Vec<Output>) {
        let holders = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.holds_lease());
        // Whether a stray needs it nobody knows.
        let strays = self.living_strays().map(|(id, _)| id);
        let holders = holders.map(|(id, _)| id).chain(strays);
        outputs.extend(holders.map(|id| Output::RenewLease {
            instance: id.clone(),
            sent_at,
        }));
    }

    /// Takes it if it is newer; one of the same generation only confirms what is known.
    fn take_desired(
        &mut self,
        desired: NodeDesired,
        asked_at: Option<Instant>,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        if self.generation > Some(desired.generation) {
            return;
        }
        self.lease.confirm(desired.generation.epoch, asked_at);
        if self.generation == Some(desired.generation) {
            return;
        }
        self.generation = Some(desired.generation);
        learn_reachable(&mut self.reachable, &desired.road);
        let mut named = BTreeSet::new();
        for one in desired.instances {
            named.insert(one.instance.clone());
            match self.instances.get_mut(&one.instance) {
                Some(known) => known.take_desired(one),
                None => {
                    let id = one.instance.clone();
                    let new = match self.strays.remove(&id) {
                        Some(stray) => {
                            Instance::found(one, stray.process, now, &mut self.draw, outputs)
                        }
                        None => Instance::new(one, now),
                    };
                    self.instances.insert(id, new);
                }
            }
        }
        let foreign = desired.foreign.into_iter().map(|one| one.instance);
        let before = std::mem::replace(&mut self.foreign, foreign.collect());
        outputs.extend(self.foreign.difference(&before).map(tell_foreign));
        for (id, instance) in &mut self.instances {
            if !named.contains(id) && !self.foreign.contains(id) {
                instance.is_unwanted();
            }
        }
    }

    fn advance(&mut self, touched: Touched, now: Now, outputs: &mut Vec<Output>) {
        // A service that became ready here counts as reachable before the road says so: the start order is the faster for it.
        let local = self.ready_here();
        let volumes = self
            .instances
            .values()
            .filter_map(Instance::holds_volumes)
            .collect();
        let strays = self.whose_strays();
        let before = outputs.len();
        let world = instance::World {
            lease: &self.lease,
            reachable: &self.reachable,
            local: &local,
            volumes: &volumes,
            strays: &strays,
            stopping: self.stopping,
            held: self.hold.is_some() && !self.lease.was_told(),
            now,
        };
        let mut gone = Vec::new();
        let mut advance = |id: &InstanceId, instance: &mut Instance| {
            if !instance.advance(&world, outputs) {
                gone.push(id.clone());
            }
        };
        match &touched {
            Touched::One(id) => {
                if let Some(instance) = self.instances.get_mut(id) {
                    advance(id, instance);
                }
            }
            Touched::All => {
                for (id, instance) in &mut self.instances {
                    advance(id, instance);
                }
            }
        }
        for id in gone {
            self.instances.remove(&id);
            outputs.push(Output::Remove {
                instance: id.clone(),
            });
            outputs.push(Output::Report { instance: id });
        }
        let opened = |output: &Output| {
            matches!(
                output,
                Output::SetGate {
                    gate: Gate::Open,
                    ..
                }
            )
        };
        // What became ready may be what another one waited for.
        if outputs[before..].iter().any(opened) && self.instances.values().any(Instance::waits) {
            self.advance(Touched::All, now, outputs);
        }
    }

    fn ready_here(&self) -> BTreeSet<ResourceId> {
        // What runs once is nobody's to call, however well it runs.
        let ready = self.instances.values();
        let ready = ready.filter(|one| one.is_ready() && !one.runs_once());
        ready.map(Instance::service).collect()
    }
}

fn end((id, stray): (&InstanceId, &Stray)) -> Output {
    let instance = id.clone();
    match stray.process {
        Adopted::Living => Output::Terminate { instance },
        _ => Output::Kill { instance },
    }
}

fn tell_foreign(id: &InstanceId) -> Output {
    let name = &id.name;
    let message = format!(
        "what {name} should be is said in words of a later version: it stays as it is until this node is of that version too"
    );
    Output::Tell {
        instance: Some(id.clone()),
        level: Level::Warning,
        reason: Reason::new("later-version", message),
    }
}

/// From a partial view endpoints are only added.
fn learn_reachable(reachable: &mut BTreeSet<ResourceId>, road: &Road) {
    if road.complete {
        reachable.clear();
    }
    let answering = road
        .destinations
        .iter()
        .filter(|one| !one.endpoints.is_empty() || !one.external.is_empty());
    reachable.extend(answering.map(|one| one.service.clone()));
}

/// A small generator of its own for jitter, so that a step stays a function of its inputs: SplitMix64 (Steele, Lea, Flood, 2014).
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}
