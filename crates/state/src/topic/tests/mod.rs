//! The topic as its callers, its consumers and its node see it: over sockets, with programs that are slow, fail, poison, and vanish.

mod durability;
mod pulling;
mod pushing;
pub mod support;
