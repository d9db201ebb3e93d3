//! Bodies on their way: what is sent to an instance, and what comes back.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::gate::Pass;
use super::held::{Held, Taken};
use super::instances::Lease;
use super::window::Seat;
use crate::load::InFlight;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// As much of a request's body as is kept to send it once more.
pub const REPLAY_BYTES: usize = 64 * 1024;

/// The body of a request on its way to an instance.
pub enum RequestBody {
    Empty,
    /// Passed on as it comes.
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
            Self::Once(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
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
    ended: bool,
    /// More came than is kept: what was sent is gone.
    overflowed: bool,
    /// Which try reads; an older one reads no more.
    turn: u32,
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
                ended: false,
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
        if inner.turn != self.turn {
            return Poll::Ready(Some(Err("the request was sent elsewhere".into())));
        }
        if let Some(chunk) = inner.chunks.get(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if inner.ended {
            let trailers = inner.trailers.clone().filter(|_| !self.ended);
            self.ended = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut inner.source).poll_frame(cx));
        Poll::Ready(self.take(&mut inner, frame))
    }

    fn take(
        &mut self,
        inner: &mut Shared,
        frame: Option<Result<Frame<Bytes>, hyper::Error>>,
    ) -> Option<Result<Frame<Bytes>, BoxError>> {
        let Some(frame) = frame else {
            inner.ended = true;
            self.ended = true;
            return None;
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Some(Err(error.into())),
        };
        if let Some(data) = frame.data_ref() {
            inner.keep(data);
            self.position = inner.chunks.len();
        }
        if let Some(trailers) = frame.trailers_ref() {
            inner.trailers = Some(trailers.clone());
            inner.ended = true;
            self.ended = true;
        }
        Some(Ok(frame))
    }

    fn is_end(&self) -> bool {
        let inner = lock(&self.shared);
        self.position == inner.chunks.len()
            && (inner.source.is_end_stream() && inner.trailers.is_none() || self.ended)
    }
}

impl Shared {
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

/// The body of a response on its way to the client, with all that must last as long as it does.
pub struct ResponseBody {
    source: Source,
    guards: Guards,
}

enum Source {
    Text(Option<Bytes>),
    Incoming(Incoming),
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
        Self {
            source: Source::Text(Some(text.into())),
            guards: Guards::default(),
        }
    }

    pub fn empty() -> Self {
        Self {
            source: Source::Text(None),
            guards: Guards::default(),
        }
    }

    pub fn incoming(incoming: Incoming, guards: Guards) -> Self {
        let mut body = Self {
            source: Source::Incoming(incoming),
            guards,
        };
        body.release_at_end();
        body
    }

    pub fn guards(&mut self) -> &mut Guards {
        &mut self.guards
    }

    /// At the end everything is given back at once, without waiting for the client to be done.
    fn release_at_end(&mut self) {
        if self.is_end_stream() {
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

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut();
        let frame = match &mut body.source {
            Source::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
            Source::Incoming(incoming) => ready!(Pin::new(incoming).poll_frame(cx)),
        };
        match &frame {
            None => body.release(),
            Some(Ok(_)) => body.release_at_end(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_none(),
            Source::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Source::Incoming(incoming) => incoming.size_hint(),
        }
    }
}
