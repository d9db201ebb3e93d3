//! `mainland server` of our own, and how to put a key.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use serde::Deserialize;

use crate::bench::peers::{Running, free_addresses};
use crate::bench::wire::{self, Answer, Target};
use crate::cloud;

const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Server {
    running: Running,
    target: Rc<dyn Target>,
}

/// What the server leaves for its owner.
#[derive(Deserialize)]
struct ClientFile {
    token: String,
}

impl Server {
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let [api, nodes] = free_addresses()?;
        let client_file = folder.join("client.json");
        let mut command = Command::new(cloud::binary());
        command
            .arg("server")
            .arg("--data-dir")
            .arg(folder.join("mainland"));
        command.args(["--api", &api.to_string(), "--nodes", &nodes.to_string()]);
        command.arg("--client-file").arg(&client_file);
        let mut running = Running::start("mainland-server", &mut command, folder)?;
        let mut target = None;
        running.until_ready(START_TIMEOUT, || {
            let put = look(&client_file, api).map_err(|error| format!("{error:#}"))?;
            target = Some(put);
            Ok(())
        })?;
        let target = Rc::new(target.expect("ready means that one was found"));
        Ok(Self { running, target })
    }

    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub(super) fn target(&self) -> Rc<dyn Target> {
        self.target.clone()
    }
}

/// Whether it takes a write already.
fn look(client_file: &Path, address: SocketAddr) -> Result<Put> {
    let file: ClientFile = serde_json::from_slice(&std::fs::read(client_file)?)?;
    let authorization = HeaderValue::from_str(&format!("Bearer {}", file.token))?;
    let put = Put {
        address,
        authorization,
    };
    wire::try_once(&put)?;
    Ok(put)
}

struct Put {
    address: SocketAddr,
    authorization: HeaderValue,
}

impl Target for Put {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn put(&self, key: &str, value: &Bytes) -> Result<(Request<()>, Bytes)> {
        let path = format!("http://mainland/v1/projects/bench/keys/{key}");
        let request = Request::put(path)
            .header("authorization", self.authorization.clone())
            .body(())?;
        Ok((request, value.clone()))
    }

    fn check(&self, answer: &Answer) -> Result<()> {
        let told =
            answer.head.status == StatusCode::OK && answer.body.starts_with(b"{\"revision\"");
        ensure!(
            told,
            "the server answered {}: {}",
            answer.head.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(())
    }
}
