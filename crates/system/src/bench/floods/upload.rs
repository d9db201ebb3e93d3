//! The rate of uploads, through the gateway and directly: over a path such as there is between machines, and as fast as memory goes.
//!
//! The path is a forwarder between client and cloud, or client and instance: what comes in leaves it at a rate and so much later. Where nothing
//! but the machine is the bound, the direct way moves each byte twice; any way over a gateway and a node, with TLS between them, moves it ten times, on the same cores.
//! So there the peer is nginx, twice.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::OTHERS;
use crate::bench::median;
use crate::bench::peers::{NGINX, Running, configure, free_addresses};
use crate::bench::table::{Report, Table};
use crate::bench::wire::on_this_thread;
use crate::cloud::Cloud;

const BYTES: usize = 256 << 20;
const ROUNDS: usize = 3;
const LEAST_SHARE: f64 = 0.8;
/// 1 Gbit/s, in bytes.
const LINK: f64 = 125e6;
/// Chunks that are on their way in the forwarder.
const ON_THE_WAY: usize = 256;
const CHUNK_BYTES: usize = 64 * 1024;

/// Between client and cloud. `None`: nothing is between.
type Between = Option<Link>;

#[derive(Clone, Copy)]
struct Link {
    bytes_per_second: f64,
    /// There and back.
    round_trip: Duration,
}

const PATHS: [(&str, Between); 3] = [
    ("1 Gbit/s", link(0)),
    ("1 Gbit/s, 40 ms away", link(40)),
    ("memory", None),
];

const fn link(round_trip_ms: u64) -> Between {
    Some(Link {
        bytes_per_second: LINK,
        round_trip: Duration::from_millis(round_trip_ms),
    })
}

pub fn measure(cloud: &Cloud, root: &Path, folder: &Path, report: &mut Report) -> Result<()> {
    let ready = cloud.ready("others")?;
    let instance: SocketAddr = ready
        .iter()
        .find_map(|one| one.address.as_deref()?.parse().ok())
        .context("an instance has an address")?;
    let nginx = nginx_twice(root, folder, instance, report)?;
    let mut table = Table::new(&[
        "upload of 256 MiB over",
        "direct",
        "nginx twice",
        "Mainland",
        "of direct",
        "of nginx",
    ]);
    for (path, between) in PATHS {
        let (mut direct, mut peer, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            direct.push(rate(instance, between)?);
            if let Some((_, address)) = &nginx {
                peer.push(rate(*address, between)?);
            }
            ours.push(rate(cloud.gateway, between)?);
        }
        let (direct, ours) = (median(direct), median(ours));
        let peer = (!peer.is_empty()).then(|| median(peer));
        let megabytes = |rate: f64| format!("{:.0} MB/s", rate / 1e6);
        let of = |base: Option<f64>| base.map(|base| ours / base);
        let shown = |share: Option<f64>| share.map_or("-".to_owned(), |it| format!("{it:.2}"));
        table.row([
            path.to_owned(),
            megabytes(direct),
            peer.map_or("-".to_owned(), megabytes),
            megabytes(ours),
            shown(of(Some(direct))),
            shown(of(peer)),
        ]);
        let (base, share) = match between {
            Some(_) => ("direct", of(Some(direct))),
            None => ("nginx twice", of(peer)),
        };
        report.hold(
            format!("uploads over {path}: ≥ {LEAST_SHARE} × {base}"),
            shown(share),
            share.is_none_or(|share| share >= LEAST_SHARE),
        );
    }
    report.tables.push(table);
    Ok(())
}

/// `None`, and said so: it is missing.
fn nginx_twice(
    root: &Path,
    folder: &Path,
    instance: SocketAddr,
    report: &mut Report,
) -> Result<Option<(Running, SocketAddr)>> {
    let Some(found) = NGINX.find(root) else {
        report.fact("nginx", "missing");
        return Ok(None);
    };
    report.fact("nginx", found.version);
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(["node".to_owned()])?.self_signed(&key)?;
    std::fs::write(folder.join("upload.pem"), certificate.pem())?;
    std::fs::write(folder.join("upload.key"), key.serialize_pem())?;
    let [gateway, node] = free_addresses()?;
    let values = [
        ("FOLDER", folder.display().to_string()),
        ("GATEWAY", gateway.to_string()),
        ("NODE", node.to_string()),
        ("INSTANCE", instance.to_string()),
    ];
    let configuration = configure(root, "upload.conf", &values, folder)?;
    let mut command = Command::new(found.path);
    command.args(["-e", "stderr", "-c"]).arg(configuration);
    let mut running = Running::start("nginx", &mut command, folder)?;
    running.until_accepting(gateway)?;
    running.until_accepting(node)?;
    Ok(Some((running, gateway)))
}

/// Bytes a second of one upload.
fn rate(to: SocketAddr, between: Between) -> Result<f64> {
    let to = match between {
        None => to,
        Some(link) => behind(to, link)?,
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

/// An address behind which `to` is, over a link.
fn behind(to: SocketAddr, link: Link) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || on_this_thread(forward_one(listener, to, link)));
    Ok(address)
}

/// One connection, until both sides have ended.
async fn forward_one(listener: std::net::TcpListener, to: SocketAddr, link: Link) -> Result<()> {
    let (client, _) = TcpListener::from_std(listener)?.accept().await?;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = TcpStream::connect(to).await?.into_split();
    tokio::join!(
        carry(client_in, server_out, link),
        carry(server_in, client_out, link)
    );
    Ok(())
}

/// One way: each chunk follows the one before at the link's rate, and arrives half a round trip later.
async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    link: Link,
) {
    let (send, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    tokio::task::spawn_local(async move {
        let mut free_at = Instant::now();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let Ok(count @ 1..) = from.read(&mut chunk).await else {
                return;
            };
            chunk.truncate(count);
            let takes = Duration::from_secs_f64(count as f64 / link.bytes_per_second);
            free_at = free_at.max(Instant::now()) + takes;
            let arrives = free_at + link.round_trip / 2;
            if send.send((arrives, chunk)).await.is_err() {
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
