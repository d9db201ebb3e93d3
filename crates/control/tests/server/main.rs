//! A server on loopback, and nodes that do what they are told in memory: what people and agents see from outside.

mod artifacts;
mod audit;
mod balance;
mod beside;
mod changes;
mod cloud;
mod deploys;
mod edge;
mod engines;
mod explain;
mod held;
mod keyring;
mod keys;
mod machine;
mod nodes;
mod secrets;
mod state;
mod strangers;
mod tunnel;
mod versions;
