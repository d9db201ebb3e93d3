//! What people read, from what is stored and what is observed.

mod alike;
mod engines;
mod nodes;
mod rollouts;
mod status;

use api::wire::{InstanceView, Kind, SecretView};
use model::compute::{InstanceReport, InstanceState, Pending, Placement, Purpose, Wanted};
use model::control::Reason;
use model::ids::{InstanceId, InstanceName, ProjectName, ResourceId, ResourceName};
use plan::Now;
use plan::service::Sight;
use serde_json::{Value, json};
use store::Revision;

use crate::handlers::rollout_of;
use crate::records::SecretRecord;
use crate::state::Shared;
use crate::world::{Entry, Stored, World};

pub use alike::{alike, with_others};
pub use engines::{concerns, engines, of_extensions};
pub use nodes::{node_of, nodes};
pub use rollouts::with_progress;
pub use status::{notice_of, status};

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
        unchanged: false,
        warnings: Vec::new(),
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
        version: entry.counts_as(pending.release),
        purpose: Purpose::Serve,
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
    let reason = reason.or_else(|| passing(entry, placement));
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
        version: entry.counts_as(placement.release),
        purpose: placement.purpose,
        project: id.project.clone(),
        started_at: report.and_then(|report| report.started_at),
        reason,
    }
}

/// What is there for a moment only, or beside what it is to replace, says what for.
fn passing(entry: &Entry, placement: &Placement) -> Option<Reason> {
    if placement.replaces.is_some() {
        return Some(placement.reason.clone());
    }
    let release = entry.releases.get(&placement.release)?;
    let command = release.spec.before_deploy.join(" ");
    let message = format!(
        "runs `{command}` before release {} is rolled out",
        placement.release
    );
    let is_command = placement.purpose == Purpose::BeforeDeploy;
    is_command.then(|| Reason::new("before-deploy", message))
}

/// Its place was decided on a moment ago.
fn told_to_start(placement: &Placement) -> Reason {
    let message = format!("node {} is told to start it", placement.node);
    Reason::new("placed", message).with_detail(vec![placement.reason.message.clone()])
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
        (None, Wanted::Run) => (InstanceState::Pending, Some(told_to_start(placement))),
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
