//! What works and is probably not meant: rings of needs, single points, a zone that the others could not carry.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{PlacementGroup, Service, environment_name, ports};
use model::control::{Capacity, Reason};
use model::ids::{InstanceName, NodeName, ReleaseNumber, ResourceId, ResourceName};
use plan::place::{self, Ceiling, Cluster, Request};

use super::Planner;
use super::validate::lost_ports;
use crate::world::World;

pub(super) fn collect(planner: &mut Planner<'_>) {
    let services = services_after(planner);
    // What was so before has been said before.
    let known = of_shape(&services_before(planner));
    let mut warnings = of_shape(&services);
    warnings.retain(|warning| !known.contains(warning));
    if !planner.request.apply.services.is_empty() {
        warnings.extend(not_covered(planner, &services));
    }
    warnings.extend(ports_that_go(planner, &services));
    planner.planned.warnings.extend(warnings);
}

/// A program may read what a port gave it without saying so in the file.
fn ports_that_go(
    planner: &Planner<'_>,
    services: &BTreeMap<ResourceName, (Service, u32)>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in planner.request.apply.services.keys() {
        for port in lost_ports(
            planner.world,
            planner.request.project,
            planner.request.apply,
            name,
        ) {
            let needs = services
                .iter()
                .filter(|(_, (spec, _))| spec.needs.contains_key(name));
            let callers: Vec<_> = needs.map(|(caller, _)| caller.as_str()).collect();
            let on_road = ports::name_of(name, &port);
            if let Some(on_road) = on_road.filter(|_| !callers.is_empty()) {
                let variable = environment_name(&on_road);
                let callers = callers.join(", ");
                warnings.push(format!(
                    "{name} loses its port `{port}`: {callers} can't reach it any more, and is given no {variable}_URL from its next start on"
                ));
            }
        }
    }
    warnings
}

/// What the services alone tell, wherever they run.
fn of_shape(services: &BTreeMap<ResourceName, (Service, u32)>) -> Vec<String> {
    let mut warnings = rings(services);
    let counted = services
        .iter()
        .map(|(name, (spec, wanted))| (name, spec, *wanted));
    warnings.extend(model::state::lone_services(counted));
    let specs = services.iter().map(|(name, (spec, _))| (name, spec));
    warnings.extend(model::state::single_points(specs));
    warnings
}

/// The project's services as they are, each with its wanted number of copies.
fn services_before(planner: &Planner<'_>) -> BTreeMap<ResourceName, (Service, u32)> {
    let before = planner.world.services_of(planner.request.project);
    let before =
        before.map(|(name, entry, record)| (name.clone(), (record.spec.clone(), entry.wanted())));
    before.collect()
}

/// The project's services as they will be, each with its wanted number of copies.
fn services_after(planner: &Planner<'_>) -> BTreeMap<ResourceName, (Service, u32)> {
    let apply = planner.request.apply;
    let mut after = BTreeMap::new();
    for (name, entry, record) in planner.world.services_of(planner.request.project) {
        if !apply.prune || apply.services.contains_key(name) {
            after.insert(name.clone(), (record.spec.clone(), entry.wanted()));
        }
    }
    for (name, spec) in &apply.services {
        let entry = planner.world.services.get(&planner.id(name));
        let wanted = entry.map_or(spec.replicas, |entry| entry.copies_of(spec));
        after.insert(
            name.clone(),
            (spec.clone(), if spec.is_external() { 0 } else { wanted }),
        );
    }
    after
}

fn rings(services: &BTreeMap<ResourceName, (Service, u32)>) -> Vec<String> {
    let order = plan::order::order(services.iter().map(|(name, (spec, _))| (name, spec)));
    let shown = |ring: &Vec<ResourceName>| {
        let names: Vec<_> = ring
            .iter()
            .chain(ring.first())
            .map(ResourceName::as_str)
            .collect();
        format!(
            "needs form a ring: {}; none of them waits for the others when they start",
            names.join(" → ")
        )
    };
    order.cycles.iter().map(shown).collect()
}

/// Places all as it will be, and asks which zone could not be lost.
fn not_covered(
    planner: &Planner<'_>,
    services: &BTreeMap<ResourceName, (Service, u32)>,
) -> Vec<String> {
    let world = planner.world;
    let mut cluster = Cluster::new(world.nodes.values().map(|node| &node.value));
    let mut plans: Vec<(ResourceId, PlacementGroup, Service)> = others(world, planner);
    for (id, group, spec) in &plans {
        cluster.set_group(id, group, |_| place::size_of(spec));
    }
    let mut warnings = Vec::new();
    for (name, (spec, wanted)) in services {
        let id = planner.id(name);
        let asked = planner.request.apply.services.contains_key(name);
        let (group, refused) = imagined(&mut cluster, world, &id, spec, *wanted);
        if let Some(reason) = refused.filter(|_| asked && !world.nodes.is_empty()) {
            let placed = group.placements.len();
            warnings.push(no_place(name, placed, *wanted, &reason));
        }
        plans.push((id, group, spec.clone()));
    }
    let releases: Vec<BTreeMap<ReleaseNumber, &Service>> = plans
        .iter()
        .map(|(_, group, spec)| {
            group
                .placements
                .iter()
                .map(|placement| (placement.release, spec))
                .collect()
        })
        .collect();
    let loads: Vec<_> = plans
        .iter()
        .zip(&releases)
        .map(|((id, group, _), releases)| plan::capacity::Load {
            id,
            group,
            releases,
        })
        .collect();
    let shortfalls = plan::capacity::shortfalls(&cluster, &loads);
    warnings.extend(shortfalls.into_iter().map(|reason| reason.message));
    warnings
}

fn no_place(name: &ResourceName, placed: usize, wanted: u32, reason: &Reason) -> String {
    format!(
        "only {placed} of {wanted} copies of {name} would have a place, the others are pending: {reason}"
    )
}

/// What a copy of it takes as it is now.
fn size_before(world: &World, id: &ResourceId) -> Option<Capacity> {
    let record = world.services.get(id)?.record.as_ref()?;
    Some(place::size_of(&record.spec))
}

/// The other projects as they are.
fn others(world: &World, planner: &Planner<'_>) -> Vec<(ResourceId, PlacementGroup, Service)> {
    let others = world
        .services
        .iter()
        .filter(|(id, _)| id.project != *planner.request.project);
    others
        .filter_map(|(id, entry)| {
            let record = entry.record.as_ref()?;
            Some((id.clone(), entry.group(), record.spec.clone()))
        })
        .collect()
}

/// The copies of one service where they are, and where the missing ones would go; of what asks for more than before, where all would go. With
/// them why the first without a place has none.
fn imagined(
    cluster: &mut Cluster,
    world: &World,
    id: &ResourceId,
    spec: &Service,
    wanted: u32,
) -> (PlacementGroup, Option<Reason>) {
    let mut group = world
        .services
        .get(id)
        .map(|entry| entry.group())
        .unwrap_or_default();
    let size = place::size_of(spec);
    let grows = size_before(world, id)
        .is_some_and(|before| before.cpu < size.cpu || before.memory < size.memory);
    let stay = if grows { 0 } else { wanted as usize };
    group.placements.truncate(stay);
    cluster.set_group(id, &group, |_| place::size_of(spec));
    let taken: BTreeSet<InstanceName> = group
        .placements
        .iter()
        .map(|placement| placement.instance.clone())
        .collect();
    let names =
        (1..).filter_map(|number: u64| InstanceName::new(format!("{}-{number}", id.name)).ok());
    let missing = (wanted as usize).saturating_sub(group.placements.len());
    let barred = lacking(world, spec);
    let mut homes: Vec<NodeName> = match grows {
        true => group.homes.values().cloned().collect(),
        false => Vec::new(),
    };
    for instance in names.filter(|name| !taken.contains(name)).take(missing) {
        // What has a volume stays where it is.
        let home = homes.pop();
        let request = Request {
            service: id,
            instance: &instance,
            size,
            labels: &spec.labels,
            spread: spec.spread,
            home: home.as_ref(),
            ceiling: Ceiling::Watermark,
            avoid: &[],
            barred: &barred,
            going: &[],
            instead_of: None,
        };
        // What finds no place is pending, and told as such.
        let placed = match place::place(cluster, &request) {
            Ok(placed) => placed,
            Err(refused) => return (group, Some(refused.reason)),
        };
        group.placements.push(imagined_copy(instance, placed, spec));
    }
    (group, None)
}

/// The nodes without what it runs on.
fn lacking(world: &World, spec: &Service) -> Vec<(NodeName, Reason)> {
    let nodes = world.nodes.values();
    nodes
        .filter_map(|node| {
            Some((
                node.name.clone(),
                place::lacks(spec, node.programs.as_ref())?,
            ))
        })
        .collect()
}

fn imagined_copy(
    instance: InstanceName,
    placed: place::Placed,
    spec: &Service,
) -> model::compute::Placement {
    model::compute::Placement {
        instance,
        release: ReleaseNumber::default(),
        node: placed.node,
        slot: (!spec.volumes.is_empty()).then_some(0),
        role: model::compute::Role::Member,
        purpose: model::compute::Purpose::Serve,
        epoch: model::ids::Epoch::default(),
        wanted: model::compute::Wanted::Run,
        replaces: None,
        reason: placed.reason,
        at: planner_time(),
        placed_at: None,
    }
}

/// Imagined placements are never stored.
fn planner_time() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}
