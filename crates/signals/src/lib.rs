//! What happened, kept within bounds: the output of instances and the log of events.
//!
//! | module | what it keeps | where |
//! |---|---|---|
//! | [`logs`] | stdout and stderr of one instance, a record per line | `FOLDER/00000001.log`, `00000002.log`, … the oldest removed |
//! | [`events`] | what happened to things, with a sequence number each | `FOLDER/00000001.events`, … and a tail in memory |
//!
//! Everything here is synchronous and uses files alone: the writer of logs runs inside a shim, which has no async runtime
//! and about a megabyte of memory. Nobody is called back; a reader holds its position and asks again.

pub mod events;
pub mod logs;
mod segments;
