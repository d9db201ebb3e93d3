//! Our proxy with what an agent would tell it: a gateway with one route to a service with one instance on this node.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use boundary::authority::{Authority, Terms};
use jiff::Timestamp;
use model::boundary::{Holder, SpiffeId};
use model::ids::{Epoch, Generation};
use model::traffic::{
    Address, Callers, Destination, Endpoint, FromProxy, Gate, Gateway, GatewayRoute, LocalInstance,
    Protocol, ProxySnapshot, ToProxy, TrafficOptions, Trust,
};
use system::wait;

use super::contender::free_address;

const CLUSTER: &str = "bench";
const SERVICE: &str = "bench/web";
const INSTANCE: &str = "bench/web-1";

pub(super) fn control_socket(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

/// The proxy itself, in a process of its own.
pub(super) fn run(folder: &Path) -> Result<()> {
    traffic::proxy::run(traffic::proxy::Options {
        directory: folder.join("proxy"),
        control_socket: control_socket(folder),
        workers: None,
    })?;
    Ok(())
}

/// Tells the proxy what to do, as an agent does, and waits until it does it.
pub(super) fn tell(socket: &Path, listen: SocketAddr, backend: SocketAddr) -> Result<()> {
    let (mut stream, _) = wait::until(
        "the proxy takes a snapshot",
        Duration::from_secs(10),
        || UnixStream::connect(socket).map_err(|error| error.to_string()),
    );
    let snapshot = Box::new(snapshot(listen, backend)?);
    let mut line = serde_json::to_vec(&ToProxy::Snapshot { snapshot })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            FromProxy::Acknowledged { generation } if generation.counter == 1 => return Ok(()),
            FromProxy::Refused { error, .. } => bail!("the proxy refuses: {error}"),
            _ => {}
        }
    }
    bail!("the proxy has gone")
}

fn snapshot(listen: SocketAddr, backend: SocketAddr) -> Result<ProxySnapshot> {
    let mesh = free_address()?;
    Ok(ProxySnapshot {
        generation: Generation {
            epoch: Epoch(1),
            counter: 1,
        },
        node: "a".parse()?,
        zone: "a".parse()?,
        region: "here".parse()?,
        mesh,
        trust: trust().context("can't make certificates")?,
        gateway: Some(Gateway {
            listen,
            routes: vec![route()?],
        }),
        destinations: vec![destination(mesh)?],
        local: vec![instance(backend)?],
        callers: vec![Callers {
            service: SERVICE.parse()?,
            from: Vec::new(),
            gateway: true,
        }],
        doors: Vec::new(),
        enforce_uid: false,
    })
}

fn trust() -> Result<Trust> {
    let now = Timestamp::now();
    let authority = Authority::generate(CLUSTER, now)?;
    let node = SpiffeId {
        cluster: CLUSTER.to_owned(),
        holder: Holder::Node("a".parse()?),
    };
    Ok(Trust {
        cluster: CLUSTER.to_owned(),
        authority: authority.certificate().to_owned(),
        node: authority.identity(&node, &Terms::default(), now)?,
        services: BTreeMap::new(),
    })
}

fn route() -> Result<GatewayRoute> {
    Ok(GatewayRoute {
        host: "bench.localhost".to_owned(),
        path: "/".to_owned(),
        to: SERVICE.parse()?,
    })
}

fn destination(mesh: SocketAddr) -> Result<Destination> {
    Ok(Destination {
        service: SERVICE.parse()?,
        protocol: Protocol::Http,
        traffic: TrafficOptions::default(),
        endpoints: vec![Endpoint {
            instance: INSTANCE.parse()?,
            epoch: Epoch(1),
            node: "a".parse()?,
            zone: "a".parse()?,
            region: "here".parse()?,
            mesh,
        }],
        external: Vec::new(),
    })
}

fn instance(backend: SocketAddr) -> Result<LocalInstance> {
    Ok(LocalInstance {
        instance: INSTANCE.parse()?,
        service: SERVICE.parse()?,
        epoch: Epoch(1),
        address: Address::Tcp { address: backend },
        protocol: Protocol::Http,
        max_in_flight: 1024,
        gate: Gate::Open,
    })
}
