//! The times that promises rest on, each once, and what must hold between them.
//!
//! ```text
//! node:    sent ──────────────── 2.5 s SIGTERM ── 3.25 s SIGKILL ── 3.5 s empty
//! server:    heard ────── 2 s not relied on ──────────────────────── 3.5 s lost: a replacement may start
//! ```
//!
//! A heartbeat is heard after it was sent, so what the node counts from its sending has ended when the server, counting from its
//! arrival, decides. Whoever changes one of these times and breaks an inequality gets no build.

use std::time::Duration;

/// Between two heartbeats of a node.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// For one heartbeat: connecting, sending, and the head of its answer. What takes longer is given up and said anew.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(1_200);
/// The first pause after a heartbeat that was not answered; the longest is [`HEARTBEAT_EVERY`].
pub const HEARTBEAT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// From when the last answered heartbeat was *sent*: instances that must stop in a partition get SIGTERM.
pub const TERMINATE_AFTER: Duration = Duration::from_millis(2_500);
/// From the same moment: SIGKILL, early enough for the cgroup to be empty by [`EMPTY_AFTER`].
pub const KILL_AFTER: Duration = Duration::from_millis(3_250);
/// From the same moment: nothing of them is left.
pub const EMPTY_AFTER: Duration = Duration::from_millis(3_500);
/// For the kernel to end what was killed: between [`KILL_AFTER`] and [`EMPTY_AFTER`].
pub const ENDS_WITHIN: Duration = Duration::from_millis(250);

/// Without a heartbeat for this long, what a node last said is not relied on. Two heartbeats in a row.
pub const SILENT_AFTER: Duration = Duration::from_secs(2);
/// Without a heartbeat for this long, a node is lost, and replacements of what ran there may start.
pub const LOST_AFTER: Duration = Duration::from_millis(3_500);
/// Who speaks for a node that a leader has not heard yet has this much more than [`LOST_AFTER`] to be heard: it may have been told to wait for as long
/// as that, and then begins.
pub const AT_THE_DOOR: Duration = Duration::from_millis(3_500);
/// An agent that is told to wait at its start asks again after this.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Losses this close together are "at once".
pub const AT_ONCE: Duration = Duration::from_secs(5);
/// Between two steps of a leader that is well.
pub const TICK_EVERY: Duration = Duration::from_millis(400);
/// More than this between two steps is a stall, which is added to every deadline.
pub const STALL_FROM: Duration = Duration::from_secs(1);
/// An agent that starts gives the servers this long to say what changed before it starts anything that it knows from its disk.
pub const SERVERS_CHANCE: Duration = Duration::from_millis(500);

/// For a connection between two proxies: TCP and TLS.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that requests wait on is pinged this often.
pub const PEER_PING_EVERY: Duration = Duration::from_millis(250);
/// A ping unanswered for this long: the peer is unreachable. Two intervals.
pub const PEER_SILENCE: Duration = Duration::from_millis(500);
/// Long-lived bytes can't be repeated elsewhere: a peer that stalls for a moment must not cost them.
pub const TUNNEL_PING_EVERY: Duration = Duration::from_millis(1_500);
pub const TUNNEL_SILENCE: Duration = Duration::from_secs(2);

// Never twice: what must stop is gone before its replacement may start.
const _: () = assert!(is_at_most(TERMINATE_AFTER, KILL_AFTER));
const _: () = assert!(is_at_most(plus(KILL_AFTER, ENDS_WITHIN), EMPTY_AFTER));
const _: () = assert!(is_at_most(EMPTY_AFTER, LOST_AFTER));
// One heartbeat that is given up ends no lease: the next one is sent before, and has time for an answer.
const _: () = assert!(is_less(
    plus(
        plus(HEARTBEAT_EVERY, HEARTBEAT_TIMEOUT),
        HEARTBEAT_AGAIN_AFTER
    ),
    TERMINATE_AFTER
));
// A heartbeat that comes late by less than an interval makes nobody silent, and silence comes before loss.
const _: () = assert!(is_at_most(twice(HEARTBEAT_EVERY), SILENT_AFTER));
const _: () = assert!(is_less(SILENT_AFTER, LOST_AFTER));
// Who was told to wait asks, or speaks, once more before it could be lost for that, though one heartbeat is given up.
const _: () = assert!(is_less(
    plus(plus(HEARTBEAT_EVERY, HEARTBEAT_TIMEOUT), ASK_AGAIN_AFTER),
    AT_THE_DOOR
));
// Nodes that vanish together are decided lost together, though their last heartbeats were an interval apart.
const _: () = assert!(is_at_most(plus(LOST_AFTER, HEARTBEAT_EVERY), AT_ONCE));
// A leader that is well is never taken for one that stalled, and a stall is noticed before it could cost a node.
const _: () = assert!(is_less(twice(TICK_EVERY), STALL_FROM));
const _: () = assert!(is_less(STALL_FROM, LOST_AFTER));
// Traffic leaves a peer that does not answer before its node is decided lost, at the latest then.
const _: () = assert!(is_at_most(twice(PEER_PING_EVERY), PEER_SILENCE));
const _: () = assert!(is_less(plus(PEER_PING_EVERY, PEER_SILENCE), SILENT_AFTER));
const _: () = assert!(is_at_most(
    plus(TUNNEL_PING_EVERY, TUNNEL_SILENCE),
    LOST_AFTER
));
const _: () = assert!(is_less(PEER_CONNECT_TIMEOUT, SILENT_AFTER));
// An agent that waits for the servers still starts what it knows long before it would be replaced.
const _: () = assert!(is_less(SERVERS_CHANCE, SILENT_AFTER));

const fn is_less(one: Duration, other: Duration) -> bool {
    one.as_nanos() < other.as_nanos()
}

const fn is_at_most(one: Duration, other: Duration) -> bool {
    one.as_nanos() <= other.as_nanos()
}

const fn plus(one: Duration, other: Duration) -> Duration {
    one.checked_add(other).expect("a few seconds")
}

const fn twice(one: Duration) -> Duration {
    plus(one, one)
}
