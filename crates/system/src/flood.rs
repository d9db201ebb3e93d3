//! One client that means ill: many connections, or few and busy ones, to one address.
//!
//! It comes from a loopback address of its own, so that it is another client than those it would stop. What is closed against it is not opened anew;
//! who asks asks again at once.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// Where it comes from.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Of the connections that are held.
const FIRST_PORT: u16 = 10_000;
/// Connections that are opened at a time.
const AT_A_TIME: usize = 256;
/// Between two bytes of who is slow.
const DRIP: Duration = Duration::from_secs(1);
const JOIN_BYTES: usize = 8 << 20;
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A reader that does not read takes no more than this into its own kernel's memory.
const RECEIVED_BYTES: u32 = 4096;

/// The service that it asks for; others are asked for by others.
pub const TARGET: &str = "target.localhost";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Connections on which nothing is said.
    Silent,
    /// Joins of 8 MiB without a token.
    Joins,
    /// Writes with a wrong token.
    Writes,
    /// Requests that are answered by interim answers without end.
    Interim,
    /// A byte of a request's head each second.
    Heads,
    /// A byte of a request's body each second.
    Bodies,
    /// A gigabyte is asked for, and not read.
    Readers,
    /// WebSockets on which nothing is said.
    Upgrades,
}

impl Kind {
    pub const ALL: [(&'static str, Self); 8] = [
        ("silent", Self::Silent),
        ("joins", Self::Joins),
        ("writes", Self::Writes),
        ("interim", Self::Interim),
        ("heads", Self::Heads),
        ("bodies", Self::Bodies),
        ("readers", Self::Readers),
        ("upgrades", Self::Upgrades),
    ];

    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| kind)
    }

    pub fn name(self) -> &'static str {
        let found = Self::ALL.into_iter().find(|(_, kind)| *kind == self);
        found.map_or("", |(name, _)| name)
    }

    /// What is sent on each connection at once.
    fn opening(self) -> String {
        let ask =
            |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nHost: {TARGET}\r\n{fields}");
        match self {
            Self::Silent => String::new(),
            Self::Joins => ask(
                "POST /v1/join",
                &format!("Content-Type: application/json\r\nContent-Length: {JOIN_BYTES}\r\n\r\n"),
            ),
            Self::Writes => ask(
                "PUT /v1/projects/floods/services/others",
                "Authorization: Bearer not-a-token\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            ),
            Self::Interim => ask("GET /interim", "\r\n"),
            Self::Heads => ask("GET /", "X-Slow: "),
            Self::Bodies => ask("PUT /", "Content-Length: 1000000\r\n\r\n"),
            Self::Readers => ask("GET /large", "\r\n"),
            Self::Upgrades => ask("GET /", "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        }
    }
}

/// Goes on until the input ends.
pub fn run(kind: Kind, to: SocketAddr, count: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let opening = kind.opening();
        let mut flood = JoinSet::new();
        for mut stream in open(to, Some(FROM), count).await {
            let opening = opening.clone();
            flood.spawn(async move {
                // Whoever is closed has lost nothing.
                let _ = act(kind, &mut stream, &opening, to).await;
                stream
            });
        }
        println!("{}", flood.len());
        until_input_ends().await
    })
}

/// Reads the standard input to its end.
pub async fn until_input_ends() -> Result<()> {
    let read = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(read).await??;
    Ok(())
}

async fn act(kind: Kind, stream: &mut TcpStream, opening: &str, to: SocketAddr) -> Result<()> {
    stream.write_all(opening.as_bytes()).await?;
    match kind {
        Kind::Silent | Kind::Readers | Kind::Upgrades => std::future::pending().await,
        Kind::Heads | Kind::Bodies => loop {
            tokio::time::sleep(DRIP).await;
            stream.write_all(b"x").await?;
        },
        Kind::Joins => again(opening, vec![b'x'; JOIN_BYTES], to).await,
        Kind::Writes | Kind::Interim => again(opening, Vec::new(), to).await,
    }
}

/// Asks on one connection after the other, for ever.
async fn again(opening: &str, body: Vec<u8>, to: SocketAddr) -> Result<()> {
    let mut answer = vec![0; 16 * 1024];
    loop {
        let mut stream = connect(to, Some((FROM, 0).into())).await?;
        let asked = async {
            stream.write_all(opening.as_bytes()).await?;
            let (mut reader, mut writer) = stream.split();
            // The answer may come before the body has gone.
            tokio::select! {
                sent = writer.write_all(&body), if !body.is_empty() => sent?,
                read = reader.read(&mut answer) => drop(read?),
            }
            std::io::Result::Ok(())
        };
        let _ = asked.await;
    }
}

/// As many connections as come about.
pub async fn open(to: SocketAddr, from: Option<Ipv4Addr>, count: usize) -> Vec<TcpStream> {
    let mut opening = JoinSet::new();
    let mut open = Vec::new();
    for number in 0..count {
        if opening.len() >= AT_A_TIME
            && let Some(Ok(Ok(stream))) = opening.join_next().await
        {
            open.push(stream);
        }
        // Of its own choice: with most of them taken, the kernel looks for a free one for long.
        let port = FIRST_PORT.saturating_add(u16::try_from(number).unwrap_or(u16::MAX));
        opening.spawn(connect(to, from.map(|from| (from, port).into())));
    }
    while let Some(opened) = opening.join_next().await {
        open.extend(opened.ok().and_then(Result::ok));
    }
    open
}

async fn connect(to: SocketAddr, from: Option<SocketAddr>) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVED_BYTES)?;
    if let Some(from) = from {
        socket.set_reuseaddr(true)?;
        // Its ports are free as soon as it has ended.
        socket.set_zero_linger()?;
        socket.bind(from)?;
    }
    let connecting = tokio::time::timeout(CONNECT_PATIENCE, socket.connect(to));
    connecting
        .await
        .context("not connected in time")?
        .context("connecting")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_name() {
        for (name, kind) in Kind::ALL {
            assert_eq!(Kind::named(name), Some(kind));
            assert_eq!(kind.name(), name);
        }
        assert_eq!(Kind::named("rain"), None);
    }
}
