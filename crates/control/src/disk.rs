//! How full the disk is that the server writes to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::machine::{Counted, Disk};

use crate::state::Server;

/// Between looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks now and then, for as long as the server runs. A disk that does not answer holds up nothing else.
pub async fn watch(server: Arc<Server>, directory: PathBuf) {
    loop {
        let place = directory.clone();
        let found = tokio::task::spawn_blocking(move || rustix::fs::statvfs(place)).await;
        let disk = found.ok().and_then(Result::ok).map(|found| {
            Disk::from(Counted {
                f_frsize: found.f_frsize,
                f_blocks: found.f_blocks,
                f_bfree: found.f_bfree,
                f_bavail: found.f_bavail,
                f_files: found.f_files,
                f_ffree: found.f_ffree,
                f_favail: found.f_favail,
            })
        });
        server.with(|shared| shared.disk = disk);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
