//! A request's body that waits until the instance takes it.
//!
//! What a copy refuses can be sent to another one only as long as all of its body is kept ([`super::body::REPLAY_BYTES`]). So no more than that leaves
//! the caller before the callee begins to pass it on; from there on it flows as fast as the path allows:
//!
//! ```text
//!  caller ── request, ticket 7 ──────────→ callee        at most 48 KiB of its body
//!         ── is 7 taken? ────────────────→               a request of its own, answered when
//!         ←─────────────────────── yes ──                the instance is connected and reads
//!         ── the rest ───────────────────→
//! ```

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::SendRequest;
use tokio::sync::oneshot;

use super::body::{BoxError, REPLAY_BYTES, RequestBody, poll_mesh};
use super::wire;

/// Sent before the callee takes the body: less than is kept.
const HOLD_BYTES: usize = 48 * 1024;
const _: () = assert!(HOLD_BYTES < REPLAY_BYTES);
/// For a callee to take a body, or to refuse it: an instance is dialled for a second at most.
const TAKE_PATIENCE: Duration = Duration::from_secs(10);

type Sender = SendRequest<RequestBody>;

/// Holds back the body of a request that goes out by `sender`, unless it is small. `ticket` is used for no other of this connection.
pub fn hold(request: &mut Request<RequestBody>, sender: &Sender, ticket: u64) {
    let hint = request.body().size_hint();
    let most = HOLD_BYTES as u64;
    if hint.upper().is_some_and(|upper| upper <= most) {
        return;
    }
    let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
    *request.body_mut() = RequestBody::Held(Box::new(Held {
        body,
        sent: 0,
        surely_long: hint.lower() > most,
        taken: Some(Box::pin(ask(sender.clone(), ticket))),
    }));
    let headers = request.headers_mut();
    headers.insert(wire::TICKET, HeaderValue::from(ticket));
}

async fn ask(mut sender: Sender, ticket: u64) -> bool {
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = Uri::from_static("http://mesh/");
    let headers = request.headers_mut();
    headers.insert(wire::IS_TAKEN, HeaderValue::from(ticket));
    let answer = sender.send_request(request).await;
    answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

/// A body on its way through the mesh.
pub struct Held {
    body: RequestBody,
    sent: usize,
    /// Longer than what is sent before it is taken: asked for at once.
    surely_long: bool,
    /// `None`: it is.
    taken: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl Held {
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let full = self.sent >= HOLD_BYTES;
        if full || self.surely_long {
            match self.poll_taken(cx) {
                Poll::Ready(true) => self.taken = None,
                Poll::Ready(false) => {
                    self.taken = Some(Box::pin(std::future::ready(false)));
                    return Poll::Ready(Some(Err("the copy did not take the body".into())));
                }
                Poll::Pending if full => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.sent += frame.data_ref().map_or(0, Bytes::len);
        }
        Poll::Ready(frame)
    }

    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match &mut self.taken {
            Some(taken) => taken.as_mut().poll(cx),
            None => Poll::Ready(true),
        }
    }

    pub fn is_end(&self) -> bool {
        self.body.is_end_stream()
    }

    pub fn hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The tickets of one connection, as the callee knows them. Bounded by its streams.
#[derive(Default)]
pub struct Tickets(Mutex<State>);

#[derive(Default)]
struct State {
    taken: HashSet<u64>,
    /// Who asked before it was.
    asked: HashMap<u64, oneshot::Sender<()>>,
}

impl Tickets {
    /// The ticket of a request whose body comes now.
    pub fn ticket(self: &Arc<Self>, headers: &HeaderMap) -> Option<Ticket> {
        Some(Ticket {
            number: number(headers, &wire::TICKET)?,
            tickets: self.clone(),
            taken: false,
        })
    }

    /// The ticket that a caller asks for.
    pub fn asked_for(headers: &HeaderMap) -> Option<u64> {
        number(headers, &wire::IS_TAKEN)
    }

    /// True as soon as the body is taken; false when it is not to be.
    pub async fn is_taken(&self, number: u64) -> bool {
        let taken = {
            let mut state = self.state();
            if state.taken.contains(&number) {
                return true;
            }
            let (tell, told) = oneshot::channel();
            state.asked.insert(number, tell);
            told
        };
        let _asked = Asked {
            tickets: self,
            number,
        };
        let taken = tokio::time::timeout(TAKE_PATIENCE, taken).await;
        matches!(taken, Ok(Ok(())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody asks; dropped, nobody does any longer.
struct Asked<'a> {
    tickets: &'a Tickets,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.tickets.state().asked.remove(&self.number);
    }
}

fn number(headers: &HeaderMap, name: &http::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

pub struct Ticket {
    number: u64,
    tickets: Arc<Tickets>,
    taken: bool,
}

impl Ticket {
    fn take(&mut self) {
        if std::mem::replace(&mut self.taken, true) {
            return;
        }
        let mut state = self.tickets.state();
        state.taken.insert(self.number);
        if let Some(asked) = state.asked.remove(&self.number) {
            // Who asked may have left.
            let _ = asked.send(());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.tickets.state();
        state.taken.remove(&self.number);
        state.asked.remove(&self.number);
    }
}

/// A body on its way to the instance; its first reading says that it is taken.
pub struct Taken {
    body: Incoming,
    ticket: Ticket,
}

impl Taken {
    pub fn new(body: Incoming, ticket: Ticket) -> Self {
        Self { body, ticket }
    }

    pub fn body(&self) -> &Incoming {
        &self.body
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.ticket.take();
        poll_mesh(&mut self.body, cx)
    }
}
