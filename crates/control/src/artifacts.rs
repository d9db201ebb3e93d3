//! Artifacts on the server: uploads, downloads, and which may go. File work happens on threads of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use api::problem::Problem;
use api::wire::{CHUNK_MAX_BYTES, UploadState};
use axum::body::Body;
use bytes::Bytes;
use compute::artifact::store::Progress;
use compute::artifact::{ArtifactStore, Error};
use futures_util::stream;
use model::ids::Digest;
use plan::Instant;

/// An upload that nobody touched for this long is given up; a complete artifact that no release uses is kept as long.
pub const KEPT_UNUSED: Duration = Duration::from_secs(3600);
/// Bytes read from disk at once.
const READ_BYTES: usize = 256 << 10;

pub struct Artifacts {
    store: Arc<ArtifactStore>,
    /// When each was last asked about by somebody who may be about to use it.
    pinned: Arc<Mutex<BTreeMap<Digest, Instant>>>,
    /// Held while one is removed, and while somebody looks whether one is there. Only threads that may wait for a disk take it.
    removing: Arc<Mutex<()>>,
}

impl Artifacts {
    pub fn open(root: &Path) -> Result<Self, Error> {
        Ok(Self {
            store: Arc::new(ArtifactStore::open(root)?),
            pinned: Arc::default(),
            removing: Arc::default(),
        })
    }

    fn pin(&self, digest: Digest, now: Instant) {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        pinned.insert(digest, now);
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ArtifactStore) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        match done {
            Ok(result) => result.map_err(|error| of_artifact(&error)),
            Err(panic) => Err(Problem::internal(format!(
                "the artifact store failed: {panic}"
            ))),
        }
    }

    pub async fn begin(
        &self,
        digest: Digest,
        size: model::units::Bytes,
        now: Instant,
    ) -> Result<UploadState, Problem> {
        self.pin(digest, now);
        let removing = self.removing.clone();
        self.work(move |store| {
            let _still = removing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut progress = store.begin(digest, size)?;
            if progress == Progress::Complete && is_spoiled(store, digest) {
                progress = store.begin(digest, size)?;
            }
            Ok(state(digest, size, progress))
        })
        .await
    }

    /// Adds a chunk.
    pub async fn append(
        &self,
        digest: Digest,
        offset: u64,
        chunk: Bytes,
        now: Instant,
    ) -> Result<UploadState, Problem> {
        debug_assert!(chunk.len() <= CHUNK_MAX_BYTES);
        self.pin(digest, now);
        self.work(move |store| {
            let received = store.append(digest, offset, &chunk)?;
            let size = store.upload_size(digest)?;
            Ok(state(digest, size, Progress::Partial { received }))
        })
        .await
    }

    /// Verifies an upload that is whole.
    pub async fn check(&self, digest: Digest) -> Result<(), Problem> {
        self.work(move |store| store.check(digest)).await
    }

    /// Makes an upload an artifact that was found right.
    pub async fn place(&self, digest: Digest) -> Result<(), Problem> {
        self.work(move |store| store.place(digest)).await
    }

    /// The bytes from `offset` on, read as they are taken.
    pub async fn read(&self, digest: Digest, offset: u64) -> Result<Body, Problem> {
        let file = self.work(move |store| store.read(digest, offset)).await?;
        let chunks = stream::try_unfold(file, |mut file| async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; READ_BYTES];
                let count = file.read(&mut chunk)?;
                chunk.truncate(count);
                Ok::<_, std::io::Error>((Bytes::from(chunk), file))
            });
            let (chunk, file) = read.await.map_err(std::io::Error::other)??;
            Ok::<_, std::io::Error>((!chunk.is_empty()).then_some((chunk, file)))
        });
        Ok(Body::from_stream(chunks))
    }

    /// Of these, those that are not here. Those that are stay for a while.
    pub async fn missing(
        &self,
        digests: BTreeSet<Digest>,
        now: Instant,
    ) -> Result<BTreeSet<Digest>, Problem> {
        for digest in &digests {
            self.pin(*digest, now);
        }
        let removing = self.removing.clone();
        self.work(move |store| {
            let _still = removing.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(digests
                .into_iter()
                .filter(|digest| !store.contains(*digest))
                .collect())
        })
        .await
    }

    /// Removes what no release uses and nobody asked about lately; gives up stale uploads. Answers what was removed.
    pub async fn collect(
        &self,
        used: BTreeSet<Digest>,
        now: Instant,
    ) -> Result<Vec<Digest>, Problem> {
        {
            let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
            pinned.retain(|_, at| now.since(*at) < KEPT_UNUSED);
        }
        let (pinned, removing) = (self.pinned.clone(), self.removing.clone());
        self.work(move |store| {
            let before = SystemTime::now() - KEPT_UNUSED;
            store.remove_stale_uploads(before)?;
            let mut removed = Vec::new();
            for stored in store.list()? {
                // Anew for each: somebody may have been told just now that it is here.
                let _alone = removing.lock().unwrap_or_else(PoisonError::into_inner);
                let is_pinned = {
                    let pinned = pinned.lock().unwrap_or_else(PoisonError::into_inner);
                    pinned.contains_key(&stored.digest)
                };
                let kept = used.contains(&stored.digest) || is_pinned || stored.stored_at > before;
                if !kept {
                    store.remove(stored.digest)?;
                    removed.push(stored.digest);
                }
            }
            Ok(removed)
        })
        .await
    }
}

/// Whether a disk made something else of it; then it is removed, and asked for again.
fn is_spoiled(store: &ArtifactStore, digest: Digest) -> bool {
    matches!(store.verify(digest), Err(Error::Mismatch { .. }))
}

fn state(digest: Digest, size: model::units::Bytes, progress: Progress) -> UploadState {
    let (received, complete) = match progress {
        Progress::Complete => (size, true),
        Progress::Partial { received } => (model::units::Bytes(received), false),
    };
    UploadState {
        digest,
        size,
        received,
        complete,
    }
}

fn of_artifact(error: &Error) -> Problem {
    let text = error.to_string();
    match error {
        Error::Unknown(_) => Problem::new(404, "artifact-missing", text).remedy("upload it first"),
        Error::Offset { .. } | Error::Incomplete { .. } => Problem::conflict("wrong-offset", text),
        Error::Mismatch { .. } => {
            Problem::new(422, "artifact-corrupt", text).remedy("upload it again")
        }
        Error::TooLarge { .. } => Problem::new(413, "too-large", text),
        Error::Io { .. } => Problem::unavailable("disk", text)
            .remedy("see that the disk of the server has room and works, then repeat"),
        _ => Problem::internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    /// Who is told that an artifact is here finds it afterwards, though what nobody uses is being removed.
    #[tokio::test]
    async fn what_is_said_to_be_here_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(folder.path()).unwrap();
        let bytes = Bytes::from_static(b"an executable");
        let digest = Digest(Sha256::digest(&bytes).into());
        let now = Instant::default();
        let size = model::units::Bytes(bytes.len() as u64);
        artifacts.begin(digest, size, now).await.unwrap();
        artifacts.append(digest, 0, bytes, now).await.unwrap();
        artifacts.check(digest).await.unwrap();
        artifacts.place(digest).await.unwrap();
        let later = Instant(KEPT_UNUSED * 2);
        make_old(folder.path());

        let held = artifacts.removing.clone();
        let held = held.lock().unwrap();
        let collecting = artifacts.collect(BTreeSet::new(), later);
        let asking = artifacts.missing(BTreeSet::from([digest]), later);
        let (removed, missing, ()) = tokio::join!(collecting, asking, async { drop(held) });
        let is_here = !missing.unwrap().contains(&digest);
        assert_eq!(removed.unwrap().is_empty(), is_here);
        assert!(is_here, "it was asked for before anything was removed");

        // Nobody asks for it any more.
        let much_later = Instant(KEPT_UNUSED * 4);
        let removed = artifacts.collect(BTreeSet::new(), much_later).await;
        assert_eq!(removed.unwrap(), [digest]);
    }

    fn make_old(folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                make_old(&entry.path());
                continue;
            }
            let file = std::fs::File::open(entry.path()).unwrap();
            let old = SystemTime::now() - KEPT_UNUSED * 2;
            file.set_modified(old).unwrap();
        }
    }
}
