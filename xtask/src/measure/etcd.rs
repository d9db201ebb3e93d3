//! A single etcd node of our own, and 64 clients that put keys into it by gRPC.
//!
//! A unary gRPC call is one HTTP/2 POST with a length in front of the message and the status in the trailers, and a put is two
//! fields of bytes. That is little enough to be written out, where a gRPC library would have to be built for it.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::store::bench::{Options, Report};
use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// How long it may take until the first put is answered.
const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Etcd {
    process: Child,
    address: SocketAddr,
}

impl Etcd {
    /// `None`: etcd is not installed.
    pub(super) fn start(folder: &Path) -> Result<Option<Self>> {
        let (clients, peers) = (free_address()?, free_address()?);
        let (clients_url, peers_url) = (format!("http://{clients}"), format!("http://{peers}"));
        let started = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder)
            .args(["--listen-client-urls", &clients_url])
            .args(["--advertise-client-urls", &clients_url])
            .args(["--listen-peer-urls", &peers_url])
            .args(["--initial-advertise-peer-urls", &peers_url])
            .args(["--initial-cluster", &format!("default={peers_url}")])
            .args(["--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match started {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            started => Ok(Some(Self {
                process: started.context("can't start etcd")?,
                address: clients,
            })),
        }
    }

    /// The same load as [`::store::bench::run`] puts on our engine, likewise from one thread.
    pub(super) fn measure(&self, options: Options) -> Result<Report> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            self.wait_until_it_answers().await?;
            drive(self.address, options).await
        })
    }

    async fn wait_until_it_answers(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let answer = async { put(&mut connect(self.address).await?, b"ready", b"1").await };
            match answer.await {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() > START_TIMEOUT => {
                    return Err(error.context("etcd does not answer"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn drive(address: SocketAddr, options: Options) -> Result<Report> {
    let mut clients = Vec::new();
    for client in 0..options.clients {
        clients.push((client, connect(address).await?));
    }
    let start = Instant::now() + options.warm_up;
    let clients: Vec<_> = clients
        .into_iter()
        .map(|(client, connection)| tokio::spawn(write(connection, options, client, start)))
        .collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.append(&mut client.await??);
    }
    latencies.sort_unstable();
    Ok(report(&latencies, options))
}

/// One client: the latency of each put that began after `start`.
async fn write(
    mut connection: SendRequest<Full<Bytes>>,
    options: Options,
    client: usize,
    start: Instant,
) -> Result<Vec<Duration>> {
    let value = vec![b'x'; options.value_bytes];
    let end = start + options.duration;
    let mut latencies = Vec::new();
    for turn in 0.. {
        let began = Instant::now();
        if began >= end {
            break;
        }
        let key = format!(
            "bench/{:08}",
            (turn * options.clients + client) % options.keys
        );
        put(&mut connection, key.as_bytes(), &value).await?;
        if began >= start {
            latencies.push(began.elapsed());
        }
    }
    Ok(latencies)
}

fn report(sorted: &[Duration], options: Options) -> Report {
    let at = |share: f64| {
        let index = (sorted.len() as f64 * share) as usize;
        let last = sorted.len().saturating_sub(1);
        sorted.get(index.min(last)).copied().unwrap_or_default()
    };
    Report {
        clients: options.clients,
        writes: sorted.len(),
        writes_per_second: sorted.len() as f64 / options.duration.as_secs_f64(),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Ends with the sender.
    tokio::spawn(connection);
    Ok(sender)
}

async fn put(connection: &mut SendRequest<Full<Bytes>>, key: &[u8], value: &[u8]) -> Result<()> {
    let request = Request::post("http://etcd/etcdserverpb.KV/Put")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(put_message(key, value)))?;
    connection.ready().await?;
    let answer = connection.send_request(request).await?;
    let headers = answer.headers().clone();
    let body = answer.into_body().collect().await?;
    // An error without a body has its status among the headers.
    let status = body.trailers().unwrap_or(&headers).get("grpc-status");
    ensure!(
        status.is_some_and(|status| status == "0"),
        "put failed: {status:?}"
    );
    Ok(())
}

/// `PutRequest { key = 1, value = 2 }`, behind a byte for "not compressed" and the length.
fn put_message(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    for (field, bytes) in [(1, key), (2, value)] {
        const LENGTH_DELIMITED: u8 = 2;
        message.put_u8(field << 3 | LENGTH_DELIMITED);
        put_varint(&mut message, bytes.len());
        message.extend_from_slice(bytes);
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("a small message"));
    framed.extend_from_slice(&message);
    framed.freeze()
}

fn put_varint(message: &mut BytesMut, mut number: usize) {
    while number > 0x7f {
        message.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    message.put_u8(number as u8);
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_is_framed_as_the_protocol_says() {
        let value = [7; 200];
        let message = put_message(b"key", &value);
        assert_eq!(message[..5], [0, 0, 0, 0, 5 + 203]);
        assert_eq!(message[5..10], *b"\x0a\x03key");
        assert_eq!(message[10..13], [0x12, 0xc8, 0x01]);
        assert_eq!(message[13..], value);
    }
}
