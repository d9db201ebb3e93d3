//! Whether the survivors of a zone could carry all.
//!
//! Asked by trying: the zone's nodes are lost in a copy of the cluster, and what ran there is placed anew by the same rules that a real loss
//! would follow. So the answer knows about labels, required spread and memory that is free but in pieces.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{PlacementGroup, Service, Wanted};
use model::control::{NodeRecord, NodeRole, Reason, Standing};
use model::ids::{ReleaseNumber, ResourceId, ZoneName};

use crate::place::{self, Ceiling, Cluster, Request};

/// A service with its placements.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    pub id: &'a ResourceId,
    pub group: &'a PlacementGroup,
    pub releases: &'a BTreeMap<ReleaseNumber, &'a Service>,
}

/// For each zone whose loss the others could not make good, one reason. Copies with volumes are not counted: they wait for their node.
pub fn shortfalls(cluster: &Cluster, loads: &[Load<'_>]) -> Vec<Reason> {
    let stands =
        |node: &&NodeRecord| node.role == NodeRole::Worker && node.standing == Standing::Present;
    let zones: BTreeSet<_> = cluster
        .nodes()
        .filter(stands)
        .map(|node| (node.region.clone(), node.zone.clone()))
        .collect();
    if zones.len() < 2 {
        return Vec::new();
    }
    let in_zone =
        |node: &NodeRecord, zone: &(_, ZoneName)| (&node.region, &node.zone) == (&zone.0, &zone.1);
    zones
        .iter()
        .filter_map(|zone| without(cluster, loads, &zone.1, &|node| in_zone(node, zone)))
        .collect()
}

fn without(
    cluster: &Cluster,
    loads: &[Load<'_>],
    zone: &ZoneName,
    is_lost: &dyn Fn(&NodeRecord) -> bool,
) -> Option<Reason> {
    let mut rest = cluster.clone();
    for node in cluster.nodes().filter(|node| is_lost(node)) {
        rest.set_node(&NodeRecord {
            standing: Standing::Lost,
            ..node.clone()
        });
    }
    let lost = |node| cluster.node(node).is_some_and(is_lost);
    let (mut displaced, mut homeless) = (0_usize, Vec::new());
    for load in loads {
        for placement in load
            .group
            .placements
            .iter()
            .filter(|placement| lost(&placement.node))
        {
            let Some(spec) = load.releases.get(&placement.release) else {
                continue;
            };
            if placement.slot.is_some() || placement.wanted == Wanted::Leave {
                continue;
            }
            displaced += 1;
            rest.remove(load.id, &placement.instance);
            let request = Request {
                service: load.id,
                instance: &placement.instance,
                size: place::size_of(spec),
                labels: &spec.labels,
                spread: spec.spread,
                home: None,
                ceiling: Ceiling::Full,
                avoid: &[],
                going: &[],
            };
            if let Err(refused) = place::place(&mut rest, &request) {
                homeless.push(format!("{}: {}", placement.instance, refused.reason));
            }
        }
    }
    if homeless.is_empty() {
        return None;
    }
    let message = format!(
        "without zone {zone}, {} of its {displaced} copies would have no place",
        homeless.len()
    );
    Some(Reason::new("zone-not-covered", message).with_detail(homeless))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{id, service, three_zones};
    use model::compute::{Placement, Role};
    use model::ids::{Epoch, InstanceName};
    use model::units::Bytes;

    /// `copies` of `web`, each of that many Mi, placed as ever; the zones that the rest could not stand in for.
    fn check(copies: u32, mebibytes: u64) -> Vec<String> {
        let mut spec = service(copies);
        spec.memory = Bytes::mebibytes(mebibytes);
        let mut cluster = Cluster::new(&three_zones());
        let mut group = PlacementGroup::default();
        for n in 0..copies {
            let instance = InstanceName::new(format!("web-{n}")).unwrap();
            let request = Request {
                service: &id("web"),
                instance: &instance,
                size: place::size_of(&spec),
                labels: &spec.labels,
                spread: spec.spread,
                home: None,
                ceiling: Ceiling::Watermark,
                avoid: &[],
                going: &[],
            };
            let placed = place::place(&mut cluster, &request).unwrap();
            group.placements.push(Placement {
                instance,
                release: ReleaseNumber(1),
                node: placed.node,
                slot: None,
                role: Role::Member,
                epoch: Epoch(1),
                wanted: Wanted::Run,
                reason: placed.reason,
                at: jiff::Timestamp::UNIX_EPOCH,
            });
        }
        let (id, releases) = (id("web"), BTreeMap::from([(ReleaseNumber(1), &spec)]));
        let loads = [Load {
            id: &id,
            group: &group,
            releases: &releases,
        }];
        shortfalls(&cluster, &loads)
            .into_iter()
            .map(|reason| reason.message)
            .collect()
    }

    #[test]
    fn the_survivors_of_a_zone_are_asked_to_carry_all() {
        assert_eq!(
            check(6, 300),
            [""; 0],
            "two each, and the rest has room for one more each"
        );
        assert_eq!(
            check(6, 400),
            ["a", "b", "c"]
                .map(|zone| format!("without zone {zone}, 2 of its 2 copies would have no place"))
        );
        assert_eq!(check(3, 600).len(), 3);
    }
}
