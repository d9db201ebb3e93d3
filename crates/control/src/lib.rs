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
//! | `listen` | connections: plain, TLS, HTTP/1.1, HTTP/2 |
//! | `dispatch`, `actions`, `idempotency`, `call` | from a request to its handler, by way of principal and permission |
//! | `handlers` | the operations of the API |
//! | `apply`, `changes`, `draft` | what a change is, what it means, and how it is written |
//! | `records`, `world`, `mirror` | what the store holds, typed, in memory |
//! | `observed` | what nodes say they see |
//! | `leader`, `desired` | the loop that decides, and what it tells nodes |
//! | `views`, `explain` | what people read |
//! | `tunnel` | the way back to a node: logs and exec |
//! | `artifacts`, `events`, `auditor` | files: uploads, what happened, who did it |

mod actions;
mod apply;
mod artifacts;
mod auditor;
mod call;
mod changes;
mod clock;
mod desired;
mod dispatch;
mod draft;
mod events;
mod explain;
mod handlers;
mod idempotency;
mod leader;
mod listen;
mod mirror;
mod observed;
mod problems;
mod records;
pub mod server;
mod state;
#[cfg(test)]
mod testing;
mod tunnel;
mod views;
mod world;
