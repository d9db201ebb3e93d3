//! Tests: of the crates, and of the whole system.

use std::path::Path;

use anyhow::Result;

use crate::step::cargo;

/// Unit, integration and documentation tests of all crates but `system`, whose tests need built programs and often root.
pub(crate) fn run(root: &Path) -> Result<()> {
    cargo(
        root,
        &[
            "test",
            "--workspace",
            "--exclude",
            "system",
            "--no-fail-fast",
        ],
    )
}

/// The binary as a user runs it. One test at a time: they share the machine's ports, cgroups and CPUs.
pub(crate) fn run_system(root: &Path) -> Result<()> {
    cargo(
        root,
        &[
            "build",
            "--package",
            "mainland",
            "--package",
            "system",
            "--package",
            "shop",
            "--bins",
        ],
    )?;
    cargo(
        root,
        &[
            "test",
            "--package",
            "system",
            "--no-fail-fast",
            "--",
            "--test-threads=1",
        ],
    )
}
