//! `cargo run --release -p store --example bench -- [DIRECTORY]`: durable writes a second of the embedded engine.

use std::path::PathBuf;
use std::sync::Arc;

use store::bench::{self, Options};
use store::sqlite::{self, SqliteStore};

fn main() -> Result<(), store::Error> {
    let directory = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let path = directory.join(format!("store-bench-{}.db", std::process::id()));
    for clients in [1, 64, 256, 1024] {
        let store = SqliteStore::open(sqlite::Options::new(&path))?;
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
        for suffix in ["", "-wal", "-shm", "-lock"] {
            let mut file = path.clone().into_os_string();
            file.push(suffix);
            let _ = std::fs::remove_file(file);
        }
    }
    Ok(())
}
