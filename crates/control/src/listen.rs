//! Takes connections: TLS, and on loopback plain ones as well; HTTP/1.1 and HTTP/2 on both.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use api::window;
use axum::Router;
use axum::body::{Body, HttpBody};
use boundary::authority::{self, Authority, Terms};
use http::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use model::boundary::{Holder, SpiffeId};
use model::traffic::Identity;
use rustls::ServerConfig;
use tls::{ClientAuth, Expect};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::clock::Clock;
use crate::dispatch::Peer;
use crate::seats::{self, Answering, Client, Over, Seat, Seats};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// On another one: as many as a client with a token may follow at once. Strangers have fewer ([`dispatch`](crate::dispatch)).
const STREAMS_UNPROVEN_MOST: u32 = 256;
/// Longest head over HTTP/1.1, and what is read ahead of a body.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// What is being answered when the server ends has this long.
const ENDING_GRACE: Duration = Duration::from_millis(500);
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The server's own certificate, exchanged before it ends.
pub struct Certificate {
    config: Mutex<Arc<ServerConfig>>,
    addresses: Vec<std::net::IpAddr>,
    chain: Mutex<String>,
}

impl Certificate {
    pub fn new(
        authority: &Authority,
        addresses: &[SocketAddr],
        clock: &Clock,
    ) -> Result<Self, Error> {
        let addresses: Vec<_> = addresses
            .iter()
            .map(SocketAddr::ip)
            .filter(|address| !address.is_unspecified())
            .collect();
        let identity = identity(authority, &addresses, clock)?;
        let config = config(authority, &identity, clock)?;
        Ok(Self {
            config: Mutex::new(Arc::new(config)),
            addresses,
            chain: Mutex::new(identity.certificate),
        })
    }

    fn current(&self) -> Arc<ServerConfig> {
        self.config
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes a new one once the old has lived half of its life. True: it did.
    pub fn rotate(&self, authority: &Authority, clock: &Clock) -> Result<bool, Error> {
        let chain = self
            .chain
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if !authority::needs_rotation(&chain, clock.at()).unwrap_or(true) {
            return Ok(false);
        }
        let identity = identity(authority, &self.addresses, clock)?;
        let config = config(authority, &identity, clock)?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = identity.certificate;
        Ok(true)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the server's certificate can't be made: {0}")]
    Certificate(#[from] authority::Error),
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] tls::Error),
}

fn identity(
    authority: &Authority,
    addresses: &[std::net::IpAddr],
    clock: &Clock,
) -> Result<Identity, Error> {
    let id = SpiffeId {
        cluster: authority.cluster().to_owned(),
        holder: Holder::Server,
    };
    let terms = Terms {
        dns_names: vec![
            "localhost".to_owned(),
            "server.mainland.internal".to_owned(),
        ],
        addresses: addresses.to_vec(),
        ..Terms::default()
    };
    Ok(authority.identity(&id, &terms, clock.at())?)
}

fn config(
    authority: &Authority,
    identity: &Identity,
    clock: &Clock,
) -> Result<ServerConfig, Error> {
    let mut config = tls::server_config(
        identity,
        authority.certificate(),
        ClientAuth::Optional,
        Expect::Anyone,
        clock.wall(),
    )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What a listener speaks.
#[derive(Clone)]
pub enum Speaks {
    Tls(Arc<Certificate>),
    /// Both, told apart by the first byte: 22 begins a TLS record (RFC 8446 5.1) and no request.
    Either(Arc<Certificate>),
}

/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 22;

/// Serves one listener until the server ends.
pub async fn serve(
    listener: TcpListener,
    speaks: Speaks,
    router: Router,
    clock: Clock,
    mut ending: watch::Receiver<bool>,
) {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let descriptors = descriptors.map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    });
    let seats = Seats::new(seats::Limits::within(descriptors));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.wait_for(|ending| *ending) => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection = Connection {
                    router: router.clone(),
                    clock: clock.clone(),
                    ending: ending.clone(),
                    seat: Arc::new(seats.take(Client::of(address.ip()))),
                };
                tokio::spawn(connection.take(stream, speaks.clone()));
            }
            Err(error) => {
                // Too many open files: others must end first.
                tracing::warn!(%error, "a connection could not be taken");
                seats.close_one();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

struct Connection {
    router: Router,
    clock: Clock,
    ending: watch::Receiver<bool>,
    seat: Arc<Seat>,
}

impl Connection {
    async fn take(self, stream: TcpStream, speaks: Speaks) {
        let _ = stream.set_nodelay(true);
        let seat = self.seat.clone();
        let begun = tokio::select! {
            begun = begin(stream, speaks, &seat) => begun,
            _ = seat.over() => return,
        };
        match begun {
            Ok((stream, peer)) => self.serve(stream, peer).await,
            Err(error) => tracing::debug!(%error, "a handshake failed"),
        }
    }

    async fn serve(mut self, stream: Box<dyn Io>, peer: Peer) {
        let (router, seat) = (self.router.clone(), self.seat.clone());
        let builder = builder(&peer);
        let ends_at = peer.ends_at;
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            let (router, answering) = (router.clone(), seat.answer());
            async move {
                let answer = router.oneshot(request).await?;
                Ok::<_, std::convert::Infallible>(answer.map(|body| Answer { body, answering }))
            }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = ends(&mut self.ending) => None,
            () = self.clock.until(ends_at) => None,
            over = self.seat.over() => match over {
                // Its seat is another's already: what it holds must not be counted beside that.
                Over::Displaced => return,
                Over::TooLong => None,
            },
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "a connection ended"),
            None => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(ENDING_GRACE, connection).await;
            }
        }
    }
}

/// Until requests can be read. The caller bounds how long it takes.
async fn begin(
    stream: TcpStream,
    speaks: Speaks,
    seat: &Arc<Seat>,
) -> io::Result<(Box<dyn Io>, Peer)> {
    let (certificate, is_plain) = match speaks {
        Speaks::Tls(certificate) => (certificate, false),
        Speaks::Either(certificate) => {
            let mut first = [0];
            let count = stream.peek(&mut first).await?;
            (certificate, count == 1 && first[0] != TLS_HANDSHAKE)
        }
    };
    let mut peer = Peer {
        id: None,
        ends_at: None,
        seat: seat.clone(),
    };
    let stream = Heard {
        io: stream,
        seat: seat.clone(),
    };
    if is_plain {
        return Ok((Box::new(stream), peer));
    }
    let acceptor = TlsAcceptor::from(certificate.current());
    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
    let stream = accepted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    peer.id = tls::peer_id(chain).ok();
    peer.ends_at = tls::certificate::end_of(chain).ok();
    if peer.id.is_some() {
        seat.prove();
    }
    Ok((Box::new(stream), peer))
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection's bytes. It keeps the seat, as a tunnel also after its requests have ended, and tells it when something is read: in a
/// handshake as well, since who is in the middle of one is not silent.
struct Heard {
    io: TcpStream,
    seat: Arc<Seat>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.seat.hear();
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// An answer's body: while it goes on, as a watch does, its connection is not silent.
struct Answer {
    body: Body,
    #[expect(dead_code, reason = "what counts is that it lives")]
    answering: Answering,
}

impl HttpBody for Answer {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Returns once the server ends.
pub async fn ends(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}

fn builder(peer: &Peer) -> auto::Builder<TokioExecutor> {
    let streams = match peer.id {
        Some(_) => window::STREAMS_MOST,
        None => STREAMS_UNPROVEN_MOST,
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(HEAD_MAX_BYTES)
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
