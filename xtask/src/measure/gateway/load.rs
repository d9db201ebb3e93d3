//! Connections that each send one request after the other: how much gets through, and how long each takes. No request is tried
//! again; one that fails ends the run.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub(super) struct Report {
    /// Latencies of all requests, shortest first.
    pub(super) sorted: Vec<Duration>,
}

impl Report {
    pub(super) fn at(&self, share: f64) -> Duration {
        let last = self.sorted.len().saturating_sub(1);
        let index = (self.sorted.len() as f64 * share) as usize;
        self.sorted
            .get(index.min(last))
            .copied()
            .unwrap_or_default()
    }
}

pub(super) fn run(address: SocketAddr, connections: usize, time: Duration) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let end = Instant::now() + time;
        let clients: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(send_until(address, end)))
            .collect();
        let mut sorted = Vec::new();
        for client in clients {
            sorted.append(&mut client.await??);
        }
        sorted.sort_unstable();
        Ok(Report { sorted })
    })
}

async fn send_until(address: SocketAddr, end: Instant) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender.
    tokio::spawn(connection);
    let mut latencies = Vec::new();
    loop {
        let began = Instant::now();
        if began >= end {
            return Ok(latencies);
        }
        send(&mut sender).await?;
        latencies.push(began.elapsed());
    }
}

async fn send(sender: &mut SendRequest<Empty<Bytes>>) -> Result<()> {
    let request = Request::get("/hello")
        .header("host", "bench.localhost")
        .body(Empty::new())?;
    sender.ready().await?;
    let mut answer = sender.send_request(request).await?;
    ensure!(answer.status() == 200, "answered {}", answer.status());
    while let Some(frame) = answer.frame().await {
        frame?;
    }
    Ok(())
}
