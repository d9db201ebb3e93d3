//! The rules of the house that neither compiler nor clippy knows.
//!
//! | module | rule |
//! |---|---|
//! | [`layers`] | a crate imports only what stands above it; rooms never import each other; who may import what |
//! | [`purity`] | no I/O, clock or hidden randomness where decisions are made |
//! | [`names`] | module docs, names that say nothing, lints of the workspace |
//! | [`unsafety`] | `unsafe` only where it is listed with a reason |
//! | [`documents`] | no document names a path that is gone |
//! | [`length`] | long functions and files only become fewer and shorter |
//!
//! Each rule is a function from the [`Workspace`] as it was read to [`Violation`]s, and has a test with a violation planted.

mod documents;
mod layers;
mod length;
mod names;
mod paths;
mod purity;
mod unsafety;
mod workspace;

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use workspace::Workspace;

/// Where the lengths are recorded that may only go down.
const RATCHET: &str = "xtask/ratchet.toml";

/// One thing that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// A path, with a line where one is known.
    place: String,
    message: String,
}

impl Violation {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }
}

pub(crate) fn run(root: &Path, update: bool) -> Result<()> {
    eprintln!("==> tidy");
    let workspace = Workspace::read(root)?;
    let recorded = workspace.text(RATCHET).map(length::Ratchet::parse);
    let mut recorded = recorded.transpose().context("can't read the ratchet")?;
    let actual = length::Ratchet::measure(&workspace);
    if update {
        let tightened = actual.tighten(recorded.as_ref());
        std::fs::write(root.join(RATCHET), tightened.to_text())?;
        recorded = Some(tightened);
    }
    let recorded = recorded.unwrap_or_default();
    let mut violations = all(&workspace);
    violations.extend(actual.above(&recorded, &workspace));
    for violation in &violations {
        eprintln!("{}: {}", violation.place, violation.message);
    }
    if actual.is_below(&recorded) {
        eprintln!("note: some code has become shorter; `cargo xtask tidy --update` keeps it so");
    }
    if violations.is_empty() {
        return Ok(());
    }
    bail!("rules broken in {} places", violations.len())
}

fn all(workspace: &Workspace) -> Vec<Violation> {
    let rules = [
        workspace::check,
        layers::check,
        purity::check,
        names::check,
        unsafety::check,
        documents::check,
    ];
    rules.iter().flat_map(|rule| rule(workspace)).collect()
}
