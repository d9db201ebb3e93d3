//! Makes an instance ready to start: what comes from the servers is gathered, what is of this machine is put in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use compute::beneath::{Folder, remove_tree};
use compute::runtime::{
    Artifact, DEFAULT_OPEN_FILES, Environment, Error, InstanceSpec, SecretFile, VolumeMount,
};
use model::compute::{ArtifactRef, DesiredInstance, OnPartition, Work};
use model::control::Reason;
use model::ids::{InstanceId, ProjectName, ResourceId, ResourceName};
use model::traffic::Protocol;

use crate::agent::Agent;
use crate::core::{Core, at_port};
use crate::doors::NoDoor;
use crate::environment::{self, Secret};
use crate::{artifacts, clock, engine, firewall, layout, pause, ports, snapshot, volumes};

/// Servers that don't answer within this are not waited for where there is another way.
const SERVERS_PATIENCE: Duration = Duration::from_secs(3);
/// For the proxy to open the doors of a new instance.
const DOORS_PATIENCE: Duration = Duration::from_secs(1);

/// Why an instance is not ready to start.
pub enum Failure {
    CorruptArtifact(String),
    /// What is missing is somebody's to give: it is waited for.
    Lacks(Reason),
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

pub type Secrets = BTreeMap<ResourceName, Vec<u8>>;

/// What comes from the servers: artifact, secrets, the service's certificate.
pub async fn gather(agent: &Arc<Agent>, desired: &DesiredInstance) -> Result<Secrets, Failure> {
    if let Some(artifact) = artifact_of(desired) {
        let client = agent.identities.bulk();
        let fetched = artifacts::fetch(&client, &agent.store, &agent.fetches, artifact).await;
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
        Work::External { .. } | Work::Engine { .. } => None,
    }
}

pub fn service_of(desired: &DesiredInstance) -> ResourceId {
    ResourceId::new(desired.instance.project.clone(), desired.service.clone())
}

/// The values now, or those last known while the servers do not answer.
async fn secrets(agent: &Arc<Agent>, desired: &DesiredInstance) -> Result<Secrets, Failure> {
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
        .map(|need| decode(&values, &need.name, &desired.instance.project))
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
    project: &ProjectName,
) -> Result<(ResourceName, Vec<u8>), Failure> {
    let value = values.values.get(name);
    let value = value.ok_or_else(|| Failure::Lacks(waits_for_secret(name, project)))?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value);
    Ok((
        name.clone(),
        bytes.map_err(|_| format!("the secret `{name}` came garbled"))?,
    ))
}

fn waits_for_secret(name: &ResourceName, project: &ProjectName) -> Reason {
    let message = format!(
        "waits for secret {name}: it has no value; `mainland secret set {name} -p {project}` gives it one"
    );
    Reason::new("waits-for-secret", message)
}

/// What is of this machine: port, doors, volumes, working directory.
pub async fn place(
    agent: &Arc<Agent>,
    desired: &DesiredInstance,
    secrets: Secrets,
) -> Result<(), Failure> {
    let _placing = agent.places.read().await;
    goes_on(agent)?;
    let id = &desired.instance;
    volumes::make(agent, desired).await?;
    let port = take_port(agent, id)?;
    agent.with(|core| core.keep_ports_of(desired));
    for name in desired.spec.ports.keys() {
        let at_port = at_port(desired, name)
            .ok_or_else(|| format!("the name of its port {name} is too long"))?;
        agent.with(|core| core.port_owners.insert(at_port.clone(), id.clone()));
        take_port(agent, &at_port)?;
    }
    let doors = open_doors(agent, desired)?;
    layout::aside(|| engine::make_socket_folder(agent, desired))?;
    engine::make_files(agent, desired, &secrets).await?;
    let spec = make_spec(agent, desired, port, &doors, secrets)?;
    // A disk may have held this up until after the end.
    goes_on(agent)?;
    close_ports(agent).await?;
    agent.runtime.prepare(&spec).await?;
    agent.with(|core| {
        core.specs.insert(id.clone(), Arc::new(spec));
        agent.remember(core, id);
    });
    volumes::begin_look(agent, desired);
    wait_for_doors(agent, &doors).await
}

/// A program that does not answer is the machine's fault, and none of the instance.
async fn close_ports(agent: &Agent) -> Result<(), Failure> {
    let ports = || agent.with(|core| ports::owned(core));
    let closed = agent.firewall.apply(ports).await;
    closed.map_err(|why| match why {
        firewall::Error::Late => Failure::Lacks(waits_for_firewall()),
        why => format!("its port can't be closed to other users: {why}").into(),
    })
}

fn waits_for_firewall() -> Reason {
    let message = "waits for the firewall of its node: `nft` has not answered in time, and until it does everybody on that machine could call its port";
    Reason::new("waits-for-firewall", message)
}

fn goes_on(agent: &Agent) -> Result<(), String> {
    match agent.has_stopped() {
        true => Err("the node has stopped".to_owned()),
        false => Ok(()),
    }
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

pub type Doors = BTreeMap<ResourceName, (SocketAddr, Protocol)>;

/// An address for each needed service. They are listened on once the proxy took the snapshot that names them.
pub fn open_doors(agent: &Agent, desired: &DesiredInstance) -> Result<Doors, String> {
    let caller = service_of(desired);
    agent.with(|core| {
        let mut doors = Doors::new();
        let mut given = false;
        for need in snapshot::service_needs(desired) {
            let need_id = ResourceId::new(caller.project.clone(), need.clone());
            given |= give_door(agent, core, &caller, &need_id)?;
            let spoken = core.protocols.get(&need_id);
            let protocol = spoken.copied().unwrap_or(Protocol::Http);
            let door = core.doors.get(&caller, &need_id);
            doors.extend(door.map(|door| (need.clone(), (door, protocol))));
        }
        if given {
            agent.keeper.write(agent.layout.doors(), &core.doors);
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
    let is_free = |door: SocketAddrV4| compute::port::is_free(door.into());
    let mut given = core.doors.give(block, caller, need, is_free);
    if given == Err(NoDoor::Full) {
        let mut callers = core.services();
        callers.extend(core.left_services());
        core.doors.keep_only(&callers);
        given = core.doors.give(block, caller, need, is_free);
    }
    given.map_err(|none| match none {
        NoDoor::Full => format!("every address of {block} belongs to another caller and need"),
        NoDoor::Taken => format!(
            "another program listens wherever its need of {need} could be answered, from {} on: end it, or give the node another block by --mesh-block",
            block.address(0)
        ),
    })
}

/// Until the proxy listens on every door. Behind one that it does not listen on somebody else may, to whom the calls of the instance would go.
async fn wait_for_doors(agent: &Agent, doors: &Doors) -> Result<(), Failure> {
    let wanted: BTreeSet<SocketAddr> = doors.values().map(|(door, _)| *door).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut acknowledged = agent.signals.acknowledged.subscribe();
    let waiting = acknowledged
        .wait_for(|_| agent.with(|core| core.proxy_answers && closed(core, &wanted).is_empty()));
    let waited = tokio::time::timeout(DOORS_PATIENCE, waiting).await;
    if matches!(waited, Ok(Ok(_))) {
        return Ok(());
    }
    Err(agent.with(|core| {
        let running: BTreeSet<ResourceId> = core
            .running
            .keys()
            .filter_map(|id| Some(core.state.instance(id)?.service()))
            .collect();
        let closed = closed(core, &wanted);
        let taken: BTreeSet<SocketAddr> =
            closed.intersection(&core.refused_doors).copied().collect();
        core.doors.forget(&taken, &running);
        agent.keeper.write(agent.layout.doors(), &core.doors);
        Failure::Lacks(waits_for_doors(doors, &closed, &taken))
    }))
}

/// Those of them that the proxy does not listen on, as far as is known.
fn closed(core: &Core, wanted: &BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    let is_open = |door: &SocketAddr| {
        core.open_doors
            .as_ref()
            .is_some_and(|open| open.contains(door))
    };
    wanted
        .iter()
        .filter(|door| !is_open(door))
        .copied()
        .collect()
}

fn waits_for_doors(
    doors: &Doors,
    closed: &BTreeSet<SocketAddr>,
    taken: &BTreeSet<SocketAddr>,
) -> Reason {
    let names = doors.iter().filter(|(_, (door, _))| closed.contains(door));
    let names: Vec<&str> = names.map(|(need, _)| need.as_str()).collect();
    let why = match taken.first() {
        Some(door) => {
            format!("another program listens on {door}, where it was to find one of them")
        }
        None => "the node's proxy does not answer for them yet".to_owned(),
    };
    let message = format!("waits for the way to {}: {why}", names.join(", "));
    Reason::new("waits-for-doors", message)
}

pub fn make_spec(
    agent: &Agent,
    desired: &DesiredInstance,
    port: u16,
    doors: &Doors,
    mut secrets: Secrets,
) -> Result<InstanceSpec, String> {
    let id = &desired.instance;
    let directory = agent.layout.instance(id);
    let identity = volumes::identity(agent, desired);
    let names = desired.spec.volumes.keys();
    let volumes: BTreeMap<ResourceName, PathBuf> = names
        .map(|name| (name.clone(), agent.layout.volume(desired, name)))
        .collect();
    let mut of_engine = Environment::default();
    let engine_file = engine::equip(agent, desired, doors, &mut secrets, &mut of_engine)?;
    let (secrets, mut secret_files) = split_secrets(agent, desired, secrets)?;
    secret_files.extend(engine_file);
    let ports = agent.with(|core| core.named_ports(desired));
    let mut environment = environment::environment(&environment::Given {
        desired,
        ports: &ports,
        node: &agent.config.name,
        zone: &agent.config.zone,
        port,
        work: &compute::instance::work_directory(&directory),
        doors,
        secrets: &secrets,
        volumes: &volumes,
    });
    environment.0.append(&mut of_engine.0);
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
        pids: desired.spec.pids,
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
pub fn secret_folder(agent: &Agent, id: &InstanceId) -> PathBuf {
    match secret_folders(agent) {
        Some(own) => own.join(format!("{}.{}", id.project, id.name)),
        None => agent.layout.instance(id).join("secrets"),
    }
}

fn secret_folders(agent: &Agent) -> Option<PathBuf> {
    memory_of_node(agent.firewall.table(), agent.is_root)
}

/// Where this user's nodes keep what is in memory only.
pub fn memory(is_root: bool) -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|_| !is_root);
    let mut places = runtime.into_iter().chain([PathBuf::from("/dev/shm")]);
    places.find_map(|place| own_folder(&place))
}

/// A node's own folder in memory. Two nodes of one machine, or of one name, may have instances of the same name.
pub fn memory_of_node(table: &str, is_root: bool) -> Option<PathBuf> {
    let node = memory(is_root)?.join(table);
    let _ = DirBuilder::new().mode(0o711).create(&node);
    Some(node)
}

/// With every instance stopped, no secret stays in memory.
pub fn forget_secrets(agent: &Agent) {
    layout::aside(|| engine::forget_all(agent));
    if let Some(own) = secret_folders(agent)
        && let Err(error) = layout::aside(|| remove_tree(&own))
    {
        tracing::warn!(%error, folder = %own.display(), "secrets could not be removed");
    }
}

/// Names that are tried where everybody may make folders: somebody else may have taken one, or some.
const NAMES_TRIED: usize = 16;

/// A folder in `place` that is ours: others may pass through it, and nobody can have put one there in our stead. One that is there already is
/// preferred, as what runs may use it.
pub fn own_folder(place: &Path) -> Option<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let name = |number: usize| match number {
        0 => format!("mainland-{uid}"),
        number => format!("mainland-{uid}.{number}"),
    };
    let all: Vec<PathBuf> = (0..NAMES_TRIED)
        .map(|number| place.join(name(number)))
        .collect();
    let found = all.iter().find(|own| is_own(own, uid));
    let made = || {
        all.iter().find(|own| {
            let made = DirBuilder::new().mode(0o711).create(own);
            made.is_ok() && is_own(own, uid)
        })
    };
    found.or_else(made).cloned()
}

/// No link, and nobody else can write there.
fn is_own(folder: &Path, uid: u32) -> bool {
    let found = Folder::open(folder).and_then(|folder| folder.stat());
    found.is_ok_and(|found| found.st_uid == uid && found.st_mode & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_that_somebody_else_made_first_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let elsewhere = place.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let named = |name: &str| place.path().join(format!("mainland-{uid}{name}"));
        symlink(&elsewhere, named("")).unwrap();
        // Everybody may write there.
        std::fs::create_dir(named(".1")).unwrap();
        std::fs::set_permissions(named(".1"), PermissionsExt::from_mode(0o777)).unwrap();
        std::fs::write(named(".2"), "a file").unwrap();
        let mut next = ".3";
        if uid == 0 {
            std::fs::create_dir(named(".3")).unwrap();
            std::os::unix::fs::chown(named(".3"), Some(61_234), None).unwrap();
            next = ".4";
        }
        assert_eq!(own_folder(place.path()), Some(named(next)));
        // What runs uses it: it stays the one, though the first name becomes free.
        std::fs::remove_file(named("")).unwrap();
        assert_eq!(own_folder(place.path()), Some(named(next)));
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    }

    #[test]
    fn where_every_name_is_taken_there_is_none() {
        let place = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        std::fs::write(place.path().join(format!("mainland-{uid}")), "").unwrap();
        for number in 1..NAMES_TRIED {
            std::fs::write(place.path().join(format!("mainland-{uid}.{number}")), "").unwrap();
        }
        assert_eq!(own_folder(place.path()), None);
    }
}
