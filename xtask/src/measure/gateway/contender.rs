//! Starting what is measured, each in processes of its own, and ending it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use system::{proc, wait};

use super::ours;

const START_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bare,
    Nginx,
    Haproxy,
    Mainland,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Bare, Kind::Nginx, Kind::Haproxy, Kind::Mainland];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare hyper forwarder",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Mainland => "Mainland, all defaults on",
        }
    }
}

/// Something that listens. Dropping it ends its processes.
pub(super) struct Contender {
    process: Child,
    pub(super) address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Contender {
    pub(super) fn backend() -> Result<Self> {
        let address = free_address()?;
        let folder = tempfile::tempdir()?;
        let mut command = own_role("backend")?;
        command.arg(address.to_string());
        Self::of(command, address, folder)?.context("we are installed")
    }

    /// `None`: not installed.
    pub(super) fn start(kind: Kind, root: &Path, backend: SocketAddr) -> Result<Option<Self>> {
        let address = free_address()?;
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        let peers = root.join("bench/peers");
        let command = match kind {
            Kind::Bare => {
                let mut command = own_role("forwarder")?;
                command.args([address.to_string(), backend.to_string()]);
                command
            }
            Kind::Nginx => {
                let config = fill_in(&peers.join("nginx.conf"), path, address, backend)?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(path).arg("-c").arg(config);
                command
            }
            Kind::Haproxy => {
                let config = fill_in(&peers.join("haproxy.cfg"), path, address, backend)?;
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(config);
                command
            }
            Kind::Mainland => {
                let mut command = own_role("proxy")?;
                command.arg(path);
                command
            }
        };
        let socket = ours::control_socket(path);
        let contender = Self::spawn(command, address, folder)?;
        if kind == Kind::Mainland {
            ours::tell(&socket, address, backend)?;
        }
        if let Some(contender) = &contender {
            contender.wait_until_it_listens();
        }
        Ok(contender)
    }

    fn of(
        command: Command,
        address: SocketAddr,
        folder: tempfile::TempDir,
    ) -> Result<Option<Self>> {
        let contender = Self::spawn(command, address, folder)?;
        if let Some(contender) = &contender {
            contender.wait_until_it_listens();
        }
        Ok(contender)
    }

    fn spawn(
        mut command: Command,
        address: SocketAddr,
        folder: tempfile::TempDir,
    ) -> Result<Option<Self>> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        match started {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            started => Ok(Some(Self {
                process: started.with_context(|| format!("can't start {command:?}"))?,
                address,
                _folder: folder,
            })),
        }
    }

    fn wait_until_it_listens(&self) {
        wait::until("a contender listens", START_TIMEOUT, || {
            TcpStream::connect(self.address).map_err(|error| error.to_string())
        });
    }

    /// Of its process and that one's children: nginx works in those.
    pub(super) fn cpu_time(&self) -> Duration {
        self.processes()
            .into_iter()
            .filter_map(proc::cpu_time)
            .sum()
    }

    fn processes(&self) -> Vec<u32> {
        let parent = self.process.id();
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid == parent || proc::parent(*pid) == Some(parent))
            .collect()
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // Those that have workers end them when they are asked politely.
        let _ = proc::signal(self.process.id(), rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// This program in another role.
fn own_role(role: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["role", role]);
    Ok(command)
}

fn fill_in(
    template: &Path,
    folder: &Path,
    listen: SocketAddr,
    backend: SocketAddr,
) -> Result<std::path::PathBuf> {
    let text = std::fs::read_to_string(template)
        .with_context(|| format!("can't read {}", template.display()))?;
    let text = text
        .replace("LISTEN", &listen.to_string())
        .replace("BACKEND", &backend.to_string())
        .replace("FOLDER", &folder.display().to_string());
    let path = folder.join("config");
    std::fs::write(&path, text)?;
    Ok(path)
}

pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
