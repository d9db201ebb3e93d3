//! Acts on instances: one worker each, so that what is done to an instance is done in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use compute::runtime::{
    Adopted, Artifact, DEFAULT_OPEN_FILES, Environment, Error, Identity, InstanceSpec, SecretFile,
    VolumeMount,
};
use model::compute::{ArtifactRef, DesiredInstance, Exit, ExitHow, OnPartition, Work};
use model::control::Reason;
use model::ids::{InstanceId, ResourceId, ResourceName};
use model::signals::Level;
use model::traffic::Protocol;
use plan::agent::{Input, Run};
use tokio::sync::mpsc;

use crate::agent::{Agent, Core, Running};
use crate::environment::{self, Secret};
use crate::pause::{self, Pause};
use crate::{artifacts, clock, layout, snapshot};

/// Servers that don't answer within this are not waited for where there is another way.
const SERVERS_PATIENCE: Duration = Duration::from_secs(3);
/// For the proxy to open the doors of a new instance.
const DOORS_PATIENCE: Duration = Duration::from_secs(1);
const REMOVE_TRIES: u32 = 5;

/// What a worker is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Prepare(Run),
    Start(Run),
    Terminate,
    Kill,
    Remove,
}

/// The worker of one instance. It ends when the instance is removed and nothing more is asked.
pub async fn work(agent: Arc<Agent>, id: InstanceId, mut orders: mpsc::Receiver<Order>) {
    let mut next = None;
    loop {
        let order = match next.take() {
            Some(order) => order,
            None => match orders.recv().await {
                Some(order) => order,
                None => return,
            },
        };
        match order {
            Order::Prepare(run) => next = prepare(&agent, &id, run, &mut orders).await,
            Order::Start(run) => start(&agent, &id, run).await,
            Order::Terminate => terminate(&agent, &id).await,
            Order::Kill => kill(&agent, &id).await,
            Order::Remove => {
                remove(&agent, &id).await;
                if agent.with(|core| retire(core, &id, &orders)) {
                    return;
                }
            }
        }
    }
}

/// Under the lock, so that no order comes in between.
fn retire(core: &mut Core, id: &InstanceId, orders: &mpsc::Receiver<Order>) -> bool {
    if !orders.is_empty() {
        return false;
    }
    core.workers.remove(id);
    core.ports.remove(id);
    core.specs.remove(id);
    core.running.remove(id);
    let services = core.services();
    core.secrets.retain(|service, _| services.contains(service));
    true
}

/// Fetching may take long, so a newer order breaks it off; what follows is short and is not broken off.
async fn prepare(
    agent: &Arc<Agent>,
    id: &InstanceId,
    run: Run,
    orders: &mut mpsc::Receiver<Order>,
) -> Option<Order> {
    let desired = agent.with(|core| {
        core.state
            .instance(id)
            .map(|instance| instance.desired().clone())
    })?;
    for last_try in [false, true] {
        let gathered = tokio::select! {
            gathered = gather(agent, &desired) => gathered,
            order = orders.recv() => return order,
        };
        let placed = match gathered {
            Ok(secrets) => place(agent, &desired, secrets).await,
            Err(error) => Err(Failure::Other(error)),
        };
        let instance = id.clone();
        match placed {
            Ok(()) => {
                agent.tell(Input::Prepared { instance, run });
                return None;
            }
            // The node's copy was discarded: fetch it again, once.
            Err(Failure::CorruptArtifact(error)) if !last_try => agent.with(|core| {
                let reason = Reason::new("corrupt-artifact", error);
                agent.say(core, Some(instance), Level::Warning, reason);
            }),
            Err(Failure::CorruptArtifact(error) | Failure::Other(error)) => {
                agent.tell(Input::NotStarted {
                    instance,
                    run,
                    error,
                });
                return None;
            }
        }
    }
    None
}

enum Failure {
    CorruptArtifact(String),
    Other(String),
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self::Other(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::CorruptArtifact { .. } => Self::CorruptArtifact(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

type Secrets = BTreeMap<ResourceName, Vec<u8>>;

/// What comes from the servers: artifact, secrets, the service's certificate.
async fn gather(agent: &Arc<Agent>, desired: &DesiredInstance) -> Result<Secrets, String> {
    if let Some(artifact) = artifact_of(desired) {
        let client = agent.identities.bulk();
        let fetched = artifacts::fetch(&client, &agent.store, artifact).await;
        fetched.map_err(|error| error.to_string())?;
    }
    let service = service_of(desired);
    let certified =
        tokio::time::timeout(SERVERS_PATIENCE, agent.identities.certify(&service)).await;
    match certified {
        Ok(Ok(true)) => {
            agent.signals.road.send_replace(());
        }
        Ok(Ok(false)) => {}
        // It runs without: it can't call other nodes until the certificate is there.
        Ok(Err(error)) => tracing::warn!(%service, %error, "no certificate yet"),
        Err(_) => tracing::warn!(%service, "no certificate yet: the servers do not answer"),
    }
    secrets(agent, desired).await
}

fn artifact_of(desired: &DesiredInstance) -> Option<&ArtifactRef> {
    match &desired.spec.work {
        Work::Process { artifact, .. } => artifact.as_ref(),
        Work::External { .. } => None,
    }
}

fn service_of(desired: &DesiredInstance) -> ResourceId {
    ResourceId::new(desired.instance.project.clone(), desired.service.clone())
}

/// The values now, or those last known while the servers do not answer.
async fn secrets(agent: &Arc<Agent>, desired: &DesiredInstance) -> Result<Secrets, String> {
    if desired.secrets.is_empty() {
        return Ok(Secrets::new());
    }
    let service = service_of(desired);
    let client = agent.identities.client();
    let asking = client.secret_values(&agent.config.name, &service);
    let answer = match tokio::time::timeout(SERVERS_PATIENCE, asking).await {
        Ok(Ok(values)) => {
            agent.with(|core| core.secrets.insert(service, values.clone()));
            Ok(values)
        }
        Ok(Err(error @ api::client::Error::Refused(_))) => Err(error.to_string()),
        Ok(Err(error)) => known_secrets(agent, &service, &error.to_string()),
        Err(_) => known_secrets(agent, &service, "the servers do not answer"),
    };
    let values = answer.map_err(|error| format!("its secrets can't be fetched: {error}"))?;
    desired
        .secrets
        .iter()
        .map(|need| decode(&values, &need.name))
        .collect()
}

fn known_secrets(
    agent: &Agent,
    service: &ResourceId,
    why: &str,
) -> Result<api::wire::SecretValues, String> {
    agent
        .with(|core| core.secrets.get(service).cloned())
        .ok_or_else(|| why.to_owned())
}

fn decode(
    values: &api::wire::SecretValues,
    name: &ResourceName,
) -> Result<(ResourceName, Vec<u8>), String> {
    let value = values.values.get(name);
    let value = value.ok_or_else(|| {
        format!("the secret `{name}` has no value yet: `mainland secret set {name}` gives it one")
    })?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value);
    Ok((
        name.clone(),
        bytes.map_err(|_| format!("the secret `{name}` came garbled"))?,
    ))
}

/// What is of this machine: port, doors, volumes, working directory.
async fn place(
    agent: &Arc<Agent>,
    desired: &DesiredInstance,
    secrets: Secrets,
) -> Result<(), Failure> {
    let id = &desired.instance;
    agent
        .layout
        .make_project(id)
        .map_err(|error| error.to_string())?;
    let port = take_port(agent, id)?;
    let doors = open_doors(agent, desired)?;
    let spec = make_spec(agent, desired, port, &doors, secrets)?;
    let ports = agent.with(|core| open_ports(core));
    if let Err(why) = agent.firewall.apply(ports).await {
        return Err(format!("its port can't be closed to other users: {why}").into());
    }
    agent.runtime.prepare(&spec).await?;
    agent.with(|core| {
        core.specs.insert(id.clone(), Arc::new(spec));
        agent.remember(core, id);
    });
    if !doors.is_empty() {
        wait_for_proxy(agent).await;
    }
    Ok(())
}

/// Keeps the instance's port if nobody else is on it.
fn take_port(agent: &Agent, id: &InstanceId) -> Result<u16, String> {
    let ports = agent.config.ports;
    agent.with(|core| {
        let mut taken: BTreeSet<u16> = core
            .ports
            .iter()
            .filter(|(other, _)| *other != id)
            .map(|(_, port)| *port)
            .collect();
        taken.insert(agent.config.mesh.port());
        let count = u64::from(ports.last - ports.first) + 1;
        let any = ports.first + u16::try_from(pause::draw() % count).unwrap_or(0);
        let start = core.ports.get(id).copied().unwrap_or(any);
        let port = compute::port::pick(ports.first..=ports.last, start, &taken);
        let port = port.ok_or_else(|| format!("no port of {ports} is free on this node"))?;
        core.ports.insert(id.clone(), port);
        Ok(port)
    })
}

type Doors = BTreeMap<ResourceName, (SocketAddr, Protocol)>;

/// An address for each needed service. They are listened on once the proxy took the snapshot that names them.
fn open_doors(agent: &Agent, desired: &DesiredInstance) -> Result<Doors, String> {
    let caller = service_of(desired);
    agent.with(|core| {
        let mut doors = Doors::new();
        let mut given = false;
        for need in snapshot::service_needs(desired) {
            let need_id = ResourceId::new(caller.project.clone(), need.clone());
            given |= give_door(agent, core, &caller, &need_id)?;
            let protocol = snapshot::destination(&core.road, &need_id)
                .map_or(Protocol::Http, |found| found.protocol);
            let door = core.doors.get(&caller, &need_id);
            doors.extend(door.map(|door| (need.clone(), (door, protocol))));
        }
        if given {
            if let Err(error) = layout::write(&agent.layout.doors(), &core.doors) {
                agent.disk_refuses(core, &error);
            }
            agent.signals.road.send_replace(());
        }
        Ok(doors)
    })
}

fn give_door(
    agent: &Agent,
    core: &mut Core,
    caller: &ResourceId,
    need: &ResourceId,
) -> Result<bool, String> {
    let block = agent.config.mesh_block;
    let is_free = |door: SocketAddrV4| TcpListener::bind(door).is_ok();
    if let Some(given) = core.doors.give(block, caller, need, is_free) {
        return Ok(given);
    }
    let callers = core.services();
    core.doors.keep_only(&callers);
    let full = || format!("every address of {block} belongs to another caller and need");
    core.doors
        .give(block, caller, need, is_free)
        .ok_or_else(full)
}

async fn wait_for_proxy(agent: &Agent) {
    let mut acknowledged = agent.signals.acknowledged.subscribe();
    let waiting = acknowledged.wait_for(|generation| {
        agent.with(|core| *generation >= core.told && agent.has_told_all(core))
    });
    let _ = tokio::time::timeout(DOORS_PATIENCE, waiting).await;
}

fn make_spec(
    agent: &Agent,
    desired: &DesiredInstance,
    port: u16,
    doors: &Doors,
    secrets: Secrets,
) -> Result<InstanceSpec, String> {
    let id = &desired.instance;
    let directory = agent.layout.instance(id);
    let identity = agent.is_root.then_some(Identity {
        uid: desired.uid,
        gid: desired.uid,
    });
    let volumes = volumes(agent, desired)?;
    let (secrets, secret_files) = split_secrets(agent, desired, secrets)?;
    let environment = environment::environment(&environment::Given {
        desired,
        node: &agent.config.name,
        zone: &agent.config.zone,
        port,
        work: &compute::instance::work_directory(&directory),
        doors,
        secrets: &secrets,
        volumes: &volumes,
    });
    let artifact = artifact_of(desired).map(|reference| Artifact {
        path: agent.store.path(reference.digest),
        reference: reference.clone(),
    });
    Ok(InstanceSpec {
        instance: id.clone(),
        directory,
        artifact,
        argv: environment::arguments(desired, &environment),
        environment,
        identity,
        volumes: volumes
            .into_iter()
            .map(|(name, directory)| VolumeMount { name, directory })
            .collect(),
        secret_files,
        memory: desired.spec.memory,
        cpu: desired.spec.cpu,
        open_files: DEFAULT_OPEN_FILES,
        grace: desired.spec.grace.duration(),
        on_partition: if desired.needs_lease() {
            OnPartition::Stop
        } else {
            OnPartition::Keep
        },
        lease_sent_at: clock::moment(plan::Instant::default()),
    })
}

fn volumes(
    agent: &Agent,
    desired: &DesiredInstance,
) -> Result<BTreeMap<ResourceName, PathBuf>, String> {
    let owner = agent.is_root.then_some(desired.uid);
    let make = |name: &ResourceName| {
        let path = agent
            .layout
            .make_volume(desired, name, owner)
            .map_err(|error| error.to_string())?;
        Ok((name.clone(), path))
    };
    desired.spec.volumes.keys().map(make).collect()
}

type SplitSecrets = (BTreeMap<ResourceName, Secret>, Vec<SecretFile>);

fn split_secrets(
    agent: &Agent,
    desired: &DesiredInstance,
    mut values: Secrets,
) -> Result<SplitSecrets, String> {
    let mut variables = BTreeMap::new();
    let mut files = Vec::new();
    for need in &desired.secrets {
        let Some(contents) = values.remove(&need.name) else {
            continue;
        };
        let secret = match need.file {
            true => {
                let path = secret_folder(agent, &desired.instance).join(need.name.as_str());
                files.push(SecretFile {
                    path: path.clone(),
                    contents,
                });
                Secret::File(path)
            }
            false => match String::from_utf8(contents) {
                Ok(text) if !text.contains('\0') => Secret::Value(text),
                _ => {
                    let name = &need.name;
                    return Err(format!(
                        "the secret `{name}` is not text and can't be an environment variable: declare the need with `file: true`"
                    ));
                }
            },
        };
        variables.insert(need.name.clone(), secret);
    }
    Ok((variables, files))
}

/// In memory where the machine has such a place, else beside the instance.
fn secret_folder(agent: &Agent, id: &InstanceId) -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|_| !agent.is_root);
    let mut places = runtime.into_iter().chain([PathBuf::from("/dev/shm")]);
    match places.find_map(|place| own_folder(&place)) {
        // Two nodes of one machine may have instances of the same name.
        Some(own) => own.join(format!("{}-{}.{}", agent.config.name, id.project, id.name)),
        None => agent.layout.instance(id).join("secrets"),
    }
}

/// A folder in `place` that is ours: others may pass through it, and nobody can have put one there in our stead.
fn own_folder(place: &Path) -> Option<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let own = place.join(format!("mainland-{uid}"));
    let _ = DirBuilder::new().mode(0o711).create(&own);
    let found = std::fs::symlink_metadata(&own).ok()?;
    (found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0).then_some(own)
}

/// Every port that an instance of this node has, and whose it is.
pub fn open_ports(core: &Core) -> BTreeMap<u16, u32> {
    let uid = |id: &InstanceId| Some(core.state.instance(id)?.desired().uid);
    core.ports
        .iter()
        .filter_map(|(id, port)| Some((*port, uid(id)?)))
        .collect()
}

pub fn address(port: u16) -> String {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).to_string()
}

async fn start(agent: &Arc<Agent>, id: &InstanceId, run: Run) {
    let instance = id.clone();
    let known = agent.with(|core| {
        let mut spec = InstanceSpec::clone(core.specs.get(id)?);
        spec.lease_sent_at = clock::moment(core.state.lease().sent_at().unwrap_or_default());
        core.running.insert(id.clone(), Running { run, pid: None });
        Some((spec, *core.ports.get(id)?))
    });
    let Some((spec, port)) = known else {
        let error = "it was not prepared".to_owned();
        return agent.tell(Input::NotStarted {
            instance,
            run,
            error,
        });
    };
    match agent.runtime.start(&spec).await {
        Ok(started) => {
            let pid = started.pid;
            agent.with(|core| {
                // It may have ended already, and its end been told.
                if let Some(running) = core.running.get_mut(id) {
                    running.pid = Some(pid);
                }
            });
            let (address, at) = (address(port), started.at);
            agent.tell(Input::Started {
                instance,
                run,
                pid,
                address,
                at,
            });
        }
        Err(error) => {
            agent.with(|core| core.running.remove(id));
            let running = matches!(error, Error::Running(_));
            agent.tell(Input::NotStarted {
                instance,
                run,
                error: error.to_string(),
            });
            if running {
                // A process that should not be there: the next try finds the place empty.
                let _ = agent.runtime.kill(id).await;
            }
        }
    }
}

async fn terminate(agent: &Arc<Agent>, id: &InstanceId) {
    let grace = agent.with(|core| Some(core.state.instance(id)?.desired().spec.grace.duration()));
    let asked = agent.runtime.stop(id, grace.unwrap_or_default()).await;
    ended_unheard(agent, id, asked).await;
}

async fn kill(agent: &Arc<Agent>, id: &InstanceId) {
    let asked = agent.runtime.kill(id).await;
    ended_unheard(agent, id, asked).await;
}

/// The shim is not there to be asked: what it left says how its workload ended.
async fn ended_unheard(agent: &Arc<Agent>, id: &InstanceId, asked: Result<(), Error>) {
    let Err(error) = asked else { return };
    let run = agent.with(|core| Some(core.running.get(id)?.run));
    // Without one its end was told meanwhile.
    let Some(run) = run else { return };
    tracing::warn!(instance = %id, %error, "can't be stopped; looking for what is left of it");
    let found = agent.runtime.adopt(id, &agent.layout.instance(id)).await;
    let exit = match found {
        Ok(Adopted::Running { .. }) => return,
        Ok(Adopted::Ended { exit }) => exit,
        Ok(Adopted::NotStarted) | Err(_) => Exit {
            how: ExitHow::Unknown,
            at: jiff::Timestamp::now(),
        },
    };
    agent.with(|core| core.running.remove(id));
    agent.tell(Input::Exited {
        instance: id.clone(),
        run,
        exit,
    });
}

async fn remove(agent: &Arc<Agent>, id: &InstanceId) {
    let directory = agent.layout.instance(id);
    let mut pause = Pause::of_connection();
    for _ in 0..REMOVE_TRIES {
        match agent.runtime.remove(id, &directory).await {
            Ok(()) => break,
            Err(error) => tracing::warn!(instance = %id, %error, "can't be removed yet"),
        }
        pause.wait().await;
    }
    // Unless it was wanted again meanwhile.
    let gone = agent.with(|core| core.state.instance(id).is_none());
    if gone {
        layout::remove(&agent.layout.record(id));
        agent.with(|core| core.ports.remove(id));
        let ports = agent.with(|core| open_ports(core));
        if let Err(why) = agent.firewall.apply(ports).await {
            tracing::warn!(why, "a port stays closed");
        }
        agent.signals.certify.notify_one();
    }
}

/// What is needed to run something beside an instance: its environment is that of its process, also after the agent was restarted.
pub fn exec_spec(agent: &Agent, id: &InstanceId) -> Option<InstanceSpec> {
    let (known, desired, pid, port) = agent.with(|core| {
        let instance = core.state.instance(id)?;
        let known = core.specs.get(id).map(|spec| InstanceSpec::clone(spec));
        Some((
            known,
            instance.desired().clone(),
            instance.pid()?,
            core.ports.get(id).copied()?,
        ))
    })?;
    if let Some(spec) = known {
        return Some(spec);
    }
    let mut spec = make_spec(agent, &desired, port, &Doors::new(), Secrets::new()).ok()?;
    if let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) {
        spec.environment = parse_environment(&environment);
    }
    Some(spec)
}

fn parse_environment(text: &[u8]) -> Environment {
    let entries = text.split(|byte| *byte == 0).filter_map(|entry| {
        let entry = String::from_utf8_lossy(entry);
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Environment(entries.collect())
}
