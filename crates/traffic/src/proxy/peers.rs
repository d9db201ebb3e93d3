//! Connections to other proxies: HTTP/2 over mutual TLS, one for each calling identity, peer and use, per worker.
//!
//! A peer is pinged while requests wait on it; when it is silent for two intervals the connection is dropped and all that waited on
//! it learn at once. A peer that could not be reached is not dialled again for a moment, so that requests do not queue up behind
//! a dead address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use model::ids::{NodeName, ResourceId};
use model::timing::{
    PEER_CONNECT_TIMEOUT, PEER_PING_EVERY, PEER_SILENCE, TUNNEL_PING_EVERY, TUNNEL_SILENCE,
};
use rustls::ClientConfig;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::body::RequestBody;
use super::failure::{Failure, chain};
use super::tls::server_name;
use super::view::{Target, View};
use super::wire::MOST_HEADER_BYTES;

const REDIAL_AFTER: Duration = Duration::from_millis(200);
/// Larger reads pass the buffer by.
const FIRST_BYTES: usize = 1024;
const STREAM_WINDOW: u32 = 256 * 1024;
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

type Sender = SendRequest<RequestBody>;

/// What a connection carries. Long-lived bytes and requests share none: they ask for other patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Requests,
    Tunnels,
}

impl Use {
    fn pings(self) -> (Duration, Duration) {
        match self {
            Self::Requests => (PEER_PING_EVERY, PEER_SILENCE),
            Self::Tunnels => (TUNNEL_PING_EVERY, TUNNEL_SILENCE),
        }
    }
}

#[derive(Default)]
pub struct Peers {
    /// By mesh port; behind each the few identities that call it, searched one by one.
    peers: Mutex<HashMap<SocketAddr, Vec<Known>>>,
}

struct Known {
    caller: Option<ResourceId>,
    node: NodeName,
    carries: Use,
    peer: Arc<Peer>,
}

#[derive(Default)]
struct Peer {
    state: Mutex<State>,
    /// Held by the one who dials.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    failed: Option<(Instant, String)>,
}

struct Connection {
    sender: Sender,
    /// What it was made with: a renewed certificate asks for a new connection.
    identity: Arc<ClientConfig>,
}

impl Peers {
    /// A connection to the proxy of `target`, made as `caller`; dialled when there is none.
    pub async fn connection(
        &self,
        view: &View,
        caller: Option<&ResourceId>,
        target: &Target,
        carries: Use,
    ) -> Result<Sender, Failure> {
        let Some(identity) = view.tls.client(caller) else {
            return Err(Failure::not_begun(
                "this node holds no certificate of the caller",
            ));
        };
        let peer = self.peer(caller, target, carries);
        if let Some(found) = peer.usable(identity) {
            return found;
        }
        let _dialling = peer.dialling.lock().await;
        if let Some(found) = peer.usable(identity) {
            return found;
        }
        // Rare, and large: kept out of the future of every request.
        let dialled = Box::pin(dial(identity, target, carries)).await;
        peer.keep(identity, dialled)
    }

    fn peer(&self, caller: Option<&ResourceId>, target: &Target, carries: Use) -> Arc<Peer> {
        let mut peers = self.lock();
        let known = peers.entry(target.mesh).or_default();
        let same = |it: &&Known| {
            it.caller.as_ref() == caller && it.node == target.node && it.carries == carries
        };
        if let Some(found) = known.iter().find(same) {
            return found.peer.clone();
        }
        let peer = Arc::<Peer>::default();
        known.push(Known {
            caller: caller.cloned(),
            node: target.node.clone(),
            carries,
            peer: peer.clone(),
        });
        peer
    }

    /// Forgets peers that are no longer in any road.
    pub fn tidy(&self, view: &View) {
        let known = view.mesh_addresses();
        self.lock().retain(|mesh, _| known.contains(mesh));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<Known>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// `None`: one must dial.
    fn usable(&self, identity: &Arc<ClientConfig>) -> Option<Result<Sender, Failure>> {
        let mut state = self.lock();
        if let Some(connection) = &state.connection {
            if !connection.sender.is_closed() && Arc::ptr_eq(&connection.identity, identity) {
                return Some(Ok(connection.sender.clone()));
            }
            state.connection = None;
        }
        match &state.failed {
            Some((at, reason)) if at.elapsed() < REDIAL_AFTER => {
                Some(Err(Failure::unreachable(reason.clone())))
            }
            _ => None,
        }
    }

    fn keep(
        &self,
        identity: &Arc<ClientConfig>,
        dialled: Result<Sender, String>,
    ) -> Result<Sender, Failure> {
        let mut state = self.lock();
        match dialled {
            Ok(sender) => {
                state.failed = None;
                state.connection = Some(Connection {
                    sender: sender.clone(),
                    identity: identity.clone(),
                });
                Ok(sender)
            }
            Err(reason) => {
                state.failed = Some((Instant::now(), reason.clone()));
                Err(Failure::unreachable(reason))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dial(
    identity: &Arc<ClientConfig>,
    target: &Target,
    carries: Use,
) -> Result<Sender, String> {
    let node = &target.node;
    match tokio::time::timeout(PEER_CONNECT_TIMEOUT, handshake(identity, target, carries)).await {
        Ok(Ok(sender)) => Ok(sender),
        Ok(Err(error)) => Err(format!(
            "the proxy of node {node} can't be reached: {error}"
        )),
        Err(_) => Err(format!("the proxy of node {node} did not answer within 1s")),
    }
}

async fn handshake(
    identity: &Arc<ClientConfig>,
    target: &Target,
    carries: Use,
) -> Result<Sender, String> {
    let stream = TcpStream::connect(target.mesh)
        .await
        .map_err(|error| error.to_string())?;
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(identity.clone())
        .connect(server_name(&target.node), stream)
        .await
        .map_err(|error| error.to_string())?;
    // The peer judges our certificate after our own part of the handshake. Its first bytes say that it let us in; without
    // them a request that it refuses to read would look as if it might have begun.
    let mut stream = BufReader::with_capacity(FIRST_BYTES, stream);
    let first = stream.fill_buf().await.map_err(|error| error.to_string())?;
    if first.is_empty() {
        return Err("it closed the connection".to_owned());
    }
    let (every, silence) = carries.pings();
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(every)
        .keep_alive_timeout(silence)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(2 * MOST_HEADER_BYTES as u32)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| chain(&error))?;
    tokio::spawn(async move {
        // Its errors reach the requests that wait.
        let _ = connection.await;
    });
    Ok(sender)
}
