//! A worker that packs and ships what was ordered. The event makes a shipment; a loop in each copy moves on those that are due, many
//! at once, and tells orders.
//!
//! ```text
//! event ─▶ packing ──1 s──▶ packed ──2 s──▶ shipped
//! ```
//!
//! A copy takes a shipment by pushing its time away. If it dies, another one takes it then; telling orders twice changes nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::sleep;

use crate::batch::Batcher;
use crate::database::{Database, Error as DatabaseError};
use crate::events::{Event, PLACED};
use crate::ledger::{self, Page};
use crate::orders::{Advance, Status};
use crate::peer::{Call, Peer};
use crate::service::{self, Error, Refusal, Settings};

const LOOK_EVERY: Duration = Duration::from_millis(600);
/// Nobody waits for a parcel to be begun: more are gathered for one statement.
const GATHER: Duration = Duration::from_millis(20);
const TELL_WITHIN: Duration = Duration::from_secs(3);

struct Shipping {
    database: Arc<Database>,
    /// By order.
    beginning: Batcher<String, ()>,
    orders: Peer,
}

type Shared = State<Arc<Shipping>>;

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let database = Arc::new(settings.database()?);
    let beginning = Arc::clone(&database);
    let shipping = Arc::new(Shipping {
        database,
        beginning: Batcher::new(GATHER, move |orders| {
            begin_all(Arc::clone(&beginning), orders)
        }),
        orders: settings.peer("ORDERS_URL")?,
    });
    let router = Router::new()
        .route("/events", post(event))
        .route("/api/ledger/effects/shipping", get(ledger_of_effects))
        .with_state(Arc::clone(&shipping));
    tokio::spawn(async move {
        loop {
            if let Err(why) = shipping.move_on().await {
                eprintln!("shipments wait: {why}");
            }
            sleep(LOOK_EVERY).await;
        }
    });
    service::serve(settings, router).await
}

async fn event(State(shipping): Shared, event: Event) -> Result<StatusCode, Refusal> {
    if event.kind == PLACED {
        shipping.beginning.ask(event.order_id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn begin_all(database: Arc<Database>, orders: Vec<String>) -> Result<Vec<()>, DatabaseError> {
    const BEGIN: &str = "insert into shipments (order_id, state, due)
        select order_id, 'packing', now() + interval '1 second' from unnest($1::text[]) as asked (order_id) order by order_id
        on conflict do nothing";
    database.rows(BEGIN, &[&orders]).await?;
    Ok(vec![(); orders.len()])
}

impl Shipping {
    async fn move_on(&self) -> Result<(), String> {
        const TAKE: &str =
            "update shipments set due = now() + interval '6 seconds' where order_id in (
                select order_id from shipments where state <> 'shipped' and due <= now()
                order by due limit 500 for update skip locked)
            returning order_id, state";
        let rows = self.database.rows(TAKE, &[]).await;
        let rows = rows.map_err(|error| error.to_string())?;
        for (state, status) in [("packing", Status::Packed), ("packed", Status::Shipped)] {
            let of_state = rows.iter().filter(|row| row.get::<_, &str>(1) == state);
            let orders: Vec<String> = of_state.map(|row| row.get(0)).collect();
            if !orders.is_empty() {
                self.advance(orders, status).await?;
            }
        }
        Ok(())
    }

    async fn advance(&self, orders: Vec<String>, status: Status) -> Result<(), String> {
        const PACKED: &str =
            "update shipments set state = 'packed', due = now() + interval '2 seconds'
            where order_id = any($1) and state = 'packing'";
        const SHIPPED: &str = "update shipments set state = 'shipped' where order_id = any($1)";
        let advance = Advance { orders, status };
        let call = Call {
            method: Method::POST,
            path: "/advance",
            key: &format!("{status:?}-{}", advance.orders[0]),
            body: json!(advance),
            within: TELL_WITHIN,
        };
        let told = self.orders.call(call).await;
        let told = told.map_err(|error| error.to_string())?;
        if told.status != StatusCode::OK {
            return Err(format!("orders answered {}", told.status));
        }
        let statement = match status {
            Status::Packed => PACKED,
            Status::Shipped => SHIPPED,
        };
        let done = self.database.rows(statement, &[&advance.orders]).await;
        done.map(drop).map_err(|error| error.to_string())
    }
}

async fn ledger_of_effects(
    State(shipping): Shared,
    page: Query<Page>,
) -> Result<Response, Refusal> {
    const LINES: &str = "select row_to_json(line)::text from (
        select order_id, 1 as count, 'order.placed' as type from shipments
        where order_id > $1 order by order_id limit 5000) line";
    ledger::page(&shipping.database, LINES, page).await
}
