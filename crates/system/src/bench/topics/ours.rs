//! `mainland engine` as a topic, as a node runs it; and how to publish to it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model::ids::{ProjectName, ResourceName};
use model::state::{
    ENGINE_FILE, ENGINE_SOCKET, Engine, EngineFile, EngineSettings, Retention, Topic,
};
use model::units::{Bytes, Span};

use super::Part;
use super::drive::{self, Connection, Contestant};
use crate::bench::peers::{Running, free_addresses};
use crate::cloud;

pub(super) fn start(folder: &Path) -> Result<Part> {
    let [address] = free_addresses()?;
    let data = folder.join("topic");
    std::fs::create_dir(&data)?;
    let told = folder.join("engine.json");
    std::fs::write(&told, serde_json::to_vec(&file()?)?)?;
    let mut command = Command::new(cloud::binary());
    command
        .args(["engine", "topic"])
        .env(ENGINE_FILE, told)
        .env(ENGINE_SOCKET, folder.join("engine.socket"))
        .env("DATA_DIR", data)
        .env("PORT", address.port().to_string());
    let mut running = Running::start("mainland-engine", &mut command, folder)?;
    let contestant = Post { address };
    running.until_ready(Duration::from_secs(10), || {
        drive::try_once(&contestant).map_err(|error| format!("{error:#}"))
    })?;
    Ok(Part {
        name: "mainland topic, HTTP/1.1",
        sync: "fdatasync of SQLite's log, once for all publishes that wait",
        running,
        contestant: Rc::new(contestant),
        rounds: Vec::new(),
        per_sync: None,
    })
}

fn file() -> Result<EngineFile> {
    Ok(EngineFile {
        project: ProjectName::new("bench")?,
        name: ResourceName::new("topic")?,
        engine: Engine::Topic(Topic {
            attempts: 5,
            retention: Retention {
                age: Span::seconds(3600),
                size: Bytes(4 << 30),
            },
        }),
        memory: Bytes::mebibytes(64),
        settings: EngineSettings::default(),
        secret: None,
        doors: std::collections::BTreeMap::new(),
    })
}

struct Post {
    address: SocketAddr,
}

impl Contestant for Post {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn greet<'a>(&'a self, _: &'a mut Connection, _: usize) -> drive::Later<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn write(&self, message: &[u8], _: usize, _: u64, bytes: &mut Vec<u8>) {
        let head = format!(
            "POST /messages HTTP/1.1\r\nhost: topic\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
            message.len()
        );
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(message);
    }

    fn acknowledged(&self, bytes: &[u8], _: u64) -> Result<Option<usize>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = std::str::from_utf8(&bytes[..end])?;
        ensure!(
            head.starts_with("HTTP/1.1 200"),
            "the topic answered {head}"
        );
        let length = head.split("content-length: ").nth(1).context("a length")?;
        let length = length.split("\r\n").next().unwrap_or("").parse::<usize>()?;
        let whole = end + 4 + length;
        Ok((bytes.len() >= whole).then_some(whole))
    }
}
