//! The production processes: server, agent, proxy, shim. Composed here, each from the crates it is made of.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use experience::Globals;
use experience::failure::Failure;
use jiff::Timestamp;
use model::control::NodeRole;
use model::ids::{NodeName, RegionName, ZoneName};
use model::machine::{POSTGRES, Programs};
use model::signals::Stream;
use model::traffic::Network;
use model::units::{Bytes, MilliCpu};
use signals::logs::{DEFAULT_LIMITS, Writer};

use crate::log::Lines;

/// Run a server: the API and the leader
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  mainland server --data-dir /var/lib/mainland/server --api 127.0.0.1:7070 --nodes 127.0.0.1:7071"
)]
pub struct Server {
    /// Where nodes dial, with mutual TLS
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7071")]
    nodes: SocketAddr,
    /// Where to leave address and token for the owner's commands (default: client.json in the data directory)
    #[arg(long, value_name = "FILE")]
    client_file: Option<PathBuf>,
}

/// Run the agent of a node
///
/// The first start needs --name, --zone, --server and a join token in MAINLAND_JOIN_TOKEN; they are kept.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  MAINLAND_JOIN_TOKEN=... mainland agent --data-dir /var/lib/mainland/node --name a --zone a --server 10.0.0.5:7071\n  mainland agent --data-dir /var/lib/mainland/node"
)]
pub struct Agent {
    /// The node's name, unique in the cluster
    #[arg(long)]
    name: Option<NodeName>,
    /// Machines of one zone can fail together
    #[arg(long)]
    zone: Option<ZoneName>,
    /// The place on earth that the zone is in
    #[arg(long)]
    region: Option<RegionName>,
    /// `worker` runs instances; `edge` is a front door, and runs none (default: worker)
    #[arg(long, value_parser = parse_role)]
    role: Option<NodeRole>,
    /// The servers' port for nodes
    #[arg(long, value_name = "ADDR")]
    server: Option<SocketAddr>,
    /// What the node may give to instances, in cores: 2, 0.5 or 500m (default: all of the machine)
    #[arg(long, value_name = "CPU")]
    cpu: Option<MilliCpu>,
    /// What the node may give to instances, such as 512Mi or 4Gi (default: all of the machine)
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Where the node's proxy answers other proxies
    #[arg(long, value_name = "ADDR")]
    mesh: Option<SocketAddr>,
    /// Loopback addresses for the needs of instances
    #[arg(long, value_name = "BLOCK")]
    mesh_block: Option<node::options::Block>,
    /// Ports for instances
    #[arg(long, value_name = "FIRST-LAST")]
    ports: Option<node::options::Ports>,
    /// For an edge: a balancer before the gateway whose X-Forwarded-For and -Proto are believed; an address or a network such as 10.0.0.0/8
    #[arg(long, value_name = "NETWORK")]
    trust_proxy: Vec<Network>,
    /// For an edge: a balancer before the gateway whose connections begin with the PROXY protocol, version 1 or 2
    #[arg(long, value_name = "NETWORK")]
    proxy_protocol: Vec<Network>,
    /// KEY=VALUE, for `labels` of services
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
}

fn parse_role(text: &str) -> Result<NodeRole, String> {
    match text {
        "worker" => Ok(NodeRole::Worker),
        "edge" => Ok(NodeRole::Edge),
        _ => Err("a node is a `worker` or an `edge`".to_owned()),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Server {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let log = begin_daemon()?;
        let directory = globals.data_dir()?;
        let client_file = self
            .client_file
            .unwrap_or_else(|| directory.join("client.json"));
        let options = control::server::Options {
            api: globals.api_address(),
            nodes: self.nodes,
            client_file,
            open_store: Box::new(open_store),
            clock: clock(),
            version: crate::VERSION,
            directory,
        };
        let ended = control::server::run(options, ended()?).await;
        log.flush();
        ended.map(|()| 0).map_err(Failure::from_error)
    }
}

impl Agent {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let log = begin_daemon()?;
        let options = node::agent::Options {
            data_dir: globals.data_dir()?,
            executable: std::env::current_exe().context("the path of this program is not known")?,
            version: crate::VERSION.to_owned(),
            clock: clock(),
            programs,
            given: self.given(globals),
        };
        let ended = node::agent::run(options, ended()?).await;
        log.flush();
        ended.map(|()| 0).map_err(Failure::from_error)
    }

    fn given(self, globals: &Globals) -> node::options::Given {
        // The variable is inherited by agents that have no gateway.
        let is_edge = self.role == Some(NodeRole::Edge);
        node::options::Given {
            name: self.name,
            region: self.region,
            zone: self.zone,
            role: self.role,
            server: self.server,
            join_token: std::env::var("MAINLAND_JOIN_TOKEN").ok(),
            cpu: self.cpu,
            memory: self.memory,
            mesh: self.mesh,
            mesh_block: self.mesh_block,
            ports: self.ports,
            gateway: globals.gateway.filter(|_| is_edge),
            trust_proxy: self.trust_proxy,
            proxy_protocol: self.proxy_protocol,
            labels: self.labels.into_iter().collect::<BTreeMap<_, _>>(),
        }
    }
}

/// What engines can run on here.
fn programs() -> Programs {
    let postgres = state::postgres::installed().into_keys().collect();
    Programs::from([(POSTGRES.to_owned(), postgres)])
}

fn open_store(directory: &Path) -> Result<Arc<dyn store::Store>, store::Error> {
    let options = store::sqlite::Options::new(directory.join("store.db"));
    Ok(Arc::new(store::sqlite::SqliteStore::open(options)?))
}

fn clock() -> boundary::Clock {
    Arc::new(Timestamp::now)
}

/// A session of its own, and words of its own in a log, which it keeps within bounds.
fn begin_daemon() -> Result<Lines, Failure> {
    // Fails for the leader of a process group, which has no session to leave; then it already has its own.
    let _ = rustix::process::setsid();
    let lines = Lines::to(crate::log::Bounded::standard_output())
        .context("the machine can't start a thread")?;
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_target(false)
        .with_max_level(tracing::Level::INFO)
        // A full disk refuses the log; complaining of that on the same disk would end the thread.
        .log_internal_errors(false)
        .with_writer(lines.clone())
        .init();
    Ok(lines)
}

/// Comes with SIGTERM or SIGINT.
fn ended() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("signals can't be taken")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals can't be taken")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// `mainland proxy DIRECTORY SOCKET`: started by the agent.
pub fn proxy(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let log = match begin_daemon() {
        Ok(log) => log,
        Err(failure) => {
            failure.print();
            return ExitCode::FAILURE;
        }
    };
    let (Some(directory), Some(control_socket)) = (words.next(), words.next()) else {
        eprintln!("usage: mainland proxy DIRECTORY SOCKET (started by the agent)");
        return ExitCode::from(2);
    };
    let options = traffic::proxy::Options {
        directory: directory.into(),
        control_socket: control_socket.into(),
        workers: None,
        descriptors: None,
    };
    let ended = traffic::proxy::run(options);
    log.flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `mainland shim DIRECTORY`: started by the agent, one per instance.
pub fn shim(words: &[OsString]) -> ExitCode {
    compute::shim::run(words, &|folder| open_sink(folder))
}

fn open_sink(folder: &Path) -> io::Result<Box<dyn compute::shim::Sink>> {
    let writer = Writer::open(folder, DEFAULT_LIMITS).map_err(io::Error::other)?;
    Ok(Box::new(LogSink { writer }))
}

/// The shim's output goes into the logs of `signals`: the two rooms meet only here.
struct LogSink {
    writer: Writer,
}

impl compute::shim::Sink for LogSink {
    fn line(&mut self, at: Timestamp, stream: Stream, line: &[u8]) {
        // What a full disk refuses is counted by the writer, and told when it takes lines again.
        let _ = self.writer.append(at, stream, line);
    }

    fn piece(&mut self, at: Timestamp, stream: Stream, piece: &[u8]) {
        let _ = self.writer.append_piece(at, stream, piece);
    }

    fn flush(&mut self) {
        let _ = self.writer.flush();
    }
}

/// The way to a server that proves by its certificate that it is one of the cluster with this authority.
pub fn proven(
    address: std::net::SocketAddr,
    authority: &str,
) -> Result<api::client::Transport, String> {
    let expect = tls::Expect::Holder(model::boundary::Holder::Server);
    let config = tls::client_config_without_identity(authority, expect, clock());
    let mut config = config.map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(api::client::Transport::Tls {
        address,
        config: std::sync::Arc::new(config),
        name: tls::server_name(),
    })
}
