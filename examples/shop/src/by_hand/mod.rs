//! The whole shop on one machine with nothing else: `shop by-hand`. What a platform would do is done here in the least way that
//! works, for a look and for the tests.
//!
//! | module | what it is |
//! |---|---|
//! | [`postgres`] | a private PostgreSQL in a folder |
//! | [`copies`] | services as processes on free ports |
//! | [`front`] | one address for all routes |
//! | [`courier`] | committed rows of the outbox, carried to the workers |

pub mod copies;
pub mod courier;
pub mod front;
pub mod postgres;

use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};

use crate::service::Error;
use copies::{Copy, Plan};
use postgres::Postgres;

/// Where a browser finds it.
const ADDRESS: &str = "127.0.0.1:8090";
/// The worker that isn't ours to compile, beside this crate's manifest.
const ANALYTICS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/analytics.py");

/// One copy of each service, with their addresses.
pub struct Shop {
    pub plan: Plan,
    pub postgres: Postgres,
    pub copies: Vec<(&'static str, Copy)>,
}

impl Shop {
    /// Starts PostgreSQL below a folder, makes the tables, and starts a copy of each service.
    pub async fn start(program: &Path, folder: &Path) -> Result<Self, Error> {
        let postgres = Postgres::start(folder)?;
        let plan = Plan::new(program, &postgres.url())?;
        plan.migrate()?;
        let mut copies = Vec::new();
        for service in copies::SERVICES {
            copies.push((service, plan.start(service, &[])?));
        }
        let folder = folder.join("analytics");
        copies.push(("analytics", plan.start_analytics(ANALYTICS, &folder)?));
        for (service, copy) in &copies {
            copy.ready(service).await?;
        }
        Ok(Self {
            plan,
            postgres,
            copies,
        })
    }

    pub fn address(&self, service: &str) -> String {
        let copy = self.copies.iter().find(|(name, _)| *name == service);
        copy.map(|(_, copy)| copy.address()).unwrap_or_default()
    }

    /// The copy that the others know.
    pub fn copy(&mut self, service: &str) -> Option<&mut Copy> {
        let copy = self.copies.iter_mut().find(|(name, _)| *name == service);
        copy.map(|(_, copy)| copy)
    }

    /// The addresses of the workers on `order-events`.
    pub fn workers(&self) -> Vec<String> {
        let workers = ["email", "shipping", "analytics"];
        workers.map(|worker| self.address(worker)).to_vec()
    }
}

pub async fn run(folder: Option<&str>) -> Result<(), Error> {
    let folder = match folder {
        Some(folder) => PathBuf::from(folder),
        None => std::env::temp_dir().join("shop-by-hand"),
    };
    std::fs::create_dir_all(&folder)?;
    let program = std::env::current_exe()?;
    let shop = Shop::start(&program, &folder).await?;
    tokio::spawn(courier::carry(shop.postgres.url(), shop.workers()));
    let router = front::router(|service| shop.address(service));
    let listener = tokio::net::TcpListener::bind(ADDRESS).await?;
    println!(
        "the shop is at http://{ADDRESS}, its data in {}",
        folder.display()
    );
    for (service, copy) in &shop.copies {
        println!("{service:>12} {}", copy.address());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = axum::serve(listener, router) => ended?,
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
