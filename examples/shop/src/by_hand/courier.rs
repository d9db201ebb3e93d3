//! Carries committed rows of the outbox to the workers: at least once, in order for each order, several orders at once.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::database::Database;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Then it is given up, with a line that says so.
const TRIES: usize = 20;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(250);

#[derive(Clone)]
struct Message {
    id: i64,
    key: String,
    kind: String,
    data: Value,
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// Until the task is dropped.
pub async fn carry(database: String, workers: Vec<String>) {
    let Ok(database) = Database::new(&database) else {
        return;
    };
    let client: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut after = 0;
    loop {
        let messages = committed(&database, after).await;
        after = messages.last().map_or(after, |message| message.id);
        if messages.is_empty() {
            sleep(LOOK_EVERY).await;
        }
        deliver(&client, messages, &workers).await;
    }
}

/// Rows get their numbers before they are committed: only those are taken before which none can appear any more.
async fn committed(database: &Database, after: i64) -> Vec<Message> {
    const NEXT: &str = "select id, key, type, data from order_events where id > $1
        and xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint order by id limit 100";
    let rows = database.rows(NEXT, &[&after]).await.unwrap_or_default();
    let message = |row: &tokio_postgres::Row| Message {
        id: row.get(0),
        key: row.get(1),
        kind: row.get(2),
        data: row.get(3),
    };
    rows.iter().map(message).collect()
}

async fn deliver(client: &Http, messages: Vec<Message>, workers: &[String]) {
    let mut by_key: BTreeMap<String, Vec<Message>> = BTreeMap::new();
    for message in messages {
        by_key.entry(message.key.clone()).or_default().push(message);
    }
    let mut deliveries = JoinSet::new();
    for messages in by_key.into_values() {
        for worker in workers {
            let (client, messages, worker) = (client.clone(), messages.clone(), worker.clone());
            deliveries.spawn(async move {
                for message in messages {
                    bring(&client, &message, &worker).await;
                }
            });
        }
    }
    while deliveries.join_next().await.is_some() {}
}

async fn bring(client: &Http, message: &Message, worker: &str) {
    for _ in 0..TRIES {
        let Ok(request) = request(message, worker) else {
            break;
        };
        let answered = client.request(request).await;
        if answered.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        sleep(TRY_AGAIN_AFTER).await;
    }
    eprintln!("given up: message {} for {worker}", message.id);
}

fn request(message: &Message, worker: &str) -> Result<Request<Full<Bytes>>, http::Error> {
    Request::post(format!("{worker}/events"))
        .header("content-type", "application/json")
        .header("ce-specversion", "1.0")
        .header("ce-id", message.id.to_string())
        .header("ce-type", &message.kind)
        .header("ce-source", "order-events")
        .header("ce-subject", &message.key)
        .body(Full::new(Bytes::from(message.data.to_string())))
}
