//! The binary as a user runs it: what system tests and whole-system benchmarks stand on.
//!
//! | module | what it holds |
//! |---|---|
//! | [`load`] | an open-loop HTTP load that never retries and counts latency from the scheduled time |
//! | [`cloud`] | a `mainland up` of one's own: start it, ask it, break it, end it |
//! | [`flood`] | one client that means ill |
//! | [`proc`] | what the kernel says of processes: alive, memory, CPU time |
//! | [`shop`] | the example store, its load and what that prints |
//! | [`wait`] | waiting for a condition, with a deadline |
//! | [`bench`] | whole-system benchmarks, beside peers in the same run |
//!
//! Nothing here knows the inside of Mainland: it types commands and reads answers.

pub mod bench;
pub mod cloud;
pub mod flood;
pub mod load;
pub mod proc;
pub mod shop;
pub mod wait;
