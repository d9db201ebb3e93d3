//! Keeps the world in step with the store.

use std::sync::Arc;
use std::time::Duration;

use model::control::Reason;
use model::signals::Level;
use store::{Error, Watcher, list_all};

use crate::events::About;
use crate::records::Unreadable;
use crate::state::Server;
use crate::world::World;

/// Between two tries while the store does not answer.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Fills the world once; what can't be read stops the start, since deciding on half a world would undo the other half.
pub async fn load(store: &dyn store::Store) -> Result<World, LoadError> {
    let (records, revision) = list_all(store, "").await?;
    Ok(World::load(&records, revision)?)
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// Runs until dropped.
pub async fn run(server: Arc<Server>) {
    loop {
        let after = server.look(|world| world.revision);
        let failed = match server.store.watch("", after).await {
            Ok(watcher) => follow(&server, watcher).await,
            Err(error) => error,
        };
        let failed = match failed {
            Error::Compacted { .. } => reload(&server).await.err().map(|error| error.to_string()),
            other => Some(other.to_string()),
        };
        if let Some(error) = failed {
            tracing::warn!(%error, "the store can't be followed; trying again");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Takes change after change; answers why it ended.
async fn follow(server: &Server, mut watcher: Watcher) -> Error {
    loop {
        let change = match watcher.next().await {
            Ok(change) => change,
            Err(error) => return error,
        };
        let revision = change.revision;
        let unreadable = server.with(|shared| shared.world.apply(&change));
        for error in unreadable {
            server.say(
                Level::Error,
                About::server(),
                Reason::new("unreadable-record", error.to_string()),
            );
        }
        server.mirrored.send_replace(revision);
        server.changed.notify_one();
    }
}

async fn reload(server: &Server) -> Result<(), LoadError> {
    let world = load(&*server.store).await?;
    let revision = world.revision;
    server.with(|shared| shared.world = world);
    server.mirrored.send_replace(revision);
    server.changed.notify_one();
    Ok(())
}
