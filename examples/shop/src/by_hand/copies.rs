//! Services as processes on free ports of the loopback, told of each other by the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::peer::{Call, Peer};
use crate::service::Error;

pub const SERVICES: [&str; 9] = [
    "provider",
    "payment",
    "inventory",
    "orders",
    "cart",
    "checkout",
    "email",
    "shipping",
    "storefront",
];
const READY_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What each copy is told.
pub struct Plan {
    program: PathBuf,
    environment: BTreeMap<String, String>,
    ports: BTreeMap<&'static str, u16>,
}

impl Plan {
    pub fn new(program: &Path, database: &str) -> Result<Self, Error> {
        let mut ports = BTreeMap::new();
        let mut environment = BTreeMap::from([
            ("ORDERS_DB_URL".to_owned(), database.to_owned()),
            ("PAYMENT_KEY".to_owned(), "a key for looking".to_owned()),
            ("SESSION_KEY".to_owned(), "another one".to_owned()),
        ]);
        for service in SERVICES {
            let port = free_port()?;
            let name = format!("{}_URL", service.to_uppercase());
            environment.insert(name, format!("http://127.0.0.1:{port}"));
            ports.insert(service, port);
        }
        Ok(Self {
            program: program.to_owned(),
            environment,
            ports,
        })
    }

    pub fn migrate(&self) -> Result<(), Error> {
        let mut command = self.command();
        let migrated = command.args(["migrate", "--outbox"]).status()?;
        match migrated.success() {
            true => Ok(()),
            false => Err(Error::ByHand(format!("migrate: {migrated}"))),
        }
    }

    /// The copy that the others know.
    pub fn start(&self, service: &str, more: &[(&str, &str)]) -> Result<Copy, Error> {
        let port = self.ports.get(service).copied();
        let port = port.map_or_else(free_port, Ok)?;
        self.start_at(service, port, more)
    }

    /// Another copy, at a port of its own.
    pub fn start_another(&self, service: &str, more: &[(&str, &str)]) -> Result<Copy, Error> {
        self.start_at(service, free_port()?, more)
    }

    fn start_at(&self, service: &str, port: u16, more: &[(&str, &str)]) -> Result<Copy, Error> {
        let mut command = self.command();
        command.arg(service).env("PORT", port.to_string());
        command.envs(more.iter().copied());
        Copy::of(command, port)
    }

    pub fn start_analytics(&self, program: &str, folder: &Path) -> Result<Copy, Error> {
        std::fs::create_dir_all(folder)?;
        let port = free_port()?;
        let mut command = Command::new("python3");
        command.arg(program).env("PORT", port.to_string());
        command.env("DATA_DIR", folder);
        Copy::of(command, port)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("HOST", "127.0.0.1");
        command.envs(&self.environment);
        command
    }
}

/// A process that ends when it is dropped.
pub struct Copy {
    process: Child,
    port: u16,
}

impl Copy {
    fn of(mut command: Command, port: u16) -> Result<Self, Error> {
        Ok(Self {
            process: command.spawn()?,
            port,
        })
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn kill(&mut self) -> Result<(), Error> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(Some(_)))
    }

    pub async fn ready(&self, service: &str) -> Result<(), Error> {
        let peer = Peer::new(&self.address());
        let until = Instant::now() + READY_WITHIN;
        while Instant::now() < until {
            let call = Call {
                method: Method::GET,
                path: "/healthz",
                key: "",
                body: Value::Null,
                within: LOOK_EVERY,
            };
            if peer.call(call).await.is_ok() {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
        Err(Error::ByHand(format!("{service} doesn't start")))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Free a moment ago, and never given before: who got it may not listen yet.
pub fn free_port() -> Result<u16, Error> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if given.insert(port) {
            return Ok(port);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the poll interval of a wait with a deadline"
)]
pub(super) fn pause() {
    std::thread::sleep(LOOK_EVERY);
}
