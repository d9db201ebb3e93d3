//! Who is a node and who is one no more: a node is its key.
//!
//! ```text
//! join (token) ──▶ known, by its key ──renew (signed with the key)──▶ a fresh certificate
//!                    │         ▲
//!      leave, or its │         │ join (a fresh token) with the same key
//!   name is given to │         │
//!        another key ▼         │
//!                  removed: told so, and let in nowhere
//! ```
//!
//! Placements and homes of volumes name a node. When its name goes to another key, they are given a former name ([`NodeName::former`]) in the
//! same transaction, or before it where they are too many: what waits for its volume goes on waiting, and goes back when the key comes back.

use api::problem::Problem;
use boundary::authority;
use jiff::{SignedDuration, Timestamp};
use model::boundary::{KeyFingerprint, Principal, PrincipalName};
use model::compute::PlacementGroup;
use model::control::Reason;
use model::ids::NodeName;

use crate::call::Call;
use crate::draft::Draft;
use crate::records::{Key, RemovedRecord};
use crate::world::{Stored, World};

/// Removed nodes that are remembered. Beyond it the one that was removed first is forgotten: it is unknown then, and not let in either.
pub const REMOVED_MOST: usize = 1024;
/// Two clocks this far apart are told: certificates begin two hours before they are made.
pub const CLOCKS_APART: SignedDuration = SignedDuration::from_secs(60);
/// What stands for the key of a node that joined before keys were kept.
const UNKNOWN_KEY: &str = "unknown";

/// Whether who has shown a certificate with this key still is who it says.
///
/// # Errors
///
/// `node-removed` (410) to a key that was removed, and to a node whose name is another's by now.
pub fn admits(world: &World, principal: &Principal, key: &KeyFingerprint) -> Result<(), Problem> {
    if let Some(removed) = world.removed.get(key) {
        return Err(was_removed(removed));
    }
    let Principal::Node { name } = principal else {
        return Ok(());
    };
    let known = world.nodes.get(name).and_then(|record| record.key.as_ref());
    match known {
        Some(known) if known != key => Err(has_another_key(name)),
        // Of one that is not known the handler says so.
        _ => Ok(()),
    }
}

/// Whether a node may have a certificate for this key.
pub fn may_renew(world: &World, name: &NodeName, key: &KeyFingerprint) -> Result<(), Problem> {
    let principal = Principal::Node { name: name.clone() };
    admits(world, &principal, key)?;
    let record = world.nodes.get(name).ok_or_else(|| is_unknown(name))?;
    match record.key {
        Some(_) => Ok(()),
        // Nobody can say whose it is: the certificate that it has must do, as long as that is good.
        None => Err(has_another_key(name)),
    }
}

/// Whether this is, or was, a node's name.
pub fn is_known(world: &World, name: &NodeName) -> bool {
    let mut removed = world.removed.values();
    world.nodes.contains_key(name) || removed.any(|removed| removed.name == *name)
}

/// Whose key a signing request is for.
pub fn key_of(request: &str) -> Result<KeyFingerprint, Problem> {
    authority::key_of_request(request).map_err(|error| {
        Problem::new(
            422,
            "bad-request",
            format!("the signing request can't be used: {error}"),
        )
    })
}

pub fn is_unknown(name: &NodeName) -> Problem {
    Problem::new(
        410,
        "node-left",
        format!("node {name} is no node of this cluster"),
    )
    .remedy("let it join with a fresh join token")
}

fn was_removed(removed: &RemovedRecord) -> Problem {
    let RemovedRecord { name, at, by } = removed;
    Problem::new(
        410,
        "node-removed",
        format!("node {name} was removed from this cluster at {at} by {by}"),
    )
    .remedy("it runs nothing any more; to let it in again with its volumes, start it with a fresh join token for its name")
}

fn has_another_key(name: &NodeName) -> Problem {
    Problem::new(
        410,
        "node-left",
        format!("node {name} of this cluster has another key than this machine"),
    )
    .remedy(
        "this is no node of this cluster; let it join under another name, with a fresh join token",
    )
}

/// Whether who asked still is who it says: for what was read, or waited for, since it was let in.
///
/// # Errors
///
/// As [`admits`], and to a node that is none any more.
pub fn still_admits(world: &World, call: &Call) -> Result<(), Problem> {
    if let Some(key) = call.key() {
        admits(world, &call.principal, key)?;
    }
    match &call.principal {
        Principal::Node { name } if !world.nodes.contains_key(name) => Err(is_unknown(name)),
        _ => Ok(()),
    }
}

/// Who comes by a name.
pub struct Comer<'c> {
    pub name: &'c NodeName,
    pub key: &'c KeyFingerprint,
    /// It has shown a certificate of this cluster, ended or not, for the name and its key: it was the node when keys were not yet kept.
    pub was_it: bool,
}

/// Gives a name to a key: what names an earlier holder of the name is renamed, and what waits for this key comes back to it. Answers the
/// drafts that do the renaming, beside what the draft itself does of it.
pub fn take_name(
    world: &World,
    draft: &mut Draft,
    comer: &Comer<'_>,
    now: Timestamp,
) -> Vec<Draft> {
    let Comer { name, key, was_it } = comer;
    let mut renaming = Renaming::default();
    let before = holder(world, name).filter(|before| before.as_ref() != Some(*key));
    // Whose key was not kept is who shows that it was the node.
    if let Some(before) = before.filter(|before| before.is_some() || !was_it) {
        let text = before.as_ref().map_or(UNKNOWN_KEY, |key| key.0.as_str());
        renaming.0.push(((*name).clone(), name.former(text)));
        if let Some(before) = before {
            let by = PrincipalName(format!(
                "node:{name}, another machine that joined as {name}"
            ));
            forget_key(world, draft, &before, name, by, now);
        }
    }
    renaming.0.push((name.former(&key.0), (*name).clone()));
    if *was_it {
        renaming.0.push((name.former(UNKNOWN_KEY), (*name).clone()));
    }
    if let Some(removed) = world.removed.get(*key) {
        draft.delete(Key::Removed((*key).clone()), removed);
    }
    renaming.drafts(world)
}

/// Whose the name is, or was last. `Some(None)`: somebody's whose key was not kept.
fn holder(world: &World, name: &NodeName) -> Option<Option<KeyFingerprint>> {
    if let Some(record) = world.nodes.get(name) {
        return Some(record.key.clone());
    }
    let removed = world.removed.iter();
    let of_name = removed.filter(|(_, removed)| removed.name == *name);
    let last = of_name.max_by_key(|(_, removed)| removed.at);
    match last {
        Some((key, _)) => Some(Some(key.clone())),
        // Removed before keys were kept, or so long ago that it was forgotten.
        None => Some(None),
    }
}

/// From now on the key is refused.
pub fn forget_key(
    world: &World,
    draft: &mut Draft,
    key: &KeyFingerprint,
    name: &NodeName,
    by: PrincipalName,
    now: Timestamp,
) {
    let record = RemovedRecord {
        name: name.clone(),
        at: now,
        by,
    };
    draft.put_anyway(Key::Removed(key.clone()), &record);
    if world.removed.len() >= REMOVED_MOST {
        let first = world.removed.iter().min_by_key(|(_, removed)| removed.at);
        if let Some((first, removed)) = first {
            draft.delete(Key::Removed(first.clone()), removed);
        }
    }
}

/// From which name to which.
#[derive(Default)]
struct Renaming(Vec<(NodeName, NodeName)>);

impl Renaming {
    /// One for each record that names somebody who is renamed.
    fn drafts(&self, world: &World) -> Vec<Draft> {
        let mut drafts = Vec::new();
        for (id, entry) in &world.services {
            if let Some(group) = &entry.placements
                && let Some(renamed) = self.group(group)
            {
                let mut draft = Draft::new();
                draft.put(Key::Placement(id.clone()), Some(group), &renamed);
                drafts.push(draft);
            }
            if let Some(forget) = &entry.forget {
                let mut renamed = forget.value.clone();
                if self.all(&mut renamed.nodes) {
                    let mut draft = Draft::new();
                    draft.put(Key::Forget(id.clone()), Some(forget), &renamed);
                    drafts.push(draft);
                }
            }
        }
        drafts
    }

    fn group(&self, group: &Stored<PlacementGroup>) -> Option<PlacementGroup> {
        let mut renamed = group.value.clone();
        let homes = self.all(renamed.homes.values_mut());
        let mut left: Vec<_> = std::mem::take(&mut renamed.left).into_iter().collect();
        let homes = self.all(&mut left) || homes;
        renamed.left = left.into_iter().collect();
        let placements = renamed.placements.iter_mut();
        let placements = self.all(placements.map(|placement| &mut placement.node));
        (homes || placements).then_some(renamed)
    }

    /// Whether it changed any.
    fn all<'n>(&self, names: impl IntoIterator<Item = &'n mut NodeName>) -> bool {
        let mut changed = false;
        for name in names {
            if let Some((_, to)) = self.0.iter().find(|(from, _)| from == name) {
                *name = to.clone();
                changed = true;
            }
        }
        changed
    }
}

/// What is said of a node whose clock is not ours. `None`: they agree, or nearly.
pub fn clocks(name: &NodeName, node: Timestamp, server: Timestamp) -> Option<Reason> {
    let apart = node.duration_since(server);
    if apart.abs() < CLOCKS_APART {
        return None;
    }
    let way = if apart.is_negative() {
        "behind"
    } else {
        "ahead of"
    };
    let message = format!(
        "the clock of node {name} is {:#} {way} the server's: it says {node:.0}, the server's says {server:.0}; set the one that is wrong",
        SignedDuration::from_secs(apart.abs().as_secs())
    );
    Some(Reason::new("clocks-differ", message))
}

#[cfg(test)]
mod tests;
