//! Whether the survivors of a zone could carry all, and whether copies stand more uneven than they must.
//!
//! Asked by trying: the zone's nodes are lost in a copy of the cluster, and what ran there is placed anew by the same rules that a real loss
//! would follow. So the answer knows about labels, required spread and memory that is free but in pieces.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{OnPartition, PlacementGroup, Service, SpreadBy, Wanted};
use model::control::{NodeRecord, NodeRole, Reason, Standing};
use model::ids::{NodeName, RegionName, ReleaseNumber, ResourceId, ResourceName, ZoneName};

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
            // One that is to take another's place is none too many.
            let counts = placement.wanted == Wanted::Run && placement.replaces.is_none();
            if placement.slot.is_some() || !counts {
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
                barred: &[],
                going: &[],
                instead_of: None,
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

/// Copies that one zone may have more than another before it is worth a word.
const UNEVEN_FROM: u32 = 2;

/// A hint, where a zone has [`UNEVEN_FROM`] copies more than another of its region that has room for one more. `ready_on` has the node of
/// each ready copy. What may run beside itself is moved by [`crate::service`]; the rest is a person's choice. Copies with volumes are where their data is, and copies spread by node or region owe nothing to zones.
pub fn uneven(
    cluster: &Cluster,
    name: &ResourceName,
    spec: &Service,
    ready_on: &[&NodeName],
) -> Option<Reason> {
    if !spec.volumes.is_empty() || spec.spread.by != SpreadBy::Zone {
        return None;
    }
    let mut zones: BTreeMap<(&RegionName, &ZoneName), Zone> = BTreeMap::new();
    for node in cluster.candidates(&spec.labels) {
        let zone = zones.entry((&node.region, &node.zone)).or_default();
        zone.has_room |= cluster.has_room(&node.name, place::size_of(spec));
    }
    for node in ready_on.iter().filter_map(|node| cluster.node(node)) {
        if let Some(zone) = zones.get_mut(&(&node.region, &node.zone)) {
            zone.copies += 1;
        }
    }
    let gap = |many: &Zone, few: &Zone| many.copies.saturating_sub(few.copies);
    let pairs = zones.iter().flat_map(|(at, many)| {
        let others = zones.iter();
        let open = others.filter(move |(other, few)| other.0 == at.0 && few.has_room);
        open.map(move |(other, few)| (at.1, many, other.1, few))
    });
    let (most, many, least, few) = pairs
        .filter(|(_, many, _, few)| gap(many, few) >= UNEVEN_FROM)
        .max_by_key(|(_, many, _, few)| gap(many, few))?;
    let then = match spec.on_partition {
        OnPartition::Keep => {
            format!("one moves to zone {least} once all has been quiet for a while")
        }
        OnPartition::Stop => format!("`mainland restart {name}` spreads them anew"),
    };
    let (many, few) = (copies(many.copies), few.copies);
    let message = format!("{many} in zone {most}, {few} in zone {least}: {then}");
    Some(Reason::new("uneven-spread", message))
}

fn copies(count: u32) -> String {
    match count {
        1 => "1 copy".to_owned(),
        many => format!("{many} copies"),
    }
}

/// A zone with nodes that the service may be placed on.
#[derive(Default)]
struct Zone {
    copies: u32,
    has_room: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{id, node, node_name, service, three_zones, with_volume};
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
                barred: &[],
                going: &[],
                instead_of: None,
            };
            let placed = place::place(&mut cluster, &request).unwrap();
            group.placements.push(Placement {
                instance,
                release: ReleaseNumber(1),
                node: placed.node,
                slot: None,
                role: Role::Member,
                purpose: model::compute::Purpose::Serve,
                epoch: Epoch(1),
                wanted: Wanted::Run,
                replaces: None,
                reason: placed.reason,
                at: jiff::Timestamp::UNIX_EPOCH,
                placed_at: None,
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
    /// What is said of copies on these nodes; of `a`, `b`, `c` each stands in the zone of its name, `far` in one of another region.
    fn hint(change: impl Fn(&mut Service, &mut Vec<NodeRecord>), ready_on: &[&str]) -> String {
        let mut spec = service(4);
        let mut nodes: Vec<_> = ["a", "b", "c"].map(|name| node(name, name)).into();
        nodes.push(NodeRecord {
            region: RegionName::new("far").unwrap(),
            ..node("far", "far")
        });
        change(&mut spec, &mut nodes);
        let cluster = Cluster::new(&nodes);
        let ready_on: Vec<_> = ready_on.iter().map(|name| node_name(name)).collect();
        let found = uneven(
            &cluster,
            &id("web").name,
            &spec,
            &ready_on.iter().collect::<Vec<_>>(),
        );
        found.map_or(String::new(), |reason| reason.message)
    }

    #[test]
    fn copies_that_stand_more_uneven_than_they_must_are_told() {
        type Change = fn(&mut Service, &mut Vec<NodeRecord>);
        let as_it_is: Change = |_, _| {};
        let moves = "2 copies in zone a, 0 in zone b: one moves to zone b once all has been quiet for a while";
        let told = "2 copies in zone a, 0 in zone b: `mainland restart web` spreads them anew";
        let table: [(Change, &[&str], &str); 11] = [
            (as_it_is, &["a", "a", "c", "far"], moves),
            (
                |spec, _| spec.on_partition = OnPartition::Stop,
                &["a", "a", "c", "far"],
                told,
            ),
            (as_it_is, &["a", "b", "c"], ""),
            (as_it_is, &["a", "a", "b", "c"], ""),
            (as_it_is, &["far", "far", "far"], ""),
            (|_, nodes| nodes[1].cordoned = true, &["a", "a", "c"], ""),
            (
                |_, nodes| nodes[1].standing = Standing::Lost,
                &["a", "a", "c"],
                "",
            ),
            (
                |spec, nodes| {
                    spec.labels.insert("gpu".to_owned(), "yes".to_owned());
                    nodes[0].labels = spec.labels.clone();
                },
                &["a", "a"],
                "",
            ),
            (
                |spec, nodes| {
                    spec.memory = Bytes::mebibytes(200);
                    nodes[1].capacity.memory = Bytes::mebibytes(240);
                },
                &["a", "a", "c"],
                "",
            ),
            (
                |spec, _| spec.spread.by = SpreadBy::Node,
                &["a", "a", "c"],
                "",
            ),
            (
                |spec, _| *spec = with_volume(spec.clone()),
                &["a", "a", "c"],
                "",
            ),
        ];
        for (n, (change, ready_on, expected)) in table.into_iter().enumerate() {
            assert_eq!(hint(change, ready_on), expected, "{n}: {ready_on:?}");
        }
    }
}
