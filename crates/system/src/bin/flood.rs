//! `flood KIND ADDRESS COUNT`: one client that means ill ([`system::flood`]). Says how many connections stand, and ends when its input does.

use anyhow::{Context, Result};
use system::flood::{self, Kind};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mut word = || words.next().context("flood KIND ADDRESS COUNT");
    let name = word()?;
    let kind = Kind::named(&name).with_context(|| format!("{name} is no kind of flood"))?;
    flood::run(kind, word()?.parse()?, word()?.parse()?)
}
