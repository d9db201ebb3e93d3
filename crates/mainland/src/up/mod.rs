//! `mainland up`: a stateless supervisor of the production commands.
//!
//! It starts (or adopts) a server, an edge node and N nodes, each a process in a session of its own, applies the manifest, shows progress,
//! then one screen. It restarts what ends of these; only a node that `chaos kill` ended stays lost until told otherwise, as a machine without power
//! would. ctrl-C ends all of it cleanly; `down` does the same from elsewhere; a killed supervisor leaves everything running for the next `up` to adopt.

mod again;
mod chaos;
mod layout;
mod lock;
mod process;
mod start;
mod stop;
mod supervisor;
mod told;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use experience::Globals;
use experience::failure::Failure;
use experience::progress::Subject;
use model::ids::ProjectName;
use model::traffic::Network;

pub use chaos::Chaos;
pub use layout::ZONES_MAX;
use layout::{Layout, State};
use process::Identity;
pub use start::Start;
use supervisor::Supervisor;

/// How long `down` and ctrl-C wait for a clean end before they kill; a node is given the graces of what runs there besides.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Run a system on this machine
///
/// Starts everything that is needed, applies the manifest, and stays until ctrl-C (or goes to the background with -d).
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  mainland up                          the manifest here, one zone\n  mainland up examples/first --zones 3\n  mainland up -d && mainland ps        in the background"
)]
pub struct Up {
    /// The manifest, or the folder that holds `mainland.yaml`. Left out: the one here, if there is one
    path: Option<PathBuf>,
    /// Nodes in zones of their own that this machine pretends to be, 1 to 9 (default: as last time, else 1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(ZONES_MAX)))]
    zones: Option<u32>,
    /// A balancer before the gateway whose X-Forwarded-For and -Proto are believed: an address or a network such as 10.0.0.0/8 (default: as last time, else none)
    #[arg(long, value_name = "NETWORK")]
    trust_proxy: Vec<Network>,
    /// A balancer before the gateway whose connections begin with the PROXY protocol, version 1 or 2 (default: as last time, else none)
    #[arg(long, value_name = "NETWORK")]
    proxy_protocol: Vec<Network>,
    /// Return when it is ready; `mainland down` ends it
    #[arg(short, long)]
    detach: bool,
    /// How long to wait for everything to be ready before saying what is not, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = experience::parse_span, allow_hyphen_values = true)]
    timeout: Duration,
}

/// End what `up` runs here
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  mainland down\n  mainland down --delete-data -y")]
pub struct Down {
    /// Delete all data as well: volumes, releases, secrets
    #[arg(long)]
    delete_data: bool,
    /// Assent to deleting data
    #[arg(short, long)]
    yes: bool,
}

impl Up {
    pub async fn run(self, globals: Globals) -> Result<u8, Failure> {
        let layout = Layout {
            data: globals.data_dir()?,
        };
        layout.create()?;
        // Here, where a person reads it: what is detached writes to a log.
        if let Some(said) = self.zones_that_stay(&layout) {
            experience::notice(&said);
        }
        match self.detach {
            true => self.run_detached(globals, &layout).await,
            false => self.run_here(globals, layout).await,
        }
    }

    /// Starts another of itself without `-d` in a session of its own, then watches it as a foreground `up` would.
    async fn run_detached(self, globals: Globals, layout: &Layout) -> Result<u8, Failure> {
        drop(lock::take(layout)?);
        let server = State::load(&layout.state()).and_then(|state| state.server);
        if !server.is_some_and(|server| server.alive()) {
            // What an earlier server left would be taken for the word of the one that is about to start.
            let _ = std::fs::remove_file(layout.client_file());
        }
        let words: Vec<String> = std::env::args()
            .skip(1)
            .filter(|word| word != "-d" && word != "--detach")
            .collect();
        let binary = current_binary()?;
        let log = layout.log("up");
        let here = std::env::current_dir().context("the working directory is gone")?;
        let before = log.metadata().map_or(0, |log| log.len());
        let start = process::Start {
            binary: &binary,
            words,
            environment: vec![("MAINLAND_DETACHED", here.display().to_string())],
            log: &log,
        };
        let supervisor = process::start(start)?;
        let client_file = layout.client_file();
        tokio::select! {
            outcome = self.until_ready(&globals, &client_file) => {
                tell_limits(layout).await;
                outcome
            }
            () = supervisor.ended() => {
                let words = process::last_words(&log, before);
                eprintln!("{}", experience::output::for_stderr(&words));
                Ok(1)
            }
        }
    }

    async fn run_here(mut self, globals: Globals, layout: Layout) -> Result<u8, Failure> {
        if let Some(here) = std::env::var_os("MAINLAND_DETACHED") {
            std::env::set_current_dir(here).context("the working directory is gone")?;
            let _ = rustix::process::setsid();
        }
        let _lock = lock::take(&layout)?;
        chaos::remove_leftovers().await;
        let manifest = experience::deploy::find_manifest(self.path.take())?;
        let old = State::load(&layout.state());
        let state = self.state(&globals, &layout, old)?;
        let globals = globals.at(state.api, layout.client_file());
        let mut supervisor = Supervisor::new(layout, state, current_binary()?);
        let ending = ending_signal()?;
        tokio::pin!(ending);
        let begun = async {
            supervisor.begin(&globals).await?;
            self.deliver(&globals, manifest).await
        };
        let delivered = tokio::select! {
            delivered = begun => delivered,
            () = &mut ending => { stop(&mut supervisor).await; return Ok(0) }
        };
        let projects = match delivered {
            Ok(projects) => projects,
            Err(failure) if supervisor.fresh() => {
                supervisor.stop().await;
                return Err(failure);
            }
            // What ran before goes on running, whatever is wrong with the new manifest.
            Err(failure) => {
                failure.print();
                Vec::new()
            }
        };
        tokio::select! {
            () = self.report(&globals, &projects, &mut supervisor) => {}
            () = &mut ending => {}
        }
        stop(&mut supervisor).await;
        Ok(0)
    }

    /// Watches over the processes from the first moment on, and shows beside it how far the projects are. Never returns.
    async fn report(
        &self,
        globals: &Globals,
        projects: &[ProjectName],
        supervisor: &mut Supervisor,
    ) {
        let layout = supervisor.layout().clone();
        let shown = async {
            // What does not become ready is said; the rest runs on.
            let output = experience::output::Output { output: None };
            let subjects = all_of(projects);
            let ready = experience::progress::until_ready(globals, &subjects, self.timeout, output);
            match ready.await {
                Ok(_) => tell_limits(&layout).await,
                Err(failure) => failure.print(),
            }
        };
        tokio::join!(shown, supervisor.watch());
    }

    /// As many as asked for, or as last time; nodes that are there already are never left behind, for they may hold volumes.
    fn zones(&self, layout: &Layout, old: Option<&State>) -> u32 {
        let asked = self.zones.or(old.map(|old| old.zones)).unwrap_or(1);
        asked.max(zones_there(layout))
    }

    /// What is said to who asks for fewer zones than there are.
    fn zones_that_stay(&self, layout: &Layout) -> Option<String> {
        let there = zones_there(layout);
        self.zones.filter(|asked| *asked < there)?;
        Some(format!(
            "{there} zones are here already and stay: `mainland leave NODE` removes a node for good"
        ))
    }

    fn state(&self, globals: &Globals, layout: &Layout, old: Option<State>) -> Result<State> {
        let zones = self.zones(layout, old.as_ref());
        let api = globals.api_address();
        let gateway = globals
            .gateway
            .or(old.as_ref().map(|old| old.gateway))
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080)));
        // It stays, as nodes that run dial there; while none does, a neighbour may have come to listen there.
        let nodes = match &old {
            Some(old) if compute::port::is_free(old.nodes) || something_lives(layout, old) => {
                old.nodes
            }
            _ => free_loopback_address()?,
        };
        let of_old = |kept: fn(&State) -> &Vec<Network>| old.as_ref().map(kept).cloned();
        let balancers = |given: &Vec<Network>, kept| match given.is_empty() {
            true => of_old(kept).unwrap_or_default(),
            false => given.clone(),
        };
        let trust_proxy = balancers(&self.trust_proxy, |old| &old.trust_proxy);
        let proxy_protocol = balancers(&self.proxy_protocol, |old| &old.proxy_protocol);
        let server = old.and_then(|old| old.server);
        Ok(State {
            zones,
            api,
            nodes,
            gateway,
            trust_proxy,
            proxy_protocol,
            server,
        })
    }

    async fn deliver(
        &self,
        globals: &Globals,
        manifest: Option<PathBuf>,
    ) -> Result<Vec<ProjectName>, Failure> {
        let Some(manifest) = manifest else {
            return Ok(Vec::new());
        };
        let client = globals.client()?;
        let project =
            experience::deploy::deliver(&client, &manifest, globals.env.as_deref()).await?;
        Ok(vec![project])
    }

    async fn until_ready(
        &self,
        globals: &Globals,
        client_file: &std::path::Path,
    ) -> Result<u8, Failure> {
        let manifest = experience::deploy::find_manifest(self.path.clone())?;
        let projects = match manifest {
            Some(manifest) => vec![experience::deploy::project_of(
                &manifest,
                globals.env.as_deref(),
            )?],
            None => Vec::new(),
        };
        experience::progress::until_file(client_file, self.timeout).await?;
        let output = experience::output::Output { output: None };
        experience::progress::until_ready(globals, &all_of(&projects), self.timeout, output).await
    }
}

/// Those that `chaos kill` ended and nobody has started since.
pub fn killed_nodes(data: &std::path::Path) -> Vec<String> {
    let data = data.to_owned();
    Layout { data }.killed_nodes()
}

/// Those of the nodes that have joined from here.
fn zones_there(layout: &Layout) -> u32 {
    let nodes = layout.known_nodes();
    let there = nodes.iter().filter(|name| *name != layout::EDGE).count();
    u32::try_from(there).unwrap_or(ZONES_MAX).min(ZONES_MAX)
}

/// ctrl-C is answered at once, though the end takes a moment.
async fn stop(supervisor: &mut Supervisor) {
    experience::notice("stopping: instances leave the road, then the machine");
    supervisor.stop().await;
}

async fn tell_limits(layout: &Layout) {
    for limit in Supervisor::limits(layout).await {
        experience::notice(&limit);
    }
}

fn all_of(projects: &[ProjectName]) -> Vec<Subject> {
    projects.iter().cloned().map(Subject::all_of).collect()
}

impl Down {
    pub async fn run(self, globals: Globals) -> Result<u8, Failure> {
        let layout = Layout {
            data: globals.data_dir()?,
        };
        let supervisor = layout.supervisor();
        let state = State::load(&layout.state());
        if supervisor.is_none() && state.is_none() {
            experience::output::say(&format!(
                "Nothing runs here: there is no {}.",
                layout.state().display()
            ))?;
            return Ok(0);
        }
        if self.delete_data && !self.yes {
            experience::assent(&format!(
                "This deletes all data in {}. Go on?",
                layout.data.display()
            ))?;
        }
        match (supervisor, state) {
            (Some(up), _) => {
                // Before: a node that stops may answer no more.
                let patience = stop::all_stop_within(&layout).await;
                stop::end_supervisor(&up, patience).await?
            }
            (None, Some(state)) => {
                Supervisor::new(layout.clone(), state, current_binary()?)
                    .stop()
                    .await
            }
            (None, None) => {}
        }
        if self.delete_data {
            compute::beneath::remove_tree(&layout.data)
                .with_context(|| format!("{} can't be deleted", layout.data.display()))?;
        }
        // Of a node that could not end by itself.
        chaos::remove_leftovers().await;
        println!(
            "Everything has ended{}.",
            if self.delete_data {
                ", all data is deleted"
            } else {
                "; data is kept"
            }
        );
        Ok(0)
    }
}

fn current_binary() -> Result<PathBuf> {
    std::env::current_exe().context("the path of this program is not known")
}

/// The server or a node of an earlier `up`.
fn something_lives(layout: &Layout, old: &State) -> bool {
    let nodes = layout.known_nodes();
    let lives = |node: &String| layout.agent(node).is_some();
    old.server.as_ref().is_some_and(Identity::alive) || nodes.iter().any(lives)
}

fn free_loopback_address() -> Result<SocketAddr> {
    let preferred = std::net::TcpListener::bind("127.0.0.1:7071");
    let listener = preferred.or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"));
    listener
        .and_then(|listener| listener.local_addr())
        .context("loopback has no free port")
}

/// Comes when the user or the machine asks for the end. The end of a terminal is none for who was started with `nohup`.
fn ending_signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut interrupt = signal(SignalKind::interrupt()).context("signals can't be taken")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals can't be taken")?;
    let hangup = (!ignores_hangup(&status)).then(|| signal(SignalKind::hangup()));
    let mut hangup = hangup.transpose().context("signals can't be taken")?;
    let hung_up = async move {
        match &mut hangup {
            Some(hangup) => drop(hangup.recv().await),
            None => std::future::pending().await,
        }
    };
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = hung_up => {}
        }
    })
}

/// By /proc/PID/status, where SIGHUP is the lowest bit: proc(5).
fn ignores_hangup(status: &str) -> bool {
    let mut lines = status.lines();
    let ignored = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    ignored.is_some_and(|signals| signals & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        up: Up,
    }

    #[test]
    fn who_was_started_with_nohup_outlives_the_terminal() {
        for (status, ignores) in [
            (
                "Name:\tmainland\nSigIgn:\t0000000000001001\nSigCgt:\t0\n",
                true,
            ),
            (
                "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\n",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(ignores_hangup(status), ignores, "{status}");
        }
    }

    #[test]
    fn who_asks_for_fewer_zones_than_there_are_is_told_that_they_stay() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_owned();
        for node in ["a", "b", "c", layout::EDGE] {
            std::fs::create_dir_all(data.join("nodes").join(node)).unwrap();
            std::fs::write(data.join("nodes").join(node).join("agent.json"), "").unwrap();
        }
        let layout = Layout { data };
        for (words, zones, told) in [
            (&["up"][..], 3, false),
            (&["up", "--zones", "1"], 3, true),
            (&["up", "--zones", "3"], 3, false),
            (&["up", "--zones", "4"], 4, false),
        ] {
            let up = <Line as clap::Parser>::parse_from(words).up;
            assert_eq!(up.zones(&layout, None), zones, "{words:?}");
            assert_eq!(up.zones_that_stay(&layout).is_some(), told, "{words:?}");
        }
    }
}
