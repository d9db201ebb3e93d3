//! Whether every name leads to something declared.

use std::collections::{BTreeMap, BTreeSet};

use crate::compute::{Need, environment_name};
use crate::ids::ResourceName;
use crate::state::Access;
use crate::traffic::Protocol;

use super::check::{Report, join, nearest, shown};
use super::document::{Entry, Node};
use super::{DeclaredService, Position, Services, outside, variables};

/// Needs, routes and names across kinds. What is declared is taken from the file itself, so that a service with another mistake in it
/// is not called unknown as well.
pub(super) fn check(report: &mut Report, file: &Node, services: &Services) {
    let declared = Declared {
        services: names(file, "services"),
        databases: names(file, "databases"),
        topics: names(file, "topics"),
        secrets: names(file, "secrets"),
    };
    names_are_used_once(report, file, &declared);
    port_names_are_used_once(report, services, &declared);
    for entry in file.get("databases").map(Node::entries).unwrap_or_default() {
        database(report, entry, &declared);
    }
    for entry in file.get("services").map(Node::entries).unwrap_or_default() {
        needs(report, entry, &declared, services);
        subscriptions(report, entry, &declared);
        variables::check(report, entry, services, &declared.secrets);
    }
    for entry in file.get("routes").map(Node::entries).unwrap_or_default() {
        route(report, entry, &declared, services);
    }
    topics_are_consumed(report, file, services);
    cycles(report, services);
}

struct Declared<'file> {
    services: BTreeSet<&'file str>,
    databases: BTreeSet<&'file str>,
    topics: BTreeSet<&'file str>,
    secrets: BTreeSet<&'file str>,
}

impl Declared<'_> {
    /// What the name is, where it is declared.
    fn kind(&self, name: &str) -> Option<&'static str> {
        let kinds = [
            (&self.services, "a service"),
            (&self.databases, "a database"),
            (&self.topics, "a topic"),
            (&self.secrets, "a secret"),
        ];
        kinds
            .into_iter()
            .find(|(names, _)| names.contains(name))
            .map(|(_, kind)| kind)
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        [&self.services, &self.databases, &self.topics, &self.secrets]
            .into_iter()
            .flatten()
            .copied()
    }
}

/// `needs`, variables and messages go by the name alone.
fn names_are_used_once(report: &mut Report, file: &Node, declared: &Declared<'_>) {
    let sections = [
        ("databases", "a database"),
        ("topics", "a topic"),
        ("secrets", "a secret"),
    ];
    for (section, own) in sections {
        for entry in file.get(section).map(Node::entries).unwrap_or_default() {
            if let Some(kind) = declared.kind(&entry.key).filter(|kind| *kind != own) {
                let message = format!(
                    "{} is also {kind}: a name is used once across kinds",
                    shown(&entry.key)
                );
                report.error(entry.key_position, &join(section, &entry.key), message);
            }
        }
    }
}

/// A port is called `SERVICE-PORT` by its callers, and so is nothing else.
fn port_names_are_used_once(report: &mut Report, services: &Services, declared: &Declared<'_>) {
    let mut seen: BTreeMap<ResourceName, String> = BTreeMap::new();
    for (name, service) in services {
        for (on_road, port, _) in service.spec.ports_of(name) {
            let path = join(&join("services", name.as_str()), "ports");
            let declared = declared.kind(on_road.as_str()).map(str::to_owned);
            let other = declared.or_else(|| seen.get(&on_road).cloned());
            if let Some(other) = other {
                let message = format!(
                    "callers know its port `{port}` as `{on_road}`, which is also {other}: a name is used once"
                );
                report.error(service.position, &path, message);
            }
            seen.insert(on_road, format!("the port `{port}` of `{name}`"));
        }
    }
}

/// Where its outbox leads to, and where its password comes from.
fn database(report: &mut Report, entry: &Entry, declared: &Declared<'_>) {
    let path = join("databases", &entry.key);
    let targets = [
        ("outbox", "topic", &declared.topics),
        ("password", "secret", &declared.secrets),
    ];
    for (key, noun, known) in targets {
        let Some(node) = entry.value.get(key) else {
            continue;
        };
        let name = node.text().filter(|name| ResourceName::new(*name).is_ok());
        let Some(name) = name.filter(|name| !known.contains(name)) else {
            continue;
        };
        let hint = unless_full(report, || nearest(name, known.iter().copied()));
        report
            .error(
                node.position,
                &join(&path, key),
                format!("no {noun} `{name}`"),
            )
            .hint(hint);
    }
}

/// A topic that nobody consumes keeps nothing for anybody. Who only needs it publishes.
fn topics_are_consumed(report: &mut Report, file: &Node, services: &Services) {
    for entry in file.get("topics").map(Node::entries).unwrap_or_default() {
        let name = entry.key.as_str();
        let pulls = |need: &Need| need.access == Access::Consume;
        let consumes = |service: &DeclaredService| {
            let spec = &service.spec;
            spec.on.contains_key(name) || spec.needs.get(name).is_some_and(pulls)
        };
        if !services.contains_key(name) || services.values().any(consumes) {
            continue;
        }
        let message = format!(
            "nobody consumes `{name}`: a service that is called says `on: {{ {name}: /PATH }}`, and one that pulls `needs: [{name}: consume]`"
        );
        report.warning(entry.key_position, &join("topics", name), message);
    }
}

/// Whether what a service consumes is a topic, and it can take it.
fn subscriptions(report: &mut Report, service: &Entry, declared: &Declared<'_>) {
    let path = join(&join("services", &service.key), "on");
    let on = service.value.get("on");
    for entry in on.map(Node::entries).unwrap_or_default() {
        if ResourceName::new(entry.key.as_str()).is_err()
            || declared.topics.contains(entry.key.as_str())
        {
            continue;
        }
        let message = match declared.kind(&entry.key) {
            Some(kind) => format!("`{}` is {kind}: messages come from a topic", entry.key),
            None => format!("no topic `{}`", entry.key),
        };
        let hint = unless_full(report, || {
            nearest(&entry.key, declared.topics.iter().copied())
        });
        report.error(entry.key_position, &path, message).hint(hint);
    }
    let tcp = service.value.get("protocol").and_then(Node::text) == Some("tcp");
    if let Some(on) = on.filter(|_| tcp) {
        let message = "messages are pushed over http, and this service speaks tcp";
        report.error(on.position, &path, message);
    }
}

fn names<'file>(file: &'file Node, section: &str) -> BTreeSet<&'file str> {
    file.get(section)
        .map(Node::keys)
        .unwrap_or_default()
        .into_iter()
        .collect()
}

fn needs(report: &mut Report, service: &Entry, declared: &Declared<'_>, services: &Services) {
    let resolved = services.get(service.key.as_str());
    let path = join(&join("services", &service.key), "needs");
    for item in service
        .value
        .get("needs")
        .map(Node::items)
        .unwrap_or_default()
    {
        let name = item.text().or_else(|| item.keys().first().copied());
        let Some(name) = name.filter(|name| ResourceName::new(*name).is_ok()) else {
            continue;
        };
        if name == service.key {
            report.error(item.position, &path, format!("`{name}` needs itself"));
        } else if declared.kind(name).is_none() {
            let of_port = services.iter().find_map(|(service, declared)| {
                let mut ports = declared.spec.ports_of(service);
                let (on_road, port, _) = ports.find(|(on_road, ..)| on_road.as_str() == name)?;
                let variable = environment_name(&on_road);
                Some(format!(
                    "it is the port `{port}` of `{service}`: need `{service}`, which gives `{variable}_URL` as well"
                ))
            });
            let hint = unless_full(report, || {
                let others = declared.all().filter(|known| *known != service.key);
                of_port.or_else(|| nearest(name, others))
            });
            let message = format!("`{name}` is not declared in this file");
            report.error(item.position, &path, message).hint(hint);
        } else if let Some(need) = resolved.and_then(|service| service.spec.needs.get(name)) {
            options(report, item.position, &path, name, need, declared);
        }
    }
}

/// Options that mean nothing for what is needed.
fn options(
    report: &mut Report,
    position: Position,
    path: &str,
    name: &str,
    need: &Need,
    declared: &Declared<'_>,
) {
    let is_secret = declared.kind(name) == Some("a secret");
    if need.access == Access::Read && !declared.databases.contains(name) {
        let topic = declared.topics.contains(name);
        let instead = if topic {
            format!("; who pulls from a topic says `{name}: consume`")
        } else {
            String::new()
        };
        let message = format!("`read` means nothing for `{name}`: it is not a database{instead}");
        report.error(position, path, message);
    }
    if need.access == Access::Consume && !declared.topics.contains(name) {
        let message = format!("`consume` means nothing for `{name}`: it is not a topic");
        report.error(position, path, message);
    }
    if need.connections.is_some() && !declared.databases.contains(name) {
        report.error(
            position,
            path,
            format!("`connections` means nothing for `{name}`: it is not a database"),
        );
    }
    if is_secret && need.timeout.is_some() {
        report.error(
            position,
            path,
            format!("`timeout` means nothing for the secret `{name}`"),
        );
    }
    if !is_secret && need.file {
        report.error(
            position,
            path,
            format!("`file` means nothing for `{name}`: it is not a secret"),
        );
    }
}

fn route(report: &mut Report, entry: &Entry, declared: &Declared<'_>, services: &Services) {
    let target = entry.value.get("to").unwrap_or(&entry.value);
    let read = target.text().and_then(|text| outside::target(text).ok());
    let Some((service, port)) = read else {
        return;
    };
    let to = service.as_str();
    let path = join("routes", &entry.key);
    if declared.services.contains(to) {
        let spec = services.get(to).map(|service| &service.spec);
        let protocol = match (&port, spec) {
            (Some(port), Some(spec)) if !spec.ports.contains_key(port) => {
                let known = spec.ports.keys().map(ResourceName::as_str);
                let hint = unless_full(report, || nearest(port.as_str(), known));
                let message = format!("`{to}` has no port `{port}`: its `ports` name them");
                report.error(target.position, &path, message).hint(hint);
                None
            }
            (Some(port), Some(spec)) => spec.ports.get(port).copied(),
            (None, spec) => spec.map(|spec| spec.protocol),
            (Some(_), None) => None,
        };
        if protocol == Some(Protocol::Tcp) {
            let to = target.text().unwrap_or(to);
            report.error(
                target.position,
                &path,
                format!("`{to}` speaks tcp: a route leads to a service that speaks http"),
            );
        }
    } else if let Some(kind) = declared.kind(to) {
        report.error(
            target.position,
            &path,
            format!("`{to}` is {kind}: a route leads to a service"),
        );
    } else {
        let hint = unless_full(report, || nearest(to, declared.services.iter().copied()));
        report
            .error(target.position, &path, format!("no service `{to}`"))
            .hint(hint);
    }
}

/// The search for a near name is the one thing here that is not linear: it ends with the problems that are kept.
fn unless_full(report: &Report, hint: impl FnOnce() -> Option<String>) -> Option<String> {
    if report.is_full() { None } else { hint() }
}

/// Cycles are legal: start order gives way. But who writes one seldom means it.
fn cycles(report: &mut Report, services: &Services) {
    let mut needs: BTreeMap<&ResourceName, BTreeSet<&ResourceName>> = BTreeMap::new();
    for (name, service) in services {
        let others = service
            .spec
            .needs
            .keys()
            .filter(|need| services.contains_key(*need) && *need != name);
        needs.insert(name, others.collect());
    }
    loop {
        remove_finished(&mut needs);
        let Some(cycle) = walk_to_cycle(&needs) else {
            return;
        };
        let first = &services[cycle[0]];
        let round: Vec<String> = cycle
            .iter()
            .chain(&cycle[..1])
            .map(|name| format!("`{name}`"))
            .collect();
        let path = join(&join("services", cycle[0].as_str()), "needs");
        let message = format!(
            "{} need each other in a circle: none can wait for the other at the start",
            round.join(" → ")
        );
        report.warning(first.position, &path, message);
        for name in &cycle {
            needs.remove(*name);
        }
    }
}

/// Removes what needs nothing that is left, until everything left needs something: then it is, or leads to, a cycle.
fn remove_finished(needs: &mut BTreeMap<&ResourceName, BTreeSet<&ResourceName>>) {
    let mut needed_by: BTreeMap<&ResourceName, Vec<&ResourceName>> = BTreeMap::new();
    let mut open: BTreeMap<&ResourceName, usize> = BTreeMap::new();
    for (name, others) in needs.iter() {
        let left: Vec<_> = others
            .iter()
            .filter(|other| needs.contains_key(*other))
            .collect();
        open.insert(name, left.len());
        for other in left {
            needed_by.entry(other).or_default().push(name);
        }
    }
    let mut finished: Vec<&ResourceName> = open
        .iter()
        .filter(|(_, left)| **left == 0)
        .map(|(name, _)| *name)
        .collect();
    while let Some(name) = finished.pop() {
        needs.remove(name);
        for caller in needed_by.remove(name).unwrap_or_default() {
            let Some(left) = open.get_mut(caller) else {
                continue;
            };
            *left -= 1;
            if *left == 0 {
                finished.push(caller);
            }
        }
    }
}

/// Follows the first need that is left from each, until one comes again.
fn walk_to_cycle<'a>(
    needs: &BTreeMap<&'a ResourceName, BTreeSet<&'a ResourceName>>,
) -> Option<Vec<&'a ResourceName>> {
    let mut name = *needs.keys().next()?;
    let mut walked: Vec<&ResourceName> = Vec::new();
    let mut places: BTreeMap<&ResourceName, usize> = BTreeMap::new();
    loop {
        if let Some(place) = places.get(name) {
            return Some(walked.split_off(*place));
        }
        places.insert(name, walked.len());
        walked.push(name);
        name = needs[name]
            .iter()
            .copied()
            .find(|need| needs.contains_key(need))?;
    }
}
