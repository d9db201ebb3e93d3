//! One closed-loop load: all publishers share one thread.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::bench::wire::{self, Writes};
use crate::proc;

/// How long one publish may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 16 << 10;

#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) publishers: usize,
    pub(super) message_bytes: usize,
    pub(super) warm_up: Duration,
    pub(super) time: Duration,
}

pub(super) type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// A server's own way to publish.
pub(super) trait Contestant {
    fn address(&self) -> SocketAddr;
    /// What a new connection says and hears before it publishes.
    fn greet<'a>(&'a self, connection: &'a mut Connection, publisher: usize) -> Later<'a, ()>;
    /// Appends one message in the server's protocol; `turn` is its number on this connection, from 1 on.
    fn write(&self, message: &[u8], publisher: usize, turn: u64, bytes: &mut Vec<u8>);
    /// How many bytes at the front of `bytes` are the acknowledgement; `None`: it is not whole yet.
    fn acknowledged(&self, bytes: &[u8], turn: u64) -> Result<Option<usize>>;
}

/// A connection, and what was read of it and not looked at.
pub(super) struct Connection {
    stream: TcpStream,
    pub(super) unread: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let unread = Vec::new();
        Ok(Self { stream, unread })
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Reads until `whole` finds something at the front, and takes that away.
    pub(super) async fn receive<T>(
        &mut self,
        mut whole: impl FnMut(&[u8]) -> Result<Option<(T, usize)>>,
    ) -> Result<T> {
        loop {
            if let Some((found, length)) = whole(&self.unread)? {
                self.unread.drain(..length);
                return Ok(found);
            }
            let mut bytes = [0; READ_BYTES];
            let count = self.stream.read(&mut bytes).await?;
            ensure!(count > 0, "the server hung up");
            self.unread.extend_from_slice(&bytes[..count]);
        }
    }
}

/// Runs the load on this thread against a server that is the process `server`.
pub(super) fn run(contestant: &Rc<dyn Contestant>, server: u32, load: Load) -> Result<Writes> {
    wire::on_this_thread(measure(contestant, server, load))
}

/// One publish on a connection of its own, to see whether the server is there.
pub(super) fn try_once(contestant: &dyn Contestant) -> Result<()> {
    let once = async {
        let mut connection = Connection::open(contestant.address()).await?;
        contestant.greet(&mut connection, 0).await?;
        publish(contestant, &mut connection, b"x", 0, 1, &mut Vec::new()).await
    };
    wire::on_this_thread(async {
        let once = tokio::time::timeout(Duration::from_secs(5), once);
        once.await.context("no answer within 5 s")?
    })
}

async fn measure(contestant: &Rc<dyn Contestant>, server: u32, load: Load) -> Result<Writes> {
    let mut connections = Vec::new();
    for publisher in 0..load.publishers {
        let mut connection = Connection::open(contestant.address()).await?;
        contestant.greet(&mut connection, publisher).await?;
        connections.push(connection);
    }
    let begin = Instant::now() + load.warm_up;
    let mut publishers = JoinSet::new();
    for (number, connection) in connections.into_iter().enumerate() {
        let contestant = contestant.clone();
        publishers.spawn_local(publish_all(contestant, connection, number, load, begin));
    }
    let cost = wire::cost(server, load.time, begin).await;
    let mut latencies = Vec::new();
    while let Some(publisher) = publishers.join_next().await {
        latencies.append(&mut publisher??);
    }
    wire::summary(latencies, load.time, &cost)
}

/// One publisher: the latency of each publish that began after `begin` and ended before the end.
async fn publish_all(
    contestant: Rc<dyn Contestant>,
    mut connection: Connection,
    publisher: usize,
    load: Load,
    begin: Instant,
) -> Result<Vec<Duration>> {
    let message = vec![b'x'; load.message_bytes];
    let end = begin + load.time;
    let (mut latencies, mut bytes) = (Vec::new(), Vec::new());
    for turn in 1.. {
        let began = Instant::now();
        let published = publish(
            &*contestant,
            &mut connection,
            &message,
            publisher,
            turn,
            &mut bytes,
        );
        tokio::time::timeout(TIMEOUT, published).await??;
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

async fn publish(
    contestant: &dyn Contestant,
    connection: &mut Connection,
    message: &[u8],
    publisher: usize,
    turn: u64,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    bytes.clear();
    contestant.write(message, publisher, turn, bytes);
    connection.send(bytes).await?;
    let acknowledged = |bytes: &[u8]| {
        let length = contestant.acknowledged(bytes, turn)?;
        Ok(length.map(|length| ((), length)))
    };
    connection.receive(acknowledged).await
}

/// How many publishes share a sync, as `strace` counts: it slows the server down, so this is no measure of speed. `None`: it is missing.
pub(super) fn publishes_per_sync(
    contestant: &Rc<dyn Contestant>,
    server: u32,
    load: Load,
) -> Result<Option<f64>> {
    let calls = "trace=fsync,fdatasync,sync_file_range,msync,io_uring_enter";
    let strace = Command::new("strace")
        .args(["-f", "-c", "-e", calls, "-p", &server.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(strace) = strace else {
        return Ok(None);
    };
    let short = Load {
        warm_up: Duration::from_millis(500),
        time: Duration::from_secs(2),
        ..load
    };
    let begin = Instant::now();
    let writes = run(contestant, server, short);
    let all = writes?.per_second * begin.elapsed().as_secs_f64();
    proc::signal(strace.id(), Signal::INT)?;
    let said = strace.wait_with_output()?.stderr;
    let syncs = syncs(&String::from_utf8_lossy(&said));
    Ok(syncs.map(|syncs| all / syncs))
}

/// The calls in the table that `strace -c` prints.
fn syncs(table: &str) -> Option<f64> {
    let rows = table.lines().filter(|line| line.contains("sync"));
    let calls = rows.filter_map(|line| line.split_whitespace().nth(3)?.parse::<f64>().ok());
    let sum: f64 = calls.sum();
    (sum > 0.0).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::syncs;

    #[test]
    fn calls_are_counted() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     90.00    0.000050          12       400           fdatasync\n \
                     10.00    0.000050          12       100         1 fsync\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.000050          12       500         1 total\n";
        assert_eq!(syncs(table), Some(500.0));
        assert_eq!(syncs(""), None);
    }
}
