//! `load ADDRESS --host H --path P --rate R --seconds S [--expect TEXT]`: prints a report as JSON; exits 1 if any request failed.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use system::load::{Load, run};

fn main() -> Result<()> {
    let report = run(&read(std::env::args().skip(1))?)?;
    println!("{}", serde_json::to_string(&report)?);
    std::process::exit(i32::from(report.failed > 0));
}

fn read(mut words: impl Iterator<Item = String>) -> Result<Load> {
    let address = words
        .next()
        .context("load ADDRESS [--host H] [--path P] [--rate R] [--seconds S] [--expect TEXT]")?;
    let mut load = Load::get(
        address.parse()?,
        "localhost",
        "/",
        100,
        Duration::from_secs(10),
    );
    while let Some(option) = words.next() {
        let value = words
            .next()
            .with_context(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--host" => load.host = value,
            "--path" => load.path = value,
            "--rate" => load.rate = value.parse()?,
            "--seconds" => load.time = Duration::from_secs_f64(value.parse()?),
            "--expect" => load.expect = Some(value),
            other => bail!("{other} is not an option"),
        }
    }
    Ok(load)
}
