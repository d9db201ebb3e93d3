//! Waiting, with something to look at: a live board on a terminal, plain lines elsewhere, then one screen.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use api::client::Client;
use api::wire::{InstanceView, NodeState, NodeView, ProjectStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use model::compute::InstanceState;
use model::control::{NodeRole, RolloutPhase};
use model::ids::{ProjectName, ResourceName};
use model::units::Bytes;

use crate::Globals;
use crate::failure::Failure;
use crate::output::say;

/// Between looks at the state of things.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// An upload below this is too quick to show.
const SHOWN_UPLOAD: Bytes = Bytes::mebibytes(4);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1 if it is not ready in time, or a rollout failed.\n\nExample:\n  mainland apply && mainland wait --timeout 60s"
)]
pub struct Wait {
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::parse_span)]
    timeout: Duration,
}

impl Wait {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let deadline = Instant::now() + self.timeout;
        let project = loop {
            match globals.project(&client).await {
                Ok(project) => break project,
                Err(failure) if Instant::now() > deadline => return Err(failure),
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        };
        let mut board = Board::new();
        match wait(&client, &[Subject::all_of(project)], deadline, &mut board).await? {
            Outcome::Ready(_) => Ok(0),
            Outcome::NotReady(hindrances) => Err(not_ready(self.timeout, &hindrances)),
        }
    }
}

/// Waits for a file that another process will write.
pub async fn until_file(path: &Path, timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(Failure::failed(format!(
                "{} did not appear within {timeout:?}",
                path.display()
            )));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// What is waited for.
#[derive(Debug, Clone)]
pub struct Subject {
    pub project: ProjectName,
    /// `None`: all of the project's.
    pub services: Option<BTreeSet<ResourceName>>,
}

impl Subject {
    pub fn all_of(project: ProjectName) -> Self {
        Self {
            project,
            services: None,
        }
    }

    pub fn services(
        project: ProjectName,
        services: impl IntoIterator<Item = ResourceName>,
    ) -> Self {
        Self {
            project,
            services: Some(services.into_iter().collect()),
        }
    }

    fn has(&self, service: &ResourceName) -> bool {
        self.services
            .as_ref()
            .is_none_or(|services| services.contains(service))
    }
}

/// Waits until all nodes and subjects are ready, showing how far they are; then prints one screen with addresses.
pub async fn until_ready(
    globals: &Globals,
    subjects: &[Subject],
    timeout: Duration,
) -> Result<u8, Failure> {
    let begin = Instant::now();
    let client = globals.client()?;
    let mut board = Board::new();
    let outcome = wait(&client, subjects, begin + timeout, &mut board).await;
    // Its lines are taken back before others follow.
    drop(board);
    match outcome? {
        Outcome::Ready(world) => {
            say(&screen(globals, &world, begin.elapsed()))?;
            Ok(0)
        }
        Outcome::NotReady(hindrances) => Err(not_ready(timeout, &hindrances)),
    }
}

fn not_ready(timeout: Duration, hindrances: &[String]) -> Failure {
    let list: String = hindrances
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect();
    Failure::failed(format!(
        "not ready after {timeout:?} [not-ready]{list}\n  remedy: `mainland explain NAME` says why, `mainland logs NAME` what it printed"
    ))
}

/// What is looked at.
struct World {
    nodes: Vec<NodeView>,
    projects: Vec<(ProjectStatus, Vec<InstanceView>)>,
}

enum Outcome {
    Ready(World),
    NotReady(Vec<String>),
}

async fn wait(
    client: &Client,
    subjects: &[Subject],
    deadline: Instant,
    board: &mut Board,
) -> Result<Outcome, Failure> {
    let mut last = vec!["the server does not answer".to_owned()];
    loop {
        match look(client, subjects).await {
            Ok(world) => {
                board.show(&world);
                if let Some(failed) = failed_rollout(&world) {
                    return Err(Failure::failed(failed));
                }
                last = hindrances(&world);
                if last.is_empty() {
                    return Ok(Outcome::Ready(world));
                }
            }
            // Somebody is about to apply it.
            Err(error) if error.code() == Some("not-found") => last = vec![error.to_string()],
            // A server may be away for a moment; any other refusal is final.
            Err(api::client::Error::Refused(problem)) if problem.status < 500 => {
                return Err((*problem).into_failure());
            }
            Err(error) => last = vec![error.to_string()],
        }
        if Instant::now() > deadline {
            return Ok(Outcome::NotReady(last));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

trait IntoFailure {
    fn into_failure(self) -> Failure;
}

impl IntoFailure for api::problem::Problem {
    fn into_failure(self) -> Failure {
        Failure::from(api::client::Error::from(self))
    }
}

async fn look(client: &Client, subjects: &[Subject]) -> Result<World, api::client::Error> {
    let mut world = World {
        nodes: client.nodes().await?.items,
        projects: Vec::new(),
    };
    for subject in subjects {
        let mut status = client.status(&subject.project).await?;
        let mut instances = client.instances(&subject.project).await?.items;
        status.services.retain(|service| subject.has(&service.name));
        status.routes.retain(|route| subject.has(&route.to));
        instances.retain(|instance| subject.has(&instance.service));
        world.projects.push((status, instances));
    }
    Ok(world)
}

/// What is still missing, a line each.
fn hindrances(world: &World) -> Vec<String> {
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
        for service in status.services.iter().filter(|service| !service.external) {
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
            status
                .services
                .iter()
                .any(|service| service.name == *name && service.wanted > 0)
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

fn service_progress(ready: u32, wanted: u32, rolling: bool) -> String {
    let rolling = if rolling { ", rolling" } else { "" };
    format!("{ready} of {wanted} ready{rolling}")
}

fn unready<'a>(
    instances: &'a [InstanceView],
    service: &'a ResourceName,
) -> impl Iterator<Item = String> + 'a {
    let those = instances
        .iter()
        .filter(move |one| one.service == *service && !one.ready);
    those.map(|one| format!("  {}", instance_line(one)))
}

fn instance_line(instance: &InstanceView) -> String {
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
    format!("{} {state}{zone}{why}", instance.name)
}

fn failed_rollout(world: &World) -> Option<String> {
    let services = world
        .projects
        .iter()
        .flat_map(|(status, _)| &status.services);
    let failed = services.filter_map(|service| Some((service, service.rollout.as_ref()?)));
    let (service, rollout) = failed
        .into_iter()
        .find(|(_, rollout)| rollout.phase == RolloutPhase::Failed)?;
    Some(format!(
        "{}: release {} failed: {} [rollout-failed]",
        service.name, rollout.to, rollout.reason
    ))
}

/// One screen: what serves where, what to try next.
fn screen(globals: &Globals, world: &World, took: Duration) -> String {
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
        for route in &status.routes {
            let host = if route.host == "*" {
                "localhost"
            } else {
                &route.host
            };
            text.push_str(&format!(
                "  http://{host}:{gateway}{}  → {}\n",
                route.path, route.to
            ));
        }
        for reason in &status.attention {
            text.push_str(&format!("  ! {reason}\n"));
        }
    }
    text.push_str("\n  mainland ps       what runs where\n  mainland status   how it does\n  mainland down     end it (data is kept)\n");
    text
}

/// Shows progress: live on a terminal, a line per change elsewhere.
enum Board {
    Live {
        bars: MultiProgress,
        lines: BTreeMap<String, ProgressBar>,
    },
    Plain {
        told: BTreeMap<String, String>,
    },
}

impl Board {
    fn new() -> Self {
        match std::io::stderr().is_terminal() {
            true => Self::Live {
                bars: MultiProgress::new(),
                lines: BTreeMap::new(),
            },
            false => Self::Plain {
                told: BTreeMap::new(),
            },
        }
    }

    fn show(&mut self, world: &World) {
        let now = board_lines(world);
        match self {
            Self::Live { bars, lines } => show_live(bars, lines, &now),
            Self::Plain { told } => {
                for (name, (line, _)) in &now {
                    if told.get(name) != Some(line) {
                        // A closed stderr is no reason to end.
                        let _ = writeln!(std::io::stderr(), "{name}: {line}");
                    }
                }
                *told = now
                    .into_iter()
                    .map(|(name, (line, _))| (name, line))
                    .collect();
            }
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Self::Live { bars, .. } = self {
            let _ = bars.clear();
        }
    }
}

fn show_live(
    bars: &MultiProgress,
    lines: &mut BTreeMap<String, ProgressBar>,
    now: &BTreeMap<String, (String, bool)>,
) {
    lines.retain(|name, bar| {
        let stays = now.contains_key(name);
        if !stays {
            bar.finish_and_clear();
        }
        stays
    });
    for (name, (line, done)) in now {
        let bar = lines.entry(name.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let template = if *done {
            "  ✓ {prefix:<20} {msg}"
        } else {
            "  {spinner} {prefix:<20} {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name.clone());
        bar.set_message(line.clone());
    }
}

/// A line for each node and service: what it is, whether it is done.
fn board_lines(world: &World) -> BTreeMap<String, (String, bool)> {
    let mut lines = BTreeMap::new();
    for node in &world.nodes {
        let state = crate::output::word(&node.state);
        lines.insert(
            format!("node {}", node.name),
            (state, node.state != NodeState::Unknown),
        );
    }
    for (status, instances) in &world.projects {
        for service in status.services.iter().filter(|service| !service.external) {
            let first = unready(instances, &service.name)
                .next()
                .map_or(String::new(), |line| format!(" ({})", line.trim()));
            let line = format!("{} of {} ready{first}", service.ready, service.wanted);
            lines.insert(
                service.name.to_string(),
                (line, service.ready == service.wanted),
            );
        }
    }
    lines
}

/// The progress of one upload; quick ones are not shown.
pub struct Upload {
    bar: Option<ProgressBar>,
}

impl Upload {
    pub fn new(service: &ResourceName, size: Bytes) -> Self {
        if size < SHOWN_UPLOAD || !std::io::stderr().is_terminal() {
            return Self { bar: None };
        }
        let bar = ProgressBar::new(size.0).with_prefix(format!("{service}: uploading"));
        if let Ok(style) =
            ProgressStyle::with_template("  {prefix} {bar:30} {bytes}/{total_bytes} {eta}")
        {
            bar.set_style(style);
        }
        Self { bar: Some(bar) }
    }

    pub fn at(&mut self, sent: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(sent);
        if sent == total {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_rollout_says_once_what_serves() {
        let status = serde_json::json!({
            "project": "shop", "routes": [], "attention": [],
            "services": [{
                "name": "web", "wanted": 2, "ready": 2, "zones": {}, "release": 3, "scale": null, "external": false,
                "needs": [], "demand": 0, "reason": null,
                "rollout": {
                    "to": 3, "from": 2, "phase": "failed", "started_at": "2026-01-01T00:00:00Z",
                    "progressed_at": "2026-01-01T00:00:00Z",
                    "reason": { "code": "not-ready", "message": "release 3 was judged bad: X; release 2 goes on serving" },
                },
            }],
        });
        let world = World {
            nodes: Vec::new(),
            projects: vec![(serde_json::from_value(status).unwrap(), Vec::new())],
        };
        assert_eq!(
            failed_rollout(&world).unwrap(),
            "web: release 3 failed: release 3 was judged bad: X; release 2 goes on serving [rollout-failed]"
        );
    }
}
