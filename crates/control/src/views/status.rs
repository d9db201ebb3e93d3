//! How a project is: its services and routes, and what wants attention.

mod stuck;

use std::collections::BTreeMap;

use api::wire::{InstanceView, ProjectStatus, RouteStatus, ServiceStatus};
use model::compute::{InstanceState, Purpose};
use model::control::{NodeRole, Reason, RolloutPhase, Standing};
use model::ids::{ProjectName, ResourceId, ResourceName, ZoneName};
use plan::Now;
use plan::backoff::CRASH_LOOP;
use plan::place::Cluster;

use super::instances;
use crate::desired::Seen;
use crate::handlers::{rollout_of, serving_instead};
use crate::records::ServiceRecord;
use crate::state::Shared;
use crate::world::{Entry, World};

/// Beyond this many nodes `status` does not ask whether each zone could be lost: it would take longer than a person waits.
const COVERAGE_NODES_MOST: usize = 200;
/// Things that want attention, of one kind.
const ATTENTION_MOST: usize = 20;

/// `status`; `None` for a project that nobody declared.
pub fn status(shared: &Shared, project: &ProjectName, now: Now) -> Option<ProjectStatus> {
    if !shared.world.projects().contains(project) {
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
            let mut status = service_status(shared, project, name, entry, record, &instances);
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
        engines: Vec::new(),
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
    attention.extend(troubles(instances).into_iter().take(ATTENTION_MOST));
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

/// What instances fail at, or wait for without a place: told once for all copies of a service that say the same.
fn troubles(instances: &[InstanceView]) -> Vec<Reason> {
    let is_troubled = |view: &&InstanceView| {
        let reason = view.reason.as_ref();
        let loops = reason.is_some_and(|reason| reason.code == CRASH_LOOP);
        loops
            || view.state == InstanceState::Failed
            || (view.state == InstanceState::Pending && view.node.is_none())
    };
    let mut told: Vec<(&InstanceView, &Reason, usize)> = Vec::new();
    for view in instances.iter().filter(is_troubled) {
        let Some(reason) = &view.reason else { continue };
        let same = told
            .iter_mut()
            .find(|(first, known, _)| first.service == view.service && *known == reason);
        match same {
            Some((_, _, others)) => *others += 1,
            None => told.push((view, reason, 0)),
        }
    }
    let line = |(first, reason, others): (&InstanceView, &Reason, usize)| {
        let others = match others {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        let message = format!("{}{others}: {reason}", first.name);
        Reason::new(reason.code.clone(), message)
    };
    told.into_iter().map(line).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_say_the_same_are_told_once() {
        let view = |name: &str, state: &str, node: Option<&str>, message: &str| -> InstanceView {
            let service = name.rsplit_once('-').unwrap().0;
            serde_json::from_value(serde_json::json!({
                "name": name, "service": service, "node": node, "zone": null, "state": state, "ready": false, "pid": null,
                "address": null, "restarts": 0, "version": 1, "project": "shop",
                "reason": { "code": "so", "message": message },
            }))
            .unwrap()
        };
        let instances = [
            view("web-1", "running", Some("a"), "well"),
            view("web-2", "pending", None, "full"),
            view("web-3", "pending", None, "full"),
            view("web-4", "pending", Some("a"), "comes"),
            view("web-5", "pending", None, "full"),
            view("web-6", "failed", Some("a"), "exit code 1"),
            view("api-1", "pending", None, "full"),
        ];
        let told = troubles(&instances);
        let told: Vec<_> = told.iter().map(|reason| reason.message.as_str()).collect();
        assert_eq!(
            told,
            [
                "web-2 and 2 more: full",
                "web-6: exit code 1",
                "api-1: full"
            ]
        );
    }
}
