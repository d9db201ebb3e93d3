//! A cgroup per instance, below the one that the agent is in: v2, v1, or v1 controllers beside an empty v2 ("hybrid").
//!
//! | | v2 | v1 | hybrid |
//! |---|---|---|---|
//! | hard memory limit, no swap | `memory.max`, `memory.swap.max` | `memory.limit_in_bytes`, `memory.memsw.limit_in_bytes` | as v1 |
//! | CPU weight | `cpu.weight` | `cpu.shares` | as v1 |
//! | number of processes and threads | `pids.max` | `pids.max` | as v1 |
//! | killing all | `cgroup.kill` | SIGKILL until empty | `cgroup.kill` |
//! | killed for memory | `memory.events` | `memory.oom_control` | as v1 |
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>, <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::units::{Bytes, MilliCpu};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

pub(crate) use leaf::Leaf;

mod leaf;

/// Where v2 allows no process beside child groups with controllers, those that were there are moved into this child.
const HOST_GROUP: &str = "mainland-host";
/// Tries to empty a v2 group that keeps being filled.
const MOVE_ROUNDS: usize = 5;
/// Between two looks at a group that is being killed.
const KILL_POLL: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} cgroup {path}: {source}", path = path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{count} processes of cgroup {path} are still there after SIGKILL", path = path.display())]
    NotEmpty { path: PathBuf, count: usize },
}

impl Error {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// What this machine lets this process do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    Groups(Cgroups),
    /// To be said once: limits are not enforced, and stray processes are found by parentage alone.
    None {
        why: String,
    },
}

/// The groups below which instances get theirs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// v2, for all it offers or for killing only.
    unified: Option<PathBuf>,
    /// Whether `unified` carries the controllers.
    unified_controllers: bool,
    memory_v1: Option<PathBuf>,
    cpu_v1: Option<PathBuf>,
    pids_v1: Option<PathBuf>,
    /// What is then not enforced, for the agent to say once: `memory limits`.
    pub not_enforced: Vec<&'static str>,
}

/// The groups of this process that could be read from the two texts: pure, and nothing is known yet of permissions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Current {
    unified: Option<PathBuf>,
    memory_v1: Option<PathBuf>,
    cpu_v1: Option<PathBuf>,
    pids_v1: Option<PathBuf>,
}

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Hard, swap included.
    pub memory: Bytes,
    /// A weight among the instances of the machine.
    pub cpu: MilliCpu,
    /// Processes and threads together, hard: what would be one more is refused to the program (EAGAIN).
    pub pids: u32,
}

/// Finds out what may be used. It makes and removes an empty group to know.
pub fn detect() -> Support {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let current = parse(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
    let mut reasons = Vec::new();
    let mut usable = |path: Option<PathBuf>| {
        let path = path?;
        match probe(&path) {
            Ok(()) => Some(path),
            Err(error) => {
                reasons.push(format!("{}: {error}", path.display()));
                None
            }
        }
    };
    let mut groups = Cgroups {
        unified: usable(current.unified.map(outside_host_group)),
        memory_v1: usable(current.memory_v1),
        cpu_v1: usable(current.cpu_v1),
        pids_v1: usable(current.pids_v1),
        ..Cgroups::default()
    };
    if groups.unified.is_none() && groups.memory_v1.is_none() && groups.cpu_v1.is_none() {
        let why = if reasons.is_empty() {
            "no cgroup file system is mounted".to_owned()
        } else {
            reasons.join("; ")
        };
        return Support::None { why };
    }
    groups.enable_controllers();
    Support::Groups(groups)
}

fn outside_host_group(path: PathBuf) -> PathBuf {
    match path.parent() {
        Some(parent) if path.ends_with(HOST_GROUP) => parent.to_owned(),
        _ => path,
    }
}

fn probe(base: &Path) -> io::Result<()> {
    let path = base.join(format!("mainland-probe-{}", std::process::id()));
    fs::create_dir(&path)?;
    fs::remove_dir(&path)
}

impl Cgroups {
    /// In v2, children have a controller only when the parent hands it down, which it may only while it holds no process
    /// itself (the root excepted).
    fn enable_controllers(&mut self) {
        if let Some(base) = &self.unified
            && self.memory_v1.is_none()
        {
            let enable = |controller: &str| {
                let path = base.join("cgroup.subtree_control");
                let text = format!("+{controller}");
                fs::write(&path, &text).or_else(|_| {
                    move_processes_aside(base)?;
                    fs::write(&path, &text)
                })
            };
            self.unified_controllers = enable("memory").is_ok();
            let cpu = enable("cpu").is_ok();
            let pids = enable("pids").is_ok();
            if !cpu && self.cpu_v1.is_none() {
                self.not_enforced.push("CPU weights");
            }
            if !pids && self.pids_v1.is_none() {
                self.not_enforced.push("limits of processes");
            }
        } else {
            if self.cpu_v1.is_none() {
                self.not_enforced.push("CPU weights");
            }
            if self.pids_v1.is_none() {
                self.not_enforced.push("limits of processes");
            }
        }
        if self.memory_v1.is_none() && !self.unified_controllers {
            self.not_enforced.push("memory limits");
        }
    }

    /// The group of one instance, whether it is there or not.
    pub fn locate(&self, name: &str) -> Group {
        let below = |base: &Option<PathBuf>| base.as_ref().map(|base| base.join(name));
        let (unified, memory) = (below(&self.unified), below(&self.memory_v1));
        let (cpu, pids) = (below(&self.cpu_v1), below(&self.pids_v1));
        let counter_v1 = memory.as_ref().map(|path| path.join("memory.oom_control"));
        let counter_v2 = unified.as_ref().filter(|_| self.unified_controllers);
        Group {
            out_of_memory: counter_v1.or_else(|| Some(counter_v2?.join("memory.events"))),
            legacy: memory.into_iter().chain(cpu).chain(pids).collect(),
            unified,
        }
    }

    /// Makes the group of one instance, or sets the limits of the one that is there.
    pub fn create(&self, name: &str, limits: Limits) -> Result<Group, Error> {
        let Limits { memory, cpu, pids } = limits;
        if let Some(base) = &self.unified {
            let path = make(base, name)?;
            if self.unified_controllers {
                limit_memory_v2(&path, memory)?;
            }
            // Refused where the CPU controller is missing, which was said.
            let _ = fs::write(path.join("cpu.weight"), cpu_weight(cpu).to_string());
            let _ = fs::write(path.join("pids.max"), pids.to_string());
        }
        if let Some(base) = &self.memory_v1 {
            limit_memory_v1(&make(base, name)?, memory)?;
        }
        if let Some(base) = &self.cpu_v1 {
            write(&make(base, name)?.join("cpu.shares"), cpu_shares(cpu))?;
        }
        if let Some(base) = &self.pids_v1 {
            write(&make(base, name)?.join("pids.max"), u64::from(pids))?;
        }
        Ok(self.locate(name))
    }
}

fn move_processes_aside(base: &Path) -> io::Result<()> {
    let host = base.join(HOST_GROUP);
    if !host.exists() {
        fs::create_dir(&host)?;
    }
    for _ in 0..MOVE_ROUNDS {
        let pids = processes(base);
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            // It may have ended, or be a kernel thread that can't be moved.
            let _ = fs::write(host.join("cgroup.procs"), pid.as_raw_nonzero().to_string());
        }
    }
    Ok(())
}

fn make(base: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = base.join(name);
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io("making", &path)(error))
        }
        _ => Ok(path),
    }
}

fn write(path: &Path, value: u64) -> Result<(), Error> {
    fs::write(path, value.to_string()).map_err(Error::io("setting", path))
}

fn limit_memory_v2(path: &Path, memory: Bytes) -> Result<(), Error> {
    write(&path.join("memory.max"), memory.0)?;
    // Missing on a kernel without swap accounting.
    let _ = fs::write(path.join("memory.swap.max"), "0");
    Ok(())
}

fn limit_memory_v1(path: &Path, memory: Bytes) -> Result<(), Error> {
    let with_swap = path.join("memory.memsw.limit_in_bytes");
    // Memory and swap together may never be below memory alone: to raise, this one goes first; to lower, last.
    let _ = fs::write(&with_swap, memory.0.to_string());
    write(&path.join("memory.limit_in_bytes"), memory.0)?;
    let _ = fs::write(&with_swap, memory.0.to_string());
    let _ = fs::write(path.join("memory.swappiness"), "0");
    Ok(())
}

/// v2: 100 is the default; one core of CPU asked for has that.
fn cpu_weight(cpu: MilliCpu) -> u64 {
    (cpu.0 / 10).clamp(1, 10_000)
}

/// v1: 1024 is the default; one core of CPU asked for has that.
fn cpu_shares(cpu: MilliCpu) -> u64 {
    (cpu.0 * 1024 / 1000).clamp(2, 262_144)
}

/// The group of one instance, in every hierarchy that is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    unified: Option<PathBuf>,
    legacy: Vec<PathBuf>,
    /// The file that counts processes killed for memory, in a line `oom_kill N`.
    out_of_memory: Option<PathBuf>,
}

impl Group {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.unified.iter().chain(&self.legacy)
    }

    /// Whether any of it is there.
    pub fn exists(&self) -> bool {
        self.paths().any(|path| path.exists())
    }

    /// Moves the calling process in. What it executes and whatever that starts stays in.
    pub fn join(&self) -> Result<(), Error> {
        for path in self.paths() {
            fs::write(path.join("cgroup.procs"), "0").map_err(Error::io("joining", path))?;
        }
        Ok(())
    }

    /// How many processes of it the kernel killed for its memory limit since it was made.
    pub fn out_of_memory_kills(&self) -> u64 {
        let text = self
            .out_of_memory
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok());
        text.as_deref().and_then(parse_oom_kills).unwrap_or(0)
    }

    /// The processes in it and in the groups below it, each once.
    pub fn processes(&self) -> Vec<Pid> {
        let found = self.paths().flat_map(|path| tree(path));
        let found = found.flat_map(|path| processes(&path));
        let mut found: Vec<Pid> = found.collect();
        found.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        found.dedup();
        found
    }

    /// SIGKILL to all in it, once. What is being started meanwhile may outlive it where the kernel does not do this itself.
    pub fn kill_once(&self) {
        if let Some(path) = &self.unified {
            // Missing before Linux 5.14.
            let _ = fs::write(path.join("cgroup.kill"), "1");
        }
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a poll interval, inside a wait with a deadline"
    )]
    /// SIGKILL to all in it, until none is left or `patience` is over.
    pub fn kill_all(&self, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        loop {
            self.kill_once();
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let path = self.paths().next().cloned().unwrap_or_default();
                return Err(Error::NotEmpty {
                    path,
                    count: left.len(),
                });
            }
            std::thread::sleep(KILL_POLL);
        }
    }

    /// Removes the empty group and those below it. A group that is gone is fine.
    pub fn remove(&self) -> Result<(), Error> {
        for path in self.paths().flat_map(|path| tree(path)) {
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("removing", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A group and all below it, the lowest first.
fn tree(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found: Vec<PathBuf> = folders.flat_map(|entry| tree(&entry.path())).collect();
    found.push(path.to_owned());
    found
}

/// The processes of a group; 0, one outside of this pid namespace, is left out.
fn processes(path: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| line.trim().parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}

fn parse_oom_kills(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

/// `/proc/self/cgroup` says in which group of each hierarchy we are, `/proc/self/mountinfo` where hierarchies are mounted.
fn parse(cgroup: &str, mountinfo: &str) -> Current {
    let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(parse_mount).collect();
    let mut current = Current::default();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let has = |name: &str| controllers.split(',').any(|found| found == name);
        let v1 = |name: &str| {
            mounts
                .iter()
                .find(|m| m.kind == "cgroup" && m.has(name))
                .and_then(|m| m.locate(path))
        };
        if number == "0" && controllers.is_empty() {
            current.unified = mounts
                .iter()
                .find(|m| m.kind == "cgroup2")
                .and_then(|m| m.locate(path));
        }
        if has("memory") {
            current.memory_v1 = v1("memory");
        }
        if has("cpu") {
            current.cpu_v1 = v1("cpu");
        }
        if has("pids") {
            current.pids_v1 = v1("pids");
        }
    }
    current
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }

    /// Where the group `path` is under this mount; `None` when the mount does not show it.
    fn locate(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(self.root).ok()?;
        let hidden = below
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        (!hidden).then(|| Path::new(self.point).join(below))
    }
}

/// `31 23 0:28 ROOT POINT rw,relatime … - TYPE source OPTIONS`
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let (root, point) = (front.nth(3)?, front.next()?);
    let mut back = back.split(' ');
    let (kind, options) = (back.next()?, back.nth(1)?);
    kind.starts_with("cgroup").then_some(Mount {
        root,
        point,
        kind,
        options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        36 31 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn hierarchies_are_located_like_a_table() {
        let at = |path: &str| Some(PathBuf::from(path));
        let table = [
            (
                "0::/user.slice/a",
                V2,
                Current {
                    unified: at("/sys/fs/cgroup/user.slice/a"),
                    ..Current::default()
                },
            ),
            ("0::/../other", V2, Current::default()),
            ("", "", Current::default()),
            (
                "5:pids:/x\n4:memory:/docker/ab/x\n1:cpu,cpuacct:/\n9:name=systemd:/\n0::/",
                HYBRID,
                Current {
                    unified: at("/sys/fs/cgroup/unified/"),
                    memory_v1: at("/sys/fs/cgroup/memory/x"),
                    cpu_v1: at("/sys/fs/cgroup/cpu,cpuacct/"),
                    pids_v1: at("/sys/fs/cgroup/pids/x"),
                },
            ),
            ("4:memory:/elsewhere", HYBRID, Current::default()),
        ];
        for (cgroup, mountinfo, expected) in table {
            assert_eq!(parse(cgroup, mountinfo), expected, "{cgroup}");
        }
    }

    #[test]
    fn counters_and_weights_read_like_tables() {
        assert_eq!(parse_oom_kills("low 0\noom 3\noom_kill 2\n"), Some(2));
        assert_eq!(
            parse_oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"),
            Some(7)
        );
        assert_eq!(parse_oom_kills("oom 3\n"), None);
        for (cpu, weight, shares) in [
            (0, 1, 2),
            (250, 25, 256),
            (1000, 100, 1024),
            (9_000_000, 10_000, 262_144),
        ] {
            assert_eq!(
                (cpu_weight(MilliCpu(cpu)), cpu_shares(MilliCpu(cpu))),
                (weight, shares),
                "{cpu}"
            );
        }
    }

    #[test]
    fn a_moved_agent_keeps_the_base_it_had() {
        assert_eq!(
            outside_host_group("/a/mainland-host".into()),
            PathBuf::from("/a")
        );
        assert_eq!(outside_host_group("/a/b".into()), PathBuf::from("/a/b"));
    }
}
