//! The outbox beside a topic that fails, is slow, loses its answers and goes away.

mod changed;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use model::state::{Access, EngineStatus};
use serde_json::Value;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_postgres::Client;

use super::support::{Engine, name, until};

on_each_version! {
    rows_become_messages_in_the_order_of_commits,
    numbers_that_are_given_anew_are_not_taken_for_those_before,
    a_row_that_the_topic_refuses_is_named_and_goes_once_it_is_mended,
    what_a_topic_would_refuse_is_refused_to_its_writer,
}

const WRITERS: usize = 4;
const KEYS: usize = 3;
const EACH: usize = 150;

/// What a topic keeps, over all its lives.
#[derive(Default)]
struct Kept {
    requests: usize,
    /// By id; the same id is the same message.
    messages: HashMap<String, Value>,
    /// Ids as they first came.
    order: Vec<String>,
    repeated: usize,
    wrong: Vec<String>,
}

#[derive(Clone, Default)]
struct Topic(Arc<Mutex<Kept>>);

impl Topic {
    /// One life of it, in a thread of its own.
    fn serve(&self) -> (SocketAddr, Life) {
        let router = Router::new()
            .route("/messages", post(take))
            .with_state(self.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a port");
                tokio::select! {
                    _ = async { axum::serve(listener, router).await } => {}
                    _ = ended => {}
                }
            });
        });
        (address, Life { end, thread })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Kept) -> T) -> T {
        look(&mut self.0.lock().expect("not poisoned"))
    }

    fn count(&self) -> usize {
        self.with(|kept| kept.order.len())
    }

    /// The numbers of each key, as its messages first came.
    fn numbers(&self) -> BTreeMap<String, Vec<i64>> {
        self.with(|kept| {
            let mut numbers: BTreeMap<String, Vec<i64>> = BTreeMap::new();
            for id in &kept.order {
                let message = &kept.messages[id];
                let key = message["partitionkey"].as_str().expect("a key").to_owned();
                let number = message["data"]["n"].as_i64().expect("a number");
                numbers.entry(key).or_default().push(number);
            }
            numbers
        })
    }
}

struct Life {
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Life {
    /// With all its connections.
    fn end(self) {
        let _ = self.end.send(());
        self.thread.join().expect("it ends");
    }
}

impl Kept {
    fn keep(&mut self, event: &Value) {
        let id = event["id"].as_str().expect("an id").to_owned();
        match self.messages.get(&id) {
            Some(known) if known == event => self.repeated += 1,
            Some(known) => self.wrong.push(format!("{id}: {known} and {event}")),
            None => {
                self.messages.insert(id.clone(), event.clone());
                self.order.push(id);
            }
        }
    }
}

async fn take(
    State(topic): State<Topic>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> StatusCode {
    assert_eq!(
        headers["content-type"],
        "application/cloudevents-batch+json"
    );
    let events: Vec<Value> = serde_json::from_slice(&body).expect("a batch");
    let is_poison = |event: &Value| {
        event["partitionkey"]
            .as_str()
            .is_none_or(|key| key.len() > 512)
    };
    if events.iter().any(is_poison) {
        return StatusCode::BAD_REQUEST;
    }
    let request = topic.with(|kept| {
        kept.requests += 1;
        kept.requests
    });
    if request % 7 == 3 {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    if request % 11 == 5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    topic.with(|kept| events.iter().for_each(|event| kept.keep(event)));
    match request % 5 {
        // Taken, and the answer lost.
        2 => StatusCode::BAD_GATEWAY,
        _ => StatusCode::ACCEPTED,
    }
}

/// Writes a row in the outbox before it waits for its turn: numbers are given in another order than commits happen.
async fn write(engine: &Engine, writer: usize) -> Option<()> {
    let client = engine.connect("orders").await.ok()?;
    let key = format!("k{}", writer % KEYS);
    write_one(&client, &key).await.ok()
}

async fn write_one(client: &Client, key: &str) -> Result<(), tokio_postgres::Error> {
    let insert =
        "insert into order_events (key, type, data) values ($1, 'counted', '{}') returning id";
    client.batch_execute("begin").await?;
    let id: i64 = client.query_one(insert, &[&key]).await?.get(0);
    let count = "update counters set n = n + 1 where key = $1 returning n";
    let n: i64 = client.query_one(count, &[&key]).await?.get(0);
    let update = "update order_events set data = jsonb_build_object('n', $2::int8) where id = $1";
    client.execute(update, &[&id, &n]).await?;
    client.batch_execute("commit").await
}

async fn run_writers(engine: &Engine) {
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = engine.connect("orders").await.expect("a writer");
        writers.push(tokio::spawn(async move {
            for turn in 0..EACH {
                let key = format!("k{}", (writer + turn) % KEYS);
                if write_one(&client, &key).await.is_err() {
                    // The server was killed: whether that one was committed, its counter says.
                    return;
                }
            }
        }));
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
}

async fn counters(engine: &Engine) -> BTreeMap<String, i64> {
    let client = engine.connect("orders").await.expect("a reader");
    let rows = client
        .query("select key, n from counters where n > 0", &[])
        .await;
    let rows = rows.expect("counters");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn has_all(engine: &Engine, topic: &Topic) {
    let counters = counters(engine).await;
    let wanted: i64 = counters.values().sum();
    until("all are messages", async || {
        (topic.count() as i64 >= wanted).then_some(())
    })
    .await;
    let expected: BTreeMap<String, Vec<i64>> = counters
        .into_iter()
        .map(|(key, n)| (key, (1..=n).collect()))
        .collect();
    assert_eq!(topic.numbers(), expected);
    assert_eq!(topic.with(|kept| kept.wrong.clone()), Vec::<String>::new());
}

async fn rows_become_messages_in_the_order_of_commits(version: u32) {
    let topic = Topic::default();
    let (address, serving) = topic.serve();
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    engine.file.doors.insert(name("order-events"), address);
    engine.start_and_serve().await;
    let client = engine.connect("orders").await.expect("a writer");
    let make = "create table counters (key text primary key, n int8 not null default 0);
        insert into counters (key) select 'k' || i from generate_series(0, 9) i";
    client.batch_execute(make).await.expect("counters");

    run_writers(&engine).await;
    has_all(&engine, &topic).await;
    assert!(topic.with(|kept| kept.repeated) > 0, "no answer was lost");

    // Without its topic the database serves on, and the rows wait.
    no_backlog(&engine).await;
    serving.end();
    let before = topic.count();
    for writer in 0..5 {
        write(&engine, writer).await.expect("it writes");
    }
    assert_eq!(backlog(&engine), Some(5));
    // It is killed meanwhile with all that it has.
    engine.kill_all().await;
    engine.start_and_serve().await;
    assert_eq!(backlog(&engine), Some(5));
    assert_eq!(topic.count(), before);
    // The topic is elsewhere now.
    let (address, _serving) = topic.serve();
    engine.file.doors.insert(name("order-events"), address);
    engine.tell();
    has_all(&engine, &topic).await;

    // Killed while rows come.
    let target = topic.count() + 60;
    let writing = run_writers(&engine);
    let killing = until("some are on their way", async || {
        (topic.count() > target).then_some(())
    });
    tokio::join!(writing, async {
        killing.await;
        for pid in engine.server() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    engine.ended().await;
    engine.start_and_serve().await;
    has_all(&engine, &topic).await;
    no_backlog(&engine).await;
}

/// An engine with an outbox and a topic for it, and who writes.
async fn with_topic(version: u32, topic: &Topic) -> (Engine, Client, Life) {
    let (address, serving) = topic.serve();
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    engine.file.doors.insert(name("order-events"), address);
    engine.start_and_serve().await;
    let client = engine.connect("orders").await.expect("a writer");
    (engine, client, serving)
}

async fn insert(client: &Client, rows: &str) {
    let insert = format!("insert into order_events (key, type, data, at) values {rows}");
    client.batch_execute(&insert).await.expect("it writes");
}

async fn has(topic: &Topic, count: usize) -> Vec<Value> {
    until("they are messages", async || {
        (topic.count() >= count).then_some(())
    })
    .await;
    topic.with(|kept| {
        let kept_in_order = kept.order.iter().map(|id| kept.messages[id].clone());
        kept_in_order.collect()
    })
}

async fn numbers_that_are_given_anew_are_not_taken_for_those_before(version: u32) {
    let topic = Topic::default();
    let (engine, client, _serving) = with_topic(version, &topic).await;
    insert(
        &client,
        "('a', 't', '1', now()), ('b', 't', '2', '20000-01-01')",
    )
    .await;
    let first = has(&topic, 2).await;
    assert_eq!(first[1]["time"], "9999-12-30T00:00:00.000000Z");
    no_backlog(&engine).await;
    let anew = "truncate order_events restart identity";
    client.batch_execute(anew).await.expect("its own table");
    insert(&client, "('c', 't', '3', now()), ('d', 't', '4', now())").await;
    let all = has(&topic, 4).await;
    let data: Vec<&Value> = all.iter().map(|message| &message["data"]).collect();
    assert_eq!(data, [1, 2, 3, 4]);
    no_backlog(&engine).await;
}

async fn a_row_that_the_topic_refuses_is_named_and_goes_once_it_is_mended(version: u32) {
    let topic = Topic::default();
    let (engine, client, _serving) = with_topic(version, &topic).await;
    // The check that would have refused it.
    let open = "alter table order_events drop constraint order_events_key_check";
    client.batch_execute(open).await.expect("its own table");
    let rows =
        "('a', 't', '1', now()), (repeat('x', 600), 't', '2', now()), ('b', 't', '3', now())";
    insert(&client, rows).await;
    has(&topic, 1).await;
    until("it is named", async || {
        engine.log().contains("refuses the row 2").then_some(())
    })
    .await;
    assert_eq!(topic.count(), 1, "what comes after it waits");
    let mend = "update order_events set key = 'x' where id = 2";
    client.batch_execute(mend).await.expect("its own table");
    let all = has(&topic, 3).await;
    let data: Vec<&Value> = all.iter().map(|message| &message["data"]).collect();
    assert_eq!(data, [1, 2, 3]);
    no_backlog(&engine).await;
}

async fn no_backlog(engine: &Engine) {
    until("none is left", async || {
        (backlog(engine)? == 0).then_some(())
    })
    .await;
}

fn backlog(engine: &Engine) -> Option<u64> {
    let (_, status) = engine.get("/status")?;
    match serde_json::from_str(&status).ok()? {
        EngineStatus::Postgres { outbox_backlog, .. } => Some(outbox_backlog),
        EngineStatus::Topic { .. } => None,
    }
}

async fn what_a_topic_would_refuse_is_refused_to_its_writer(version: u32) {
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let client = engine.connect("orders").await.expect("a writer");
    for values in [
        "'', 't', '1'",
        "'k', '', '1'",
        "repeat('k', 513), 't', '1'",
        "'k', 't', to_jsonb(repeat('x', 600000))",
    ] {
        let insert = format!("insert into order_events (key, type, data) values ({values})");
        let refused = client.batch_execute(&insert).await.expect_err(values);
        assert!(
            refused
                .as_db_error()
                .expect("refused")
                .message()
                .contains("check constraint")
        );
    }
}
