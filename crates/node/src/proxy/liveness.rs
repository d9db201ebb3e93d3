//! Whether a proxy that is there also does anything. A process that is stopped (SIGSTOP), or hangs, keeps its sockets, and who dials them waits
//! for ever: so it says each second that it lives, and one that falls silent is killed, for the next to be started.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::net::UnixStream;

/// Between looks. Twice as often as the proxy says that it lives.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks in silence, at a process that the kernel calls stopped: 2 s.
const STOPPED_LOOKS: u32 = 4;
/// At one that runs and says nothing any more: 5 s, for a machine that is overloaded is no reason to cut off requests.
const SILENT_LOOKS: u32 = 10;
/// At one that has said nothing at all since the agent connected: 10 s. It may be reading a large snapshot.
const MUTE_LOOKS: u32 = 20;

/// What has been heard of a proxy. Time is counted in looks, not by a clock: an agent that was stopped itself has not looked.
pub struct Liveness {
    pid: Option<Pid>,
    /// Looks since it was last heard.
    silent: u32,
    /// It has said something, and that it lives. One of an older version never says the latter.
    has_spoken: bool,
    says_that_it_lives: bool,
}

impl Liveness {
    pub fn of(stream: &UnixStream) -> Self {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        Self {
            pid: pid.and_then(Pid::from_raw),
            silent: 0,
            has_spoken: false,
            says_that_it_lives: false,
        }
    }

    pub fn heard(&mut self, says_that_it_lives: bool) {
        self.silent = 0;
        self.has_spoken = true;
        self.says_that_it_lives |= says_that_it_lives;
    }

    /// One look. `Some`: it is not alive any more, and why one thinks so.
    pub fn look(&mut self) -> Option<String> {
        self.silent += 1;
        let pid = self.pid?;
        let is_stopped = self.silent >= STOPPED_LOOKS && is_stopped(pid);
        let why = judge(
            self.silent,
            is_stopped,
            self.has_spoken,
            self.says_that_it_lives,
        )?;
        Some(format!(
            "the proxy (process {}) {why}",
            pid.as_raw_nonzero()
        ))
    }

    /// Ends it; its sockets close with it.
    pub fn kill(&self) {
        let fd = self
            .pid
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(fd) = fd {
            let _ = rustix::process::pidfd_send_signal(fd, Signal::KILL);
        }
    }
}

fn judge(
    silent: u32,
    is_stopped: bool,
    has_spoken: bool,
    says_that_it_lives: bool,
) -> Option<&'static str> {
    match silent {
        STOPPED_LOOKS.. if is_stopped => Some("was stopped by a signal"),
        SILENT_LOOKS.. if says_that_it_lives => Some("has said nothing for 5 s"),
        MUTE_LOOKS.. if !has_spoken => Some("has not answered for 10 s"),
        _ => None,
    }
}

/// As the kernel says: `T` in /proc/PID/stat.
fn is_stopped(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_stopped_is_judged_sooner_than_who_is_slow() {
        let table = [
            (3, true, true, true, None),
            (4, true, true, true, Some("was stopped")),
            (4, true, false, false, Some("was stopped")),
            (4, false, true, true, None),
            (10, false, true, true, Some("nothing for 5 s")),
            (10, false, false, false, None),
            (20, false, false, false, Some("not answered for 10 s")),
            (2000, false, true, false, None),
        ];
        for (silent, is_stopped, has_spoken, lives, expected) in table {
            let found = judge(silent, is_stopped, has_spoken, lives);
            let fits = match (found, expected) {
                (Some(found), Some(expected)) => found.contains(expected),
                (None, None) => true,
                _ => false,
            };
            assert!(fits, "{silent} {is_stopped}: {found:?}");
        }
    }
}
