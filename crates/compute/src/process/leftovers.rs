//! What a run left behind whose shim did not live to end it: nothing of it may run on beside what comes after it, or write to its volumes.
//!
//! Found by the cgroup, where there is one, and by the process group and session of workload and shim. Without a cgroup, what made itself a
//! session of its own is not found.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use model::compute::ExitHow;
use rustix::process::{Pid, Signal, kill_process};

use super::conversation::is_locked;
use crate::instance::{self, Record};
use crate::runtime::Error;

/// For what was killed to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Ends what is left of the last run in a directory without a shim. One that recorded how its workload ended has ended the rest before.
pub(super) fn end_in(directory: &Path) -> Result<(), Error> {
    let settled =
        instance::read_exit(directory).is_some_and(|exit| !matches!(exit.how, ExitHow::Unknown));
    if settled || is_locked(directory).map_err(Error::io("looking at", directory))? {
        return Ok(());
    }
    instance::read_record(directory).map_or(Ok(()), |record| end(directory, &record))
}

/// Returns when nothing lives of the run whose record this is; its shim is dead.
pub(super) fn end(directory: &Path, record: &Record) -> Result<(), Error> {
    if let Some(group) = &record.cgroup {
        group.kill_all(PATIENCE)?;
        group.remove()?;
    }
    kill_followers(record).map_err(Error::io("ending what is left in", directory))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a poll interval, inside a wait with a deadline"
)]
fn kill_followers(record: &Record) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Again and again: one may be starting another.
        let left = followers(record);
        if left.is_empty() {
            return Ok(());
        }
        for pid in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        if Instant::now() >= deadline {
            let count = left.len();
            let told = format!("{count} processes of it are still there after SIGKILL");
            return Err(io::Error::new(io::ErrorKind::TimedOut, told));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The workload leads a group, the shim the session around it.
fn followers(record: &Record) -> Vec<Pid> {
    let mut left = record.workload.followers();
    left.extend(record.shim.followers());
    left
}
