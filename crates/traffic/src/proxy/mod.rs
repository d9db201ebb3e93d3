//! The proxy process.
//!
//! ```text
//!  clients ──→ gateway ─┐                                     ┌─→ gate ──→ instance (same node)
//!                       ├─ search ── forward / tunnel ──────┤
//!  services ──→ doors ──┘   │  (balance, wait, retry)         └─→ peers ══ mTLS HTTP/2 ══→ callee ──→ gate ──→ instance
//!                           └─ external ──→ dialled directly
//!  agent ──→ control socket ──→ [`applier`] ──→ view (swapped whole) ──→ workers
//! ```
//!
//! One thread takes snapshots and talks to the agent; each worker is a thread with a single-threaded runtime, its own connections and
//! pools. It lives across restarts of the agent and starts on the last snapshot that it kept on disk.
//!
//! Modules by the way of a request: [`sockets`] → [`worker`] → [`client`] → [`entrance`] → [`search`] → [`forward`], [`tunnel`] → [`peers`] → [`callee`] → [`gate`] →
//! [`instances`] → [`stream`]. What is let in, and how it is marked: [`admission`], [`affinity`], [`origin`], [`proxy_protocol`], [`edge`]. What is told: [`control`], [`reports`]. What is known: [`view`], [`disk`], [`tls`]. What travels: [`wire`], [`mesh`], [`body`], [`kept`], [`held`], [`failure`]. Bounds: [`bulkhead`], [`pace`], [`shares`], [`upgrades`], [`window`].

mod admission;
mod affinity;
mod applier;
mod body;
mod bulkhead;
mod callee;
mod caller;
mod client;
mod control;
mod disk;
mod edge;
mod entrance;
mod failure;
mod forward;
mod gate;
mod held;
mod instances;
mod kept;
mod mesh;
mod origin;
mod pace;
mod peers;
mod proxy_protocol;
mod refusal;
mod reports;
mod search;
mod shares;
mod sockets;
mod stream;
mod tls;
mod tunnel;
mod upgrades;
mod view;
mod window;
mod wire;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use model::traffic::ToProxy;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use applier::Applier;
use worker::Common;

/// More threads than this bring nothing to the machines that we know.
const MOST_DEFAULT_WORKERS: usize = 4;
/// What is in flight gets this long after SIGTERM.
const GRACE_ON_SIGNAL: Duration = Duration::from_secs(10);

/// How a proxy is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the last snapshot is kept; made if missing, mode 0700.
    pub directory: PathBuf,
    /// Where the agent connects; made anew.
    pub control_socket: PathBuf,
    /// Threads that carry requests. `None`: one per core, at most four.
    pub workers: Option<usize>,
    /// Descriptors that connections have their shares of. `None`: as many as the process may have open.
    pub descriptors: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {path}: {source}")]
    Path {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("starting the proxy's threads: {0}")]
    Start(io::Error),
}

/// Runs until the agent says stop, or SIGTERM. Blocks the thread.
pub fn run(options: Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let result = runtime.block_on(supervise(options));
    // Requests that outlived the grace end with the process; nobody waits for their threads.
    runtime.shutdown_background();
    result
}

async fn supervise(options: Options) -> Result<(), Error> {
    create_directory(&options.directory)?;
    raise_descriptor_limit();
    let listener = control::bind(&options.control_socket).map_err(|source| Error::Path {
        doing: "listening on",
        path: options.control_socket.clone(),
        source,
    })?;
    let count = options.workers.unwrap_or_else(default_workers).max(1);
    let common = Common::new(count, options.descriptors);
    let workers = start_workers(&common, count).map_err(Error::Start)?;
    let applier = Applier::new(options.directory.clone(), common.clone());
    let mut applier = applier.map_err(Error::Start)?;
    applier.restore().await;
    let (commands, mut received) = mpsc::channel(4);
    let serving = tokio::spawn(control::serve(listener, common.clone(), commands));
    let grace = obey(&mut applier, &mut received).await;
    // Whoever looks for the socket finds no proxy from here on.
    let _ = std::fs::remove_file(&options.control_socket);
    common.stop();
    wait_for(workers, grace).await;
    applier.flush();
    serving.abort();
    Ok(())
}

fn create_directory(path: &std::path::Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Path {
            doing: "making",
            path: path.to_owned(),
            source,
        })
}

/// As many connections as the machine allows: the soft limit is 1,024 on most. Where that is refused the accept loop copes.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_DEFAULT_WORKERS))
}

fn start_workers(
    common: &Arc<Common>,
    count: usize,
) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
    (0..count)
        .map(|index| {
            let common = common.clone();
            let seed = SmallRng::from_os_rng().random();
            std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    worker::run(common, index, seed)
                        .inspect_err(|error| tracing::error!(%error, "a worker can't run"))
                })
        })
        .collect()
}

/// Takes snapshots until told to stop; returns the time for what is in flight.
async fn obey(applier: &mut Applier, commands: &mut mpsc::Receiver<ToProxy>) -> Duration {
    let mut terminate = signal(SignalKind::terminate()).ok();
    let terminated = async move {
        match &mut terminate {
            Some(terminate) => terminate.recv().await,
            None => std::future::pending().await,
        }
    };
    let mut terminated = std::pin::pin!(terminated);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(ToProxy::Snapshot { snapshot }) => applier.apply(*snapshot).await,
                Some(ToProxy::Stop { grace }) => return grace.duration(),
                None => return Duration::ZERO,
            },
            () = applier.retry() => {}
            _ = &mut terminated => return GRACE_ON_SIGNAL,
        }
    }
}

/// At most `grace`.
async fn wait_for(workers: Vec<JoinHandle<io::Result<()>>>, grace: Duration) {
    let joined = tokio::task::spawn_blocking(|| {
        for worker in workers {
            // What went wrong it has said itself.
            let _ = worker.join();
        }
    });
    if tokio::time::timeout(grace, joined).await.is_err() {
        tracing::warn!("requests were still in flight when the grace was over");
    }
}
