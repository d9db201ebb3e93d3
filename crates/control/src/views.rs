//! What people read, from what is stored and what is observed.

use std::collections::BTreeMap;

use api::wire::{
    InstanceView, Kind, NodeState, NodeView, ProjectStatus, RouteStatus, SecretView, ServiceStatus,
};
use model::compute::{InstanceReport, InstanceState, Pending, Placement, Wanted};
use model::control::{Capacity, NodeRecord, NodeRole, Reason, RolloutPhase, Standing};
use model::ids::{
    InstanceId, InstanceName, NodeName, ProjectName, ReleaseNumber, ResourceId, ResourceName,
    ZoneName,
};
use model::units::{Bytes, MilliCpu};
use plan::Now;
use plan::nodes::SILENT_AFTER;
use plan::place::Cluster;
use plan::service::Sight;
use serde_json::{Value, json};
use store::Revision;

use crate::desired::Seen;
use crate::handlers::{rollout_of, serving_instead};
use crate::records::{Current, SecretRecord, ServiceRecord};
use crate::state::Shared;
use crate::world::{Entry, Stored, World};

/// Beyond this many nodes `status` does not ask whether each zone could be lost: it would take longer than a person waits.
const COVERAGE_NODES_MOST: usize = 200;
/// Things that want attention, of one kind.
const ATTENTION_MOST: usize = 20;

/// A resource as it is read: name, value, revision.
pub type Resource = (String, Value, Revision);

/// All of a kind in a project.
pub fn resources(world: &World, project: &ProjectName, kind: Kind) -> Vec<Resource> {
    match kind {
        Kind::Services => world
            .services_of(project)
            .map(|(name, _, record)| (name.to_string(), json!(record.spec), record.modified))
            .collect(),
        Kind::Routes => world
            .routes_of(project)
            .map(|(place, route)| resource(place, route))
            .collect(),
        Kind::Secrets => secrets(world, project),
        Kind::Scales => entries(world, project)
            .filter_map(|(id, entry)| Some(resource(&id.name, entry.scale.as_ref()?)))
            .collect(),
        Kind::Releases => entries(world, project).flat_map(releases).collect(),
        Kind::Rollouts => entries(world, project).filter_map(rollout).collect(),
    }
}

fn resource<T: serde::Serialize>(name: impl ToString, stored: &Stored<T>) -> Resource {
    (name.to_string(), json!(stored.value), stored.modified)
}

fn entries<'w>(
    world: &'w World,
    project: &'w ProjectName,
) -> impl Iterator<Item = (&'w ResourceId, &'w Entry)> {
    world
        .services
        .iter()
        .filter(move |(id, _)| id.project == *project)
}

fn secrets(world: &World, project: &ProjectName) -> Vec<Resource> {
    let view = |(name, record): (&ResourceName, &Stored<SecretRecord>)| {
        let id = ResourceId::new(project.clone(), name.clone());
        (
            name.to_string(),
            json!(secret(&id, record)),
            record.modified,
        )
    };
    world.secrets_of(project).map(view).collect()
}

fn releases<'w>((id, entry): (&'w ResourceId, &'w Entry)) -> impl Iterator<Item = Resource> + 'w {
    let all = entry.releases.iter();
    all.map(move |(number, release)| resource(format!("{}/{number}", id.name), release))
}

fn rollout((id, entry): (&ResourceId, &Entry)) -> Option<Resource> {
    let stored = entry.rollout.as_ref().map(|rollout| rollout.modified);
    let modified = stored.or_else(|| Some(entry.record.as_ref()?.modified))?;
    Some((id.name.to_string(), json!(rollout_of(entry)?), modified))
}

/// A secret without its value.
pub fn secret(id: &ResourceId, record: &SecretRecord) -> SecretView {
    SecretView {
        name: id.name.clone(),
        source: record.source.clone(),
        version: record.version,
        key_id: record
            .envelope
            .as_ref()
            .map(|envelope| envelope.key_id.to_string())
            .unwrap_or_default(),
        changed_at: record.changed_at,
        changed_by: record.changed_by.clone(),
    }
}

/// `ps`: placements with what is reported of them, and what has no place.
pub fn instances(shared: &Shared, project: &ProjectName, now: Now) -> Vec<InstanceView> {
    let mut views = Vec::new();
    for (id, entry) in shared
        .world
        .services
        .iter()
        .filter(|(id, _)| id.project == *project)
    {
        let group = entry.group();
        for placement in &group.placements {
            let pending = group
                .pending
                .iter()
                .find(|pending| pending.instance == placement.instance);
            views.push(placed(shared, id, entry, placement, pending, now));
        }
        let without_place = group.pending.iter().filter(|pending| {
            !group
                .placements
                .iter()
                .any(|placement| placement.instance == pending.instance)
        });
        views.extend(without_place.map(|pending| self::pending(id, entry, pending)));
    }
    views.sort_by_key(|view| (view.service.clone(), number(&view.name)));
    views
}

fn number(instance: &InstanceName) -> u64 {
    let number = instance
        .as_str()
        .rsplit_once('-')
        .map(|(_, number)| number.parse());
    number.and_then(Result::ok).unwrap_or(u64::MAX)
}

/// The number that a person takes it for: what needed no restart is of the newest release.
fn version(entry: &Entry, release: ReleaseNumber) -> ReleaseNumber {
    let current = entry
        .record
        .as_ref()
        .and_then(|record: &Stored<ServiceRecord>| record.current.as_ref());
    current.map_or(release, |current: &Current| current.counts_as(release))
}

fn pending(id: &ResourceId, entry: &Entry, pending: &Pending) -> InstanceView {
    InstanceView {
        name: pending.instance.clone(),
        service: id.name.clone(),
        node: None,
        zone: None,
        state: InstanceState::Pending,
        ready: false,
        pid: None,
        address: None,
        restarts: 0,
        version: version(entry, pending.release),
        project: id.project.clone(),
        started_at: None,
        reason: Some(pending.reason.clone()),
    }
}

fn placed(
    shared: &Shared,
    id: &ResourceId,
    entry: &Entry,
    placement: &Placement,
    pending: Option<&Pending>,
    now: Now,
) -> InstanceView {
    let instance = InstanceId::new(id.project.clone(), placement.instance.clone());
    let sight = shared.nodes.sight(&placement.node, now);
    let report = shared
        .observed
        .report(&placement.node, &instance)
        .filter(|report| report.epoch == placement.epoch);
    let (state, reason) = state_of(sight, placement, report, pending);
    let is_there = !matches!(state, InstanceState::Unknown | InstanceState::Pending);
    let told = report.filter(|_| is_there);
    InstanceView {
        name: placement.instance.clone(),
        service: id.name.clone(),
        node: Some(placement.node.clone()),
        zone: shared
            .world
            .nodes
            .get(&placement.node)
            .map(|node| node.zone.clone()),
        state,
        ready: state == InstanceState::Running && told.is_some_and(|report| report.ready),
        pid: told.and_then(|report| report.pid),
        address: told.and_then(|report| report.address.clone()),
        restarts: report.map_or(0, |report| report.restarts),
        version: version(entry, placement.release),
        project: id.project.clone(),
        started_at: report.and_then(|report| report.started_at),
        reason,
    }
}

fn state_of(
    sight: Sight,
    placement: &Placement,
    report: Option<&InstanceReport>,
    pending: Option<&Pending>,
) -> (InstanceState, Option<Reason>) {
    if let Some(pending) = pending {
        return (InstanceState::Pending, Some(pending.reason.clone()));
    }
    if sight != Sight::Heard {
        let reason = Reason::new(
            "node-silent",
            format!("node {} is not heard", placement.node),
        );
        return (InstanceState::Unknown, Some(reason));
    }
    match (report, placement.wanted) {
        (None, Wanted::Run) => (InstanceState::Pending, Some(placement.reason.clone())),
        (None, Wanted::Leave) => (InstanceState::Draining, Some(placement.reason.clone())),
        (Some(report), Wanted::Leave)
            if matches!(
                report.state,
                InstanceState::Starting | InstanceState::Running
            ) =>
        {
            (InstanceState::Draining, Some(placement.reason.clone()))
        }
        (Some(report), _) => (report.state, report.reason.clone()),
    }
}

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
            there.cpu = MilliCpu(there.cpu.0 + spec.cpu.0);
            there.memory = Bytes(there.memory.0 + spec.memory.0);
        }
    }
    used
}

/// `status`; `None` for a project that nobody declared.
pub fn status(shared: &Shared, project: &ProjectName, now: Now) -> Option<ProjectStatus> {
    if !shared.world.projects().contains(project) {
        return None;
    }
    let instances = instances(shared, project, now);
    let picture = Picture::of(&shared.world);
    let services: Vec<_> = shared
        .world
        .services_of(project)
        .map(|(name, entry, record)| {
            let mut status = service_status(shared, project, name, entry, record, &instances);
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
    let routes = routes
        .map(|(_, route)| RouteStatus {
            host: route.host.clone(),
            path: route.path.clone(),
            to: route.to.clone(),
            serving: serving(&route.to),
        })
        .collect();
    let mut attention = attention(shared, &services, &instances);
    attention.extend(picture.iter().flat_map(Picture::not_covered));
    Some(ProjectStatus {
        project: project.clone(),
        services,
        routes,
        attention,
    })
}

fn service_status(
    shared: &Shared,
    project: &ProjectName,
    name: &ResourceName,
    entry: &Entry,
    record: &ServiceRecord,
    instances: &[InstanceView],
) -> ServiceStatus {
    let ready: Vec<_> = instances
        .iter()
        .filter(|view| view.service == *name && serves(view))
        .collect();
    let mut zones: BTreeMap<ZoneName, u32> = BTreeMap::new();
    for zone in ready.iter().filter_map(|view| view.zone.clone()) {
        *zones.entry(zone).or_default() += 1;
    }
    let rollout = rollout_of(entry);
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
        demand: shared
            .observed
            .demand(&ResourceId::new(project.clone(), name.clone())),
    }
}

/// Work that ended well has served.
fn serves(view: &InstanceView) -> bool {
    view.ready || view.state == InstanceState::Finished
}

fn attention(
    shared: &Shared,
    services: &[ServiceStatus],
    instances: &[InstanceView],
) -> Vec<Reason> {
    let mut attention: Vec<Reason> = shared
        .nodes
        .brake()
        .map(|brake| brake.reason.clone())
        .into_iter()
        .collect();
    let lost = shared
        .world
        .nodes
        .values()
        .filter(|node| node.standing == Standing::Lost);
    attention.extend(lost.take(ATTENTION_MOST).map(|node| node.reason.clone()));
    let failed = services
        .iter()
        .filter_map(|service| service.rollout.as_ref());
    let failed = failed.filter(|rollout| rollout.phase == RolloutPhase::Failed);
    attention.extend(
        failed
            .take(ATTENTION_MOST)
            .map(|rollout| rollout.reason.clone()),
    );
    let troubled = instances.iter().filter(|view| {
        let loops = view
            .reason
            .as_ref()
            .is_some_and(|reason| reason.code == "crash-loop");
        loops
            || view.state == InstanceState::Failed
            || (view.state == InstanceState::Pending && view.node.is_none())
    });
    attention.extend(troubled.take(ATTENTION_MOST).filter_map(|view| {
        let reason = view.reason.as_ref()?;
        Some(Reason::new(
            reason.code.clone(),
            format!("{}: {}", view.name, reason.message),
        ))
    }));
    let demand = services
        .iter()
        .filter(|service| service.demand > 0 && service.ready == 0);
    attention.extend(demand.map(|service| {
        Reason::new(
            "demand",
            format!(
                "{} requests wait for {}, which has no ready instance",
                service.demand, service.name
            ),
        )
    }));
    attention
}

/// That what is settled stands uneven: after a loss copies stay where they were put, and moving them is a person's choice.
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
