//! Waiting, with something to look at: a live board on a terminal, plain lines elsewhere, then one screen.

mod board;
mod failing;
mod screen;
mod stuck;
mod subject;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use api::client::{Client, Error};
use api::wire::{InstanceView, NodeState, NodeView, ProjectStatus, ServiceStatus};
use model::compute::InstanceState;
use model::control::{Rollout, RolloutPhase};
use model::ids::{ProjectName, ReleaseNumber, ResourceName};
use model::units::Span;

use crate::Globals;
use crate::failure::{Failure, USAGE};
use crate::output::{Output, say};
use board::Board;
use failing::Failures;
use screen::screen;
use stuck::Verdicts;

pub use failing::last_lines;
pub use subject::Subject;
pub use upload::Upload;

/// Between looks at the state of things.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1 if it is not ready in time, a rollout fails meanwhile, or something can't become ready until a person changes it: \
                  that is said after some seconds, with the reason. Where a release had failed before, and an earlier one serves, what serves \
                  counts; a line says so.\n\n\
                  Example:\n  mainland apply && mainland wait --timeout 60s"
)]
pub struct Wait {
    /// How long to wait, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::parse_span, allow_hyphen_values = true)]
    timeout: Duration,
}

impl Wait {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let deadline = Instant::now() + self.timeout;
        let project = loop {
            match globals.project(&client).await {
                Ok(project) => break project,
                // Which one is meant is not for time to tell.
                Err(failure) if failure.exit_code == USAGE => return Err(failure),
                Err(failure) if Instant::now() > deadline => return Err(failure),
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        };
        let mut board = Board::new();
        let aim = globals.aim();
        let outcome = wait(
            &client,
            &[Subject::all_of(project)],
            deadline,
            &mut board,
            &aim,
        )
        .await;
        drop(board);
        match outcome? {
            Outcome::Ready(world) => {
                tell_failed(&world, &aim);
                Ok(0)
            }
            Outcome::NotReady(hindrances) | Outcome::Silent(hindrances) => {
                Err(Failure::failed(not_ready(self.timeout, &hindrances)))
            }
        }
    }
}

/// Waits for a file that another process will write.
pub async fn until_file(path: &Path, timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(Failure::failed(format!(
                "{} did not appear within {}",
                path.display(),
                Span(timeout)
            )));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Waits until all nodes and subjects are ready, showing how far they are; then prints one screen with addresses and first steps, for people.
pub async fn until_ready(
    globals: &Globals,
    subjects: &[Subject],
    timeout: Duration,
    output: Output,
) -> Result<u8, Failure> {
    let (world, took) = ready(globals, subjects, timeout).await?;
    if output.is_for_people() {
        say(&screen(globals, &world, took))?;
    }
    Ok(0)
}

/// Waits until what a command changed is ready, showing how far it is; then says in a line what came of it, for people.
pub async fn until_done(
    globals: &Globals,
    subject: Subject,
    timeout: Duration,
    output: Output,
) -> Result<u8, Failure> {
    let (world, took) = ready(globals, &[subject], timeout).await?;
    tell_failed(&world, &globals.aim());
    if output.is_for_people() {
        say(&came_of(&world, took))?;
    }
    Ok(0)
}

async fn ready(
    globals: &Globals,
    subjects: &[Subject],
    timeout: Duration,
) -> Result<(World, Duration), Failure> {
    let begin = Instant::now();
    let client = globals.client()?;
    let mut board = Board::new();
    let aim = globals.aim();
    let outcome = wait(&client, subjects, begin + timeout, &mut board, &aim).await;
    // Its lines are taken back before others follow.
    drop(board);
    match outcome? {
        Outcome::Ready(world) => Ok((world, begin.elapsed())),
        Outcome::NotReady(hindrances) => Err(Failure::failed(not_ready(timeout, &hindrances))),
        Outcome::Silent(hindrances) => Err(Failure::unknown(not_ready(timeout, &hindrances))),
    }
}

/// Rollouts that failed before: what serves is ready, and is not what is wanted.
fn tell_failed(world: &World, aim: &str) {
    for note in failing::notes(world, aim) {
        let note = crate::output::for_stderr(&note);
        // A closed stderr is no reason to end.
        let _ = writeln!(std::io::stderr(), "{note}");
    }
}

/// `web: 3 of 3 ready after 0.84 s, release 4`.
fn came_of(world: &World, took: Duration) -> String {
    let services = world
        .projects
        .iter()
        .flat_map(|(status, _)| &status.services);
    let services: Vec<_> = services.filter(|service| !service.external).collect();
    let took = format!("after {:.2} s", took.as_secs_f64());
    match services.as_slice() {
        [] => "nothing had to become ready".to_owned(),
        [one] => {
            let release = one
                .release
                .map_or(String::new(), |number| format!(", release {number}"));
            let progress = service_progress(one.ready, one.wanted, false);
            format!("{}: {progress} {took}{release}", one.name)
        }
        many => format!("{} services are ready {took}", many.len()),
    }
}

fn not_ready(timeout: Duration, hindrances: &[String]) -> String {
    let list: String = hindrances
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect();
    let timeout = Span(timeout);
    format!(
        "not ready after {timeout} [not-ready]{list}\n  remedy: `mainland explain NAME` says why, `mainland logs NAME` what it printed"
    )
}

/// What is looked at.
struct World {
    nodes: Vec<NodeView>,
    projects: Vec<(ProjectStatus, Vec<InstanceView>)>,
}

enum Outcome {
    Ready(World),
    NotReady(Vec<String>),
    /// At the end the server did not answer.
    Silent(Vec<String>),
}

async fn wait(
    client: &Client,
    subjects: &[Subject],
    deadline: Instant,
    board: &mut Board,
    aim: &str,
) -> Result<Outcome, Failure> {
    let mut verdicts = Verdicts::default();
    let mut failures = Failures::default();
    loop {
        let now = Instant::now();
        let seen = match look(client, subjects).await {
            Ok(world) => {
                board.show(&world);
                let failed = failures.ending(&world, subjects);
                if !failed.is_empty() {
                    return Err(failing::failure(client, &world, &failed, aim).await);
                }
                give_up(&world, subjects, &mut verdicts, now)?;
                let hindrances = hindrances(&world, &Services::new());
                if hindrances.is_empty() {
                    return Ok(Outcome::Ready(world));
                }
                Outcome::NotReady(hindrances)
            }
            // Somebody is about to apply it.
            Err(error) if error.code() == Some("not-found") => {
                Outcome::NotReady(vec![error.to_string()])
            }
            Err(error) => Outcome::Silent(vec![passing(error)?]),
        };
        if now > deadline {
            return Ok(seen);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What is waited for will not come.
fn give_up(
    world: &World,
    subjects: &[Subject],
    verdicts: &mut Verdicts,
    now: Instant,
) -> Result<(), Failure> {
    if let Some(service) = stuck::deleted(world, subjects) {
        return Err(stuck::deletion(&service));
    }
    match stuck::failure(&verdicts.look(world, now)) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// How a wait for releases ended.
pub enum Rolled {
    Done,
    Failed {
        service: ResourceName,
        rollout: Box<Rollout>,
    },
    /// A newer release is rolled out instead.
    Superseded {
        service: ResourceName,
        by: ReleaseNumber,
    },
    /// They are still on their way: what is missing, a line each.
    Late(Vec<String>),
}

/// Waits until these releases are rolled out, showing how far they are.
pub async fn rolled_out(
    client: &Client,
    project: &ProjectName,
    releases: &BTreeMap<ResourceName, ReleaseNumber>,
    deadline: Instant,
) -> Result<Rolled, Failure> {
    let subject = Subject::services(project.clone(), releases.keys().cloned());
    let subjects = std::slice::from_ref(&subject);
    let mut board = Board::new();
    let mut verdicts = Verdicts::default();
    loop {
        let now = Instant::now();
        let hindrances = match look(client, subjects).await {
            Ok(world) => {
                board.show(&world);
                let (status, _) = &world.projects[0];
                if let Some(rolled) = rolled(&status.services, releases) {
                    return Ok(rolled);
                }
                if let Some(service) = stuck::deleted(&world, subjects) {
                    return Err(stuck::deletion(&service));
                }
                if let Some(failure) = stuck::failure(&verdicts.look(&world, now)) {
                    return Err(failure);
                }
                let held = status.services.iter().filter_map(held);
                held.chain(hindrances(&world, &Services::new())).collect()
            }
            Err(error) => vec![passing(error)?],
        };
        if now > deadline {
            return Ok(Rolled::Late(hindrances));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn rolled(
    services: &[ServiceStatus],
    releases: &BTreeMap<ResourceName, ReleaseNumber>,
) -> Option<Rolled> {
    let mut under_way = false;
    for (service, release) in releases {
        let status = services.iter().find(|status| status.name == *service)?;
        let rollout = status.rollout.as_ref()?;
        let service = service.clone();
        match rollout.phase {
            _ if rollout.to > *release => {
                let by = rollout.to;
                return Some(Rolled::Superseded { service, by });
            }
            _ if rollout.to < *release => under_way = true,
            RolloutPhase::Failed => {
                let rollout = Box::new(rollout.clone());
                return Some(Rolled::Failed { service, rollout });
            }
            RolloutPhase::Rolling | RolloutPhase::Paused => under_way = true,
            RolloutPhase::Done => {}
        }
    }
    (!under_way).then_some(Rolled::Done)
}

/// A server may be away for a moment; any other refusal is final.
fn passing(error: Error) -> Result<String, Failure> {
    match &error {
        Error::Refused(problem) if problem.status < 500 => Err(error.into()),
        _ => Ok(error.to_string()),
    }
}

async fn look(client: &Client, subjects: &[Subject]) -> Result<World, Error> {
    let mut world = World {
        nodes: client.nodes().await?.items,
        projects: Vec::new(),
    };
    for subject in subjects {
        let mut status = client.status_of_services(&subject.project).await?;
        let mut instances = client.instances(&subject.project).await?.items;
        status.services.retain(|service| subject.has(&service.name));
        status.routes.retain(|route| subject.has(&route.to));
        instances.retain(|instance| subject.has(&instance.service));
        world.projects.push((status, instances));
    }
    Ok(world)
}

/// Services of projects.
type Services = BTreeSet<(ProjectName, ResourceName)>;

/// What is still missing, a line each, but for these services.
fn hindrances(world: &World, but: &Services) -> Vec<String> {
    let mut lines = Vec::new();
    if world.nodes.is_empty() {
        lines.push("no node has joined yet".to_owned());
    }
    // A lost node is a fact to live with; one that has never been heard is on its way.
    for node in world
        .nodes
        .iter()
        .filter(|node| node.state == NodeState::Unknown)
    {
        lines.push(format!("node {} has not been heard yet", node.name));
    }
    for (status, instances) in &world.projects {
        let counts = |service: &&ServiceStatus| {
            !but.contains(&(status.project.clone(), service.name.clone()))
        };
        let counted = || status.services.iter().filter(counts);
        for service in counted().filter(|service| !service.external) {
            let rolling = service
                .rollout
                .as_ref()
                .is_some_and(|rollout| rollout.phase == RolloutPhase::Rolling);
            if service.ready != service.wanted || rolling {
                lines.push(format!(
                    "{}: {}",
                    service.name,
                    service_progress(service.ready, service.wanted, rolling)
                ));
                lines.extend(unready(instances, &service.name));
            }
        }
        // A route whose service is scaled to nothing leads nowhere by intent.
        let wanted = |name: &ResourceName| {
            counted().any(|service| service.name == *name && service.wanted > 0)
        };
        for route in status
            .routes
            .iter()
            .filter(|route| !route.serving && wanted(&route.to))
        {
            lines.push(format!(
                "route {}{} has no endpoint",
                route.host, route.path
            ));
        }
    }
    lines
}

/// That a person holds its rollout: it goes on when a person says so.
fn held(service: &ServiceStatus) -> Option<String> {
    let rollout = service.rollout.as_ref()?;
    let name = &service.name;
    (rollout.phase == RolloutPhase::Paused).then(|| {
        format!(
            "{name}: {}; `mainland rollout promote {name}` lets it go on",
            rollout.reason
        )
    })
}

fn service_progress(ready: u32, wanted: u32, rolling: bool) -> String {
    let rolling = if rolling { ", rolling" } else { "" };
    format!("{ready} of {wanted} ready{rolling}")
}

/// The instances of a service that are not ready, those that are alike on one line.
fn unready(instances: &[InstanceView], service: &ResourceName) -> Vec<String> {
    let mut found: Vec<(&InstanceView, String, usize)> = Vec::new();
    let those = instances.iter();
    for one in those.filter(|one| one.service == *service && !one.ready) {
        let state = state_line(one);
        match found.iter_mut().find(|(_, known, _)| *known == state) {
            Some((_, _, others)) => *others += 1,
            None => found.push((one, state, 0)),
        }
    }
    let lines = found
        .into_iter()
        .map(|(first, state, others)| match others {
            0 => format!("  {} {state}", first.name),
            _ => format!("  {} and {others} more {state}", first.name),
        });
    lines.collect()
}

fn state_line(instance: &InstanceView) -> String {
    let zone = instance
        .zone
        .as_ref()
        .map_or(String::new(), |zone| format!(" in zone {zone}"));
    let why = instance
        .reason
        .as_ref()
        .map_or(String::new(), |reason| format!(": {reason}"));
    let state = match instance.state {
        InstanceState::Running if !instance.ready => "running, not ready".to_owned(),
        other => crate::output::word(&other),
    };
    format!("{state}{zone}{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_came_of_a_change() {
        let service = |name: &str, external: bool| {
            serde_json::json!({
                "name": name, "wanted": 2, "ready": 2, "zones": {}, "release": 4, "external": external,
                "needs": [], "demand": 0,
            })
        };
        let came_of = |services: &[serde_json::Value]| {
            let status = serde_json::json!({
                "project": "shop", "routes": [], "attention": [], "services": services,
            });
            let world = World {
                nodes: Vec::new(),
                projects: vec![(serde_json::from_value(status).unwrap(), Vec::new())],
            };
            super::came_of(&world, Duration::from_millis(840))
        };
        let (web, api) = (service("web", false), service("api", false));
        let elsewhere = service("bank", true);
        for (services, expected) in [
            (vec![], "nothing had to become ready"),
            (vec![elsewhere.clone()], "nothing had to become ready"),
            (
                vec![web.clone(), elsewhere],
                "web: 2 of 2 ready after 0.84 s, release 4",
            ),
            (vec![web, api], "2 services are ready after 0.84 s"),
        ] {
            assert_eq!(came_of(&services), expected);
        }
    }

    #[test]
    fn instances_that_are_alike_are_one_line() {
        let view = |name: &str, state: &str, message: &str| -> InstanceView {
            let value = serde_json::json!({
                "name": name, "service": "web", "node": null, "zone": null, "state": state, "ready": false, "pid": null,
                "address": null, "restarts": 0, "version": 1, "project": "shop",
                "reason": { "code": "so", "message": message },
            });
            serde_json::from_value(value).unwrap()
        };
        let instances = [
            view("web-1", "pending", "full"),
            view("web-2", "running", "full"),
            view("web-3", "pending", "full"),
            view("web-4", "pending", "full"),
        ];
        assert_eq!(
            unready(&instances, &"web".parse().unwrap()),
            [
                "  web-1 and 2 more pending: full",
                "  web-2 running, not ready: full"
            ]
        );
    }
}
