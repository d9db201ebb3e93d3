//! Whether copies stand more evenly after one has moved.
//!
//! A place is a region, a zone or a node, whichever the service is spread by. A move is worth it only where it goes to a place with at least two
//! copies fewer: the sum of the squares of all counts falls by it, so that moves come to an end. Of zones it must be in a region that gets no more
//! copies than the other had, since regions come before zones.

use std::collections::BTreeMap;

use model::compute::SpreadBy;
use model::ids::ResourceId;

use super::shelf::ZoneIndex;
use super::{Ceiling, Cluster, Search};

impl Cluster {
    /// Whether some place has at least two copies more than another that takes placements with these labels. A look at counts only, since it is
    /// asked with each step of each service: whether there is room is seen when it comes to it.
    pub fn is_uneven(
        &mut self,
        service: &ResourceId,
        by: SpreadBy,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        let most = self.services.get(service).and_then(|copies| match by {
            SpreadBy::Region => copies.by_region.iter().max(),
            SpreadBy::Zone => copies.by_zone.iter().max(),
            SpreadBy::Node => copies.by_node.values().max(),
        });
        let Some(few) = most.and_then(|most| most.checked_sub(2)) else {
            return false;
        };
        let pool = self.pool(labels, Ceiling::Watermark);
        let (shelves, copies) = (&self.pools[pool].shelves, &self.services[service]);
        let at = |counts: &[u32], index: usize| counts.get(index).copied().unwrap_or(0);
        let mut open = shelves
            .iter()
            .enumerate()
            .filter(|(_, shelf)| !shelf.is_empty());
        open.any(|(zone, shelf)| match by {
            SpreadBy::Region => at(&copies.by_region, self.zones[zone].region) <= few,
            SpreadBy::Zone => at(&copies.by_zone, zone) <= few,
            SpreadBy::Node => shelf
                .with_memory(0)
                .any(|node| copies.by_node.get(&node).is_none_or(|count| *count <= few)),
        })
    }
}

/// All counts here are without the copy that would move.
impl Search<'_> {
    pub(super) fn evens_zone(&self, zone: ZoneIndex) -> bool {
        let Some(from) = self
            .from
            .filter(|_| self.request.spread.by != SpreadBy::Node)
        else {
            return true;
        };
        let from = self.cluster.nodes[from].zone;
        self.copies_by_spread(zone) < self.copies_by_spread(from)
            && self.in_region(zone) <= self.in_region(from)
    }

    /// The same of a node with so many copies.
    pub(super) fn evens_node(&self, copies: u32) -> bool {
        self.from.is_none_or(|from| copies < self.on_node(from))
    }
}
