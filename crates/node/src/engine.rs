//! What engines are given beyond a program's environment: the file that says what they are to be, replaced while they run, and the socket on
//! which they answer.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::client::Body;
use api::problem::Problem;
use compute::beneath::{Folder, Socket, remove_tree};
use compute::runtime::{Environment, OWN_PROGRAM, SecretFile};
use http::{Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use model::compute::DesiredInstance;
use model::ids::{InstanceId, ResourceName};
use model::state::{ENGINE_FILE, ENGINE_SOCKET, ENGINE_VOLUME, Engine, EngineFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::agent::Agent;
use crate::prepare::{Doors, Secrets, own_folder, secret_folder};
use crate::probes::Failure;
use crate::volumes;

/// Of an answer to a probe, which is a few words.
const ANSWER_MAX_BYTES: u64 = 16 * 1024;
/// For an engine to take a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// A path of a socket may have 107 bytes, whatever the node's directory is called.
const SOCKET_NAME: &str = "s";
const NOT_YET: &str = "the engine does not answer yet";
/// A slow disk takes its time for some thousand files.
const INIT_PATIENCE: Duration = Duration::from_secs(120);

/// The command of an engine: this very binary. What follows the first word is for people who read `ps`.
pub fn arguments(desired: &DesiredInstance, engine: &Engine) -> Vec<String> {
    let name = desired.service.to_string();
    vec![
        OWN_PROGRAM.to_owned(),
        "engine".to_owned(),
        engine.noun().to_owned(),
        name,
    ]
}

/// A command beside an engine that begins with `mainland` means this very binary: the machine may have no other.
pub fn command_beside(agent: &Agent, id: &InstanceId, mut command: Vec<String>) -> Vec<String> {
    let is_engine = agent.with(|core| {
        let instance = core.state.instance(id);
        instance.is_some_and(|instance| instance.desired().spec.engine().is_some())
    });
    if let Some(first) = command
        .first_mut()
        .filter(|first| is_engine && *first == "mainland")
    {
        OWN_PROGRAM.clone_into(first);
    }
    command
}

/// Gives an engine its file, as a secret one, and its socket's folder; names both in the environment.
pub fn equip(
    agent: &Agent,
    desired: &DesiredInstance,
    doors: &Doors,
    secrets: &mut Secrets,
    environment: &mut Environment,
) -> Result<Option<SecretFile>, String> {
    let Some(engine) = desired.spec.engine() else {
        return Ok(None);
    };
    let secret = secrets.remove(&desired.service);
    let secret = secret.map(String::from_utf8).transpose();
    let secret = secret.map_err(|_| "the engine's secret is no text".to_owned())?;
    let path = file_path(agent, &desired.instance);
    let socket = socket_folder(agent, &desired.instance)?.join(SOCKET_NAME);
    for (name, path) in [(ENGINE_FILE, &path), (ENGINE_SOCKET, &socket)] {
        environment
            .0
            .insert(name.to_owned(), path.display().to_string());
    }
    let contents = encode(&file(desired, engine, doors, secret));
    Ok(Some(SecretFile { path, contents }))
}

/// Makes the files of a database whose volume has none. `initdb` refuses a user without a name, as those are that services are given, so root has
/// them made by a user that has one. Where the node is not root the engine makes them itself.
pub async fn make_files(
    agent: &Agent,
    desired: &DesiredInstance,
    secrets: &Secrets,
) -> Result<(), String> {
    let Some(engine @ Engine::Postgres(_)) = desired.spec.engine() else {
        return Ok(());
    };
    let secret = secrets.get(&desired.service).cloned();
    let (Some(secret), true) = (secret, agent.is_root) else {
        return Ok(());
    };
    let secret = String::from_utf8(secret).map_err(|_| "the engine's secret is no text")?;
    let name = ResourceName::new(ENGINE_VOLUME).map_err(|error| error.to_string())?;
    let volume = agent.layout.volume(desired, &name);
    let input = encode(&file(desired, engine, &Doors::new(), Some(secret)));
    init(&volume, desired.uid, &input).await
}

async fn init(volume: &Path, owner: u32, input: &[u8]) -> Result<(), String> {
    let told = |error: io::Error| format!("making the files of the database: {error}");
    let mut child = tokio::process::Command::new(OWN_PROGRAM)
        .args(["engine", "init"])
        .arg(volume)
        .arg(owner.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(told)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says why, or that there is nothing to do.
        let _ = stdin.write_all(input).await;
    }
    let output = tokio::time::timeout(INIT_PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| format!("initdb does not end within {} s", INIT_PATIENCE.as_secs()))?
        .map_err(told)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

fn file(
    desired: &DesiredInstance,
    engine: &Engine,
    doors: &Doors,
    secret: Option<String>,
) -> EngineFile {
    EngineFile {
        project: desired.instance.project.clone(),
        name: desired.service.clone(),
        engine: engine.clone(),
        memory: desired.spec.memory,
        settings: desired.settings.clone().unwrap_or_default(),
        secret,
        doors: doors
            .iter()
            .map(|(name, (address, _))| (name.clone(), *address))
            .collect(),
    }
}

fn encode(file: &EngineFile) -> Vec<u8> {
    serde_json::to_vec(file).expect("what an engine is told is plain data")
}

/// Where an engine finds what it is to be.
fn file_path(agent: &Agent, id: &InstanceId) -> PathBuf {
    secret_folder(agent, id).join("engine.json")
}

/// A folder with a short path that is the engine's own.
fn socket_folder(agent: &Agent, id: &InstanceId) -> Result<PathBuf, String> {
    let node = socket_folders(agent).ok_or("there is no place for an engine's socket")?;
    Ok(node.join(short_name(id)))
}

/// Makes it, where it is an engine that is to start.
pub fn make_socket_folder(agent: &Agent, desired: &DesiredInstance) -> Result<(), String> {
    if desired.spec.engine().is_none() {
        return Ok(());
    }
    let folder = socket_folder(agent, &desired.instance)?;
    let told = |error: io::Error| format!("making {}: {error}", folder.display());
    if let Some(node) = folder.parent() {
        let _ = std::fs::DirBuilder::new().mode(0o711).create(node);
    }
    let mut private = std::fs::DirBuilder::new();
    private
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(told)?;
    let folder_is = Folder::open(&folder).map_err(told)?;
    match volumes::identity(agent, desired) {
        Some(owner) => folder_is.give(owner).map_err(told),
        None => Ok(()),
    }
}

/// The socket of an engine that runs. Its folder is the engine's, which may have put anything there: what is no socket of that very folder is none.
fn socket(agent: &Agent, id: &InstanceId) -> Result<Socket, String> {
    open_socket(agent, id)?.map_err(|_| NOT_YET.to_owned())
}

fn open_socket(agent: &Agent, id: &InstanceId) -> Result<io::Result<Socket>, String> {
    let folder = Folder::open(&socket_folder(agent, id)?);
    Ok(folder.and_then(|folder| folder.socket(Path::new(SOCKET_NAME))))
}

/// This node's own folder for the sockets of engines.
fn socket_folders(agent: &Agent) -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !agent.is_root);
    let places = runtime.into_iter().map(PathBuf::from);
    let mut places = places.chain(["/dev/shm", "/tmp"].map(PathBuf::from));
    let own = places.find_map(|place| own_folder(&place))?;
    Some(own.join(sockets_name(agent.firewall.table())))
}

/// Short, as the path of a socket must be: the last word of the table's name tells nodes apart.
pub fn sockets_name(table: &str) -> &str {
    table.rsplit('_').next().unwrap_or(table)
}

/// FNV-1a, 64 bits: instances of one node do not meet by chance.
fn short_name(id: &InstanceId) -> String {
    let name = id.to_string();
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Of one instance that is removed.
pub fn forget(agent: &Agent, id: &InstanceId) {
    if let Some(node) = socket_folders(agent) {
        let _ = remove_tree(&node.join(short_name(id)));
    }
}

/// Of all instances, when the node stops.
pub fn forget_all(agent: &Agent) {
    if let Some(node) = socket_folders(agent) {
        let _ = remove_tree(&node);
    }
}

/// Tells engines what has changed, for as long as the agent lives. Takes no input but what is known: a signal lost costs nothing.
pub async fn run(agent: Arc<Agent>) {
    let mut changes = agent.signals.road.subscribe();
    let mut doors = agent.signals.acknowledged.subscribe();
    loop {
        changes.mark_unchanged();
        doors.mark_unchanged();
        let engines: Vec<DesiredInstance> = agent.with(|core| {
            let instances = core
                .state
                .instances()
                .map(|(_, instance)| instance.desired());
            let engines = instances.filter(|desired| desired.spec.engine().is_some());
            engines.cloned().collect()
        });
        for desired in engines {
            let (of, agent) = (desired.instance.clone(), agent.clone());
            let told = tokio::task::spawn_blocking(move || tell_anew(&agent, &desired)).await;
            if let Ok(Err(error)) = told {
                tracing::warn!(instance = %of, error, "an engine goes on with what it was told before");
            }
        }
        let changed = tokio::select! {
            changed = changes.changed() => changed,
            changed = doors.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Replaces an engine's file where it says something else. One that is not there is written when the instance is prepared.
fn tell_anew(agent: &Arc<Agent>, desired: &DesiredInstance) -> Result<(), String> {
    let Some(engine) = desired.spec.engine() else {
        return Ok(());
    };
    let path = file_path(agent, &desired.instance);
    let known = match std::fs::read(&path) {
        Ok(text) => text,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    // What it is given once: the secret is made with the data, and goes with it.
    let secret = serde_json::from_slice::<EngineFile>(&known)
        .map_err(|error| error.to_string())?
        .secret;
    let mut doors = crate::prepare::open_doors(agent, desired)?;
    // Behind one that the proxy does not listen on yet, somebody else may.
    let Some(open) = agent.with(|core| core.open_doors.clone()) else {
        return Ok(());
    };
    doors.retain(|_, (door, _)| open.contains(door));
    let new = encode(&file(desired, engine, &doors, secret));
    if new == known {
        return Ok(());
    }
    let owner = agent.is_root.then_some(desired.uid);
    replace(&path, &new, owner).map_err(|error| error.to_string())
}

fn replace(path: &Path, contents: &[u8], owner: Option<u32>) -> io::Result<()> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&beside)?;
    file.write_all(contents)?;
    fchown(&file, owner, owner)?;
    std::fs::rename(&beside, path)
}

/// Asks an engine how it does. `Err`: its own words, which people read in `ps`.
pub async fn ask(agent: &Agent, id: &InstanceId) -> Result<(), Failure> {
    let socket = open_socket(agent, id).map_err(Failure::NotAsked)?;
    let socket = socket.map_err(|error| not_yet(&error))?;
    let connected = UnixStream::connect(socket.path()).await;
    let mut stream = connected.map_err(|error| not_yet(&error))?;
    let failed = |error: io::Error| error.to_string();
    let request = b"GET /health HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut bounded = stream.take(ANSWER_MAX_BYTES);
    bounded.read_to_end(&mut answer).await.map_err(failed)?;
    Ok(verdict(&answer)?)
}

fn not_yet(error: &io::Error) -> Failure {
    match Failure::of_connecting(error) {
        Failure::Answer(_) => NOT_YET.into(),
        not_asked @ Failure::NotAsked(_) => not_asked,
    }
}

fn verdict(answer: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    match crate::probes::status(head.as_bytes()) {
        Some(200) => Ok(()),
        Some(status) => {
            let said = body.lines().find(|line| !line.trim().is_empty());
            Err(said.map_or_else(|| format!("the engine answered {status}"), str::to_owned))
        }
        None => Err("the engine did not answer in HTTP".to_owned()),
    }
}

/// Passes a request on to the engine of an instance, at the path that remains.
pub async fn forward(
    agent: &Agent,
    id: &InstanceId,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Box<Problem>> {
    let unavailable = |why: String| {
        let title = format!("the engine of {id} can't be asked: {why}");
        Box::new(Problem::unavailable("engine-unavailable", title))
    };
    let socket = socket(agent, id).map_err(unavailable)?;
    let connecting =
        tokio::time::timeout(CONNECT_PATIENCE, UnixStream::connect(socket.path())).await;
    let stream = match connecting {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unavailable(error.to_string())),
        Err(_) => return Err(unavailable("it takes no connection".to_owned())),
    };
    let broken = |error: hyper::Error| unavailable(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(async move {
        // Its errors reach who reads the answer.
        let _ = connection.await;
    });
    let answer = sender
        .send_request(addressed(request, path)?)
        .await
        .map_err(broken)?;
    Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// The same request as an engine expects it.
fn addressed(request: Request<Incoming>, path: &str) -> Result<Request<Incoming>, Box<Problem>> {
    let query = request.uri().query().map(|query| format!("?{query}"));
    let target = format!("/{path}{}", query.unwrap_or_default());
    let target: Uri = target
        .parse()
        .map_err(|_| Problem::invalid(format!("`{target}` is no path")))?;
    let (parts, body) = request.into_parts();
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = target;
    let headers = request.headers_mut();
    headers.insert(header::HOST, http::HeaderValue::from_static("engine"));
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::ACCEPT] {
        headers.extend(parts.headers.get(&name).cloned().map(|value| (name, value)));
    }
    // The attributes of an event that is published.
    let attributes = parts.headers.iter();
    let attributes = attributes.filter(|(name, _)| name.as_str().starts_with("ce-"));
    headers.extend(attributes.map(|(name, value)| (name.clone(), value.clone())));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_says_itself_why_it_is_not_ready() {
        let table: [(&str, Result<(), &str>); 5] = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(())),
            (
                "HTTP/1.1 503 X\r\ncontent-length: 9\r\n\r\nreplaying its log\nmore",
                Err("replaying its log"),
            ),
            ("HTTP/1.1 503 X\r\n\r\n", Err("the engine answered 503")),
            ("HTTP/1.1 404 X\r\n\r\n", Err("the engine answered 404")),
            ("", Err("the engine did not answer in HTTP")),
        ];
        for (answer, expected) in table {
            assert_eq!(
                verdict(answer.as_bytes()).as_ref().map_err(String::as_str),
                expected.as_ref().map_err(|said| *said),
                "{answer}"
            );
        }
    }

    #[test]
    fn a_socket_has_a_short_name_of_its_own() {
        let long = format!(
            "{}/{}-1",
            "p".repeat(model::ids::NAME_MAX_LENGTH),
            "s".repeat(60)
        );
        let names: std::collections::BTreeSet<String> = [long.as_str(), "shop/db-1", "shop/db-2"]
            .map(|id| short_name(&id.parse().unwrap()))
            .into();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| name.len() == 16));
    }

    #[test]
    fn a_file_is_replaced_whole_and_stays_the_owners() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.json");
        for contents in ["one", "two"] {
            replace(&path, contents.as_bytes(), None).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
