//! The rate of uploads, through the gateway and directly, with and without delay.
//!
//! The delay is in a forwarder between client and cloud, or client and instance: what comes in leaves it so much later, however much that is.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::OTHERS;
use crate::bench::median;
use crate::bench::table::{Report, Table};
use crate::bench::wire::on_this_thread;
use crate::cloud::Cloud;

const BYTES: usize = 256 << 20;
const ROUNDS: usize = 5;
/// There and back.
const DELAY: Duration = Duration::from_millis(40);
const LEAST_SHARE: f64 = 0.8;
/// What is on its way in the forwarder: 40 ms of some 3 GB/s.
const ON_THE_WAY: usize = 2048;
const CHUNK_BYTES: usize = 64 * 1024;

pub fn measure(cloud: &Cloud, report: &mut Report) -> Result<()> {
    let ready = cloud.ready("others")?;
    let instance: SocketAddr = ready
        .iter()
        .find_map(|one| one.address.as_deref()?.parse().ok())
        .context("an instance has an address")?;
    let mut table = Table::new(&[
        "upload of 256 MiB",
        "direct",
        "through the gateway",
        "share",
    ]);
    for (path, delay) in [("as it is", Duration::ZERO), ("40 ms of delay", DELAY)] {
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            direct.push(rate(instance, delay)?);
            through.push(rate(cloud.gateway, delay)?);
        }
        let (direct, through) = (median(direct), median(through));
        let share = through / direct;
        table.row([
            path.to_owned(),
            format!("{:.0} MB/s", direct / 1e6),
            format!("{:.0} MB/s", through / 1e6),
            format!("{share:.2}"),
        ]);
        report.hold(
            format!("uploads, {path}: ≥ {LEAST_SHARE} × direct"),
            format!("{share:.2}"),
            share >= LEAST_SHARE,
        );
    }
    report.tables.push(table);
    Ok(())
}

/// Bytes a second of one upload.
fn rate(to: SocketAddr, delay: Duration) -> Result<f64> {
    let to = match delay.is_zero() {
        true => to,
        false => delayed(to, delay / 2)?,
    };
    on_this_thread(async {
        let mut stream = TcpStream::connect(to).await?;
        let head = format!("PUT / HTTP/1.1\r\nHost: {OTHERS}\r\nContent-Length: {BYTES}\r\n\r\n");
        let began = Instant::now();
        stream.write_all(head.as_bytes()).await?;
        let chunk = vec![b'x'; CHUNK_BYTES];
        for _ in 0..BYTES / CHUNK_BYTES {
            stream.write_all(&chunk).await?;
        }
        let mut answer = vec![0; 4096];
        let count = stream.read(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(BYTES as f64 / began.elapsed().as_secs_f64())
    })
}

/// An address behind which `to` is, so much later either way.
fn delayed(to: SocketAddr, delay: Duration) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || on_this_thread(forward_one(listener, to, delay)));
    Ok(address)
}

/// One connection, until both sides have ended.
async fn forward_one(
    listener: std::net::TcpListener,
    to: SocketAddr,
    delay: Duration,
) -> Result<()> {
    let (client, _) = TcpListener::from_std(listener)?.accept().await?;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = TcpStream::connect(to).await?.into_split();
    tokio::join!(
        later(client_in, server_out, delay),
        later(server_in, client_out, delay)
    );
    Ok(())
}

async fn later(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
) {
    let (send, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    tokio::task::spawn_local(async move {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let Ok(count @ 1..) = from.read(&mut chunk).await else {
                return;
            };
            chunk.truncate(count);
            if send.send((Instant::now() + delay, chunk)).await.is_err() {
                return;
            }
        }
    });
    while let Some((at, chunk)) = due.recv().await {
        tokio::time::sleep_until(at.into()).await;
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
}
