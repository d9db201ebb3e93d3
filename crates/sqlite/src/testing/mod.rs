//! A disk for durability tests: it forgets what was not synced, fills up, and fails when told to.
//!
//! - [`Disk`]: what is on it, what would survive a power loss, who holds which lock. Safe, and without SQLite.
//! - `vfs`: hands SQLite's file calls to a disk.

mod disk;
mod vfs;

pub use disk::Disk;

/// Left at the default outside of tests of durability.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The database lies on this disk instead of in the file system.
    pub disk: Option<Disk>,
    /// A planted bug: a weaker `synchronous` than FULL.
    pub synchronous: Option<&'static str>,
}
