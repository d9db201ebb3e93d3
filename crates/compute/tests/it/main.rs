//! The process runtime against real processes, and artifacts against a real disk.

mod artifacts;
mod execs;
mod inherited;
mod instances;
mod leases;
mod packed;
mod prepared;
mod removal;
mod stalls;
mod volumes;
mod world;
