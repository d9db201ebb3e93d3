//! Bodies on their way: what is sent to an instance, and what comes back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::edge::UnderWay;
use super::gate::Pass;
use super::held::{Held, Taken};
use super::instances::Lease;
use super::kept::Replay;
use super::search::Slot;
use super::shares::Busy;
use super::window::Seat;
use super::wire;

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
            Self::Kept(replay) => replay.hint(),
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
    /// Likewise, of a connection of another proxy.
    busy: Option<Busy>,
}

enum Source {
    Text(Option<Bytes>),
    /// Nothing, and the library is not told so: it would leave out the length that the head tells.
    Length,
    Instance(Incoming),
    Mesh(Incoming),
}

/// What is given back when a response has passed, or was given up.
#[derive(Default)]
pub struct Guards {
    /// In flight at the endpoint, as the caller counts.
    pub slot: Option<Slot>,
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
            busy: None,
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

    /// `busy` lasts until all of it is handed over.
    pub fn keep(&mut self, busy: Busy) {
        self.busy = Some(busy);
    }

    /// Where there is no body, the length in its head is told all the same.
    pub fn tell_length_alone(&mut self) {
        if self.is_end_stream() {
            self.source = Source::Length;
        }
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

/// Trailers are a program's as much as its headers are.
fn passable(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(wire::passable_trailers(trailers)),
        Err(frame) => frame,
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Length => Poll::Ready(None),
            Self::Instance(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                Poll::Ready(frame.map(|frame| Ok(passable(frame?))))
            }
            Self::Mesh(incoming) => poll_mesh(incoming, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Length => false,
            Self::Instance(incoming) | Self::Mesh(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Length => SizeHint::default(),
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
