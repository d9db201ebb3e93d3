//! One `up` for each data directory.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;

use super::layout::Layout;
use super::process::Identity;

const LOCK_MODE: u32 = 0o600;

/// The lock file says who holds it, for the one who can't have it. Whoever may open it may hold it: services pass through its folder, so it is closed to
/// them, also where it was made before.
pub fn take(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(LOCK_MODE)
        .open(&path)
        .and_then(|file| {
            file.set_permissions(Permissions::from_mode(LOCK_MODE))?;
            Ok(file)
        })
        .with_context(|| format!("{} can't be opened", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let identity = serde_json::to_vec(&Identity::of(std::process::id()))?;
            file.set_len(0)
                .and_then(|()| (&file).write_all(&identity))
                .with_context(|| format!("{} can't be written", path.display()))?;
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = layout.supervisor().map(|id| id.pid);
            let who = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
            bail!(
                "another `mainland up`{who} runs with the data directory {}\n  remedy: `mainland apply` changes what it runs, `mainland down` ends it, --data-dir starts one apart",
                layout.data.display()
            )
        }
        Err(error) => Err(error).with_context(|| format!("{} can't be locked", path.display())),
    }
}
