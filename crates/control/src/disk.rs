//! How full the disk is that the server writes to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::state::Server;

/// Between looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks now and then, for as long as the server runs. A disk that does not answer holds up nothing else.
pub async fn watch(server: Arc<Server>, directory: PathBuf) {
    loop {
        let place = directory.clone();
        let looking = tokio::task::spawn_blocking(move || api::disk::look(&place));
        let disk = looking.await.ok().and_then(Result::ok);
        server.with(|shared| shared.disk = disk);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
