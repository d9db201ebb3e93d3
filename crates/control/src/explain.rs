//! Why a thing is as it is: the reasons that were stored with decisions, newest first. Nothing is guessed here.

use api::problem::Problem;
use api::wire::{Because, Explanation};
use model::compute::ReleaseOrigin;
use model::control::{NodeRecord, Reason, Rollout, Standing};
use model::ids::{InstanceName, NodeName, ProjectName, ReleaseNumber, ResourceId};
use model::signals::Event;
use plan::Now;

use crate::handlers::{rollout_of, serving_instead};
use crate::problems;
use crate::state::Shared;
use crate::views;
use crate::world::Entry;

/// Events of one answer.
const EVENTS_MOST: usize = 30;

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
    if !world.projects().contains(project) {
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

fn finish(subject: &str, now: String, mut because: Vec<Because>) -> Explanation {
    because.sort_by_key(|because| std::cmp::Reverse(because.at));
    Explanation {
        subject: subject.to_owned(),
        now,
        because,
    }
}

fn because(at: jiff::Timestamp, from: &str, reason: Reason) -> Because {
    Because {
        at,
        from: from.to_owned(),
        reason,
    }
}

/// Events about it, or that name it.
fn told(
    events: &[Event],
    project: &ProjectName,
    is_about: impl Fn(&Event) -> bool,
    named: &str,
) -> Vec<Because> {
    let of_project = |event: &&Event| event.project.as_ref().is_none_or(|of| of == project);
    let matching = events
        .iter()
        .rev()
        .filter(of_project)
        .filter(|event| is_about(event) || names(&event.reason, named));
    matching
        .take(EVENTS_MOST)
        .map(|event| because(event.at, "event", event.reason.clone()))
        .collect()
}

/// Whether a reason's sentence names `project/name` as a whole word.
fn names(reason: &Reason, named: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '/';
    reason
        .message
        .split(|c: char| !is_word(c))
        .any(|word| word == named)
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
    let mut all = of_service(entry);
    let own = |event: &Event| event.subject == subject || is_instance_of(&event.subject, subject);
    all.extend(told(events, project, own, &id.to_string()));
    let views = views::instances(shared, project, now);
    let ready = views
        .iter()
        .filter(|view| view.service == id.name && view.ready)
        .count();
    let now = match record.current.as_ref() {
        None => "runs elsewhere; is routed to".to_owned(),
        Some(current) => format!(
            "{ready} of {} ready, {}",
            entry.wanted(),
            release_words(current.number, rollout_of(entry).as_ref())
        ),
    };
    Some(finish(subject, now, all))
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

fn of_service(entry: &Entry) -> Vec<Because> {
    let mut all = Vec::new();
    if let Some(rollout) = rollout_of(entry) {
        all.push(because(rollout.progressed_at, "rollout", rollout.reason));
    }
    if let Some((_, release)) = entry.releases.iter().next_back() {
        all.push(because(release.at, "release", release_reason(release)));
    }
    if let Some(scale) = &entry.scale {
        let message = format!("{} set {} copies", scale.owner, scale.replicas);
        all.push(because(scale.at, "scale", Reason::new("scaled", message)));
    }
    for pending in entry.group().pending {
        let reason = Reason {
            message: format!("{}: {}", pending.instance, pending.reason.message),
            ..pending.reason
        };
        all.push(because(pending.since, "pending", reason));
    }
    all
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
    let mut all = of_instance(entry, &view.name);
    if let Some(reason) = view
        .reason
        .clone()
        .filter(|reason| !all.iter().any(|known| known.reason == *reason))
    {
        all.push(because(now.at, "report", reason));
    }
    let node = view
        .node
        .as_ref()
        .and_then(|node| shared.world.nodes.get(node));
    if let Some(node) = node.filter(|node| node.standing == Standing::Lost) {
        all.push(because(
            node_at(events, &node.name, node),
            "node",
            node.reason.clone(),
        ));
    }
    let named = format!("{project}/{subject}");
    all.extend(told(
        events,
        project,
        |event| event.subject == subject,
        &named,
    ));
    let state = format!("{:?}", view.state).to_lowercase();
    let place = match (&view.node, &view.zone) {
        (Some(node), Some(zone)) => format!(" on node {node} (zone {zone})"),
        (Some(node), None) => format!(" on node {node}"),
        (None, _) => String::new(),
    };
    let readiness = if view.ready { ", ready" } else { "" };
    Some(finish(
        subject,
        format!("{state}{place}, release {}{readiness}", view.version),
        all,
    ))
}

fn of_instance(entry: &Entry, name: &InstanceName) -> Vec<Because> {
    let group = entry.group();
    let placed = group
        .placements
        .iter()
        .filter(|placement| placement.instance == *name);
    let pending = group
        .pending
        .iter()
        .filter(|pending| pending.instance == *name);
    placed
        .map(|placement| because(placement.at, "placement", placement.reason.clone()))
        .chain(pending.map(|pending| because(pending.since, "pending", pending.reason.clone())))
        .collect()
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
    Some(finish(
        place,
        format!("leads to {}: {state}", route.to),
        service.map(|service| service.because).unwrap_or_default(),
    ))
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
    let mut all = vec![because(
        record.changed_at,
        "secret",
        Reason::new("secret-set", message),
    )];
    all.extend(told(
        events,
        project,
        |event| event.subject == subject,
        &id.to_string(),
    ));
    Some(finish(
        subject,
        format!("a secret, version {}", record.version),
        all,
    ))
}

/// What is no longer there, as far as events remember it.
fn gone(events: &[Event], project: &ProjectName, subject: &str) -> Option<Explanation> {
    let about = |event: &Event| event.subject == subject && event.project.as_ref() == Some(project);
    let all = told(events, project, about, &format!("{project}/{subject}"));
    (!all.is_empty()).then(|| finish(subject, "no longer there".to_owned(), all))
}

pub fn node(shared: &Shared, events: &[Event], name: &NodeName, now: Now) -> Option<Explanation> {
    let view = views::node_of(shared, name, now)?;
    let record = shared.world.nodes.get(name)?;
    let mut all = vec![because(
        node_at(events, name, record),
        "node",
        record.reason.clone(),
    )];
    if let Some(brake) = shared.nodes.brake() {
        all.push(because(now.at, "brake", brake.reason.clone()));
    }
    let own = events
        .iter()
        .rev()
        .filter(|event| event.node.as_ref() == Some(name) && event.reason != record.reason);
    all.extend(
        own.take(EVENTS_MOST)
            .map(|event| because(event.at, "event", event.reason.clone())),
    );
    let state = format!("{:?}", view.state).to_lowercase();
    let heard = view.heard_ms_ago.map_or_else(String::new, |ms| {
        format!(", heard {:.1} s ago", ms as f64 / 1000.0)
    });
    let cordoned = if view.cordoned { ", cordoned" } else { "" };
    Some(finish(
        name.as_str(),
        format!("{state} in zone {}{heard}{cordoned}", view.zone),
        all,
    ))
}

/// When a node got its standing: as the event that told it says.
fn node_at(events: &[Event], name: &NodeName, record: &NodeRecord) -> jiff::Timestamp {
    let told = events
        .iter()
        .rev()
        .find(|event| event.node.as_ref() == Some(name) && event.reason == record.reason);
    told.map_or(record.joined_at, |event| event.at)
}
