//! A gateway in front of one server, to be measured: `gateway LISTEN BACKEND [mesh]`. With `mesh` the server is behind a second
//! proxy, over mutual TLS. One worker each. Ends when its standard input does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use model::ids::{Epoch, Generation, ResourceId};
use model::traffic::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let listen: SocketAddr = arguments[1].parse().expect("an address to listen on");
    let backend: SocketAddr = arguments[2].parse().expect("the backend's address");
    let over_the_mesh = arguments.get(3).is_some_and(|it| it == "mesh");
    let authority = authority();
    let mut edge = snapshot(&authority, "edge");
    let mut inner = snapshot(&authority, "inner");
    let service: ResourceId = "bench/web".parse().expect("a name");
    edge.gateway = Some(Gateway {
        listen,
        routes: vec![GatewayRoute {
            host: "*".to_owned(),
            path: "/".to_owned(),
            to: service.clone(),
        }],
        trusted: Vec::new(),
        proxy_protocol: Vec::new(),
    });
    let host = if over_the_mesh { &mut inner } else { &mut edge };
    host.local.push(instance(&service, backend));
    host.callers.push(Callers {
        service: service.clone(),
        from: Vec::new(),
        gateway: true,
    });
    let endpoint = endpoint(host);
    edge.destinations.push(Destination {
        service,
        protocol: Protocol::Http,
        traffic: TrafficOptions::default(),
        endpoints: vec![endpoint],
        external: Vec::new(),
    });
    let directory = tempfile::tempdir().expect("a directory");
    let snapshots = if over_the_mesh {
        vec![edge, inner]
    } else {
        vec![edge]
    };
    let _agents: Vec<_> = snapshots
        .into_iter()
        .map(|it| start(directory.path(), it))
        .collect();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn start(directory: &Path, snapshot: ProxySnapshot) -> UnixStream {
    let own = directory.join(snapshot.node.as_str());
    let options = traffic::proxy::Options {
        control_socket: directory.join(format!("{}.sock", snapshot.node)),
        directory: own,
        workers: Some(1),
        descriptors: None,
    };
    let socket = options.control_socket.clone();
    std::thread::spawn(move || traffic::proxy::run(options).expect("the proxy runs"));
    let mut agent = loop {
        match UnixStream::connect(&socket) {
            Ok(agent) => break agent,
            Err(_) => std::thread::yield_now(),
        }
    };
    let message = ToProxy::Snapshot {
        snapshot: Box::new(snapshot),
    };
    let mut line = serde_json::to_vec(&message).expect("plain data");
    line.push(b'\n');
    agent.write_all(&line).expect("the proxy listens");
    agent
}

fn instance(service: &ResourceId, address: SocketAddr) -> LocalInstance {
    LocalInstance {
        instance: "bench/web-1".parse().expect("a name"),
        service: service.clone(),
        epoch: Epoch(1),
        address: Address::Tcp { address },
        protocol: Protocol::Http,
        max_in_flight: 65_536,
        gate: Gate::Open,
        uid: None,
        told_callers: false,
    }
}

fn endpoint(host: &ProxySnapshot) -> Endpoint {
    Endpoint {
        instance: "bench/web-1".parse().expect("a name"),
        epoch: Epoch(1),
        node: host.node.clone(),
        zone: host.zone.clone(),
        region: host.region.clone(),
        mesh: host.mesh,
    }
}

fn snapshot(authority: &Issuer, name: &str) -> ProxySnapshot {
    let mesh = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    ProxySnapshot {
        generation: Generation::default(),
        node: name.parse().expect("a name"),
        zone: "z".parse().expect("a name"),
        region: "r".parse().expect("a name"),
        mesh: mesh.expect("a free port"),
        trust: Trust {
            removed: Default::default(),
            cluster: "bench".to_owned(),
            authority: authority.pem(),
            node: identity(authority, name),
            services: Default::default(),
        },
        gateway: None,
        destinations: Vec::new(),
        local: Vec::new(),
        callers: Vec::new(),
        doors: Vec::new(),
        enforce_uid: false,
        owners: Vec::new(),
        refusals: None,
    }
}

fn authority() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = "spiffe://bench".try_into().expect("a name");
    params.subject_alt_names = vec![SanType::URI(name)];
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("a certificate")
}

fn identity(authority: &Issuer, name: &str) -> Identity {
    let uri = format!("spiffe://bench/node/{name}");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    Identity {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}
