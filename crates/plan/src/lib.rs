//! Every decision as a pure function, and the checker that lints a plan. No I/O, no clock, no async: what time it is and what was drawn at random is handed in.
//!
//! | module | what it decides |
//! |---|---|
//! | [`place`] | which node an instance goes to, and why |
//! | [`service`] | one step of one service: scaling, rolling, replacing, giving up on a bad release |
//! | [`nodes`] | which node is lost or back, and when to hold because too much vanished at once |
//! | [`order`] | what starts after what, and which needs form a cycle |
//! | [`backoff`] | how long until the next try, and what is a crash loop |
//! | [`agent`] | what a node does about each instance that it should run |
//! | [`road`] | what each node is told about the way to others |
//! | [`capacity`] | whether the survivors of a zone could carry all |
//! | [`check`] | what must hold of every plan |
//! | [`bench`] | how fast [`place`] is |
//!
//! The server's reconcilers call these functions and act on what they return; the simulator links the same ones.

pub mod agent;
pub mod backoff;
pub mod bench;
pub mod capacity;
pub mod check;
pub mod nodes;
pub mod order;
pub mod place;
pub mod road;
pub mod service;
#[cfg(test)]
mod testing;
mod time;

pub use time::{Instant, Now};
