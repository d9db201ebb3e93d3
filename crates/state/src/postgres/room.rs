//! Whether the disk of a database has room enough to start on: PostgreSQL ends where it can't write its log, and does so at each start until it can.

use std::io;
use std::path::Path;
use std::time::Duration;

use model::units::Bytes;

/// Two segments of its log.
const ENOUGH: Bytes = Bytes::mebibytes(32);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Then it is tried all the same. It has run long enough by then for its node not to wait long before the next start.
const PATIENCE: Duration = Duration::from_secs(90);

/// What is left for who is not root, where that may be too little.
pub fn lacking(volume: &Path) -> Option<Bytes> {
    left(volume).ok().filter(|left| *left < ENOUGH)
}

fn left(volume: &Path) -> io::Result<Bytes> {
    let found = rustix::fs::statvfs(volume)?;
    Ok(Bytes(found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Waits until somebody made room, for as long as waiting makes sense.
pub async fn made(volume: &Path) {
    let waiting = async {
        while lacking(volume).is_some() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, waiting).await;
}
