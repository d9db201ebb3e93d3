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
            Err(Error::Store(error)) if !is_overtaken(&error) => return Err(Error::Store(error)),
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

/// A fetch that was broken off has had its last bytes written since: what is here now decides.
fn is_overtaken(error: &compute::artifact::Error) -> bool {
    use compute::artifact::Error as E;
    matches!(error, E::Offset { .. } | E::Unknown(_))
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use api::client::Transport;
    use compute::artifact::digest_of;
    use http_body_util::Full;
    use hyper::body::Bytes;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto;
    use model::compute::ArtifactForm;

    use super::*;

    const CONTENT: &[u8] = b"the bytes of an artifact";

    /// Serves the content from the offset on that is asked for, and does this before each answer.
    async fn server(meanwhile: impl Fn() + Clone + Send + Sync + 'static) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let meanwhile = meanwhile.clone();
                let answer = move |request: http::Request<hyper::body::Incoming>| {
                    let query = request.uri().query().unwrap_or_default();
                    let offset: usize = query.trim_start_matches("offset=").parse().unwrap();
                    meanwhile();
                    let rest = Bytes::from_static(&CONTENT[offset..]);
                    let answer = http::Response::new(Full::new(rest));
                    std::future::ready(Ok::<_, Infallible>(answer))
                };
                let builder = auto::Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    let serving =
                        builder.serve_connection(TokioIo::new(stream), service_fn(answer));
                    serving.await.map_err(drop)
                });
            }
        });
        Client::new(Transport::Tcp(address), None)
    }

    /// The one that began was broken off, and its last write came after the next had looked.
    #[tokio::test]
    async fn a_fetch_that_is_overtaken_goes_on_from_what_is_there() {
        let half = CONTENT.len() / 2;
        for written in [half, CONTENT.len()] {
            let folder = tempfile::tempdir().unwrap();
            let store = Arc::new(ArtifactStore::open(folder.path()).unwrap());
            let (digest, size) = digest_of(CONTENT).unwrap();
            let other = store.clone();
            let client = server(move || {
                // Once: later it is not the next byte any more.
                let appended = other.append(digest, 0, &CONTENT[..written]);
                if appended.is_ok() && written == CONTENT.len() {
                    other.commit(digest).unwrap();
                }
            });
            let artifact = ArtifactRef {
                digest,
                form: ArtifactForm::Folder,
                size: model::units::Bytes(size),
            };
            let client = client.await;
            let fetched = fetch(&client, &store, &Turns::default(), &artifact).await;
            assert!(fetched.is_ok(), "{written}: {fetched:?}");
            assert!(store.contains(digest));
        }
    }
}
