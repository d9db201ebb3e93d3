//! Asks an instance once how it does.

use std::net::SocketAddr;
use std::time::Duration;

use compute::runtime::{ExecCommand, InstanceSpec, Runtime};
use model::compute::{Ask, ExitHow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::engine;

/// A status line is shorter than this.
const HEAD_MAX_BYTES: usize = 4096;
/// Of what a failing program said.
const SAID_MAX_BYTES: usize = 200;

/// `Err` says what came instead.
pub async fn ask(
    ask: &Ask,
    address: Option<SocketAddr>,
    timeout: Duration,
    runtime: &dyn Runtime,
    spec: impl FnOnce() -> Option<InstanceSpec>,
) -> Result<(), String> {
    let asking = async {
        let address = || address.ok_or_else(|| "it has no address".to_owned());
        match ask {
            Ask::None => Ok(()),
            Ask::Engine => engine::ask(&spec().ok_or("it does not run")?).await,
            Ask::Connect => connect(address()?).await.map(drop),
            Ask::Http { path } => http(address()?, path).await,
            Ask::Exec { run } => exec(runtime, spec().ok_or("it does not run")?, run).await,
        }
    };
    match tokio::time::timeout(timeout, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    // A connection to a port of one's own range may meet itself when nobody listens.
    if stream.local_addr().ok() == Some(address) {
        return Err("connection refused".to_owned());
    }
    Ok(stream)
}

/// One request on a connection of its own; of the answer only the status line matters.
async fn http(address: SocketAddr, path: &str) -> Result<(), String> {
    let mut stream = connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: mainland-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let failed = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(256);
    while !head.contains(&b'\n') && head.len() < HEAD_MAX_BYTES {
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            break;
        }
    }
    match status(&head) {
        Some(200..=399) => Ok(()),
        Some(other) => Err(format!("GET {path} answered {other}")),
        None => Err(format!("GET {path} was not answered in HTTP")),
    }
}

pub fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.trim().parse().ok()
}

async fn exec(runtime: &dyn Runtime, spec: InstanceSpec, run: &[String]) -> Result<(), String> {
    let argv = run
        .iter()
        .map(|argument| compute::runtime::expand(argument, &spec.environment))
        .collect();
    let command = ExecCommand {
        argv,
        terminal: None,
    };
    let mut session = runtime
        .exec(&spec, command)
        .await
        .map_err(|error| error.to_string())?;
    drop(session.input);
    let mut said = Vec::new();
    let mut ignored = tokio::io::sink();
    let output = tokio::io::copy(&mut session.output, &mut ignored);
    let error = async {
        let mut limited = (&mut session.error).take(SAID_MAX_BYTES as u64);
        let _ = limited.read_to_end(&mut said).await;
        tokio::io::copy(&mut session.error, &mut tokio::io::sink()).await
    };
    let (exit, _, _) = tokio::join!(session.exit, output, error);
    match exit.map_err(|error| error.to_string())? {
        ExitHow::Code { code: 0 } => Ok(()),
        how => {
            let said = String::from_utf8_lossy(&said);
            let said = said.lines().next().unwrap_or_default();
            Err(
                format!("`{}`: {} {said}", run.join(" "), plan::backoff::ended(&how))
                    .trim_end()
                    .to_owned(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_reads_like_a_table() {
        let table: [(&[u8], Option<u16>); 6] = [
            (b"HTTP/1.1 200 OK\r\n", Some(200)),
            (b"HTTP/1.0 503\r\n", Some(503)),
            (b"HTTP/1.1 204 \r\nX: y", Some(204)),
            (b"HTTP/2 200\r\n", None),
            (b"SSH-2.0-x\r\n", None),
            (b"", None),
        ];
        for (head, expected) in table {
            assert_eq!(status(head), expected, "{}", String::from_utf8_lossy(head));
        }
    }
}
