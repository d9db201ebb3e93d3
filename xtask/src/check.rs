//! Everything that needs no run. All steps are taken, so that one run names all that is wrong.

use std::path::Path;

use anyhow::{Result, bail};

use crate::step::{cargo, has_cargo};
use crate::tidy;

pub(crate) fn run(root: &Path) -> Result<()> {
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    let steps = [
        ("format", cargo(root, &["fmt", "--all", "--check"])),
        ("tidy", tidy::run(root, false)),
        ("clippy", cargo(root, &clippy)),
        ("dependencies", dependencies(root)),
    ];
    let mut failed = Vec::new();
    for (name, done) in steps {
        if let Err(error) = done {
            eprintln!("error in {name}: {error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

/// Licences, bans and sources by cargo-deny. It takes minutes to build, so that it is used where it is and not installed.
/// Advisories change while the code does not, so that they are asked for by hand: `cargo deny check advisories`.
fn dependencies(root: &Path) -> Result<()> {
    if has_cargo("deny") {
        return cargo(root, &["deny", "check", "bans", "licenses", "sources"]);
    }
    eprintln!(
        "==> cargo deny: not installed, skipped; `cargo install --locked cargo-deny` brings it"
    );
    Ok(())
}
