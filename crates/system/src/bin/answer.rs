//! `answer`: the least service that a flood can be measured against; it listens on `HOST` and `PORT`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /large` | a gigabyte |
//! | `GET /interim` | interim answers (103) without end |
//! | with `Upgrade` | 101, and then nothing |
//! | any other | how many bytes its body had |
//!
//! `answer hold ADDRESS COUNT` opens so many connections to an address instead, says how many stand, and holds them until its input ends.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const LARGE_BYTES: u64 = 1 << 30;
const CHUNK_BYTES: usize = 64 * 1024;
const LARGEST_HEAD: u64 = 64 * 1024;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => runtime.block_on(serve()),
        ["hold", address, count] => runtime.block_on(async {
            let held = system::flood::open(address.parse()?, None, count.parse()?).await;
            println!("{}", held.len());
            system::flood::until_input_ends().await
        }),
        _ => bail!("answer [hold ADDRESS COUNT]"),
    }
}

async fn serve() -> Result<()> {
    let host = std::env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let port = std::env::var("PORT").context("PORT")?;
    let address: SocketAddr = format!("{host}:{port}").parse()?;
    let listener = TcpListener::bind(address).await?;
    loop {
        // A client may be gone before it is accepted.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(async move {
            // The client has gone.
            let _ = converse(stream).await;
        });
    }
}

async fn converse(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(CHUNK_BYTES, stream);
    while let Some(head) = head(&mut stream).await? {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if head.contains("\r\nupgrade:") {
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(switch).await?;
            let _ = stream.read_u8().await;
            return Ok(());
        }
        match path {
            "/large" => large(&mut stream).await?,
            "/interim" => interim(&mut stream).await?,
            _ => {
                let length = swallowed(&mut stream, &head).await?.to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}",
                    length.len()
                );
                stream.write_all(answer.as_bytes()).await?;
            }
        }
    }
    Ok(())
}

/// In lower case; `None` when the client has ended.
async fn head(stream: &mut BufReader<TcpStream>) -> Result<Option<String>> {
    let mut head = String::new();
    let mut limited = stream.take(LARGEST_HEAD);
    while !head.ends_with("\r\n\r\n") {
        if limited.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head.to_ascii_lowercase()))
}

/// Reads the body, of declared length.
async fn swallowed(stream: &mut BufReader<TcpStream>, head: &str) -> Result<u64> {
    let field = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length: u64 = field.map_or(Ok(0), |text| text.trim().parse())?;
    let mut left = length;
    while left > 0 {
        let come = stream.fill_buf().await?.len();
        if come == 0 {
            bail!("the body broke off");
        }
        let count = left.min(come as u64);
        stream.consume(count as usize);
        left -= count;
    }
    Ok(length)
}

async fn large(stream: &mut BufReader<TcpStream>) -> Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE_BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let chunk = vec![b'x'; CHUNK_BYTES];
    for _ in 0..LARGE_BYTES / CHUNK_BYTES as u64 {
        stream.write_all(&chunk).await?;
    }
    Ok(())
}

async fn interim(stream: &mut BufReader<TcpStream>) -> Result<()> {
    let words = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    loop {
        stream.write_all(words.as_bytes()).await?;
    }
}
