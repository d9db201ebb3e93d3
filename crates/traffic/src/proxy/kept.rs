//! The body of a request as it comes from a client: kept meanwhile, so that it can be sent once more, and asked how far the client is with it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::body::{BoxError, REPLAY_BYTES, RequestBody};
use super::failure::chain;
use super::pace::Pace;
use super::shares::Keeper;
use super::wire;

/// A request's body that can be sent more than once, as long as it fits into [`REPLAY_BYTES`].
pub struct Kept {
    shared: Option<Arc<Mutex<Shared>>>,
    hint: SizeHint,
}

struct Shared {
    source: Incoming,
    chunks: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    fate: Fate,
    /// When the client last sent something.
    moved: Instant,
    /// More came than is kept: what was sent is gone.
    overflowed: bool,
    /// Which try reads; an older one reads no more.
    turn: u32,
    /// Of the client's connection: told when the client is waited for.
    keeper: Option<Keeper>,
    /// That it has to keep.
    pace: Option<Pace>,
}

/// What became of a body's source. An end and a break are for ever: no later try may take a break for an end.
enum Fate {
    Flowing,
    Ended,
    Broken(String),
}

impl Kept {
    /// `keeper`: of the connection that it comes on. `pace`: that it has to keep, until there is an answer.
    pub fn new(source: Incoming, keeper: Option<Keeper>, pace: Option<Pace>) -> Self {
        let hint = source.size_hint();
        let shared = (!source.is_end_stream()).then(|| {
            Arc::new(Mutex::new(Shared {
                source,
                chunks: Vec::new(),
                kept_bytes: 0,
                trailers: None,
                fate: Fate::Flowing,
                moved: Instant::now(),
                overflowed: false,
                turn: 0,
                keeper,
                pace,
            }))
        });
        Self { shared, hint }
    }

    /// There is an answer: what is still to come may take its time, as the answer may.
    pub fn is_answered(&self) {
        if let Some(shared) = &self.shared {
            lock(shared).pace = None;
        }
    }

    /// Whether the whole body can still be sent.
    pub fn replayable(&self) -> bool {
        self.shared
            .as_ref()
            .is_none_or(|shared| !lock(shared).overflowed)
    }

    /// Whether the client has sent all of it.
    pub fn is_whole(&self) -> bool {
        self.shared
            .as_ref()
            .is_none_or(|shared| matches!(lock(shared).fate, Fate::Ended))
    }

    /// How the client broke off, if it did: then nothing that failed since is the callee's fault.
    pub fn broken(&self) -> Option<String> {
        match &lock(self.shared.as_ref()?).fate {
            Fate::Broken(why) => Some(why.clone()),
            Fate::Flowing | Fate::Ended => None,
        }
    }

    /// When the client last sent a part of it. `None`: there is no body.
    pub fn moved(&self) -> Option<Instant> {
        Some(lock(self.shared.as_ref()?).moved)
    }

    /// For who judges a copy by how long it takes.
    pub fn upload(&self) -> Upload {
        Upload(self.shared.clone())
    }

    /// The body for the next try.
    pub fn body(&self) -> RequestBody {
        let Some(shared) = &self.shared else {
            return RequestBody::Empty;
        };
        let mut inner = lock(shared);
        inner.turn += 1;
        RequestBody::Kept(Replay {
            shared: shared.clone(),
            turn: inner.turn,
            position: 0,
            lost: inner.overflowed,
            ended: false,
            hint: self.hint,
        })
    }
}

/// How far a client is with its body.
#[derive(Clone)]
pub struct Upload(Option<Arc<Mutex<Shared>>>);

impl Upload {
    /// No body.
    pub fn none() -> Self {
        Self(None)
    }

    /// Since when the copy that was asked at `asked` is what is waited for. `None`: the client has not sent all yet, or broke off.
    pub fn copy_waited_for(&self, asked: Instant) -> Option<Instant> {
        let Some(shared) = &self.0 else {
            return Some(asked);
        };
        let inner = lock(shared);
        matches!(inner.fate, Fate::Ended).then(|| inner.moved.max(asked))
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reading of a [`Kept`] body.
pub struct Replay {
    shared: Arc<Mutex<Shared>>,
    turn: u32,
    position: usize,
    /// It began when what was read before was kept no longer: it can't be sent, and has no end.
    lost: bool,
    ended: bool,
    hint: SizeHint,
}

impl Replay {
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let shared = self.shared.clone();
        let mut inner = lock(&shared);
        if self.lost {
            return Poll::Ready(Some(Err("the body is no longer kept".into())));
        }
        // What lies here in full may be read by two tries at a time; the client is read by the latest only.
        let stale = inner.turn != self.turn;
        if stale && (inner.overflowed || !matches!(inner.fate, Fate::Ended)) {
            return Poll::Ready(Some(Err("the request was sent elsewhere".into())));
        }
        if let Some(chunk) = inner.chunks.get(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        match &inner.fate {
            Fate::Broken(why) => Poll::Ready(Some(Err(why.clone().into()))),
            Fate::Ended => {
                let trailers = inner.trailers.clone().filter(|_| !self.ended);
                self.ended = true;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Fate::Flowing => {
                let frame = ready!(inner.poll_client(cx));
                inner.moved = Instant::now();
                Poll::Ready(self.take(&mut inner, frame))
            }
        }
    }

    fn take(
        &mut self,
        inner: &mut Shared,
        frame: Option<Result<Frame<Bytes>, hyper::Error>>,
    ) -> Option<Result<Frame<Bytes>, BoxError>> {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Some(Err(inner.break_off(chain(&error)))),
            None if inner.is_short() => {
                return Some(Err(inner.break_off("it ended too early".to_owned())));
            }
            None => {
                inner.fate = Fate::Ended;
                self.ended = true;
                return None;
            }
        };
        match frame.into_data() {
            Ok(data) => {
                if let Some(missed) = inner.misses_its_pace(data.len()) {
                    return Some(Err(inner.break_off(missed)));
                }
                inner.keep(&data);
                self.position = inner.chunks.len();
                // Whoever writes a body of known length does not ask again after its last byte.
                if inner.source.is_end_stream() {
                    inner.fate = Fate::Ended;
                }
                Some(Ok(Frame::data(data)))
            }
            Err(frame) => {
                let trailers = frame.into_trailers().ok().map(wire::passable_trailers);
                inner.trailers = trailers.filter(|trailers| !trailers.is_empty());
                inner.fate = Fate::Ended;
                self.ended = true;
                inner.trailers.clone().map(Frame::trailers).map(Ok)
            }
        }
    }

    pub fn hint(&self) -> SizeHint {
        self.hint
    }

    pub fn is_end(&self) -> bool {
        let inner = lock(&self.shared);
        let broken = self.lost || matches!(inner.fate, Fate::Broken(_));
        if broken || self.position != inner.chunks.len() {
            return false;
        }
        self.ended || inner.source.is_end_stream() && inner.trailers.is_none()
    }
}

impl Shared {
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.source).poll_frame(cx);
        if let Some(keeper) = &self.keeper {
            keeper.awaits(frame.is_pending());
        }
        if let Some(pace) = self.pace.as_mut().filter(|_| frame.is_pending()) {
            pace.waits(Instant::now());
        }
        frame
    }

    /// Why the client is given up, after so many bytes more that came a moment ago.
    fn misses_its_pace(&mut self, bytes: usize) -> Option<String> {
        let is_last = self.source.is_end_stream();
        let pace = self.pace.as_mut()?;
        (pace.is_too_slow(bytes, self.moved) && !is_last).then(|| pace.missed())
    }

    fn break_off(&mut self, why: String) -> BoxError {
        self.fate = Fate::Broken(why.clone());
        why.into()
    }

    /// Less came than was declared.
    fn is_short(&self) -> bool {
        self.source.size_hint().exact().is_some_and(|left| left > 0)
    }

    fn keep(&mut self, data: &Bytes) {
        if self.overflowed {
            return;
        }
        // One chunk may reach beyond the bound: a chunk is bounded by the connection's read buffer.
        if self.kept_bytes > REPLAY_BYTES {
            self.overflowed = true;
            self.chunks = Vec::new();
        } else {
            self.kept_bytes += data.len();
            self.chunks.push(data.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::time::Duration;

    use http::Response;
    use hyper::Request;
    use hyper::client::conn::http1 as client;
    use hyper::server::conn::http1 as server;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::proxy::body::ResponseBody;

    /// What `judge` makes of the body of a request of so many bytes, once it was read as a whole.
    async fn after_reading(length: usize, judge: fn(&Kept) -> bool) -> bool {
        let (one, other) = tokio::io::duplex(1 << 20);
        let service = service_fn(move |request: Request<Incoming>| async move {
            let kept = Kept::new(request.into_body(), None, None);
            let mut body = kept.body();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                frame.unwrap();
            }
            let status = if judge(&kept) { 200 } else { 500 };
            let response = Response::builder()
                .status(status)
                .body(ResponseBody::empty());
            Ok::<_, Infallible>(response.unwrap())
        });
        let serving = server::Builder::new().serve_connection(TokioIo::new(other), service);
        let handshake = client::handshake(TokioIo::new(one)).await;
        let (mut sender, connection) = handshake.unwrap();
        tokio::spawn(connection);
        tokio::spawn(async move { serving.await.unwrap() });
        let body = ResponseBody::text(vec![b'x'; length]);
        let request = Request::put("/").header("host", "a").body(body).unwrap();
        sender.send_request(request).await.unwrap().status() == 200
    }

    #[tokio::test]
    async fn a_body_that_is_kept_no_longer_is_no_empty_one() {
        let again = |kept: &Kept| {
            let body = kept.body();
            kept.replayable() && !body.is_end_stream() && body.size_hint().exact().is_some()
        };
        assert!(after_reading(1000, again).await);
        let lost = |kept: &Kept| {
            let RequestBody::Kept(mut replay) = kept.body() else {
                return false;
            };
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let broken = matches!(replay.poll(&mut cx), Poll::Ready(Some(Err(_))));
            broken && !replay.is_end() && !kept.replayable()
        };
        assert!(after_reading(1_000_000, lost).await);
    }

    #[tokio::test]
    async fn a_copy_is_waited_for_when_the_client_has_sent_all() {
        let since = |kept: &Kept| {
            let long_ago = Instant::now() - Duration::from_secs(60);
            let since = kept.upload().copy_waited_for(long_ago);
            since.is_some_and(|since| since.elapsed() < Duration::from_secs(30))
        };
        assert!(after_reading(1000, since).await);
        let now = Instant::now();
        assert_eq!(Upload::none().copy_waited_for(now), Some(now));
    }

    /// How a body of 40 bytes ended that came byte by byte, 10 ms apart, at a pace of `least` bytes in 100 ms; answered at its beginning or not.
    async fn trickled(least: usize, is_answered: bool) -> Option<String> {
        let (mut one, other) = tokio::io::duplex(1 << 10);
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let service = service_fn(move |request: Request<Incoming>| {
            let tell = tell.clone();
            async move {
                let pace = Pace::new(Duration::from_millis(100), least);
                let kept = Kept::new(request.into_body(), None, Some(pace));
                if is_answered {
                    kept.is_answered();
                }
                let mut body = kept.body();
                while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
                tell.send(kept.broken()).await.unwrap();
                Ok::<_, Infallible>(Response::new(ResponseBody::empty()))
            }
        });
        tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(other), service));
        let head = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\n\r\n";
        one.write_all(head).await.unwrap();
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if one.write_all(b"x").await.is_err() {
                break;
            }
        }
        told.recv().await.unwrap()
    }

    #[tokio::test]
    async fn a_body_that_trickles_is_broken_until_it_is_answered() {
        let broken = trickled(1000, false).await;
        assert!(broken.is_some_and(|why| why.contains("fewer than 1000 bytes")));
        assert_eq!(trickled(1000, true).await, None);
        assert_eq!(trickled(0, false).await, None);
    }
}
