//! RabbitMQ, and how to publish to a quorum queue in AMQP 0-9-1, with confirms.
//! <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Part;
use super::drive::{self, Connection, Contestant, Later};
use crate::bench::Place;
use crate::bench::peers::{RABBITMQ, Running, configure, free_addresses};
use crate::bench::table::Report;

/// What Debian's command in the PATH starts after it has become another user.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const QUEUE: &str = "bench";

/// `None`: it is not installed, and that was said.
pub(super) fn start(place: &Place, folder: &Path, report: &mut Report) -> Result<Option<Part>> {
    if RABBITMQ.path(&place.root).is_none() || !Path::new(PROGRAM).is_file() {
        report.fact("RabbitMQ", "missing");
        return Ok(None);
    }
    let [address, distribution, mapper] = free_addresses()?;
    let home = folder.join("rabbitmq");
    std::fs::create_dir(&home)?;
    let values = [("CLIENTS", address.to_string())];
    let configuration = configure(&place.root, "rabbitmq.conf", &values, folder)?;
    std::fs::write(home.join("plugins"), "[].")?;
    let mut command = Command::new(PROGRAM);
    command
        .env("HOME", &home)
        .env("RABBITMQ_NODENAME", "bench@localhost")
        .env("RABBITMQ_CONFIG_FILE", configuration)
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", home.join("none"))
        .env("RABBITMQ_MNESIA_BASE", &home)
        .env("RABBITMQ_LOG_BASE", &home)
        .env("RABBITMQ_DIST_PORT", distribution.port().to_string())
        // A mapper of names of its own, which ends with the bench.
        .env("ERL_EPMD_PORT", mapper.port().to_string())
        // The process that is started is the server itself.
        .env("RUNNING_UNDER_SYSTEMD", "true")
        .current_dir(&home);
    let mut running = Running::start("rabbitmq", &mut command, folder)?;
    let contestant = Publish {
        address,
        mapper: mapper.port(),
    };
    running.until_ready(Duration::from_secs(40), || {
        drive::try_once(&contestant).map_err(|error| format!("{error:#}"))
    })?;
    report.fact("RabbitMQ", version());
    Ok(Some(Part {
        name: "RabbitMQ, quorum queue of one",
        sync: "fdatasync of the queues' common log, once for all publishes that wait",
        running,
        contestant: Rc::new(contestant),
        rounds: Vec::new(),
        per_sync: None,
    }))
}

fn version() -> String {
    let asked = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", "rabbitmq-server"])
        .output();
    let said = asked.map(|asked| asked.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).trim().to_owned()
}

struct Publish {
    address: SocketAddr,
    mapper: u16,
}

impl Drop for Publish {
    fn drop(&mut self) {
        // It refuses while the server is there; the server is ended first.
        let _ = Command::new("epmd")
            .args(["-port", &self.mapper.to_string(), "-kill"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Types of frames.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;

/// Classes and their methods.
const TUNE: (u16, u16) = (10, 30);
const ACK: (u16, u16) = (60, 80);

fn frame(kind: u8, channel: u16, payload: &[u8], bytes: &mut Vec<u8>) {
    bytes.push(kind);
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.push(FRAME_END);
}

fn method(channel: u16, (class, method): (u16, u16), arguments: &[u8]) -> Vec<u8> {
    let numbers = [class.to_be_bytes(), method.to_be_bytes()].concat();
    let mut bytes = Vec::new();
    frame(METHOD, channel, &[&numbers, arguments].concat(), &mut bytes);
    bytes
}

fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn long(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// The method of the first frame that has one.
fn told(bytes: &[u8]) -> Result<Option<((u16, u16), usize)>> {
    let mut begin = 0;
    while bytes.len() >= begin + 7 {
        let head = &bytes[begin..begin + 7];
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let end = begin + 7 + size + 1;
        if bytes.len() < end {
            return Ok(None);
        }
        if head[0] == METHOD {
            let name = &bytes[begin + 7..begin + 11];
            let class = u16::from_be_bytes([name[0], name[1]]);
            let method = u16::from_be_bytes([name[2], name[3]]);
            let closed = matches!((class, method), (10, 50) | (20, 40));
            ensure!(
                !closed,
                "closed: {}",
                String::from_utf8_lossy(&bytes[begin + 11..end])
            );
            return Ok(Some(((class, method), end)));
        }
        begin = end;
    }
    Ok(None)
}

async fn ask(connection: &mut Connection, said: &[u8], expected: (u16, u16)) -> Result<()> {
    connection.send(said).await?;
    let answer = connection.receive(told).await?;
    ensure!(answer == expected, "{answer:?} instead of {expected:?}");
    Ok(())
}

impl Contestant for Publish {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn greet<'a>(&'a self, connection: &'a mut Connection, _: usize) -> Later<'a, ()> {
        Box::pin(async move {
            ask(connection, b"AMQP\0\0\x09\x01", (10, 10)).await?;
            let login = [
                long(""),
                short("PLAIN"),
                long("\0guest\0guest"),
                short("en_US"),
            ];
            ask(connection, &method(0, (10, 11), &login.concat()), TUNE).await?;
            let limits = [
                &1_u16.to_be_bytes()[..],
                &131_072_u32.to_be_bytes(),
                &[0, 0],
            ];
            let host = [short("/"), short(""), vec![0]];
            let tuned = [
                method(0, (10, 31), &limits.concat()),
                method(0, (10, 40), &host.concat()),
            ];
            ask(connection, &tuned.concat(), (10, 41)).await?;
            ask(connection, &method(1, (20, 10), &short("")), (20, 11)).await?;
            let quorum = [short("x-queue-type"), b"S".to_vec(), long("quorum")].concat();
            let quorum = String::from_utf8(quorum)?;
            let durable = 0b10;
            let queue = [vec![0, 0], short(QUEUE), vec![durable], long(&quorum)];
            ask(connection, &method(1, (50, 10), &queue.concat()), (50, 11)).await?;
            ask(connection, &method(1, (85, 10), &[0]), (85, 11)).await
        })
    }

    fn write(&self, message: &[u8], _: usize, _: u64, bytes: &mut Vec<u8>) {
        let place = [vec![0, 0], short(""), short(QUEUE), vec![0]];
        bytes.extend_from_slice(&method(1, (60, 40), &place.concat()));
        let durable = [&0x1000_u16.to_be_bytes()[..], &[2]].concat();
        let size = (message.len() as u64).to_be_bytes();
        let header = [&60_u16.to_be_bytes()[..], &[0, 0], &size, &durable].concat();
        frame(HEADER, 1, &header, bytes);
        frame(BODY, 1, message, bytes);
    }

    fn acknowledged(&self, bytes: &[u8], _: u64) -> Result<Option<usize>> {
        let Some((answer, length)) = told(bytes)? else {
            return Ok(None);
        };
        ensure!(answer == ACK, "RabbitMQ answered {answer:?}");
        Ok(Some(length))
    }
}
