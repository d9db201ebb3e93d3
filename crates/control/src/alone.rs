//! A node runs once: of a directory and its copy the one that was heard last is the node, also to a server that has just begun.
//!
//! ```text
//!  where it was heard last, or it does not say where it runs   ──▶ heard
//!  another place is heard                                      ──▶ `node-twice`
//!  nobody is heard yet, and it ran elsewhere when it was last
//!    · there, and its machine is ours and was started anew     ──▶ heard
//!    · elsewhere, or on a machine that is not ours             ──▶ `node-awaited`, until that one can't be heard any more
//! ```
//!
//! Of another machine nobody can say that it was started anew: its disk may have been copied, and the first one may run. Of ours the kernel says so.

use api::problem::Problem;
use model::control::{Place, fingerprint};
use model::ids::NodeName;
use model::timing::LOST_AFTER;

use crate::state::Shared;

/// Whether the node may be heard from this place. Who is only to wait is not lost meanwhile.
///
/// `boot`: the start of the machine that this server runs on, as in [`Place::boot`]; `None`: it can't be told.
pub fn check(
    shared: &mut Shared,
    name: &NodeName,
    place: Option<Place>,
    boot: Option<u64>,
    now: plan::Now,
) -> Result<(), Problem> {
    let Some(place) = place else {
        return Ok(());
    };
    is_heard_nowhere_else(shared, name, place, now)?;
    if is_awaited_elsewhere(shared, name, place, boot, now) {
        shared.nodes.knocks(name);
        return Err(awaited(name));
    }
    Ok(())
}

/// As in [`Place::boot`]. `None`: it can't be told.
pub fn our_boot() -> Option<u64> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(fingerprint(boot.trim().as_bytes()))
}

/// Of a directory and its copy the one that runs is heard, and the other is refused.
fn is_heard_nowhere_else(
    shared: &Shared,
    name: &NodeName,
    place: Place,
    now: plan::Now,
) -> Result<(), Problem> {
    let heard = shared.observed.nodes.get(name);
    let elsewhere = heard.filter(|node| {
        let silence = now.instant.since(node.heard);
        node.place.is_some_and(|known| place.is_elsewhere(&known)) && silence < LOST_AFTER
    });
    match elsewhere {
        None => Ok(()),
        Some(node) => Err(Problem::conflict(
            "node-twice",
            format!(
                "node {name} runs already (agent pid {}), and this is another machine or a copy of its directory",
                node.pid
            ),
        )
        .remedy("a node runs once: end the other first, or give this machine a directory of its own and let it join under another name")),
    }
}

/// Whether this server has not heard the node yet, and it may be about to speak from the place where it last ran, whoever of the two is quicker to
/// find a server that has just begun.
fn is_awaited_elsewhere(
    shared: &Shared,
    name: &NodeName,
    place: Place,
    boot: Option<u64>,
    now: plan::Now,
) -> bool {
    let known = shared.world.nodes.get(name).and_then(|node| node.place);
    let is_unheard = !shared.observed.nodes.contains_key(name);
    let elsewhere = known.is_some_and(|known| {
        let is_our_machine = boot == Some(place.boot);
        place.is_elsewhere(&known) && !(is_our_machine && place.is_after_restart_of(&known))
    });
    elsewhere && is_unheard && shared.nodes.is_awaited(name, now)
}

fn awaited(name: &NodeName) -> Problem {
    let title = format!(
        "node {name} ran elsewhere when it was last heard: another machine, a copy of this directory, or this one before its restart"
    );
    let remedy = format!(
        "it is heard from here once this server has waited {:.1} s for that one",
        LOST_AFTER.as_secs_f64()
    );
    Problem::unavailable("node-awaited", title).remedy(remedy)
}
