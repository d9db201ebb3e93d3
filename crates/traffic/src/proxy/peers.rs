//! Connections to other proxies: HTTP/2 over mutual TLS, one for each calling identity, peer and use, per worker. How far a sender may be ahead
//! of its reader is said in [`super::window`].
//!
//! A peer is pinged while requests wait on it; when it is silent for two intervals the connection is dropped and all that waited on
//! it learn at once. A peer that could not be reached is not dialled again for a moment, so that requests do not queue up behind
//! a dead address.

mod tasks;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::boundary::KeyFingerprint;
use model::ids::{NodeName, ResourceId};
use model::timing::{
    PEER_CONNECT_TIMEOUT, PEER_PING_EVERY, PEER_SILENCE, TUNNEL_PING_EVERY, TUNNEL_SILENCE,
};
use rustls::ClientConfig;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use self::tasks::Tasks;
use super::body::RequestBody;
use super::failure::{Failure, chain};
use super::tls::{self, ClientIdentity, Life, Tls};
use super::view::{Shared, Target, View};
use super::window::{self, MOST_WINDOW, Seat, Width};
use super::wire::MOST_HEADER_BYTES;
use super::worker::Common;

const REDIAL_AFTER: Duration = Duration::from_millis(200);
/// Larger reads pass the buffer by.
const FIRST_BYTES: usize = 1024;
/// What the kernel holds of us unsent: a ping must not wait behind megabytes.
const UNSENT_BYTES: u32 = 128 * 1024;

type Sender = SendRequest<RequestBody>;

/// What a connection carries. Long-lived bytes and requests share none: they ask for other patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Those that have a seat.
    Wide,
    Narrow,
    Tunnels,
}

impl Use {
    /// A crowd's threads get the processor late where it does not suffice: that is no silence.
    fn pings(self, whose: Whose) -> (Duration, Duration) {
        match (self, whose) {
            (Self::Wide | Self::Narrow, Whose::Anybodys) => (PEER_PING_EVERY, PEER_SILENCE),
            (Self::Tunnels, _) | (_, Whose::Crowds) => (TUNNEL_PING_EVERY, TUNNEL_SILENCE),
        }
    }

    fn width(self, whose: Whose, round_trip: Duration) -> Width {
        match (self, whose) {
            (Self::Wide, _) => Width::filling(round_trip),
            (Self::Narrow, Whose::Anybodys) => Width::Narrow,
            (Self::Narrow, Whose::Crowds) => Width::Crowd,
            (Self::Tunnels, Whose::Anybodys) => Width::Tunnels,
            (Self::Tunnels, Whose::Crowds) => Width::CrowdTunnels,
        }
    }
}

/// Whose requests the connections of one worker carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Anybodys,
    /// Of parties with many connections ([`super::bulkhead`]).
    Crowds,
}

pub struct Peers {
    /// By mesh port; behind each the few identities that call it, searched one by one.
    peers: Mutex<HashMap<SocketAddr, Vec<Known>>>,
    common: Arc<Common>,
    whose: Whose,
    tickets: AtomicU64,
}

struct Known {
    caller: Option<ResourceId>,
    node: NodeName,
    carries: Use,
    peer: Arc<Peer>,
}

struct Peer {
    common: Arc<Common>,
    whose: Whose,
    state: Mutex<State>,
    /// Signalled when a dial has ended.
    dialled: Notify,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    failed: Option<(Instant, String)>,
    /// A task dials.
    dialling: bool,
}

/// The one dial of a peer that goes on, whether or not somebody still waits for it: whoever has less time than a dial takes learns from its
/// outcome later.
struct Dialling(Arc<Peer>);

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.lock().dialling = false;
        self.0.dialled.notify_waiters();
    }
}

#[derive(Clone)]
struct Connection {
    sender: Sender,
    width: Width,
    /// Whether it takes a body ([`super::held`]).
    can_be_asked: bool,
    /// Whose it is: to a node that was removed nothing more is sent.
    key: KeyFingerprint,
    /// What it was made with: a renewed certificate asks for a new connection.
    identity: Arc<ClientIdentity>,
}

/// The way for one request.
pub struct Way {
    pub sender: Sender,
    pub seat: Option<Seat>,
    /// Whether the peer can be asked if it takes a body ([`super::held`]).
    pub can_be_asked: bool,
}

impl Way {
    fn new(connection: Connection, seat: Option<Seat>) -> Self {
        Self {
            sender: connection.sender,
            seat,
            can_be_asked: connection.can_be_asked,
        }
    }
}

impl Peers {
    pub fn new(common: Arc<Common>, whose: Whose) -> Self {
        Self {
            peers: Mutex::default(),
            common,
            whose,
            tickets: AtomicU64::new(0),
        }
    }

    /// A connection for one request: a wide one and a seat among those of the service that is `wide_for`, or a narrow one when there is no room.
    pub async fn for_request(
        &self,
        view: &View,
        caller: Option<&ResourceId>,
        target: &Target,
        wide_for: Option<&Arc<Shared>>,
        patience: Duration,
    ) -> Result<Way, Failure> {
        // One of many of its party leaves the seats to others.
        if let Some(service) = wide_for.filter(|_| self.whose == Whose::Anybodys) {
            let dialled = self.connection(view, caller, target, Use::Wide, patience);
            let wide = dialled.await?;
            if let Some(seat) = self.common.room.take(wide.width, service) {
                return Ok(Way::new(wide, Some(seat)));
            }
        }
        let dialled = self.connection(view, caller, target, Use::Narrow, patience);
        let narrow = dialled.await?;
        Ok(Way::new(narrow, None))
    }

    pub async fn for_tunnel(
        &self,
        view: &View,
        caller: Option<&ResourceId>,
        target: &Target,
        patience: Duration,
    ) -> Result<Sender, Failure> {
        let dialled = self.connection(view, caller, target, Use::Tunnels, patience);
        let connection = dialled.await?;
        Ok(connection.sender)
    }

    /// A number that no other request has.
    pub fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection to the proxy of `target`, made as `caller`; dialled when there is none, and waited for within `patience`.
    async fn connection(
        &self,
        view: &View,
        caller: Option<&ResourceId>,
        target: &Target,
        carries: Use,
        patience: Duration,
    ) -> Result<Connection, Failure> {
        let Some(identity) = view.tls.client(caller) else {
            return Err(Failure::not_begun(
                "this node holds no certificate of the caller",
            ));
        };
        let peer = self.peer(caller, target, carries);
        if let Some(found) = peer.usable(identity) {
            return found;
        }
        // Rare, and large: kept out of the future of every request.
        let dialled = Box::pin(peer.dialled(&view.tls, identity, target, carries));
        match tokio::time::timeout(patience, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err(Failure::unreachable(format!(
                "the proxy of node {} did not answer within {} ms",
                target.node,
                patience.as_millis()
            ))),
        }
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
        let peer = Arc::new(Peer::new(self.common.clone(), self.whose));
        known.push(Known {
            caller: caller.cloned(),
            node: target.node.clone(),
            carries,
            peer: peer.clone(),
        });
        peer
    }

    /// Forgets peers that are no longer in any road, and callers that have left.
    pub fn tidy(&self, view: &View) {
        let peers = view.mesh_peers();
        self.lock().retain(|mesh, known| {
            known.retain(|it| {
                it.peer.forget_removed(&view.tls);
                peers.contains(&(*mesh, &it.node)) && view.tls.client(it.caller.as_ref()).is_some()
            });
            !known.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<Known>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn new(common: Arc<Common>, whose: Whose) -> Self {
        Self {
            common,
            whose,
            state: Mutex::default(),
            dialled: Notify::new(),
        }
    }

    /// `None`: one must dial.
    fn usable(&self, identity: &Arc<ClientIdentity>) -> Option<Result<Connection, Failure>> {
        let mut state = self.lock();
        if let Some(connection) = &state.connection {
            if !connection.sender.is_closed() && Arc::ptr_eq(&connection.identity, identity) {
                return Some(Ok(connection.clone()));
            }
            state.connection = None;
        }
        match &state.failed {
            // Only who begins to dial anew waits for it; the others need not join the queue for an address that was dead a moment ago.
            Some((at, reason)) if at.elapsed() < REDIAL_AFTER || state.dialling => {
                Some(Err(Failure::unreachable(reason.clone())))
            }
            _ => None,
        }
    }

    /// The outcome of the dial that goes on, or of a new one.
    async fn dialled(
        self: &Arc<Self>,
        tls: &Tls,
        identity: &Arc<ClientIdentity>,
        target: &Target,
        carries: Use,
    ) -> Result<Connection, Failure> {
        loop {
            let ended = self.dialled.notified();
            self.begin_to_dial(tls, identity, target, carries);
            ended.await;
            if let Some(found) = self.usable(identity) {
                return found;
            }
        }
    }

    fn begin_to_dial(
        self: &Arc<Self>,
        tls: &Tls,
        identity: &Arc<ClientIdentity>,
        target: &Target,
        carries: Use,
    ) {
        if std::mem::replace(&mut self.lock().dialling, true) {
            return;
        }
        let dialling = Dialling(self.clone());
        let (identity, mesh, node) = (identity.clone(), target.mesh, target.node.clone());
        let (tls, carries) = (tls.clone(), (carries, self.whose));
        tokio::spawn(async move {
            let dialled = dial(&tls, &identity, mesh, &node, carries).await;
            dialling.0.keep(dialled);
        });
    }

    /// What is open to a node that was removed since it was dialled ends by itself.
    fn forget_removed(&self, tls: &Tls) {
        let mut state = self.lock();
        state.connection.take_if(|it| !tls.admits(&it.key));
    }

    fn keep(&self, dialled: Result<(Connection, Life, Tasks), String>) {
        let mut state = self.lock();
        match dialled {
            Ok((connection, life, tasks)) => {
                let over = over(self.common.clone(), connection.key.clone(), life);
                tasks.end_with(over);
                state.failed = None;
                state.connection = Some(connection);
            }
            Err(reason) => state.failed = Some((Instant::now(), reason)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Completes when a connection may live no longer, whoever still holds it and whatever is open on it.
async fn over(common: Arc<Common>, key: KeyFingerprint, life: Life) {
    tokio::select! {
        // The peer closes it to new streams a while before, and a new one is made then.
        () = life.until_end() => tracing::debug!("a connection to a peer ended with its certificate"),
        () = common.until_removed(&key) => tracing::debug!("a peer that was called was removed"),
    }
}

async fn dial(
    tls: &Tls,
    identity: &Arc<ClientIdentity>,
    mesh: SocketAddr,
    node: &NodeName,
    carries: (Use, Whose),
) -> Result<(Connection, Life, Tasks), String> {
    let handshake = handshake(tls, identity, mesh, node, carries);
    match tokio::time::timeout(PEER_CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(dialled)) => Ok(dialled),
        Ok(Err(error)) => Err(format!(
            "the proxy of node {node} can't be reached: {error}"
        )),
        Err(_) => Err(format!("the proxy of node {node} did not answer within 1s")),
    }
}

fn offering(identity: &ClientIdentity, width: Width) -> Arc<ClientConfig> {
    let mut config = (*identity.config).clone();
    config.alpn_protocols = width.offered();
    Arc::new(config)
}

async fn handshake(
    tls: &Tls,
    identity: &Arc<ClientIdentity>,
    mesh: SocketAddr,
    node: &NodeName,
    (carries, whose): (Use, Whose),
) -> Result<(Connection, Life, Tasks), String> {
    let dialled = Instant::now();
    let stream = TcpStream::connect(mesh)
        .await
        .map_err(|error| error.to_string())?;
    let width = carries.width(whose, dialled.elapsed());
    prepare(&stream).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(offering(identity, width))
        .connect(::tls::name_of_node(node), stream)
        .await
        .map_err(|error| error.to_string())?;
    let protocol = stream.get_ref().1.alpn_protocol();
    let (width, can_be_asked) = (Width::of(protocol), window::can_be_asked(protocol));
    let peer = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let life = Life::new(SystemTime::now(), identity.end, peer);
    let Some(id) = tls::peer_id(tls, peer) else {
        return Err("it was removed from this cluster".to_owned());
    };
    // The peer judges our certificate after our own part of the handshake. Its first bytes say that it let us in; without
    // them a request that it refuses to read would look as if it might have begun.
    let mut stream = BufReader::with_capacity(FIRST_BYTES, stream);
    let first = stream.fill_buf().await.map_err(|error| error.to_string())?;
    if first.is_empty() {
        return Err("it closed the connection".to_owned());
    }
    let (every, silence) = carries.pings(whose);
    let tasks = Tasks::default();
    let (sender, connection) = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(every)
        .keep_alive_timeout(silence)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(width.window())
        .max_frame_size(width.frame())
        .initial_connection_window_size(MOST_WINDOW)
        .max_header_list_size(2 * MOST_HEADER_BYTES as u32)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| chain(&error))?;
    tokio::spawn(async move {
        // Its errors reach the requests that wait.
        let _ = connection.await;
    });
    let connection = Connection {
        sender,
        width,
        can_be_asked,
        key: id.key,
        identity: identity.clone(),
    };
    Ok((connection, life, tasks))
}

/// A socket between two proxies: what is written leaves at once, and little of it waits in the kernel.
pub fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use model::traffic::{Destination, Endpoint, Protocol, TrafficOptions};

    use super::*;
    use crate::proxy::reports::Reports;
    use crate::proxy::view::Place;
    use crate::proxy::view::tests::snapshot;

    /// A road to a copy on each of these nodes.
    fn view(tls: &Tls, nodes: Range<u8>) -> View {
        let endpoint = |number: u8| Endpoint {
            instance: format!("shop/web-{number}").parse().unwrap(),
            epoch: model::ids::Epoch(1),
            node: format!("node-{number}").parse().unwrap(),
            zone: "one".parse().unwrap(),
            region: "here".parse().unwrap(),
            mesh: SocketAddr::from(([192, 0, 2, number], 7071)),
        };
        let destination = Destination {
            service: "shop/web".parse().unwrap(),
            protocol: Protocol::Http,
            traffic: TrafficOptions::default(),
            endpoints: nodes.map(endpoint).collect(),
            external: Vec::new(),
        };
        let mut snapshot = snapshot();
        snapshot.destinations = vec![destination];
        View::new(
            &snapshot,
            tls.clone(),
            HashMap::new(),
            None,
            &Reports::new(),
        )
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let tls = Tls::new(&tls::tests::trust(), None).unwrap();
        let peers = Peers::new(Common::new(1, None), Whose::Anybodys);
        let gone: ResourceId = "shop/gone".parse().unwrap();
        for first in 0..200 {
            let view = view(&tls, first..first + 3);
            for endpoint in view.destinations.values().flat_map(|it| &it.endpoints) {
                let Place::Instance(target) = &endpoint.place else {
                    unreachable!("all are instances");
                };
                for carries in [Use::Wide, Use::Narrow, Use::Tunnels] {
                    peers.peer(None, target, carries);
                    // It holds no certificate here.
                    peers.peer(Some(&gone), target, carries);
                }
            }
            peers.tidy(&view);
            let known: Vec<_> = peers.lock().values().map(Vec::len).collect();
            assert_eq!(known, [3; 3]);
        }
        peers.tidy(&view(&tls, 0..0));
        assert!(peers.lock().is_empty());
    }
}
