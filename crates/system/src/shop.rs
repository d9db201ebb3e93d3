//! `examples/shop` and its load, as tests and the bench use them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cloud::built;

/// What `shop-load -o json` prints.
#[derive(Debug, Deserialize)]
pub struct Audit {
    pub sent: u64,
    pub ok: u64,
    pub failed: u64,
    /// Of those that failed: an honest 503.
    pub unavailable: u64,
    pub lost: u64,
    pub double_charged: u64,
    pub oversold: u64,
    pub uncompensated: u64,
    pub events_lost: u64,
    pub duplicated_effects: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub orders_per_s: f64,
}

impl Audit {
    /// What the books must not show: all of it 0.
    pub fn wrong(&self) -> [u64; 6] {
        [
            self.lost,
            self.double_charged,
            self.oversold,
            self.uncompensated,
            self.events_lost,
            self.duplicated_effects,
        ]
    }
}

/// Puts the example into a folder, as a user has it after `examples/shop/build`.
pub fn copy(example: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder.join("bin"))?;
    for file in ["mainland.yaml", "analytics.py"] {
        std::fs::copy(example.join(file), folder.join(file))?;
    }
    std::fs::copy(built("SHOP_BIN", "shop"), folder.join("bin/shop")).context("the shop")?;
    Ok(())
}

/// The load, to be started.
pub fn load(gateway: SocketAddr, rate: u32, seconds: u32) -> Command {
    let mut command = Command::new(built("SHOP_LOAD_BIN", "shop-load"));
    command
        .args(["--url", &format!("http://{gateway}")])
        .args(["--rate", &rate.to_string()])
        .args(["--seconds", &seconds.to_string()])
        .args(["--settle", "60", "-o", "json"]);
    command
}
