//! The ports and doors that a node chose for itself. They are kept, as the proxy outlives the agent; but while no proxy of ours holds them, another
//! program, or another cloud on this machine, may have come to listen there. Then others are chosen: nobody outside was told of the old ones for good.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;

use compute::port::is_free;
use model::ids::ResourceId;

use crate::agent::{Agent, Error};
use crate::core::kept_snapshot;
use crate::layout::{self, Layout};
use crate::options::{Config, Given};
use crate::snapshot;

/// Below the ports of doors. Another cloud on this machine may have the same block: then the next one is taken.
const REFUSALS_PORTS: RangeInclusive<u16> = 7040..=7079;

/// Fills in what is still to be chosen, and chooses anew what is taken. A mesh address that somebody gave is never changed.
pub fn choose(config: &mut Config, given: &Given, layout: &Layout) -> Result<(), Error> {
    let ours = proxy_lives(layout);
    let is_taken = |address| !ours && !is_free(address);
    let ports = config.ports;
    let was_given = given.mesh.is_some_and(|mesh| mesh.port() != 0)
        || !(ports.first..=ports.last).contains(&config.mesh.port());
    if config.mesh.port() == 0 || !was_given && is_taken(config.mesh) {
        let port = compute::port::pick(ports.first..=ports.last, ports.last, &BTreeSet::new());
        config.mesh.set_port(port.ok_or(Error::NoMeshPort(ports))?);
    }
    if config.refusals_port == 0 || is_taken(snapshot::refusals(config)) {
        let first = config.mesh_block.first;
        let mut ports = REFUSALS_PORTS.rev();
        let free = ports.find(|port| is_free(SocketAddr::from((first, *port))));
        config.refusals_port = free.unwrap_or(*REFUSALS_PORTS.end());
    }
    Ok(())
}

/// Doors that are taken are given anew to callers of which nothing runs; what runs holds its URLs. What the proxy last kept is brought up to
/// date with it, so that a new one doesn't begin by asking for what it can't have.
pub fn give_up_taken(agent: &Agent, running: &BTreeSet<ResourceId>) {
    if proxy_lives(&agent.layout) {
        return;
    }
    let doors = agent.with(|core| {
        let gone = core.doors.give_up(running, |door| is_free(door.into()));
        if gone {
            agent.keeper.write(agent.layout.doors(), &core.doors);
        }
        core.doors.clone()
    });
    let Some(mut kept) = kept_snapshot(&agent.layout) else {
        return;
    };
    kept.mesh = agent.config.mesh;
    kept.refusals = kept.refusals.map(|_| snapshot::refusals(&agent.config));
    kept.doors
        .retain(|door| doors.get(&door.caller, &door.need) == Some(door.listen));
    if let Err(error) = layout::write(&agent.layout.kept_snapshot(), &kept) {
        agent.with(|core| agent.disk_refuses(core, &error));
    }
}

/// That of an earlier agent: then all that is listened on is its own.
fn proxy_lives(layout: &Layout) -> bool {
    UnixStream::connect(layout.proxy_socket()).is_ok()
}
