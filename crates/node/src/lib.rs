//! The agent: makes one machine do what the servers say it should, and says what it sees.
//!
//! Entry point: [`agent::run`]. What to do about each instance is decided by [`plan::agent::step`]; this crate acts.
//!
//! ```text
//!   servers ◀─ heartbeat ── [heartbeat]◀─┐                       ┌─▶[instances]─▶ runtime ─▶ shims, workloads
//!           ── desired ──▶ [desired] ────┤                       │      ▲ artifacts, secrets, ports, volumes
//!           ── certificates ▶[identity]  ├─▶ [agent]: step ──────┼─▶[probes]
//!           ◀─ tunnel ───── [socket]     │   under one lock      ├─▶[proxy] ◀─ JSON lines ─▶ proxy
//!   runtime, proxy, probes, the clock ───┘                       └─▶[firewall]
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`options`] | what an agent is told once, and keeps in its directory |
//! | [`layout`] | the node's directory: what lies where, who may read it, one agent at a time |
//! | [`agent`] | puts the parts together; hands every input to the step and every output to who acts on it |
//! | [`core`] | what is known, under one lock; the signals between loops |
//! | [`begin`] | who the node is, what earlier agents left |
//! | [`alone`] | a copy of a node's directory is refused |
//! | [`keeper`] | writes what the next agent must know, on a thread of its own |
//! | [`removal`] | a node that was removed runs nothing |
//! | [`stop`] | the end of all that runs, when that is asked for |
//! | [`machine`] | the disk and the programs of this machine |
//! | [`volumes`] | volumes made, and files in them that are another's |
//! | [`upkeep`] | certificates renewed, artifacts collected |
//! | [`identity`] | joining, the node's certificate and those of the services placed here |
//! | [`heartbeat`] | tells the servers what is seen, renews the lease |
//! | [`desired`] | hears what the node should run, and keeps it on disk |
//! | [`instances`] | starts, stops and removes, one worker per instance |
//! | [`prepare`] | what an instance needs before: [`artifacts`], secrets, port, doors, volumes |
//! | [`environment`] | what a workload finds in its environment (pure) |
//! | [`engine`] | what engines are told and asked, beyond what any program is |
//! | [`doors`] | a loopback address per caller and need (pure) |
//! | [`snapshot`] | what the proxy is told (pure) |
//! | [`probes`] | asks an instance how it does |
//! | [`listening`] | where its processes listen, should that be elsewhere |
//! | [`proxy`] | the proxy process and the socket to it |
//! | [`firewall`], [`ports`] | closes instance ports to other uids; keeps them so |
//! | [`leftovers`] | what a killed node leaves outside of its directory |
//! | [`record`] | what is kept of an instance for the next agent |
//! | [`tunnel`] | the way from the servers to this node, which the node dials |
//! | [`clock`], [`pause`] | what time it is; how long until the next try |
//! | [`socket`] | the node's own API, on its Unix socket and through the tunnel; [`exec`], [`connect`] and logs |

mod addresses;
pub mod agent;
mod alone;
mod artifacts;
mod begin;
mod clock;
mod connect;
mod core;
mod desired;
mod doors;
mod engine;
mod environment;
mod exec;
mod firewall;
mod heartbeat;
mod identity;
mod instances;
mod keeper;
mod layout;
pub mod leftovers;
mod listening;
mod machine;
pub mod options;
pub mod pause;
mod ports;
mod prepare;
mod probes;
mod proxy;
mod record;
mod removal;
mod snapshot;
mod socket;
mod stop;
mod tunnel;
mod upkeep;
mod volumes;
