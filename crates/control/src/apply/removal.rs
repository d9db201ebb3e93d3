//! What is deleted: by name, by `--prune`, or a project as a whole.

use std::collections::BTreeSet;

use api::problem::Problem;
use api::wire::{Action, Change, Kind};
use jiff::Timestamp;
use model::compute::PlacementGroup;
use model::ids::{NodeName, ProjectName, ResourceId};
use model::traffic::Route;

use super::secrets::users;
use super::{Author, Step, change};
use crate::call::IfMatch;
use crate::changes;
use crate::draft::Draft;
use crate::records::{ForgetRecord, Key, Removing, SecretRecord, ServiceRecord, UidRecord};
use crate::world::{Entry, Stored, World};

/// How a resource is to be deleted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deletion {
    /// With the data of its volumes.
    pub delete_data: bool,
    /// Also where others in the project need it.
    pub though_needed: bool,
}

/// Removes one resource.
pub fn remove_resource(
    world: &World,
    project: &ProjectName,
    kind: Kind,
    name: &str,
    deletion: Deletion,
    if_match: IfMatch,
    author: &Author,
) -> Result<Step, Problem> {
    let what = format!("{} {project}/{name}", kind.as_str().trim_end_matches('s'));
    let missing = || Problem::not_found(&what);
    let id = || {
        let name = name.parse().map_err(|_| missing())?;
        Ok::<_, Problem>(ResourceId::new(project.clone(), name))
    };
    match kind {
        Kind::Services => {
            let id = id()?;
            let entry = world.services.get(&id).ok_or_else(missing)?;
            if_match.check(&what, entry.live())?;
            if entry.keeps_data() {
                return of_kept(world, &id, entry, deletion.delete_data, author);
            }
            let mut step =
                of_service(&id, entry, deletion.delete_data, author).ok_or_else(missing)?;
            step.change.consequence += &left_without(world, &id);
            if !deletion.though_needed {
                check_unneeded(world, &id, &step.change.consequence)?;
            }
            Ok(step)
        }
        Kind::Routes => {
            let stored = world
                .routes
                .get(&(project.clone(), name.to_owned()))
                .ok_or_else(missing)?;
            if_match.check(&what, Some(stored))?;
            Ok(of_route(project, name, stored))
        }
        Kind::Secrets => {
            let id = id()?;
            let stored = world.secrets.get(&id).ok_or_else(missing)?;
            if_match.check(&what, Some(stored))?;
            check_unused(world, &id)?;
            Ok(of_secret(world, &id, stored))
        }
        Kind::Scales => {
            let id = id()?;
            let entry = world.services.get(&id).ok_or_else(missing)?;
            let scale = entry.scale.as_ref().ok_or_else(missing)?;
            if_match.check(&what, Some(scale))?;
            Ok(of_scale(&id, entry, scale))
        }
        Kind::Releases | Kind::Rollouts => Err(Problem::new(
            405,
            "not-deletable",
            format!("{}: they follow from what is applied", kind.as_str()),
        )),
    }
}

/// What a deleted service leaves behind. An apply can't: it is refused while anything in it needs what it prunes.
fn left_without(world: &World, id: &ResourceId) -> String {
    changes::consequence_for_others(&others_of(world, id), &routes_to(world, id))
}

fn routes_to<'w>(world: &'w World, id: &'w ResourceId) -> Vec<&'w str> {
    let routes = world.routes_of(&id.project);
    routes
        .filter(|(_, route)| route.to == id.name)
        .map(|(place, _)| place.as_str())
        .collect()
}

/// Who needs a service or consumes a topic, and is not it.
fn others_of(world: &World, id: &ResourceId) -> Vec<String> {
    let mut others = users(world, id);
    others.retain(|name| *name != id.name.as_str());
    others
}

/// A service that others rely on is not taken from them in passing. A route that leads nowhere breaks nobody's start, and `status` tells it.
fn check_unneeded(world: &World, id: &ResourceId, consequence: &str) -> Result<(), Problem> {
    if others_of(world, id).is_empty() {
        return Ok(());
    }
    let title = format!("service {id} is needed: {consequence}");
    Err(Problem::conflict("needed", title)
        .remedy("take it out of their `needs` first, or delete it all the same with -y"))
}

/// What needs a secret could not start any more, whoever assents.
fn check_unused(world: &World, id: &ResourceId) -> Result<(), Problem> {
    let users = users(world, id);
    if users.is_empty() {
        return Ok(());
    }
    let title = format!("secret {id} is needed by {}", users.join(", "));
    Err(Problem::conflict("needed", title).remedy("take it out of their `needs` first"))
}

/// Removes all of a project.
pub fn remove_project(
    world: &World,
    project: &ProjectName,
    delete_data: bool,
    author: &Author,
) -> Result<Vec<Step>, Problem> {
    let mut steps: Vec<Step> = world
        .routes_of(project)
        .map(|(place, stored)| of_route(project, place, stored))
        .collect();
    for (name, entry, _) in world.services_of(project) {
        let id = ResourceId::new(project.clone(), name.clone());
        steps.extend(of_service(&id, entry, delete_data, author));
    }
    for (name, stored) in world.secrets_of(project) {
        let id = ResourceId::new(project.clone(), name.clone());
        steps.push(of_secret(world, &id, stored));
    }
    for (id, entry) in world.kept_of(project).filter(|_| delete_data) {
        steps.push(of_kept(world, id, entry, delete_data, author)?);
    }
    match (steps.is_empty(), world.kept_of(project).next()) {
        (false, _) => Ok(steps),
        (true, None) => Err(Problem::not_found(format!("project {project}"))),
        (true, Some((id, _))) => Err(only_data_is_left(
            id,
            &format!("mainland delete --all -p {project}"),
        )),
    }
}

fn only_data_is_left(id: &ResourceId, command: &str) -> Problem {
    let title = format!("{id} is deleted already, and its data was kept");
    Problem::conflict("only-data-left", title).remedy(format!(
        "`{command} --delete-data` deletes the data as well"
    ))
}

/// Deletes what a service left behind.
fn of_kept(
    world: &World,
    id: &ResourceId,
    entry: &Entry,
    with_data: bool,
    author: &Author,
) -> Result<Step, Problem> {
    if !with_data {
        let command = format!("mainland delete service {} -p {}", id.name, id.project);
        return Err(only_data_is_left(id, &command));
    }
    let mut draft = Draft::new();
    match &entry.record {
        // Its instances still leave: the leader does the rest.
        Some(record) => {
            let next = ServiceRecord {
                removing: Some(Removing {
                    delete_data: true,
                    by: author.name.clone(),
                    at: author.at,
                }),
                ..record.value.clone()
            };
            draft.put(Key::Service(id.clone()), Some(record), &next);
        }
        None => delete_data(&mut draft, world, id, entry, author.at),
    }
    let consequence = "the data that was kept of it is deleted".to_owned();
    Ok(Step {
        change: removed(Kind::Services, id.name.as_str(), consequence),
        draft,
    })
}

/// Of a service whose instances are gone: its volumes are forgotten where they are, its uid rests, its secret goes. Its numbers stay, so that they
/// only grow.
pub fn delete_data(
    draft: &mut Draft,
    world: &World,
    id: &ResourceId,
    entry: &Entry,
    now: Timestamp,
) {
    if let Some(uid) = entry.uid {
        let freed = UidRecord {
            service: id.clone(),
            freed_at: Some(now),
        };
        draft.put(Key::Uid(uid), world.uids.get(&uid), &freed);
    }
    if let Some(secret) = world.engine_secrets.get(id) {
        draft.delete(Key::EngineSecret(id.clone()), secret);
    }
    let Some(stored) = &entry.placements else {
        return;
    };
    let group = entry.group();
    let kept = PlacementGroup {
        pending: Vec::new(),
        homes: Default::default(),
        left: Default::default(),
        ..group.clone()
    };
    draft.put(Key::Placement(id.clone()), Some(stored), &kept);
    let with_data = group.nodes_with_data();
    if with_data.is_empty() {
        return;
    }
    // Those that were not yet told of an earlier deletion are told once for both.
    let known = entry.forget.iter().flat_map(|forget| &forget.nodes);
    let nodes: BTreeSet<NodeName> = known.cloned().chain(with_data).collect();
    let forget = ForgetRecord {
        nodes: nodes.into_iter().collect(),
    };
    draft.put(Key::Forget(id.clone()), entry.forget.as_ref(), &forget);
}

/// Marks a service as on its way out: its instances leave, then the leader removes its records.
pub(super) fn of_service(
    id: &ResourceId,
    entry: &Entry,
    delete_data: bool,
    author: &Author,
) -> Option<Step> {
    let record = entry.live()?;
    let removing = Removing {
        delete_data,
        by: author.name.clone(),
        at: author.at,
    };
    let next = ServiceRecord {
        removing: Some(removing),
        ..record.value.clone()
    };
    let mut draft = Draft::new();
    draft.put(Key::Service(id.clone()), Some(record), &next);
    let group = entry.group();
    let running = u32::try_from(group.placements.len()).unwrap_or(u32::MAX);
    let consequence =
        changes::consequence_of_removal(running, !group.nodes_with_data().is_empty(), delete_data);
    let change = removed(Kind::Services, id.name.as_str(), consequence);
    Some(Step { change, draft })
}

pub(super) fn of_route(project: &ProjectName, place: &str, stored: &Stored<Route>) -> Step {
    let mut draft = Draft::new();
    draft.delete(Key::Route(project.clone(), place.to_owned()), stored);
    let consequence = format!("{} is no longer reached by it", stored.to);
    Step {
        change: removed(Kind::Routes, place, consequence),
        draft,
    }
}

pub(super) fn of_secret(world: &World, id: &ResourceId, stored: &Stored<SecretRecord>) -> Step {
    let mut draft = Draft::new();
    draft.delete(Key::Secret(id.clone()), stored);
    if let Some(name) = world.names.get(id) {
        draft.delete(Key::Name(id.clone()), name);
    }
    Step {
        change: removed(
            Kind::Secrets,
            id.name.as_str(),
            "its value is gone".to_owned(),
        ),
        draft,
    }
}

fn of_scale(id: &ResourceId, entry: &Entry, scale: &Stored<model::compute::Scale>) -> Step {
    let mut draft = Draft::new();
    draft.delete(Key::Scale(id.clone()), scale);
    let declared = entry.live().map_or(0, |record| record.spec.replicas);
    let consequence = format!("{declared} as declared, instead of {}", scale.replicas);
    Step {
        change: removed(Kind::Scales, id.name.as_str(), consequence),
        draft,
    }
}

fn removed(kind: Kind, name: &str, consequence: String) -> Change {
    change(kind, name, Action::Remove, consequence, Vec::new(), None)
}
