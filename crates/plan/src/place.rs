//! Which node an instance goes to, and why.
//!
//! Filter: the node stands, is a worker, is not cordoned, carries the labels, and has room under the watermark; where a volume has its home, it is
//! that node, cordoned or not. Score: fewest copies of the service by region, then by zone, then by node; among equals the fullest node.
//!
//! [`Cluster`] is the index that is searched.

mod cluster;
mod even;
mod lacking;
mod reason;
mod shelf;

use std::collections::BTreeMap;

use model::compute::{Service, Spread, SpreadBy};
use model::control::{Capacity, Reason};
use model::ids::{InstanceName, NodeName, ResourceId};
use model::units::MilliCpu;

pub use cluster::Cluster;
use cluster::{Copies, Node};
pub use lacking::{LACKS, lacks};
pub use reason::FORGETTING;
use shelf::{NodeIndex, Pool, ZoneIndex};

/// Of what a node has, in hundredths, what is given out while nothing is lost.
pub const WATERMARK_PERCENT: u64 = 80;

/// How full a node may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceiling {
    /// [`WATERMARK_PERCENT`] of memory and CPU.
    Watermark,
    /// All memory; CPU, being a weight, is given out more than once, but to no copy that asks for more than the whole node has. For what replaces a
    /// loss, and for the one copy too many of a rolling change.
    Full,
    /// All memory; CPU as far as it is below the watermark once the copies of [`Request::going`] on the node are gone, each of which frees this
    /// much. For the one copy too many of a rolling change that asks for more than the copies it replaces.
    Surge { freed: MilliCpu },
}

impl Ceiling {
    /// As the index knows it: what a surge frees is a matter of the service.
    fn indexed(self) -> Self {
        match self {
            Self::Watermark => Self::Watermark,
            Self::Full | Self::Surge { .. } => Self::Full,
        }
    }
}

/// What an instance asks of its node.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub service: &'a ResourceId,
    pub instance: &'a InstanceName,
    pub size: Capacity,
    pub labels: &'a BTreeMap<String, String>,
    pub spread: Spread,
    /// Where its volumes are: there or nowhere.
    pub home: Option<&'a NodeName>,
    pub ceiling: Ceiling,
    /// Nodes where it could not be started a moment ago.
    pub avoid: &'a [NodeName],
    /// Nodes that it may not be placed on, and why.
    pub barred: &'a [(NodeName, Reason)],
    /// The nodes of copies that are about to go, one entry for each: they take room still, and don't count for the spread.
    pub going: &'a [NodeName],
    /// The node of a copy whose place it takes, for which it must find a better one: see [`even`].
    pub instead_of: Option<&'a NodeName>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub node: NodeName,
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    pub reason: Reason,
}

/// What one instance of `service` takes.
pub fn size_of(service: &Service) -> Capacity {
    Capacity {
        cpu: service.cpu,
        memory: service.memory,
    }
}

fn holds(free: Capacity, size: Capacity) -> bool {
    free.memory >= size.memory && free.cpu >= size.cpu
}

/// Why the home of a slot's volumes could not run a copy of this size in place of one of that size; `None`: it could, or is not there.
pub fn refusal_in_place(
    cluster: &Cluster,
    home: &NodeName,
    size: Capacity,
    before: Capacity,
) -> Option<Reason> {
    let index = cluster.node_index.get(home)?;
    let node = &cluster.nodes[*index];
    let mut free = node.free(Ceiling::Full);
    free.memory = free.memory.saturating_add(before.memory);
    (node.stands() && !holds(free, size)).then(|| reason::home_is_full(home, size, free))
}

/// Chooses the node and takes the room.
pub fn place(cluster: &mut Cluster, request: &Request<'_>) -> Result<Placed, Refused> {
    let (node, reason) = match request.home {
        Some(home) => cluster.at_home(home, request)?,
        None => cluster.choose(request)?,
    };
    let name = cluster.nodes[node].record.name.clone();
    cluster.take(request.service, request.instance, node, request.size);
    Ok(Placed { node: name, reason })
}

/// The node that [`place`] would choose, where no home says it; nothing is taken, and a refusal costs no search for its reasons.
pub fn find(cluster: &mut Cluster, request: &Request<'_>) -> Option<NodeName> {
    let pool = cluster.pool(request.labels, request.ceiling.indexed());
    let node = Search::new(cluster, pool, request).best()?;
    Some(cluster.nodes[node].record.name.clone())
}

impl Cluster {
    /// The node where the volumes are, or why not. It is not weighed against others, so it may be filled to the full.
    fn at_home(
        &self,
        home: &NodeName,
        request: &Request<'_>,
    ) -> Result<(NodeIndex, Reason), Refused> {
        let refused = |reason| Err(Refused { reason });
        let standing = self
            .node_index
            .get(home)
            .filter(|index| self.nodes[**index].stands());
        let Some(&index) = standing else {
            return refused(self.without_home(home));
        };
        let node = &self.nodes[index];
        let free = node.free(Ceiling::Full);
        if !holds(free, request.size) {
            return refused(reason::home_is_full(home, request.size, free));
        }
        Ok((index, reason::at_home(home, node.record.cordoned)))
    }

    fn choose(&mut self, request: &Request<'_>) -> Result<(NodeIndex, Reason), Refused> {
        let pool = self.pool(request.labels, request.ceiling.indexed());
        let search = Search::new(self, pool, request);
        match search.best() {
            Some(node) => Ok((node, search.reason(node))),
            None => Err(Refused {
                reason: search.refusal(),
            }),
        }
    }
}

/// One search for one node: only reads.
struct Search<'a> {
    cluster: &'a Cluster,
    pool: &'a Pool,
    copies: Option<&'a Copies>,
    going: Vec<NodeIndex>,
    /// Where the copy is whose place it takes; one of `going`.
    from: Option<NodeIndex>,
    request: &'a Request<'a>,
}

impl<'a> Search<'a> {
    fn new(cluster: &'a Cluster, pool: usize, request: &'a Request<'a>) -> Self {
        let index = |node: &NodeName| cluster.node_index.get(node).copied();
        let from = request.instead_of.and_then(index);
        let going = request.going.iter().filter_map(index).chain(from);
        Self {
            cluster,
            pool: &cluster.pools[pool],
            copies: cluster.services.get(request.service),
            going: going.collect(),
            from,
            request,
        }
    }

    fn best(&self) -> Option<NodeIndex> {
        match self.request.spread.by {
            SpreadBy::Node => self.best_by_node(),
            SpreadBy::Region | SpreadBy::Zone => self.best_by_zone(),
        }
    }

    /// Zone after zone, the one with the fewest copies first, until one has a node with room.
    fn best_by_zone(&self) -> Option<NodeIndex> {
        let mut tried = vec![false; self.pool.shelves.len()];
        let bound = self.spread_bound();
        loop {
            let zones =
                (0..tried.len()).filter(|zone| !tried[*zone] && self.may_take(*zone, bound));
            let zone = zones.min_by(|a, b| self.compare_zones(*a, *b))?;
            if let Some((node, _)) = self.best_in(zone) {
                return Some(node);
            }
            tried[zone] = true;
        }
    }

    /// The node with the fewest copies anywhere; among those, the one in the better zone.
    fn best_by_node(&self) -> Option<NodeIndex> {
        let zones = (0..self.pool.shelves.len()).filter(|zone| self.may_take(*zone, None));
        let found = zones.filter_map(|zone| {
            self.best_in(zone)
                .map(|(node, copies)| (copies, zone, node))
        });
        let best = found.min_by(|a, b| a.0.cmp(&b.0).then_with(|| self.compare_zones(a.1, b.1)))?;
        let broken = self.request.spread.require && best.0 > self.fewest_on_a_node();
        (!broken && self.evens_node(best.0)).then_some(best.2)
    }

    fn may_take(&self, zone: ZoneIndex, bound: Option<u32>) -> bool {
        let shelf = &self.pool.shelves[zone];
        let within = bound.is_none_or(|bound| self.copies_by_spread(zone) <= bound);
        let has_room = shelf.most_memory() >= Some(self.request.size.memory.0);
        within && has_room && self.evens_zone(zone)
    }

    /// With `require`: the most copies that a zone (or region) may have to be given one more, which is the fewest of any that could hold one.
    fn spread_bound(&self) -> Option<u32> {
        if !self.request.spread.require {
            return None;
        }
        let zones =
            (0..self.pool.shelves.len()).filter(|zone| !self.pool.shelves[*zone].is_empty());
        zones.map(|zone| self.copies_by_spread(zone)).min()
    }

    fn copies_by_spread(&self, zone: ZoneIndex) -> u32 {
        match self.request.spread.by {
            SpreadBy::Region => self.in_region(zone),
            SpreadBy::Zone | SpreadBy::Node => self.in_zone(zone),
        }
    }

    fn compare_zones(&self, a: ZoneIndex, b: ZoneIndex) -> std::cmp::Ordering {
        let key = |zone| (self.in_region(zone), self.in_zone(zone));
        let fullness = |zone: ZoneIndex, other: ZoneIndex| {
            let (zone, other) = (&self.cluster.zones[zone], &self.cluster.zones[other]);
            zone.used.saturating_mul(other.memory)
        };
        key(a)
            .cmp(&key(b))
            .then_with(|| fullness(a, b).cmp(&fullness(b, a)))
    }

    /// In one zone: the node with the fewest copies; among those the fullest with room. With it, its copies.
    fn best_in(&self, zone: ZoneIndex) -> Option<(NodeIndex, u32)> {
        let counted = self.in_zone(zone) > 0;
        let mut best: Option<(NodeIndex, u32)> = None;
        for node in self.pool.shelves[zone].with_memory(self.request.size.memory.0) {
            let copies = if counted { self.on_node(node) } else { 0 };
            let better = best.is_none_or(|(_, fewest)| copies < fewest);
            if better && self.has_cpu(node) && !self.avoids(node) {
                best = Some((node, copies));
                if copies == 0 {
                    break;
                }
            }
        }
        best
    }

    fn has_cpu(&self, node: NodeIndex) -> bool {
        self.free(node).cpu >= self.request.size.cpu
    }

    /// What of the node may be taken by this request.
    fn free(&self, node: NodeIndex) -> Capacity {
        let going = self.going.iter().filter(|going| **going == node).count();
        self.cluster.nodes[node].free_for(self.request.ceiling, going)
    }

    fn avoids(&self, node: NodeIndex) -> bool {
        let name = &self.cluster.nodes[node].record.name;
        self.request.avoid.contains(name) || self.barred(node).is_some()
    }

    fn barred(&self, node: NodeIndex) -> Option<&'a Reason> {
        let name = &self.cluster.nodes[node].record.name;
        let mut barred = self.request.barred.iter();
        barred
            .find(|(barred, _)| barred == name)
            .map(|(_, why)| why)
    }

    fn in_zone(&self, zone: ZoneIndex) -> u32 {
        let all = self
            .copies
            .and_then(|copies| copies.by_zone.get(zone).copied())
            .unwrap_or(0);
        all.saturating_sub(self.going(|node| node.zone == zone))
    }

    fn in_region(&self, zone: ZoneIndex) -> u32 {
        let region = self.cluster.zones[zone].region;
        let all = self
            .copies
            .and_then(|copies| copies.by_region.get(region).copied())
            .unwrap_or(0);
        all.saturating_sub(self.going(|node| self.cluster.zones[node.zone].region == region))
    }

    fn on_node(&self, node: NodeIndex) -> u32 {
        let all = self
            .copies
            .and_then(|copies| copies.by_node.get(&node).copied())
            .unwrap_or(0);
        let going = self.going.iter().filter(|going| **going == node).count();
        all.saturating_sub(u32::try_from(going).unwrap_or(u32::MAX))
    }

    fn going(&self, of: impl Fn(&Node) -> bool) -> u32 {
        let going = self
            .going
            .iter()
            .filter(|node| of(&self.cluster.nodes[**node]))
            .count();
        u32::try_from(going).unwrap_or(u32::MAX)
    }

    fn fewest_on_a_node(&self) -> u32 {
        let nodes = self
            .pool
            .shelves
            .iter()
            .flat_map(|shelf| shelf.with_memory(0));
        let mut fewest = u32::MAX;
        for node in nodes {
            fewest = fewest.min(self.on_node(node));
            if fewest == 0 {
                break;
            }
        }
        fewest
    }
}

#[cfg(test)]
mod tests;
