//! Engines as real processes.

mod postgres;
