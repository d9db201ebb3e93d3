//! Why a thing is as it is: what now stands in the way, then the reasons that were stored with decisions, newest first. Nothing is guessed here.

mod lines;

use api::problem::Problem;
use api::wire::{Because, Explanation, InstanceView};
use model::compute::{InstanceState, ReleaseOrigin};
use model::control::{NodeRecord, Reason, Rollout, Standing};
use model::ids::{InstanceName, NodeName, ProjectName, ReleaseNumber, ResourceId};
use model::signals::Event;
use plan::Now;

use crate::handlers::{rollout_of, serving_instead};
use crate::problems;
use crate::state::Shared;
use crate::views;
use crate::world::Entry;
use lines::Lines;
pub use lines::because;

/// A service, an instance, a route or a secret of a project.
pub fn resource(
    shared: &Shared,
    events: &[Event],
    project: &ProjectName,
    subject: &str,
    now: Now,
) -> Option<Explanation> {
    service(shared, events, project, subject, now)
        .or_else(|| instance(shared, events, project, subject, now))
        .or_else(|| route(shared, events, project, subject, now))
        .or_else(|| secret(shared, events, project, subject))
        .or_else(|| gone(events, project, subject))
}

/// What nobody knows of, with the name that was probably meant.
pub fn unknown(shared: &Shared, project: &ProjectName, subject: &str, now: Now) -> Problem {
    let world = &shared.world;
    if !world.has_project(project) {
        return problems::no_project(world, project);
    }
    let instances = views::instances(shared, project, now);
    let services = world.services_of(project).map(|(name, ..)| name.as_str());
    let secrets = world.secrets_of(project).map(|(name, _)| name.as_str());
    let routes = world.routes_of(project).map(|(place, _)| place.as_str());
    let known = services
        .chain(secrets)
        .chain(routes)
        .chain(instances.iter().map(|view| view.name.as_str()))
        .chain(world.nodes.keys().map(NodeName::as_str));
    problems::missing(
        format!("`{subject}` in project {project}"),
        subject,
        known,
        "ask about a service, an instance, a route or a node; `mainland ps` lists them",
    )
}

fn service(
    shared: &Shared,
    events: &[Event],
    project: &ProjectName,
    subject: &str,
    now: Now,
) -> Option<Explanation> {
    let id = ResourceId::new(project.clone(), subject.parse().ok()?);
    let (entry, record) = shared.world.service(&id)?;
    let mut lines = of_service(entry);
    let views = views::instances(shared, project, now);
    let own: Vec<_> = views
        .iter()
        .filter(|view| view.service == id.name)
        .collect();
    for view in own.iter().filter(|view| stands_in_the_way(view)) {
        let about = Some(view.name.to_string());
        // What has no place is told by the decision that found none.
        if lines.now.iter().all(|line| line.about != about) {
            let said = reported(view, now);
            lines.now.extend(said.map(|line| Because { about, ..line }));
        }
    }
    for view in &own {
        lines.now.extend(noticed(shared, project, view, now));
    }
    let is_about =
        |event: &Event| event.subject == subject || is_instance_of(&event.subject, subject);
    lines.hear(events, project, subject, is_about);
    let ready = own.iter().filter(|view| view.ready).count();
    let now = match record.current.as_ref() {
        None => "runs elsewhere; is routed to".to_owned(),
        Some(current) => format!(
            "{ready} of {} ready, {}",
            entry.wanted(),
            release_words(current.number, rollout_of(entry).as_ref())
        ),
    };
    Some(lines.told(subject, now))
}

/// Which release serves, also where it is not the newest.
fn release_words(current: ReleaseNumber, rollout: Option<&Rollout>) -> String {
    match rollout.and_then(serving_instead) {
        Some(serving) => format!("release {serving} (release {current} failed)"),
        None => format!("release {current}"),
    }
}

fn is_instance_of(name: &str, service: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(of, number)| {
        of == service && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn of_service(entry: &Entry) -> Lines {
    let mut lines = Lines::default();
    if let Some(rollout) = rollout_of(entry) {
        let line = because(rollout.progressed_at, "rollout", rollout.reason);
        lines.before.push(line);
    }
    if let Some((_, release)) = entry.releases.iter().next_back() {
        let line = because(release.at, "release", release_reason(release));
        lines.before.push(line);
    }
    if let Some(scale) = &entry.scale {
        let copies = if scale.replicas == 1 {
            "copy"
        } else {
            "copies"
        };
        let message = format!("{} set {} {copies}", scale.owner, scale.replicas);
        let line = because(scale.at, "scale", Reason::new("scaled", message));
        match scale.replicas {
            0 => lines.now.push(line),
            _ => lines.before.push(line),
        }
    }
    let pending = entry.group().pending.into_iter();
    lines.now.extend(pending.map(|pending| Because {
        about: Some(pending.instance.to_string()),
        ..because(pending.since, "pending", pending.reason)
    }));
    lines
}

/// What should serve, and does not.
fn stands_in_the_way(view: &InstanceView) -> bool {
    let ends = matches!(
        view.state,
        InstanceState::Draining | InstanceState::Finished | InstanceState::Stopped
    );
    !view.ready && !ends
}

/// What its node says of it now.
fn reported(view: &InstanceView, now: Now) -> Option<Because> {
    let reason = view.reason.clone()?;
    Some(because(now.at, "report", reason))
}

/// What is wrong with it that its state does not show.
fn noticed(
    shared: &Shared,
    project: &ProjectName,
    view: &InstanceView,
    now: Now,
) -> Option<Because> {
    let reason = views::notice_of(shared, project, view)?.clone();
    let about = Some(view.name.to_string());
    Some(Because {
        about,
        ..because(now.at, "notice", reason)
    })
}

fn release_reason(release: &model::compute::Release) -> Reason {
    let what = match &release.origin {
        ReleaseOrigin::Apply => "applied".to_owned(),
        ReleaseOrigin::Rollback { to } => format!("rolled back to release {to}"),
        ReleaseOrigin::Restart => "restarted".to_owned(),
    };
    let message = format!("release {}: {what} by {}", release.number, release.author);
    Reason::new("released", message).with_detail(release.diff.clone())
}

fn instance(
    shared: &Shared,
    events: &[Event],
    project: &ProjectName,
    subject: &str,
    now: Now,
) -> Option<Explanation> {
    let view = views::instances(shared, project, now)
        .into_iter()
        .find(|view| view.name.as_str() == subject)?;
    let entry = shared
        .world
        .services
        .get(&ResourceId::new(project.clone(), view.service.clone()))?;
    let mut lines = of_instance(entry, &view.name);
    let said = reported(&view, now).filter(|said| !lines.have(&said.reason));
    lines.now.extend(said);
    lines.now.extend(noticed(shared, project, &view, now));
    let node = view
        .node
        .as_ref()
        .and_then(|node| shared.world.nodes.get(node));
    if let Some(node) = node.filter(|node| node.standing == Standing::Lost) {
        let at = node_at(events, &node.name, node);
        lines.before.push(because(at, "node", node.reason.clone()));
    }
    lines.hear(events, project, subject, |event| event.subject == subject);
    let state = format!("{:?}", view.state).to_lowercase();
    let place = match (&view.node, &view.zone) {
        (Some(node), Some(zone)) => format!(" on node {node} (zone {zone})"),
        (Some(node), None) => format!(" on node {node}"),
        (None, _) => String::new(),
    };
    let readiness = if view.ready { ", ready" } else { "" };
    let now = format!("{state}{place}, release {}{readiness}", view.version);
    Some(lines.told(subject, now))
}

fn of_instance(entry: &Entry, name: &InstanceName) -> Lines {
    let group = entry.group();
    let placed = group
        .placements
        .iter()
        .filter(|placement| placement.instance == *name);
    let pending = group
        .pending
        .iter()
        .filter(|pending| pending.instance == *name);
    Lines {
        now: pending
            .map(|pending| because(pending.since, "pending", pending.reason.clone()))
            .collect(),
        before: placed
            .map(|placement| because(placement.at, "placement", placement.reason.clone()))
            .collect(),
    }
}

fn route(
    shared: &Shared,
    events: &[Event],
    project: &ProjectName,
    subject: &str,
    now: Now,
) -> Option<Explanation> {
    let (place, route) = shared
        .world
        .routes_of(project)
        .find(|(place, _)| *place == subject)?;
    let service = service(shared, events, project, route.to.as_str(), now);
    let state = service
        .as_ref()
        .map_or("which is not there".to_owned(), |service| {
            service.now.clone()
        });
    let why = service.or_else(|| gone(events, project, route.to.as_str()));
    Some(Explanation {
        subject: place.clone(),
        now: format!("leads to {}: {state}", route.target()),
        because: why.map(|why| why.because).unwrap_or_default(),
    })
}

fn secret(
    shared: &Shared,
    events: &[Event],
    project: &ProjectName,
    subject: &str,
) -> Option<Explanation> {
    let id = ResourceId::new(project.clone(), subject.parse().ok()?);
    let record = shared.world.secrets.get(&id)?;
    let message = format!(
        "version {} was set by {}",
        record.version, record.changed_by
    );
    let mut lines = Lines::default();
    let set = because(
        record.changed_at,
        "secret",
        Reason::new("secret-set", message),
    );
    lines.before.push(set);
    lines.hear(events, project, subject, |event| event.subject == subject);
    Some(lines.told(subject, format!("a secret, version {}", record.version)))
}

/// What is no longer there, as far as events remember it.
fn gone(events: &[Event], project: &ProjectName, subject: &str) -> Option<Explanation> {
    let is_about =
        |event: &Event| event.subject == subject && event.project.as_ref() == Some(project);
    let mut lines = Lines::default();
    lines.hear(events, project, subject, is_about);
    (!lines.before.is_empty()).then(|| lines.told(subject, "no longer there".to_owned()))
}

pub fn node(shared: &Shared, events: &[Event], name: &NodeName, now: Now) -> Option<Explanation> {
    let view = views::node_of(shared, name, now)?;
    let record = shared.world.nodes.get(name)?;
    let mut lines = Lines::default();
    let at = node_at(events, name, record);
    lines
        .before
        .push(because(at, "node", record.reason.clone()));
    if let Some(brake) = shared.nodes.brake() {
        lines
            .now
            .push(because(now.at, "brake", brake.reason.clone()));
    }
    let trouble = view.trouble.iter().cloned();
    let trouble = trouble.map(|reason| because(now.at, "disk", reason));
    lines.now.extend(trouble);
    lines.hear_node(events, name);
    let state = format!("{:?}", view.state).to_lowercase();
    let heard = view.heard_ms_ago.map_or_else(String::new, |ms| {
        format!(", heard {:.1} s ago", ms as f64 / 1000.0)
    });
    let cordoned = if view.cordoned { ", cordoned" } else { "" };
    let now = format!("{state} in zone {}{heard}{cordoned}", view.zone);
    Some(lines.told(name.as_str(), now))
}

/// When a node got its standing: as the event that told it says.
fn node_at(events: &[Event], name: &NodeName, record: &NodeRecord) -> jiff::Timestamp {
    let told = events
        .iter()
        .rev()
        .find(|event| event.node.as_ref() == Some(name) && event.reason == record.reason);
    told.map_or(record.joined_at, |event| event.at)
}
