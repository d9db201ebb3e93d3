//! One connection to a server or a node, and typed methods on it.
//!
//! HTTP/2, so that calls and watches share one connection. It is made when first needed and made anew when it broke. A call that surely did
//! not begin says [`Error::Unreachable`]; one that may have had its effect says [`Error::Unknown`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use model::boundary::AuditRecord;
use model::compute::{Release, Scale, Service};
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired, Rollout};
use model::ids::{Digest, NodeName, ProjectName, ResourceId, ResourceName};
use model::signals::{Event, LogLine};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;

use crate::problem::Problem;
use crate::stream::{self, BoxStream};
use crate::wire;

/// Until the head of an answer is there. A body may take longer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection with calls on it is pinged this often, and given up when no answer came for [`PING_TIMEOUT`].
const PING_INTERVAL: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest body that is read whole.
const BODY_MAX_BYTES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was sent.
    #[error("{address} can't be reached: {cause}")]
    Unreachable { address: String, cause: String },
    /// It was sent, and no whole answer came.
    #[error("the answer of {address} did not come: {cause}; whether it was done is not known")]
    Unknown { address: String, cause: String },
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

async fn tcp(address: &SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
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

/// A client of one server, or of one node's own socket.
pub struct Client {
    transport: Transport,
    token: Option<String>,
    connection: Mutex<Option<SendRequest<Body>>>,
}

impl Client {
    pub fn new(transport: Transport, token: Option<String>) -> Self {
        Self {
            transport,
            token,
            connection: Mutex::new(None),
        }
    }

    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Sends one request, returns the answer's head; a problem becomes an error.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        self.send_within(request, ANSWER_TIMEOUT).await
    }

    pub async fn send_within(
        &self,
        mut request: Request<Body>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Error> {
        self.complete(&mut request)?;
        let mut sender = self.sender().await?;
        let answer = match tokio::time::timeout(timeout, sender.send_request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.forget().await;
                return Err(self.unknown(error));
            }
            Err(_) => {
                self.forget().await;
                return Err(self.unknown(format!("no answer within {timeout:?}")));
            }
        };
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

    async fn sender(&self) -> Result<SendRequest<Body>, Error> {
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let io = self.transport.connect().await?;
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(Pin::new(io)))
            .await;
        let (sender, driver) = handshake.map_err(|error| Error::Unreachable {
            address: self.transport.to_string(),
            cause: error.to_string(),
        })?;
        tokio::spawn(driver);
        *connection = Some(sender.clone());
        Ok(sender)
    }

    async fn forget(&self) {
        *self.connection.lock().await = None;
    }

    fn unknown(&self, cause: impl std::fmt::Display) -> Error {
        Error::Unknown {
            address: self.transport.to_string(),
            cause: cause.to_string(),
        }
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
        let body = Limited::new(answer.into_body(), BODY_MAX_BYTES);
        body.collect()
            .await
            .map(|whole| whole.to_bytes())
            .map_err(|error| self.unknown(error))
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
            address: self.transport.to_string(),
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

/// Typed methods, as people, scripts and the CLI use them.
impl Client {
    pub async fn version(&self) -> Result<wire::Version, Error> {
        self.get("/v1/version").await
    }

    pub async fn health(&self) -> Result<wire::Health, Error> {
        self.get("/v1/health").await
    }

    pub async fn whoami(&self) -> Result<wire::WhoAmI, Error> {
        self.get("/v1/whoami").await
    }

    pub async fn projects(&self) -> Result<wire::List<ProjectName>, Error> {
        self.get("/v1/projects").await
    }

    pub async fn apply(
        &self,
        project: &ProjectName,
        apply: &wire::Apply,
        dry_run: bool,
        idempotency_key: &str,
    ) -> Result<wire::Applied, Error> {
        let path = format!("/v1/projects/{project}/apply?dry_run={dry_run}");
        self.exchange(Method::POST, &path, apply, Some(idempotency_key))
            .await
    }

    pub async fn status(&self, project: &ProjectName) -> Result<wire::ProjectStatus, Error> {
        self.get(&format!("/v1/projects/{project}/status")).await
    }

    pub async fn instances(
        &self,
        project: &ProjectName,
    ) -> Result<wire::List<wire::InstanceView>, Error> {
        self.get(&format!("/v1/projects/{project}/instances")).await
    }

    /// A thing as it is stored, as JSON: for `get`.
    pub async fn resource(
        &self,
        project: &ProjectName,
        kind: wire::Kind,
        name: &str,
    ) -> Result<serde_json::Value, Error> {
        let kind = kind.as_str();
        self.get(&format!("/v1/projects/{project}/{kind}/{}", escape(name)))
            .await
    }

    pub async fn service(
        &self,
        project: &ProjectName,
        name: &ResourceName,
    ) -> Result<Service, Error> {
        self.get(&format!("/v1/projects/{project}/services/{name}"))
            .await
    }

    pub async fn resources(
        &self,
        project: &ProjectName,
        kind: wire::Kind,
    ) -> Result<wire::List<serde_json::Value>, Error> {
        self.get(&format!("/v1/projects/{project}/{}", kind.as_str()))
            .await
    }

    pub async fn delete(
        &self,
        project: &ProjectName,
        kind: wire::Kind,
        name: &str,
        delete_data: bool,
    ) -> Result<Vec<wire::Change>, Error> {
        let kind = kind.as_str();
        let path = format!(
            "/v1/projects/{project}/{kind}/{}?delete_data={delete_data}",
            escape(name)
        );
        let answer = self
            .send(request(Method::DELETE, &path, Bytes::new()))
            .await?;
        self.decode(answer).await
    }

    pub async fn delete_project(
        &self,
        project: &ProjectName,
        delete_data: bool,
    ) -> Result<Vec<wire::Change>, Error> {
        let path = format!("/v1/projects/{project}?delete_data={delete_data}");
        let answer = self
            .send(request(Method::DELETE, &path, Bytes::new()))
            .await?;
        self.decode(answer).await
    }

    pub async fn scale(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        replicas: u32,
    ) -> Result<Scale, Error> {
        let path = format!("/v1/projects/{project}/scales/{service}");
        self.exchange(Method::PUT, &path, &wire::SetScale { replicas }, None)
            .await
    }

    pub async fn restart(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        idempotency_key: &str,
    ) -> Result<wire::Released, Error> {
        let path = format!("/v1/projects/{project}/services/{service}/restart");
        self.exchange(Method::POST, &path, &(), Some(idempotency_key))
            .await
    }

    pub async fn rollback(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        rollback: &wire::Rollback,
        idempotency_key: &str,
    ) -> Result<wire::Released, Error> {
        let path = format!("/v1/projects/{project}/services/{service}/rollback");
        self.exchange(Method::POST, &path, rollback, Some(idempotency_key))
            .await
    }

    pub async fn releases(
        &self,
        project: &ProjectName,
        service: &ResourceName,
    ) -> Result<wire::List<wire::ReleaseView>, Error> {
        self.get(&format!(
            "/v1/projects/{project}/services/{service}/releases"
        ))
        .await
    }

    pub async fn release(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        number: model::ids::ReleaseNumber,
    ) -> Result<Release, Error> {
        self.get(&format!(
            "/v1/projects/{project}/services/{service}/releases/{number}"
        ))
        .await
    }

    pub async fn rollout(
        &self,
        project: &ProjectName,
        service: &ResourceName,
    ) -> Result<Rollout, Error> {
        self.get(&format!("/v1/projects/{project}/rollouts/{service}"))
            .await
    }

    pub async fn set_secret(
        &self,
        project: &ProjectName,
        name: &ResourceName,
        value: &wire::SecretValue,
    ) -> Result<wire::SecretView, Error> {
        let path = format!("/v1/projects/{project}/secrets/{name}/value");
        self.exchange(Method::PUT, &path, value, None).await
    }

    /// A key's value and its revision.
    pub async fn key(&self, project: &ProjectName, name: &str) -> Result<(Bytes, String), Error> {
        let path = key_path(project, name);
        let answer = self.send(request(Method::GET, &path, Bytes::new())).await?;
        let tag = answer.headers().get(header::ETAG);
        let tag = tag.and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        let revision = tag.trim_matches('"').to_owned();
        Ok((self.read(answer).await?, revision))
    }

    pub async fn put_key(
        &self,
        project: &ProjectName,
        name: &str,
        value: impl Into<Bytes>,
        unless: &Unless,
    ) -> Result<wire::KeyWritten, Error> {
        let request = request(Method::PUT, &key_path(project, name), value);
        self.change_key(request, unless).await
    }

    pub async fn delete_key(
        &self,
        project: &ProjectName,
        name: &str,
        unless: &Unless,
    ) -> Result<wire::KeyWritten, Error> {
        let request = request(Method::DELETE, &key_path(project, name), Bytes::new());
        self.change_key(request, unless).await
    }

    async fn change_key(
        &self,
        mut request: Request<Body>,
        unless: &Unless,
    ) -> Result<wire::KeyWritten, Error> {
        request.headers_mut().extend(unless.header());
        let answer = self.send(request).await?;
        self.decode(answer).await
    }

    /// All keys whose names begin with `prefix`, page after page.
    pub async fn keys(
        &self,
        project: &ProjectName,
        prefix: &str,
    ) -> Result<Vec<wire::KeyView>, Error> {
        let mut all: Vec<wire::KeyView> = Vec::new();
        loop {
            let after = all.last().map_or("", |last| last.name.as_str());
            let path = format!(
                "/v1/projects/{project}/keys?prefix={}&after={}",
                escape(prefix),
                escape(after)
            );
            let page: wire::Keys = self.get(&path).await?;
            all.extend(page.items);
            if !page.more {
                return Ok(all);
            }
        }
    }

    pub async fn explain(
        &self,
        project: &ProjectName,
        subject: &str,
    ) -> Result<wire::Explanation, Error> {
        self.get(&format!(
            "/v1/projects/{project}/explain/{}",
            escape(subject)
        ))
        .await
    }

    pub async fn explain_node(&self, node: &NodeName) -> Result<wire::Explanation, Error> {
        self.get(&format!("/v1/nodes/{node}/explain")).await
    }

    pub async fn events(
        &self,
        project: Option<&ProjectName>,
        after: u64,
    ) -> Result<wire::List<Event>, Error> {
        self.get(&events_path(project, after, false)).await
    }

    pub async fn watch_events(
        &self,
        project: Option<&ProjectName>,
        after: u64,
    ) -> Result<BoxStream<Result<Event, stream::Error>>, Error> {
        self.watch(&events_path(project, after, true)).await
    }

    pub async fn nodes(&self) -> Result<wire::List<wire::NodeView>, Error> {
        self.get("/v1/nodes").await
    }

    /// Stops (`true`) or resumes (`false`) new placements on a node.
    pub async fn cordon(&self, node: &NodeName, cordoned: bool) -> Result<wire::NodeView, Error> {
        self.exchange(
            Method::PUT,
            &format!("/v1/nodes/{node}/cordoned"),
            &cordoned,
            None,
        )
        .await
    }

    /// Removes a node for good, or says what that would cost.
    pub async fn remove_node(
        &self,
        node: &NodeName,
        dry_run: bool,
    ) -> Result<wire::NodeRemoved, Error> {
        let path = format!("/v1/nodes/{node}?dry_run={dry_run}");
        let answer = self
            .send(request(Method::DELETE, &path, Bytes::new()))
            .await?;
        self.decode(answer).await
    }

    /// Says that the nodes that vanished at once are gone.
    pub async fn release_brake(&self) -> Result<wire::BrakeReleased, Error> {
        self.exchange(Method::POST, "/v1/brake/release", &(), None)
            .await
    }

    pub async fn audit(&self, limit: u32) -> Result<wire::List<AuditRecord>, Error> {
        self.get(&format!("/v1/audit?limit={limit}")).await
    }

    /// The lines of one instance: the last `tail`, and with `follow` what comes.
    pub async fn logs(
        &self,
        project: &ProjectName,
        instance: &str,
        tail: u32,
        follow: bool,
    ) -> Result<BoxStream<Result<LogLine, stream::Error>>, Error> {
        self.watch(&format!(
            "/v1/projects/{project}/instances/{instance}/logs?tail={tail}&follow={follow}"
        ))
        .await
    }

    pub async fn exec(
        &self,
        project: &ProjectName,
        instance: &str,
        frames: impl futures_util::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<BoxStream<Result<stream::Frame, stream::Error>>, Error> {
        self.duplex(
            &format!("/v1/projects/{project}/instances/{instance}/exec"),
            frames,
        )
        .await
    }

    pub async fn make_join_token(
        &self,
        ask: &wire::MakeJoinToken,
    ) -> Result<wire::MadeJoinToken, Error> {
        self.exchange(Method::POST, "/v1/join-tokens", ask, None)
            .await
    }

    pub async fn begin_upload(
        &self,
        digest: &Digest,
        size: model::units::Bytes,
    ) -> Result<wire::UploadState, Error> {
        let path = format!("/v1/artifacts/{digest}");
        self.exchange(Method::PUT, &path, &wire::BeginUpload { size }, None)
            .await
    }

    pub async fn upload_chunk(
        &self,
        digest: &Digest,
        offset: u64,
        chunk: Bytes,
    ) -> Result<wire::UploadState, Error> {
        let path = format!("/v1/artifacts/{digest}?offset={offset}");
        let answer = self.send(request(Method::PATCH, &path, chunk)).await?;
        self.decode(answer).await
    }
}

/// What a node asks its servers.
impl Client {
    pub async fn join(&self, join: &wire::Join) -> Result<wire::Joined, Error> {
        self.exchange(Method::POST, "/v1/join", join, None).await
    }

    pub async fn renew(
        &self,
        node: &NodeName,
        ask: &wire::CertificateRequest,
    ) -> Result<wire::Joined, Error> {
        self.exchange(Method::POST, &format!("/v1/nodes/{node}/renew"), ask, None)
            .await
    }

    pub async fn service_certificate(
        &self,
        node: &NodeName,
        service: &ResourceId,
        ask: &wire::CertificateRequest,
    ) -> Result<wire::CertificateAnswer, Error> {
        let path = format!("/v1/nodes/{node}/certificates/{service}");
        self.exchange(Method::POST, &path, ask, None).await
    }

    pub async fn secret_values(
        &self,
        node: &NodeName,
        service: &ResourceId,
    ) -> Result<wire::SecretValues, Error> {
        self.get(&format!("/v1/nodes/{node}/secrets/{service}"))
            .await
    }

    pub async fn heartbeat(
        &self,
        node: &NodeName,
        heartbeat: &Heartbeat,
        timeout: Duration,
    ) -> Result<HeartbeatAnswer, Error> {
        let json = serde_json::to_vec(heartbeat).expect("wire types are plain data");
        let request = request(Method::POST, &format!("/v1/nodes/{node}/heartbeat"), json);
        let answer = self.send_within(request, timeout).await?;
        self.decode(answer).await
    }

    /// What the node should run: whole at once, then whole again with each change.
    pub async fn watch_desired(
        &self,
        node: &NodeName,
    ) -> Result<BoxStream<Result<NodeDesired, stream::Error>>, Error> {
        self.watch(&format!("/v1/nodes/{node}/desired?watch=true"))
            .await
    }

    /// The bytes of an artifact from `offset` on.
    pub async fn artifact(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Response<Incoming>, Error> {
        self.send(request(
            Method::GET,
            &format!("/v1/artifacts/{digest}?offset={offset}"),
            Bytes::new(),
        ))
        .await
    }
}

fn key_path(project: &ProjectName, name: &str) -> String {
    format!("/v1/projects/{project}/keys/{}", escape(name))
}

fn events_path(project: Option<&ProjectName>, after: u64, watch: bool) -> String {
    match project {
        Some(project) => format!("/v1/projects/{project}/events?after={after}&watch={watch}"),
        None => format!("/v1/events?after={after}&watch={watch}"),
    }
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
