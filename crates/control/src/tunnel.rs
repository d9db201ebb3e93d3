//! The way back to a node, which can't be dialled: it opens a connection to us, and on it we ask.
//!
//! `GET /v1/nodes/{node}/tunnel` with `Upgrade: mainland-tunnel` becomes an HTTP/2 connection on which the server is the *client*. Logs and
//! exec of the API are forwarded over it, bodies both ways as they come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::problem::Problem;
use api::window;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use model::boundary::{KeyFingerprint, PrincipalName};
use model::ids::{NodeName, ProjectName};
use tls::PeerId;
use tokio::sync::Notify;

use crate::call::Call;
use crate::dispatch::Peer;
use crate::identity;
use crate::state::Server;

pub const PROTOCOL: &str = "mainland-tunnel";
/// The code of who would hold too much of it.
pub const BUSY: &str = "busy";
/// Until the head of a node's answer is there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Streams of one tunnel that people hold at a time: output that is followed, commands, connections. The rest is for what is asked and answered.
const HELD_MOST: usize = window::TUNNELLED_MOST as usize / 10 * 9;
/// Of these, what one party may hold.
const HELD_EACH: usize = HELD_MOST / 2;
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// The tunnels that are open, one for each node: its newest, which ends its older one.
#[derive(Default)]
pub struct Tunnels {
    open: Mutex<BTreeMap<NodeName, Tunnel>>,
}

struct Tunnel {
    /// Whose it is: a name may go to another.
    key: KeyFingerprint,
    sender: SendRequest<Body>,
    closing: Arc<Notify>,
    held: Holders,
}

/// How many streams of a tunnel each party holds. Who holds none is not in it.
type Holders = Arc<Mutex<BTreeMap<Party, usize>>>;

/// Who holds something open, and in which project.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Party {
    pub by: PrincipalName,
    pub project: ProjectName,
}

/// One stream of a tunnel that a person holds, for as long as this is there.
struct Held {
    all: Holders,
    of: Party,
}

impl Held {
    fn take(tunnel: &Tunnel, node: &NodeName, of: &Party) -> Result<Self, Problem> {
        let mut all = tunnel.held.lock().unwrap_or_else(PoisonError::into_inner);
        if all.values().sum::<usize>() >= HELD_MOST {
            return Err(is_full(node, "", HELD_MOST));
        }
        let own = all.get(of).copied().unwrap_or_default();
        if own >= HELD_EACH {
            let whose = format!(" in {} for {}", of.project, of.by);
            return Err(is_full(node, &whose, HELD_EACH));
        }
        all.insert(of.clone(), own + 1);
        Ok(Self {
            all: tunnel.held.clone(),
            of: of.clone(),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let left = all.remove(&self.of).unwrap_or_default().saturating_sub(1);
        if left > 0 {
            all.insert(self.of.clone(), left);
        }
    }
}

/// A tunnel for as long as it is open. It is forgotten with this.
struct Open<'t> {
    tunnels: &'t Tunnels,
    node: NodeName,
    closing: Arc<Notify>,
}

impl Tunnels {
    fn put(&self, node: NodeName, key: KeyFingerprint, sender: SendRequest<Body>) -> Open<'_> {
        let closing = Arc::new(Notify::new());
        let tunnel = Tunnel {
            key,
            sender,
            closing: closing.clone(),
            held: Arc::default(),
        };
        if let Some(older) = self.lock().insert(node.clone(), tunnel) {
            older.closing.notify_one();
        }
        Open {
            tunnels: self,
            node,
            closing,
        }
    }

    fn get(&self, node: &NodeName) -> Option<SendRequest<Body>> {
        let open = self.lock();
        let sender = open.get(node).map(|tunnel| &tunnel.sender);
        sender.filter(|sender| !sender.is_closed()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Tunnel>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a node's tunnel, unless it is of this key. What is under way on it ends as well.
    pub fn close_others(&self, node: &NodeName, key: Option<&KeyFingerprint>) {
        let mut open = self.lock();
        if open
            .get(node)
            .is_some_and(|tunnel| Some(&tunnel.key) != key)
            && let Some(tunnel) = open.remove(node)
        {
            tunnel.closing.notify_one();
        }
    }

    pub fn is_open(&self, node: &NodeName) -> bool {
        self.get(node).is_some()
    }

    /// The nodes that can be asked now.
    pub fn nodes(&self) -> Vec<NodeName> {
        let open = self.lock();
        let answering = open.iter();
        let answering = answering.filter(|(_, tunnel)| !tunnel.sender.is_closed());
        answering.map(|(node, _)| node.clone()).collect()
    }

    /// Asks a node for somebody, who holds the answer open for as long as they like.
    ///
    /// # Errors
    ///
    /// `busy` (503) where the tunnel carries [`HELD_MOST`] already, or [`HELD_EACH`] of theirs.
    pub async fn carry(
        &self,
        node: &NodeName,
        of: &Party,
        request: Request<Body>,
    ) -> Result<Response, Problem> {
        let held = {
            let open = self.lock();
            let tunnel = open.get(node);
            tunnel.map(|tunnel| Held::take(tunnel, node, of))
        };
        let held = held.transpose()?;
        let answer = self.asked(node, request).await?.map(Body::new);
        Ok(answer.map(|body| {
            Body::new(body.map_frame(move |frame| {
                // It is let go of with the body.
                let _held = &held;
                frame
            }))
        }))
    }

    /// Asks a node for what is taken whole, and at once: nobody outside may hold it open.
    ///
    /// # Errors
    ///
    /// Where its answer is of more than `most_bytes`, or breaks off: what went wrong.
    pub async fn ask(
        &self,
        node: &NodeName,
        request: Request<Body>,
        most_bytes: usize,
    ) -> Result<Result<(http::response::Parts, Bytes), String>, Problem> {
        let (head, body) = self.asked(node, request).await?.into_parts();
        let body = Limited::new(body, most_bytes).collect();
        Ok(match tokio::time::timeout(ANSWER_TIMEOUT, body).await {
            Ok(Ok(body)) => Ok((head, body.to_bytes())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it took longer than {ANSWER_TIMEOUT:?}")),
        })
    }

    async fn asked(
        &self,
        node: &NodeName,
        request: Request<Body>,
    ) -> Result<http::Response<Incoming>, Problem> {
        let mut sender = self
            .get(node)
            .ok_or_else(|| unreachable(node, "it has no tunnel open"))?;
        let answering = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request));
        match answering.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unreachable(node, &error.to_string())),
            Err(_) => Err(unreachable(
                node,
                &format!("it did not answer within {ANSWER_TIMEOUT:?}"),
            )),
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut open = self.tunnels.lock();
        let known = open.get(&self.node);
        // A newer one may be there.
        if known.is_some_and(|tunnel| Arc::ptr_eq(&tunnel.closing, &self.closing)) {
            open.remove(&self.node);
        }
    }
}

pub fn unreachable(node: &NodeName, why: &str) -> Problem {
    Problem::unavailable(
        "node-unreachable",
        format!("node {node} can't be asked: {why}"),
    )
    .remedy(format!(
        "see `mainland explain {node}`; on the node itself `mainland logs` works without the server"
    ))
}

fn is_full(node: &NodeName, whose: &str, most: usize) -> Problem {
    let title =
        format!("node {node} has {most} commands, connections and followed outputs open{whose}");
    Problem::unavailable(BUSY, title).remedy("end some of them, or wait until others end")
}

/// Switches the connection over, and keeps the tunnel for as long as it lives, or its holder is the node and has a certificate that is good.
pub fn accept(server: &Arc<Server>, node: NodeName, call: Call) -> Result<Response, Problem> {
    let mut request = call.request;
    let asked = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|asked| asked.eq_ignore_ascii_case(PROTOCOL)) {
        return Err(Problem::new(
            426,
            "upgrade-required",
            format!("ask for `Upgrade: {PROTOCOL}` over HTTP/1.1"),
        ));
    }
    let peer = request.extensions_mut().remove::<Peer>();
    let id = peer.as_ref().and_then(|peer| peer.id.clone());
    let Some(id) = id else {
        let title = "a tunnel is opened with a node's certificate";
        return Err(Problem::new(403, "not-permitted", title));
    };
    let holder = Holder {
        node,
        id,
        ends_at: peer.and_then(|peer| peer.ends_at),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let server = server.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(&server, holder, upgraded).await,
            Err(error) => {
                tracing::warn!(node = %holder.node, %error, "a tunnel could not be opened")
            }
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        http::HeaderValue::from_static("upgrade"),
    );
    headers.insert(header::UPGRADE, http::HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

/// Who opens a tunnel.
struct Holder {
    node: NodeName,
    id: PeerId,
    ends_at: Option<jiff::Timestamp>,
}

impl Holder {
    fn is_the_node(&self, server: &Server) -> bool {
        let principal = tls::principal(&self.id.name);
        server.look(|world| {
            world.nodes.contains_key(&self.node)
                && identity::admits(world, &principal, &self.id.key).is_ok()
        })
    }
}

async fn serve(server: &Server, holder: Holder, upgraded: hyper::upgrade::Upgraded) {
    let handshake = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window::OF_TUNNELLED)
        .initial_connection_window_size(window::OF_CONNECTION)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(upgraded)
        .await;
    let node = &holder.node;
    match handshake {
        Ok((sender, connection)) => {
            let open = server
                .tunnels
                .put(node.clone(), holder.id.key.clone(), sender);
            // While the connection switched over it may have been removed, or its name been given away.
            if !holder.is_the_node(server) {
                return;
            }
            tracing::debug!(%node, "tunnel open");
            let mut ending = server.ending.clone();
            tokio::select! {
                ended = connection => tracing::debug!(%node, ?ended, "tunnel closed"),
                () = open.closing.notified() => tracing::debug!(%node, "the tunnel is not the node's any more"),
                () = server.clock.until(holder.ends_at) => tracing::debug!(%node, "the certificate has ended"),
                _ = ending.wait_for(|ending| *ending) => {}
            }
        }
        Err(error) => tracing::warn!(%node, %error, "a tunnel speaks no HTTP/2"),
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;

    use super::*;

    async fn sender() -> (SendRequest<Body>, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let made = Builder::new(TokioExecutor::new()).handshake(TokioIo::new(near));
        let (sender, connection) = made.await.unwrap();
        tokio::spawn(connection);
        (sender, far)
    }

    /// However often a node comes back, and whatever becomes of its older tunnels, it has one.
    #[tokio::test]
    async fn a_node_has_one_tunnel_and_none_once_it_is_gone() {
        let tunnels = Tunnels::default();
        let (a, b): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let key = |text: &str| KeyFingerprint(text.repeat(64));
        let mut open = Vec::new();
        let mut far = Vec::new();
        for turn in 0..100 {
            let node = if turn % 2 == 0 { &a } else { &b };
            let (sender, other) = sender().await;
            open.push(tunnels.put(node.clone(), key("a"), sender));
            far.push(other);
            assert!(tunnels.lock().len() <= 2, "after {turn}");
        }
        assert_eq!(tunnels.nodes(), [a.clone(), b.clone()]);
        // All but the newest of each are told to end; that they do takes nothing of the newest.
        let newest: Vec<_> = open.split_off(98);
        for older in &open {
            let told = tokio::time::timeout(Duration::from_secs(5), older.closing.notified());
            told.await.expect("an older one ends");
        }
        drop(open);
        assert_eq!(tunnels.nodes(), [a.clone(), b.clone()]);
        // A name that went to another key: what is open is not the other's.
        tunnels.close_others(&a, Some(&key("a")));
        assert!(tunnels.is_open(&a));
        tunnels.close_others(&a, Some(&key("b")));
        assert_eq!(tunnels.nodes(), [b]);
        drop(newest);
        assert!(tunnels.lock().is_empty());
    }
}
