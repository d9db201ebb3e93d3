//! Who may not come in, and what they are told: the need that is missing.
//!
//! A door belongs to one caller. The port of an instance belongs to nobody but its proxy: where the firewall can, it sends everybody else's
//! connection to one address of the proxy, which reads from the kernel where it was meant to go.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Response;
use model::ids::ResourceId;
use model::traffic::{Address, Door, Protocol};
use tokio::net::TcpStream;

use super::body::ResponseBody;
use super::caller;
use super::client::ClientStream;
use super::entrance::serve_http;
use super::reports::Reports;
use super::shares::{Kind, Party};
use super::view::{Caller, View, missing_need};
use super::wire;
use super::worker::Worker;
use crate::problem::{Code, Problem};

/// Why a connection is not let in.
pub struct Refusal {
    caller: String,
    callee: ResourceId,
    detail: String,
}

impl Refusal {
    /// The door's caller runs still, and declares its need no more.
    pub fn undeclared(door: &Door) -> Self {
        let why = missing_need(&door.caller, &door.need);
        Self {
            caller: door.caller.to_string(),
            callee: door.need.clone(),
            detail: format!("{why} any more, as it did when this copy of it started"),
        }
    }

    pub fn problem(&self) -> Problem {
        Problem::new(Code::CallerNotDeclared, self.detail.clone())
    }

    /// For the events of the node.
    pub fn tell(&self, reports: &Reports) {
        reports.call_refused(
            self.caller.clone(),
            self.callee.clone(),
            self.detail.clone(),
        );
    }

    /// For who asked, and for the events of the node.
    pub fn answer(&self, worker: &Worker) -> Response<ResponseBody> {
        self.tell(worker.reports());
        wire::problem_response(&self.problem())
    }
}

/// `None`: the socket's owner is the door's caller.
pub fn at_door(view: &View, door: &Door, client: SocketAddr) -> Option<Refusal> {
    if !view.enforce_uid {
        return None;
    }
    let owner = caller::owner(client, door.listen);
    if matches!(owner, Ok(Some(uid)) if uid == door.uid) {
        return None;
    }
    let (caller, why) = named(view, owner, &door.need);
    let detail = format!("{why} (the address belongs to {})", door.caller.name);
    Some(Refusal {
        caller,
        callee: door.need.clone(),
        detail,
    })
}

/// Who a socket's owner is, and what they did not declare.
fn named(
    view: &View,
    owner: std::io::Result<Option<u32>>,
    callee: &ResourceId,
) -> (String, String) {
    match owner {
        Ok(Some(uid)) => match view.owners.get(&uid) {
            Some(service) => (service.to_string(), missing_need(service, callee)),
            None => (
                format!("uid {uid}"),
                format!("uid {uid} does not declare needs: [{}]", callee.name),
            ),
        },
        // Whoever it was is gone, or hides: not let in.
        Ok(None) => (
            "unknown".to_owned(),
            "the owner of the connection is not known".to_owned(),
        ),
        Err(error) => (
            "unknown".to_owned(),
            format!("the owner of the connection can't be asked for: {error}"),
        ),
    }
}

/// A connection that was meant for the port of an instance, sent here by the firewall.
pub async fn serve(worker: Arc<Worker>, stream: TcpStream, client: SocketAddr) {
    // Who connects to this address without having been sent is told nothing.
    let Ok(meant) = rustix::net::sockopt::ip_original_dst(&stream) else {
        return;
    };
    let Some((refusal, protocol)) = at_port(&worker.view(), SocketAddr::V4(meant), client) else {
        return;
    };
    let Some(place) = worker.place(Kind::Refused, Party::client(client.ip())) else {
        return;
    };
    if protocol == Protocol::Tcp {
        return refusal.tell(worker.reports());
    }
    let refusal = Arc::new(refusal);
    let stream = ClientStream::patient(stream, place);
    serve_http(&worker, stream, move |worker, _| {
        let refusal = refusal.clone();
        async move { refusal.answer(&worker) }
    })
    .await;
}

fn at_port(view: &View, meant: SocketAddr, client: SocketAddr) -> Option<(Refusal, Protocol)> {
    let here = |address: &Address| matches!(address, Address::Tcp { address } if address.port() == meant.port());
    let local = view.local.values().find(|local| here(&local.address))?;
    let owner = caller::owner(client, meant);
    let permitted = |service: &ResourceId| {
        let caller = Caller::Service(service.clone());
        view.permits(&caller, &local.service).is_ok()
    };
    let declared = matches!(&owner, Ok(Some(uid)) if view.owners.get(uid).is_some_and(permitted));
    let (caller, why) = named(view, owner, &local.service);
    let port = meant.port();
    let detail = match declared {
        true => format!(
            "port {port} is its proxy's to call: use the URL of the need, which balances and retries"
        ),
        false => format!("{why} (its own port {port} is its proxy's to call)"),
    };
    let refusal = Refusal {
        caller,
        callee: local.service.clone(),
        detail,
    };
    Some((refusal, local.protocol))
}
