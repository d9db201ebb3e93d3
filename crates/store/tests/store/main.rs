//! Every engine against the one contract; the embedded one also against power losses and restarts.
//!
//! - [`conformance`]: the contract, case by case.
//! - [`history`]: concurrent clients from a seed, judged by a reference model.
//! - [`power`]: what was acknowledged survives a disk that forgets what was not synced.
//! - [`embedded`]: restarts and full disks of the SQLite engine.

mod conformance;
mod embedded;
mod engines;
mod history;
mod model;
mod power;
