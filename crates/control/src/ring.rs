//! The ring of keys that seal secrets, and its rotation.
//!
//! ```text
//! ring [old]
//!   │ recorded, then the file holds both            from here on everything is sealed by the new one
//!   ▼
//! ring [old, new]
//!   │ each envelope wrapped anew, some in a transaction; the authority's too
//!   ▼
//! nothing is wrapped by old ── recorded, then the file holds new alone ──▶ ring [new]
//! ```
//!
//! Whatever is sealed can be opened at every step, and a server that ended at one goes on there when it starts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::problem::Problem;
use api::wire;
use boundary::authority::SealedAuthority;
use boundary::secret::{Binding, Envelope, Error, KeyId, Keyring};
use model::boundary::{Principal, PrincipalName};
use model::ids::ResourceId;
use store::{List, Store};
use tokio::sync::{MutexGuard, Notify};

use crate::auditor::{Chain, Deed};
use crate::draft::Draft;
use crate::problems;
use crate::records::{AUTHORITY, Key, SecretRecord, decode};
use crate::state::Server;
use crate::world::{Stored, World};

/// Between the first two tries to end a rotation that was left half done. Each pause is twice as long as the one before it.
const RETRY_AFTER: Duration = Duration::from_secs(10);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(600);
/// Envelopes wrapped anew in one transaction at most.
const WRAPPED_AT_ONCE: usize = 60;
/// Where all lies in the store that is sealed, but for the authority.
const SEALED: [&str; 2] = ["secret/", "engine-secret/"];

/// The ring and its file.
pub struct Ring {
    path: PathBuf,
    keys: Mutex<Arc<Keyring>>,
    /// One rotates at a time.
    rotating: tokio::sync::Mutex<()>,
    /// The old keys of which the audit log says already that they are forgotten.
    going: Mutex<Vec<KeyId>>,
    /// A rotation was begun, which somebody has to end.
    begun: Notify,
}

impl Ring {
    /// Reads the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            keys: Mutex::new(Arc::new(Keyring::load_or_create(path)?)),
            path: path.to_owned(),
            rotating: tokio::sync::Mutex::default(),
            going: Mutex::default(),
            begun: Notify::new(),
        })
    }

    fn said_to_go(&self) -> Vec<KeyId> {
        let going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        going.clone()
    }

    fn say_to_go(&self, keys: Vec<KeyId>) {
        *self.going.lock().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The keys as they are now. Who seals takes them while it has the turn to change something.
    pub fn keys(&self) -> Arc<Keyring> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.clone()
    }

    /// Whether a rotation was begun and is not at its end.
    fn has_old(&self) -> bool {
        !old_keys(&self.keys()).is_empty()
    }

    /// Writes the file, then uses the keys. Who does has the turn, and shows it: nobody seals by a key that is being forgotten, since whoever seals
    /// has the turn too.
    async fn set(&self, keys: Keyring, _turn: &MutexGuard<'_, Chain>) -> Result<(), Problem> {
        let (keys, path) = (Arc::new(keys), self.path.clone());
        let saved = {
            let keys = keys.clone();
            tokio::task::spawn_blocking(move || keys.save(&path)).await
        };
        let saved = saved.map_err(|panic| Problem::internal(panic.to_string()))?;
        saved.map_err(|error| {
            Problem::unavailable("disk", error.to_string())
                .remedy("see that the disk of the server has room and works, then repeat")
        })?;
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

/// A new key becomes the current one; everything is wrapped by it; the others go. Before that, one that was left half done is ended: a ring has
/// room for few keys.
pub async fn rotate(server: &Server, by: PrincipalName) -> Result<wire::Keyring, Problem> {
    let _alone = server.ring.rotating.lock().await;
    if server.ring.has_old() {
        finish(server, by.clone()).await?;
    }
    {
        let mut keys = (*server.ring.keys()).clone();
        let id = keys.rotate();
        let id = id.map_err(|error| Problem::conflict("ring-full", error.to_string()))?;
        let deed = Deed::new(by.clone(), "keyring.rotate", "keyring");
        server
            .keep(&deed, vec![format!("key {id} becomes the current one")])
            .await?;
        // Nobody seals in between: whoever does has the turn.
        let turn = server.changing.lock().await;
        server.ring.set(keys, &turn).await?;
        server.ring.begun.notify_one();
    }
    finish(server, by).await?;
    status(server).await
}

/// Goes on with whatever rotation is left half done, by an earlier server or by this one, for as long as the server leads. What does not go away
/// by itself, such as a record that can't be read, is told and tried ever more seldom.
pub async fn go_on(server: Arc<Server>) {
    let by = Principal::Administrator {
        name: "server".to_owned(),
    };
    let mut pause = RETRY_AFTER;
    loop {
        if !server.ring.has_old() {
            server.ring.begun.notified().await;
        }
        let ended = {
            let _alone = server.ring.rotating.lock().await;
            match server.ring.has_old() {
                true => finish(&server, by.name()).await,
                false => Ok(()),
            }
        };
        let Err(problem) = ended else {
            pause = RETRY_AFTER;
            continue;
        };
        if server.leadership.is_fenced() {
            return;
        }
        let (title, again_s) = (problem.title, pause.as_secs());
        tracing::warn!(%title, again_s, "the rotation of the key ring can't be ended yet");
        tokio::time::sleep(pause).await;
        pause = longer(pause);
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(RETRY_AFTER_MOST)
}

async fn finish(server: &Server, by: PrincipalName) -> Result<(), Problem> {
    let deed = Deed::new(by.clone(), "keyring.rewrap", "keyring");
    rewrap_authority(server, &deed).await?;
    while rewrap_some(server, &deed).await? > 0 {}
    retire(server, by).await
}

/// Forgets the keys that seal nothing any more, by what the store itself holds: the mirror may be behind it, and what only a forgotten key opens
/// is lost.
async fn retire(server: &Server, by: PrincipalName) -> Result<(), Problem> {
    let keys = server.ring.keys();
    if old_keys(&keys).is_empty() {
        return Ok(());
    }
    // Before anybody has to wait for it: what is not so now is not so in a moment.
    is_all_sealed_by(server, keys.current()).await?;
    // Nobody seals in between: whoever does has the turn.
    let mut chain = server.changing.lock().await;
    let mut keys = (*server.ring.keys()).clone();
    let old = old_keys(&keys);
    is_all_sealed_by(server, keys.current()).await?;
    // Once: that a disk refuses the file is tried again, and nothing new.
    if server.ring.said_to_go() != old {
        let mut draft = Draft::new();
        old.iter()
            .for_each(|id| draft.note(format!("key {id} is forgotten")));
        let deed = Deed::new(by, "keyring.retire", "keyring");
        let kept = server.commit_kept(&mut chain, &deed, draft).await;
        kept.map_err(|error| error.problem())?;
        server.ring.say_to_go(old.clone());
    }
    for id in &old {
        keys.retire(id);
    }
    server.ring.set(keys, &chain).await
}

async fn is_all_sealed_by(server: &Server, key: &KeyId) -> Result<(), Problem> {
    let authority = sealed_authority(server).await?.0.key;
    if authority.key_id == *key && all_sealed_by(&*server.store, key).await? {
        return Ok(());
    }
    let title = "something was sealed by an old key meanwhile";
    Err(Problem::conflict("busy", title).remedy("repeat the command"))
}

/// Whether all secrets in the store are sealed by this key.
///
/// # Errors
///
/// `unreadable-record` where nobody can say by which key one is sealed.
async fn all_sealed_by(store: &dyn Store, key: &KeyId) -> Result<bool, Problem> {
    for prefix in SEALED {
        let mut next = Some(List::prefix(prefix));
        while let Some(list) = next {
            let page = store.list(list).await;
            let page = page.map_err(|error| problems::of_store(&error))?;
            for record in &page.records {
                let read: Result<SecretRecord, _> = decode(&record.key, &record.value);
                let read = read.map_err(|error| {
                    Problem::unavailable("unreadable-record", error.to_string())
                        .remedy("mend or delete that record, then repeat the command")
                })?;
                let envelope = read.envelope.as_ref();
                if envelope.is_some_and(|envelope| envelope.key_id != *key) {
                    return Ok(false);
                }
            }
            next = page.next();
        }
    }
    Ok(true)
}

fn old_keys(keys: &Keyring) -> Vec<KeyId> {
    let ids = keys.ids().filter(|id| *id != keys.current());
    ids.cloned().collect()
}

async fn sealed_authority(server: &Server) -> Result<(SealedAuthority, store::Revision), Problem> {
    let record = server.store.get(AUTHORITY).await;
    let record = record.map_err(|error| problems::of_store(&error))?;
    let record = record.ok_or_else(|| Problem::internal("the authority is not in the store"))?;
    let sealed = decode(AUTHORITY, &record.value);
    let sealed = sealed.map_err(|error| Problem::internal(error.to_string()))?;
    Ok((sealed, record.modified))
}

async fn rewrap_authority(server: &Server, deed: &Deed) -> Result<(), Problem> {
    let (sealed, modified) = sealed_authority(server).await?;
    let keys = server.ring.keys();
    let binding = Binding::Authority {
        cluster: server.authority.cluster().to_owned(),
    };
    let Some(key) = rewrapped(&keys, &binding, &sealed.key)? else {
        return Ok(());
    };
    let sealed = SealedAuthority { key, ..sealed };
    let change = |_: &World| {
        let mut draft = Draft::new();
        draft.replace_record(AUTHORITY, modified, &sealed);
        draft.note("the authority's key");
        Ok((draft, ()))
    };
    server.change(deed, change).await.map(drop)
}

/// Answers how many.
async fn rewrap_some(server: &Server, deed: &Deed) -> Result<usize, Problem> {
    let change = |world: &World| {
        let keys = server.ring.keys();
        let (mut all, mut count) = (Draft::new(), 0);
        for (key, id, stored) in envelopes(world) {
            let Some(envelope) = &stored.envelope else {
                continue;
            };
            if envelope.key_id == *keys.current() {
                continue;
            }
            let binding = Binding::Secret {
                id: id.clone(),
                version: stored.version,
            };
            let envelope = rewrapped(&keys, &binding, envelope)?;
            let record = SecretRecord {
                envelope,
                ..stored.value.clone()
            };
            let mut draft = Draft::new();
            draft.put(key, Some(stored), &record);
            if count == WRAPPED_AT_ONCE || all.join(draft).is_err() {
                break;
            }
            count += 1;
        }
        all.note(format!("{count} secrets"));
        Ok((all, count))
    };
    server.change(deed, change).await.map(|(count, _)| count)
}

/// `None`: the current key wraps it already.
fn rewrapped(
    keys: &Keyring,
    binding: &Binding,
    envelope: &Envelope,
) -> Result<Option<Envelope>, Problem> {
    keys.rewrap(binding, envelope).map_err(|error| {
        Problem::internal(error.to_string()).remedy("restore the server's `keyring` file")
    })
}

/// All that is sealed, with where it lies. What other room than secrets' there is stays what it is.
fn envelopes(world: &World) -> impl Iterator<Item = (Key, &ResourceId, &Stored<SecretRecord>)> {
    let secrets = world.secrets.iter();
    let secrets = secrets.map(|(id, stored)| (Key::Secret(id.clone()), id, stored));
    let engines = world.engine_secrets.iter();
    let engines = engines.map(|(id, stored)| (Key::EngineSecret(id.clone()), id, stored));
    secrets.chain(engines)
}

fn sealed_by(world: &World, id: &KeyId) -> usize {
    let sealed = envelopes(world).filter_map(|(_, _, stored)| stored.envelope.as_ref());
    sealed.filter(|envelope| envelope.key_id == *id).count()
}

/// Each key, and how much it seals.
pub async fn status(server: &Server) -> Result<wire::Keyring, Problem> {
    let (authority, _) = sealed_authority(server).await?;
    let keys = server.ring.keys();
    let view = |world: &World, id: &KeyId| wire::RingKey {
        id: id.to_string(),
        current: id == keys.current(),
        seals: sealed_by(world, id) + usize::from(authority.key.key_id == *id),
    };
    Ok(wire::Keyring {
        keys: server.look(|world| keys.ids().map(|id| view(world, id)).collect()),
    })
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;
    use crate::server::tests::begun_in;

    /// Who seals has the turn: while somebody has it, no key comes and none goes, in the file or in memory.
    #[tokio::test]
    async fn the_file_is_written_by_who_has_the_turn() {
        let directory = tempfile::tempdir().unwrap();
        let server = begun_in(directory.path()).await;
        let file = || std::fs::read(directory.path().join("keyring")).unwrap();
        let before = (file(), server.ring.keys().ids().count());
        let kept = async || {
            let audit = store::list_all(&*server.store, "audit/").await;
            audit.unwrap().0.len()
        };
        let nothing = kept().await;
        // The turn is given in the order of asking: the record of the new key has it next, then this test, then the file.
        let first = server.changing.lock().await;
        let rotating = tokio::spawn({
            let server = server.clone();
            async move { rotate(&server, PrincipalName("admin:owner".to_owned())).await }
        });
        tokio::task::yield_now().await;
        let mut next = std::pin::pin!(server.changing.lock());
        let asked = std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context)));
        assert!(asked.await.is_pending());
        drop(first);
        let _turn = next.await;
        assert!(kept().await > nothing, "the rotation has begun");
        // Had it not to wait, the file would be there by now.
        let looks = async {
            loop {
                assert_eq!((file(), server.ring.keys().ids().count()), before);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(300), looks).await;
        assert!(!rotating.is_finished());
        rotating.abort();
    }

    #[test]
    fn what_cannot_be_ended_is_tried_ever_more_seldom() {
        let pauses = std::iter::successors(Some(RETRY_AFTER), |pause| Some(longer(*pause)));
        let seconds: Vec<_> = pauses.take(9).map(|pause| pause.as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        // A day.
        assert!(24 * 3600 / RETRY_AFTER_MOST.as_secs() < 150);
    }
}
