//! Where `up` keeps things: one directory, in it one for each process that shares nothing with the others.
//!
//! ```text
//! DATA/client.json      address and token for the owner's CLI, written by the server
//! DATA/up.lock          held while a supervisor lives; says which process it is
//! DATA/up.json          its addresses, and which process is the server, so that a later `up` adopts them
//! DATA/server/          the server's own
//! DATA/nodes/a/         node a's own: no other process reads it
//! DATA/nodes/edge/      the front door's own
//! DATA/killed/b         node b was killed on purpose (`chaos kill`): it stays down until `start`, or the next `up`. Says which kill it was
//! DATA/started/b        which process was started as node b's agent last: it lives before it answers on its socket
//! DATA/logs/            what the processes themselves say
//! ```

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use model::traffic::Network;
use serde::{Deserialize, Serialize};

use super::process::{self, Identity};

/// The name of the front door's node.
pub const EDGE: &str = "edge";
/// Nodes that one machine can pretend to be: each has a /20 of its own in 127.77.0.0/16, the edge the first.
pub const ZONES_MAX: u32 = 9;
/// `sun_path` without its final zero: unix(7).
const SOCKET_PATH_MAX: usize = 107;
/// Ports that each node hands to its instances.
const PORTS_PER_NODE: u16 = 1000;
const FIRST_PORT: u16 = 20_000;

/// One `chaos kill` of a node, known from every other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill(String);

impl Kill {
    fn new() -> Result<Self> {
        let id = "/proc/sys/kernel/random/uuid";
        let id = std::fs::read_to_string(id).with_context(|| format!("{id} can't be read"))?;
        Ok(Self(id.trim().to_owned()))
    }
}

#[derive(Clone)]
pub struct Layout {
    pub data: PathBuf,
}

impl Layout {
    pub fn client_file(&self) -> PathBuf {
        self.data.join("client.json")
    }
    pub fn lock(&self) -> PathBuf {
        self.data.join("up.lock")
    }
    /// The supervisor that lives.
    pub fn supervisor(&self) -> Option<Identity> {
        let identity: Identity = serde_json::from_slice(&std::fs::read(self.lock()).ok()?).ok()?;
        identity.alive().then_some(identity)
    }
    pub fn state(&self) -> PathBuf {
        self.data.join("up.json")
    }
    pub fn server(&self) -> PathBuf {
        self.data.join("server")
    }
    pub fn node(&self, name: &str) -> PathBuf {
        self.data.join("nodes").join(name)
    }
    pub fn node_socket(&self, name: &str) -> PathBuf {
        self.node(name).join("node.sock")
    }
    /// Nodes that have ever joined from here.
    pub fn known_nodes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data.join("nodes"))
            .into_iter()
            .flatten()
            .flatten();
        let joined = entries.filter(|entry| entry.path().join("agent.json").exists());
        let mut names: Vec<String> = joined
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
    /// Whether the node was told that it is none any more.
    pub fn is_removed(&self, name: &str) -> bool {
        self.node(name).join("removed.json").exists()
    }
    fn killed(&self, name: &str) -> PathBuf {
        self.data.join("killed").join(name)
    }
    /// Whether somebody wants the node dead.
    pub fn is_killed(&self, name: &str) -> bool {
        self.killed(name).exists()
    }
    pub fn killed_nodes(&self) -> Vec<String> {
        let mut known = self.known_nodes();
        known.retain(|name| self.is_killed(name));
        known
    }
    /// Which kill wants the node dead, if any does.
    pub fn killed_by(&self, name: &str) -> Option<Kill> {
        std::fs::read_to_string(self.killed(name)).ok().map(Kill)
    }
    /// From here on `up` leaves it dead.
    pub fn mark_killed(&self, name: &str) -> Result<Kill> {
        let kill = Kill::new()?;
        let mark = self.killed(name);
        self.changing_kills()
            .and_then(|_turn| std::fs::write(&mark, &kill.0))
            .with_context(|| format!("{} can't be written", mark.display()))?;
        Ok(kill)
    }
    /// That kill is wanted no more, and `before` is what it came after. What came since stands.
    pub fn take_back(&self, name: &str, kill: &Kill, before: Option<&Kill>) -> Result<()> {
        let mark = self.killed(name);
        let taken_back = self.changing_kills().and_then(|_turn| {
            match (self.killed_by(name).as_ref() == Some(kill), before) {
                (false, _) => Ok(()),
                (true, None) => std::fs::remove_file(&mark),
                (true, Some(before)) => std::fs::write(&mark, &before.0),
            }
        });
        taken_back.with_context(|| format!("{} can't be changed", mark.display()))
    }
    /// One changes marks at a time, for as long as this is held.
    fn changing_kills(&self) -> std::io::Result<std::fs::File> {
        let directory = self.data.join("killed");
        std::fs::create_dir_all(&directory)?;
        let turn = std::fs::File::open(&directory)?;
        rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(turn)
    }
    fn started(&self, name: &str) -> PathBuf {
        self.data.join("started").join(name)
    }
    /// So that nobody starts another one before it answers.
    pub fn keep_started(&self, name: &str, agent: &Identity) -> Result<()> {
        let kept = self.started(name);
        let text = serde_json::to_vec(agent)?;
        std::fs::create_dir_all(self.data.join("started"))
            .and_then(|()| replace_private(&kept, &text))
            .with_context(|| format!("{} can't be written", kept.display()))
    }
    /// The node's agent that lives: who answers on its socket, or who was started and does not answer yet.
    pub fn agent(&self, name: &str) -> Option<Identity> {
        let started = || {
            let kept = std::fs::read(self.started(name)).ok()?;
            let agent: Identity = serde_json::from_slice(&kept).ok()?;
            agent.alive().then_some(agent)
        };
        process::listening_on(&self.node_socket(name)).or_else(started)
    }
    /// Whether a node of that name has ever joined from here.
    pub fn has_joined(&self, name: &str) -> bool {
        self.node(name).join("agent.json").exists()
    }
    pub fn log(&self, name: &str) -> PathBuf {
        self.data.join("logs").join(format!("{name}.log"))
    }

    /// Makes the directories. Services run as users of their own, so all may pass through, and only the owner may list.
    pub fn create(&self) -> Result<()> {
        let longest = self.data.join("nodes/edge/proxy.sock");
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            anyhow::bail!(
                "the path {} is too long: a Unix socket's may have {SOCKET_PATH_MAX} bytes\n  remedy: choose a shorter one with --data-dir",
                longest.display()
            );
        }
        check_owner(&self.data)?;
        for (directory, mode) in [
            (self.data.clone(), 0o711),
            (self.data.join("nodes"), 0o711),
            (self.data.join("logs"), 0o700),
        ] {
            std::fs::create_dir_all(&directory).with_context(|| {
                format!("the data directory {} can't be made", directory.display())
            })?;
            set_mode(&directory, mode)?;
        }
        Ok(())
    }
}

/// Root may use what is another's, nobody else.
fn check_owner(data: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let (us, owner) = (rustix::process::geteuid().as_raw(), data.metadata());
    match owner {
        Ok(owner) => refuse_anothers(data, owner.uid(), us),
        Err(_) => Ok(()),
    }
}

fn refuse_anothers(data: &Path, owner: u32, us: u32) -> Result<()> {
    if owner == us || us == 0 {
        return Ok(());
    }
    anyhow::bail!(
        "the data directory {} belongs to {}\n  remedy: run this as that user, or choose another directory with --data-dir",
        data.display(),
        experience::context::user_name(owner)
    )
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("the mode of {} can't be set", path.display()))
}

/// What a supervisor remembers for the next one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub zones: u32,
    pub api: SocketAddr,
    /// Where nodes dial the server.
    pub nodes: SocketAddr,
    pub gateway: SocketAddr,
    /// Balancers before the gateway, as `mainland agent` takes them.
    #[serde(default)]
    pub trust_proxy: Vec<Network>,
    #[serde(default)]
    pub proxy_protocol: Vec<Network>,
    pub server: Option<Identity>,
}

impl State {
    pub fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        replace_private(path, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("{} can't be written", path.display()))
    }
}

/// Whole, or as it was.
fn replace_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".new");
    write_private(Path::new(&temporary), text)?;
    std::fs::rename(&temporary, path)
}

/// Readable for us alone: services pass through the folder.
fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options.open(path)?;
    // Of one that was there before, too.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text)
}

/// One node of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    pub name: String,
    pub zone: String,
    pub edge: bool,
    /// First address of its /20.
    pub mesh_block: Ipv4Addr,
    pub ports: (u16, u16),
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

/// The edge and `zones` nodes named `a`, `b`, ..., the machine divided evenly among them.
pub fn node_plans(zones: u32, cpu_milli: u64, memory_bytes: u64) -> Vec<NodePlan> {
    let share = u64::from(zones.max(1));
    let node = |index: u32, name: String, edge: bool| NodePlan {
        zone: name.clone(),
        name,
        edge,
        mesh_block: Ipv4Addr::new(127, 77, (index * 16) as u8, 0),
        ports: port_range(index),
        cpu_milli: if edge { 0 } else { cpu_milli / share },
        memory_bytes: if edge { 0 } else { memory_bytes / share },
    };
    let letter = |index: u32| char::from(b'a' + (index - 1) as u8).to_string();
    std::iter::once(node(0, EDGE.to_owned(), true))
        .chain((1..=zones).map(|index| node(index, letter(index), false)))
        .collect()
}

fn port_range(index: u32) -> (u16, u16) {
    let first = FIRST_PORT + PORTS_PER_NODE * index as u16;
    (first, first + PORTS_PER_NODE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_another_user_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |owner, us| refuse_anothers(folder.path(), owner, us);
        assert!(refused(65_534, 65_534).is_ok());
        assert!(refused(65_534, 0).is_ok(), "root may");
        let error = refused(0, 65_534).unwrap_err().to_string();
        assert!(error.contains("belongs to root (uid 0)"), "{error}");
    }

    #[test]
    fn a_node_that_was_killed_on_purpose_is_known_until_that_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            data: folder.path().to_owned(),
        };
        for node in ["a", "b"] {
            std::fs::create_dir_all(layout.node(node)).unwrap();
            std::fs::write(layout.node(node).join("agent.json"), "").unwrap();
        }
        let first = layout.mark_killed("b").unwrap();
        assert_eq!(layout.killed_nodes(), ["b"]);
        assert!(layout.is_killed("b") && !layout.is_killed("a"));
        assert_eq!(layout.killed_by("b").as_ref(), Some(&first));
        // Who starts it again undoes the kill that it knows, and none that came since.
        let second = layout.mark_killed("b").unwrap();
        layout.take_back("b", &first, None).unwrap();
        assert!(layout.is_killed("b"));
        // A kill that found nothing to kill.
        layout.take_back("b", &second, Some(&first)).unwrap();
        assert_eq!(layout.killed_by("b").as_ref(), Some(&first));
        layout.take_back("b", &first, None).unwrap();
        assert!(layout.killed_nodes().is_empty());
        layout.take_back("b", &first, None).unwrap();
        // As an earlier version left it.
        std::fs::write(folder.path().join("killed/b"), "").unwrap();
        let old = layout.killed_by("b").unwrap();
        layout.take_back("b", &old, None).unwrap();
        assert!(layout.killed_nodes().is_empty());
    }

    /// A second one would be started beside it, by whoever looks before it listens.
    #[test]
    fn an_agent_is_known_before_it_answers() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            data: folder.path().to_owned(),
        };
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let agent = Identity::of(child.id()).unwrap();
        assert_eq!(layout.agent("b"), None);
        layout.keep_started("b", &agent).unwrap();
        assert_eq!(layout.agent("b"), Some(agent.clone()));
        assert_eq!(layout.agent("a"), None);
        agent.signal(rustix::process::Signal::KILL).unwrap();
        child.wait().unwrap();
        assert_eq!(layout.agent("b"), None);
    }

    #[test]
    fn what_is_kept_of_the_cloud_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            data: folder.path().to_owned(),
        };
        // As an earlier version left it.
        std::fs::write(folder.path().join("up.json.new"), "").unwrap();
        layout.create().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let state = State {
            zones: 1,
            api: address,
            nodes: address,
            gateway: address,
            trust_proxy: Vec::new(),
            proxy_protocol: Vec::new(),
            server: None,
        };
        state.save(&folder.path().join("up.json")).unwrap();
        let mode = |name: &str| {
            let found = folder.path().join(name).metadata().unwrap();
            found.permissions().mode() & 0o777
        };
        assert_eq!((mode("up.json"), mode("logs")), (0o600, 0o700));
    }

    #[test]
    fn nodes_share_the_machine_and_nothing_else() {
        let plans = node_plans(ZONES_MAX, 9000, 9 << 30);
        assert_eq!(plans.len(), 10);
        assert_eq!(plans.iter().map(|plan| plan.cpu_milli).sum::<u64>(), 9000);
        for (index, one) in plans.iter().enumerate() {
            for other in &plans[index + 1..] {
                assert_ne!(one.name, other.name);
                assert_ne!(one.mesh_block, other.mesh_block);
                assert!(one.ports.1 < other.ports.0);
            }
        }
    }
}
