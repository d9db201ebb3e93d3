//! Takes connections: plain on loopback, TLS elsewhere and for nodes; HTTP/1.1 and HTTP/2 on both.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use boundary::authority::{self, Authority, Terms};
use boundary::tls::{self, ClientAuth, Expect};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use model::boundary::{Holder, SpiffeId};
use model::traffic::Identity;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::clock::Clock;
use crate::dispatch::Peer;

/// Connections of one listener at a time.
const CONNECTIONS_MOST: usize = 20_000;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
const STREAMS_MOST: u32 = 1_000;
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

/// Serves one listener until the server ends.
pub async fn serve(
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MOST));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.wait_for(|ending| *ending) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = Connection {
                    router: router.clone(),
                    ending: ending.clone(),
                    _permit: permit,
                };
                tokio::spawn(connection.take(stream, certificate.clone()));
            }
            Err(error) => {
                // Too many open files: others must end first.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

struct Connection {
    router: Router,
    ending: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn take(self, stream: TcpStream, certificate: Option<Arc<Certificate>>) {
        let _ = stream.set_nodelay(true);
        let Some(certificate) = certificate else {
            return self.serve(stream, Peer { id: None }).await;
        };
        let acceptor = TlsAcceptor::from(certificate.current());
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let id = tls::peer_id(chain).ok();
                self.serve(stream, Peer { id }).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
            Err(_) => tracing::debug!("a handshake took too long"),
        }
    }

    async fn serve(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
    ) {
        let router = self.router.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            router.clone().oneshot(request)
        });
        let builder = builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = ends(&mut self.ending) => None,
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

/// Returns once the server ends.
pub async fn ends(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MOST)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// What a listener without a certificate may be bound to.
pub fn needs_tls(address: &SocketAddr) -> bool {
    !address.ip().is_loopback()
}
