//! One node as a real process, and what tests ask of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use api::client::{Client, Transport};
use api::wire;
use model::compute::*;
use model::ids::*;
use model::units::{Bytes, Span};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::server::Server;

pub const BINARY: &str = env!("CARGO_BIN_EXE_node-for-tests");
/// The same where every user may execute it: a build folder often lies in a home that is its owner's alone.
static PROGRAM: LazyLock<String> = LazyLock::new(|| {
    let uid = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("mainland-node-tests-{uid}"));
    let _ = std::fs::create_dir(&folder);
    set_mode(&folder, 0o755);
    let (fresh, program) = (
        folder.join(format!("new-{}", std::process::id())),
        folder.join("program"),
    );
    std::fs::copy(BINARY, &fresh).unwrap();
    set_mode(&fresh, 0o755);
    std::fs::rename(fresh, &program).unwrap();
    program.display().to_string()
});

/// What instances run.
pub fn program() -> &'static str {
    &PROGRAM
}

/// Generous, as the machine may be busy; a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU16 = AtomicU16::new(0);

pub struct Node {
    folder: tempfile::TempDir,
    pub server: Arc<Server>,
    pub agent: Child,
    /// The first address of its doors' block.
    pub block: Ipv4Addr,
}

impl Node {
    /// A node that has joined a server of its own.
    pub async fn start() -> Self {
        Self::start_from(Path::new(BINARY)).await
    }

    pub async fn start_from(binary: &Path) -> Self {
        Self::start_after(binary, |_| {}).await
    }

    /// One whose directory, which is not there yet, was seen to before.
    pub async fn start_after(binary: &Path, see_to: impl FnOnce(&Path)) -> Self {
        let server = Server::start().await;
        let folder = tempfile::tempdir().unwrap();
        see_to(&folder.path().join("node"));
        // Services pass through on the way to their working directories.
        set_mode(folder.path(), 0o711);
        let block = block();
        let command = first_start(binary, folder.path(), &server, block);
        let agent = spawn(command, &folder.path().join("agent.log"));
        let node = Self {
            folder,
            server,
            agent,
            block,
        };
        node.until("it is heard", |node| {
            node.server.look(|state| state.mesh.is_some())
        })
        .await;
        node
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("agent.log")
    }

    pub fn directory(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    /// Another agent on the same directory, told nothing else.
    pub fn start_again(&mut self) {
        self.start_again_by(Command::new(BINARY));
    }

    /// The same, where this command executes what its last arguments say.
    pub fn start_again_by(&mut self, mut command: Command) {
        command.arg("agent").arg(self.directory());
        self.agent = spawn(command, &self.folder.path().join("agent.log"));
    }

    /// The same with all that it was told at its first start, a join token too.
    pub fn start_with_token(&mut self) {
        let binary = Path::new(BINARY);
        let command = first_start(binary, self.folder.path(), &self.server, self.block);
        self.agent = spawn(command, &self.folder.path().join("agent.log"));
    }

    pub async fn kill_agent(&mut self) {
        self.agent.kill().await.unwrap();
    }

    pub fn socket(&self) -> Client {
        Client::new(Transport::Unix(self.directory().join("node.sock")), None)
    }

    pub async fn status(&self) -> Option<wire::NodeStatus> {
        self.socket().get("/v1/status").await.ok()
    }

    /// What the node itself says of an instance, once it is in this state.
    pub async fn until_seen(&self, instance: &str, state: InstanceState) -> wire::InstanceView {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await.unwrap();
            let mut all = status.instances.into_iter();
            let found = all.find(|one| one.name.as_str() == instance);
            match found {
                Some(found) if found.state == state => return found,
                other => assert!(Instant::now() < deadline, "{instance} is {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for a condition; what the agent said if it does not come.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            if Instant::now() > deadline {
                let said = std::fs::read_to_string(self.folder.path().join("agent.log"))
                    .unwrap_or_default();
                let reports = self.server.look(|state| format!("{:#?}", state.reports));
                panic!("{what} did not come:\n{reports}\n{said}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_ready(&self, name: &str) -> InstanceReport {
        self.until(&format!("{name} ready"), |node| {
            node.server.report(name).is_some_and(|report| report.ready)
        })
        .await;
        self.server.report(name).unwrap()
    }

    pub async fn until_reason(&self, name: &str, part: &str) -> InstanceReport {
        let said = |node: &Self| {
            let reason = node.server.report(name).and_then(|report| report.reason);
            reason.is_some_and(|reason| reason.message.contains(part))
        };
        self.until(&format!("`{part}` of {name}"), said).await;
        self.server.report(name).unwrap()
    }
}

/// A test that failed must leave no process behind either.
impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.start_kill();
        let root = self.directory();
        for pid in processes_of(&root) {
            let _ = kill_process(pid, Signal::KILL);
        }
        remove_rules(&root);
    }
}

/// A killed node leaves its firewall behind.
fn remove_rules(root: &Path) {
    let bytes = root.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let table = format!("mainland_a_{hash:08x}");
    let _ = std::process::Command::new("nft")
        .args(["delete", "table", "inet", &table])
        .stderr(Stdio::null())
        .status();
}

/// Shims and the proxy name the directory in their arguments; workloads work below it.
fn processes_of(root: &Path) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let root_text = root.to_str().unwrap();
    numbers
        .filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let named = String::from_utf8_lossy(&words).contains(root_text);
            let works = std::fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(root));
            named || works
        })
        .filter_map(Pid::from_raw)
        .collect()
}

pub fn left_of(node: &Node) -> usize {
    processes_of(&node.directory()).len()
}

/// Processes with that name which work below the node's directory.
pub fn workers_of(node: &Node, name: &str) -> Vec<u32> {
    let named = |pid: &Pid| {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        comm.is_ok_and(|comm| comm.trim() == name)
    };
    let processes = processes_of(&node.directory()).into_iter();
    processes
        .filter(named)
        .map(|pid| pid.as_raw_nonzero().get() as u32)
        .collect()
}

/// What ends an instance whose shim was killed.
pub fn watchdogs_of(node: &Node) -> Vec<u32> {
    let watches = |pid: &Pid| {
        let words = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        words.is_ok_and(|words| {
            words
                .split(|byte| *byte == 0)
                .any(|word| word == b"shim-watchdog")
        })
    };
    let processes = processes_of(&node.directory()).into_iter();
    processes
        .filter(watches)
        .map(|pid| pid.as_raw_nonzero().get() as u32)
        .collect()
}

/// Loopback addresses that no other node of these tests has.
pub fn block() -> Ipv4Addr {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = (std::process::id() % 97) as u16;
    let [process, number] = [80 + process, number].map(|part| part as u8);
    Ipv4Addr::new(127, process, number, 0)
}

/// The command that makes a folder's agent a node of this server, with such addresses.
pub fn first_start(binary: &Path, folder: &Path, server: &Server, block: Ipv4Addr) -> Command {
    let [_, process, number, _] = block.octets().map(u16::from);
    // Below the ports that the kernel gives to who dials.
    let first = 22_000 + ((process - 80) * 260 + number * 10) % 10_000;
    let mut command = Command::new(binary);
    command
        .arg("agent")
        .arg(folder.join("node"))
        .arg("a")
        .arg(server.address.to_string())
        .arg(server.token())
        .arg(format!("{block}/24"))
        .arg(format!("{first}-{}", first + 9));
    command
}

pub fn spawn(mut command: Command, log: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .env("LEAK", "must not be seen")
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// An instance of the workload of these tests.
pub fn web(instance: &str) -> DesiredInstance {
    running(instance, &[program(), "web"])
}

pub fn running(instance: &str, run: &[&str]) -> DesiredInstance {
    let service = instance.rsplit_once('-').unwrap().0;
    DesiredInstance {
        instance: InstanceId::new(
            ProjectName::new("shop").unwrap(),
            InstanceName::new(instance).unwrap(),
        ),
        service: ResourceName::new(service).unwrap(),
        release: ReleaseNumber(1),
        epoch: Epoch(1),
        slot: None,
        role: Role::Member,
        purpose: model::compute::Purpose::Serve,
        wanted: Wanted::Run,
        uid: 70_123,
        spec: service_of(run),
        secrets: Vec::new(),
        start_after: Vec::new(),
        logins: BTreeMap::new(),
        need_ports: BTreeMap::new(),
        settings: None,
    }
}

fn service_of(run: &[&str]) -> Service {
    let work = Work::Process {
        run: run.iter().map(|word| (*word).to_owned()).collect(),
        artifact: None,
    };
    let greeting = "hello from $MAINLAND_INSTANCE".to_owned();
    Service {
        memory: Bytes::mebibytes(64),
        env: [("GREETING".to_owned(), greeting)].into(),
        health: Probe {
            port: None,
            ask: Ask::Http {
                path: "/health".to_owned(),
                host: None,
            },
            times: ProbeTimes {
                every: Span::milliseconds(100),
                ..ProbeTimes::default()
            },
        },
        grace: Span::seconds(5),
        ..Service::of(work)
    }
}

/// What the instance answers to a GET.
pub async fn ask(report: &InstanceReport, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = report.address.as_deref().unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default()
}
