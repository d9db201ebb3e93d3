//! Keeps the world in step with the store.

use std::sync::Arc;
use std::time::Duration;

use model::control::Reason;
use model::signals::Level;
use store::{Change, Error, List, Record, Revision, Store, Watcher};

use crate::events::About;
use crate::records::{KEYS, LEADER, LeaderRecord, OF_THE_WORLD, Unreadable, decode};
use crate::state::Server;
use crate::world::World;

/// Between two tries while the store does not answer.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// How often reading all of the world is begun anew while its past is forgotten faster than it is read.
const LOAD_ATTEMPTS: usize = 5;

/// Fills the world once; what can't be read stops the start, since deciding on half a world would undo the other half.
pub async fn load(store: &dyn Store) -> Result<World, LoadError> {
    let (records, revision) = all(store).await?;
    Ok(World::load(&records, revision)?)
}

/// All records of the world as of one revision. The keys of projects, which may be many, are not read.
async fn all(store: &dyn Store) -> Result<(Vec<Record>, Revision), Error> {
    let mut compacted = None;
    for _ in 0..LOAD_ATTEMPTS {
        let revision = store.revision().await?;
        match at(store, revision).await {
            Err(error @ Error::Compacted { .. }) => compacted = Some(error),
            records => return Ok((records?, revision)),
        }
    }
    Err(compacted.expect("every attempt was answered with compacted"))
}

async fn at(store: &dyn Store, revision: Revision) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    for prefix in OF_THE_WORLD {
        let mut next = Some(List::prefix(prefix).at(revision));
        while let Some(list) = next {
            let mut page = store.list(list).await?;
            records.append(&mut page.records);
            next = page.next();
        }
    }
    Ok(records)
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{0}")]
    Later(Box<Later>),
}

/// What a later version wrote, and this one does not know.
#[derive(Debug, thiserror::Error)]
#[error(
    "{unreadable}: {wrote} led here last, and this is version {ours}, which does not know all that it wrote\n  remedy: start {wrote} again, or a newer one; nothing was changed by this try"
)]
pub struct Later {
    pub unreadable: Unreadable,
    /// The version of the last leader, as it said itself: `version 1.4.0`.
    pub wrote: String,
    pub ours: &'static str,
}

/// Whether all of the world can be read, before anything is written. What can't be is said with the version that led last, where that is another.
///
/// # Errors
///
/// It can't.
pub async fn check(store: &dyn Store, ours: &'static str) -> Result<(), LoadError> {
    let unreadable = match load(store).await {
        Err(LoadError::Unreadable(unreadable)) => unreadable,
        other => return other.map(drop),
    };
    let led = store.get(LEADER).await?;
    let led = led.and_then(|record| decode::<LeaderRecord>(LEADER, &record.value).ok());
    let wrote = match led.map(|led| led.version) {
        Some(Some(version)) if version == ours => return Err(unreadable.into()),
        Some(Some(version)) => format!("version {version}"),
        Some(None) | None => "another version".to_owned(),
    };
    Err(LoadError::Later(Box::new(Later {
        unreadable,
        wrote,
        ours,
    })))
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
        if is_of_keys(&change) {
            // Nobody decides by them: the world moves on, and nobody is woken.
            server.with(|shared| shared.world.pass(revision));
            server.mirrored.send_replace(revision);
            continue;
        }
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

fn is_of_keys(change: &Change) -> bool {
    let mut events = change.events.iter();
    events.all(|event| event.key().starts_with(KEYS))
}

async fn reload(server: &Server) -> Result<(), LoadError> {
    let world = load(&*server.store).await?;
    let revision = world.revision;
    server.with(|shared| shared.world = world);
    server.mirrored.send_replace(revision);
    server.changed.notify_one();
    Ok(())
}
