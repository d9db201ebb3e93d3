//! A database's engine as a node starts it: where the tests run as root, as a user without a name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use model::ids::ResourceName;
use model::state::{Access, ENGINE_FILE, ENGINE_SOCKET, EngineFile, role_password};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

/// A machine that does other things beside.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const END_PATIENCE: Duration = Duration::from_secs(10);
const UID: u32 = 70_001;
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

pub fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("a name")
}

/// The folders of PostgreSQL's programs on this machine, as packages lay them out.
pub fn machine() -> BTreeMap<u32, PathBuf> {
    let mut found = BTreeMap::new();
    for (folder, before) in [("/usr", "pgsql-"), ("/usr/lib/postgresql", "")] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(entries.filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(before)?.parse().ok()?;
            let programs = entry.path().join("bin");
            programs
                .join("psql")
                .exists()
                .then_some((version, programs))
        }));
    }
    assert!(
        !found.is_empty(),
        "no PostgreSQL: apt-get install postgresql-15"
    );
    found
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits for a condition.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub struct Engine {
    folder: TempDir,
    pub file: EngineFile,
    pub port: u16,
    child: Option<Child>,
    run_as: Option<u32>,
}

impl Engine {
    pub fn new(version: u32, outbox: Option<&str>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("engine")
            .tempdir_in("/tmp")
            .expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let engine = serde_json::json!({"kind": "postgres", "version": version, "outbox": outbox});
        let file = EngineFile {
            project: model::ids::ProjectName::new("shop").expect("a name"),
            name: name("orders-db"),
            engine: serde_json::from_value(engine).expect("an engine"),
            memory: model::units::Bytes::mebibytes(128),
            settings: Default::default(),
            secret: Some(SECRET.to_owned()),
            doors: BTreeMap::new(),
        };
        let run_as = is_root().then_some(UID);
        let engine = Self {
            file,
            port: free.local_addr().expect("an address").port(),
            child: None,
            run_as,
            folder,
        };
        for name in ["data", "s"] {
            fs::create_dir(engine.path(name)).expect("a folder");
        }
        engine.give_folders();
        engine
    }

    /// As a node has them: who makes a database's files passes through the outer one.
    pub fn give_folders(&self) {
        let folders = [("", 0o711), ("data", 0o700), ("s", 0o700)];
        for (name, mode) in folders {
            let path = self.path(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
            chown(&path, self.run_as, self.run_as).expect("its owner");
        }
    }

    /// What a node that is root does before it starts an engine, whose user has no name.
    fn init(&self) {
        let Some(output) = self.try_init() else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let volume = fs::metadata(self.path("data")).expect("a volume");
        assert_eq!(volume.permissions().mode() & 0o777, 0o700);
    }

    /// `None`: this is not root.
    pub fn try_init(&self) -> Option<Output> {
        let uid = self.run_as?;
        let told = File::open(self.path("engine.json")).expect("what it is told");
        let output = Command::new(env!("CARGO_BIN_EXE_engine-for-tests"))
            .args(["engine", state::postgres::INIT])
            .arg(self.path("data"))
            .arg(uid.to_string())
            .stdin(told)
            .output();
        Some(output.expect("a process"))
    }

    /// As another user, where the tests run as root.
    pub fn run_by(mut self, uid: u32) -> Self {
        self.run_as = is_root().then_some(uid);
        self.give_folders();
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn files(&self) -> PathBuf {
        self.path("data/pgdata")
    }

    /// What a first start left behind that was cut off.
    pub fn leave_unfinished(&self) -> PathBuf {
        let unfinished = self.path("data/pgdata.new");
        let mut command = self.command(Path::new("mkdir"));
        command.args(["-p".as_ref(), unfinished.join("base").as_os_str()]);
        assert!(command.status().expect("mkdir").success());
        unfinished
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Tells what the file says, as an agent does.
    pub fn tell(&self) {
        let new = self.path("engine.json.new");
        fs::write(&new, serde_json::to_vec(&self.file).expect("JSON")).expect("the file");
        chown(&new, self.run_as, self.run_as).expect("its owner");
        fs::rename(new, self.path("engine.json")).expect("its place");
    }

    pub fn role(&mut self, role: &str, access: Access) {
        self.file.settings.roles.insert(name(role), access);
    }

    /// A command as the engine's user, in its environment.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match self.run_as {
            None => Command::new(program),
            Some(uid) => {
                let mut command = Command::new("setpriv");
                let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
                command.args([&user, &group, "--clear-groups", "--no-new-privs"]);
                command.arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PORT", self.port.to_string())
            .env("DATA_DIR", self.path("data"))
            .env(ENGINE_FILE, self.path("engine.json"))
            .env(ENGINE_SOCKET, self.path("s/s"))
            .stdin(Stdio::null());
        command
    }

    fn mainland(&self) -> Command {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_engine-for-tests")));
        command.arg("engine");
        command
    }

    pub fn start(&mut self) {
        self.tell();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"));
        let log = log.expect("a log");
        let mut command = self.mainland();
        command
            .args(["database", "orders-db"])
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        self.child = Some(command.spawn().expect("an engine"));
    }

    pub async fn start_and_serve(&mut self) {
        self.tell();
        self.init();
        self.start();
        self.serves().await;
    }

    pub async fn serves(&mut self) {
        until("it serves", async || {
            let child = self.child.as_mut().expect("it runs");
            assert!(child.try_wait().expect("a wait").is_none(), "it ended");
            (self.get("/health")?.0 == 200).then_some(())
        })
        .await;
    }

    /// Beside the engine.
    pub fn tool(&self, words: &[&str], input: impl AsRef<[u8]>) -> Output {
        let mut command = self.mainland();
        command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("a tool");
        let mut stdin = child.stdin.take().expect("a pipe");
        // It may refuse before it has read all.
        let _ = stdin.write_all(input.as_ref());
        drop(stdin);
        child.wait_with_output().expect("its output")
    }

    /// Status and body; `None` when nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut socket = UnixStream::connect(self.path("s/s")).ok()?;
        write!(socket, "GET {path} HTTP/1.0\r\nhost: engine\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub async fn connect(&self, role: &str) -> Result<Client, String> {
        let password = role_password(SECRET, &name(role));
        self.connect_with(role, &password, "orders_db").await
    }

    pub async fn connect_with(
        &self,
        role: &str,
        password: &str,
        database: &str,
    ) -> Result<Client, String> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user(role);
        config.password(password).dbname(database);
        let connected = config.connect(NoTls).await;
        let (client, connection) = connected.map_err(|error| format!("{error:?}"))?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_raw(child.id() as i32).expect("a pid");
        kill_process(pid, signal).expect("a signal");
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let status = until("it ends", async || child.try_wait().expect("a wait")).await;
        self.child = None;
        status
    }

    /// All processes of the server; the first is the postmaster.
    pub fn server(&self) -> Vec<Pid> {
        let files = self.files();
        let entries = fs::read_dir("/proc").expect("processes").flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let works =
            |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|work| work == files);
        let mut numbers: Vec<i32> = numbers.filter(works).collect();
        let postmaster = fs::read_to_string(files.join("postmaster.pid")).unwrap_or_default();
        let postmaster = postmaster.lines().next().and_then(|line| line.parse().ok());
        numbers.sort_by_key(|pid| (Some(*pid) != postmaster, *pid));
        numbers.into_iter().filter_map(Pid::from_raw).collect()
    }

    /// Everything at once, as when a machine dies.
    pub async fn kill_all(&mut self) {
        let server = self.server();
        self.signal(Signal::STOP);
        for pid in server {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.signal(Signal::KILL);
        self.ended().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // It follows its engine. One that is killed leaves its shared memory behind.
        let deadline = Instant::now() + END_PATIENCE;
        while !self.server().is_empty() && Instant::now() < deadline {
            #[expect(clippy::disallowed_methods, reason = "the interval between two looks")]
            std::thread::sleep(LOOK_EVERY);
        }
        for pid in self.server() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
