//! The agent: puts the parts together, hands every input to [`plan::agent::step`] and every output to who acts on it.
//!
//! All that is known stands under one lock that is held for the length of a step and never across an await. Whoever learns something calls
//! [`Agent::tell`]; what is to be done goes to per-instance workers, to probes, and as signals to the loops that talk to servers and proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use compute::artifact::store::ArtifactStore;
use compute::runtime::{Event, Happening, Runtime};
use model::compute::Ask;
use model::control::Reason;
use model::ids::{Generation, InstanceId};
use model::machine::Programs;
use model::signals::Level;
use model::traffic::ProxySnapshot;
use plan::agent::{self as decide, Input, Output, Run};
use tokio::runtime::Handle;
use tokio::sync::{RwLock, Semaphore, SemaphorePermit, mpsc};

use crate::begin::{adopt_all, begin, remove_strays, take_kept_desired};
use crate::core::{Core, Signals, Worker, at_port};
use crate::firewall::Firewall;
use crate::identity::{self, Identities};
use crate::instances::{self, Order};
use crate::keeper::Keeper;
use crate::layout::{self, Layout};
use crate::options::{self, Config};
use crate::probes::Failure;
use crate::record::{Ports, Record};
use crate::{
    artifacts, clock, desired, engine, listening, machine, ports, probes, proxy, removal, snapshot,
    socket, tunnel, upkeep,
};

pub use crate::options::Options;

/// Orders that one instance's worker has not yet taken.
const ORDERS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Options(#[from] options::Error),
    #[error(transparent)]
    Layout(#[from] layout::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error(transparent)]
    Alone(#[from] crate::alone::Error),
    #[error("{0}")]
    Over(String),
    #[error("a thread can't be started: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Artifacts(#[from] compute::artifact::Error),
    #[error("no port of {0} is free for the mesh")]
    NoMeshPort(options::Ports),
    #[error("listening on {path}: {source}", path = path.display())]
    Socket {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// For what waits to be written when the agent ends.
const KEEPS_WITHIN: Duration = Duration::from_secs(2);
/// Threads that carry the agent's tasks. A file call that was not set aside and waits for the disk holds one of them up.
const THREADS: usize = 4;

/// What an agent runs on.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
}

/// Runs the agent until `shutdown`, which ends it alone, or until it is asked to stop over its socket. Shims and proxy outlive it in the
/// first case. Must run inside a tokio runtime with I/O and time.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    let begun = tokio::select! {
        begun = begin(options) => begun?,
        () = &mut shutdown => return Ok(()),
    };
    let (agent, held, events) = begun;
    let listener = socket::bind(&agent.layout.socket()).map_err(|source| Error::Socket {
        path: agent.layout.socket(),
        source,
    })?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(hear_runtime(agent.clone(), events));
    let is_over = agent.signals.over.borrow().is_some();
    if is_over {
        agent.tell(Input::StopAll);
    }
    adopt_all(&agent).await;
    // Before the proxy hears anything: it drops at once what it is not told of.
    if !is_over {
        take_kept_desired(&agent).await;
    }
    tasks.spawn(tick(agent.clone()));
    tasks.spawn(ports::run(agent.clone()));
    tasks.spawn(machine::watch(agent.clone()));
    tasks.spawn(proxy::run(agent.clone()));
    tasks.spawn(socket::run(agent.clone(), listener));
    match is_over {
        true => removal::end(&agent),
        false => begin_work(&agent, &mut tasks),
    }
    if !is_over {
        held.heart.begin(&agent);
    }
    let volumes = agent.layout.volumes();
    // Waited for by nobody, also not at the end.
    std::thread::spawn(move || layout::sweep(&volumes));
    let mut ended = agent.signals.ended.subscribe();
    tokio::select! {
        () = &mut shutdown => tracing::info!("the agent ends; instances and proxy go on"),
        _ = ended.wait_for(|ended| *ended) => tracing::info!("the node has stopped"),
    }
    agent.keeper.flush(KEEPS_WITHIN);
    removal::outcome(&agent)
}

/// What the servers want, and what they are told.
fn begin_work(agent: &Arc<Agent>, tasks: &mut tokio::task::JoinSet<()>) {
    tasks.spawn(desired::keep(agent.clone()));
    tasks.spawn(remove_strays(agent.clone()));
    tasks.spawn(desired::run(agent.clone()));
    tasks.spawn(engine::run(agent.clone()));
    tasks.spawn(upkeep::certify(agent.clone()));
    tasks.spawn(upkeep::collect(agent.clone()));
    tasks.spawn(tunnel::run(agent.clone()));
}

/// What is known and who acts, shared by all tasks.
pub(crate) struct Agent {
    pub config: Config,
    pub layout: Layout,
    pub version: String,
    pub executable: PathBuf,
    /// What engines can run on here. May wait for a disk.
    pub programs: fn() -> Programs,
    pub identities: Identities,
    pub store: Arc<ArtifactStore>,
    pub fetches: artifacts::Turns,
    pub runtime: Arc<dyn Runtime>,
    pub firewall: Firewall,
    /// Services run under uids of their own.
    pub is_root: bool,
    /// What this node cannot enforce beside what [`Firewall::limit`] says.
    pub limits: Vec<String>,
    /// Read while something of an instance is put in its place outside of the node's directory.
    pub places: RwLock<()>,
    /// All of that is to go.
    pub stopped: AtomicBool,
    pub signals: Signals,
    pub probes: Semaphore,
    /// Of logs, for last words.
    pub readings: Arc<Semaphore>,
    /// Of where instances listen.
    pub looks: Arc<Semaphore>,
    pub core: Mutex<Core>,
    pub keeper: Keeper,
    /// Where tasks run: heartbeats have a thread of their own, and begin none there.
    pub tasks: Handle,
}

impl Agent {
    /// Looks at or changes what is known. The closure can't await.
    pub fn with<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One step with this input, and all that follows from it.
    pub fn tell(self: &Arc<Self>, input: Input) {
        self.with(|core| self.tell_in(core, input));
    }

    /// The same, for who has looked at what is known and must not let it change meanwhile.
    pub fn tell_in(self: &Arc<Self>, core: &mut Core, input: Input) {
        let wake = core.state.next_wake();
        let outputs = decide::step(&mut core.state, input, clock::now());
        let renewed = outputs.iter().find_map(|output| match output {
            Output::RenewLease { sent_at, .. } => Some(*sent_at),
            _ => None,
        });
        if let Some(sent_at) = renewed {
            self.runtime.renew(clock::moment(sent_at));
        }
        for output in outputs {
            self.act(core, output);
        }
        if core.state.next_wake() != wake {
            self.signals.wake.notify_one();
        }
    }

    fn act(self: &Arc<Self>, core: &mut Core, output: Output) {
        match output {
            Output::Prepare { instance, run } => self.order(core, instance, Order::Prepare(run)),
            Output::Start { instance, run } => self.order(core, instance, Order::Start(run)),
            Output::Terminate { instance } => self.order(core, instance, Order::Terminate),
            Output::Kill { instance } => self.order(core, instance, Order::Kill),
            Output::Remove { instance } => self.order(core, instance, Order::Remove),
            Output::Probe {
                instance,
                run,
                question,
            } => self.probe(core, instance, run, question),
            Output::SetGate { instance, .. } => {
                core.gate_changes(&instance);
                self.signals.road.send_replace(());
            }
            Output::Report { .. } => {
                self.signals.road.send_replace(());
                self.signals.report.notify_one();
            }
            Output::Remember { instance } => self.remember(core, &instance),
            Output::WatchAnew => self.signals.watch_anew.notify_one(),
            // All of them at once, in `tell`.
            Output::RenewLease { .. } => {}
            Output::Tell {
                instance,
                level,
                reason,
            } => self.say(core, instance, level, reason),
        }
    }

    pub fn say(&self, core: &mut Core, instance: Option<InstanceId>, level: Level, reason: Reason) {
        let subject = instance
            .as_ref()
            .map_or("node".to_owned(), ToString::to_string);
        match level {
            Level::Info => tracing::info!(subject, code = reason.code, "{}", reason.message),
            Level::Warning => tracing::warn!(subject, code = reason.code, "{}", reason.message),
            Level::Error => tracing::error!(subject, code = reason.code, "{}", reason.message),
        }
        core.push_event(instance, level, reason);
        self.signals.report.notify_one();
    }

    pub fn order(self: &Arc<Self>, core: &mut Core, instance: InstanceId, order: Order) {
        let worker = core.workers.entry(instance.clone()).or_insert_with(|| {
            let (sender, orders) = mpsc::channel(ORDERS_MAX);
            self.tasks
                .spawn(instances::work(self.clone(), instance.clone(), orders));
            Worker::new(sender)
        });
        // A full queue belongs to a worker that hangs on the disk, and is told of many runs.
        if let Err(error) = worker.give(order) {
            tracing::error!(%instance, %error, "the instance's worker does not follow");
        }
    }

    fn probe(
        self: &Arc<Self>,
        core: &mut Core,
        instance: InstanceId,
        run: Run,
        question: decide::Question,
    ) {
        let Some(known) = core.state.instance(&instance) else {
            return;
        };
        let spec = &known.desired().spec;
        let probe = match question {
            decide::Question::Health => Some(&spec.health),
            decide::Question::Alive => spec.alive.as_ref(),
        };
        let Some(probe) = probe.cloned() else { return };
        let address = match &probe.port {
            None => known.address().and_then(|address| address.parse().ok()),
            Some(port) => {
                let at_port = at_port(known.desired(), port);
                let port = at_port.and_then(|id| core.ports.get(&id).copied());
                port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            }
        };
        let agent = self.clone();
        let key = (instance.clone(), question);
        let asking = self.tasks.spawn(async move {
            let answer = match agent.probe_permit(&probe.ask).await {
                Ok(_permit) => {
                    let timeout = probe.times.timeout.duration();
                    let spec = || instances::exec_spec(&agent, &instance);
                    let engine = engine::ask(&agent, &instance);
                    let runtime = &*agent.runtime;
                    let answer = probes::ask(&probe.ask, address, timeout, runtime, spec, engine);
                    listening::explained(&agent, &instance, address, answer.await)
                }
                Err(busy) => Err(Failure::NotAsked(busy)),
            };
            let asked = address.map(|address| address.to_string());
            agent.probed(instance, run, question, asked, answer);
        });
        // One of a kind at a time: what was asked before and is not answered yet has been counted as lost.
        if let Some(lost) = core.asking.insert(key, asking.abort_handle()) {
            lost.abort();
        }
    }

    fn probed(
        self: &Arc<Self>,
        instance: InstanceId,
        run: Run,
        question: decide::Question,
        asked: Option<String>,
        answer: Result<(), Failure>,
    ) {
        let answer = match answer {
            Ok(()) => Ok(()),
            Err(Failure::Answer(said)) => Err(said),
            Err(Failure::NotAsked(why)) => {
                return self.tell(Input::NotAsked {
                    instance,
                    run,
                    question,
                    why,
                });
            }
        };
        self.tell(Input::Probed {
            instance,
            run,
            question,
            asked,
            answer,
        });
    }

    /// Programs are what the machine has room for; to ask over a connection costs next to nothing.
    async fn probe_permit(&self, ask: &Ask) -> Result<Option<SemaphorePermit<'_>>, String> {
        if !matches!(ask, Ask::Exec { .. }) {
            return Ok(None);
        }
        let permit = tokio::time::timeout(decide::PROBE_WAIT, self.probes.acquire()).await;
        permit.ok().and_then(Result::ok).map(Some).ok_or_else(|| {
            let wait = decide::PROBE_WAIT.as_secs();
            format!("it was not asked within {wait} s: the node is busy with the probes of others")
        })
    }

    /// Keeps what the next agent must know of an instance.
    pub fn remember(&self, core: &mut Core, id: &InstanceId) {
        let Some(instance) = core.state.instance(id) else {
            return;
        };
        let record = Record {
            desired: instance.desired().clone(),
            held: Ports {
                port: core.ports.get(id).copied(),
                ports: core.named_ports(instance.desired()),
            },
            history: instance.history().clone(),
        };
        // That it ran decides what may be deleted.
        self.keeper.write_durably(self.layout.record(id), &record);
        if let Some(error) = self.keeper.failure() {
            self.disk_refuses(core, &error);
        }
    }

    /// Said as an event: what runs goes on, but a restart of the agent would not know of it.
    pub fn disk_refuses(&self, core: &mut Core, error: &dyn std::fmt::Display) {
        let reason = Reason::new(
            "disk-refuses",
            format!("the node's directory can't be written: {error}"),
        );
        let said = core.events.iter().any(|event| event.reason == reason);
        if !said {
            self.say(core, None, Level::Error, reason);
        }
    }

    pub fn snapshot(&self, core: &Core, generation: Generation) -> ProxySnapshot {
        snapshot::snapshot(snapshot::Parts {
            generation,
            config: &self.config,
            node: &self.identities.node(),
            services: self.identities.services(),
            instances: core
                .state
                .instances()
                .map(|(_, instance)| instance)
                .collect(),
            ways: snapshot::Ways {
                road: &core.road,
                doors: &core.doors,
                protocols: &core.protocols,
            },
            left: core.left_running().collect(),
            ports: &core.ports,
            removed: &core.removed,
            enforce_uid: self.is_root,
        })
    }

    /// Whether the proxy was told all that is known now.
    pub fn has_told_all(&self, core: &Core) -> bool {
        core.told_snapshot
            .as_ref()
            .is_some_and(|told| *told == self.snapshot(core, told.generation))
    }
}

/// Steps when a deadline has come.
async fn tick(agent: Arc<Agent>) {
    loop {
        let wake = agent.with(|core| core.state.next_wake());
        let wait = wake.map(|wake| wake.since(clock::instant()));
        tokio::select! {
            () = agent.signals.wake.notified() => continue,
            () = sleep(wait) => agent.tell(Input::Tick),
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

async fn hear_runtime(agent: Arc<Agent>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        let instance = event.instance;
        let run = agent.with(|core| {
            let known = core.running.get(&instance)?;
            // While it is being started its pid is not known yet; an earlier run has told its last before.
            let same = event.pid == 0 || known.pid.is_none_or(|pid| pid == event.pid);
            same.then_some(known.run)
        });
        let Some(run) = run else { continue };
        let frozen = match event.what {
            Happening::Stopped { .. } => Some(true),
            Happening::Continued => Some(false),
            _ => None,
        };
        if let Some(frozen) = frozen {
            agent.with(|core| core.is_frozen(&instance, frozen));
        }
        let input = match event.what {
            Happening::Stopped { .. } => Input::Suspended {
                instance,
                run,
                suspended: true,
            },
            Happening::Continued => Input::Suspended {
                instance,
                run,
                suspended: false,
            },
            Happening::Unkillable { processes } => Input::Unkillable {
                instance,
                run,
                processes,
            },
            Happening::Exited(exit) => {
                let is_left = agent.with(|core| {
                    core.running.remove(&instance);
                    core.foreign.contains_key(&instance)
                });
                if is_left {
                    agent.signals.road.send_replace(());
                }
                // Nothing more happens to it before this is told, and no other waits for the disk that gives its words.
                let agent = agent.clone();
                tokio::spawn(async move { instances::tell_end(&agent, instance, run, exit).await });
                continue;
            }
        };
        agent.tell(input);
    }
}
