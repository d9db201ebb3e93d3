//! Whether the database serves, and if not, why.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::watch;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Starting(String),
    Serving,
}

#[derive(Debug)]
pub struct Health {
    phase: watch::Sender<Phase>,
    /// Of the server; 0 before it runs.
    server: AtomicU32,
    recovers: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Starting("starting".to_owned())),
            server: AtomicU32::new(0),
            recovers: AtomicBool::new(false),
        }
    }
}

impl Health {
    pub fn starting(&self, why: &str) {
        self.set(Phase::Starting(why.to_owned()));
    }

    pub fn serving(&self) {
        self.set(Phase::Serving);
    }

    fn set(&self, new: Phase) {
        self.phase.send_if_modified(|phase| {
            let changed = *phase != new;
            *phase = new;
            changed
        });
    }

    pub fn server_is(&self, pid: u32) {
        self.server.store(pid, Ordering::Relaxed);
    }

    /// The server before did not end cleanly. Its title alone does not tell: any start reads the log.
    pub fn recovers(&self) {
        self.recovers.store(true, Ordering::Relaxed);
        self.starting("recovering: the server before did not end cleanly");
    }

    /// `None`: it serves.
    pub fn reason(&self) -> Option<String> {
        let phase = self.phase.borrow().clone();
        let Phase::Starting(why) = phase else {
            return None;
        };
        let recovers = self.recovers.load(Ordering::Relaxed);
        let doing = recovers.then(|| recovery_of(self.server.load(Ordering::Relaxed)));
        let doing = doing.flatten();
        Some(doing.map_or(why, |doing| format!("recovering: {doing}")))
    }

    /// Waits until it serves.
    pub async fn served(&self) {
        let mut phase = self.phase.subscribe();
        // The sender is ours.
        let _ = phase.wait_for(|phase| *phase == Phase::Serving).await;
    }
}

/// What the process of a server that recovers says of itself, by its title: `startup recovering 000000010000000000000003`.
fn recovery_of(server: u32) -> Option<String> {
    let children = format!("/proc/{server}/task/{server}/children");
    let children = std::fs::read_to_string(children).ok()?;
    let titles = children
        .split_ascii_whitespace()
        .filter_map(|child| std::fs::read_to_string(format!("/proc/{child}/cmdline")).ok());
    titles.filter_map(|title| recovery_in(&title)).next()
}

fn recovery_in(title: &str) -> Option<String> {
    let (_, doing) = title.split_once(": startup")?;
    let doing = doing.trim_matches(['\0', ' ']);
    let segment = doing.strip_prefix("recovering ");
    Some(segment.map_or_else(
        || "the server before did not end cleanly".to_owned(),
        |segment| format!("redo of {segment}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_says_what_is_recovered() {
        for (title, expected) in [
            (
                "postgres: startup recovering 000000010000000000000003\0\0",
                Some("redo of 000000010000000000000003"),
            ),
            (
                "postgres: startup   \0",
                Some("the server before did not end cleanly"),
            ),
            ("postgres: checkpointer \0", None),
        ] {
            assert_eq!(recovery_in(title).as_deref(), expected, "{title}");
        }
    }

    #[test]
    fn a_reason_is_there_until_it_serves() {
        let health = Health::default();
        assert_eq!(health.reason().as_deref(), Some("starting"));
        health.starting("no");
        assert_eq!(health.reason().as_deref(), Some("no"));
        health.serving();
        assert_eq!(health.reason(), None);
    }
}
