//! `cargo run --release -p store --example bench -- [DIRECTORY [CLIENTS...]]`: durable writes a second of the embedded engine.

use std::path::PathBuf;
use std::sync::Arc;

use store::bench::{self, Options};
use store::sqlite::{self, SqliteStore};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let mut clients = arguments
        .map(|count| count.parse())
        .collect::<Result<Vec<usize>, _>>()?;
    if clients.is_empty() {
        clients = vec![1, 64, 256, 1024];
    }
    for clients in clients {
        let fresh = directory.join(format!("store-bench-{}", std::process::id()));
        std::fs::create_dir(&fresh)?;
        let store = SqliteStore::open(sqlite::Options::new(fresh.join("store.db")))?;
        println!(
            "{}",
            bench::run(
                Arc::new(store),
                Options {
                    clients,
                    ..Options::default()
                }
            )?
        );
        std::fs::remove_dir_all(&fresh)?;
    }
    Ok(())
}
