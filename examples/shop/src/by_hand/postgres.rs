//! A private PostgreSQL in a folder. It refuses to run as root, so there it runs as the user that its package made.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::copies::{free_port, pause};
use crate::service::Error;

/// Where packages of Debian and of the project itself put the programs of a version.
const PROGRAMS: [&str; 3] = [
    "/usr/lib/postgresql/15/bin",
    "/usr/lib/postgresql/16/bin",
    "/usr/lib/postgresql/17/bin",
];
const USER: &str = "postgres";
const START_WITHIN: Duration = Duration::from_secs(20);

pub struct Postgres {
    folder: PathBuf,
    programs: PathBuf,
    user: Option<u32>,
    port: u16,
    server: Child,
}

/// Where the programs are, if PostgreSQL is installed.
pub fn installed() -> Option<PathBuf> {
    let found = PROGRAMS.iter().map(PathBuf::from);
    let mut found = found.filter(|folder| folder.join("postgres").exists());
    found.next()
}

impl Postgres {
    pub fn start(folder: &Path) -> Result<Self, Error> {
        let missing = || Error::ByHand("PostgreSQL is missing: apt-get install postgresql".into());
        let programs = installed().ok_or_else(missing)?;
        let user = user()?;
        let data = folder.join("postgres");
        std::fs::create_dir_all(&data)?;
        if let Some(user) = user {
            chown(&data, Some(user), None)?;
        }
        if !data.join("PG_VERSION").exists() {
            make(&programs, &data, user)?;
        }
        let port = free_port()?;
        let server = serve(&programs, &data, user, port)?;
        let mut postgres = Self {
            folder: data,
            programs,
            user,
            port,
            server,
        };
        postgres.ready()?;
        Ok(postgres)
    }

    pub fn url(&self) -> String {
        format!("postgres://shop@127.0.0.1:{}/postgres", self.port)
    }

    /// Killed, as by a machine that loses power.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.server.kill()?;
        self.server.wait()?;
        Ok(())
    }

    pub fn start_again(&mut self) -> Result<(), Error> {
        self.server = serve(&self.programs, &self.folder, self.user, self.port)?;
        self.ready()
    }

    /// Waits until it listens. A server that ends meanwhile is started anew: it refuses to start while processes of a
    /// killed one before it still hold the folder's shared memory.
    fn ready(&mut self) -> Result<(), Error> {
        let until = Instant::now() + START_WITHIN;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if Instant::now() > until {
                return Err(Error::ByHand("PostgreSQL doesn't start".into()));
            }
            pause();
            if self.server.try_wait()?.is_some() {
                self.server = serve(&self.programs, &self.folder, self.user, self.port)?;
            }
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let id = self.server.id().to_string();
        // The clean stop of PostgreSQL: without waiting for clients.
        let _ = Command::new("kill").args(["-INT", &id]).status();
        let _ = self.server.wait();
    }
}

fn command(program: PathBuf, user: Option<u32>) -> Command {
    let mut command = Command::new(program);
    command.stdout(Stdio::null()).current_dir("/");
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command
}

fn make(programs: &Path, data: &Path, user: Option<u32>) -> Result<(), Error> {
    let made = command(programs.join("initdb"), user)
        .args([
            "--username=shop",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
        ])
        .arg("--no-instructions")
        .arg("-D")
        .arg(data)
        .status()?;
    match made.success() {
        true => Ok(()),
        false => Err(Error::ByHand(format!("initdb: {made}"))),
    }
}

fn serve(programs: &Path, data: &Path, user: Option<u32>, port: u16) -> Result<Child, Error> {
    let server = command(programs.join("postgres"), user)
        .arg("-D")
        .arg(data)
        .arg("-k")
        .arg(data)
        .args(["-p", &port.to_string(), "-h", "127.0.0.1"])
        .args(["-c", "max_connections=100", "-c", "log_min_messages=fatal"])
        .stderr(Stdio::null())
        .spawn()?;
    Ok(server)
}

/// As whom it runs: ourselves, unless that is root.
fn user() -> Result<Option<u32>, Error> {
    if number(&["-u"])? != 0 {
        return Ok(None);
    }
    number(&["-u", USER]).map(Some)
}

fn number(arguments: &[&str]) -> Result<u32, Error> {
    let output = Command::new("id").args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let unknown = |_| Error::ByHand(format!("who is {arguments:?}?"));
    text.trim().parse().map_err(unknown)
}
