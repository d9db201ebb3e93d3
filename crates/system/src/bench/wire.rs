//! One closed-loop load for all that speak HTTP/2: each client has a connection, and on it one write after the other.
//!
//! All clients share one thread, and every server gets the same code, so that none is measured by a cheaper client than another. What the
//! client itself costs is measured too: on a small machine it competes with the server.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::cpu::{self, Stretch};

/// How much, for how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub clients: usize,
    pub value_bytes: usize,
    /// Different keys, written in turn.
    pub keys: usize,
    pub warm_up: Duration,
    pub time: Duration,
}

/// A server's own way to say `put`, and `done`.
pub trait Target {
    fn address(&self) -> SocketAddr;
    /// Head and body.
    fn put(&self, key: &str, value: &Bytes) -> Result<(Request<()>, Bytes)>;
    /// Whether the answer says that the write is durable.
    fn check(&self, answer: &Answer) -> Result<()>;
}

pub struct Answer {
    pub head: http::response::Parts,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// What was measured, warm-up left out.
#[derive(Debug, Clone, Copy)]
pub struct Writes {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
    /// Of the server, for each write.
    pub server_cpu: Duration,
    /// Of the load, for each write.
    pub client_cpu: Duration,
    /// Core-seconds of the server for each second of the run.
    pub server_cores: f64,
    pub client_cores: f64,
}

/// Runs the load on this thread against a server that is the process `server`.
pub fn run(target: &Rc<dyn Target>, server: u32, load: Load) -> Result<Writes> {
    on_this_thread(drive(target, server, load))
}

/// One write on a connection of its own, to see whether the server is there.
pub fn try_once(target: &dyn Target) -> Result<()> {
    let once = async {
        let mut connection = connect(target.address()).await?;
        put(&mut connection, target, "try", &Bytes::from_static(b"x")).await
    };
    let bounded = async { tokio::time::timeout(Duration::from_secs(2), once).await };
    on_this_thread(async { bounded.await.context("no answer within 2 s")? })
}

pub(super) fn on_this_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

async fn drive(target: &Rc<dyn Target>, server: u32, load: Load) -> Result<Writes> {
    let mut connections = Vec::new();
    for _ in 0..load.clients {
        connections.push(connect(target.address()).await?);
    }
    let begin = Instant::now() + load.warm_up;
    let mut clients = JoinSet::new();
    for (client, connection) in connections.into_iter().enumerate() {
        clients.spawn_local(write(connection, target.clone(), load, client, begin));
    }
    let cost = cost(server, load.time, begin).await;
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.append(&mut client??);
    }
    summary(latencies, load.time, &cost)
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    // Ends with the sender.
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// One client: the latency of each write that began after `begin` and ended before the end.
async fn write(
    mut connection: SendRequest<Bytes>,
    target: Rc<dyn Target>,
    load: Load,
    client: usize,
    begin: Instant,
) -> Result<Vec<Duration>> {
    let value = Bytes::from(vec![b'x'; load.value_bytes]);
    let end = begin + load.time;
    let mut latencies = Vec::new();
    for turn in 0.. {
        let began = Instant::now();
        let key = format!("key-{:08}", (turn * load.clients + client) % load.keys);
        put(&mut connection, &*target, &key, &value).await?;
        let now = Instant::now();
        if now >= end {
            break;
        }
        if began >= begin {
            latencies.push(now - began);
        }
    }
    Ok(latencies)
}

async fn put(
    connection: &mut SendRequest<Bytes>,
    target: &dyn Target,
    key: &str,
    value: &Bytes,
) -> Result<()> {
    let (request, body) = target.put(key, value)?;
    poll_fn(|context| connection.poll_ready(context)).await?;
    let (answer, mut stream) = connection.send_request(request, false)?;
    // At once, so that head and body leave in one packet.
    stream.send_data(body, true)?;
    target.check(&whole(answer.await?).await?)
}

async fn whole(answer: Response<h2::RecvStream>) -> Result<Answer> {
    let (head, mut stream) = answer.into_parts();
    let mut body = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await?;
    let body = body.freeze();
    Ok(Answer {
        head,
        body,
        trailers,
    })
}

/// CPU time of server and load between begin and end.
pub(super) struct Cost {
    server: Duration,
    client: Duration,
}

pub(super) async fn cost(server: u32, time: Duration, begin: Instant) -> Cost {
    tokio::time::sleep_until(begin.into()).await;
    let (stretch, client) = (Stretch::begin(vec![server]), cpu::of_this_thread());
    tokio::time::sleep_until((begin + time).into()).await;
    Cost {
        server: stretch.used(),
        client: cpu::of_this_thread() - client,
    }
}

pub(super) fn summary(mut latencies: Vec<Duration>, time: Duration, cost: &Cost) -> Result<Writes> {
    ensure!(!latencies.is_empty(), "not one write was answered in time");
    latencies.sort_unstable();
    let last = latencies.len() - 1;
    let at = |share: f64| latencies[((latencies.len() as f64 * share) as usize).min(last)];
    let writes = latencies.len() as f64;
    let seconds = time.as_secs_f64();
    Ok(Writes {
        per_second: writes / seconds,
        p50: at(0.5),
        p99: at(0.99),
        max: at(1.0),
        server_cpu: cost.server.div_f64(writes),
        client_cpu: cost.client.div_f64(writes),
        server_cores: cost.server.as_secs_f64() / seconds,
        client_cores: cost.client.as_secs_f64() / seconds,
    })
}
