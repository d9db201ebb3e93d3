//! Nodes, as they are heard and as they are filled.

use std::collections::BTreeMap;

use api::wire::{NodeState, NodeView};
use model::control::{Capacity, NodeRecord, Standing};
use model::ids::NodeName;
use model::timing::SILENT_AFTER;
use plan::Now;

use crate::desired::Seen;
use crate::state::Shared;
use crate::world::World;

/// `nodes`.
pub fn nodes(shared: &Shared, now: Now) -> Vec<NodeView> {
    let used = used(&shared.world);
    shared
        .world
        .nodes
        .values()
        .map(|record| {
            node(
                shared,
                record,
                used.get(&record.name).copied().unwrap_or_default(),
                now,
            )
        })
        .collect()
}

pub fn node_of(shared: &Shared, name: &NodeName, now: Now) -> Option<NodeView> {
    nodes(shared, now)
        .into_iter()
        .find(|view| view.name == *name)
}

fn node(shared: &Shared, record: &NodeRecord, used: Capacity, now: Now) -> NodeView {
    let observed = shared.observed.nodes.get(&record.name);
    let silence = observed.map(|node| now.instant.since(node.heard));
    let state = match (record.standing, silence) {
        (Standing::Lost, _) => NodeState::Lost,
        (Standing::Present, None) => NodeState::Unknown,
        (Standing::Present, Some(silence)) if silence < SILENT_AFTER => NodeState::Ready,
        (Standing::Present, Some(_)) => NodeState::Silent,
    };
    NodeView {
        name: record.name.clone(),
        region: record.region.clone(),
        zone: record.zone.clone(),
        role: record.role,
        state,
        pid: observed.map(|node| node.pid),
        address: observed.and_then(|node| node.mesh),
        capacity: record.capacity,
        used,
        cordoned: record.cordoned,
        reason: record.reason.clone(),
        heard_ms_ago: silence.map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)),
        version: observed.map(|node| node.version.clone()),
        disk: observed.and_then(|node| node.disk),
        programs: record.programs.clone(),
        trouble: observed.and_then(|node| node.unkept.clone()),
    }
}

/// What is given out on each node.
fn used(world: &World) -> BTreeMap<NodeName, Capacity> {
    let mut used: BTreeMap<NodeName, Capacity> = BTreeMap::new();
    for entry in world.services.values() {
        let seen = Seen::of(entry);
        for placement in &seen.group.placements {
            let Some(spec) = seen.releases.get(&placement.release) else {
                continue;
            };
            let there = used.entry(placement.node.clone()).or_default();
            there.cpu = there.cpu.saturating_add(spec.cpu);
            there.memory = there.memory.saturating_add(spec.memory);
        }
    }
    used
}
