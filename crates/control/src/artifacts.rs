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
use tokio::sync::Semaphore;

/// An upload that nobody touched for this long is given up; a complete artifact that no release uses is kept as long.
pub const KEPT_UNUSED: Duration = Duration::from_secs(3600);
/// Bytes read from disk at once.
const READ_BYTES: usize = 256 << 10;
/// Artifacts of more than [`LARGE_FROM`] that are read again at once, to see whether a disk has spoiled them. Others count as whole: nodes verify
/// what they fetch.
const LARGE_VERIFIED_AT_ONCE: usize = 2;
/// Less is read in a moment.
const LARGE_FROM: model::units::Bytes = model::units::Bytes::mebibytes(64);

pub struct Artifacts {
    store: Arc<ArtifactStore>,
    /// When each was last asked about by somebody who may be about to use it.
    pinned: Arc<Mutex<BTreeMap<Digest, Instant>>>,
    /// Held while one is looked at and removed. Only threads that may wait for a disk take it, and none keeps it for longer than that.
    removing: Arc<Mutex<()>>,
    verifying: Arc<Semaphore>,
}

impl Artifacts {
    pub fn open(root: &Path) -> Result<Self, Error> {
        Ok(Self {
            store: Arc::new(ArtifactStore::open(root)?),
            pinned: Arc::default(),
            removing: Arc::default(),
            verifying: Arc::new(Semaphore::new(LARGE_VERIFIED_AT_ONCE)),
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
        let (removing, verifying) = (self.removing.clone(), self.verifying.clone());
        self.work(move |store| {
            see_pins(&removing);
            let mut progress = store.begin(digest, size)?;
            if progress == Progress::Complete {
                look_again(store, digest, &verifying);
                // It may be gone, by this look or by another.
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
            see_pins(&removing);
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

/// What is pinned before is removed by nobody afterwards: whoever removes one now has ended, and looks at the pins again before the next.
fn see_pins(removing: &Mutex<()>) {
    drop(removing.lock().unwrap_or_else(PoisonError::into_inner));
}

/// One that a disk made something else of is removed. It takes as long as reading it does.
fn look_again(store: &ArtifactStore, digest: Digest, verifying: &Semaphore) {
    let is_large = store.size(digest).is_ok_and(|size| size > LARGE_FROM);
    let permit = is_large.then(|| verifying.try_acquire());
    if !matches!(permit, Some(Err(_))) {
        let _ = store.verify(digest);
    }
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

    /// Reading one of many gigabytes again takes a minute, in which others apply and upload. It goes on in threads that are few.
    #[tokio::test]
    async fn who_verifies_a_large_artifact_holds_up_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(folder.path()).unwrap();
        let now = Instant::default();
        let put = async |bytes: &'static [u8]| {
            let digest = Digest(Sha256::digest(bytes).into());
            let (bytes, size) = (Bytes::from_static(bytes), bytes.len() as u64);
            let size = model::units::Bytes(size);
            artifacts.begin(digest, size, now).await.unwrap();
            artifacts.append(digest, 0, bytes, now).await.unwrap();
            artifacts.check(digest).await.unwrap();
            artifacts.place(digest).await.unwrap();
            (digest, size)
        };
        let (large, size) = put(b"large").await;
        let (small, small_size) = put(b"small").await;
        let path = artifacts.store.path(large);
        let bytes = std::fs::File::options().write(true).open(path).unwrap();
        bytes.set_len(1 << 36).unwrap();
        let begins = async || artifacts.begin(large, size, now).await.unwrap();
        let others = async {
            while artifacts.verifying.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            // While two read it, a third is told what is there.
            assert!(begins().await.complete);
            let missing = artifacts.missing(BTreeSet::from([small, large]), now).await;
            assert_eq!(missing.unwrap(), BTreeSet::new());
            let begun = artifacts.begin(small, small_size, now).await;
            assert!(begun.unwrap().complete);
            let removed = artifacts.collect(BTreeSet::new(), now).await;
            assert_eq!(removed.unwrap(), []);
        };
        let others = async {
            let done = tokio::time::timeout(Duration::from_secs(20), others).await;
            bytes.set_len(3).unwrap();
            done
        };
        let (one, other, others) = tokio::join!(begins(), begins(), others);
        others.expect("nobody waits for it");
        // It was spoiled, and is asked for again.
        assert!(!one.complete && !other.complete);
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
