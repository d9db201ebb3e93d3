//! The way back to a node, which can't be dialled: it opens a connection to us, and on it we ask.
//!
//! `GET /v1/nodes/{node}/tunnel` with `Upgrade: mainland-tunnel` becomes an HTTP/2 connection on which the server is the *client*. Logs and
//! exec of the API are forwarded over it, bodies both ways as they come.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::problem::Problem;
use axum::body::Body;
use axum::response::Response;
use http::{Request, StatusCode, header};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use model::ids::NodeName;

pub const PROTOCOL: &str = "mainland-tunnel";
/// Until the head of a node's answer is there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// The tunnels that are open. A node's newest replaces its older ones.
#[derive(Default)]
pub struct Tunnels {
    open: Mutex<BTreeMap<NodeName, SendRequest<Body>>>,
}

impl Tunnels {
    fn put(&self, node: NodeName, sender: SendRequest<Body>) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node, sender);
    }

    /// Nodes come and go: nothing is kept of who has left.
    fn forget_closed(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, sender| !sender.is_closed());
    }

    fn get(&self, node: &NodeName) -> Option<SendRequest<Body>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(node).filter(|sender| !sender.is_closed()).cloned()
    }

    pub fn is_open(&self, node: &NodeName) -> bool {
        self.get(node).is_some()
    }

    /// The nodes that can be asked now.
    pub fn nodes(&self) -> Vec<NodeName> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let answering = open.iter().filter(|(_, sender)| !sender.is_closed());
        answering.map(|(node, _)| node.clone()).collect()
    }

    /// Asks a node and hands its answer on.
    pub async fn forward(
        &self,
        node: &NodeName,
        request: Request<Body>,
    ) -> Result<Response, Problem> {
        let mut sender = self
            .get(node)
            .ok_or_else(|| unreachable(node, "it has no tunnel open"))?;
        let answering = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request));
        match answering.await {
            Ok(Ok(answer)) => Ok(answer.map(Body::new)),
            Ok(Err(error)) => Err(unreachable(node, &error.to_string())),
            Err(_) => Err(unreachable(
                node,
                &format!("it did not answer within {ANSWER_TIMEOUT:?}"),
            )),
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

/// Switches the connection over, and keeps the tunnel for as long as it lives.
pub fn accept(
    server: &std::sync::Arc<crate::state::Server>,
    node: NodeName,
    mut request: Request<Body>,
) -> Result<Response, Problem> {
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
    let upgrade = hyper::upgrade::on(&mut request);
    let server = server.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(&server, node, upgraded).await,
            Err(error) => tracing::warn!(%node, %error, "a tunnel could not be opened"),
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

async fn serve(server: &crate::state::Server, node: NodeName, upgraded: hyper::upgrade::Upgraded) {
    let handshake = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(upgraded)
        .await;
    match handshake {
        Ok((sender, connection)) => {
            server.tunnels.put(node.clone(), sender);
            tracing::debug!(%node, "tunnel open");
            let mut ending = server.ending.clone();
            tokio::select! {
                ended = connection => tracing::debug!(%node, ?ended, "tunnel closed"),
                _ = ending.wait_for(|ending| *ending) => {}
            }
            server.tunnels.forget_closed();
        }
        Err(error) => tracing::warn!(%node, %error, "a tunnel speaks no HTTP/2"),
    }
}
