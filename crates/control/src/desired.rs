//! What each node is told: its instances from the placements, with what it takes to run them, and its road. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::compute::ports;
use model::compute::{
    Ask, DesiredInstance, InstanceReport, Placement, PlacementGroup, Purpose, Service,
};
use model::control::{NodeDesired, NodeRecord};
use model::ids::{
    Generation, InstanceId, NodeName, ProjectName, ReleaseNumber, ResourceId, ResourceName,
};
use model::traffic::{GatewayRoute, Owner};
use plan::order::Order;
use plan::road;

use crate::engines;
use crate::observed::Observed;
use crate::state::Shared;
use crate::world::{Entry, World};

/// One service as decisions see it: under the newest number everything that needs no restart to be that.
pub struct Seen<'w> {
    pub releases: BTreeMap<ReleaseNumber, &'w Service>,
    pub group: PlacementGroup,
}

impl<'w> Seen<'w> {
    pub fn of(entry: &'w Entry) -> Self {
        let record = entry.record.as_ref();
        let current = record.and_then(|record| record.current.as_ref());
        let counts_as = |release| entry.counts_as(release);
        let mut releases: BTreeMap<_, _> = entry
            .releases
            .iter()
            .filter(|(number, _)| counts_as(**number) == **number)
            .map(|(number, release)| (*number, &release.spec))
            .collect();
        if let Some((record, current)) = record.zip(current) {
            releases.insert(current.number, &record.spec);
        }
        let mut group = entry.group();
        for placement in &mut group.placements {
            placement.release = counts_as(placement.release);
        }
        Self { releases, group }
    }

    /// Adds what people run beside the copies, under the numbers that copies of its releases have here.
    pub fn add_runs<'r>(&mut self, entry: &Entry, runs: impl Iterator<Item = &'r Placement>) {
        let counted = runs.cloned().map(|mut run| {
            run.release = entry.counts_as(run.release);
            run
        });
        self.group.placements.extend(counted);
    }

    /// A decided group as it is stored: what was there keeps the number it was started under.
    pub fn to_store(entry: &Entry, mut decided: PlacementGroup) -> PlacementGroup {
        let stored = entry.group();
        for placement in &mut decided.placements {
            let before = stored
                .placements
                .iter()
                .find(|before| before.instance == placement.instance);
            if let Some(before) = before {
                placement.release = before.release;
            }
        }
        decided
    }
}

/// What the nodes report of the instances that are placed on them.
pub fn reports<'a>(
    world: &World,
    observed: &'a Observed,
) -> BTreeMap<InstanceId, &'a InstanceReport> {
    let mut reports = BTreeMap::new();
    for (id, entry) in &world.services {
        let placements = entry.placements.iter().flat_map(|group| &group.placements);
        for placement in placements {
            let instance = InstanceId::new(id.project.clone(), placement.instance.clone());
            if let Some(report) = observed.report(&placement.node, &instance) {
                reports.insert(instance, report);
            }
        }
    }
    reports
}

/// For every node what it should now be told. The generation is left for who tells it.
pub fn of_all(shared: &Shared, complete: bool) -> BTreeMap<NodeName, NodeDesired> {
    let (world, observed) = (&shared.world, &shared.observed);
    let mut seen: BTreeMap<&ResourceId, Seen<'_>> = world
        .services
        .iter()
        .map(|(id, entry)| (id, Seen::of(entry)))
        .collect();
    for (id, seen) in &mut seen {
        seen.add_runs(&world.services[*id], shared.runs.of(id));
    }
    let index = road_index(world, observed, &seen, complete);
    let mut all: BTreeMap<NodeName, NodeDesired> = world
        .nodes
        .keys()
        .map(|name| {
            let desired = NodeDesired {
                generation: Generation::default(),
                instances: Vec::new(),
                foreign: Vec::new(),
                road: index.road(name),
                forget_volumes: Vec::new(),
                removed: world.removed.keys().cloned().collect(),
            };
            (name.clone(), desired)
        })
        .collect();
    let orders = orders(world);
    let settings = engines::settings(world, &seen);
    let owners = owners(world);
    for (name, desired) in &mut all {
        if shares_a_machine(observed, name) {
            desired.road.owners.clone_from(&owners);
        }
    }
    for (id, seen) in &seen {
        let entry = &world.services[*id];
        let order = orders.get(&id.project);
        for placement in &seen.group.placements {
            let Some(desired) = all.get_mut(&placement.node) else {
                continue;
            };
            let mut told = instance(shared, id, seen, placement, order);
            if let Some(told) = &mut told {
                let engine = told.spec.engine();
                told.settings = engine.map(|engine| engines::of_engine(engine, settings.get(*id)));
            }
            desired.instances.extend(told);
        }
        for node in entry.forget.iter().flat_map(|forget| &forget.nodes) {
            if let Some(desired) = all.get_mut(node) {
                desired.forget_volumes.push((*id).clone());
            }
        }
    }
    all
}

/// Its proxy is called over loopback: other nodes can only be where it is.
fn shares_a_machine(observed: &Observed, node: &NodeName) -> bool {
    let mesh = observed.nodes.get(node).and_then(|node| node.mesh);
    mesh.is_some_and(|mesh| mesh.ip().is_loopback())
}

fn owners(world: &World) -> Vec<Owner> {
    let owner = |(id, entry): (&ResourceId, &Entry)| {
        Some(Owner {
            uid: entry.uid?,
            service: id.clone(),
        })
    };
    world.services.iter().filter_map(owner).collect()
}

fn orders(world: &World) -> BTreeMap<ProjectName, Order> {
    let projects = world.projects().into_iter();
    projects
        .map(|project| {
            let order = plan::order::order(
                world
                    .services_of(&project)
                    .map(|(name, _, record)| (name, &record.spec)),
            );
            (project, order)
        })
        .collect()
}

fn instance(
    shared: &Shared,
    id: &ResourceId,
    seen: &Seen<'_>,
    placement: &Placement,
    order: Option<&Order>,
) -> Option<DesiredInstance> {
    let world = &shared.world;
    let entry = world.services.get(id)?;
    let declared = *seen.releases.get(&placement.release)?;
    let spec = match placement.purpose {
        Purpose::Serve => declared.clone(),
        Purpose::BeforeDeploy => declared.before_deploy_work(),
        Purpose::Run => declared.apart_from_copies(Vec::new()),
    };
    let spec = &asked_by_name(spec, world, id);
    let instance = InstanceId::new(id.project.clone(), placement.instance.clone());
    let mut stored = entry.placements.iter().flat_map(|group| &group.placements);
    let started_as = match placement.purpose {
        Purpose::Run => shared.runs.started_as(&instance)?,
        _ => {
            let stored = stored.find(|stored| stored.instance == placement.instance)?;
            stored.release
        }
    };
    Some(DesiredInstance {
        instance,
        service: id.name.clone(),
        // The number it was started under: a new one would start it anew.
        release: started_as,
        epoch: placement.epoch,
        slot: placement.slot,
        role: placement.role,
        purpose: placement.purpose,
        wanted: placement.wanted,
        uid: entry.uid?,
        spec: spec.clone(),
        secrets: engines::given(world, id, spec)
            .into_iter()
            .map(|(need, _)| need)
            .collect(),
        start_after: order.map_or_else(Vec::new, |order| order.start_after(&id.name).to_vec()),
        logins: engines::logins(world, id, spec),
        need_ports: need_ports(world, id, spec),
        settings: None,
    })
}

/// The ports of what it needs, by what they are called on the road.
fn need_ports(
    world: &World,
    id: &ResourceId,
    spec: &Service,
) -> BTreeMap<ResourceName, ResourceName> {
    let ports = spec.needs.keys().flat_map(|need| {
        let needed = ResourceId::new(id.project.clone(), need.clone());
        let record = world
            .services
            .get(&needed)
            .and_then(|entry| entry.record.as_ref());
        let ports = record
            .into_iter()
            .flat_map(|record| record.spec.ports_of(need));
        let ports = ports.map(|(name, ..)| (name, need.clone()));
        ports.collect::<Vec<_>>()
    });
    ports.collect()
}

/// A probe asks for a name that the program is called by: many answer no other.
fn asked_by_name(mut spec: Service, world: &World, id: &ResourceId) -> Service {
    let named = world.routes.iter().find_map(|((project, _), route)| {
        let leads = *project == id.project && route.to == id.name && !route.host.starts_with('*');
        leads.then(|| route.host.clone())
    });
    let probes = [Some(&mut spec.health), spec.alive.as_mut()];
    for probe in probes.into_iter().flatten() {
        if let Ask::Http { host, .. } = &mut probe.ask
            && host.is_none()
        {
            host.clone_from(&named);
        }
    }
    spec
}

fn road_index(
    world: &World,
    observed: &Observed,
    seen: &BTreeMap<&ResourceId, Seen<'_>>,
    complete: bool,
) -> road::Index {
    let nodes: BTreeMap<NodeName, NodeRecord> = world
        .nodes
        .iter()
        .map(|(name, node)| (name.clone(), node.value.clone()))
        .collect();
    let services: BTreeMap<ResourceId, road::ServiceEntry<'_>> = seen
        .iter()
        .filter_map(|(id, seen)| {
            let spec = &world.services[*id].record.as_ref()?.spec;
            let entry = road::ServiceEntry {
                spec,
                releases: seen.releases.clone(),
                group: &seen.group,
            };
            Some(((*id).clone(), entry))
        })
        .collect();
    let routes: Vec<GatewayRoute> = world
        .routes
        .iter()
        .map(|((project, _), route)| {
            let at_port = |port| ports::name_of(&route.to, port);
            let name = route.port.as_ref().and_then(at_port);
            let name = name.unwrap_or_else(|| route.to.clone());
            GatewayRoute {
                host: route.host.clone(),
                path: route.path.clone(),
                to: ResourceId::new(project.clone(), name),
            }
        })
        .collect();
    let reports = reports(world, observed);
    road::Index::new(&road::World {
        nodes: &nodes,
        services: &services,
        routes: &routes,
        reports: &|instance| reports.get(instance).copied(),
        mesh: &|node| observed.nodes.get(node).and_then(|node| node.mesh),
        complete,
    })
}

/// Whether two say the same, whatever their generations.
pub fn same(a: &NodeDesired, b: &NodeDesired) -> bool {
    a.instances == b.instances
        && a.road == b.road
        && a.forget_volumes == b.forget_volumes
        && a.removed == b.removed
}

pub type Told = Option<Arc<NodeDesired>>;
