//! What tests may plant.

/// Left at the default outside of tests of durability.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A planted bug: commits are no longer synced.
    pub synchronous_off: bool,
}
