//! The gateways: started on a core of their own, configured, their processes known.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::{GATEWAY_CORE, HOST};
use crate::bench::Place;
use crate::bench::cpu::on_core;
use crate::bench::peers::{HAPROXY, NGINX, Peer, Running, configure, free_addresses};
use crate::bench::table::Report;
use crate::cloud::{self, Cloud};
use crate::{load, wait};

const START_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Contestant {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    program: Program,
}

enum Program {
    Mainland(Box<Cloud>),
    Peer(Running),
}

impl Contestant {
    /// Those whose CPU time is the gateway's.
    pub(super) fn processes(&self) -> Vec<u32> {
        match &self.program {
            Program::Mainland(cloud) => cloud.processes_with(&[" proxy ", "/nodes/edge"]),
            Program::Peer(running) => running.processes(),
        }
    }

    fn until_serving(self) -> Result<Self> {
        let once = load::Load::get(self.address, HOST, "/", 1, Duration::from_secs(1));
        let look = || {
            let report = load::run(&once).map_err(|error| error.to_string())?;
            match report.ok {
                1 => Ok(()),
                _ => Err(format!("{:?}", report.failures)),
            }
        };
        wait::looking_each(Duration::from_millis(50), START_TIMEOUT, look)
            .map_err(|hindrance| anyhow!("{} does not serve: {hindrance}", self.name))?;
        Ok(self)
    }
}

/// Mainland first, then what no proxy on hyper can beat; a peer that is missing is left out, and that is said.
pub(super) fn all(
    place: &Place,
    folder: &Path,
    backend: SocketAddr,
    report: &mut Report,
) -> Result<Vec<Contestant>> {
    let mut all = vec![
        mainland(place, folder, backend)?,
        forwarder(folder, backend)?,
    ];
    let peers: [(&str, Peer, &str, &[&str]); 2] = [
        ("nginx", NGINX, "nginx.conf", &["-e", "stderr", "-c"]),
        ("HAProxy", HAPROXY, "haproxy.cfg", &["-db", "-f"]),
    ];
    for (name, peer, file, words) in peers {
        let Some(found) = peer.find(&place.root) else {
            report.fact(name, "missing");
            continue;
        };
        report.fact(name, found.version);
        let [address] = free_addresses()?;
        let configuration =
            configure(&place.root, file, &values(backend, address, folder), folder)?;
        let mut command = Command::new(found.path);
        command.args(words).arg(configuration);
        let running = on_core(GATEWAY_CORE, || Running::start(name, &mut command, folder))?;
        let program = Program::Peer(running);
        let contestant = Contestant {
            name,
            address,
            program,
        };
        all.push(contestant.until_serving()?);
    }
    Ok(all)
}

fn values(backend: SocketAddr, gateway: SocketAddr, folder: &Path) -> [(&'static str, String); 3] {
    [
        ("BACKEND", backend.to_string()),
        ("GATEWAY", gateway.to_string()),
        ("FOLDER", folder.display().to_string()),
    ]
}

fn mainland(place: &Place, folder: &Path, backend: SocketAddr) -> Result<Contestant> {
    let values = [("BACKEND", backend.to_string())];
    let manifest = configure(&place.root, "mainland.yaml", &values, folder)?;
    let mut cloud = Cloud::new(&manifest, 1)?;
    on_core(GATEWAY_CORE, || cloud.start())?;
    let contestant = Contestant {
        name: "Mainland",
        address: cloud.gateway,
        program: Program::Mainland(Box::new(cloud)),
    };
    contestant.until_serving()
}

/// Not a peer: it does nothing that a gateway is for.
fn forwarder(folder: &Path, backend: SocketAddr) -> Result<Contestant> {
    let [address] = free_addresses()?;
    let mut command = Command::new(cloud::built("MAINLAND_FORWARD_BIN", "forward"));
    command.args([address.to_string(), backend.to_string()]);
    let running = on_core(GATEWAY_CORE, || {
        Running::start("forward", &mut command, folder)
    })?;
    let contestant = Contestant {
        name: "bare hyper forwarder",
        address,
        program: Program::Peer(running),
    };
    contestant.until_serving()
}
