//! Which node is lost or back, and when to hold because too much vanished at once.
//!
//! ```text
//!              silent for 3.5 s, no brake
//!  Present ───────────────────────────────▶ Lost
//!     ▲            any heartbeat              │
//!     └───────────────────────────────────────┘
//! ```
//!
//! A heartbeat comes each second. A node's own lease, counted from when a heartbeat was *sent*, ends no later than 3.5 s after the server
//! took it, so what `on_partition: stop` promises has happened when a node is decided lost. Deadlines only ever move away: a new leader gives
//! every node one whole interval, and a leader that stalled adds its stall, since for that long it could hear nobody. Who speaks for a node that
//! the leader has not heard yet, and is told to wait until its other place can't be heard any more, has time to be heard then.
//!
//! **The brake.** When more than half of all workers are silent at once, or several whole zones, it is likelier that the server is the one
//! cut off, or that replacing would crush what is left. Then nobody is decided lost until enough are back or an operator says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::control::{NodeRecord, NodeRole, Reason, Standing};
use model::ids::{NodeName, RegionName, SessionId, ZoneName};
use model::timing::{AT_ONCE, AT_THE_DOOR, LOST_AFTER, SILENT_AFTER, STALL_FROM};

use crate::service::Sight;
use crate::{Instant, Now};

/// With fewer workers there is no majority to speak of.
const BRAKE_FROM_WORKERS: usize = 3;
/// Sessions of a node that are remembered: an agent would have to be restarted this often while one message travels.
const KNOWN_SESSIONS: usize = 16;
/// Whole zones at once that are more than bad luck.
const BRAKE_FROM_ZONES: usize = 2;

/// What the leader knows of the nodes. Soft: a new leader begins with [`State::new`].
#[derive(Debug, Clone)]
pub struct State {
    nodes: BTreeMap<NodeName, Watch>,
    last_step: Instant,
    brake: Option<Brake>,
}

#[derive(Debug, Clone)]
struct Watch {
    region: RegionName,
    zone: ZoneName,
    role: NodeRole,
    standing: Standing,
    /// When it was last heard, or when the leader began; later by every stall since.
    heard_at: Instant,
    contact: Contact,
    /// The session whose full picture this leader has.
    complete: Option<SessionId>,
    lost_at: Option<Instant>,
    /// An operator said that it is gone: it counts for no brake. It is lost no sooner for that.
    given_up: bool,
    /// The sessions heard, each with the number of its last heartbeat; the one heard last stands last.
    sessions: Vec<(SessionId, u64)>,
}

/// How far a node has come to be heard by this leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    None,
    /// Somebody speaks for it, and has been told to wait or is about to begin.
    AtTheDoor,
    Heard,
}

/// Why nobody is decided lost for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brake {
    pub missing: BTreeSet<NodeName>,
    pub reason: Reason,
}

#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// Time passed; at least every [`model::timing::TICK_EVERY`].
    Tick,
    Heartbeat {
        node: &'a NodeName,
        session: SessionId,
        /// With it, the leader's picture of what the node observes is whole.
        complete: bool,
    },
    /// A node joined, or its record was changed.
    Record(&'a NodeRecord),
    /// A node left.
    Forget(&'a NodeName),
    /// An operator says that what is missing is gone.
    ReleaseBrake,
}

/// To be stored, or told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Lost { node: NodeName, reason: Reason },
    Present { node: NodeName, reason: Reason },
    BrakeOn { reason: Reason },
    BrakeOff { reason: Reason },
}

impl State {
    /// What a leader begins with: the records, and one interval of grace for each.
    pub fn new<'a>(records: impl IntoIterator<Item = &'a NodeRecord>, now: Now) -> Self {
        let mut state = Self {
            nodes: BTreeMap::new(),
            last_step: now.instant,
            brake: None,
        };
        for record in records {
            state.set(record, now.instant);
        }
        state
    }

    pub fn sight(&self, node: &NodeName, now: Now) -> Sight {
        match self.nodes.get(node) {
            None => Sight::Lost,
            Some(watch) if watch.standing == Standing::Lost => Sight::Lost,
            Some(watch)
                if watch.complete.is_some() && watch.silence(now.instant) < SILENT_AFTER =>
            {
                Sight::Heard
            }
            Some(_) => Sight::Silent,
        }
    }

    /// Whether a node that this leader has not heard yet may be about to speak: it counts as present, and is not overdue.
    pub fn is_awaited(&self, node: &NodeName, now: Now) -> bool {
        let watch = self.nodes.get(node);
        watch.is_some_and(|watch| {
            watch.standing == Standing::Present && watch.silence(now.instant) < LOST_AFTER
        })
    }

    /// Somebody who holds its key speaks for it, or repeats what such a one once sent, and is not heard yet. Whoever repeats it delays by
    /// [`AT_THE_DOOR`], once for each leader, that the node is lost. A certificate that has ended shows nobody's key, and the node that has it must
    /// not be lost while it waits: so those count too.
    pub fn knocks(&mut self, node: &NodeName) {
        if let Some(watch) = self.nodes.get_mut(node)
            && watch.contact == Contact::None
        {
            watch.contact = Contact::AtTheDoor;
        }
    }

    /// Whether heartbeats of it are taken at all.
    pub fn watches(&self, node: &NodeName) -> bool {
        self.nodes.contains_key(node)
    }

    /// Every node that is present has told this leader all: a road built now is complete.
    pub fn has_heard_all(&self) -> bool {
        self.nodes
            .values()
            .all(|watch| watch.standing == Standing::Lost || watch.complete.is_some())
    }

    pub fn brake(&self) -> Option<&Brake> {
        self.brake.as_ref()
    }

    /// Whether a heartbeat is news: newer than the last of its session, and of no session that another one followed. One that is not must change
    /// nothing, since what it says was true before what is known. Of two sessions it can't be told which is the older, so one that goes on
    /// while the other is silent is believed after all.
    pub fn is_news(
        &mut self,
        node: &NodeName,
        session: SessionId,
        sequence: u64,
        now: Now,
    ) -> bool {
        let Some(watch) = self.nodes.get_mut(node) else {
            return false;
        };
        let current = watch.sessions.last().map(|known| known.0);
        let known = watch.sessions.iter().position(|known| known.0 == session);
        let last = known.map(|at| watch.sessions[at].1);
        if last.is_some_and(|last| sequence <= last) {
            return false;
        }
        let is_retired = known.is_some() && current != Some(session);
        if is_retired && watch.silence(now.instant) < SILENT_AFTER {
            return false;
        }
        if let Some(at) = known {
            watch.sessions.remove(at);
        } else if watch.sessions.len() == KNOWN_SESSIONS {
            watch.sessions.remove(0);
        }
        watch.sessions.push((session, sequence));
        true
    }

    /// The decision about a node could not be stored: it stands as before, and will be decided anew.
    pub fn undo(&mut self, node: &NodeName, standing: Standing) {
        if let Some(watch) = self.nodes.get_mut(node) {
            watch.standing = standing;
        }
    }

    fn set(&mut self, record: &NodeRecord, now: Instant) {
        let watch = self
            .nodes
            .entry(record.name.clone())
            .or_insert_with(|| Watch {
                region: record.region.clone(),
                zone: record.zone.clone(),
                role: record.role,
                standing: record.standing,
                heard_at: now,
                contact: Contact::None,
                complete: None,
                lost_at: None,
                given_up: false,
                sessions: Vec::new(),
            });
        watch.region = record.region.clone();
        watch.zone = record.zone.clone();
        watch.role = record.role;
        watch.standing = record.standing;
    }
}

impl Watch {
    fn silence(&self, now: Instant) -> Duration {
        now.since(self.heard_at)
    }

    /// From when it was last heard until it may be decided lost.
    fn lost_after(&self) -> Duration {
        match self.contact {
            Contact::AtTheDoor => LOST_AFTER + AT_THE_DOOR,
            Contact::None | Contact::Heard => LOST_AFTER,
        }
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.silence(now) >= self.lost_after()
    }

    /// Silent, and not because it has to wait.
    fn is_gone(&self, now: Instant) -> bool {
        match self.contact {
            Contact::AtTheDoor => self.is_overdue(now),
            Contact::None | Contact::Heard => self.silence(now) >= SILENT_AFTER,
        }
    }

    /// Not heard now, or lost a moment ago.
    fn has_vanished(&self, now: Instant) -> bool {
        let lately = self.lost_at.is_some_and(|at| now.since(at) < AT_ONCE);
        match self.standing {
            Standing::Present => self.is_gone(now),
            Standing::Lost => lately,
        }
    }

    fn zone(&self) -> (RegionName, ZoneName) {
        (self.region.clone(), self.zone.clone())
    }
}

/// Takes what happened; says what is to be stored.
pub fn step(state: &mut State, input: Input<'_>, now: Now) -> Vec<Output> {
    allow_for_stall(state, now.instant);
    let mut outputs = Vec::new();
    match input {
        Input::Tick => {}
        Input::Heartbeat {
            node,
            session,
            complete,
        } => outputs.extend(heard(state, node, session, complete, now.instant)),
        Input::Record(record) => state.set(record, now.instant),
        Input::Forget(node) => {
            state.nodes.remove(node);
        }
        Input::ReleaseBrake => outputs.extend(give_up_missing(state)),
    }
    outputs.extend(brake(state, now.instant));
    if state.brake.is_none() {
        outputs.extend(lose_overdue(state, now.instant));
    }
    outputs
}

/// A leader that did not run heard nobody: all that was due meanwhile is due that much later.
fn allow_for_stall(state: &mut State, now: Instant) {
    let gap = now.since(state.last_step);
    if gap >= STALL_FROM {
        for watch in state.nodes.values_mut() {
            watch.heard_at = watch.heard_at.after(gap);
        }
    }
    state.last_step = state.last_step.max(now);
}

fn heard(
    state: &mut State,
    node: &NodeName,
    session: SessionId,
    complete: bool,
    now: Instant,
) -> Option<Output> {
    let watch = state.nodes.get_mut(node)?;
    watch.heard_at = watch.heard_at.max(now);
    watch.contact = Contact::Heard;
    watch.given_up = false;
    if complete {
        watch.complete = Some(session);
    } else if watch.complete != Some(session) {
        watch.complete = None;
    }
    if watch.standing == Standing::Present {
        return None;
    }
    watch.standing = Standing::Present;
    watch.lost_at = None;
    let reason = Reason::new("node-back", format!("node {node} is heard again"));
    Some(Output::Present {
        node: node.clone(),
        reason,
    })
}

fn lose_overdue(state: &mut State, now: Instant) -> Vec<Output> {
    // One that is given up as well: an operator can say that a machine is gone, but not that its leases have ended.
    let is_overdue = |watch: &Watch| watch.standing == Standing::Present && watch.is_overdue(now);
    let overdue = state
        .nodes
        .iter_mut()
        .filter(|(_, watch)| is_overdue(watch));
    let lose = |(node, watch): (&NodeName, &mut Watch)| {
        watch.standing = Standing::Lost;
        watch.lost_at = Some(now);
        watch.complete = None;
        let seconds = watch.silence(now).as_secs_f64();
        let message = format!("node {node} was not heard for {seconds:.1} s");
        Output::Lost {
            node: node.clone(),
            reason: Reason::new("node-lost", message),
        }
    };
    overdue.map(lose).collect()
}

/// Puts the brake on when too much vanished at once, and takes it off when enough is back.
fn brake(state: &mut State, now: Instant) -> Option<Output> {
    let missing = missing(state, now);
    let too_many = too_many(state, &missing, now);
    match (&mut state.brake, too_many) {
        (None, Some(reason)) => {
            state.brake = Some(Brake {
                missing,
                reason: reason.clone(),
            });
            Some(Output::BrakeOn { reason })
        }
        (Some(brake), Some(_)) => {
            brake.missing = missing;
            None
        }
        (Some(_), None) => {
            state.brake = None;
            let reason = Reason::new(
                "brake-off",
                "enough nodes are heard: lost ones are replaced again",
            );
            Some(Output::BrakeOff { reason })
        }
        (None, None) => None,
    }
}

/// The workers that vanished at once. While the brake is on, none of them is forgotten because time passes.
fn missing(state: &State, now: Instant) -> BTreeSet<NodeName> {
    let held = |name: &NodeName| {
        state
            .brake
            .as_ref()
            .is_some_and(|brake| brake.missing.contains(name))
    };
    let is_missing = |name: &NodeName, watch: &Watch| {
        let still_gone = watch.standing == Standing::Lost || watch.is_gone(now);
        !watch.given_up && (watch.has_vanished(now) || (held(name) && still_gone))
    };
    let workers = state
        .nodes
        .iter()
        .filter(|(_, watch)| watch.role == NodeRole::Worker);
    workers
        .filter(|(name, watch)| is_missing(name, watch))
        .map(|(name, _)| name.clone())
        .collect()
}

fn too_many(state: &State, missing: &BTreeSet<NodeName>, now: Instant) -> Option<Reason> {
    // Those that were there a moment ago: what was lost before is no part of "at once".
    let there = |name: &NodeName, watch: &Watch| {
        let counts = watch.standing == Standing::Present || missing.contains(name);
        watch.role == NodeRole::Worker && !watch.given_up && counts
    };
    let workers: Vec<_> = state
        .nodes
        .iter()
        .filter(|(name, watch)| there(name, watch))
        .collect();
    let overdue = |name: &NodeName| {
        state.nodes[name].standing == Standing::Lost || state.nodes[name].is_overdue(now)
    };
    let due = missing.iter().any(overdue);
    if workers.len() < BRAKE_FROM_WORKERS || !(due || state.brake.is_some()) {
        return None;
    }
    let zones = |of: &dyn Fn(&NodeName) -> bool| -> BTreeSet<_> {
        workers
            .iter()
            .filter(|(name, _)| of(name))
            .map(|(_, watch)| watch.zone())
            .collect()
    };
    let alive = zones(&|name| !missing.contains(name));
    let gone: BTreeSet<_> = zones(&|name| missing.contains(name))
        .difference(&alive)
        .cloned()
        .collect();
    let half = missing.len() * 2 > workers.len();
    let several = gone.len() >= BRAKE_FROM_ZONES;
    (half || several).then(|| why(missing, workers.len(), gone.len()))
}

fn why(missing: &BTreeSet<NodeName>, workers: usize, zones: usize) -> Reason {
    let message = format!(
        "{} of {workers} nodes and {zones} whole zones vanished at once: nothing is replaced until enough are heard again, or you say that they are gone: `mainland nodes release` releases the brake",
        missing.len()
    );
    let detail = missing
        .iter()
        .map(|node| format!("node {node} is not heard"))
        .collect();
    Reason::new("brake-on", message).with_detail(detail)
}

fn give_up_missing(state: &mut State) -> Option<Output> {
    let brake = state.brake.take()?;
    for name in &brake.missing {
        if let Some(watch) = state.nodes.get_mut(name) {
            watch.given_up = true;
        }
    }
    let reason = Reason::new(
        "brake-off",
        "an operator said that the missing nodes are gone",
    );
    Some(Output::BrakeOff { reason })
}

#[cfg(test)]
mod tests;
