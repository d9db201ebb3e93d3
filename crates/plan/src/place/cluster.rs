//! The index that makes the cost of a placement independent of the number of nodes: for each set of required labels and each ceiling a
//! [`Pool`] holds the nodes of each zone ordered by what is free on them, so that the fullest node with room is found by binary search, and
//! *how many had too little* is a position. A refusal, which is rare, looks at every node once to say why.

use std::collections::{BTreeMap, HashMap};

use model::compute::PlacementGroup;
use model::control::{Capacity, NodeRecord, NodeRole, Reason, Standing};
use model::ids::{InstanceName, NodeName, RegionName, ReleaseNumber, ResourceId, ZoneName};
use model::units::{Bytes, MilliCpu};

use super::shelf::{self, NodeIndex, Pool, ZoneIndex};
use super::{Ceiling, WATERMARK_PERCENT, reason};

/// The nodes, what is used of them, and where the copies of each service are.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Grows only, so that an index stays what it is; a node that is gone is no candidate.
    pub(super) nodes: Vec<Node>,
    pub(super) node_index: HashMap<NodeName, NodeIndex>,
    pub(super) zones: Vec<Zone>,
    zone_index: HashMap<(RegionName, ZoneName), ZoneIndex>,
    regions: Vec<RegionName>,
    pub(super) pools: Vec<Pool>,
    pub(super) services: HashMap<ResourceId, Copies>,
    pub(super) lost_workers: usize,
    pub(super) cordoned_workers: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) record: NodeRecord,
    pub(super) zone: ZoneIndex,
    used: Capacity,
    pub(super) gone: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Zone {
    pub(super) name: ZoneName,
    pub(super) region: usize,
    /// Memory of its candidates, and what is used of it: among zones with equally few copies the emptier is taken.
    pub(super) memory: u128,
    pub(super) used: u128,
}

/// Where one service's instances are.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies {
    instances: HashMap<InstanceName, (NodeIndex, Capacity)>,
    pub(super) by_region: Vec<u32>,
    pub(super) by_zone: Vec<u32>,
    pub(super) by_node: shelf::Counts,
}

impl Cluster {
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a NodeRecord>) -> Self {
        let mut cluster = Self::default();
        for record in nodes {
            cluster.set_node(record);
        }
        cluster
    }

    /// A node came, or its record changed. What is used of it stays.
    pub fn set_node(&mut self, record: &NodeRecord) {
        let zone = self.zone_of_record(record);
        match self.node_index.get(&record.name) {
            Some(&index) if self.nodes[index].record == *record && !self.nodes[index].gone => {}
            Some(&index) => self.change_node(index, |node| {
                node.record = record.clone();
                node.zone = zone;
                node.gone = false;
            }),
            None => {
                let index = self.nodes.len();
                self.node_index.insert(record.name.clone(), index);
                let used = Capacity::default();
                self.nodes.push(Node {
                    record: record.clone(),
                    zone,
                    used,
                    gone: false,
                });
                self.enter_pools(index);
            }
        }
    }

    pub fn remove_node(&mut self, name: &NodeName) {
        if let Some(&index) = self.node_index.get(name) {
            self.change_node(index, |node| node.gone = true);
        }
    }

    /// Makes the copies of `service` those of `group`: after a start, and after a decision that could not be stored.
    pub fn set_group(
        &mut self,
        service: &ResourceId,
        group: &PlacementGroup,
        size: impl Fn(ReleaseNumber) -> Capacity,
    ) {
        let known: Vec<_> = self.services.get(service).map_or_else(Vec::new, |copies| {
            copies
                .instances
                .iter()
                .map(|(name, (node, _))| (name.clone(), *node))
                .collect()
        });
        let stays = |name: &InstanceName, node: NodeIndex| {
            let node = &self.nodes[node].record.name;
            group
                .placements
                .iter()
                .any(|placed| placed.instance == *name && placed.node == *node)
        };
        let gone: Vec<_> = known
            .into_iter()
            .filter(|(name, node)| !stays(name, *node))
            .collect();
        for (name, _) in gone {
            self.remove(service, &name);
        }
        for placed in &group.placements {
            self.add(
                service,
                &placed.instance,
                &placed.node,
                size(placed.release),
            );
        }
    }

    /// An instance is on a node. Told twice, it counts once; a node nobody knows has no room to lose.
    pub fn add(
        &mut self,
        service: &ResourceId,
        instance: &InstanceName,
        node: &NodeName,
        size: Capacity,
    ) {
        let Some(&node) = self.node_index.get(node) else {
            return;
        };
        let known = self
            .services
            .get(service)
            .is_some_and(|copies| copies.instances.contains_key(instance));
        if !known {
            self.take(service, instance, node, size);
        }
    }

    /// An instance left its node.
    pub fn remove(&mut self, service: &ResourceId, instance: &InstanceName) {
        let Some(copies) = self.services.get_mut(service) else {
            return;
        };
        let Some((node, size)) = copies.instances.remove(instance) else {
            return;
        };
        let zone = self.nodes[node].zone;
        copies.count(node, zone, self.zones[zone].region, -1);
        if copies.instances.is_empty() {
            self.services.remove(service);
        }
        let used = self.nodes[node].used;
        self.set_used(node, minus(used, size));
    }

    pub fn used(&self, node: &NodeName) -> Capacity {
        self.node_index
            .get(node)
            .map_or_else(Capacity::default, |&index| self.nodes[index].used)
    }

    pub fn node(&self, name: &NodeName) -> Option<&NodeRecord> {
        let node = &self.nodes[*self.node_index.get(name)?];
        (!node.gone).then_some(&node.record)
    }

    /// Why what has its volume on a node that is not there can't run.
    pub fn without_home(&self, home: &NodeName) -> Reason {
        match self.node(home) {
            Some(_) => reason::volume_on_lost_node(home),
            None => reason::volume_on_removed_node(home),
        }
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes
            .iter()
            .filter(|node| !node.gone)
            .map(|node| &node.record)
    }

    /// The nodes that take placements of what asks for these labels.
    pub fn candidates<'c>(
        &'c self,
        labels: &'c BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'c NodeRecord> {
        let nodes = self.nodes.iter().filter(|node| node.is_candidate());
        nodes
            .map(|node| &node.record)
            .filter(|record| shelf::carries(record, labels))
    }

    /// Whether a node has that much left below the watermark.
    pub fn has_room(&self, name: &NodeName, size: Capacity) -> bool {
        let free = self
            .node_index
            .get(name)
            .map(|&index| self.nodes[index].free(Ceiling::Watermark));
        free.is_some_and(|free| free.memory >= size.memory && free.cpu >= size.cpu)
    }

    /// A worker is lost, by decision: what is placed now may stand in for what it ran.
    pub fn has_lost_workers(&self) -> bool {
        self.lost_workers > 0
    }

    /// The most copies of a service in one zone with candidates, less the fewest; `None` without copies.
    pub fn skew(&self, service: &ResourceId) -> Option<u32> {
        let copies = self.services.get(service)?;
        let zones = (0..self.zones.len()).filter(|zone| self.zones[*zone].memory > 0);
        let counts: Vec<_> = zones
            .map(|zone| copies.by_zone.get(zone).copied().unwrap_or(0))
            .collect();
        Some(counts.iter().max()? - counts.iter().min()?)
    }

    fn zone_of_record(&mut self, record: &NodeRecord) -> ZoneIndex {
        let key = (record.region.clone(), record.zone.clone());
        if let Some(&zone) = self.zone_index.get(&key) {
            return zone;
        }
        let region = self.regions.iter().position(|name| *name == record.region);
        let region = region.unwrap_or_else(|| {
            self.regions.push(record.region.clone());
            self.regions.len() - 1
        });
        let zone = self.zones.len();
        self.zones.push(Zone {
            name: record.zone.clone(),
            region,
            memory: 0,
            used: 0,
        });
        self.zone_index.insert(key, zone);
        zone
    }

    /// Takes a node out of every index, changes it, puts it back; its instances are counted where it stands now.
    fn change_node(&mut self, index: NodeIndex, change: impl FnOnce(&mut Node)) {
        self.leave_pools(index);
        let before = self.nodes[index].zone;
        change(&mut self.nodes[index]);
        let after = self.nodes[index].zone;
        self.enter_pools(index);
        if before == after {
            return;
        }
        for copies in self.services.values_mut() {
            let here = copies.by_node.get(&index).copied().unwrap_or(0);
            for _ in 0..here {
                copies.count(index, before, self.zones[before].region, -1);
                copies.count(index, after, self.zones[after].region, 1);
            }
        }
    }

    /// Counts the node, and offers it where it is a candidate.
    fn enter_pools(&mut self, index: NodeIndex) {
        let node = &self.nodes[index];
        self.lost_workers += usize::from(node.is_lost_worker());
        self.cordoned_workers += usize::from(node.is_cordoned());
        if !node.is_candidate() {
            return;
        }
        let zone = &mut self.zones[node.zone];
        zone.memory += u128::from(node.record.capacity.memory.0);
        zone.used += u128::from(node.used.memory.0);
        for pool in &mut self.pools {
            match pool.lacks(&node.record) {
                None => pool.insert(index, node.zone, node.free(pool.ceiling)),
                Some(label) => pool.lacking[label] += 1,
            }
        }
    }

    fn leave_pools(&mut self, index: NodeIndex) {
        let node = &self.nodes[index];
        self.lost_workers -= usize::from(node.is_lost_worker());
        self.cordoned_workers -= usize::from(node.is_cordoned());
        if !node.is_candidate() {
            return;
        }
        let zone = &mut self.zones[node.zone];
        zone.memory -= u128::from(node.record.capacity.memory.0);
        zone.used -= u128::from(node.used.memory.0);
        for pool in &mut self.pools {
            match pool.lacks(&node.record) {
                None => pool.remove(index, node.zone, node.free(pool.ceiling)),
                Some(label) => pool.lacking[label] -= 1,
            }
        }
    }

    pub(super) fn take(
        &mut self,
        service: &ResourceId,
        instance: &InstanceName,
        node: NodeIndex,
        size: Capacity,
    ) {
        let zone = self.nodes[node].zone;
        let region = self.zones[zone].region;
        let copies = match self.services.get_mut(service) {
            Some(copies) => copies,
            None => self.services.entry(service.clone()).or_default(),
        };
        copies.instances.insert(instance.clone(), (node, size));
        copies.count(node, zone, region, 1);
        let used = self.nodes[node].used;
        self.set_used(node, plus(used, size));
    }

    fn set_used(&mut self, index: NodeIndex, used: Capacity) {
        let node = &mut self.nodes[index];
        let before = std::mem::replace(&mut node.used, used);
        if !node.is_candidate() {
            return;
        }
        let zone = &mut self.zones[node.zone];
        zone.used = zone.used + u128::from(used.memory.0) - u128::from(before.memory.0);
        for pool in self
            .pools
            .iter_mut()
            .filter(|pool| pool.admits(&node.record))
        {
            let old = free(node.record.capacity, before, pool.ceiling);
            let new = free(node.record.capacity, used, pool.ceiling);
            pool.reposition(index, node.zone, old, new);
        }
    }

    /// The pool of these labels and this ceiling, made when first asked for: there are as many as the services' distinct labels, twice.
    pub(super) fn pool(&mut self, labels: &BTreeMap<String, String>, ceiling: Ceiling) -> usize {
        let known = self
            .pools
            .iter()
            .position(|pool| pool.ceiling == ceiling && pool.labels == *labels);
        known.unwrap_or_else(|| {
            let mut pool = Pool::new(labels.clone(), ceiling);
            let nodes = self.nodes.iter().enumerate();
            for (index, node) in nodes.filter(|(_, node)| node.is_candidate()) {
                match pool.lacks(&node.record) {
                    None => pool.insert(index, node.zone, node.free(ceiling)),
                    Some(label) => pool.lacking[label] += 1,
                }
            }
            self.pools.push(pool);
            self.pools.len() - 1
        })
    }
}

impl Node {
    pub(super) fn stands(&self) -> bool {
        !self.gone
            && self.record.role == NodeRole::Worker
            && self.record.standing == Standing::Present
    }

    fn is_lost_worker(&self) -> bool {
        let lost = self.record.role == NodeRole::Worker && self.record.standing == Standing::Lost;
        lost && !self.gone
    }

    fn is_cordoned(&self) -> bool {
        self.stands() && self.record.cordoned
    }

    pub(super) fn is_candidate(&self) -> bool {
        self.stands() && !self.record.cordoned
    }

    pub(super) fn free(&self, ceiling: Ceiling) -> Capacity {
        free(self.record.capacity, self.used, ceiling)
    }

    /// Where so many copies on it are about to go.
    pub(super) fn free_for(&self, ceiling: Ceiling, going: usize) -> Capacity {
        let free = self.free(ceiling);
        let Ceiling::Surge { freed } = ceiling else {
            return free;
        };
        let going = u64::try_from(going).unwrap_or(u64::MAX);
        let used = self.used.cpu.saturating_sub(freed.saturating_mul(going));
        Capacity {
            cpu: MilliCpu(below_watermark(self.record.capacity.cpu.0, used.0)),
            ..free
        }
    }
}

/// What may still be taken of a node. Nothing, rather than less than nothing, where it holds more than the ceiling.
pub(super) fn free(capacity: Capacity, used: Capacity, ceiling: Ceiling) -> Capacity {
    match ceiling {
        Ceiling::Watermark => Capacity {
            cpu: MilliCpu(below_watermark(capacity.cpu.0, used.cpu.0)),
            memory: Bytes(below_watermark(capacity.memory.0, used.memory.0)),
        },
        Ceiling::Full | Ceiling::Surge { .. } => Capacity {
            cpu: capacity.cpu,
            memory: capacity.memory.saturating_sub(used.memory),
        },
    }
}

fn below_watermark(whole: u64, used: u64) -> u64 {
    let most = u128::from(whole) * u128::from(WATERMARK_PERCENT) / 100;
    u64::try_from(most).unwrap_or(u64::MAX).saturating_sub(used)
}

fn plus(used: Capacity, size: Capacity) -> Capacity {
    Capacity {
        cpu: used.cpu.saturating_add(size.cpu),
        memory: used.memory.saturating_add(size.memory),
    }
}

fn minus(used: Capacity, size: Capacity) -> Capacity {
    Capacity {
        cpu: used.cpu.saturating_sub(size.cpu),
        memory: used.memory.saturating_sub(size.memory),
    }
}

impl Copies {
    fn count(&mut self, node: NodeIndex, zone: ZoneIndex, region: usize, by: i32) {
        add_at(&mut self.by_zone, zone, by);
        add_at(&mut self.by_region, region, by);
        let here = self.by_node.entry(node).or_insert(0);
        *here = here.saturating_add_signed(by);
        if *here == 0 {
            self.by_node.remove(&node);
        }
    }
}

fn add_at(counts: &mut Vec<u32>, index: usize, by: i32) {
    if counts.len() <= index {
        counts.resize(index + 1, 0);
    }
    counts[index] = counts[index].saturating_add_signed(by);
}
