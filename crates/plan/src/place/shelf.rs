//! Nodes ordered by what is free on them.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use model::control::{Capacity, NodeRecord};

use super::Ceiling;

pub(super) type NodeIndex = usize;
pub(super) type ZoneIndex = usize;

/// Copies on each node that has any.
pub(super) type Counts = HashMap<NodeIndex, u32, BuildHasherDefault<IndexHasher>>;

/// The candidates that carry `labels`, a shelf for each zone.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) ceiling: Ceiling,
    pub(super) shelves: Vec<Shelf>,
    /// Nodes that would be candidates, by the first label, in the order of `labels`, that they don't carry.
    pub(super) lacking: Vec<usize>,
}

impl Pool {
    pub(super) fn new(labels: BTreeMap<String, String>, ceiling: Ceiling) -> Self {
        Self {
            lacking: vec![0; labels.len()],
            labels,
            ceiling,
            shelves: Vec::new(),
        }
    }

    pub(super) fn admits(&self, node: &NodeRecord) -> bool {
        carries(node, &self.labels)
    }

    /// The place in `labels` of the first that the node does not carry.
    pub(super) fn lacks(&self, node: &NodeRecord) -> Option<usize> {
        self.labels
            .iter()
            .position(|label| !carries_one(node, label))
    }

    pub(super) fn insert(&mut self, node: NodeIndex, zone: ZoneIndex, free: Capacity) {
        if self.shelves.len() <= zone {
            self.shelves.resize(zone + 1, Shelf::default());
        }
        insert(&mut self.shelves[zone].by_memory, (free.memory.0, node));
        insert(&mut self.shelves[zone].by_cpu, (free.cpu.0, node));
    }

    pub(super) fn remove(&mut self, node: NodeIndex, zone: ZoneIndex, free: Capacity) {
        remove(&mut self.shelves[zone].by_memory, (free.memory.0, node));
        remove(&mut self.shelves[zone].by_cpu, (free.cpu.0, node));
    }

    pub(super) fn reposition(
        &mut self,
        node: NodeIndex,
        zone: ZoneIndex,
        old: Capacity,
        new: Capacity,
    ) {
        let shelf = &mut self.shelves[zone];
        reposition(
            &mut shelf.by_memory,
            (old.memory.0, node),
            (new.memory.0, node),
        );
        if old.cpu != new.cpu {
            reposition(&mut shelf.by_cpu, (old.cpu.0, node), (new.cpu.0, node));
        }
    }
}

pub(super) fn carries(node: &NodeRecord, labels: &BTreeMap<String, String>) -> bool {
    labels.iter().all(|label| carries_one(node, label))
}

pub(super) fn carries_one(node: &NodeRecord, (name, value): (&String, &String)) -> bool {
    node.labels.get(name) == Some(value)
}

/// The nodes of one zone, least free first. A change moves a node past its neighbours only, which in a sorted array of a zone's size
/// is cheaper than any tree.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelf {
    by_memory: Vec<(u64, NodeIndex)>,
    by_cpu: Vec<(u64, NodeIndex)>,
}

impl Shelf {
    pub(super) fn is_empty(&self) -> bool {
        self.by_memory.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_memory.len()
    }

    pub(super) fn most_memory(&self) -> Option<u64> {
        self.by_memory.last().map(|entry| entry.0)
    }

    /// Those with at least this much memory, the fullest first.
    pub(super) fn with_memory(&self, bytes: u64) -> impl Iterator<Item = NodeIndex> {
        self.by_memory[below(&self.by_memory, bytes)..]
            .iter()
            .map(|entry| entry.1)
    }

    pub(super) fn with_less_memory(&self, bytes: u64) -> usize {
        below(&self.by_memory, bytes)
    }

    pub(super) fn with_less_cpu(&self, millis: u64) -> usize {
        below(&self.by_cpu, millis)
    }
}

/// How many have less than `needed`.
fn below(entries: &[(u64, NodeIndex)], needed: u64) -> usize {
    match entries.first() {
        Some(first) if first.0 < needed => entries.partition_point(|entry| entry.0 < needed),
        _ => 0,
    }
}

fn insert(entries: &mut Vec<(u64, NodeIndex)>, entry: (u64, NodeIndex)) {
    let at = entries.partition_point(|other| *other < entry);
    entries.insert(at, entry);
}

fn remove(entries: &mut Vec<(u64, NodeIndex)>, entry: (u64, NodeIndex)) {
    if let Ok(at) = entries.binary_search(&entry) {
        entries.remove(at);
    }
}

fn reposition(entries: &mut [(u64, NodeIndex)], old: (u64, NodeIndex), new: (u64, NodeIndex)) {
    let Ok(from) = entries.binary_search(&old) else {
        return;
    };
    let to = entries.partition_point(|other| *other < new);
    let lands = if to <= from {
        entries[to..=from].rotate_right(1);
        to
    } else {
        entries[from..to].rotate_left(1);
        to - 1
    };
    entries[lands] = new;
}

/// Node indices are small, dense and our own, so one multiplication spreads them well enough (Fibonacci hashing, Knuth, TAOCP 3, 6.4).
#[derive(Debug, Clone, Default)]
pub(super) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, index: usize) {
        self.0 = (self.0.rotate_left(5) ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
