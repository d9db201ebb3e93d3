//! Rows that somebody changes while they are on their way.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use model::state::Access;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::super::support::{Engine, name, until};

on_each_version! {
    what_a_row_has_become_meanwhile_is_a_message_of_its_own,
}

/// A topic that answers nobody before it may.
struct Slow {
    came: Mutex<Vec<Value>>,
    may_answer: Semaphore,
}

async fn take(State(topic): State<Arc<Slow>>, body: axum::body::Bytes) -> StatusCode {
    let events: Vec<Value> = serde_json::from_slice(&body).expect("a batch");
    topic.came.lock().expect("not poisoned").extend(events);
    let _ = topic.may_answer.acquire().await;
    StatusCode::OK
}

async fn what_a_row_has_become_meanwhile_is_a_message_of_its_own(version: u32) {
    let topic = Arc::new(Slow {
        came: Mutex::default(),
        may_answer: Semaphore::new(0),
    });
    let router = Router::new().route("/messages", post(take));
    let router = router.with_state(topic.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    engine.file.doors.insert(name("order-events"), address);
    engine.start_and_serve().await;
    let client = engine.connect("orders").await.expect("a writer");

    let came = || -> Vec<(String, i64)> {
        let came = topic.came.lock().expect("not poisoned");
        let one = |event: &Value| {
            let id = event["id"].as_str().expect("an id");
            (id.to_owned(), event["data"].as_i64().expect("a number"))
        };
        came.iter().map(one).collect()
    };
    let write =
        "insert into order_events (key, type, data) values ('a', 't', '1'), ('b', 't', '2')";
    client.batch_execute(write).await.expect("it writes");
    until("they are on their way", async || {
        (came().len() == 2).then_some(())
    })
    .await;
    let change = "update order_events set data = '3' where id = 1";
    client.batch_execute(change).await.expect("its own table");
    topic.may_answer.add_permits(100);
    let all = until("it comes again", async || {
        Some(came()).filter(|came| came.len() > 2)
    })
    .await;
    let data: Vec<i64> = all.iter().map(|(_, data)| *data).collect();
    assert_eq!(data, [1, 2, 3]);
    assert_ne!(all[0].0, all[2].0, "the topic would take it for the first");
    super::no_backlog(&engine).await;
}
