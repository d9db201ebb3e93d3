//! What no apply may bring, whatever the world is like.

mod engines;
mod ports;
mod programs;

use std::collections::{BTreeMap, BTreeSet};

use api::problem::{Problem, nearest};
use api::wire::Apply;
use boundary::authorize::Change as Admitted;
use model::compute::{Service, Work};
use model::ids::{ProjectName, ReleaseNumber, ResourceId, ResourceName};
use model::traffic::Route;

use super::Request;
use crate::problems;
use crate::world::World;
pub use ports::lost_ports;
pub use programs::check_value;

/// Characters of what is said of a release.
const MESSAGE_MOST: usize = 500;
/// Copies, env entries, needs, volumes and arguments of one service at most.
const PARTS_MOST: usize = 1_000;

pub(super) fn check(world: &World, request: &Request<'_>) -> Result<(), Problem> {
    let projects = world.projects();
    if !projects.contains(request.project) {
        let change = Admitted::Project {
            projects: projects.len() + 1,
        };
        boundary::authorize::admit(&change, request.limits)
            .map_err(|refusal| problems::of_refusal(&refusal))?;
    }
    let message = request.apply.message.as_deref().unwrap_or_default();
    if message.chars().count() > MESSAGE_MOST || message.chars().any(char::is_control) {
        return Err(invalid(format!(
            "a message has at most {MESSAGE_MOST} characters, in one line"
        )));
    }
    let known = Known::of(world, request.project, request.apply);
    for (name, spec) in &request.apply.services {
        if request.apply.secrets.contains_key(name) {
            return Err(invalid(format!(
                "`{name}` is declared as a service and as a secret: names are unique across kinds"
            )));
        }
        check_service(name, spec)?;
        check_needs(name, spec, &known)?;
        ports::check(name, spec, &known)?;
        engines::check(name, spec, &known)?;
        check_artifact(name, spec, request)?;
    }
    programs::check(world, request, &known)?;
    let mut places = BTreeSet::new();
    for route in &request.apply.routes {
        if !places.insert((&route.host, &route.path)) {
            return Err(invalid(format!(
                "the route {}{} is there twice",
                route.host, route.path
            )));
        }
        check_route(world, request.project, route, &known)?;
    }
    ports::check_what_stays(world, request.project, request.apply, &known)
}

/// Whether an earlier release of a service finds what it needs, and is found by what leads to it. It was taken once: nothing else is asked of it,
/// since who returns to it may have no time.
pub(super) fn check_return(
    world: &World,
    id: &ResourceId,
    to: ReleaseNumber,
    spec: &Service,
) -> Result<(), Problem> {
    let (project, name) = (&id.project, &id.name);
    let apply = Apply {
        services: BTreeMap::from([(name.clone(), spec.clone())]),
        ..Apply::default()
    };
    let known = Known::of(world, project, &apply);
    let checked = check_needs(name, spec, &known)
        .and_then(|()| ports::check(name, spec, &known))
        .and_then(|()| ports::check_what_stays(world, project, &apply, &known));
    checked.map_err(|problem| {
        let title = format!(
            "release {to} of {name} does not fit what is there now: {}",
            problem.title
        );
        let of_route = problem
            .remedy
            .clone()
            .filter(|said| said.contains("`mainland delete routes"));
        let remedy = of_route.unwrap_or_else(|| {
            format!(
                "return to another (`mainland releases {name}` lists them), or apply a manifest in which all of it fits"
            )
        });
        Problem { title, ..problem }.remedy(remedy)
    })
}

/// What will be there after the change.
struct Known<'a> {
    services: BTreeMap<&'a ResourceName, &'a Service>,
    secrets: BTreeSet<ResourceName>,
}

impl<'a> Known<'a> {
    fn of(world: &'a World, project: &'a ProjectName, apply: &'a Apply) -> Self {
        let mut services: BTreeMap<_, _> = apply.services.iter().collect();
        let mut secrets: BTreeSet<_> = apply.secrets.keys().cloned().collect();
        if !apply.prune {
            for (name, _, record) in world.services_of(project) {
                services.entry(name).or_insert(&record.spec);
            }
            secrets.extend(world.secrets_of(project).map(|(name, _)| name.clone()));
        }
        Self { services, secrets }
    }

    fn has(&self, name: &ResourceName) -> bool {
        self.services.contains_key(name) || self.secrets.contains(name)
    }

    fn nearest(&self, name: &ResourceName) -> Option<&str> {
        let known = self.services.keys().copied().chain(&self.secrets);
        nearest(name.as_str(), known.map(ResourceName::as_str))
    }
}

fn invalid(title: String) -> Problem {
    Problem::new(422, "invalid-spec", title)
}

fn unknown(title: String, nearest: Option<&str>) -> Problem {
    let problem = Problem::new(422, "unknown-name", title);
    match nearest {
        Some(nearest) => problem.remedy(format!("did you mean `{nearest}`?")),
        None => problem.remedy("declare it in the same file, or take the name out"),
    }
}

fn check_needs(name: &ResourceName, spec: &Service, known: &Known<'_>) -> Result<(), Problem> {
    match spec.needs.keys().find(|need| !known.has(need)) {
        None => Ok(()),
        Some(need) => Err(unknown(
            format!("{name} needs `{need}`, which is neither in the file nor in the project"),
            known.nearest(need),
        )),
    }
}

fn check_service(name: &ResourceName, spec: &Service) -> Result<(), Problem> {
    match &spec.work {
        Work::Process { run, .. } if run.is_empty() || run[0].is_empty() => {
            return Err(invalid(format!("{name}: `run` names no program")));
        }
        Work::External { addresses, .. } if addresses.is_empty() => {
            return Err(invalid(format!("{name}: `external` names no address")));
        }
        Work::External { .. } if !spec.volumes.is_empty() => {
            return Err(invalid(format!(
                "{name}: what runs elsewhere has no volumes here"
            )));
        }
        Work::Process { .. } | Work::External { .. } | Work::Engine { .. } => {}
    }
    let arguments = if let Work::Process { run, .. } = &spec.work {
        run.len()
    } else {
        0
    };
    let parts = [
        arguments,
        spec.env.len(),
        spec.needs.len(),
        spec.volumes.len(),
        spec.labels.len(),
    ];
    if parts.into_iter().any(|count| count > PARTS_MOST) {
        return Err(invalid(format!(
            "{name}: more than {PARTS_MOST} of one thing"
        )));
    }
    if let Some(bad) = spec
        .env
        .keys()
        .find(|key| key.is_empty() || key.contains(['=', '\0']))
    {
        return Err(invalid(format!(
            "{name}: `{bad}` can't be the name of an environment variable"
        )));
    }
    if spec.needs.contains_key(name) {
        return Err(invalid(format!("{name} needs itself")));
    }
    if spec.traffic.max_in_flight == 0 || spec.traffic.max_in_flight > 65_536 {
        return Err(invalid(format!(
            "{name}: `traffic.max_in_flight` is 1 to 65536"
        )));
    }
    Ok(())
}

fn check_artifact(
    name: &ResourceName,
    spec: &Service,
    request: &Request<'_>,
) -> Result<(), Problem> {
    let Work::Process {
        artifact: Some(artifact),
        ..
    } = &spec.work
    else {
        return Ok(());
    };
    if !request.missing_artifacts.contains(&artifact.digest) || request.dry_run {
        return Ok(());
    }
    Err(Problem::conflict(
        "artifact-missing",
        format!("the artifact {} of {name} is not uploaded", artifact.digest),
    )
    .remedy("apply with the CLI, which uploads it, or upload it to /v1/artifacts first"))
}

fn check_route(
    world: &World,
    project: &ProjectName,
    route: &Route,
    known: &Known<'_>,
) -> Result<(), Problem> {
    let place = format!("{}{}", route.host, route.path);
    let host_allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    let host_is_good =
        route.host == "*" || (!route.host.is_empty() && route.host.chars().all(host_allowed));
    if !host_is_good || route.host.len() > 253 {
        return Err(invalid(format!(
            "route {place}: `{}` is no host: lower case, without a port, or `*`",
            route.host
        )));
    }
    let path_is_good = route.path.starts_with('/')
        && !route
            .path
            .contains(|c: char| c.is_control() || c == '?' || c == '#');
    if !path_is_good || route.path.len() > 200 {
        return Err(invalid(format!(
            "route {place}: `{}` is no path of at most 200 characters",
            route.path
        )));
    }
    if !known.services.contains_key(&route.to) {
        let known = known.services.keys().map(|name| name.as_str());
        let nearest = nearest(route.to.as_str(), known);
        return Err(unknown(
            format!(
                "the route {place} leads to `{}`, which is no service",
                route.to
            ),
            nearest,
        ));
    }
    ports::check_route(&place, route, known)?;
    let elsewhere = world
        .routes
        .keys()
        .find(|(other, taken)| other != project && *taken == place);
    match elsewhere {
        None => Ok(()),
        Some((other, _)) => Err(Problem::conflict(
            "route-taken",
            format!("the route {place} belongs to project {other}"),
        )
        .remedy(way_out(project, other, &place))),
    }
}

/// What to do where a route is another project's. An environment takes over the routes of its file where it does not say otherwise.
fn way_out(project: &ProjectName, other: &ProjectName, place: &str) -> String {
    let base = |one: &ProjectName, of: &ProjectName| {
        let rest = one.as_str().strip_prefix(of.as_str())?;
        rest.strip_prefix('-').map(str::to_owned)
    };
    match base(project, other) {
        Some(environment) => format!(
            "an environment has routes of its own: in the manifest, under `environments: {environment}: routes:`, write `{place}: ~` and a route on another host, such as `{environment}.{place}`"
        ),
        None => "choose another host or path".to_owned(),
    }
}
