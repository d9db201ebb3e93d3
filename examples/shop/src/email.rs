//! A worker that writes to the buyer on each event of an order, once for each kind: what is sent is written down.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;

use crate::batch::Batcher;
use crate::database::{Database, Error as DatabaseError};
use crate::events::Event;
use crate::ledger::{self, Page};
use crate::service::{self, Error, Refusal, Settings};

/// Nobody waits for a letter: more are gathered for one statement.
const GATHER: Duration = Duration::from_millis(20);

struct Email {
    database: Arc<Database>,
    /// By order and kind of event.
    sending: Batcher<(String, String), ()>,
}

type Shared = State<Arc<Email>>;

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let database = Arc::new(settings.database()?);
    let email = Email {
        database: Arc::clone(&database),
        sending: Batcher::new(GATHER, move |letters| {
            send_all(Arc::clone(&database), letters)
        }),
    };
    let router = Router::new()
        .route("/events", post(event))
        .route("/api/ledger/effects/email", get(ledger_of_effects))
        .with_state(Arc::new(email));
    service::serve(settings, router).await
}

async fn event(State(email): Shared, event: Event) -> Result<StatusCode, Refusal> {
    email.sending.ask((event.order_id, event.kind)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn send_all(
    database: Arc<Database>,
    letters: Vec<(String, String)>,
) -> Result<Vec<()>, DatabaseError> {
    const SEND: &str = "insert into emails (order_id, type)
        select order_id, type from unnest($1::text[], $2::text[]) as asked (order_id, type) order by order_id, type
        on conflict do nothing";
    let (orders, kinds): (Vec<&str>, Vec<&str>) = letters
        .iter()
        .map(|(order, kind)| (order.as_str(), kind.as_str()))
        .unzip();
    database.rows(SEND, &[&orders, &kinds]).await?;
    Ok(vec![(); letters.len()])
}

/// All lines of an order are on one page, so that the order can be the cursor.
async fn ledger_of_effects(State(email): Shared, page: Query<Page>) -> Result<Response, Refusal> {
    const LINES: &str = "select row_to_json(line)::text from (
        select order_id, count(*) as count, type from emails where order_id in (
            select distinct order_id from emails where order_id > $1 order by order_id limit 2500)
        group by order_id, type order by order_id, type) line";
    ledger::page(&email.database, LINES, page).await
}
