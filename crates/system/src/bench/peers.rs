//! The programs of others: found or installed by their Debian names, configured from `bench/peers`, ended when dropped.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{proc, wait};

/// Where administrators' programs stand that other users may not have in their PATH.
const MORE_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A program, and the package that brings it.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub package: &'static str,
    pub program: &'static str,
    /// What makes it print its version.
    pub version: &'static str,
}

pub const ETCD: Peer = peer("etcd-server", "etcd", "--version");
pub const NGINX: Peer = peer("nginx-light", "nginx", "-v");
pub const HAPROXY: Peer = peer("haproxy", "haproxy", "-v");
/// Asked by [`Peer::path`] alone: its version is told by a program that leaves another running.
pub const RABBITMQ: Peer = peer("rabbitmq-server", "rabbitmqctl", "version");
pub const WRK: Peer = peer("wrk", "wrk", "-v");

const fn peer(package: &'static str, program: &'static str, version: &'static str) -> Peer {
    Peer {
        package,
        program,
        version,
    }
}

/// A program that is there.
#[derive(Debug, Clone)]
pub struct Found {
    pub path: PathBuf,
    /// The first line in which it names its version.
    pub version: String,
}

impl Peer {
    /// Where it is; installed first if it is missing and that can be done. `None`, and said so, if it is missing still.
    pub fn find(&self, root: &Path) -> Option<Found> {
        let path = self.path(root)?;
        let version = version(&path, self.version);
        Some(Found { path, version })
    }

    /// As [`Peer::find`], and nothing of it runs.
    pub fn path(&self, root: &Path) -> Option<PathBuf> {
        let path = search(self.program).or_else(|| {
            self.install(root);
            search(self.program)
        });
        if path.is_none() {
            eprintln!(
                "{} is missing: apt-get install {}; what needs it is left out",
                self.program, self.package
            );
        }
        path
    }

    /// By the same script as `./try` and `./test`, which asks nothing and starts nothing.
    fn install(&self, root: &Path) {
        let script = r#". .ci/packages.bash && need "$1" program "$2"; install_missing"#;
        let status = Command::new("bash")
            .args(["-c", script, "bash", self.package, self.program])
            .current_dir(root)
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} can't be installed here", self.package);
        }
    }
}

fn search(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE_FOLDERS.map(PathBuf::from));
    let mut candidates = folders.map(|folder| folder.join(program));
    candidates.find(|path| path.is_file())
}

fn version(path: &Path, option: &str) -> String {
    let said = Command::new(path).arg(option).stdin(Stdio::null()).output();
    let said = said.map_or(Vec::new(), |said| [said.stdout, said.stderr].concat());
    let said = String::from_utf8_lossy(&said);
    let line = said
        .lines()
        .find(|line| line.contains(|c: char| c.is_ascii_digit()));
    line.unwrap_or("of unknown version").trim().to_owned()
}

/// A committed configuration with `${NAME}` filled in, written to `folder`.
pub fn configure(
    root: &Path,
    file: &str,
    values: &[(&str, String)],
    folder: &Path,
) -> Result<PathBuf> {
    let template = root.join("bench/peers").join(file);
    let mut text = std::fs::read_to_string(&template)
        .with_context(|| format!("reading {}", template.display()))?;
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    if let Some((_, rest)) = text.split_once("${") {
        let name: String = rest.chars().take_while(|c| *c != '}').collect();
        bail!("{file} asks for {name}, which nothing gives");
    }
    let path = folder.join(file);
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// A program that runs until this is dropped. What it says goes to a file beside its data.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.out"));
        let out = std::fs::File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let name = name.to_owned();
        Ok(Self { name, child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process and those that it has started, as workers.
    pub fn processes(&self) -> Vec<u32> {
        let own = self.pid();
        let everything = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let everything = everything.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let workers = everything.filter(|pid| proc::parent(*pid) == Some(own));
        std::iter::once(own).chain(workers).collect()
    }

    /// Waits until `look` finds it ready; what it said if it does not become so.
    pub fn until_ready(
        &mut self,
        within: Duration,
        mut look: impl FnMut() -> Result<(), String>,
    ) -> Result<()> {
        let interval = Duration::from_millis(10);
        let mut ended = None;
        let child = &mut self.child;
        let looked = wait::looking_each(interval, within, || {
            ended = child.try_wait().ok().flatten();
            if ended.is_some() {
                return Ok(());
            }
            look()
        });
        let hindrance = match (looked, ended) {
            (Ok(_), None) => return Ok(()),
            (_, Some(status)) => format!("ended with {status}"),
            (Err(hindrance), None) => format!("is not ready after {within:?}: {hindrance}"),
        };
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        bail!("{} {hindrance}\n{said}", self.name)
    }

    /// Waits until something accepts at its address.
    pub fn until_accepting(&mut self, address: SocketAddr) -> Result<()> {
        self.until_ready(Duration::from_secs(10), || {
            let connected = std::net::TcpStream::connect(address);
            connected.map(drop).map_err(|error| error.to_string())
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A master ends its workers when it is asked, and not when it is killed.
        let _ = proc::signal(self.pid(), Signal::TERM);
        let child = &mut self.child;
        let ended = wait::looking_each(Duration::from_millis(10), END_TIMEOUT, || {
            match child.try_wait() {
                Ok(Some(_)) => Ok(()),
                _ => Err(String::new()),
            }
        });
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What is started from now on may hold as many connections as the machine lets it.
pub fn allow_many_files() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Several addresses on loopback that nothing listens on now, all different.
pub fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind("127.0.0.1:0")?);
    }
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_lacks_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("bench/peers")).unwrap();
        let template = root.path().join("bench/peers/x.conf");
        std::fs::write(template, "listen ${PORT}; root ${DATA};").unwrap();
        let port = ("PORT", "80".to_owned());
        let refused = configure(
            root.path(),
            "x.conf",
            std::slice::from_ref(&port),
            root.path(),
        );
        assert_eq!(
            refused.unwrap_err().to_string(),
            "x.conf asks for DATA, which nothing gives"
        );
        let values = [port, ("DATA", "/d".to_owned())];
        let path = configure(root.path(), "x.conf", &values, root.path()).unwrap();
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "listen 80; root /d;"
        );
    }

    #[test]
    fn a_program_that_ends_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such option; exit 3"]);
        let mut running = Running::start("it", &mut command, folder.path()).unwrap();
        let never = || Err("not yet".to_owned());
        let error = running.until_ready(END_TIMEOUT, never).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("no such option"),
            "{error}"
        );
    }
}
