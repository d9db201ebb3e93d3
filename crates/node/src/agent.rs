//! The agent: puts the parts together, hands every input to [`plan::agent::step`] and every output to who acts on it.
//!
//! All that is known stands under one lock that is held for the length of a step and never across an await. Whoever learns something calls
//! [`Agent::tell`]; what is to be done goes to per-instance workers, to probes, and as signals to the loops that talk to servers and proxy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use compute::artifact::store::ArtifactStore;
use compute::cgroup::{self, Support};
use compute::process::{self, ProcessRuntime};
use compute::runtime::{Adopted, Event, Happening, InstanceSpec, Runtime};
use model::compute::{ExitHow, Work};
use model::control::{NodeEvent, Reason};
use model::ids::{Generation, InstanceId, ResourceId};
use model::signals::Level;
use model::traffic::{Gate, ProxySnapshot, Road};
use plan::agent::{self as decide, Input, Output, Run, State};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::doors::Doors;
use crate::firewall::Firewall;
use crate::identity::{self, Identities};
use crate::instances::{self, Order};
use crate::layout::{self, Layout, Lock};
use crate::options::{self, Config};
use crate::record::{self, Record};

use crate::{artifacts, clock, desired, heartbeat, pause, probes, proxy, snapshot, socket, tunnel};

pub use crate::options::Options;

/// Events that wait for the next heartbeat; the oldest stay.
pub(crate) const EVENTS_MAX: usize = 64;
/// Orders that one instance's worker has not yet taken.
const ORDERS_MAX: usize = 64;
/// Probes that are out at the same time.
const PROBES_MAX: usize = 64;
const RUNTIME_EVENTS_MAX: usize = 256;
/// Between looks at what could be collected.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60);
/// Between looks at certificates; shorter while one could not be had.
const CERTIFY_INTERVAL: Duration = Duration::from_secs(30);
const CERTIFY_AGAIN: Duration = Duration::from_secs(3);
/// Beyond all graces, until a node that was asked to stop ends whatever is left.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// For the servers to say that what this node knows from its disk is old, before it is started again.
const SERVERS_CHANCE: Duration = Duration::from_millis(500);
/// For the last heartbeat to be answered, and for the answer to who asked to stop to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Options(#[from] options::Error),
    #[error(transparent)]
    Layout(#[from] layout::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
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

/// Runs the agent until `shutdown`, which ends it alone, or until it is asked to stop over its socket. Shims and proxy outlive it in the
/// first case. Must run inside a tokio runtime with I/O and time.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    let begun = tokio::select! {
        begun = begin(options) => begun?,
        () = &mut shutdown => return Ok(()),
    };
    let (agent, _lock, events) = begun;
    let listener = socket::bind(&agent.layout.socket()).map_err(|source| Error::Socket {
        path: agent.layout.socket(),
        source,
    })?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(hear_runtime(agent.clone(), events));
    adopt_all(&agent).await;
    take_kept_desired(&agent);
    tasks.spawn(tick(agent.clone()));
    tasks.spawn(proxy::run(agent.clone()));
    tasks.spawn(heartbeat::run(agent.clone()));
    tasks.spawn(desired::run(agent.clone()));
    tasks.spawn(certify(agent.clone()));
    tasks.spawn(collect(agent.clone()));
    tasks.spawn(socket::run(agent.clone(), listener));
    tasks.spawn(tunnel::run(agent.clone()));
    let mut ended = agent.signals.ended.subscribe();
    tokio::select! {
        () = &mut shutdown => tracing::info!("the agent ends; instances and proxy go on"),
        _ = ended.wait_for(|ended| *ended) => tracing::info!("the node has stopped"),
    }
    Ok(())
}

/// What is known and who acts, shared by all tasks.
pub(crate) struct Agent {
    pub config: Config,
    pub layout: Layout,
    pub version: String,
    pub executable: PathBuf,
    pub identities: Identities,
    pub store: Arc<ArtifactStore>,
    pub runtime: Arc<dyn Runtime>,
    pub firewall: Firewall,
    /// Services run under uids of their own.
    pub is_root: bool,
    /// What this node cannot enforce.
    pub limits: Vec<String>,
    pub signals: Signals,
    probes: Semaphore,
    core: Mutex<Core>,
}

/// Under the lock.
pub(crate) struct Core {
    pub state: State,
    pub ports: BTreeMap<InstanceId, u16>,
    pub specs: BTreeMap<InstanceId, Arc<InstanceSpec>>,
    pub running: BTreeMap<InstanceId, Running>,
    pub workers: BTreeMap<InstanceId, mpsc::Sender<Order>>,
    pub events: VecDeque<NodeEvent>,
    pub road: Road,
    pub doors: Doors,
    pub demand: BTreeMap<ResourceId, u32>,
    /// Secrets of the services here, as last given: in memory only.
    pub secrets: BTreeMap<ResourceId, api::wire::SecretValues>,
    /// Of the last snapshot that the proxy was told.
    pub told: Generation,
    /// What it was told on the connection that lives now.
    pub told_snapshot: Option<ProxySnapshot>,
    /// The proxy has taken a snapshot and its connection lives.
    pub proxy_answers: bool,
    /// The servers answered the last heartbeat.
    pub connected: bool,
}

/// Which run a process belongs to. `pid` is not known while it is being started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    pub run: Run,
    pub pid: Option<u32>,
}

/// How loops hear that there is something for them: levels, not messages.
pub(crate) struct Signals {
    /// The next deadline may have changed.
    pub wake: Notify,
    /// The servers should hear something.
    pub report: Notify,
    pub watch_anew: Notify,
    pub certify: Notify,
    /// The proxy should hear something.
    pub road: watch::Sender<()>,
    pub acknowledged: watch::Sender<Generation>,
    /// Heartbeats that were answered.
    pub heard: watch::Sender<u64>,
    /// The proxy is to stop; and has stopped.
    pub stop_proxy: watch::Sender<bool>,
    pub proxy_stopped: watch::Sender<bool>,
    pub ended: watch::Sender<bool>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            report: Notify::new(),
            watch_anew: Notify::new(),
            certify: Notify::new(),
            road: watch::Sender::new(()),
            acknowledged: watch::Sender::new(Generation::default()),
            heard: watch::Sender::new(0),
            stop_proxy: watch::Sender::new(false),
            proxy_stopped: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        }
    }
}

type Begun = (Arc<Agent>, Lock, mpsc::Receiver<Event>);

async fn begin(options: Options) -> Result<Begun, Error> {
    let (layout, lock) = Layout::open(&options.data_dir)?;
    let kept: Option<Config> = layout::read(&layout.config())?;
    let mut config = options::resolve(kept, &options.given, options::machine())?;
    if config.mesh.port() == 0 {
        let ports = config.ports;
        let port = compute::port::pick(ports.first..=ports.last, ports.last, &BTreeSet::new());
        config.mesh.set_port(port.ok_or(Error::NoMeshPort(ports))?);
    }
    let token = options.given.join_token.as_deref();
    let identities = Identities::open(config.clone(), layout.clone(), options.clock, token).await?;
    // Only now: a directory with this file is one of a node that has joined.
    layout::write(&layout.config(), &config)?;
    let is_root = rustix::process::geteuid().is_root();
    let firewall = Firewall::detect(&config.name, &options.data_dir, is_root).await;
    let mut limits: Vec<String> = firewall.limit().map(str::to_owned).into_iter().collect();
    let cgroups = detect_cgroups(&mut limits);
    for limit in &limits {
        tracing::warn!("{limit}");
    }
    let (sender, events) = mpsc::channel(RUNTIME_EVENTS_MAX);
    let runtime = ProcessRuntime::new(process::Options {
        binary: options.executable.clone(),
        cgroups,
        events: sender,
    });
    let store = Arc::new(ArtifactStore::open(&layout.artifacts())?);
    let core = Core::open(&layout)?;
    let agent = Agent {
        config,
        layout,
        version: options.version,
        executable: options.executable,
        identities,
        store,
        runtime: Arc::new(runtime),
        firewall,
        is_root,
        limits,
        signals: Signals::default(),
        probes: Semaphore::new(PROBES_MAX),
        core: Mutex::new(core),
    };
    Ok((Arc::new(agent), lock, events))
}

fn detect_cgroups(limits: &mut Vec<String>) -> Option<cgroup::Cgroups> {
    match cgroup::detect() {
        Support::Groups(groups) => {
            if !groups.not_enforced.is_empty() {
                limits.push(format!(
                    "cgroups: not enforced here: {}",
                    groups.not_enforced.join(", ")
                ));
            }
            Some(groups)
        }
        Support::None { why } => {
            limits.push(format!("memory and CPU limits are not enforced: {why}"));
            None
        }
    }
}

impl Core {
    fn open(layout: &Layout) -> Result<Self, Error> {
        let doors = layout::read(&layout.doors()).unwrap_or_else(|error| {
            tracing::warn!(%error, "doors are given anew");
            None
        });
        let snapshot = kept_snapshot(layout);
        Ok(Self {
            state: State::new(pause::draw()),
            ports: BTreeMap::new(),
            specs: BTreeMap::new(),
            running: BTreeMap::new(),
            workers: BTreeMap::new(),
            events: VecDeque::new(),
            road: Road::default(),
            doors: doors.unwrap_or_default(),
            demand: BTreeMap::new(),
            secrets: BTreeMap::new(),
            told: snapshot
                .map(|snapshot| snapshot.generation)
                .unwrap_or_default(),
            told_snapshot: None,
            proxy_answers: false,
            connected: false,
        })
    }

    pub fn services(&self) -> BTreeSet<ResourceId> {
        self.state
            .instances()
            .map(|(_, instance)| instance.service())
            .collect()
    }

    pub fn push_event(&mut self, instance: Option<InstanceId>, level: Level, reason: Reason) {
        let at = jiff::Timestamp::now();
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(NodeEvent {
                at,
                level,
                instance,
                reason,
            });
        }
    }
}

/// What the proxy last kept: which gates stood open, and how far generations were counted.
fn kept_snapshot(layout: &Layout) -> Option<ProxySnapshot> {
    layout::read(&layout.proxy().join("snapshot.json"))
        .ok()
        .flatten()
}

impl Agent {
    /// Looks at or changes what is known. The closure can't await.
    pub fn with<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One step with this input, and all that follows from it.
    pub fn tell(self: &Arc<Self>, input: Input) {
        self.with(|core| {
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
        });
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
            Output::SetGate { .. } => {
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

    fn order(self: &Arc<Self>, core: &mut Core, instance: InstanceId, order: Order) {
        let worker = core.workers.entry(instance.clone()).or_insert_with(|| {
            let (sender, orders) = mpsc::channel(ORDERS_MAX);
            tokio::spawn(instances::work(self.clone(), instance.clone(), orders));
            sender
        });
        // A full queue belongs to a worker that hangs on the disk; what it misses is decided again at the next deadline.
        if let Err(error) = worker.try_send(order) {
            tracing::error!(%instance, %error, "the instance's worker does not follow");
        }
    }

    fn probe(
        self: &Arc<Self>,
        core: &Core,
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
        let address = known.address().and_then(|address| address.parse().ok());
        let agent = self.clone();
        tokio::spawn(async move {
            let Ok(_permit) = agent.probes.acquire().await else {
                return;
            };
            let timeout = probe.times.timeout.duration();
            let spec = || instances::exec_spec(&agent, &instance);
            let answer = probes::ask(&probe.ask, address, timeout, &*agent.runtime, spec).await;
            agent.tell(Input::Probed {
                instance,
                run,
                question,
                answer,
            });
        });
    }

    /// Keeps what the next agent must know of an instance.
    pub fn remember(&self, core: &mut Core, id: &InstanceId) {
        let Some(instance) = core.state.instance(id) else {
            return;
        };
        let record = Record {
            desired: instance.desired().clone(),
            port: core.ports.get(id).copied(),
            history: instance.history().clone(),
        };
        let written = self
            .layout
            .make_project(id)
            .and_then(|()| layout::write(&self.layout.record(id), &record));
        if let Err(error) = written {
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
            road: &core.road,
            doors: &core.doors,
            enforce_uid: self.is_root,
        })
    }

    /// Whether the proxy was told all that is known now.
    pub fn has_told_all(&self, core: &Core) -> bool {
        core.told_snapshot
            .as_ref()
            .is_some_and(|told| *told == self.snapshot(core, told.generation))
    }

    /// The agent ends; with `instances`, everything leaves the road and the machine first, then the proxy.
    pub async fn stop(self: &Arc<Self>, instances: bool) {
        if instances {
            self.stop_instances().await;
            self.signals.stop_proxy.send_replace(true);
            let mut stopped = self.signals.proxy_stopped.subscribe();
            let _ = tokio::time::timeout(STOP_PATIENCE, stopped.wait_for(|stopped| *stopped)).await;
            self.firewall.remove().await;
        }
        let agent = self.clone();
        tokio::spawn(async move {
            // The answer to who asked is on its way.
            tokio::time::sleep(LAST_WORDS / 5).await;
            agent.signals.ended.send_replace(true);
        });
    }

    async fn stop_instances(self: &Arc<Self>) {
        self.tell(Input::StopAll);
        let graces = self.with(|core| {
            let instances = core.state.instances();
            instances
                .map(|(_, instance)| instance.desired().spec.grace.duration())
                .max()
        });
        let deadline = tokio::time::Instant::now() + graces.unwrap_or_default() * 2 + STOP_PATIENCE;
        let mut still = tokio::time::interval(Duration::from_millis(20));
        while !self.with(|core| core.state.is_still()) && tokio::time::Instant::now() < deadline {
            still.tick().await;
        }
        let mut heard = self.signals.heard.subscribe();
        heard.mark_unchanged();
        self.signals.report.notify_one();
        let _ = tokio::time::timeout(LAST_WORDS, heard.changed()).await;
    }
}

/// What earlier agents left is taken over before anything else is decided.
async fn adopt_all(agent: &Arc<Agent>) {
    agent.with(|core| {
        core.state
            .wait_for_servers(clock::instant().after(SERVERS_CHANCE))
    });
    let snapshot = kept_snapshot(&agent.layout);
    let gates: BTreeMap<InstanceId, Gate> = snapshot
        .into_iter()
        .flat_map(|snapshot| snapshot.local)
        .map(|local| (local.instance, local.gate))
        .collect();
    for record in record::read_all(&agent.layout) {
        let id = record.desired.instance.clone();
        let directory = agent.layout.instance(&id);
        agent.with(|core| {
            core.ports
                .extend(record.port.map(|port| (id.clone(), port)));
            core.running
                .insert(id.clone(), Running { run: 1, pid: None });
        });
        let found = agent.runtime.adopt(&id, &directory).await;
        let open = gates.get(&id) == Some(&Gate::Open);
        let process = adopted(found, &record, open);
        agent.with(|core| {
            let pid = match &process {
                decide::Adopted::Running { pid, .. } => Some(*pid),
                _ => None,
            };
            match pid {
                Some(_) => core.running.insert(id.clone(), Running { run: 1, pid }),
                None => core.running.remove(&id),
            };
        });
        agent.tell(Input::Adopted {
            desired: Box::new(record.desired),
            history: record.history,
            process,
        });
    }
    let ports = agent.with(|core| instances::open_ports(core));
    if let Err(why) = agent.firewall.apply(ports).await {
        tracing::error!(why, "instance ports can't be closed to others");
    }
}

fn adopted(
    found: Result<Adopted, compute::runtime::Error>,
    record: &Record,
    open: bool,
) -> decide::Adopted {
    match found {
        Ok(Adopted::Running { started, frozen }) => decide::Adopted::Running {
            pid: started.pid,
            address: instances::address(record.port.unwrap_or(0)),
            started_at: Some(started.at),
            ready: open,
            suspended: frozen,
        },
        // The exit that the step already knows of is not one more.
        Ok(Adopted::Ended { exit }) if record.history.last_exit.as_ref() != Some(&exit) => {
            decide::Adopted::Exited(exit)
        }
        Ok(Adopted::Ended { .. } | Adopted::NotStarted) => decide::Adopted::Absent,
        Err(error) => {
            tracing::warn!(instance = %record.desired.instance, %error, "can't be adopted");
            let (how, at) = (ExitHow::Unknown, jiff::Timestamp::now());
            decide::Adopted::Exited(model::compute::Exit { how, at })
        }
    }
}

/// With the servers gone, a restarted agent goes on from what it was last told.
fn take_kept_desired(agent: &Arc<Agent>) {
    match layout::read(&agent.layout.desired()) {
        Ok(Some(kept)) => desired::take(agent, kept, None),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "what the node should run is asked anew"),
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
            let same = known.pid.is_none_or(|pid| pid == event.pid);
            same.then_some(known.run)
        });
        let Some(run) = run else { continue };
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
            Happening::Exited(exit) => {
                agent.with(|core| core.running.remove(&instance));
                Input::Exited {
                    instance,
                    run,
                    exit,
                }
            }
        };
        agent.tell(input);
    }
}

/// Keeps certificates fresh: the node's own, and one for each service here.
async fn certify(agent: Arc<Agent>) {
    loop {
        let wait = match certify_once(&agent).await {
            Ok(()) => CERTIFY_INTERVAL,
            Err(error) => {
                tracing::warn!(%error, "certificates");
                CERTIFY_AGAIN
            }
        };
        let _ = tokio::time::timeout(wait, agent.signals.certify.notified()).await;
    }
}

async fn certify_once(agent: &Arc<Agent>) -> Result<(), identity::Error> {
    if agent.identities.renew().await? {
        agent.signals.road.send_replace(());
        // The connection that the watch is on still shows the old one.
        agent.signals.watch_anew.notify_one();
    }
    let services = agent.with(|core| core.services());
    // Before the desired state is known nothing is forgotten.
    if agent.with(|core| core.state.generation().is_some()) && agent.identities.keep_only(&services)
    {
        agent.signals.road.send_replace(());
    }
    for service in services {
        if agent.identities.certify(&service).await? {
            agent.signals.road.send_replace(());
        }
    }
    Ok(())
}

/// Removes artifacts that no instance uses.
async fn collect(agent: Arc<Agent>) {
    let mut unused = BTreeSet::new();
    loop {
        tokio::time::sleep(COLLECT_INTERVAL).await;
        let used = agent.with(|core| {
            let specs = core
                .state
                .instances()
                .map(|(_, instance)| &instance.desired().spec.work);
            specs
                .filter_map(|work| match work {
                    Work::Process { artifact, .. } => {
                        artifact.as_ref().map(|artifact| artifact.digest)
                    }
                    Work::External { .. } => None,
                })
                .collect()
        });
        let store = agent.store.clone();
        let collected = tokio::task::spawn_blocking(move || {
            let result = artifacts::collect(&store, &used, &mut unused);
            (result, unused)
        });
        unused = match collected.await {
            Ok((Ok(()), unused)) => unused,
            Ok((Err(error), unused)) => {
                tracing::warn!(%error, "artifacts can't be collected");
                unused
            }
            Err(_) => BTreeSet::new(),
        };
    }
}
