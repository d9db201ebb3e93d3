//! Products and stock. What an attempt wants is reserved under its key in one statement with what
//! others want at the same time, given back under it, or settled as sold.
//!
//! Rows of products are always locked in the order of their names, so that two carts never wait for each other.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::batch::Batcher;
use crate::database::{Database, Error as DatabaseError};
use crate::ledger::{self, Page};
use crate::service::{self, Error, Refusal, Settings};

/// The rule of the table that stock can't break.
const NEVER_OVERSOLD: &str = "never_oversold";

/// For how long a copy believes the products it has read. What a page shows is old when it is read anyway; only reserving decides.
const BELIEVED: Duration = Duration::from_millis(250);

struct Inventory {
    database: Arc<Database>,
    reserving: Batcher<Wanted, Option<Value>>,
    products: Mutex<Option<(Instant, Bytes)>>,
}

type Shared = State<Arc<Inventory>>;

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let database = Arc::new(settings.database()?);
    let inventory = Inventory {
        database: Arc::clone(&database),
        reserving: Batcher::new(Duration::ZERO, move |all| {
            reserve_all(Arc::clone(&database), all)
        }),
        products: Mutex::new(None),
    };
    let router = Router::new()
        .route("/api/products", get(products))
        .route("/api/ledger/stock", get(ledger_of_stock))
        .route("/reserve", post(reserve))
        .route("/release", post(release))
        .route("/settle", post(settle))
        .with_state(Arc::new(inventory));
    service::serve(settings, router).await
}

/// One kind of thing in a cart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Item {
    pub sku: String,
    pub quantity: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wanted {
    pub key: String,
    pub items: Vec<Item>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Key {
    pub key: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Keys {
    pub keys: Vec<String>,
}

async fn products(State(inventory): Shared) -> Result<impl IntoResponse, Refusal> {
    let known = inventory.known();
    let products = match known {
        Some(products) => products,
        None => inventory.read().await?,
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], products))
}

impl Inventory {
    fn known(&self) -> Option<Bytes> {
        let products = self.lock();
        let known = products
            .as_ref()
            .filter(|(read, _)| read.elapsed() < BELIEVED);
        known.map(|(_, products)| products.clone())
    }

    async fn read(&self) -> Result<Bytes, Refusal> {
        // As old as the question, not as the answer.
        let asked = Instant::now();
        let products = Bytes::from(json!(all(&self.database).await?).to_string());
        *self.lock() = Some((asked, products.clone()));
        Ok(products)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Bytes)>> {
        self.products
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

async fn all(database: &Database) -> Result<Vec<Value>, DatabaseError> {
    const ALL: &str = "select sku, name, price_cents, available from products order by position";
    let rows = database.rows(ALL, &[]).await?;
    let product = |row: &tokio_postgres::Row| {
        json!({
            "sku": row.get::<_, &str>(0),
            "name": row.get::<_, &str>(1),
            "price_cents": row.get::<_, i64>(2),
            "stock": row.get::<_, i64>(3),
        })
    };
    Ok(rows.iter().map(product).collect())
}

/// Answers 201 with the lines and what they cost, 409 with what is short, 404 with what isn't sold here, 410 if it was given up.
async fn reserve(
    State(inventory): Shared,
    Json(wanted): Json<Wanted>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    const EARLIER: &str = "select state, lines, total_cents from reservations where key = $1";
    let reserved = inventory.reserving.ask(wanted.clone()).await;
    let database = &inventory.database;
    let reserved = match reserved {
        Err(DatabaseError::Rule(rule)) if rule == NEVER_OVERSOLD => {
            return Err(short(database, &wanted.items).await?);
        }
        other => other?,
    };
    if let Some(reserved) = reserved {
        return Ok((StatusCode::CREATED, Json(reserved)));
    }
    let Some(row) = database.row(EARLIER, &[&wanted.key]).await? else {
        return Err(refused(database, &wanted.items).await?);
    };
    if row.get::<_, &str>(0) == "released" {
        return Err(Refusal::new(StatusCode::GONE, "given up"));
    }
    let answer = json!({"lines": row.get::<_, Value>(1), "total_cents": row.get::<_, i64>(2)});
    Ok((StatusCode::CREATED, Json(answer)))
}

/// The lines of each and what they cost; none for a key that has a reservation already, or wants what isn't there.
async fn reserve_all(
    database: Arc<Database>,
    all: Vec<Wanted>,
) -> Result<Vec<Option<Value>>, DatabaseError> {
    // The reservations come first: a second try of the same key stops there and takes nothing. Who wants more than there
    // is seen to be stays out; where several want the last of a product, the rule of its table undoes the whole, and each is tried alone.
    const RESERVE: &str = "with wanted as materialized (
            select w.key, w.sku, w.quantity, p.name, p.price_cents, p.available
            from unnest($1::text[], $2::text[], $3::bigint[]) as w (key, sku, quantity) left join products p using (sku)
        ), reservation as (
            insert into reservations (key, state, lines, total_cents)
            select key, 'reserved', jsonb_agg(to_jsonb(wanted) - array['key', 'available'] order by sku), sum(price_cents * quantity)
            from wanted group by key having bool_and(coalesce(available >= quantity, false)) order by key
            on conflict (key) do nothing
            returning key, lines, total_cents
        ), totals as materialized (
            select wanted.sku, sum(wanted.quantity)::bigint as quantity from reservation join wanted using (key) group by 1
        ), locked as materialized (
            select p.sku, totals.quantity from products p join totals using (sku) order by p.sku for update of p
        ), taken as (
            update products p set available = p.available - locked.quantity, reserved = p.reserved + locked.quantity
            from locked where p.sku = locked.sku
        )
        select key, lines, total_cents from reservation";
    // Of two with the same key the second finds what the first one got.
    let mut seen = HashSet::new();
    let is_first: Vec<bool> = all.iter().map(|w| seen.insert(w.key.as_str())).collect();
    let (mut keys, mut skus, mut quantities) = (Vec::new(), Vec::new(), Vec::new());
    for (wanted, _) in all.iter().zip(&is_first).filter(|(_, first)| **first) {
        for item in &wanted.items {
            keys.push(wanted.key.as_str());
            skus.push(item.sku.as_str());
            quantities.push(item.quantity);
        }
    }
    let rows = database.rows(RESERVE, &[&keys, &skus, &quantities]).await?;
    let reserved = |row: &tokio_postgres::Row| json!({"lines": row.get::<_, Value>(1), "total_cents": row.get::<_, i64>(2)});
    let mut by_key: HashMap<&str, Value> =
        rows.iter().map(|row| (row.get(0), reserved(row))).collect();
    let told = |wanted: &Wanted| by_key.remove(wanted.key.as_str());
    Ok(all.iter().map(told).collect())
}

fn columns(items: &[Item]) -> (Vec<&str>, Vec<i64>) {
    items
        .iter()
        .map(|item| (item.sku.as_str(), item.quantity))
        .unzip()
}

async fn short(database: &Database, items: &[Item]) -> Result<Refusal, Refusal> {
    const SHORT: &str = "select w.sku from unnest($1::text[], $2::bigint[]) as w (sku, quantity)
        join products p using (sku) where p.available < w.quantity order by 1";
    let (names, quantities) = columns(items);
    let rows = database.rows(SHORT, &[&names, &quantities]).await?;
    let mut skus: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if skus.is_empty() {
        // Something came back in between; it was short all the same when it was asked for.
        skus = items.iter().map(|item| item.sku.clone()).collect();
    }
    Ok(Refusal::new(StatusCode::CONFLICT, "out of stock").with("skus", skus))
}

/// Why nothing was reserved: something isn't sold here, or there isn't enough of it.
async fn refused(database: &Database, items: &[Item]) -> Result<Refusal, Refusal> {
    const UNKNOWN: &str = "select sku from unnest($1::text[]) as w (sku)
        where not exists (select from products p where p.sku = w.sku) order by 1";
    let (names, _) = columns(items);
    let rows = database.rows(UNKNOWN, &[&names]).await?;
    let skus: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if skus.is_empty() {
        return short(database, items).await;
    }
    Ok(Refusal::new(StatusCode::NOT_FOUND, "no such product").with("skus", skus))
}

/// Gives back what the key reserved, or sees to it that it never will.
async fn release(
    State(inventory): Shared,
    Json(Key { key }): Json<Key>,
) -> Result<Json<Value>, Refusal> {
    const RELEASE: &str = "with released as (
            insert into reservations (key, state) values ($1, 'released')
            on conflict (key) do update set state = 'released' where reservations.state = 'reserved'
            returning lines
        ), totals as materialized (
            select line ->> 'sku' as sku, (line ->> 'quantity')::bigint as quantity
            from released, jsonb_array_elements(lines) as line
        ), locked as materialized (
            select p.sku, totals.quantity from products p join totals using (sku) order by p.sku for update of p
        )
        update products p set available = p.available + locked.quantity, reserved = p.reserved - locked.quantity
        from locked where p.sku = locked.sku";
    inventory.database.rows(RELEASE, &[&key]).await?;
    const STATE: &str = "select state from reservations where key = $1";
    let row = inventory.database.row(STATE, &[&key]).await?;
    if row.is_some_and(|row| row.get::<_, &str>(0) == "sold") {
        return Err(Refusal::new(StatusCode::CONFLICT, "sold already"));
    }
    Ok(Json(json!({"state": "released"})))
}

/// What was reserved for orders that are placed is sold. Many at once: each click is spared a transaction.
async fn settle(
    State(inventory): Shared,
    Json(Keys { keys }): Json<Keys>,
) -> Result<Json<Value>, Refusal> {
    const SETTLE: &str = "with sold as (
            update reservations set state = 'sold' where key = any($1) and state = 'reserved' returning lines
        ), totals as materialized (
            select line ->> 'sku' as sku, sum((line ->> 'quantity')::bigint)::bigint as quantity
            from sold, jsonb_array_elements(lines) as line group by 1
        ), locked as materialized (
            select p.sku, totals.quantity from products p join totals using (sku) order by p.sku for update of p
        )
        update products p set reserved = p.reserved - locked.quantity, sold = p.sold + locked.quantity
        from locked where p.sku = locked.sku";
    inventory.database.rows(SETTLE, &[&keys]).await?;
    Ok(Json(json!({"settled": keys.len()})))
}

async fn ledger_of_stock(State(inventory): Shared, page: Query<Page>) -> Result<Response, Refusal> {
    const LINES: &str = "select row_to_json(line)::text from (
        select sku, initial, available, reserved, sold from products where sku > $1 order by sku limit 5000) line";
    ledger::page(&inventory.database, LINES, page).await
}
