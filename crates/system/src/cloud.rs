//! A `mainland up` of one's own: start it, ask it, break it, end it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use rustix::process::Signal;
use serde::Deserialize;

use crate::{load, proc, wait};

/// One line of `ps -o json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Instance {
    pub name: String,
    pub service: String,
    pub node: Option<String>,
    pub zone: Option<String>,
    pub state: String,
    pub ready: bool,
    pub pid: Option<u32>,
    pub address: Option<String>,
    pub restarts: u32,
    pub version: u64,
    /// `serve` or `before-deploy`.
    pub purpose: String,
    pub started_at: Option<Timestamp>,
}

/// One line of `nodes -o json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    pub name: String,
    pub zone: String,
    pub role: String,
    pub state: String,
    pub pid: Option<u32>,
}

/// A cloud on loopback addresses and a directory of its own. Dropping it ends what it started.
pub struct Cloud {
    pub binary: PathBuf,
    pub directory: tempfile::TempDir,
    pub api: SocketAddr,
    pub gateway: SocketAddr,
    /// Variables that `up`, with it all that it starts, and the commands have beside those of the test.
    pub environment: Vec<(String, String)>,
    manifest: Option<PathBuf>,
    zones: u32,
    up: Option<Child>,
}

/// The program under test: `MAINLAND_BIN`, or the one built beside this test.
pub fn binary() -> PathBuf {
    built("MAINLAND_BIN", "mainland")
}

/// The load generator, likewise.
pub fn load_program() -> PathBuf {
    built("MAINLAND_LOAD_BIN", "load")
}

/// A program of this workspace: what `variable` says, or the one built beside the program that runs.
pub fn built(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().find(|folder| folder.join(name).is_file());
    profile
        .unwrap_or_else(|| panic!("{name} is not built: cargo build -p mainland -p system"))
        .join(name)
}

/// An address on loopback that nothing listens on now.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

impl Cloud {
    /// Prepares one for a manifest; nothing runs yet.
    pub fn new(manifest: &Path, zones: u32) -> Result<Self> {
        Self::prepare(Some(manifest.to_owned()), zones)
    }

    /// Prepares one with nothing deployed.
    pub fn empty(zones: u32) -> Result<Self> {
        Self::prepare(None, zones)
    }

    fn prepare(manifest: Option<PathBuf>, zones: u32) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("mainland-test-")
            .tempdir()?;
        // Services run as users of their own and must reach their directories.
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o711),
        )?;
        Ok(Self {
            binary: binary(),
            directory,
            api: free_address(),
            gateway: free_address(),
            environment: Vec::new(),
            manifest,
            zones,
            up: None,
        })
    }

    /// `mainland up` in the foreground of a process of its own; returns when it says that it is ready.
    pub fn up(&mut self) -> Result<Duration> {
        let begin = std::time::Instant::now();
        self.start()?;
        wait::until("`up` is ready", Duration::from_secs(60), || self.is_up());
        Ok(begin.elapsed())
    }

    /// Starts `mainland up` and returns at once.
    pub fn start(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.command(&["up"]);
        command
            .args(&self.manifest)
            .args(["--zones", &self.zones.to_string()]);
        command.args(["--gateway", &self.gateway.to_string()]);
        self.up = Some(
            command
                .envs(self.environment.clone())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?,
        );
        Ok(())
    }

    /// The address and the token that the server leaves for its owner.
    pub fn client_file(&self) -> PathBuf {
        self.directory.path().join("data/client.json")
    }

    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("up.out")
    }

    fn is_up(&mut self) -> Result<(), String> {
        if let Some(status) = self
            .up
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
        {
            let said = std::fs::read_to_string(self.log_path()).unwrap_or_default();
            panic!("`up` ended with {status}: {said}");
        }
        let output = self
            .run(&["wait", "--timeout", "1s"])
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The pid of the supervisor.
    pub fn supervisor(&self) -> Option<u32> {
        self.up.as_ref().map(Child::id)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--data-dir")
            .arg(self.directory.path().join("data"));
        command.args(["--api", &self.api.to_string()]);
        command.args(words).envs(self.environment.clone());
        let folder = self.manifest.as_deref().and_then(Path::parent);
        command.current_dir(folder.unwrap_or(self.directory.path()));
        command
    }

    /// Types a command; the manifest's folder is the working directory.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.command(words)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {words:?}"))
    }

    /// Types a command and lets it run; what it prints can be read from it.
    pub fn begin(&self, words: &[&str]) -> Result<Child> {
        self.command(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {words:?}"))
    }

    /// Types a command that must succeed; what it prints.
    pub fn say(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{words:?} ended with {}: {stderr}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn ps(&self) -> Result<Vec<Instance>> {
        Ok(serde_json::from_str(&self.say(&["ps", "-o", "json"])?)?)
    }

    pub fn nodes(&self) -> Result<Vec<Node>> {
        Ok(serde_json::from_str(&self.say(&["nodes", "-o", "json"])?)?)
    }

    /// Ready instances of a service.
    pub fn ready(&self, service: &str) -> Result<Vec<Instance>> {
        let all = self.ps()?;
        Ok(all
            .into_iter()
            .filter(|one| one.service == service && one.ready && one.state == "running")
            .collect())
    }

    /// From then to the start of the last copy that was started since; nothing if none was.
    pub fn last_start_since(&self, moment: Timestamp) -> Result<Duration> {
        let starts = self.ps()?.into_iter().filter_map(|one| one.started_at);
        let last = starts.max().unwrap_or(moment);
        Ok(last.duration_since(moment).try_into().unwrap_or_default())
    }

    /// Waits until a service has `count` ready instances; how long it took.
    pub fn wait_ready(&self, service: &str, count: usize, within: Duration) -> Duration {
        let what = format!("{count} ready instances of {service}");
        let look = || match self.ready(service) {
            Ok(ready) if ready.len() == count => Ok(()),
            Ok(ready) => Err(format!("{} are ready", ready.len())),
            Err(error) => Err(error.to_string()),
        };
        wait::until(&what, within, look).1
    }

    /// A load on one route, in a process of its own.
    pub fn load(
        &self,
        host: &str,
        path: &str,
        rate: u32,
        time: Duration,
        expect: &str,
    ) -> Result<load::Running> {
        let load = load::Load::get(self.gateway, host, path, rate, time).expecting(expect);
        load::start(&load_program(), &load)
    }

    /// All of Mainland's own processes of this cloud.
    pub fn processes(&self) -> Vec<u32> {
        let mark = self.directory.path().display().to_string();
        let ours = |pid: &u32| {
            proc::command_line(*pid)
                .iter()
                .any(|word| word.contains(&mark))
        };
        proc::running(&self.binary)
            .into_iter()
            .filter(ours)
            .collect()
    }

    /// Processes of this cloud whose words contain all of `words`.
    pub fn processes_with(&self, words: &[&str]) -> Vec<u32> {
        let has = |pid: &u32| {
            let line = proc::command_line(*pid).join(" ");
            words.iter().all(|word| line.contains(word))
        };
        self.processes().into_iter().filter(has).collect()
    }

    /// Kills a node as a power cut would: agent, proxy, shims and instances at once. It stays dead until `mainland start`.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        self.say(&["chaos", "kill", node]).map(drop)
    }

    /// `mainland down`; waits until nothing of it runs.
    pub fn down(&mut self) -> Result<()> {
        self.say(&["down"])?;
        if let Some(mut up) = self.up.take() {
            up.wait()?;
        }
        let left = || match self.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?} still run")),
        };
        let interval = Duration::from_millis(20);
        wait::looking_each(interval, Duration::from_secs(20), left)
            .map_err(|left| anyhow::anyhow!("20 s after `down` {left}"))?;
        Ok(())
    }

    /// kill -9 of the supervisor, every process of Mainland and every instance.
    pub fn kill_everything(&mut self) -> Result<()> {
        let instances = self
            .ps()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|instance| instance.pid);
        kill(&self.processes(), &instances.collect::<Vec<u32>>());
        if let Some(mut up) = self.up.take() {
            up.wait()?;
        }
        Ok(())
    }
}

/// kill -9 of processes, then of instances with all that they have started. One may end by itself before its turn comes.
fn kill(processes: &[u32], instances: &[u32]) {
    for pid in processes {
        let _ = proc::signal(*pid, Signal::KILL);
    }
    for pid in instances {
        let _ = proc::signal_group(*pid, Signal::KILL);
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = std::fs::read_to_string(self.log_path()).unwrap_or_default();
            eprintln!("--- `up` said:\n{said}");
        }
        // A clean end also takes firewall rules and cgroups away. One that never began, or is broken, ends all the same.
        if self.up.is_some() {
            let _ = self.run(&["down"]);
        }
        let _ = self.kill_everything();
    }
}
