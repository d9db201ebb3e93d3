//! The tables, made by `shop migrate`: it may run again, and twice at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::catalogue::PRODUCTS;
use crate::database::{Database, Error as DatabaseError};
use crate::service::{Error, Settings};

/// A database that is only starting is waited for.
const WAIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

const TABLES: &str = include_str!("schema.sql");
/// What a platform with an outbox makes itself; by hand it is ours to make.
const OUTBOX: &str = "create table if not exists order_events (
    id bigint generated always as identity primary key,
    key text not null,
    type text not null,
    data jsonb not null,
    at timestamptz not null default now()
);";
/// Only one migration at a time: the second one finds all done.
const ALONE: &str = "select pg_advisory_xact_lock(7205759403);";

pub async fn migrate(settings: &Settings, with_outbox: bool) -> Result<(), Error> {
    let database = settings.database()?;
    let outbox = if with_outbox { OUTBOX } else { "" };
    let script = format!("{ALONE} {outbox} {TABLES}");
    let until = Instant::now() + WAIT;
    loop {
        match database.script(&script).await {
            Ok(()) => break,
            Err(DatabaseError::Unavailable(why)) if Instant::now() < until => {
                eprintln!("waiting for the database: {why}");
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    stock(&database).await?;
    println!("the tables are there, with {} products", PRODUCTS.len());
    Ok(())
}

/// Names and prices follow the catalogue; stock is only what it begins with.
async fn stock(database: &Database) -> Result<(), Error> {
    const PUT: &str = "insert into products (sku, name, price_cents, position, initial, available)
        values ($1, $2, $3, $4, $5, $5)
        on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents, position = excluded.position";
    for (position, product) in PRODUCTS.iter().enumerate() {
        let position = position as i64;
        database
            .rows(
                PUT,
                &[
                    &product.sku,
                    &product.name,
                    &product.price_cents,
                    &position,
                    &product.stock,
                ],
            )
            .await?;
    }
    Ok(())
}
