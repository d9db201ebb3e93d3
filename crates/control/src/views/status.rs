//! How a project is: its services and routes, and what wants attention.

mod attention;
mod notices;
mod stuck;

use std::collections::BTreeMap;

use api::wire::{InstanceView, ProjectStatus, RouteStatus, ServiceStatus};
use model::compute::{InstanceState, Purpose};
use model::control::{NodeRole, Reason, RolloutPhase};
use model::ids::{ProjectName, ResourceId, ResourceName, ZoneName};
use model::traffic::Route;
use plan::Now;
use plan::place::Cluster;

pub use notices::of_instance as notice_of;

use super::{instances, with_progress};
use crate::desired::Seen;
use crate::handlers::{rollout_of, serving_instead};
use crate::records::ServiceRecord;
use crate::state::Shared;
use crate::world::{Entry, World};

/// Beyond this many nodes `status` does not ask whether each zone could be lost: it would take longer than a person waits.
const COVERAGE_NODES_MOST: usize = 200;

/// `status`; `None` for a project that nobody declared.
pub fn status(shared: &Shared, project: &ProjectName, now: Now) -> Option<ProjectStatus> {
    if !shared.world.has_project(project) {
        return None;
    }
    let instances = instances(shared, project, now);
    let picture = Picture::of(&shared.world);
    let waiting = stuck::Picture {
        world: &shared.world,
        project,
        instances: &instances,
    };
    // While a brake is on, nothing is decided that could help.
    let decides = shared.nodes.brake().is_none();
    let services: Vec<_> = shared
        .world
        .services_of(project)
        .map(|(name, entry, record)| {
            let mut status = service_status(shared, project, name, entry, record, &instances, now);
            status.stuck = decides.then(|| waiting.stuck(name)).flatten();
            if status.reason.is_none()
                && let Some(picture) = &picture
            {
                status.reason = uneven(picture, &status, record, &instances);
            }
            status
        })
        .collect();
    let serving = |to: &ResourceName| {
        let service = services.iter().find(|service| service.name == *to);
        service.is_some_and(|service| service.external || service.ready > 0)
    };
    let routes = shared.world.routes_of(project);
    let routes: Vec<_> = routes
        .map(|(_, route)| of_route(route, serving(&route.to)))
        .collect();
    let seen = attention::Seen {
        project,
        services: &services,
        routes: &routes,
        instances: &instances,
    };
    let brake = shared.nodes.brake().map(|brake| brake.reason.clone());
    let mut attention: Vec<_> = brake.into_iter().collect();
    attention.extend(notices::disks(shared));
    attention.extend(notices::unkept(shared));
    attention.extend(seen.wants(&shared.world, now));
    attention.extend(notices::of_instances(shared, project, &instances));
    attention.extend(picture.iter().flat_map(Picture::not_covered));
    Some(ProjectStatus {
        project: project.clone(),
        services,
        routes,
        engines: Vec::new(),
        attention,
    })
}

fn of_route(route: &Route, serving: bool) -> RouteStatus {
    RouteStatus {
        host: route.host.clone(),
        path: route.path.clone(),
        to: route.to.clone(),
        port: route.port.clone(),
        serving,
    }
}

fn service_status(
    shared: &Shared,
    project: &ProjectName,
    name: &ResourceName,
    entry: &Entry,
    record: &ServiceRecord,
    instances: &[InstanceView],
    now: Now,
) -> ServiceStatus {
    let ready: Vec<_> = instances
        .iter()
        .filter(|view| view.service == *name && serves(view))
        .collect();
    let mut zones: BTreeMap<ZoneName, u32> = BTreeMap::new();
    for zone in ready.iter().filter_map(|view| view.zone.clone()) {
        *zones.entry(zone).or_default() += 1;
    }
    let own: Vec<_> = instances
        .iter()
        .filter(|view| view.service == *name)
        .collect();
    let rollout = rollout_of(entry).map(|rollout| with_progress(shared, entry, rollout, &own, now));
    let failed = rollout
        .as_ref()
        .filter(|rollout| rollout.phase == RolloutPhase::Failed)
        .map(|rollout| rollout.reason.clone());
    let unready = || {
        instances
            .iter()
            .filter(|view| view.service == *name && !serves(view))
            .find_map(|view| view.reason.clone())
    };
    let is_short = (ready.len() as u64) < u64::from(entry.wanted());
    ServiceStatus {
        name: name.clone(),
        wanted: entry.wanted(),
        ready: u32::try_from(ready.len()).unwrap_or(u32::MAX),
        zones,
        release: record.current.as_ref().map(|current| current.number),
        serving: rollout.as_ref().and_then(serving_instead),
        reason: failed.or_else(|| unready().filter(|_| is_short)),
        rollout,
        scale: entry.scale.as_ref().map(|scale| scale.value.clone()),
        external: record.spec.is_external(),
        needs: record.spec.needs.keys().cloned().collect(),
        ports: record.spec.ports.clone(),
        stuck: None,
        demand: shared
            .observed
            .demand(&ResourceId::new(project.clone(), name.clone())),
    }
}

/// Work that ended well has served.
fn serves(view: &InstanceView) -> bool {
    let is_copy = view.purpose == Purpose::Serve;
    view.ready || (is_copy && view.state == InstanceState::Finished)
}

/// That what is settled stands uneven, and what becomes of it.
fn uneven(
    picture: &Picture<'_>,
    status: &ServiceStatus,
    record: &ServiceRecord,
    instances: &[InstanceView],
) -> Option<Reason> {
    let rollout = status.rollout.as_ref()?;
    if rollout.phase != RolloutPhase::Done || status.ready != status.wanted {
        return None;
    }
    let nodes: Vec<_> = instances
        .iter()
        .filter(|view| view.service == status.name && view.ready)
        .filter_map(|view| view.node.as_ref())
        .collect();
    plan::capacity::uneven(&picture.cluster, &status.name, &record.spec, &nodes)
}

/// All copies on all nodes, for questions of the kind *what if*.
struct Picture<'w> {
    cluster: Cluster,
    services: Vec<(&'w ResourceId, Seen<'w>)>,
}

impl<'w> Picture<'w> {
    /// `None` where there are too many nodes to ask.
    fn of(world: &'w World) -> Option<Self> {
        let nodes = world.nodes.values();
        let workers = nodes.filter(|node| node.role == NodeRole::Worker).count();
        if workers > COVERAGE_NODES_MOST {
            return None;
        }
        let mut cluster = Cluster::new(world.nodes.values().map(|node| &node.value));
        let services: Vec<_> = world
            .services
            .iter()
            .map(|(id, entry)| (id, Seen::of(entry)))
            .collect();
        for (id, seen) in &services {
            cluster.set_group(id, &seen.group, |release| {
                seen.releases
                    .get(&release)
                    .map(|spec| plan::place::size_of(spec))
                    .unwrap_or_default()
            });
        }
        Some(Self { cluster, services })
    }

    /// Zones whose loss the others could not make good.
    fn not_covered(&self) -> Vec<Reason> {
        let loads: Vec<_> = self
            .services
            .iter()
            .map(|(id, seen)| plan::capacity::Load {
                id,
                group: &seen.group,
                releases: &seen.releases,
            })
            .collect();
        plan::capacity::shortfalls(&self.cluster, &loads)
    }
}
