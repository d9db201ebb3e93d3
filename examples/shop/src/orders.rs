//! Orders and their events. An order and its event are one transaction: the event is a row beside it, which others deliver.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::batch::Batcher;
use crate::chance;
use crate::database::{Database, Error as DatabaseError};
use crate::inventory::Key;
use crate::ledger::{self, Page};
use crate::service::{self, Error, Refusal, Settings};

struct Orders {
    database: Arc<Database>,
    placing: Batcher<(String, NewOrder), bool>,
}

type Shared = State<Arc<Orders>>;

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let database = Arc::new(settings.database()?);
    let orders = Orders {
        database: Arc::clone(&database),
        placing: Batcher::new(Duration::ZERO, move |orders| {
            place_all(Arc::clone(&database), orders)
        }),
    };
    let router = Router::new()
        .route("/api/orders/{order_id}", get(order))
        .route("/api/ledger/orders", get(ledger_of_orders))
        .route("/place", post(place))
        .route("/cancel", post(cancel))
        .route("/advance", post(advance))
        .with_state(Arc::new(orders));
    service::serve(settings, router).await
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewOrder {
    pub key: String,
    pub items: Value,
    pub total_cents: i64,
    pub payment_id: String,
}

/// Answers 201 with the order, also for a second time, and 410 if it was given up.
async fn place(
    State(orders): Shared,
    Json(order): Json<NewOrder>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let order_id = chance::identifier();
    if orders
        .placing
        .ask((order_id.clone(), order.clone()))
        .await?
    {
        let summary = json!({
            "order_id": order_id,
            "total_cents": order.total_cents,
            "payment_id": order.payment_id,
        });
        return Ok((StatusCode::CREATED, Json(summary)));
    }
    let row = orders.database.row(BY_KEY, &[&order.key]).await?;
    let row = row.ok_or_else(|| Refusal::unavailable("the order was lost sight of"))?;
    match row.get::<_, &str>(0) {
        "cancelled" => Err(Refusal::new(StatusCode::GONE, "given up")),
        _ => Ok((StatusCode::CREATED, Json(summary(&row)))),
    }
}

/// Tells of each whether it was placed under its number now; of two with the same key one is.
async fn place_all(
    database: Arc<Database>,
    orders: Vec<(String, NewOrder)>,
) -> Result<Vec<bool>, DatabaseError> {
    const PLACE: &str = "with placed as (
            insert into orders (order_id, key, status, items, total_cents, payment_id)
            select order_id, key, 'placed', items, total_cents, payment_id
            from unnest($1::text[], $2::text[], $3::jsonb[], $4::bigint[], $5::text[])
                as asked (order_id, key, items, total_cents, payment_id) order by key
            on conflict (key) do nothing
            returning order_id, items, total_cents, payment_id
        ), event as (
            insert into order_events (key, type, data) select order_id, 'order.placed', to_jsonb(placed) from placed
        )
        select order_id from placed";
    let ids: Vec<&str> = orders.iter().map(|(id, _)| id.as_str()).collect();
    let keys: Vec<&str> = orders.iter().map(|(_, o)| o.key.as_str()).collect();
    let items: Vec<&Value> = orders.iter().map(|(_, o)| &o.items).collect();
    let totals: Vec<i64> = orders.iter().map(|(_, o)| o.total_cents).collect();
    let payments: Vec<&str> = orders.iter().map(|(_, o)| o.payment_id.as_str()).collect();
    let rows = database
        .rows(PLACE, &[&ids, &keys, &items, &totals, &payments])
        .await?;
    let placed: HashSet<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(ids.iter().map(|id| placed.contains(id)).collect())
}

const BY_KEY: &str = "select status, order_id, total_cents, payment_id from orders where key = $1";

fn summary(row: &tokio_postgres::Row) -> Value {
    json!({
        "order_id": row.get::<_, &str>(1),
        "total_cents": row.get::<_, i64>(2),
        "payment_id": row.get::<_, Option<&str>>(3),
    })
}

/// Sees to it that the key never becomes an order. If it has already, nothing is done and the order is told: 409.
async fn cancel(
    State(orders): Shared,
    Json(Key { key }): Json<Key>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    const CANCEL: &str = "insert into orders (order_id, key, status, items, total_cents)
        values ($1, $2, 'cancelled', '[]', 0) on conflict (key) do nothing";
    orders
        .database
        .rows(CANCEL, &[&chance::identifier(), &key])
        .await?;
    let row = orders.database.row(BY_KEY, &[&key]).await?;
    let row = row.ok_or_else(|| Refusal::unavailable("the order was lost sight of"))?;
    match row.get::<_, &str>(0) {
        "cancelled" => Ok((StatusCode::OK, Json(json!({"status": "cancelled"})))),
        _ => Ok((StatusCode::CONFLICT, Json(summary(&row)))),
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Advance {
    pub orders: Vec<String>,
    pub status: Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Packed,
    Shipped,
}

/// Moves orders on; those that are there already stay as they are. Who wants to know looks: an event to all workers for each move would
/// cost as much as the order.
async fn advance(
    State(orders): Shared,
    Json(advance): Json<Advance>,
) -> Result<Json<Value>, Refusal> {
    const PACKED: &str =
        "update orders set status = 'packed' where order_id = any($1) and status = 'placed'";
    const SHIPPED: &str = "update orders set status = 'shipped' where order_id = any($1) and status in ('placed', 'packed')";
    let statement = match advance.status {
        Status::Packed => PACKED,
        Status::Shipped => SHIPPED,
    };
    orders.database.rows(statement, &[&advance.orders]).await?;
    Ok(Json(json!({"status": advance.status})))
}

async fn order(
    State(orders): Shared,
    Path(order_id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    const ORDER: &str = "select row_to_json(line) from (
        select order_id, status, items, total_cents, payment_id from orders
        where order_id = $1 and status <> 'cancelled') line";
    let row = orders.database.row(ORDER, &[&order_id]).await?;
    row.map(|row| Json(row.get(0)))
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "no such order"))
}

async fn ledger_of_orders(State(orders): Shared, page: Query<Page>) -> Result<Response, Refusal> {
    const LINES: &str = "select row_to_json(line)::text from (
        select order_id, key, total_cents, payment_id, items, status from orders
        where order_id > $1 and status <> 'cancelled' order by order_id limit 5000) line";
    ledger::page(&orders.database, LINES, page).await
}
