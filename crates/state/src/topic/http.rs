//! The door for callers: HTTP/1.1, routed by hand, since a publish is answered some ten thousand times a second.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use model::ids::{ResourceId, ResourceName};
use model::traffic::CALLER;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, Semaphore, watch};
use tokio::time::Instant;

use super::engine::{Clock, Engine};
use super::event::{self, BODY_BYTES_MAX, Publisher};
use super::problem::Problem;
use super::pull::{self, Loan};
use super::room::{Room, Rooms, SMALL_BODY_BYTES};
use super::storage::Published;

/// Connections of callers; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// How long a connection may be silent before a request, and how long its head may take. The mesh keeps none idle for so long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a body may wait for room. Nothing of it is read meanwhile.
const ROOM_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a caller may go on sending what nobody wants.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub type Answer = Response<Text>;

/// The text of an answer, and what becomes somebody's by being sent.
pub struct Text {
    text: Full<Bytes>,
    loan: Option<Loan>,
}

impl Text {
    pub fn lending(self, loan: Loan) -> Self {
        Self {
            loan: Some(loan),
            ..self
        }
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // It is asked for when the connection takes it.
        if let Some(loan) = self.loan.take() {
            loan.sent();
        }
        Pin::new(&mut self.text).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.text.size_hint()
    }
}

/// The callers' door.
pub struct Door {
    engine: Arc<Engine>,
    source: String,
    bodies: Rooms,
}

impl Door {
    pub fn new(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self {
            source: engine.source(),
            engine,
            bodies: Rooms::default(),
        })
    }

    /// Serves until `stop` says so; then answers what has begun.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let Ok((stream, _)) = accepted else {
                // Out of files, mostly: others must end first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (door, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                door.serve_connection(stream, stop).await;
                drop(permit);
            });
        }
        drop(listener);
        let _ = connections
            .acquire_many(u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX))
            .await;
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, mut stop: watch::Receiver<bool>) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request: Request<Incoming>| {
            let door = self.clone();
            Box::pin(async move { Ok::<_, Infallible>(door.answer(request).await) })
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        let mut stopped = false;
        loop {
            // Callers that break off tell so by it; there is nothing to do about it.
            let ended = poll_fn(|context| connection.poll_without_shutdown(context));
            tokio::select! {
                _ = ended => break,
                _ = stop.wait_for(|stop| *stop), if !stopped => {
                    stopped = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
        close(connection.into_parts().io.into_inner()).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let answered = match (request.method(), request.uri().path()) {
            (&Method::POST, "/messages") => self.publish(request).await,
            (&Method::POST, "/pull") => self.asked(request, pull::pull).await,
            (&Method::POST, "/ack") => self.asked(request, pull::ack).await,
            (&Method::POST, "/nack") => self.asked(request, pull::nack).await,
            (&Method::POST, "/extend") => self.asked(request, pull::extend).await,
            (_, "/messages" | "/pull" | "/ack" | "/nack" | "/extend") => Err(not_allowed()),
            (_, path) => Err(not_found(path)),
        };
        answered.unwrap_or_else(|problem| problem.response())
    }

    /// `POST /messages`.
    ///
    /// # Errors
    ///
    /// Nothing was published, unless the problem says that this is unknown.
    pub async fn publish<B: Body<Data = Bytes>>(
        &self,
        request: Request<B>,
    ) -> Result<Answer, Problem>
    where
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let caller = caller(&head.headers);
        let (_room, body) = self.read(caller.clone(), body).await?;
        let publisher = Publisher {
            topic: &self.source,
            service: caller.as_ref(),
            has_unowned: self.engine.storage.has_unowned(),
        };
        let events = event::from_request(&head.headers, body, &publisher, Clock::wall_ms())?;
        Ok(published(&self.engine.publish(events).await?))
    }

    async fn asked<B, Asked, Answering>(
        &self,
        request: Request<B>,
        answer: impl FnOnce(Arc<Engine>, ResourceName, Asked) -> Answering,
    ) -> Result<Answer, Problem>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        Asked: DeserializeOwned,
        Answering: Future<Output = Result<Answer, Problem>>,
    {
        let caller = caller(request.headers());
        let service = self.engine.who_may_consume(caller.clone())?;
        let asked = {
            let (_room, body) = self.read(caller, request.into_body()).await?;
            parse(&body)?
        };
        answer(self.engine.clone(), service, asked).await
    }

    /// The whole body, and what bounds it while it is in memory.
    async fn read<B: Body<Data = Bytes>>(
        &self,
        caller: Option<ResourceId>,
        body: B,
    ) -> Result<(Room, Bytes), Problem>
    where
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let announced = body.size_hint().upper();
        if announced.is_some_and(|announced| announced > BODY_BYTES_MAX as u64) {
            return Err(body_too_large());
        }
        let announced = announced.map(|announced| u32::try_from(announced).unwrap_or(u32::MAX));
        let room = in_time(self.bodies.take(caller, announced)).await?;
        let (mut room, whole) = match announced {
            Some(_) => {
                let whole = Limited::new(body, BODY_BYTES_MAX).collect();
                let whole = tokio::time::timeout(BODY_TIMEOUT, whole).await;
                let whole = whole.map_err(|_| too_slow())?.map_err(broken)?;
                (room, whole.to_bytes())
            }
            None => self.read_unannounced(room, body).await?,
        };
        // What waits for a sync holds as much as it is.
        room.keep_only(whole.len());
        Ok((room, whole))
    }

    /// What it needs more than a small one is taken once it has come to that. What it waits for then is no time that it takes.
    async fn read_unannounced<B: Body<Data = Bytes>>(
        &self,
        mut room: Room,
        body: B,
    ) -> Result<(Room, Bytes), Problem>
    where
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut body = pin!(Limited::new(body, BODY_BYTES_MAX));
        let mut whole = BytesMut::new();
        let (mut left, mut is_large) = (BODY_TIMEOUT, false);
        loop {
            let began = Instant::now();
            let frame = tokio::time::timeout(left, body.frame()).await;
            left = left.saturating_sub(began.elapsed());
            let Some(frame) = frame.map_err(|_| too_slow())? else {
                return Ok((room, whole.freeze()));
            };
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            if !is_large && whole.len() + data.len() > SMALL_BODY_BYTES as usize {
                room = in_time(self.bodies.grow(room)).await?;
                is_large = true;
            }
            whole.extend_from_slice(&data);
        }
    }
}

async fn in_time(room: impl Future<Output = Result<Room, AcquireError>>) -> Result<Room, Problem> {
    match tokio::time::timeout(ROOM_TIMEOUT, room).await {
        Ok(Ok(room)) => Ok(room),
        Ok(Err(_)) => Err(Problem::overloaded("the topic ends")),
        Err(_) => Err(Problem::overloaded(
            "too much is being sent at once; nothing was published",
        )),
    }
}

fn broken(error: Box<dyn std::error::Error + Send + Sync>) -> Problem {
    match error.is::<LengthLimitError>() {
        true => body_too_large(),
        false => Problem::bad_request(error.to_string()),
    }
}

/// The service that calls, as the proxy beside the topic says.
fn caller(headers: &HeaderMap) -> Option<ResourceId> {
    headers.get(CALLER)?.to_str().ok()?.parse().ok()
}

/// Ends a connection so that its last answer arrives though the caller is still sending, as where the body is too large: what is unread when a
/// socket is closed takes back what was sent on it (RFC 9112, 9.6).
async fn close(mut stream: TcpStream) {
    let mut rest = [0; 8 << 10];
    let taken = async {
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, taken).await;
}

pub fn parse<Asked: DeserializeOwned>(body: &Bytes) -> Result<Asked, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(error.to_string()))
}

pub fn json(text: String) -> Answer {
    let mut response = Response::new(Text {
        text: Full::from(text),
        loan: None,
    });
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn published(published: &[Published]) -> Answer {
    let positions: Vec<String> = published
        .iter()
        .map(|one| one.position.to_string())
        .collect();
    let duplicates = published.iter().filter(|one| one.duplicate).count();
    json(format!(
        r#"{{"positions":[{}],"duplicates":{duplicates}}}"#,
        positions.join(",")
    ))
}

fn body_too_large() -> Problem {
    Problem::too_large("a body has at most 1 MiB; publish in more requests")
}

fn too_slow() -> Problem {
    Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "too-slow",
        "The body is too slow",
        format!("it did not arrive within {BODY_TIMEOUT:?}"),
    )
}

fn not_allowed() -> Problem {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Problem::new(status, "method-not-allowed", "This takes POST alone", "")
}

fn not_found(path: &str) -> Problem {
    let detail = format!("a topic answers /messages, /pull, /ack, /nack and /extend, not {path}");
    Problem::new(
        StatusCode::NOT_FOUND,
        "not-found",
        "Nothing is there",
        detail,
    )
}
