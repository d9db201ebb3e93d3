//! The engine of a topic: messages in one SQLite file, pushed to services and pulled by them.
//!
//! ```text
//!  POST /messages ──► storage (one writer, group commit, sync) ──► hub ──► consumer ──► push ──► the service's `on`
//!                                                                            │  ▲
//!                                         receipts, failures, dead letters ◄─┘  └── pull ◄── POST /pull
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`consumer`] | what a consumer gets next, and what becomes of it: pure |
//! | [`event`] | a message's content: a CloudEvent, in and out |
//! | [`storage`] | the file |
//! | [`engine`] | the topic while it runs |
//! | [`push`] | deliveries to services that consume by `on` |
//! | [`pull`] | leases for who asks |
//! | [`http`] | the callers' door |
//! | [`status`] | the node's door |
//! | [`problem`] | what is told when something can't be done |
//!
//! # For callers: HTTP/1.1 on `PORT`
//!
//! **`POST /messages`** publishes. The body is the data, with its `Content-Type`; headers `ce-…` are attributes of a CloudEvent (binary mode). With
//! `Content-Type: application/cloudevents+json` the body is one event, with `application/cloudevents-batch+json` an array of at most 1,000, which are
//! stored all or none. A body has at most 1 MiB (413).
//!
//! - Order: messages with the same `partitionkey` (`ce-partitionkey`) come to each consumer one after the other.
//! - Duplicates: an event that names an `id` is known by the service that publishes it, `source` and `id` (the source is the service,
//!   `/projects/PROJECT/services/SERVICE`, where none is named), any other by the service and the header
//!   `Idempotency-Key` (in a batch, with the place of the event). One that is still retained is acknowledged with its first position and
//!   not stored twice: the window is what the topic retains.
//! - The answer comes after the sync: `{"positions":[7],"duplicates":0}`. 507 `topic-full`: what consumers are not done with fills the topic's size;
//!   503 `disk-full`: nothing was stored, and the next is once there is room; 503 `outcome-unknown`: publish again with the same id.
//!
//! **`POST /pull`** `{"consumer":"mailer","max":10,"wait_ms":5000,"lease_ms":30000,"start":"newest"}` answers
//! `{"messages":[{"position":7,"lease":"5c1","attempt":1,"event":{…}}]}`, each event in the JSON format of CloudEvents. The first pull of a name makes the
//! consumer, which is durable; it begins with what is published after it, or with `"start":"earliest"` at the oldest that is retained. It is
//! forgotten when it has not pulled for 7 days.
//! **`POST /ack`**, **`/nack`** `{"consumer":"mailer","leases":["5c1"]}`; **`POST /extend`** the same with `lease_ms`. A lease that ran out is a failed
//! attempt; whoever still uses it is refused with 409.
//!
//! # For consumers: CloudEvents by POST
//!
//! Each message is posted to the path of the service's `on`, in binary mode: content type and body as published, attributes as `ce-…`, with
//! `ce-position` (the place in the topic), `ce-attempt` (1 for the first), and `Idempotency-Key: TOPIC/POSITION`, by which the
//! service can tell what it has done already. At least once: a receipt (2xx) is stored within 25 ms, and until then a crash of the topic repeats
//! the delivery. [`push`] says what other answers mean. An attempt is stored before it is made. After `attempts` of them the message is a dead
//! letter, and the next of its key goes on. At most 8,192 messages wait behind keys that are stuck, then the consumer waits as a whole.
//!
//! A new `on` begins with what is published after the topic learned of it. One that vanishes keeps its place for 24 hours, and what it has
//! not done is kept for it; then it is forgotten.
//!
//! # For the node: HTTP/1.1 on the engine's socket
//!
//! `GET /health`; `GET /status`; `GET /messages?after=&limit=`; `GET /dead?consumer=&after=&limit=`; `POST /redrive` and `POST /discard`
//! `{"consumer":"mailer","positions":[7]}`, where what is left out is all (of the oldest 4,096; `{"redriven":n}` says how many);
//! `POST /messages` as above. A redriven message has all attempts before it and goes ahead of those of its key that have not begun.
//! A consumer has at most 16,384 messages before it so: what is beyond stays a dead letter, and can be redriven once there is room.

pub mod consumer;
pub mod engine;
pub mod event;
pub mod http;
pub mod problem;
pub mod pull;
pub mod push;
pub mod room;
pub mod status;
pub mod storage;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::engine::{Clock, Engine};
use self::http::Door;
use crate::admin;
use crate::settings::Settings;

/// The file in the volume.
const FILE: &str = "topic.db";
/// How long what has begun may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("opening the topic: {0}")]
    Open(#[from] sqlite::Error),
    #[error("listening on port {port}: {source}")]
    Listen { port: u16, source: std::io::Error },
    #[error("starting: {0}")]
    Start(#[from] std::io::Error),
    #[error("answering the node: {0}")]
    Admin(std::io::Error),
}

/// The whole process, until SIGTERM or SIGINT.
///
/// # Errors
///
/// The topic can't be opened, or its callers or its node can't be answered.
pub fn run(settings: Settings) -> Result<(), Error> {
    let engine = Engine::open(
        storage::options(settings.data.join(FILE)),
        settings.current(),
        Clock::start(),
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(&engine, settings));
    // Everybody who uses the file, then the file.
    drop(runtime);
    drop(engine);
    served
}

async fn serve(engine: &Arc<Engine>, settings: Settings) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let port = settings.port;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|source| Error::Listen { port, source })?;
    let (stop, stopping) = watch::channel(false);
    let door = Door::new(engine.clone());
    let router = status::router(engine.clone(), door.clone());
    start(engine, &settings);
    let serving = tokio::spawn(door.serve(listener, stopping));
    tokio::select! {
        ended = admin::serve(&settings.socket, router) => return ended.map_err(Error::Admin),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    engine.stop();
    let _ = stop.send(true);
    let ended = async {
        let _ = serving.await;
        engine.until_idle().await;
    };
    let _ = tokio::time::timeout(END_TIMEOUT, ended).await;
    Ok(engine.flush().await?)
}

/// What goes on beside the doors.
fn start(engine: &Arc<Engine>, settings: &Settings) {
    tokio::spawn(settings.clone().follow());
    let mut changes = settings.changes();
    let told = engine.clone();
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let file = changes.borrow_and_update().clone();
            told.told(file);
        }
    });
    keep_going(engine);
}

/// Delivers, writes down, and removes.
pub fn keep_going(engine: &Arc<Engine>) {
    tokio::spawn(push::keep_delivering(engine.clone()));
    let flushing = engine.clone();
    tokio::spawn(async move { flushing.keep_flushing().await });
    let compacting = engine.clone();
    tokio::spawn(async move { compacting.keep_compacting().await });
}
