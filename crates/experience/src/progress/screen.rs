//! The screen that `up` ends with: what serves where, and what to try next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::wire::{NodeState, RouteStatus};
use model::control::NodeRole;

use super::World;
use crate::Globals;

/// One screen: what serves where, what to try next.
pub(super) fn screen(globals: &Globals, world: &World, took: Duration) -> String {
    let workers = world
        .nodes
        .iter()
        .filter(|node| node.role == NodeRole::Worker && node.state == NodeState::Ready);
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
    text.push_str(&next(world));
    text
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
            door.path, door.to
        ));
    }
    text
}

/// What to try: on a cloud of several zones, also what else would cost an evening.
fn next(world: &World) -> String {
    let services = world
        .projects
        .iter()
        .flat_map(|(status, _)| &status.services);
    // One that can be broken without a thought: it has more than one copy.
    let sturdy = services
        .filter(|service| service.wanted > 1)
        .max_by_key(|service| service.needs.len());
    let several_zones = world
        .nodes
        .iter()
        .filter(|node| node.role == NodeRole::Worker)
        .count()
        > 1;
    let mut lines = vec![
        ("mainland ps".to_owned(), "what runs where"),
        ("mainland status".to_owned(), "how it does"),
    ];
    if let Some(service) = sturdy {
        let name = &service.name;
        let more = service.wanted + 1;
        if several_zones {
            lines.push((
                "mainland chaos kill b".to_owned(),
                "kill a whole zone; `mainland start b` brings it back",
            ));
        }
        lines.push((format!("mainland scale {name} {more}"), "another copy"));
        lines.push((
            format!("mainland deploy {name} --wait"),
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
