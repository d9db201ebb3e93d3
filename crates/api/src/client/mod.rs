//! One connection to a server or a node, and typed methods on it.
//!
//! HTTP/2, so that calls and watches share one connection. It is made when first needed and made anew when it broke. A call that surely did
//! not begin says [`Error::Unreachable`]; one that may have had its effect says [`Error::Unknown`], and one that only asks
//! [`Error::Silent`].

mod connection;
mod engines;
mod nodes;
mod people;

pub use engines::Range;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use connection::Connection;

use crate::problem::Problem;
use crate::stream::{self, BoxStream};

/// Until the head of an answer is there. A body may take longer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// When the dials of one connection begin.
const DIALS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_millis(700),
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection with calls on it is pinged this often, and given up when no answer came for [`PING_TIMEOUT`].
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest body that is read whole.
const BODY_MAX_BYTES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was sent.
    #[error("{address} can't be reached: {cause}")]
    Unreachable { address: String, cause: String },
    /// Something answers there, and did not prove that it is the server. Nothing was sent to it.
    #[error("what answers at {address} is not the server of this cloud: {cause}")]
    NotTheServer { address: String, cause: String },
    /// Something answers there, and nothing says what it must prove. Nothing was sent to it.
    #[error("nothing is sent to {address}: nothing proves that a server of yours is there")]
    Unproven { address: String },
    /// It was sent, and no whole answer came.
    #[error("the answer of {address} did not come: {cause}; whether it was done is not known")]
    Unknown { address: String, cause: String },
    /// It was asked, and no whole answer came. Nothing can have changed.
    #[error("the answer of {address} did not come: {cause}")]
    Silent { address: String, cause: String },
    /// The server refused, or failed and said so.
    #[error("{0}")]
    Refused(Box<Problem>),
    #[error("{address} answered what is not expected: {cause}")]
    Malformed { address: String, cause: String },
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(Box::new(problem))
    }
}

impl Error {
    /// The problem's code, if the server sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(problem) => Some(&problem.code),
            _ => None,
        }
    }
}

/// How to get there.
#[derive(Clone)]
pub enum Transport {
    /// Loopback only: nothing is encrypted.
    Tcp(SocketAddr),
    Unix(PathBuf),
    Tls {
        address: SocketAddr,
        config: Arc<rustls::ClientConfig>,
        name: rustls_pki_types::ServerName<'static>,
    },
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tls { address, .. } => write!(f, "https://{address}"),
        }
    }
}

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Transport {
    /// Connects; the caller speaks what it likes.
    pub async fn connect(&self) -> Result<Box<dyn Io>, Error> {
        let unreachable = |cause: String| Error::Unreachable {
            address: self.to_string(),
            cause,
        };
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_unbounded());
        match connecting.await {
            // A handshake that did not end as it must: that is the kind that TLS gives.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(Error::NotTheServer {
                    address: self.to_string(),
                    cause: error.to_string(),
                })
            }
            Ok(result) => result.map_err(|error| unreachable(error.to_string())),
            Err(_) => Err(unreachable(format!(
                "no connection within {CONNECT_TIMEOUT:?}"
            ))),
        }
    }

    async fn connect_unbounded(&self) -> std::io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Tcp(address) => Box::new(tcp(address).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tls {
                address,
                config,
                name,
            } => {
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                Box::new(connector.connect(name.clone(), tcp(address).await?).await?)
            }
        })
    }
}

/// A SYN that is lost is sent again by the kernel after a second, and then after three: too late for who has a lease to keep. So another dial
/// begins before; whichever ends first is taken.
async fn tcp(address: &SocketAddr) -> std::io::Result<TcpStream> {
    use futures_util::future::{FutureExt, select_all};
    let dial = |after: Duration| {
        async move {
            tokio::time::sleep(after).await;
            TcpStream::connect(address).await
        }
        .boxed()
    };
    let dials = DIALS.map(dial);
    let (stream, ..) = select_all(dials).await;
    let stream = stream?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// When a key may be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unless {
    /// Whatever it is.
    Never,
    /// Unless there is one.
    Present,
    /// Unless its revision is another one.
    Changed(String),
}

impl Unless {
    fn header(&self) -> Option<(header::HeaderName, HeaderValue)> {
        match self {
            Self::Never => None,
            Self::Present => Some((header::IF_NONE_MATCH, HeaderValue::from_static("*"))),
            // A text that can't be a header is no revision: it must not turn into a change without a condition.
            Self::Changed(revision) => {
                let tag = HeaderValue::try_from(format!("\"{revision}\""));
                let tag = tag.unwrap_or_else(|_| HeaderValue::from_static("\"\""));
                Some((header::IF_MATCH, tag))
            }
        }
    }
}

/// A body that is sent: whole, or as it comes.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BodyError>;
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is there already.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that is sent as the stream yields.
pub fn streamed(chunks: impl futures_util::Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures_util::StreamExt;
    let frames = chunks.map(|bytes| Ok(http_body::Frame::data(bytes)));
    http_body_util::StreamBody::new(frames).boxed_unsync()
}

/// Whether a request only asks, so that it changes nothing.
#[derive(Clone, Copy)]
struct Asks(bool);

/// A client of one server, or of one node's own socket.
pub struct Client {
    token: Option<String>,
    connection: Connection,
    /// Whoever answers may be anybody: it is asked what anybody may ask, and told nothing.
    only_asks: bool,
}

impl Client {
    pub fn new(transport: Transport, token: Option<String>) -> Self {
        Self {
            token,
            connection: Connection::new(transport),
            only_asks: false,
        }
    }

    /// One for an address at which anybody may answer: it asks, and whatever has a body is refused ([`Error::Unproven`]) as soon as something
    /// answers there.
    pub fn only_asking(transport: Transport) -> Self {
        Self {
            only_asks: true,
            ..Self::new(transport, None)
        }
    }

    /// One more to the same place, as the same: with a connection of its own.
    pub fn another(&self) -> Self {
        Self {
            only_asks: self.only_asks,
            ..Self::new(self.transport().clone(), self.token.clone())
        }
    }

    pub fn transport(&self) -> &Transport {
        self.connection.transport()
    }

    /// Whether there is a connection that is not known to be gone.
    pub fn is_connected(&self) -> bool {
        self.connection.stands()
    }

    /// Begins to make a connection, and waits for nothing.
    pub fn begin_to_connect(&self) {
        drop(self.connection.make());
    }

    /// Sends one request, returns the answer's head; a problem becomes an error.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        self.send_within(request, ANSWER_TIMEOUT).await
    }

    /// `timeout`: for all of it, from connecting to the answer's head.
    pub async fn send_within(
        &self,
        mut request: Request<Body>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Error> {
        self.complete(&mut request)?;
        let asks = Asks(request.method().is_safe());
        let deadline = tokio::time::Instant::now() + timeout;
        let sender = tokio::time::timeout_at(deadline, self.connection.sender()).await;
        let mut sender = sender.map_err(|_| Error::Unreachable {
            address: self.transport().to_string(),
            cause: format!("no connection within {timeout:?}"),
        })??;
        if self.only_asks && !request.method().is_safe() {
            let address = self.transport().to_string();
            return Err(Error::Unproven { address });
        }
        let answer = tokio::time::timeout_at(deadline, sender.send_request(request)).await;
        let mut answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.connection.doubt();
                return Err(self.unanswered(asks, error));
            }
            Err(_) => {
                self.connection.doubt();
                return Err(self.unanswered(asks, format!("no answer within {timeout:?}")));
            }
        };
        answer.extensions_mut().insert(asks);
        if answer.status().is_client_error() || answer.status().is_server_error() {
            return Err(self.problem(answer).await);
        }
        Ok(answer)
    }

    fn complete(&self, request: &mut Request<Body>) -> Result<(), Error> {
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Problem::invalid("the token holds characters that no token has"))?;
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        if request.uri().authority().is_none() {
            let path = request
                .uri()
                .path_and_query()
                .map_or("/", |path| path.as_str());
            *request.uri_mut() = format!("http://mainland{path}")
                .parse()
                .map_err(|_| Problem::invalid(format!("`{path}` is not a path")))?;
        }
        Ok(())
    }

    fn unanswered(&self, Asks(only): Asks, cause: impl std::fmt::Display) -> Error {
        let (address, cause) = (self.transport().to_string(), cause.to_string());
        match only {
            true => Error::Silent { address, cause },
            false => Error::Unknown { address, cause },
        }
    }

    /// The whole of an answer did not come in time.
    fn too_late(&self, timeout: Duration) -> Error {
        self.connection.doubt();
        self.unanswered(Asks(false), format!("no answer within {timeout:?}"))
    }

    async fn problem(&self, answer: Response<Incoming>) -> Error {
        let status = answer.status();
        match self.read(answer).await {
            Ok(bytes) => match serde_json::from_slice::<Problem>(&bytes) {
                Ok(problem) => problem.into(),
                Err(_) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    Problem::new(status.as_u16(), "unexpected", status.to_string())
                        .detail(text)
                        .into()
                }
            },
            Err(error) => error,
        }
    }

    async fn read(&self, answer: Response<Incoming>) -> Result<Bytes, Error> {
        let asks = answer.extensions().get().copied().unwrap_or(Asks(false));
        let body = Limited::new(answer.into_body(), BODY_MAX_BYTES);
        body.collect()
            .await
            .map(|whole| whole.to_bytes())
            .map_err(|error| self.unanswered(asks, error))
    }

    async fn decode<T: DeserializeOwned>(&self, answer: Response<Incoming>) -> Result<T, Error> {
        if answer.status() == StatusCode::NO_CONTENT {
            return serde_json::from_slice(b"null").map_err(|error| self.malformed(error));
        }
        let bytes = self.read(answer).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.malformed(error))
    }

    fn malformed(&self, cause: impl std::fmt::Display) -> Error {
        Error::Malformed {
            address: self.transport().to_string(),
            cause: cause.to_string(),
        }
    }

    /// `GET` of a JSON body.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let answer = self.send(request(Method::GET, path, Bytes::new())).await?;
        self.decode(answer).await
    }

    /// A request with a JSON body and a JSON answer. A POST carries a fresh `Idempotency-Key` where the caller gives one.
    pub async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        idempotency_key: Option<&str>,
    ) -> Result<T, Error> {
        let json = serde_json::to_vec(body).expect("wire types are plain data");
        let mut request = request(method, path, json);
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(key) = idempotency_key.and_then(|key| HeaderValue::try_from(key).ok()) {
            request.headers_mut().insert("idempotency-key", key);
        }
        let answer = self.send(request).await?;
        self.decode(answer).await
    }

    /// A stream of JSON texts.
    pub async fn watch<T>(&self, path: &str) -> Result<BoxStream<Result<T, stream::Error>>, Error>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let answer = self.send(request(Method::GET, path, Bytes::new())).await?;
        Ok(stream::json_lines(answer.into_body()))
    }

    /// Both ways at once: `exec`. The head of the answer comes as soon as the other side has taken the request.
    pub async fn duplex(
        &self,
        path: &str,
        frames: impl futures_util::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<BoxStream<Result<stream::Frame, stream::Error>>, Error> {
        let mut request = request(Method::POST, path, Bytes::new());
        *request.body_mut() = streamed(frames);
        let answer = self.send(request).await?;
        Ok(stream::frames(answer.into_body()))
    }
}

/// A request of this API without its authority.
pub fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    let mut request = Request::new(whole(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    request
}

/// Percent-encodes what a path segment can't hold (RFC 3986 `pchar` without `%`, and `/` encoded).
pub fn escape(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@!$'()*,;=".contains(&byte);
    segment
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use tokio::time::{Instant, sleep};

    const SOON: Duration = Duration::from_millis(1_200);

    async fn ask(client: &Client) -> Result<Response<Incoming>, Error> {
        let ask = request(Method::GET, "/v1/version", "");
        client.send_within(ask, SOON).await
    }

    /// Answers with an empty 200, unless it is to be silent.
    async fn answer(
        listener: tokio::net::TcpListener,
        silent: Arc<AtomicBool>,
        taken: Arc<AtomicUsize>,
    ) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let number = taken.fetch_add(1, Ordering::SeqCst);
            let silent = silent.clone();
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                // Only the first connection is ever silent.
                let silent = number == 0 && silent.load(Ordering::SeqCst);
                async move {
                    if silent {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(whole("null")))
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    }

    #[tokio::test]
    async fn a_late_answer_costs_no_connection_before_another_stands() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silent, taken) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let server = tokio::spawn(answer(listener, silent.clone(), taken.clone()));
        let client = Client::new(Transport::Tcp(address), None);
        ask(&client).await.unwrap();
        assert!(client.is_connected());
        silent.store(true, Ordering::SeqCst);
        assert!(ask(&client).await.is_err(), "it is late");
        assert!(client.is_connected(), "and kept");
        ask(&client).await.expect("another one stands");
        assert_eq!(taken.load(Ordering::SeqCst), 2);
        server.abort();
    }

    /// A server that does not come to accept: its queue is full, and SYNs are lost.
    #[tokio::test]
    async fn the_timeout_covers_connecting_and_the_dial_goes_on() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        for _ in 0..4 {
            let dial = TcpStream::connect(address);
            let dialled = tokio::time::timeout(Duration::from_millis(100), dial).await;
            filling.extend(dialled);
        }
        assert!(filling.len() < 4, "the queue has an end");
        let client = Client::new(Transport::Tcp(address), None);
        let began = Instant::now();
        let first = ask(&client).await;
        assert!(matches!(first, Err(Error::Unreachable { .. })), "{first:?}");
        assert!(
            began.elapsed() < SOON + Duration::from_millis(700),
            "{:?}",
            began.elapsed()
        );
        drop(filling);
        let server = tokio::spawn(answer(listener, Arc::default(), Arc::default()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = ask(&client).await {
            assert!(Instant::now() < deadline, "{error}");
            sleep(Duration::from_millis(20)).await;
        }
        server.abort();
    }

    #[tokio::test]
    async fn what_only_asks_leaves_nothing_unknown() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Takes what is sent, and goes away.
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut taken = [0; 24];
                let _ = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut taken).await;
            }
        });
        let client = Client::new(Transport::Tcp(address), None);
        for (method, is_known) in [(Method::GET, true), (Method::PUT, false)] {
            let answer = client
                .send(request(method.clone(), "/v1/version", ""))
                .await;
            match answer {
                Err(Error::Silent { .. }) if is_known => {}
                Err(Error::Unknown { .. }) if !is_known => {}
                other => panic!("{method}: {other:?}"),
            }
        }
        server.abort();
        drop(client);
        let nobody = Client::new(Transport::Tcp(address), None);
        let _ = server.await;
        let answer = nobody.send(request(Method::PUT, "/v1/version", "")).await;
        assert!(
            matches!(answer, Err(Error::Unreachable { .. })),
            "{answer:?}"
        );
    }
}
