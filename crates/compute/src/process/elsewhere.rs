//! Whether what a directory describes runs, but for another directory.

use std::path::Path;

use super::conversation::is_locked;
use crate::instance;

/// The pid of the shim of the last run in a directory, where that shim lives and does not hold this directory: then the directory is a copy of
/// the one that it holds, and to end what its record names would end the other's instance.
pub fn runs_elsewhere(directory: &Path) -> Option<u32> {
    let record = instance::read_record(directory)?;
    let lives = record.shim.is_alive() && !is_locked(directory).unwrap_or(true);
    lives.then_some(record.shim.pid)
}
