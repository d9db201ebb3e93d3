//! Listening sockets: claimed exclusively, shared by all workers, kept as long as a snapshot names them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use model::traffic::ProxySnapshot;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel holds until a worker takes them.
const BACKLOG: i32 = 1024;

pub type Sockets = HashMap<SocketAddr, Arc<TcpListener>>;
/// What could not be claimed, and why.
pub type Missing = BTreeMap<SocketAddr, String>;

/// The sockets of a snapshot: those already held, and the others claimed anew. What can't be claimed is named; the rest goes on.
pub fn claim(snapshot: &ProxySnapshot, held: Option<&Sockets>) -> (Sockets, Missing) {
    let mut sockets = Sockets::new();
    let mut missing = Missing::new();
    for (address, what) in wanted(snapshot) {
        let claimed = match held.and_then(|held| held.get(&address)) {
            Some(socket) => Ok(socket.clone()),
            None => bind(address).map(Arc::new),
        };
        match claimed {
            Ok(socket) => {
                sockets.insert(address, socket);
            }
            Err(error) => {
                let why = format!("{what} can't listen on {address}: {error}");
                missing.insert(address, why);
            }
        }
    }
    (sockets, missing)
}

fn wanted(snapshot: &ProxySnapshot) -> BTreeSet<(SocketAddr, String)> {
    let mut wanted = BTreeSet::from([(snapshot.mesh, "the mesh".to_owned())]);
    if let Some(gateway) = &snapshot.gateway {
        wanted.insert((gateway.listen, "the gateway".to_owned()));
    }
    if let Some(refusals) = snapshot.refusals {
        wanted.insert((refusals, "the door of refusals".to_owned()));
    }
    for door in &snapshot.doors {
        wanted.insert((
            door.listen,
            format!("the door from {} to {}", door.caller, door.need),
        ));
    }
    wanted
}

/// Without SO_REUSEPORT: a port that somebody else listens on is refused, not silently shared.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
