//! What the tests stand on: a server, a client of its owner, and nodes whose agents are some lines of this file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::client::{Client, Error, Transport};
use api::wire::{self, Apply, InstanceView};
use boundary::authority::Key;
use boundary::token::JoinToken;
use control::server::{self, ClientFile, Options};
use futures_util::StreamExt;
use jiff::Timestamp;
use model::compute::{
    DesiredInstance, InstanceReport, InstanceState, Need, RolloutOptions, Service, Wanted, Work,
};
use model::control::{
    Capacity, Demand, Heartbeat, NodeDesired, NodeRole, Notice, Place, Reason, observed_digest,
};
use model::ids::{Generation, InstanceId, NodeName, ProjectName, ResourceName, SessionId};
use model::machine::{Disk, Programs};
use model::traffic::Identity;
use model::units::{Bytes, MilliCpu, Span};
use store::memory::MemoryStore;
use store::sqlite::SqliteStore;
use tls::Expect;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than any wait of a test that passes; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn project() -> ProjectName {
    "shop".parse().unwrap()
}

pub fn name(text: &str) -> ResourceName {
    text.parse().unwrap()
}

pub fn service(replicas: u32) -> Service {
    let work = Work::Process {
        run: vec!["/bin/server".to_owned()],
        artifact: None,
    };
    Service {
        replicas,
        memory: Bytes::mebibytes(100),
        rollout: RolloutOptions {
            ready_within: Span::milliseconds(1500),
            ready_for: Span::seconds(0),
            ..RolloutOptions::default()
        },
        ..Service::of(work)
    }
}

pub fn with_env(mut spec: Service, key: &str, value: &str) -> Service {
    spec.env.insert(key.to_owned(), value.to_owned());
    spec
}

pub fn needing(mut spec: Service, need: &str) -> Service {
    spec.needs.insert(name(need), Need::default());
    spec
}

pub fn apply_of(services: &[(&str, Service)]) -> Apply {
    let services = services
        .iter()
        .map(|(service, spec)| (name(service), spec.clone()))
        .collect();
    Apply {
        services,
        ..Apply::default()
    }
}

/// Where the store lives.
#[derive(Clone)]
pub enum Memory {
    /// Shared by the servers of one test, one after the other.
    Ram(MemoryStore),
    Disk,
    Other(Arc<dyn store::Store>),
}

pub struct Cloud {
    pub directory: PathBuf,
    pub client: Client,
    pub file: ClientFile,
    pub memory: Memory,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), server::Error>>,
}

/// A problem's code, where there should be one.
pub fn code<T>(answer: Result<T, Error>) -> String {
    match answer {
        Ok(_) => "it was done".to_owned(),
        Err(error) => error
            .code()
            .map_or_else(|| error.to_string(), str::to_owned),
    }
}

pub fn key() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    format!(
        "key-{}",
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    )
}

pub fn options(directory: &Path, memory: &Memory, api: SocketAddr, nodes: SocketAddr) -> Options {
    let memory = memory.clone();
    Options {
        directory: directory.to_owned(),
        api,
        nodes,
        client_file: directory.join("client.json"),
        open_store: Box::new(move |directory| match memory {
            Memory::Ram(store) => Ok(Arc::new(store)),
            Memory::Other(store) => Ok(store),
            Memory::Disk => {
                let options = store::sqlite::Options::new(directory.join("store.db"));
                Ok(Arc::new(SqliteStore::open(options)?))
            }
        }),
        clock: Arc::new(Timestamp::now),
        version: "test",
    }
}

pub fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

impl Cloud {
    pub async fn start(directory: &Path) -> Self {
        Self::start_with(directory, Memory::Ram(MemoryStore::default()), any(), any()).await
    }

    pub async fn start_with(
        directory: &Path,
        memory: Memory,
        api: SocketAddr,
        nodes: SocketAddr,
    ) -> Self {
        Self::start_of(options(directory, &memory, api, nodes), memory).await
    }

    pub async fn start_of(options: Options, memory: Memory) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let directory = options.directory.clone();
        let client_file = options.client_file.clone();
        let before = std::fs::metadata(&client_file)
            .and_then(|known| known.modified())
            .ok();
        let running = tokio::spawn(server::run(options, async {
            let _ = stopped.await;
        }));
        let file = until("the client file", || {
            let written = std::fs::metadata(&client_file)
                .and_then(|known| known.modified())
                .ok();
            let fresh = written.is_some() && written != before;
            std::future::ready(fresh.then(|| {
                serde_json::from_slice::<ClientFile>(&std::fs::read(&client_file).unwrap()).unwrap()
            }))
        })
        .await;
        let client = Client::new(Transport::Tcp(file.api), Some(file.token.clone()));
        until("the server is ready", || async {
            client.health().await.ok().filter(|health| health.ready)
        })
        .await;
        Self {
            directory,
            client,
            file,
            memory,
            stop: Some(stop),
            running,
        }
    }

    pub async fn stop(&mut self) {
        let Some(stop) = self.stop.take() else {
            return;
        };
        let _ = stop.send(());
        let ended = tokio::time::timeout(PATIENCE, &mut self.running).await;
        ended.expect("it ends in time").unwrap().unwrap();
    }

    /// Another server in the same place, at the same addresses.
    pub async fn again(mut self) -> Self {
        self.stop().await;
        Self::start_with(
            &self.directory,
            self.memory.clone(),
            self.file.api,
            self.file.nodes,
        )
        .await
    }

    pub async fn apply(&self, apply: &Apply) -> wire::Applied {
        self.client
            .apply(&project(), apply, false, &key())
            .await
            .unwrap()
    }

    pub async fn ps(&self) -> Vec<InstanceView> {
        self.client
            .instances(&project())
            .await
            .map(|list| list.items)
            .unwrap_or_default()
    }

    /// Waits until `ps` shows what is asked; fails with what it shows.
    pub async fn ps_until(
        &self,
        what: &str,
        holds: impl Fn(&[InstanceView]) -> bool,
    ) -> Vec<InstanceView> {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = self.ps().await;
            if holds(&shown) {
                return shown;
            }
            assert!(Instant::now() < end, "{what} did not come: {shown:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn ready(&self, service: &str, count: usize) -> Vec<InstanceView> {
        let service = name(service);
        let all_ready = |shown: &[InstanceView]| {
            let of_it: Vec<_> = shown
                .iter()
                .filter(|view| view.service == service)
                .collect();
            of_it.len() == count && of_it.iter().all(|view| view.ready)
        };
        let shown = self
            .ps_until(&format!("{count} ready {service}"), all_ready)
            .await;
        shown
            .into_iter()
            .filter(|view| view.service == service)
            .collect()
    }

    pub async fn join(&self, node: &str) -> FakeNode {
        FakeNode::join(self, node, NodeRole::Worker).await.unwrap()
    }

    pub async fn three_nodes(&self) -> [FakeNode; 3] {
        [
            self.join("a").await,
            self.join("b").await,
            self.join("c").await,
        ]
    }

    pub async fn join_token(&self, node: Option<&str>) -> String {
        let ask = wire::MakeJoinToken {
            node: node.map(|node| node.parse().unwrap()),
            valid_seconds: 60,
        };
        self.client.make_join_token(&ask).await.unwrap().token
    }

    /// Raw bytes of a GET, with the owner's token.
    pub async fn body(&self, path: &str) -> String {
        let request = api::client::request(http::Method::GET, path, "");
        match self.client.send(request).await {
            Ok(answer) => {
                use http_body_util::BodyExt;
                String::from_utf8(
                    answer
                        .into_body()
                        .collect()
                        .await
                        .unwrap()
                        .to_bytes()
                        .to_vec(),
                )
                .unwrap()
            }
            Err(error) => format!("{error:?}"),
        }
    }
}

/// Waits for a condition, with a deadline.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How a fake node treats what it is told to run.
type Behaviour = Arc<dyn Fn(&DesiredInstance) -> (InstanceState, bool) + Send + Sync>;

#[derive(Default)]
struct Seen {
    desired: Option<NodeDesired>,
    /// All it was ever told, oldest first.
    told: Vec<NodeDesired>,
    /// What it says is waited for.
    demand: Vec<Demand>,
    forgot: Vec<model::ids::ResourceId>,
    refuses_to_forget: Vec<model::ids::ResourceId>,
    machine: Machine,
}

/// What it says of its machine, and of what should be mended there.
#[derive(Default, Clone)]
pub struct Machine {
    pub disk: Option<Disk>,
    pub programs: Option<Programs>,
    pub notices: Vec<Notice>,
    pub unkept: Option<Reason>,
    pub place: Option<Place>,
    /// Of its agent; left out: the server's.
    pub version: Option<String>,
}

pub struct FakeNode {
    pub name: NodeName,
    pub client: Arc<Client>,
    pub identity: Identity,
    pub authority: String,
    pub server: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.silence();
    }
}

pub fn clock() -> boundary::Clock {
    Arc::new(Timestamp::now)
}

/// A clock that is as many seconds ahead as the number says.
pub fn moved_clock() -> (Arc<std::sync::atomic::AtomicI64>, boundary::Clock) {
    let ahead = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let of_clock = ahead.clone();
    let clock = Arc::new(move || {
        let seconds = of_clock.load(std::sync::atomic::Ordering::Relaxed);
        Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
    });
    (ahead, clock)
}

pub fn join_of(node: &str, role: NodeRole, request: String) -> wire::Join {
    wire::Join {
        name: node.parse().unwrap(),
        region: "home".parse().unwrap(),
        zone: node.parse().unwrap(),
        role,
        capacity: Capacity {
            cpu: MilliCpu(4000),
            memory: Bytes::mebibytes(4000),
        },
        labels: BTreeMap::new(),
        programs: None,
        request,
        certificate: None,
    }
}

pub fn joining_client(token: &str, server: SocketAddr) -> Client {
    let fingerprint = token.parse::<JoinToken>().unwrap().authority;
    let config = tls::join_config(fingerprint, clock()).unwrap();
    let transport = Transport::Tls {
        address: server,
        config: Arc::new(config),
        name: tls::server_name(),
    };
    Client::new(transport, Some(token.to_owned()))
}

pub fn client_as(identity: &Identity, authority: &str, server: SocketAddr) -> Client {
    let mut config = tls::client_config(identity, authority, Expect::Anyone, clock()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Client::new(
        Transport::Tls {
            address: server,
            config: Arc::new(config),
            name: tls::server_name(),
        },
        None,
    )
}

impl FakeNode {
    pub async fn join(cloud: &Cloud, node: &str, role: NodeRole) -> Result<Self, Error> {
        let token = cloud.join_token(Some(node)).await;
        let mut joined = Self::let_in(&token, cloud.file.nodes, node, role).await?;
        // A release marked bad by its environment never becomes ready.
        joined.start(Arc::new(|desired| {
            match desired.spec.env.contains_key("BROKEN") {
                true => (InstanceState::Running, false),
                false => (InstanceState::Running, true),
            }
        }));
        Ok(joined)
    }

    pub async fn let_in(
        token: &str,
        server: SocketAddr,
        node: &str,
        role: NodeRole,
    ) -> Result<Self, Error> {
        let key = Key::generate().unwrap();
        let join = join_of(node, role, key.request().unwrap());
        let joined = joining_client(token, server).join(&join).await?;
        let identity = key.into_identity(joined.certificate);
        Ok(Self {
            name: join.name,
            client: Arc::new(client_as(&identity, &joined.authority, server)),
            identity,
            authority: joined.authority,
            server,
            seen: Arc::default(),
            tasks: Vec::new(),
        })
    }

    pub fn start(&mut self, behaviour: Behaviour) {
        self.tasks.push(tokio::spawn(watch(
            self.client.clone(),
            self.name.clone(),
            self.seen.clone(),
        )));
        self.tasks.push(tokio::spawn(beat(
            self.client.clone(),
            self.name.clone(),
            self.seen.clone(),
            behaviour,
        )));
    }

    /// Says no more, as a machine that lost its power.
    pub fn silence(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }

    pub fn desired(&self) -> Option<NodeDesired> {
        self.seen.lock().unwrap().desired.clone()
    }

    pub fn generations(&self) -> Vec<Generation> {
        let told = &self.seen.lock().unwrap().told;
        told.iter().map(|desired| desired.generation).collect()
    }

    pub fn told(&self) -> Vec<NodeDesired> {
        self.seen.lock().unwrap().told.clone()
    }

    /// Says that requests wait for a service.
    pub fn demand(&self, service: &str, waiting: u32) {
        let service = format!("shop/{service}").parse().unwrap();
        self.seen.lock().unwrap().demand = vec![Demand { service, waiting }];
    }

    pub fn tell(&self, machine: Machine) {
        self.seen.lock().unwrap().machine = machine;
    }

    /// One heartbeat of an agent at this place, which runs nothing; the code of the refusal.
    pub async fn beats_from(&self, place: Place) -> Result<(), String> {
        static BEATS: AtomicU64 = AtomicU64::new(1);
        let heartbeat = Heartbeat {
            session: SessionId(place.folder ^ place.boot),
            sequence: BEATS.fetch_add(1, Ordering::Relaxed),
            acknowledged: Generation::default(),
            unkept: None,
            digest: observed_digest([]),
            full: true,
            changed: Vec::new(),
            gone: Vec::new(),
            demand: Vec::new(),
            mesh: None,
            pid: 43,
            version: "fake".to_owned(),
            events: Vec::new(),
            at: None,
            place: Some(place),
            disk: None,
            programs: None,
            notices: Vec::new(),
            not_forgotten: Vec::new(),
        };
        let patience = Duration::from_secs(2);
        let heard = self
            .client
            .heartbeat(&self.name, &heartbeat, patience)
            .await;
        match heard {
            Ok(_) => Ok(()),
            refused => Err(code(refused)),
        }
    }

    /// Its disk refuses to forget these.
    pub fn refuses_to_forget(&self, services: &[&str]) {
        let services = services.iter().map(|service| service.parse().unwrap());
        self.seen.lock().unwrap().refuses_to_forget = services.collect();
    }

    pub fn forgot(&self) -> Vec<model::ids::ResourceId> {
        self.seen.lock().unwrap().forgot.clone()
    }
}

async fn watch(client: Arc<Client>, name: NodeName, seen: Arc<Mutex<Seen>>) {
    loop {
        if let Ok(mut stream) = client.watch_desired(&name).await {
            while let Some(Ok(desired)) = stream.next().await {
                let mut seen = seen.lock().unwrap();
                seen.told.push(desired.clone());
                seen.forgot.extend(desired.forget_volumes.iter().cloned());
                seen.desired = Some(desired);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn beat(client: Arc<Client>, name: NodeName, seen: Arc<Mutex<Seen>>, behaviour: Behaviour) {
    let session = SessionId(std::process::id().into());
    let (mut sequence, mut full) = (0, true);
    let mut told: BTreeMap<InstanceId, InstanceReport> = BTreeMap::new();
    loop {
        sequence += 1;
        let (reports, acknowledged) = observe(&seen.lock().unwrap(), &behaviour);
        let demand = seen.lock().unwrap().demand.clone();
        let machine = seen.lock().unwrap().machine.clone();
        let changed = reports
            .values()
            .filter(|report| full || told.get(&report.instance) != Some(report))
            .cloned()
            .collect();
        let gone = told
            .keys()
            .filter(|instance| !reports.contains_key(*instance))
            .cloned()
            .collect();
        let heartbeat = Heartbeat {
            session,
            sequence,
            acknowledged,
            unkept: machine.unkept,
            digest: observed_digest(reports.values()),
            full,
            changed,
            gone,
            demand,
            mesh: Some(SocketAddr::from(([127, 0, 0, 1], 7071))),
            pid: 42,
            version: machine.version.unwrap_or_else(|| "test".to_owned()),
            events: Vec::new(),
            at: None,
            place: machine.place,
            disk: machine.disk,
            programs: machine.programs,
            notices: machine.notices,
            not_forgotten: seen.lock().unwrap().refuses_to_forget.clone(),
        };
        match client
            .heartbeat(&name, &heartbeat, Duration::from_secs(2))
            .await
        {
            Ok(answer) => {
                full = answer.send_full;
                told = reports;
            }
            Err(_) => full = true,
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Everything that is wanted runs at once; what is to leave has ended at once, and is said to until nothing is wanted of it.
fn observe(
    seen: &Seen,
    behaviour: &Behaviour,
) -> (BTreeMap<InstanceId, InstanceReport>, Generation) {
    let Some(desired) = &seen.desired else {
        return Default::default();
    };
    let reports = desired.instances.iter().map(|instance| {
        let (state, ready) = match instance.wanted {
            Wanted::Leave => (InstanceState::Stopped, false),
            Wanted::Run => behaviour(instance),
        };
        let (id, service) = (instance.instance.clone(), instance.service.clone());
        let report = InstanceReport {
            state,
            ready,
            pid: Some(1000),
            address: Some("127.0.0.1:9999".to_owned()),
            // What is not ready says of itself what its environment makes it say.
            reason: instance
                .spec
                .env
                .get("SAYS")
                .map(|said| Reason::new("not-ready", said)),
            ..InstanceReport::blank(id, service, instance.release, instance.epoch)
        };
        (instance.instance.clone(), report)
    });
    (reports.collect(), desired.generation)
}
