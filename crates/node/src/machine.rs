//! What this machine has, looked at again and again on threads that may wait for a disk: told with each heartbeat.

use std::sync::Arc;
use std::time::Duration;

use model::machine::{DISK_FILLING, DISK_FULL, Disk, Fill, Programs};
use model::signals::Level;

use crate::agent::Agent;
use crate::layout::Layout;
use crate::volumes;

/// Between looks at the disk.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks at the disk for one at the programs, which takes longer: a minute.
const LOOKS_FOR_PROGRAMS: u32 = 12;
/// At the start nobody waits longer for a disk.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// Percent that a disk must fall below a mark, until it is told anew that it passes it.
const FALLS_BY: u64 = 3;

/// As it was last seen; `None`: it could not be looked at.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub disk: Option<Disk>,
    pub programs: Option<Programs>,
}

impl Machine {
    pub async fn look(layout: &Layout, programs: fn() -> Programs) -> Self {
        let directory = layout.root();
        let looking = blocking(move || Self {
            disk: api::disk::look(&directory).ok(),
            programs: Some(programs()),
        });
        let found = tokio::time::timeout(LOOK_PATIENCE, looking).await;
        found.ok().flatten().unwrap_or_default()
    }
}

/// For as long as the agent lives. A disk that does not answer is waited for; what was seen last is told meanwhile.
pub async fn watch(agent: Arc<Agent>) {
    let mut said = Fill::Well;
    for look in 1_u32.. {
        let directory = agent.layout.root();
        let looking = blocking(move || api::disk::look(&directory).ok());
        let disk = looking.await.flatten();
        agent.with(|core| core.machine.disk = disk);
        if let Some(disk) = disk {
            said = tell(&agent, disk, said);
        }
        if look % LOOKS_FOR_PROGRAMS == 0 {
            let programs = blocking(agent.programs).await;
            agent.with(|core| core.machine.programs = programs.or(core.machine.programs.take()));
        }
        volumes::look_again(&agent).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Tells as an event that the disk has passed a mark. Answers what is told by now.
fn tell(agent: &Agent, disk: Disk, said: Fill) -> Fill {
    let (fill, is_news) = next(disk, said);
    let whose = format!("node {}", agent.config.name);
    if is_news && let Some(reason) = disk.trouble(&whose) {
        let level = match fill {
            Fill::Full => Level::Error,
            Fill::Well | Fill::Filling => Level::Warning,
        };
        agent.with(|core| agent.say(core, None, level, reason));
    }
    fill
}

/// How full a disk counts as, and whether that is to be told. What is about a mark is told once.
fn next(disk: Disk, said: Fill) -> (Fill, bool) {
    let fill = disk.fill();
    let mark = match said {
        Fill::Well => 0,
        Fill::Filling => DISK_FILLING,
        Fill::Full => DISK_FULL,
    };
    let used = disk.used_percent().max(disk.files_percent());
    match fill > said {
        true => (fill, true),
        false if used + FALLS_BY <= mark => (fill, false),
        false => (said, false),
    }
}

/// `None`: it panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

#[cfg(test)]
mod tests {
    use model::units::Bytes;

    use super::*;

    #[test]
    fn a_disk_about_a_mark_is_told_once() {
        let mut said = Fill::Well;
        let mut told = Vec::new();
        for percent in [
            50, 79, 80, 79, 80, 81, 94, 95, 94, 96, 91, 95, 79, 78, 76, 80,
        ] {
            let disk = Disk {
                size: Bytes(100),
                free: Bytes(100 - percent),
                files: 0,
                files_free: 0,
            };
            let (fill, is_news) = next(disk, said);
            said = fill;
            if is_news {
                told.push((percent, fill));
            }
        }
        assert_eq!(
            told,
            [
                (80, Fill::Filling),
                (95, Fill::Full),
                (95, Fill::Full),
                (80, Fill::Filling)
            ]
        );
    }
}
