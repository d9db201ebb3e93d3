//! Recognising a process again: its pid alone may by now be another's.

use std::fs;
use std::io::{self, Read};
use std::sync::OnceLock;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// One life of one process: the same in all three is the same process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub boot_id: String,
    pub pid: u32,
    /// In clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// The process that has the pid now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = read_stat(pid)?;
        Ok(Self {
            boot_id: boot_id()?.to_owned(),
            pid,
            start_time: stat.start_time,
        })
    }

    /// Whether this very process still runs. One that has ended and was not yet reaped does not.
    pub fn is_alive(&self) -> bool {
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot_id);
        same_boot
            && read_stat(self.pid)
                .is_ok_and(|stat| stat.start_time == self.start_time && !stat.ended)
    }

    /// Whether a signal (SIGSTOP) keeps it from running: it is there, and does nothing.
    pub fn is_stopped(&self) -> bool {
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot_id);
        same_boot
            && read_stat(self.pid)
                .is_ok_and(|stat| stat.start_time == self.start_time && stat.state == 'T')
    }

    /// What lives of the process group and of the session that this process leads or led; it may itself be long gone.
    ///
    /// The kernel gives no number away that a group or session still has, so one that a younger process has now is no longer ours.
    pub fn followers(&self) -> Vec<Pid> {
        if !self.has_its_number() {
            return Vec::new();
        }
        let follows = |pid: &Pid| look_at(*pid).is_some_and(|stat| self.leads(&stat));
        all_processes().filter(follows).collect()
    }

    /// Whether a process is one of the followers, where the number is still its own.
    pub(crate) fn leads(&self, stat: &Stat) -> bool {
        let belongs = stat.group == self.pid || stat.session == self.pid;
        belongs && !stat.ended && stat.start_time >= self.start_time
    }

    /// Whether nobody else has its number.
    pub(crate) fn has_its_number(&self) -> bool {
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot_id);
        let is_anothers = read_stat(self.pid).is_ok_and(|stat| stat.start_time != self.start_time);
        same_boot && !is_anothers
    }
}

/// Processes that are named, of a number that may be large.
const NAMED_MOST: usize = 5;

/// Processes that outlived SIGKILL, in words: `123 (python3), held by the kernel`.
pub(crate) fn describe_all(pids: &[Pid]) -> Vec<String> {
    let mut numbers: Vec<u32> = pids
        .iter()
        .map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let more = numbers.len().saturating_sub(NAMED_MOST);
    let named = numbers.iter().take(NAMED_MOST).map(|pid| describe(*pid));
    let rest = (more > 0).then(|| format!("{more} more"));
    named.chain(rest).collect()
}

/// The names of those that live, each once and some of them. What only waits to be reaped is none.
pub(crate) fn names(pids: &[Pid]) -> Vec<String> {
    let living = pids.iter().filter_map(|pid| {
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        let lives = read_stat(pid).is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'));
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        lives.then(|| name.trim_end().to_owned())
    });
    let mut names: Vec<String> = living.collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(NAMED_MOST);
    names
}

fn describe(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let name = read("comm");
    let is_frozen = read("cgroup").lines().any(|line| {
        line.split_once(":freezer:")
            .is_some_and(|(_, group)| group != "/")
    });
    let why = match read_stat(pid) {
        Ok(stat) if stat.state == 'D' && is_frozen => "in a frozen cgroup",
        Ok(stat) if stat.state == 'D' => "waiting in the kernel, for a disk most often",
        Ok(stat) if stat.ended => "ended, and not yet taken note of by its parent",
        Ok(_) => "held by the kernel",
        Err(_) => "gone by now",
    };
    format!("pid {pid} ({}): {why}", name.trim())
}

/// All that are in `/proc`.
pub(crate) fn all_processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw)
}

/// Differs after each start of the machine.
pub fn boot_id() -> io::Result<&'static str> {
    // No process outlives a start.
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known);
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()))
}

/// What is known of a process at a glance.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    start_time: u64,
    state: char,
    ended: bool,
    group: u32,
    session: u32,
}

/// `None`: it is gone.
pub(crate) fn look_at(pid: Pid) -> Option<Stat> {
    read_stat(pid.as_raw_nonzero().get().unsigned_abs()).ok()
}

/// In one read: of all processes of a machine it is many.
fn read_stat(pid: u32) -> io::Result<Stat> {
    let mut bytes = [0; 1024];
    let count = fs::File::open(format!("/proc/{pid}/stat"))?.read(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes[..count]);
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text.into_owned()))
}

/// The command's name, in parentheses, may hold anything: fields are counted from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    // `state` is field 3, then come the parent, group and session.
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // After field 6, field 22 is the 16th.
    let start_time = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        start_time,
        state: state.chars().next()?,
        ended: matches!(state, "Z" | "X" | "x"),
        group,
        session,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_any_name() {
        let line = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9 9")
        };
        let table = [
            ("sh", "S", false),
            ("a) Z 1 (b", "R", false),
            ("sh", "Z", true),
        ];
        for (name, state, ended) in table {
            let expected = Stat {
                start_time: 4242,
                state: state.chars().next().unwrap(),
                ended,
                group: 8,
                session: 9,
            };
            assert_eq!(parse_stat(&line(name, state)), Some(expected), "{name}");
        }
    }

    #[test]
    fn this_process_is_itself_and_a_later_one_with_its_pid_is_not() {
        let this = ProcessIdentity::of(std::process::id()).expect("own stat");
        assert!(this.is_alive());
        let later = ProcessIdentity {
            start_time: this.start_time + 1,
            ..this.clone()
        };
        assert!(!later.is_alive());
        let other_boot = ProcessIdentity {
            boot_id: "x".into(),
            ..this
        };
        assert!(!other_boot.is_alive());
    }

    #[test]
    fn followers_are_known_when_their_leader_is_gone() {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", "sleep 1000 & read end"])
            .stdin(std::process::Stdio::piped())
            .process_group(0);
        let mut leader = command.spawn().expect("a shell");
        let led = ProcessIdentity::of(leader.id()).expect("its stat");
        while led.followers().len() < 2 {
            std::thread::yield_now();
        }
        let with = |change: fn(&mut ProcessIdentity)| {
            let mut other = led.clone();
            change(&mut other);
            other.followers().len()
        };
        assert_eq!(with(|other| other.start_time -= 1), 0, "anothers number");
        assert_eq!(with(|other| other.boot_id.push('x')), 0, "another boot");

        leader.kill().expect("it is killed");
        leader.wait().expect("it ends");
        let left = led.followers();
        assert_eq!(left.len(), 1);
        assert_eq!(with(|other| other.start_time += 1_000_000), 0, "younger");
        rustix::process::kill_process(left[0], rustix::process::Signal::KILL).expect("killed");
        while !led.followers().is_empty() {
            std::thread::yield_now();
        }
    }
}
