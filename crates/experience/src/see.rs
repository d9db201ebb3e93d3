//! `nodes`, `status`, `get`, `explain`, `whoami`.

use api::client::Client;
use api::wire::{self, Kind};
use jiff::Timestamp;
use model::control::Reason;
use model::ids::NodeName;

use crate::db::database_table;
use crate::failure::Failure;
use crate::output::{Output, age, dash, table, word};
use crate::topic::topic_table;
use crate::{Globals, deploy, operate};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "When most nodes, or several whole zones, vanish at once, nothing is replaced until they are heard again: it may be the server \
                  that is cut off. `status` says so. Who knows that they are gone says `mainland nodes release`.\n\n\
                  Examples:\n  mainland nodes\n  mainland nodes release"
)]
pub struct Nodes {
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    command: Option<operate::OnNodes>,
}

impl Nodes {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self.command {
            Some(command) => command.run(globals).await,
            None => self.list(globals).await,
        }
    }

    async fn list(self, globals: &Globals) -> Result<u8, Failure> {
        let nodes = globals.client()?.nodes().await?.items;
        let killed = globals.killed_nodes();
        self.output.list(&nodes, "no node has joined yet", || {
            let row = |node: &wire::NodeView| {
                let share = |used: String, all: String| format!("{used} / {all}");
                [
                    node.name.to_string(),
                    node.region.to_string(),
                    node.zone.to_string(),
                    word(&node.role),
                    if node.cordoned {
                        format!("{}, cordoned", word(&node.state))
                    } else {
                        word(&node.state)
                    },
                    share(node.used.cpu.to_string(), node.capacity.cpu.to_string()),
                    share(
                        mebibytes(node.used.memory.0),
                        mebibytes(node.capacity.memory.0),
                    ),
                    node.disk.map_or(String::new(), |disk| {
                        format!("{} %", disk.used_percent().max(disk.files_percent()))
                    }),
                    node_note(node, &killed),
                ]
            };
            table(
                [
                    "NAME", "REGION", "ZONE", "ROLE", "STATE", "CPU", "MEMORY", "DISK", "NOTE",
                ],
                nodes.iter().map(row),
            )
        })?;
        Ok(0)
    }
}

fn node_note(node: &wire::NodeView, killed: &[String]) -> String {
    let told = node.trouble.as_ref().unwrap_or(&node.reason);
    match node.state {
        wire::NodeState::Lost => format!("{}; {}", told.message, brings_back(&node.name, killed)),
        _ => told.message.clone(),
    }
}

/// What is to be done about a lost node.
fn brings_back(node: &NodeName, killed: &[String]) -> String {
    match killed.iter().any(|killed| killed == node.as_str()) {
        true => format!("`mainland start {node}` brings it back"),
        false => "look at its agent and its machine".to_owned(),
    }
}

/// Says with each lost node what is to be done about it.
async fn with_remedies(client: &Client, globals: &Globals, status: &mut wire::ProjectStatus) {
    let is_loss = |reason: &Reason| reason.code == "node-lost";
    if !status.attention.iter().any(is_loss) {
        return;
    }
    let Ok(nodes) = client.nodes().await else {
        return;
    };
    let killed = globals.killed_nodes();
    for reason in status.attention.iter_mut().filter(|one| is_loss(one)) {
        let node = nodes.items.iter().find(|node| node.reason == *reason);
        if let Some(node) = node {
            let remedy = brings_back(&node.name, &killed);
            reason.message = format!("{}; {remedy}", reason.message);
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes >> 20)
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --all, -o prints a list of what it prints of one project.\n\nExamples:\n  mainland status\n  mainland status --all"
)]
pub struct Status {
    /// Of all projects, not of one
    #[arg(short = 'a', long)]
    all: bool,
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        if self.all {
            return self.of_all(&client, globals).await;
        }
        let project = globals.project(&client).await?;
        let mut status = client.status(&project).await?;
        with_remedies(&client, globals, &mut status).await;
        self.output.print(&status, || status_text(&status))?;
        Ok(0)
    }

    async fn of_all(&self, client: &Client, globals: &Globals) -> Result<u8, Failure> {
        let mut all = Vec::new();
        for project in client.projects_with_kept().await?.items {
            match client.status(&project).await {
                Ok(mut status) => {
                    with_remedies(client, globals, &mut status).await;
                    all.push(status);
                }
                // One that went meanwhile is none of them.
                Err(error) if error.code() == Some("not-found") => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.list(&all, "nothing is deployed yet", || {
            let texts = all
                .iter()
                .map(|status| format!("{}\n\n{}", status.project, status_text(status).trim_end()));
            texts.collect::<Vec<_>>().join("\n\n\n")
        })?;
        Ok(0)
    }
}

/// What `status` says to people.
pub fn status_text(status: &wire::ProjectStatus) -> String {
    let row = |service: &wire::ServiceStatus| {
        let zones: Vec<String> = service
            .zones
            .iter()
            .map(|(zone, count)| format!("{zone}:{count}"))
            .collect();
        let ready = if service.external {
            "external".to_owned()
        } else {
            format!("{}/{}", service.ready, service.wanted)
        };
        let rollout = service
            .rollout
            .as_ref()
            .map_or(String::new(), |rollout| word(&rollout.phase));
        [
            service.name.to_string(),
            ready,
            zones.join(" "),
            release_column(service),
            rollout,
            note(service, &status.attention),
        ]
    };
    let mut text = match status.services.is_empty() {
        true => format!("{} has no services\n", status.project),
        false => table(
            ["SERVICE", "READY", "ZONES", "RELEASE", "ROLLOUT", "NOTE"],
            status.services.iter().map(row),
        ),
    };
    if !status.routes.is_empty() {
        text.push('\n');
        let row = |route: &wire::RouteStatus| {
            let serving = if route.serving {
                "serving"
            } else {
                "no endpoint"
            };
            [
                format!("{}{}", route.host, route.path),
                route.target(),
                serving.to_owned(),
            ]
        };
        text.push_str(&table(
            ["ROUTE", "TO", "STATE"],
            status.routes.iter().map(row),
        ));
    }
    text.push_str(&engines(&status.engines));
    for line in attention(&status.attention) {
        text.push_str(&format!("\n! {line}"));
    }
    text
}

/// Names of what is said of many in one line; the rest is counted.
const NAMES_OF_A_LINE: usize = 4;

/// A line for each reason; what is said alike of many, `NAME: WHY`, is one.
fn attention(reasons: &[Reason]) -> Vec<String> {
    let mut lines: Vec<(Vec<&str>, &str, &Reason)> = Vec::new();
    for reason in reasons {
        let (name, why) = reason
            .message
            .split_once(": ")
            .unwrap_or(("", &reason.message));
        let same = lines.iter_mut().find(|(names, known, other)| {
            !name.is_empty() && !names[0].is_empty() && *known == why && other.code == reason.code
        });
        match same {
            Some((names, ..)) => names.push(name),
            None => lines.push((vec![name], why, reason)),
        }
    }
    let line = |(names, why, reason): (Vec<&str>, &str, &Reason)| match names.as_slice() {
        [_] => reason.to_string(),
        many => {
            let shown = many.iter().take(NAMES_OF_A_LINE).copied();
            let shown = shown.collect::<Vec<_>>().join(", ");
            let others = match many.len().saturating_sub(NAMES_OF_A_LINE) {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            let alike = Reason {
                message: format!("{shown}{others}: {why}"),
                ..reason.clone()
            };
            alike.to_string()
        }
    };
    lines.into_iter().map(line).collect()
}

/// Of topics who waits for what, of databases what is not at its best.
fn engines(engines: &[wire::EngineView]) -> String {
    let (databases, topics): (Vec<_>, Vec<_>) = engines
        .iter()
        .cloned()
        .partition(|view| view.kind == wire::EngineKind::Database);
    let mut text = String::new();
    if !databases.is_empty() {
        text.push('\n');
        text.push_str(&database_table(&databases));
    }
    if !topics.is_empty() {
        text.push('\n');
        text.push_str(&topic_table(&topics));
    }
    text
}

/// `3`, or `3 (2 serves)` where the newer one was judged bad.
fn release_column(service: &wire::ServiceStatus) -> String {
    let serving = service
        .serving
        .map_or(String::new(), |serving| format!(" ({serving} serves)"));
    dash(&service.release) + &serving
}

fn note(service: &wire::ServiceStatus, attention: &[Reason]) -> String {
    let mut notes = Vec::new();
    if let Some(scale) = &service.scale {
        notes.push(format!("scaled to {} by {}", scale.replicas, scale.owner));
    }
    if !service.ports.is_empty() {
        let ports = service.ports.iter();
        let ports: Vec<_> = ports
            .map(|(name, protocol)| format!("{name} ({})", word(protocol)))
            .collect();
        notes.push(format!("ports {}", ports.join(", ")));
    }
    if service.demand > 0 {
        notes.push(format!("{} requests wait", service.demand));
    }
    // A reason is long: it is said once.
    let is_told = |reason: &Reason| {
        attention
            .iter()
            .any(|told| told.message.contains(&reason.message))
    };
    notes.extend(service.reason.as_ref().map(|reason| match is_told(reason) {
        true => "see below".to_owned(),
        false => reason.message.clone(),
    }));
    notes.join("; ")
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  mainland get services\n  mainland get service checkout -o yaml"
)]
pub struct Get {
    /// services, routes, secrets, scales, releases or rollouts
    #[arg(value_parser = deploy::parse_kind)]
    kind: Kind,
    /// One alone; of releases it is SERVICE/NUMBER, of routes HOST/PATH
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Get {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        match &self.name {
            Some(name) => {
                let value = client.resource(&project, self.kind, name).await?;
                self.output.print(&value, || yaml(&value))?;
            }
            None => {
                let all = client.resources(&project, self.kind).await?.items;
                let none = format!("{project} has no {}", self.kind.as_str());
                self.output.list(&all, &none, || yaml(&all))?;
            }
        }
        Ok(0)
    }
}

fn yaml(value: &impl serde::Serialize) -> String {
    serde_yaml_ng::to_string(value).unwrap_or_default()
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  mainland explain web\n  mainland explain web-3\n  mainland explain node/b"
)]
pub struct Explain {
    /// A service, an instance, a route's `host/path`, or `node/NAME`
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    subject: String,
    #[command(flatten)]
    output: Output,
}

impl Explain {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let explanation = self.ask(globals, &client).await?;
        self.output.print(&explanation, || {
            explanation_text(&explanation, Timestamp::now())
        })?;
        Ok(0)
    }

    /// A name may be that of a node, and a route may be named without its path.
    async fn ask(&self, globals: &Globals, client: &Client) -> Result<wire::Explanation, Failure> {
        let node =
            |name: &str| NodeName::new(name).map_err(|error| Failure::usage(error.to_string()));
        if let Some(name) = self.subject.strip_prefix("node/") {
            return Ok(client.explain_node(&node(name)?).await?);
        }
        let project = globals.project(client).await?;
        let refusal = match client.explain(&project, &self.subject).await {
            Ok(explanation) => return Ok(explanation),
            Err(refusal) => refusal,
        };
        if refusal.code() == Some("not-found") {
            if let Ok(explanation) = client
                .explain(&project, &format!("{}/", self.subject))
                .await
            {
                return Ok(explanation);
            }
            if let Ok(name) = node(&self.subject)
                && let Ok(explanation) = client.explain_node(&name).await
            {
                return Ok(explanation);
            }
        }
        Err(refusal.into())
    }
}

fn explanation_text(explanation: &wire::Explanation, now: Timestamp) -> String {
    let mut text = format!("{}: {}\n", explanation.subject, explanation.now);
    for because in &explanation.because {
        text.push_str(&format!(
            "  {:>5} ago  {:<9}  {}{} [{}]\n",
            age(because.at, now),
            because.from,
            about(because),
            because.reason,
            because.reason.code
        ));
        for line in &because.reason.detail {
            text.push_str(&format!("                          {line}\n"));
        }
    }
    text
}

/// `web-3: `, or `web-3 and 252 more: `.
fn about(because: &wire::Because) -> String {
    match (&because.about, because.others) {
        (None, _) => String::new(),
        (Some(name), 0) => format!("{name}: "),
        (Some(name), others) => format!("{name} and {others} more: "),
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland whoami -o json")]
pub struct WhoAmI {
    #[command(flatten)]
    output: Output,
}

impl WhoAmI {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let who = globals.client()?.whoami().await?;
        self.output.print(&who, || {
            format!("{} in cluster {}", who.principal, who.cluster)
        })?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_that_serves_is_named_where_the_newest_failed() {
        for (release, serving, expected) in [
            (Some(3), None, "3"),
            (Some(3), Some(2), "3 (2 serves)"),
            (None, None, "-"),
        ] {
            let mut status = serde_json::json!({
                "name": "web", "wanted": 2, "ready": 2, "zones": {}, "release": release, "rollout": null, "scale": null,
                "external": false, "needs": [], "demand": 0, "reason": null,
            });
            if serving.is_some() {
                status["serving"] = serving.into();
            }
            let status: wire::ServiceStatus = serde_json::from_value(status).unwrap();
            assert_eq!(release_column(&status), expected);
        }
    }

    #[test]
    fn a_reason_is_said_once_however_many_have_it() {
        let full = "3 nodes rejected: not enough CPU";
        let service = |name: &str, reason: &str| {
            serde_json::json!({
                "name": name, "wanted": 1, "ready": 0, "zones": {}, "release": 1, "rollout": null, "scale": null,
                "external": false, "needs": [], "demand": 0, "reason": { "code": "no-room", "message": reason },
            })
        };
        let attention =
            |code: &str, message: String| serde_json::json!({ "code": code, "message": message });
        let mut told: Vec<_> = (1..=6)
            .map(|number| attention("no-room", format!("s{number}-1: {full}")))
            .collect();
        told.push(attention(
            "brake",
            "a brake holds: two zones are lost".to_owned(),
        ));
        told.push(attention("other", format!("s7-1: {full}")));
        let services: Vec<_> = (1..=7)
            .map(|number| service(&format!("s{number}"), full))
            .chain([service("web", "waits for its needs")])
            .collect();
        let status = serde_json::json!({
            "project": "shop", "routes": [], "services": services, "attention": told,
        });
        let text = status_text(&serde_json::from_value(status).unwrap());
        assert_eq!(text.matches(full).count(), 2, "{text}");
        for line in [
            format!("! s1-1, s2-1, s3-1, s4-1 and 2 more: {full}"),
            format!("! s7-1: {full}"),
            "! a brake holds: two zones are lost".to_owned(),
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        assert!(text.contains("waits for its needs"), "{text}");
        assert_eq!(text.matches("see below").count(), 7, "{text}");
    }

    #[test]
    fn each_line_of_an_explanation_says_whom_it_is_about() {
        let line = |about: Option<&str>, others: u32| {
            let mut line = serde_json::json!({
                "at": Timestamp::UNIX_EPOCH, "from": "pending", "others": others,
                "reason": { "code": "no-room", "message": "no room", "detail": ["looked everywhere"] },
            });
            if let Some(about) = about {
                line["about"] = about.into();
            }
            line
        };
        let explanation = serde_json::json!({
            "subject": "web", "now": "0 of 3 ready",
            "because": [line(Some("web-3"), 252), line(Some("web-2"), 0), line(None, 0)],
        });
        let explanation = serde_json::from_value(explanation).unwrap();
        let text = explanation_text(&explanation, Timestamp::UNIX_EPOCH);
        let detail = "                          looked everywhere\n";
        assert_eq!(
            text,
            format!(
                "web: 0 of 3 ready\n     0s ago  pending    web-3 and 252 more: no room [no-room]\n{detail}     0s ago  pending    web-2: no room [no-room]\n{detail}     0s ago  pending    no room [no-room]\n{detail}"
            )
        );
    }
}
