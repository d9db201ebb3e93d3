//! Starting, adopting, watching and ending the processes of one machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::client::{Client, Transport};
use api::wire;
use experience::Globals;
use rustix::process::Signal;

use super::layout::{Layout, NodePlan, State, node_plans};
use super::process::{self, Identity, Start};

/// The name of the server among the processes.
const SERVER: &str = "server";
/// The name of the front door's node.
const EDGE: &str = "edge";
const BEGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Between looks at a socket or file that will be there in a moment.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// A process that dies again and again is started anew no faster than this.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(50);
/// After this long alive, a death counts as the first again.
const RESTART_FORGET: Duration = Duration::from_secs(10);

pub struct Supervisor {
    layout: Layout,
    state: State,
    binary: PathBuf,
    processes: BTreeMap<String, Identity>,
    /// Nothing was adopted: a failed begin may end all of it.
    fresh: bool,
}

impl Supervisor {
    pub fn new(layout: Layout, state: State, binary: PathBuf) -> Self {
        let living = state
            .processes
            .iter()
            .filter(|(_, identity)| identity.alive())
            .cloned();
        let processes: BTreeMap<String, Identity> = living.collect();
        let fresh = processes.is_empty();
        Self {
            layout,
            state,
            binary,
            processes,
            fresh,
        }
    }

    pub fn fresh(&self) -> bool {
        self.fresh
    }

    /// Starts what does not run: the server, the edge, the nodes. Returns when the API answers and every node has been started.
    pub async fn begin(&mut self, globals: &Globals) -> Result<()> {
        self.save()?;
        if !self.processes.contains_key(SERVER) {
            let _ = std::fs::remove_file(self.layout.client_file());
            self.start_server()?;
        }
        let client = self.server_answers(globals).await?;
        for plan in self.plans()? {
            self.start_node(&plan, &client).await?;
        }
        Ok(())
    }

    fn plans(&self) -> Result<Vec<NodePlan>> {
        let cpu_milli = std::thread::available_parallelism()?.get() as u64 * 1000;
        let memory =
            std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo can't be read")?;
        let total = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Ok(node_plans(
            self.state.zones,
            cpu_milli,
            total.context("/proc/meminfo has no MemTotal")? * 1024,
        ))
    }

    fn start_server(&mut self) -> Result<()> {
        let words = vec![
            "server".to_owned(),
            "--data-dir".to_owned(),
            self.layout.server().display().to_string(),
            "--api".to_owned(),
            self.state.api.to_string(),
            "--nodes".to_owned(),
            self.state.nodes.to_string(),
            "--client-file".to_owned(),
            self.layout.client_file().display().to_string(),
        ];
        self.start(SERVER, words, Vec::new())
    }

    fn start(
        &mut self,
        name: &str,
        words: Vec<String>,
        environment: Vec<(&'static str, String)>,
    ) -> Result<()> {
        let log = self.layout.log(name);
        let identity = process::start(Start {
            binary: &self.binary,
            words,
            environment,
            log: &log,
        })?;
        self.processes.insert(name.to_owned(), identity);
        self.save()
    }

    fn save(&mut self) -> Result<()> {
        self.state.processes = self.processes.clone().into_iter().collect();
        self.state.save(&self.layout.state())
    }

    /// Waits for the server to decide; what it said last if it does not.
    async fn server_answers(&mut self, globals: &Globals) -> Result<Client> {
        let deadline = Instant::now() + BEGIN_TIMEOUT;
        let server = self
            .processes
            .get(SERVER)
            .cloned()
            .context("the server was not started")?;
        loop {
            // Without the file the client has no token, whatever answers.
            if self.layout.client_file().exists()
                && let Ok(client) = globals.client()
                && client.health().await.is_ok_and(|health| health.ready)
            {
                return Ok(client);
            }
            if !server.alive() || Instant::now() > deadline {
                bail!("the server did not start:\n{}", self.last_words(SERVER));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn last_words(&self, name: &str) -> String {
        let said = std::fs::read_to_string(self.layout.log(name)).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let from = lines.len().saturating_sub(10);
        lines[from..]
            .iter()
            .map(|line| format!("  {line}\n"))
            .collect()
    }

    async fn start_node(&mut self, plan: &NodePlan, client: &Client) -> Result<()> {
        if self.processes.contains_key(&plan.name) || self.start_known_node(&plan.name)? {
            return Ok(());
        }
        let ask = wire::MakeJoinToken {
            node: Some(plan.name.parse()?),
            valid_seconds: 600,
        };
        let made = client
            .make_join_token(&ask)
            .await
            .context("making a join token")?;
        let words = first_start_words(plan, &self.layout, &self.state);
        self.start(&plan.name, words, vec![("MAINLAND_JOIN_TOKEN", made.token)])
    }

    /// Starts a node that has joined before; false if it runs or has never joined.
    pub fn start_known_node(&mut self, name: &str) -> Result<bool> {
        let directory = self.layout.node(name);
        let runs = self.processes.get(name).is_some_and(Identity::alive);
        if runs || !directory.join("agent.json").exists() {
            return Ok(false);
        }
        let mut words = vec![
            "agent".to_owned(),
            "--data-dir".to_owned(),
            directory.display().to_string(),
        ];
        if name == EDGE {
            words.extend(["--gateway".to_owned(), self.state.gateway.to_string()]);
        }
        self.start(name, words, Vec::new())?;
        Ok(true)
    }

    /// Restarts the server and the edge when they end; says when a node ends. Never returns.
    pub async fn watch(&mut self) {
        let mut pauses: BTreeMap<String, Pause> = BTreeMap::new();
        loop {
            let name = self.next_end().await;
            self.processes.remove(&name);
            if name == SERVER || name == EDGE {
                let pause = pauses.entry(name.clone()).or_default().next(Instant::now());
                experience::notice(&format!("{name} ended; it starts again"));
                tokio::time::sleep(pause).await;
                self.restart(&name);
            } else if !self.refreshed(&name) {
                experience::notice(&format!(
                    "node {name} died and stays lost, as a real one would; `mainland start {name}` brings it back"
                ));
            }
        }
    }

    /// Another command (`mainland start`) may have started a node: its record is in the state file.
    fn refreshed(&mut self, name: &str) -> bool {
        let Some(state) = State::load(&self.layout.state()) else {
            return false;
        };
        let found = state
            .processes
            .into_iter()
            .find(|(known, identity)| known == name && identity.alive());
        match found {
            Some((name, identity)) => self.processes.insert(name, identity).is_none(),
            None => false,
        }
    }

    fn restart(&mut self, name: &str) {
        let started = match name {
            SERVER => self.start_server(),
            _ => self.start_known_node(name).map(|_| ()),
        };
        if let Err(error) = started {
            experience::notice(&format!("{name} can't be started: {error:#}"));
        }
    }

    async fn next_end(&self) -> String {
        let mut ends = tokio::task::JoinSet::new();
        for (name, identity) in self.processes.clone() {
            ends.spawn(async move {
                identity.ended().await;
                name
            });
        }
        match ends.join_next().await {
            Some(Ok(name)) => name,
            _ => std::future::pending().await,
        }
    }

    /// Ends all of it: nodes with their instances first, so that the server still hears them go; the road last.
    pub async fn stop(&mut self) {
        // `mainland start` may have added to it.
        if let Some(state) = State::load(&self.layout.state()) {
            let living = state
                .processes
                .into_iter()
                .filter(|(_, identity)| identity.alive());
            self.processes.extend(living);
        }
        let mut stopping = tokio::task::JoinSet::new();
        for name in self.known_nodes() {
            if let Err(error) = self.start_known_node(&name) {
                experience::notice(&format!("node {name} can't be asked to stop: {error:#}"));
                continue;
            }
            let Some(identity) = self.processes.get(&name).cloned() else {
                continue;
            };
            let socket = self.layout.node(&name).join("node.sock");
            stopping.spawn(async move { stop_node(socket, identity).await });
        }
        while stopping.join_next().await.is_some() {}
        if let Some(server) = self.processes.get(SERVER) {
            end(server).await;
        }
        self.processes.clear();
        self.state.supervisor = None;
        if let Err(error) = self.save() {
            experience::notice(&format!("{error:#}"));
        }
    }

    /// Nodes that have ever joined from here. One whose agent is dead may have instances that live: its agent is started to end them.
    fn known_nodes(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.layout.data.join("nodes")) else {
            return Vec::new();
        };
        let joined = entries
            .flatten()
            .filter(|entry| entry.path().join("agent.json").exists());
        joined
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

async fn stop_node(socket: PathBuf, identity: Identity) {
    let deadline = Instant::now() + super::STOP_TIMEOUT;
    let client = Client::new(Transport::Unix(socket), None);
    while identity.alive() && Instant::now() < deadline {
        let ask = api::client::request(http::Method::POST, "/v1/stop?instances=true", Vec::new());
        if client.send_within(ask, super::STOP_TIMEOUT).await.is_ok() {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    if tokio::time::timeout_at(deadline.into(), identity.ended())
        .await
        .is_err()
    {
        identity.signal(Signal::KILL);
    }
}

async fn end(identity: &Identity) {
    identity.signal(Signal::TERM);
    if tokio::time::timeout(super::STOP_TIMEOUT, identity.ended())
        .await
        .is_err()
    {
        identity.signal(Signal::KILL);
    }
}

fn first_start_words(plan: &NodePlan, layout: &Layout, state: &State) -> Vec<String> {
    let mut words = vec!["agent".to_owned()];
    let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    option("data-dir", layout.node(&plan.name).display().to_string());
    option("name", plan.name.clone());
    option("zone", plan.zone.clone());
    option("region", "local".to_owned());
    option("role", if plan.edge { "edge" } else { "worker" }.to_owned());
    option("server", state.nodes.to_string());
    option("mesh-block", format!("{}/20", plan.mesh_block));
    option("ports", format!("{}-{}", plan.ports.0, plan.ports.1));
    if plan.edge {
        option("gateway", state.gateway.to_string());
    } else {
        option("cpu", format!("{}m", plan.cpu_milli));
        option("memory", plan.memory_bytes.to_string());
    }
    words
}

/// How long to wait before the next start of what just ended.
#[derive(Default)]
struct Pause {
    last: Option<Instant>,
    length: Duration,
}

impl Pause {
    fn next(&mut self, now: Instant) -> Duration {
        let recent = self.last.is_some_and(|last| now - last < RESTART_FORGET);
        self.length = match recent {
            true => (self.length * 2).min(RESTART_PAUSE_MAX),
            false => RESTART_PAUSE_MIN,
        };
        self.last = Some(now);
        self.length
    }
}
