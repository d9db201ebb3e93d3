//! The agent as a real process, with real shims, proxy and workloads, against a server over real TLS.

mod engine;
mod faults;
mod identity;
mod life;
mod machine;
mod ports;
mod server;
mod survival;
mod talk;
mod world;
