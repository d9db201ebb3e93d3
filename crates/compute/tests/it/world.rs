//! A node in miniature: a folder, a runtime with the real shim, and its events.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use compute::cgroup::{self, Cgroups, Support};
use compute::identity::ProcessIdentity;
use compute::lease::Moment;
use compute::process::{Options, ProcessRuntime, START_PATIENCE};
use compute::runtime::{
    DEFAULT_OPEN_FILES, Environment, Event, Happening, InstanceSpec, Runtime as _,
};
use model::compute::{Exit, OnPartition};
use model::ids::{InstanceId, InstanceName, ProjectName};
use model::units::{Bytes, MilliCpu};
use tempfile::TempDir;
use tokio::sync::mpsc;

pub const BINARY: &str = env!("CARGO_BIN_EXE_shim-for-tests");

/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct World {
    pub folder: TempDir,
    agent: Option<Agent>,
    with_cgroups: bool,
    start_patience: Duration,
    /// What is run for the binary.
    binary: PathBuf,
}

/// One life of an agent, with a runtime of its own that ends with it.
struct Agent {
    tokio: tokio::runtime::Runtime,
    /// Where shims are heard, whatever the other does.
    hearers: tokio::runtime::Runtime,
    runtime: ProcessRuntime,
    events: mpsc::Receiver<Event>,
}

impl Agent {
    fn start(with_cgroups: bool, start_patience: Duration, binary: &Path) -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let hearers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (sender, events) = mpsc::channel(16);
        let options = Options {
            binary: binary.to_owned(),
            cgroups: cgroups().filter(|_| with_cgroups),
            events: sender,
            hearers: hearers.handle().clone(),
            start_patience,
        };
        Self {
            tokio,
            hearers,
            runtime: ProcessRuntime::new(options),
            events,
        }
    }
}

pub fn cgroups() -> Option<Cgroups> {
    match cgroup::detect() {
        Support::Groups(groups) => Some(groups),
        Support::None { why } => {
            eprintln!("no cgroups here: {why}");
            None
        }
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl World {
    pub fn new() -> Self {
        Self::with(true)
    }

    pub fn without_cgroups() -> Self {
        Self::with(false)
    }

    fn with(with_cgroups: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        open_to_others(folder.path());
        let mut world = Self {
            folder,
            agent: None,
            with_cgroups,
            start_patience: START_PATIENCE,
            binary: BINARY.into(),
        };
        world.start_agent();
        world
    }

    /// Its agents wait no longer than this for a shim that starts.
    pub fn impatient(mut self, start_patience: Duration) -> Self {
        self.start_patience = start_patience;
        self.start_agent();
        self
    }

    /// Everything is run by this script, whose last words are those of a program to run.
    pub fn by(mut self, interpreter: &str, script: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("by");
        fs::write(&path, format!("#!{interpreter}\n{script}")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        self.binary = path;
        self.start_agent();
        self
    }

    pub fn has_cgroups(&self) -> bool {
        self.with_cgroups && cgroups().is_some()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn spec(&self, name: &str, argv: &[&str]) -> InstanceSpec {
        let path = std::env::var("PATH").expect("PATH");
        InstanceSpec {
            instance: id(name),
            directory: self.path(name),
            artifact: None,
            argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
            environment: Environment(BTreeMap::from([("PATH".to_owned(), path)])),
            identity: None,
            volumes: Vec::new(),
            secret_files: Vec::new(),
            memory: Bytes::mebibytes(64),
            cpu: MilliCpu(250),
            pids: 512,
            open_files: DEFAULT_OPEN_FILES,
            grace: Duration::from_secs(10),
            on_partition: OnPartition::Keep,
            lease_sent_at: Moment::now(),
        }
    }

    pub fn shell(&self, name: &str, script: &str) -> InstanceSpec {
        self.spec(name, &["sh", "-c", script])
    }

    pub fn runtime(&self) -> &ProcessRuntime {
        &self.agent.as_ref().expect("an agent").runtime
    }

    /// Runs something of the runtime to its end.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let agent = self.agent.as_ref().expect("an agent");
        agent.tokio.block_on(async {
            tokio::time::timeout(PATIENCE, work)
                .await
                .expect("it took too long")
        })
    }

    /// Prepares and starts; the pid.
    pub fn start(&self, spec: &InstanceSpec) -> u32 {
        self.try_start(spec).expect("it starts")
    }

    pub fn try_start(&self, spec: &InstanceSpec) -> Result<u32, compute::runtime::Error> {
        self.run(async {
            self.runtime().prepare(spec).await?;
            Ok(self.runtime().start(spec).await?.pid)
        })
    }

    pub fn next_event(&mut self) -> Happening {
        let agent = self.agent.as_mut().expect("an agent");
        let event = agent
            .tokio
            .block_on(async { tokio::time::timeout(PATIENCE, agent.events.recv()).await });
        event.expect("an event in time").expect("an event").what
    }

    pub fn exit(&mut self) -> Exit {
        match self.next_event() {
            Happening::Exited(exit) => exit,
            other => panic!("{other:?} rather than an exit"),
        }
    }

    /// The agent dies as if killed: no task of it runs on.
    pub fn kill_agent(&mut self) {
        let agent = self.agent.take().expect("an agent");
        agent.hearers.shutdown_background();
        agent.tokio.shutdown_background();
    }

    pub fn start_agent(&mut self) {
        self.agent = Some(Agent::start(
            self.with_cgroups,
            self.start_patience,
            &self.binary,
        ));
    }

    pub fn output(&self, name: &str) -> String {
        fs::read_to_string(self.path(name).join("logs/output")).unwrap_or_default()
    }

    /// Waits for a line of the instance's output that starts with `start`; the rest of that line.
    pub fn line(&self, name: &str, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.output(name);
            // The last line may be half written.
            let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(rest) = whole.lines().find_map(|line| line.strip_prefix(start)) {
                return rest.to_owned();
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for `{start}` in: {output}"
            );
            pause();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.agent.is_none() {
            self.start_agent();
        }
        // Nothing that a test started outlives it, also when it fails.
        let entries = fs::read_dir(self.folder.path())
            .into_iter()
            .flatten()
            .flatten();
        let agent = self.agent.as_ref().expect("an agent");
        for entry in entries.filter(|entry| entry.path().join("work").exists()) {
            let instance = id(&entry.file_name().to_string_lossy());
            let removed = agent
                .tokio
                .block_on(agent.runtime.remove(&instance, &entry.path()));
            if let Err(error) = removed {
                eprintln!("removing {instance}: {error}");
            }
        }
    }
}

pub fn id(name: &str) -> InstanceId {
    let name = InstanceName::new(name).expect("a name");
    InstanceId::new(ProjectName::new("test").expect("a name"), name)
}

pub fn open_to_others(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        pause();
    }
}

pub fn is_alive(pid: u32) -> bool {
    ProcessIdentity::of(pid).is_ok_and(|identity| identity.is_alive())
}

pub fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The watchdog of a shim.
pub fn watchdog_of(shim: u32) -> Option<u32> {
    processes().find(|pid| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let parent = format!("PPid:\t{shim}\n");
        read("status").is_ok_and(|status| status.contains(&parent))
            && read("cmdline").is_ok_and(|line| line.contains("shim-watchdog"))
    })
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("a signal");
}

#[expect(
    clippy::disallowed_methods,
    reason = "a poll interval, inside waits with a deadline"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
