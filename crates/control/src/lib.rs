//! Reconcilers and API handlers: plan decides, control acts.
//!
//! Entry point: [`server::run`]. One runtime thread serves requests, mirrors the store and leads; files are written on threads of their own.
//!
//! ```text
//!  people, scripts ─ HTTP ─┐                                    ┌─▶ store (fenced transactions)
//!                          ├─▶ listen ─▶ dispatch ─▶ handlers ──┤
//!  nodes ──── mutual TLS ──┘    principal, authorize, admit     │
//!                                                               ▼
//!  heartbeats ─▶ observed ──┐                              mirror ─▶ world
//!                           ├─▶ leader ◀──────────────────────────────┘
//!                           │     └─ plan::nodes, plan::service, plan::check, plan::road
//!                           ▼
//!                        desired ─▶ each node's watch
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`server`] | starts and runs a server |
//! | `listen`, `seats` | connections: plain, TLS, HTTP/1.1, HTTP/2; how many of whom, and how long |
//! | `dispatch`, `actions`, `idempotency`, `call` | from a request to its handler, by way of principal and permission |
//! | `strangers` | what somebody gets who has not said who they are |
//! | `identity`, `alone` | who is a node and who is one no more, by its key; from where it is heard |
//! | `problems` | what goes wrong inside, for those outside |
//! | `handlers` | the operations of the API |
//! | `apply`, `changes`, `draft` | what a change is, what it means, and how it is written |
//! | `records`, `world`, `mirror` | what the store holds, typed, in memory |
//! | `state`, `clock` | what all of these share |
//! | `observed`, `disk` | what nodes say they see; how full the server's own disk is |
//! | `leader`, `desired`, `engines` | the loop that decides, and what it tells nodes; who uses databases and topics |
//! | `views`, `explain` | what people read |
//! | `tunnel` | the way back to a node: logs and exec |
//! | `auditor`, `refusals` | who did what, in the transaction that does it; what was refused, counted |
//! | `ring` | the keys that seal secrets, and their rotation |
//! | `artifacts`, `events` | files: uploads, what happened |

mod actions;
mod alone;
mod apply;
mod artifacts;
mod auditor;
mod call;
mod changes;
mod clock;
mod desired;
mod disk;
mod dispatch;
mod draft;
mod engines;
mod events;
mod explain;
mod handlers;
mod idempotency;
mod identity;
mod leader;
mod listen;
mod mirror;
mod observed;
mod problems;
mod records;
mod refusals;
mod ring;
mod runs;
mod seats;
pub mod server;
mod state;
mod strangers;
#[cfg(test)]
mod testing;
mod tunnel;
mod views;
mod world;
