//! How requests move: balancing, resilience and routing as pure parts, and the proxy that carries the bytes.
//!
//! | module | what it decides or does | I/O |
//! |---|---|---|
//! | [`routing`] | host and path → service | none |
//! | [`balance`] | which endpoint is next: zone first, two choices over load | none |
//! | [`load`] | peak EWMA, requests in flight, ejection: what is known of one endpoint, shared by all workers | none |
//! | [`budget`] | how many tries a destination may cost beyond the first | none |
//! | [`retry`] | whether a failed try may be repeated, and after how long | none |
//! | [`problem`] | the RFC 9457 problems that clients see | none |
//! | [`proxy`] | the process: gateway, doors, mesh, gate, control socket; entry point [`proxy::run`] | all |
//!
//! What runs: `mainland proxy --dir DIR` calls [`proxy::run`], which lives until it is told to stop. What it is told is
//! [`model::traffic::ProxySnapshot`]; it decides nothing about where instances should be.

pub mod balance;
pub mod budget;
pub mod load;
pub mod problem;
pub mod proxy;
pub mod retry;
pub mod routing;
