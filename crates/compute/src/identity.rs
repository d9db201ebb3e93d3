//! Recognising a process again: its pid alone may by now be another's.

use std::fs;
use std::io;

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
            boot_id: boot_id()?,
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
}

/// Differs after each start of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    start_time: u64,
    ended: bool,
}

fn read_stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
}

/// The command's name, in parentheses, may hold anything: fields are counted from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // `state` is field 3; after it, field 22 is the 19th.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat {
        start_time,
        ended: matches!(state, "Z" | "X" | "x"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_any_name() {
        let line = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9 9")
        };
        let table = [
            ("sh", "S", false),
            ("a) Z 1 (b", "R", false),
            ("sh", "Z", true),
        ];
        for (name, state, ended) in table {
            let expected = Stat {
                start_time: 4242,
                ended,
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
}
