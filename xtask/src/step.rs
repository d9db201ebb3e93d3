//! Running programs: each is said before it runs, and timed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

/// Runs cargo with `arguments` in the workspace, its output passed through.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    let shown = format!("cargo {}", arguments.join(" "));
    eprintln!("==> {shown}");
    let began = Instant::now();
    // The cargo that runs us, where there is one: several may be installed.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .status()
        .with_context(|| format!("can't run `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed");
    eprintln!("    {:.1} s", began.elapsed().as_secs_f32());
    Ok(())
}

/// Whether `cargo NAME` is installed.
pub(crate) fn has_cargo(name: &str) -> bool {
    Command::new("cargo")
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
