//! Starting, adopting and ending the processes of one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::client::{Client, Transport};
use api::wire;
use experience::Globals;

use super::chaos;
use super::layout::{EDGE, Layout, NodePlan, State, node_plans};
use super::process::{self, Identity, Start};
use super::stop::{end, stop_node};
use super::told::told_removal;

/// The name of the server among the processes.
pub const SERVER: &str = "server";
const BEGIN_TIMEOUT: Duration = Duration::from_secs(20);
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Between looks at a socket or file that will be there in a moment.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

pub struct Supervisor {
    pub(super) layout: Layout,
    state: State,
    binary: PathBuf,
    pub(super) processes: BTreeMap<String, Identity>,
    /// Nothing was adopted: a failed begin may end all of it.
    fresh: bool,
    /// Looks at which a process was found stopped by a signal, one after the other.
    pub(super) stopped: BTreeMap<String, u32>,
}

impl Supervisor {
    /// Adopts what lives: the server by its record, each node by who answers on its socket, or was started last.
    pub fn new(layout: Layout, state: State, binary: PathBuf) -> Self {
        let server = state.server.clone().filter(Identity::alive);
        let mut processes: BTreeMap<String, Identity> = BTreeMap::new();
        processes.extend(server.map(|server| (SERVER.to_owned(), server)));
        for name in layout.known_nodes() {
            let agent = layout.agent(&name);
            processes.extend(agent.map(|agent| (name, agent)));
        }
        let fresh = processes.is_empty();
        Self {
            layout,
            state,
            binary,
            processes,
            fresh,
            stopped: BTreeMap::new(),
        }
    }

    pub fn fresh(&self) -> bool {
        self.fresh
    }

    /// Starts what does not run: the server, the edge, the nodes. Returns when the API answers and every node has been started.
    pub async fn begin(&mut self, globals: &Globals) -> Result<()> {
        self.gateway_is_free()?;
        self.save()?;
        // Who begins anew begins with all.
        for name in self.layout.killed_nodes() {
            if let Some(kill) = self.layout.killed_by(&name) {
                self.layout.take_back(&name, &kill, None)?;
            }
        }
        if !self.processes.contains_key(SERVER) {
            let _ = std::fs::remove_file(self.layout.client_file());
            self.start_server()?;
        }
        let client = self.server_answers(globals).await?;
        let plans = self.plans()?;
        for plan in &plans {
            self.start_node(plan, &client).await?;
        }
        self.nodes_answer(&plans, &client).await;
        self.tell_removed(&plans);
        Ok(())
    }

    /// A zone whose node was removed stays empty until somebody decides otherwise.
    fn tell_removed(&self, plans: &[NodePlan]) {
        let removed = plans
            .iter()
            .filter(|plan| self.layout.is_removed(&plan.name));
        for plan in removed {
            experience::notice(&told_removal(&plan.name, &self.layout.node(&plan.name)));
        }
    }

    /// Waits until every node has been heard, so that what is placed first is spread over all. A node that does not come is no reason to
    /// wait for long.
    async fn nodes_answer(&self, plans: &[NodePlan], client: &Client) {
        let deadline = Instant::now() + JOIN_TIMEOUT;
        while Instant::now() < deadline {
            let nodes = client
                .nodes()
                .await
                .map(|nodes| nodes.items)
                .unwrap_or_default();
            let heard = |plan: &NodePlan| {
                nodes.iter().any(|node| {
                    node.name.as_str() == plan.name && node.state == wire::NodeState::Ready
                })
            };
            let removed = |plan: &NodePlan| self.layout.is_removed(&plan.name);
            if plans.iter().all(|plan| heard(plan) || removed(plan)) {
                return;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Told before anything is started: the proxy, which will listen there, has nobody to tell.
    fn gateway_is_free(&self) -> Result<()> {
        let proxy = self.layout.node(EDGE).join("proxy.sock");
        if process::listening_on(&proxy).is_some() {
            return Ok(());
        }
        let gateway = self.state.gateway;
        let remedy = "remedy: choose another address with --gateway";
        match std::net::TcpListener::bind(gateway) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                bail!(
                    "the gateway's address {gateway} is taken by another program\n  {remedy}, or stop that program"
                )
            }
            Err(error) => bail!("the gateway can't listen on {gateway}: {error}\n  {remedy}"),
        }
    }

    /// What the nodes of this machine can't enforce, each said once.
    pub async fn limits(layout: &Layout) -> BTreeSet<String> {
        let mut limits = BTreeSet::new();
        for name in layout.known_nodes() {
            let client = Client::new(Transport::Unix(layout.node_socket(&name)), None);
            if let Ok(status) = client.get::<wire::NodeStatus>("/v1/status").await {
                limits.extend(status.limits);
            }
        }
        limits
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
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
        })
        .with_context(|| self.last_words(name))?;
        if name != SERVER
            && let Err(error) = self.layout.keep_started(name, &identity)
        {
            // It is found by its socket a moment later.
            experience::notice(&format!("{error:#}"));
        }
        self.processes.insert(name.to_owned(), identity);
        if name == SERVER {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.state.server = self.processes.get(SERVER).cloned();
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
        self.start_known_node_with(name, None)
    }

    /// Lets a node in again that was removed, with all that it has.
    pub async fn start_removed_node(&mut self, name: &str, client: &Client) -> Result<bool> {
        let ask = wire::MakeJoinToken {
            node: Some(name.parse()?),
            valid_seconds: 600,
        };
        let made = client
            .make_join_token(&ask)
            .await
            .context("making a join token")?;
        self.start_known_node_with(name, Some(made.token))
    }

    fn start_known_node_with(&mut self, name: &str, token: Option<String>) -> Result<bool> {
        let directory = self.layout.node(name);
        if self.finds_node(name) || !directory.join("agent.json").exists() {
            return Ok(false);
        }
        let mut words = vec![
            "agent".to_owned(),
            "--data-dir".to_owned(),
            directory.display().to_string(),
            // The record of where it dialled may be older than the server's address.
            "--server".to_owned(),
            self.state.nodes.to_string(),
        ];
        if name == EDGE {
            words.extend(gateway_words(&self.state));
        }
        let token = token.map(|token| ("MAINLAND_JOIN_TOKEN", token));
        self.start(name, words, token.into_iter().collect())?;
        Ok(true)
    }

    /// Whether a node's agent lives: one of ours, or one that another command (`mainland start`) has started.
    pub(super) fn finds_node(&mut self, name: &str) -> bool {
        if self.processes.get(name).is_some_and(Identity::alive) {
            return true;
        }
        self.processes.remove(name);
        let agent = self.layout.agent(name);
        self.processes
            .extend(agent.map(|agent| (name.to_owned(), agent)));
        self.processes.contains_key(name)
    }

    /// Starts what has ended, and what has joined before.
    pub(super) fn restart(&mut self, name: &str) -> Result<()> {
        match name {
            SERVER => self.start_server(),
            _ => self.start_known_node(name).map(|_| ()),
        }
    }

    /// Ends all of it: nodes with their instances first, so that the server still hears them go; the road last.
    pub async fn stop(&mut self) {
        let mut stopping = tokio::task::JoinSet::new();
        let known = self.layout.known_nodes();
        // One that has not joined yet has nothing to be asked for.
        let begun = self.processes.iter();
        let begun = begun.filter(|(name, _)| *name != SERVER && !known.contains(name));
        for agent in begun.map(|(_, agent)| agent.clone()) {
            stopping.spawn(async move { end(&agent).await });
        }
        // One whose agent is dead may have instances that live: its agent is started to end them.
        for name in known {
            if let Err(error) = self.start_known_node(&name) {
                experience::notice(&format!("node {name} can't be asked to stop: {error:#}"));
            }
            let agent = self.processes.get(&name).cloned();
            let (socket, directory) = (self.layout.node_socket(&name), self.layout.node(&name));
            stopping.spawn(async move {
                let ended = match agent {
                    Some(agent) => stop_node(socket, agent).await,
                    None => false,
                };
                if !ended {
                    // Nothing may be left, and nobody is there to be asked.
                    let _ = chaos::kill_all_of(&directory).await;
                }
            });
        }
        while stopping.join_next().await.is_some() {}
        if let Some(server) = self.processes.get(SERVER) {
            end(server).await;
        }
        self.processes.clear();
        if let Err(error) = self.save() {
            experience::notice(&format!("{error:#}"));
        }
    }
}

/// Where the gateway listens, and which balancers stand before it.
fn gateway_words(state: &State) -> Vec<String> {
    let mut words = vec!["--gateway".to_owned(), state.gateway.to_string()];
    for (option, networks) in [
        ("--trust-proxy", &state.trust_proxy),
        ("--proxy-protocol", &state.proxy_protocol),
    ] {
        let networks = networks.iter();
        words.extend(networks.flat_map(|network| [option.to_owned(), network.to_string()]));
    }
    words
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
        words.extend(gateway_words(state));
    } else {
        option("cpu", format!("{}m", plan.cpu_milli));
        option("memory", plan.memory_bytes.to_string());
    }
    words
}
