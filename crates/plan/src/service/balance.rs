//! Evens copies out: moves them, one at a time, from where too many of a service stand to where two fewer do. After a zone was lost its copies
//! run elsewhere; when it is back, this brings some of them home.
//!
//! ```text
//!           uneven, and quiet for a while            ready
//!  (at rest) ───────────────────────────▶ (moving) ─────────▶ the old copy leaves
//!      ▲                                      │ fails, not ready in time, a release is rolled out
//!      └────────── waits, ever longer ────────┴─────────────▶ the new copy leaves
//! ```
//!
//! That a copy was started to take another's place is intent and stored with it ([`Placement::replaces`]); until one of them leaves, the two count
//! as one. A leader that comes in the middle goes on from there.
//!
//! **It comes to an end.** A move takes a copy from a place with `x` to one with at most `x - 2`, so the sum of the squares of all counts falls by
//! 2 or more. It is a whole number and never negative. Whoever makes the copies uneven again from outside (a move that fails, a node that comes and
//! goes) is waited for ever longer: a move that begins no more even than the one before waits a minute, then two, up to an hour.
//!
//! What must not run beside itself (`on_partition: stop`) is left where it is: it would have to end before it starts anew.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use model::compute::{
    InstanceReport, InstanceState, OnPartition, Placement, Purpose, SpreadBy, Wanted,
};
use model::control::{Reason, Rollout, RolloutPhase};
use model::ids::{Epoch, InstanceName, NodeName, RegionName, ReleaseNumber, ResourceId, ZoneName};

use super::copies::{AVOID_FOR, Bounds, cannot_start, may_go};
use super::placing::Wish;
use super::{Memory, Sight, Step};
use crate::Instant;
use crate::backoff;
use crate::place::{Ceiling, Placed};

/// How long all must have been as it should be, but for the balance, before a copy is moved.
const QUIET: Duration = Duration::from_secs(10);
/// So much later at most, each service by its name: not all move at once.
const JITTER: Duration = Duration::from_secs(20);
/// The longest wait for the next try.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// A move longer ago than this counts for no wait.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2 * 3600);

/// What a leader remembers of the moves of one service. Soft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Balance {
    /// Since when the copies are uneven and all else is well.
    quiet_since: Option<Instant>,
    /// The new copy of the move under way, and since when this leader knows of it.
    moving: Option<(InstanceName, Instant)>,
    last: Option<Last>,
    /// Moves in a row that began no more even than the one before.
    futile: u32,
}

/// The move before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    /// The sum of squares when it began.
    squares: usize,
    /// When it began, or was given up.
    at: Instant,
}

impl Balance {
    /// Under a brake nothing is quiet, and nothing is late.
    pub(super) fn hold(&mut self, now: Instant) {
        self.quiet_since = None;
        if let Some((_, since)) = &mut self.moving {
            *since = now;
        }
    }

    /// Takes note of a move under way. Answers since when it is known.
    fn note(&mut self, new: &InstanceName, squares: usize, now: Instant) -> Instant {
        if let Some((_, since)) = self.moving.as_ref().filter(|(known, _)| known == new) {
            return *since;
        }
        let recent = |last: &Last| now.since(last.at) < FORGOTTEN_AFTER;
        let again = self
            .last
            .filter(recent)
            .filter(|last| squares >= last.squares);
        self.futile = again.map_or(0, |_| self.futile.saturating_add(1));
        self.last = Some(Last { squares, at: now });
        self.moving = Some((new.clone(), now));
        now
    }

    /// When the next move may begin.
    fn due(&self, quiet_since: Instant, squares: usize, service: &ResourceId) -> Instant {
        let calm = quiet_since.after(QUIET + jitter(service));
        let before = self.last.filter(|last| squares >= last.squares);
        before.map_or(calm, |last| calm.max(last.at.after(wait(self.futile))))
    }
}

/// A minute, doubling.
fn wait(futile: u32) -> Duration {
    LONGEST_WAIT.min(backoff::wait(futile.saturating_add(1), 1.0) * 600)
}

/// The same for the same name. (FNV-1a: Fowler, Noll and Vo.)
pub(super) fn jitter(service: &ResourceId) -> Duration {
    let hash = service
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    Duration::from_millis(hash % (JITTER.as_millis() as u64))
}

/// A new copy, and the one whose place it is to take.
struct Move {
    new: Placement,
    old: Placement,
}

impl Move {
    fn under_way(step: &Step<'_>) -> Option<Self> {
        let new = step.moves().next()?;
        let old = step
            .running()
            .find(|old| new.replaces.as_ref() == Some(&old.instance))?;
        Some(Self {
            new: new.clone(),
            old: old.clone(),
        })
    }
}

/// Brings a move under way to its end, one way or the other. Answers when it will be late.
pub(super) fn settle(
    step: &mut Step<'_>,
    active: ReleaseNumber,
    bounds: Bounds,
    memory: &mut Memory,
) -> Option<Instant> {
    let Some(Move { new, old }) = Move::under_way(step) else {
        memory.balance.moving = None;
        return None;
    };
    let (by, now) = (step.spec(active).spread.by, step.now.instant);
    let squares = squares(&counts(step, by, Some(&new.instance)));
    let since = memory.balance.note(&new.instance, squares, now);
    let late = since.after(step.spec(active).rollout.ready_within.duration());
    if step.is_ready(&new) {
        finish(step, by, bounds, &new, &old);
    } else if new.release != active {
        let message = format!(
            "release {active} comes first: {} keeps its place",
            old.instance
        );
        step.leave(&new.instance, Reason::new("not-balanced", message));
    } else if let Some(why) = why_not(step, &new, now >= late) {
        let message = format!("{why}: {} keeps its place", old.instance);
        step.leave(&new.instance, Reason::new("not-balanced", message));
        memory.avoided.insert(new.node, now.after(AVOID_FOR));
        memory.balance.last = Some(Last { squares, at: now });
    } else {
        return Some(late);
    }
    None
}

fn finish(step: &mut Step<'_>, by: SpreadBy, bounds: Bounds, new: &Placement, old: &Placement) {
    if may_go(step, bounds, old) {
        let to = place_of(step, by, &new.node).map_or_else(String::new, |to| format!(" to {to}"));
        let why = imbalance(step, by, &old.node, &new.instance, &new.node);
        let message = format!("moved{to} as {}: {why}", new.instance);
        step.leave(&old.instance, Reason::new("balanced", message));
    }
}

/// Why a new copy is not waited for any longer.
fn why_not(step: &Step<'_>, new: &Placement, is_late: bool) -> Option<String> {
    let within = step.spec(new.release).rollout.ready_within;
    let node = &new.node;
    let loops = |report: &InstanceReport| {
        let reason = report.reason.as_ref();
        reason.is_some_and(|reason| reason.code == backoff::CRASH_LOOP)
    };
    match step.report(new) {
        _ if cannot_start(step, new) => Some(format!("node {node} could not start it")),
        Some(report) if loops(report) => Some(format!("it ends again and again on node {node}")),
        _ => is_late.then(|| format!("it was not ready on node {node} within {within}")),
    }
}

/// Starts a move, if there is something to even out and all has been well for long enough. Answers when to look again.
pub(super) fn begin(
    step: &mut Step<'_>,
    rollout: &Rollout,
    active: ReleaseNumber,
    memory: &mut Memory,
) -> Option<Instant> {
    let spec = step.spec(active);
    let uneven = step
        .cluster
        .is_uneven(step.view.id, spec.spread.by, &spec.labels);
    if !uneven || !is_well(step, rollout, active) {
        memory.balance.quiet_since = None;
        return None;
    }
    let now = step.now.instant;
    let squares = squares(&counts(step, spec.spread.by, None));
    let since = *memory.balance.quiet_since.get_or_insert(now);
    let due = memory.balance.due(since, squares, step.view.id);
    if now < due {
        return Some(due);
    }
    let avoid: Vec<NodeName> = memory.avoided.keys().cloned().collect();
    // A node to avoid is better than none: what fails there is tried again ever later.
    if !move_one(step, active, &avoid) && !avoid.is_empty() {
        move_one(step, active, &[]);
    }
    // Whatever came of it, the next one is not looked for at once.
    memory.balance.quiet_since = Some(now);
    Some(memory.balance.due(now, squares, step.view.id))
}

/// All that is wanted serves, and nothing else is there or under way.
fn is_well(step: &Step<'_>, rollout: &Rollout, active: ReleaseNumber) -> bool {
    let serves = |placement: &Placement| {
        let ready =
            |report: &InstanceReport| report.ready && report.state == InstanceState::Running;
        let wanted = placement.wanted == Wanted::Run && placement.purpose == Purpose::Serve;
        let as_it_was = placement.release == active && placement.replaces.is_none();
        wanted && as_it_was && step.report(placement).is_some_and(ready)
    };
    // A release that was judged bad leaves the one before at rest.
    let at_rest = match rollout.phase {
        RolloutPhase::Done => true,
        RolloutPhase::Failed => rollout.from == Some(active),
        RolloutPhase::Rolling | RolloutPhase::Paused => false,
    };
    at_rest
        && step.spec(active).on_partition == OnPartition::Keep
        && step.group.placements.len() == step.view.replicas as usize
        && step.group.placements.iter().all(serves)
}

/// From the most crowded place from where a copy has somewhere better to go. Says whether there was one.
fn move_one(step: &mut Step<'_>, active: ReleaseNumber, avoid: &[NodeName]) -> bool {
    for old in crowded(step, step.spec(active).spread.by) {
        let wish = Wish {
            release: active,
            slot: None,
            purpose: Purpose::Serve,
            ceiling: Ceiling::Watermark,
            avoid,
            instead_of: Some(&old),
        };
        let found = step.find(&wish, &old.instance);
        if found.is_some_and(|node| step.sight(&node) == Sight::Heard) {
            let (instance, _) = step.name(None);
            let placed = step.try_place(&wish, &instance);
            debug_assert!(placed.is_ok(), "it was found a moment ago");
            return true;
        }
    }
    false
}

/// Of each place with several copies the one that should go: from the node with the most of them, the newest. The most crowded place first.
fn crowded(step: &Step<'_>, by: SpreadBy) -> Vec<Placement> {
    let (places, nodes) = (counts(step, by, None), counts(step, SpreadBy::Node, None));
    let mut first: BTreeMap<&Place<'_>, (usize, usize, Epoch, &Placement)> = BTreeMap::new();
    for copy in step.running() {
        let place = place_of(step, by, &copy.node);
        let node = place_of(step, SpreadBy::Node, &copy.node);
        let known = place.and_then(|place| places.get_key_value(&place));
        let Some(((place, count), node)) = known.zip(node) else {
            continue;
        };
        let key = (*count, nodes[&node], copy.epoch, copy);
        let best = first.entry(place).or_insert(key);
        if (key.1, key.2) > (best.1, best.2) {
            *best = key;
        }
    }
    let mut first: Vec<_> = first
        .into_values()
        .filter(|(count, ..)| *count > 1)
        .collect();
    first.sort_by_key(|(count, ..)| Reverse(*count));
    first.into_iter().map(|(.., copy)| copy.clone()).collect()
}

/// One of the places by which a service is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place<'c> {
    Region(&'c RegionName),
    Zone(&'c RegionName, &'c ZoneName),
    Node(&'c NodeName),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(name) => write!(f, "region {name}"),
            Self::Zone(_, name) => write!(f, "zone {name}"),
            Self::Node(name) => write!(f, "node {name}"),
        }
    }
}

fn place_of<'c>(step: &'c Step<'_>, by: SpreadBy, node: &NodeName) -> Option<Place<'c>> {
    let node = step.cluster.node(node)?;
    Some(match by {
        SpreadBy::Region => Place::Region(&node.region),
        SpreadBy::Zone => Place::Zone(&node.region, &node.zone),
        SpreadBy::Node => Place::Node(&node.name),
    })
}

/// How many copies each place has that has any, not counting one.
fn counts<'c>(
    step: &'c Step<'_>,
    by: SpreadBy,
    but: Option<&InstanceName>,
) -> BTreeMap<Place<'c>, usize> {
    let mut counts = BTreeMap::new();
    for copy in step.running().filter(|copy| Some(&copy.instance) != but) {
        if let Some(place) = place_of(step, by, &copy.node) {
            *counts.entry(place).or_default() += 1;
        }
    }
    counts
}

/// What falls with each move.
fn squares(counts: &BTreeMap<Place<'_>, usize>) -> usize {
    counts.values().map(|count| count * count).sum()
}

/// Why a new copy was placed where it is.
pub(super) fn why_here(
    step: &Step<'_>,
    old: &Placement,
    new: &InstanceName,
    placed: &Placed,
) -> Reason {
    let by = step.spec(old.release).spread.by;
    let why = imbalance(step, by, &old.node, new, &placed.node);
    let message = format!("it takes the place of {}: {why}", old.instance);
    Reason::new("balances", message).with_detail(placed.reason.detail.clone())
}

/// `zone a had 2 copies, zone b none`, before `new` came.
fn imbalance(
    step: &Step<'_>,
    by: SpreadBy,
    from: &NodeName,
    new: &InstanceName,
    to: &NodeName,
) -> String {
    let counts = counts(step, by, Some(new));
    let many = |node| {
        let place = place_of(step, by, node)?;
        Some((place, counts.get(&place).copied().unwrap_or(0)))
    };
    match (many(from), many(to)) {
        (Some((from, many)), Some((to, few))) => {
            format!("{from} had {}, {to} {}", copies(many), few_of(few))
        }
        _ => "the copies stood unevenly".to_owned(),
    }
}

fn copies(count: usize) -> String {
    match count {
        1 => "1 copy".to_owned(),
        count => format!("{count} copies"),
    }
}

fn few_of(count: usize) -> String {
    match count {
        0 => "none".to_owned(),
        count => count.to_string(),
    }
}
