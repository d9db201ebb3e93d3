//! Bodies on their way: what is sent to an instance, and what comes back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::edge::UnderWay;
use super::failure::chain;
use super::gate::Pass;
use super::held::{Held, Taken};
use super::instances::Lease;
use super::window::Seat;
use super::wire;
use crate::load::InFlight;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// As much of a request's body as is kept to send it once more.
pub const REPLAY_BYTES: usize = 64 * 1024;

/// The body of a request on its way to an instance.
pub enum RequestBody {
    Empty,
    /// Passed on as it comes from another proxy.
    Once(Incoming),
    /// Passed on as it comes and kept meanwhile.
    Kept(Replay),
    /// On its way through the mesh, of which most waits until it is taken.
    Held(Box<Held>),
    /// Come through the mesh; its caller waits until it is read.
    Taken(Taken),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(incoming) => poll_mesh(incoming, cx),
            Self::Kept(replay) => replay.poll(cx),
            Self::Held(held) => held.poll(cx),
            Self::Taken(taken) => taken.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(incoming) => incoming.is_end_stream(),
            Self::Kept(replay) => replay.is_end(),
            Self::Held(held) => held.is_end(),
            Self::Taken(taken) => taken.body().is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(incoming) => incoming.size_hint(),
            Self::Kept(replay) => replay.hint,
            Self::Held(held) => held.hint(),
            Self::Taken(taken) => taken.body().size_hint(),
        }
    }
}

/// A body from another proxy. A stream that was reset, for whatever reason, has not ended: hyper takes a reset without an error code for the end
/// (RFC 9113, 8.1), and what came so far would pass for the whole.
pub fn poll_mesh(
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
    Poll::Ready(match frame {
        None if !incoming.is_end_stream() => Some(Err("the stream was reset".into())),
        frame => frame.map(|frame| frame.map_err(Into::into)),
    })
}

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
}

/// What became of a body's source. An end and a break are for ever: no later try may take a break for an end.
enum Fate {
    Flowing,
    Ended,
    Broken(String),
}

impl Kept {
    pub fn new(source: Incoming) -> Self {
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
            }))
        });
        Self { shared, hint }
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
            ended: false,
            hint: self.hint,
        })
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
    ended: bool,
    hint: SizeHint,
}

impl Replay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let shared = self.shared.clone();
        let mut inner = lock(&shared);
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
                let frame = ready!(Pin::new(&mut inner.source).poll_frame(cx));
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

    fn is_end(&self) -> bool {
        let inner = lock(&self.shared);
        if matches!(inner.fate, Fate::Broken(_)) || self.position != inner.chunks.len() {
            return false;
        }
        self.ended || inner.source.is_end_stream() && inner.trailers.is_none()
    }
}

impl Shared {
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

/// An answer of at most this many declared bytes is begun toward the client when it is whole: until then a copy that dies costs nothing, for the
/// request may go elsewhere.
const SMALL_BYTES: u64 = 64 * 1024;
/// What is not whole by then is begun all the same: whoever sends slowly means to.
const BEGIN_AFTER: Duration = Duration::from_millis(100);

/// The body of a response on its way to the client, with all that must last as long as it does.
pub struct ResponseBody {
    /// What has come already.
    held: VecDeque<Frame<Bytes>>,
    source: Source,
    guards: Guards,
    /// Held for what its drop does.
    under_way: Option<UnderWay>,
}

enum Source {
    Text(Option<Bytes>),
    Instance(Incoming),
    Mesh(Incoming),
}

/// What is given back when a response has passed, or was given up.
#[derive(Default)]
pub struct Guards {
    /// In flight at the endpoint, as the caller counts.
    pub in_flight: Option<InFlight>,
    /// Behind the gate, as the callee counts.
    #[expect(dead_code, reason = "held for what its drop does")]
    pub pass: Option<Pass>,
    /// The connection to the instance, for the next request.
    pub lease: Option<Lease>,
    /// Room for what the client has not taken yet.
    #[expect(dead_code, reason = "held for what its drop does")]
    pub seat: Option<Seat>,
}

impl ResponseBody {
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::of(Source::Text(Some(text.into())), Guards::default())
    }

    pub fn empty() -> Self {
        Self::of(Source::Text(None), Guards::default())
    }

    /// From an instance, over HTTP/1.1.
    pub fn incoming(incoming: Incoming, guards: Guards) -> Self {
        Self::of(Source::Instance(incoming), guards)
    }

    /// From another proxy, over HTTP/2.
    pub fn from_mesh(incoming: Incoming, guards: Guards) -> Self {
        Self::of(Source::Mesh(incoming), guards)
    }

    fn of(source: Source, guards: Guards) -> Self {
        let mut body = Self {
            held: VecDeque::new(),
            source,
            guards,
            under_way: None,
        };
        body.release_at_end();
        body
    }

    pub fn guards(&mut self) -> &mut Guards {
        &mut self.guards
    }

    /// `under_way` lasts until all of it is handed over.
    pub fn pass(&mut self, under_way: UnderWay) {
        self.under_way = Some(under_way);
    }

    /// Waits until a small answer of declared length is here as a whole, or has had its time to be. An error: it broke off, and nothing of it was
    /// passed on.
    pub async fn settle(&mut self) -> Result<(), BoxError> {
        let length = self.source.size_hint().exact();
        if self.source.is_end_stream() || length.is_none_or(|length| length > SMALL_BYTES) {
            return Ok(());
        }
        match tokio::time::timeout(BEGIN_AFTER, self.gather()).await {
            Ok(gathered) => gathered,
            Err(_) => Ok(()),
        }
    }

    async fn gather(&mut self) -> Result<(), BoxError> {
        while self.source.size_hint().exact() != Some(0) {
            let frame = std::future::poll_fn(|cx| self.poll_source(cx)).await;
            let Some(frame) = frame.transpose()? else {
                break;
            };
            self.held.push_back(frame);
        }
        Ok(())
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(self.source.poll(cx));
        match &frame {
            None => self.release(),
            Some(Ok(_)) => self.release_at_end(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    /// At the end everything is given back at once, without waiting for the client to be done.
    fn release_at_end(&mut self) {
        if self.source.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(lease) = self.guards.lease.take() {
            lease.give_back();
        }
        self.guards = Guards::default();
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Instance(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Mesh(incoming) => poll_mesh(incoming, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Instance(incoming) | Self::Mesh(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Instance(incoming) | Self::Mesh(incoming) => incoming.size_hint(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut();
        match body.held.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => body.poll_source(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.iter().filter_map(Frame::data_ref);
        let held: u64 = held.map(|data| data.len() as u64).sum();
        match self.source.size_hint().exact() {
            Some(left) => SizeHint::with_exact(held + left),
            None => SizeHint::default(),
        }
    }
}
