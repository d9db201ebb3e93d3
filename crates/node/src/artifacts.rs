//! Artifacts on this node: fetched in chunks, gone on with where a connection broke, verified, collected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use api::client::Client;
use compute::artifact::store::{ArtifactStore, Progress};
use http_body_util::BodyExt;
use model::compute::ArtifactRef;
use model::ids::Digest;

use crate::pause::Pause;

/// A server that sends nothing for this long is given up, and asked again.
const SILENCE: Duration = Duration::from_secs(10);
/// Tries without a byte of progress before the instance is told that it can't be prepared.
const TRIES: u32 = 4;
const CHUNK_BYTES: usize = 1 << 20;
/// Uploads that nobody goes on with.
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("artifact {digest} can't be fetched: {source}")]
    Fetch {
        digest: Digest,
        source: api::client::Error,
    },
    #[error("artifact {digest} can't be fetched: {cause}")]
    Broken { digest: Digest, cause: String },
    #[error("{0}")]
    Store(#[from] compute::artifact::Error),
}

/// Each artifact is fetched by one instance at a time: the others find it here.
#[derive(Default)]
pub struct Turns {
    taken: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    fn of(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = taken.get(&digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        taken.insert(digest, Arc::downgrade(&turn));
        turn
    }
}

/// Returns when the artifact is here and verified.
pub async fn fetch(
    client: &Client,
    store: &Arc<ArtifactStore>,
    turns: &Turns,
    artifact: &ArtifactRef,
) -> Result<(), Error> {
    let turn = turns.of(artifact.digest);
    let _turn = turn.lock().await;
    let mut pause = Pause::of_connection();
    let mut tries = 0;
    loop {
        let before = received(store, artifact).await?;
        let Some(before) = before else { return Ok(()) };
        match fetch_rest(client, store, artifact, before).await {
            Ok(()) => return Ok(()),
            Err(Error::Store(error)) => return Err(Error::Store(error)),
            Err(error) => {
                let progress = received(store, artifact)
                    .await?
                    .is_none_or(|now| now > before);
                tries = if progress { 0 } else { tries + 1 };
                if tries == TRIES {
                    return Err(error);
                }
            }
        }
        pause.wait().await;
    }
}

/// How much of it is here; `None`: all.
async fn received(
    store: &Arc<ArtifactStore>,
    artifact: &ArtifactRef,
) -> Result<Option<u64>, Error> {
    let (digest, size) = (artifact.digest, artifact.size);
    let progress = blocking(store, move |store| store.begin(digest, size)).await?;
    Ok(match progress {
        Progress::Complete => None,
        Progress::Partial { received } => Some(received),
    })
}

async fn fetch_rest(
    client: &Client,
    store: &Arc<ArtifactStore>,
    artifact: &ArtifactRef,
    offset: u64,
) -> Result<(), Error> {
    let digest = artifact.digest;
    let mut offset = offset;
    if offset < artifact.size.0 {
        let answer = client.artifact(&digest, offset).await;
        let mut body = answer
            .map_err(|source| Error::Fetch { digest, source })?
            .into_body();
        let mut chunk = Vec::new();
        loop {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await;
            let broken = |cause: String| Error::Broken { digest, cause };
            let frame = frame.map_err(|_| broken("the server went silent".to_owned()))?;
            let ended = frame.is_none();
            if let Some(frame) = frame {
                let frame = frame.map_err(|error| broken(error.to_string()))?;
                chunk.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            }
            if chunk.len() >= CHUNK_BYTES || (ended && !chunk.is_empty()) {
                let bytes = std::mem::take(&mut chunk);
                offset = blocking(store, move |store| store.append(digest, offset, &bytes)).await?;
            }
            if ended {
                break;
            }
        }
    }
    if offset < artifact.size.0 {
        let cause = format!("{offset} of {} bytes came", artifact.size.0);
        return Err(Error::Broken { digest, cause });
    }
    // Wrong bytes are discarded there, and all of them are fetched again.
    Ok(blocking(store, move |store| store.commit(digest)).await?)
}

/// Removes what nothing uses. An artifact is spared until it was unused in two rounds, so that one being fetched for a new release stays.
pub fn collect(
    store: &ArtifactStore,
    used: &BTreeSet<Digest>,
    unused_before: &mut BTreeSet<Digest>,
) -> Result<(), Error> {
    let stored = store.list()?;
    let unused: BTreeSet<Digest> = stored
        .iter()
        .map(|one| one.digest)
        .filter(|digest| !used.contains(digest))
        .collect();
    for digest in unused.intersection(unused_before) {
        store.remove(*digest)?;
    }
    *unused_before = unused;
    store.remove_stale_uploads(SystemTime::now() - STALE_AFTER)?;
    Ok(())
}

async fn blocking<T: Send + 'static>(
    store: &Arc<ArtifactStore>,
    work: impl FnOnce(&ArtifactStore) -> Result<T, compute::artifact::Error> + Send + 'static,
) -> Result<T, compute::artifact::Error> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
