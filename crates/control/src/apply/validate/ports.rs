//! The ports of a service: what they are called, and who leads to them.

use std::collections::BTreeSet;

use api::problem::Problem;
use api::wire::Apply;
use model::compute::expansion::{self, Piece};
use model::compute::ports::{self, PORTS_MAX};
use model::compute::{Service, Work, environment_name};
use model::ids::{NAME_MAX_LENGTH, ProjectName, ResourceId, ResourceName};
use model::traffic::{Protocol, Route};

use super::{Known, invalid};
use crate::world::World;

/// Each is known to callers by a name of its own.
pub(super) fn check(name: &ResourceName, spec: &Service, known: &Known<'_>) -> Result<(), Problem> {
    let named = spec.ports_of(name).count();
    if named < spec.ports.len() || named > PORTS_MAX {
        return Err(invalid(format!(
            "{name}: it may have {PORTS_MAX} ports, whose names with its own have at most {NAME_MAX_LENGTH} characters"
        )));
    }
    if named > 0 && !matches!(spec.work, Work::Process { .. }) {
        return Err(invalid(format!("{name}: only a program has `ports`")));
    }
    let probes = [Some(&spec.health), spec.alive.as_ref()];
    let mut probed = probes
        .into_iter()
        .flatten()
        .filter_map(|probe| probe.port.as_ref());
    if let Some(port) = probed.find(|port| !spec.ports.contains_key(*port)) {
        return Err(invalid(format!(
            "{name}: its probe asks at the port `{port}`, which is none of its `ports`"
        )));
    }
    let of_others = known.services.iter().filter(|(other, _)| **other != name);
    let of_others = of_others.flat_map(|(other, spec)| spec.ports_of(other));
    let of_others: BTreeSet<_> = of_others.map(|(name, ..)| name).collect();
    let mut own = spec.ports_of(name).map(|(name, port, _)| (name, port));
    if let Some((taken, port)) = own.find(|(name, _)| known.has(name) || of_others.contains(name)) {
        return Err(invalid(format!(
            "{name}: callers know its port `{port}` as `{taken}`, which is the name of something else"
        )));
    }
    if of_others.contains(name) {
        return Err(invalid(format!(
            "`{name}` is how callers know a port of another service: name it otherwise"
        )));
    }
    Ok(())
}

/// Whether the route leads to what speaks http.
pub(super) fn check_route(place: &str, route: &Route, known: &Known<'_>) -> Result<(), Problem> {
    let Some(spec) = known.services.get(&route.to) else {
        return Ok(());
    };
    let why = match &route.port {
        None if spec.protocol == Protocol::Tcp => {
            "the service speaks tcp, and a route leads to http".to_owned()
        }
        None => return Ok(()),
        Some(port) => match spec.ports.get(port) {
            None => format!("the service has no port `{port}`"),
            Some(Protocol::Tcp) => {
                format!("its port `{port}` speaks tcp, and a route leads to http")
            }
            Some(Protocol::Http) => return Ok(()),
        },
    };
    let target = route.target();
    Err(invalid(format!(
        "the route {place} leads to `{target}`: {why}"
    )))
}

/// What is there and is not named by the change must still find what it leads to.
pub(super) fn check_what_stays(
    world: &World,
    project: &ProjectName,
    apply: &Apply,
    known: &Known<'_>,
) -> Result<(), Problem> {
    let named: BTreeSet<_> = apply
        .routes
        .iter()
        .map(|one| (&one.host, &one.path))
        .collect();
    for (place, route) in world.routes_of(project) {
        let stays = !apply.prune && !named.contains(&(&route.host, &route.path));
        if stays && apply.services.contains_key(&route.to) {
            check_route(place, route, known).map_err(|problem| {
                let remedy = format!(
                    "the route is there from before: lead it elsewhere, or delete it first: `mainland delete routes {place}`"
                );
                problem.remedy(remedy)
            })?;
        }
    }
    for (name, spec) in &known.services {
        check_needed_ports(world, project, apply, name, spec)?;
    }
    Ok(())
}

/// A program that is given what a port gave would be given the bare name of a variable instead.
fn check_needed_ports(
    world: &World,
    project: &ProjectName,
    apply: &Apply,
    name: &ResourceName,
    spec: &Service,
) -> Result<(), Problem> {
    for need in spec.needs.keys() {
        for port in lost_ports(world, project, apply, need) {
            let Some(on_road) = ports::name_of(need, &port) else {
                continue;
            };
            let variable = environment_name(&on_road);
            let given = ["URL", "HOST", "PORT"].map(|part| format!("{variable}_{part}"));
            let used = given
                .iter()
                .find(|variable| !spec.env.contains_key(*variable) && mentions(spec, variable));
            if let Some(used) = used {
                return Err(invalid(format!(
                    "{need}: its port `{port}` can't go: {name} needs `{need}`, and uses ${used}"
                ))
                .remedy(format!("keep the port, or change {name} in the same file")));
            }
        }
    }
    Ok(())
}

/// Ports that a service has, and will not have after the change.
pub fn lost_ports(
    world: &World,
    project: &ProjectName,
    apply: &Apply,
    service: &ResourceName,
) -> Vec<ResourceName> {
    let id = ResourceId::new(project.clone(), service.clone());
    let after = apply.services.get(service);
    let Some((after, (_, before))) = after.zip(world.service(&id)) else {
        return Vec::new();
    };
    let lost = before.spec.ports.keys();
    let lost = lost.filter(|port| !after.ports.contains_key(*port));
    lost.cloned().collect()
}

/// Whether `run`, `before_deploy` or `env` name the variable.
fn mentions(spec: &Service, variable: &str) -> bool {
    let run = match &spec.work {
        Work::Process { run, .. } => run.as_slice(),
        Work::External { .. } | Work::Engine { .. } => &[],
    };
    let mut texts = run
        .iter()
        .chain(&spec.before_deploy)
        .chain(spec.env.values());
    texts.any(|text| {
        expansion::pieces(text)
            .any(|piece| matches!(piece, Piece::Variable { name, .. } if name == variable))
    })
}
