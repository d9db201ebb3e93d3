//! What must hold of every plan: a list of invariants over the world, and over a step from one world to the next.
//!
//! The checker shares no code with what decides, so that a mistake there is not made twice. It runs in the tests of [`crate::service`], in the
//! simulator at every step, and in the server behind a debug assertion.

mod violation;

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{OnPartition, Placement, PlacementGroup, Purpose, Service, SpreadBy, Wanted};
use model::control::{NodeRecord, NodeRole, Standing};
use model::ids::{InstanceName, NodeName, ReleaseNumber, ResourceId};
use model::units::Bytes;

pub use violation::Violation;

/// One service's plan.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    pub id: &'a ResourceId,
    pub group: &'a PlacementGroup,
    pub releases: &'a BTreeMap<ReleaseNumber, &'a Service>,
}

/// The nodes by name.
pub type Nodes = BTreeMap<NodeName, NodeRecord>;

/// All that is wrong with these plans.
pub fn check(nodes: &Nodes, plans: &[Plan<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for plan in plans {
        names_and_epochs(plan, &mut violations);
        slots(plan, &mut violations);
        prepared_once(plan, &mut violations);
        moves(plan, &mut violations);
        for placement in &plan.group.placements {
            whereabouts(nodes, plan, placement, &mut violations);
        }
        for pending in plan
            .group
            .pending
            .iter()
            .filter(|pending| pending.reason.message.is_empty())
        {
            violations.push(Violation::PendingWithoutReason {
                service: plan.id.clone(),
                instance: pending.instance.clone(),
            });
        }
    }
    memory(nodes, plans, &mut violations);
    violations
}

fn names_and_epochs(plan: &Plan<'_>, violations: &mut Vec<Violation>) {
    let service = || plan.id.clone();
    let (mut names, mut epochs) = (BTreeSet::new(), BTreeMap::new());
    for placement in &plan.group.placements {
        let instance = placement.instance.clone();
        if !names.insert(&placement.instance) {
            violations.push(Violation::SameInstance {
                service: service(),
                instance: instance.clone(),
            });
        } else if let Some(first) = epochs.insert(placement.epoch, &placement.instance) {
            violations.push(Violation::SameEpoch {
                service: service(),
                first: first.clone(),
                second: instance.clone(),
            });
        }
        if placement.epoch >= plan.group.next_epoch {
            let (epoch, next) = (placement.epoch, plan.group.next_epoch);
            violations.push(Violation::EpochNotBelowNext {
                service: service(),
                instance: instance.clone(),
                epoch,
                next,
            });
        }
        if !plan.releases.contains_key(&placement.release) {
            violations.push(Violation::UnknownRelease {
                service: service(),
                instance: instance.clone(),
                release: placement.release,
            });
        }
    }
    let pending = plan.group.pending.iter().map(|pending| &pending.instance);
    for instance in names.into_iter().chain(pending) {
        if number(instance).is_none_or(|number| number >= plan.group.next_instance) {
            let next = plan.group.next_instance;
            violations.push(Violation::NumberNotBelowNext {
                service: service(),
                instance: instance.clone(),
                next,
            });
        }
    }
}

fn number(instance: &InstanceName) -> Option<u64> {
    instance.as_str().rsplit_once('-')?.1.parse().ok()
}

/// A node may not have ended one that was told to leave: until it says so there is no other.
fn prepared_once(plan: &Plan<'_>, violations: &mut Vec<Violation>) {
    let placements = plan.group.placements.iter();
    let mut preparing = placements.filter(|placement| placement.purpose == Purpose::BeforeDeploy);
    if let (Some(first), Some(second)) = (preparing.next(), preparing.next()) {
        violations.push(Violation::PreparedTwice {
            service: plan.id.clone(),
            first: first.instance.clone(),
            second: second.instance.clone(),
        });
    }
}

/// A copy takes the place of another one while both run, and one of a service at a time.
fn moves(plan: &Plan<'_>, violations: &mut Vec<Violation>) {
    let service = || plan.id.clone();
    let is_running = |copy: &Placement| {
        copy.wanted == Wanted::Run && copy.purpose == Purpose::Serve && copy.slot.is_none()
    };
    let mut first: Option<&InstanceName> = None;
    for new in &plan.group.placements {
        let Some(replaced) = &new.replaces else {
            continue;
        };
        let mut others = plan.group.placements.iter();
        let old = others.find(|old| old.instance == *replaced && old.instance != new.instance);
        if !is_running(new) || !old.is_some_and(is_running) {
            violations.push(Violation::ReplacesNobody {
                service: service(),
                instance: new.instance.clone(),
                replaced: replaced.clone(),
            });
        }
        if let Some(first) = first.replace(&new.instance) {
            violations.push(Violation::TwoMoves {
                service: service(),
                first: first.clone(),
                second: new.instance.clone(),
            });
        }
    }
}

fn slots(plan: &Plan<'_>, violations: &mut Vec<Violation>) {
    let service = || plan.id.clone();
    let mut holders: BTreeMap<u32, &InstanceName> = BTreeMap::new();
    for placement in &plan.group.placements {
        let instance = placement.instance.clone();
        let has_volumes = plan
            .releases
            .get(&placement.release)
            .is_some_and(|spec| !spec.volumes.is_empty());
        let Some(slot) = placement.slot else {
            if has_volumes && placement.purpose == Purpose::Serve {
                violations.push(Violation::NoSlot {
                    service: service(),
                    instance,
                });
            }
            continue;
        };
        if let Some(first) = holders.insert(slot, &placement.instance) {
            violations.push(Violation::SlotHeldTwice {
                service: service(),
                slot,
                first: first.clone(),
                second: instance.clone(),
            });
        }
        let home = plan.group.homes.get(&slot);
        if let Some(home) = home.filter(|home| **home != placement.node) {
            violations.push(Violation::AwayFromHome {
                service: service(),
                instance,
                node: placement.node.clone(),
                home: home.clone(),
            });
        }
    }
}

/// What should run has a node to run on; only an instance with a volume waits on a lost one.
fn whereabouts(
    nodes: &Nodes,
    plan: &Plan<'_>,
    placement: &Placement,
    violations: &mut Vec<Violation>,
) {
    let why = match nodes.get(&placement.node) {
        None => "is no node of the cluster",
        Some(node) if node.role == NodeRole::Edge => "is an edge",
        Some(node) if node.standing == Standing::Lost && placement.slot.is_none() => "is lost",
        Some(_) => return,
    };
    if placement.wanted == Wanted::Run {
        violations.push(Violation::NowhereToRun {
            service: plan.id.clone(),
            instance: placement.instance.clone(),
            node: placement.node.clone(),
            why,
        });
    }
}

fn memory(nodes: &Nodes, plans: &[Plan<'_>], violations: &mut Vec<Violation>) {
    let mut used: BTreeMap<&NodeName, u64> = BTreeMap::new();
    for plan in plans {
        for placement in &plan.group.placements {
            let size = plan
                .releases
                .get(&placement.release)
                .map_or(0, |spec| spec.memory.0);
            *used.entry(&placement.node).or_default() += size;
        }
    }
    for (name, used) in used {
        let Some(node) = nodes.get(name) else {
            continue;
        };
        if used > node.capacity.memory.0 {
            violations.push(Violation::OverMemory {
                node: name.clone(),
                used: Bytes(used),
                has: node.capacity.memory,
            });
        }
    }
}

/// All that is wrong with a step of one service from `before` to `after`.
pub fn check_step(nodes: &Nodes, before: &PlacementGroup, after: &Plan<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    only_growing(before, after, &mut violations);
    for placement in &after.group.placements {
        match before
            .placements
            .iter()
            .find(|old| old.instance == placement.instance)
        {
            Some(old) => same_copy(after, old, placement, &mut violations),
            None => new_copy(nodes, before, after, placement, &mut violations),
        }
    }
    violations
}

fn only_growing(before: &PlacementGroup, after: &Plan<'_>, violations: &mut Vec<Violation>) {
    let service = || after.id.clone();
    if after.group.next_epoch < before.next_epoch {
        violations.push(Violation::WentBack {
            service: service(),
            what: "epoch",
        });
    }
    if after.group.next_instance < before.next_instance {
        violations.push(Violation::WentBack {
            service: service(),
            what: "instance",
        });
    }
    for (slot, home) in &before.homes {
        if after.group.homes.get(slot) != Some(home) {
            violations.push(Violation::HomeForgotten {
                service: service(),
                slot: *slot,
            });
        }
    }
}

fn same_copy(after: &Plan<'_>, old: &Placement, new: &Placement, violations: &mut Vec<Violation>) {
    let (service, instance) = (after.id.clone(), new.instance.clone());
    let key = |placement: &Placement| {
        (
            placement.node.clone(),
            placement.epoch,
            placement.slot,
            placement.release,
        )
    };
    if key(old) != key(new) {
        violations.push(Violation::Moved { service, instance });
    } else if old.wanted == Wanted::Leave && new.wanted == Wanted::Run {
        violations.push(Violation::CalledBack { service, instance });
    }
}

fn new_copy(
    nodes: &Nodes,
    before: &PlacementGroup,
    after: &Plan<'_>,
    new: &Placement,
    violations: &mut Vec<Violation>,
) {
    let (service, instance) = (after.id.clone(), new.instance.clone());
    let Some(spec) = after.releases.get(&new.release) else {
        return;
    };
    if new.epoch < before.next_epoch {
        violations.push(Violation::WentBack {
            service: service.clone(),
            what: "epoch",
        });
    }
    violations.extend(over_cpu(nodes, after, new, spec));
    let holder = before
        .placements
        .iter()
        .find(|old| new.slot.is_some() && old.slot == new.slot);
    if let Some((slot, first)) = new.slot.zip(holder)
        && spec.on_partition == OnPartition::Stop
        && after
            .group
            .placements
            .iter()
            .any(|placement| placement.instance == first.instance)
    {
        let (first, second) = (first.instance.clone(), instance.clone());
        violations.push(Violation::SlotNotVacated {
            service: service.clone(),
            slot,
            first,
            second,
        });
    }
    let had_home = new
        .slot
        .is_some_and(|slot| before.homes.contains_key(&slot));
    let cordoned = nodes.get(&new.node).is_some_and(|node| node.cordoned);
    if cordoned && !had_home {
        violations.push(Violation::PlacedOnCordoned {
            service: service.clone(),
            instance: instance.clone(),
            node: new.node.clone(),
        });
    }
    let is_copy = new.purpose == Purpose::Serve;
    if is_copy && spec.spread.require && !had_home && breaks_spread(nodes, after, spec, new) {
        violations.push(Violation::SpreadBroken { service, instance });
    }
}

/// CPU is given out more than once, but not to a copy that asks for more than the whole node has.
fn over_cpu(nodes: &Nodes, after: &Plan<'_>, new: &Placement, spec: &Service) -> Option<Violation> {
    let node = nodes.get(&new.node)?;
    (node.capacity.cpu < spec.cpu).then(|| Violation::OverCpu {
        service: after.id.clone(),
        instance: new.instance.clone(),
        node: new.node.clone(),
    })
}

/// The new copy's place has, without it, more copies than some other place that could hold one.
fn breaks_spread(nodes: &Nodes, after: &Plan<'_>, spec: &Service, new: &Placement) -> bool {
    let place = |node: &NodeRecord| match spec.spread.by {
        SpreadBy::Region => (node.region.to_string(), String::new(), String::new()),
        SpreadBy::Zone => (
            node.region.to_string(),
            node.zone.to_string(),
            String::new(),
        ),
        SpreadBy::Node => (
            node.region.to_string(),
            node.zone.to_string(),
            node.name.to_string(),
        ),
    };
    let can_hold = |node: &&NodeRecord| {
        let labelled = spec
            .labels
            .iter()
            .all(|(name, value)| node.labels.get(name) == Some(value));
        node.role == NodeRole::Worker
            && node.standing == Standing::Present
            && !node.cordoned
            && labelled
    };
    let mut counts: BTreeMap<_, usize> = nodes
        .values()
        .filter(can_hold)
        .map(|node| (place(node), 0))
        .collect();
    // Copies placed by the same step after this one are no fault of this one's; what leaves, or is rolled over, is about to be gone.
    let counts_for_it = |other: &&Placement| {
        other.epoch < new.epoch && other.release == new.release && other.wanted == Wanted::Run
    };
    for placement in after.group.placements.iter().filter(counts_for_it) {
        if let Some(count) = nodes
            .get(&placement.node)
            .and_then(|node| counts.get_mut(&place(node)))
        {
            *count += 1;
        }
    }
    let here = nodes
        .get(&new.node)
        .and_then(|node| counts.get(&place(node)));
    here.is_some_and(|here| counts.values().any(|count| count < here))
}

#[cfg(test)]
mod tests;
