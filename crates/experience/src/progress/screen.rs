//! The screen that `up` ends with: what serves where, and what to try next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::wire::{NodeState, NodeView, RouteStatus};
use model::control::NodeRole;

use super::World;
use crate::Globals;

/// For the C library to say whether it finds a name: the screen waits no longer for that.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(1);

/// One screen: what serves where, what to try next.
pub(super) fn screen(globals: &Globals, world: &World, took: Duration) -> String {
    let workers = workers(world);
    let zones: BTreeSet<_> = workers.clone().map(|node| node.zone.to_string()).collect();
    let zones: Vec<_> = zones.into_iter().collect();
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let nodes = workers.count();
    let mut text = format!(
        "\nReady in {:.2} s: {nodes} node{} in zone{} {}\n",
        took.as_secs_f64(),
        plural(nodes),
        plural(zones.len()),
        zones.join(", ")
    );
    let gateway = crate::context::gateway_port(globals);
    let finds = |name: &str| crate::doctor::resolves(name, RESOLVE_PATIENCE) != Some(false);
    for (status, _) in &world.projects {
        text.push_str(&format!("\n{}\n", status.project));
        for service in &status.services {
            let spread: Vec<_> = service
                .zones
                .iter()
                .map(|(zone, count)| format!("{zone}:{count}"))
                .collect();
            text.push_str(&format!(
                "  {:<20} {}/{} ready   {}\n",
                service.name,
                service.ready,
                service.wanted,
                spread.join(" ")
            ));
        }
        text.push('\n');
        text.push_str(&doors(&status.routes, gateway));
        for reason in &status.attention {
            text.push_str(&format!("  ! {reason}\n"));
        }
    }
    text.push_str(&unfound(world, gateway, finds));
    text.push_str(&next(world, &globals.aim()));
    text
}

/// Debian's C library asks the network for `shop.localhost`, which knows no such name: what to do about it, where that is so. One name stands for all.
fn unfound(world: &World, gateway: u16, finds: impl Fn(&str) -> bool) -> String {
    let routes = world.projects.iter().flat_map(|(status, _)| &status.routes);
    let mut hosts = routes.map(|route| route.host.as_str());
    let is_local = |host: &&str| host.ends_with(".localhost") && !host.starts_with('*');
    let Some(host) = hosts.find(is_local).filter(|host| !finds(host)) else {
        return String::new();
    };
    format!(
        "\n  The C library of this machine does not find {host}. Browsers and newer curls do; for other programs:\n    \
         echo '127.0.0.1 {host}' >> /etc/hosts     (or apt-get install libnss-myhostname, for all such names)\n    \
         curl --resolve {host}:{gateway}:127.0.0.1 http://{host}:{gateway}/\n"
    )
}

/// Where each host is entered, with the number of its other routes.
fn doors(routes: &[RouteStatus], gateway: u16) -> String {
    let mut hosts: BTreeMap<&str, Vec<&RouteStatus>> = BTreeMap::new();
    for route in routes {
        hosts.entry(&route.host).or_default().push(route);
    }
    let mut text = String::new();
    for (host, routes) in hosts {
        let Some(door) = routes.iter().min_by_key(|route| route.path.len()) else {
            continue;
        };
        let host = if host == "*" { "localhost" } else { host };
        let others = match routes.len() - 1 {
            0 => String::new(),
            others => format!("   (and {others} more: mainland status)"),
        };
        text.push_str(&format!(
            "  http://{host}:{gateway}{}  → {}{others}\n",
            door.path,
            door.target()
        ));
    }
    text
}

/// What to try: on a cloud of several zones, also what else would cost an evening.
fn next(world: &World, aim: &str) -> String {
    let services = world
        .projects
        .iter()
        .flat_map(|(status, _)| &status.services);
    // One that can be broken without a thought: it has more than one copy.
    let sturdy = services
        .filter(|service| service.wanted > 1)
        .max_by_key(|service| service.needs.len());
    let mut lines = vec![
        (format!("mainland ps{aim}"), "what runs where"),
        (format!("mainland status{aim}"), "how it does"),
    ];
    if let Some(service) = sturdy {
        let name = &service.name;
        let more = service.wanted + 1;
        if let Some(node) = to_kill(world).filter(|_| workers(world).count() > 1) {
            lines.push((
                format!("mainland chaos kill {}", node.name),
                "kill a whole zone; `mainland start` brings it back",
            ));
        }
        lines.push((format!("mainland scale {name} {more}{aim}"), "another copy"));
        lines.push((
            format!("mainland deploy {name} --wait{aim}"),
            "after a change to it or to mainland.yaml",
        ));
    }
    lines.push(("mainland down".to_owned(), "end it (data is kept)"));
    let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let lines: Vec<String> = lines
        .iter()
        .map(|(line, what)| format!("  {line:<width$}   {what}\n"))
        .collect();
    format!("\n{}", lines.concat())
}

fn workers(world: &World) -> impl Iterator<Item = &NodeView> + Clone {
    let ready = |node: &&NodeView| node.role == NodeRole::Worker && node.state == NodeState::Ready;
    world.nodes.iter().filter(ready)
}

/// The node whose loss is felt least: who tries that first should see what holds. A database has one copy, and its zone is no such.
fn to_kill(world: &World) -> Option<&NodeView> {
    workers(world).min_by_key(|node| felt(world, node))
}

/// How many services have their only copy in the node's zone, or need one that has.
fn felt(world: &World, node: &NodeView) -> usize {
    let projects = world.projects.iter().map(|(status, _)| &status.services);
    let felt = projects.map(|services| {
        let lone = services
            .iter()
            .filter(|service| service.wanted == 1 && service.zones.contains_key(&node.zone));
        let callers = |name| {
            let calls = services
                .iter()
                .filter(move |other| other.needs.contains(name));
            calls.count()
        };
        lone.map(|service| 1 + callers(&service.name))
            .sum::<usize>()
    });
    felt.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `db@b` is one copy in zone b; `web@a,c db` is one in each of a and c, and needs db.
    fn world(zones: &[&str], services: &[&str]) -> World {
        let node = |zone: &&str| {
            let capacity = json!({ "cpu": "1", "memory": "1Gi" });
            serde_json::from_value(json!({
                "name": zone, "region": "local", "zone": zone, "role": "worker", "state": "ready",
                "capacity": capacity, "used": capacity, "cordoned": false,
                "reason": { "code": "joined", "message": "joined" },
            }))
            .unwrap()
        };
        let service = |text: &&str| {
            let (name, rest) = text.split_once('@').unwrap();
            let mut words = rest.split(' ');
            let zones: BTreeMap<&str, u32> = words
                .next()
                .unwrap()
                .split(',')
                .map(|zone| (zone, 1))
                .collect();
            json!({
                "name": name, "wanted": zones.len(), "ready": zones.len(), "zones": zones,
                "external": false, "needs": words.collect::<Vec<_>>(), "demand": 0,
            })
        };
        let services: Vec<_> = services.iter().map(service).collect();
        let status =
            json!({ "project": "shop", "services": services, "routes": [], "attention": [] });
        World {
            nodes: zones.iter().map(node).collect(),
            projects: vec![(serde_json::from_value(status).unwrap(), Vec::new())],
        }
    }

    #[test]
    fn the_zone_to_kill_first_is_the_one_that_is_missed_least() {
        let web = "web@a,b,c db";
        for (services, expected) in [
            (vec![web], "a"),
            (vec![web, "db@a"], "b"),
            (vec![web, "db@b"], "a"),
            (vec![web, "db@a", "events@b"], "c"),
            (vec![web, "db@a", "events@b", "analytics@c"], "b"),
            (vec![web, "db@a", "events@a", "mail@c events", "x@b"], "b"),
        ] {
            let world = world(&["a", "b", "c"], &services);
            let found = to_kill(&world).unwrap();
            assert_eq!(found.name.as_str(), expected, "{services:?}");
        }
    }

    #[test]
    fn names_that_the_c_library_does_not_find_are_told_with_what_to_do() {
        let told = |hosts: &[&str], finds: bool| {
            let mut world = world(&["a"], &["web@a"]);
            world.projects[0].0.routes = hosts
                .iter()
                .map(|host| {
                    let route = json!({ "host": host, "path": "/", "to": "web", "serving": true });
                    serde_json::from_value(route).unwrap()
                })
                .collect();
            unfound(&world, 8080, |_| finds)
        };
        let text = told(&["*", "example.org", "shop.localhost"], false);
        for part in [
            "does not find shop.localhost",
            "echo '127.0.0.1 shop.localhost' >> /etc/hosts",
            "curl --resolve shop.localhost:8080:127.0.0.1 http://shop.localhost:8080/",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        for (hosts, finds) in [
            (&["shop.localhost"][..], true),
            (&["example.org"], false),
            (&["*.localhost", "localhost"], false),
            (&[], false),
        ] {
            assert_eq!(told(hosts, finds), "", "{hosts:?}");
        }
    }

    #[test]
    fn one_zone_is_not_offered_to_be_killed() {
        let services = ["web@a", "api@a,b"];
        assert!(!next(&world(&["a"], &services), "").contains("chaos"));
        assert!(next(&world(&["a", "b"], &services), "").contains("chaos kill b"));
    }

    #[test]
    fn first_steps_of_an_environment_stay_in_it() {
        let text = next(&world(&["a"], &["api@a,b"]), " --env staging");
        let acts = text.lines().filter(|line| line.contains("mainland"));
        let apart = acts.filter(|line| !line.contains("--env staging"));
        let apart: Vec<_> = apart.map(str::trim).collect();
        assert!(
            apart.len() == 1 && apart[0].starts_with("mainland down "),
            "{apart:?}"
        );
    }
}
