//! An open-loop HTTP load that never retries and counts latency from the scheduled time.
//!
//! Requests leave on a fixed schedule whatever the answers do, so a stall is seen by every request that should have been sent during it
//! (no coordinated omission; Gil Tene, "How NOT to Measure Latency"). A request without a whole answer in time is *unknown* and counts as
//! failed. Connections are kept alive, each carries one request at a time, and one that is busy makes the next request open another.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// Open connections at most: one per request that can be in flight.
const CONNECTIONS_MAX: usize = 4096;

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` that is asked for.
    pub host: String,
    pub path: String,
    pub method: Method,
    /// Requests a second.
    pub rate: u32,
    pub time: Duration,
    /// Until an answer counts as unknown.
    pub timeout: Duration,
    /// What the body of each 200 must contain.
    pub expect: Option<String>,
}

impl Load {
    pub fn get(address: SocketAddr, host: &str, path: &str, rate: u32, time: Duration) -> Self {
        Self {
            address,
            host: host.to_owned(),
            path: path.to_owned(),
            method: Method::GET,
            rate,
            time,
            timeout: Duration::from_secs(15),
            expect: None,
        }
    }

    pub fn expecting(self, text: &str) -> Self {
        Self {
            expect: Some(text.to_owned()),
            ..self
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub sent: u64,
    pub ok: u64,
    pub failed: u64,
    /// Why requests failed, with counts and the second of the run in which the first did.
    pub failures: BTreeMap<String, Failure>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub count: u64,
    pub first_at_s: f64,
}

struct Tally {
    sent: u64,
    ok: u64,
    failures: BTreeMap<String, Failure>,
    latency_us: Histogram<u64>,
}

/// Runs the load on this thread.
pub fn run(load: &Load) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(load))
}

async fn drive(load: &Load) -> Result<Report> {
    let tally = Rc::new(RefCell::new(Tally {
        sent: 0,
        ok: 0,
        failures: BTreeMap::new(),
        latency_us: Histogram::new_with_bounds(1, 120_000_000, 3)?,
    }));
    let pool: Pool = Rc::default();
    let load = Rc::new(load.clone());
    let begin = Instant::now();
    let total = (load.time.as_secs_f64() * f64::from(load.rate)) as u64;
    let mut flying = tokio::task::JoinSet::new();
    for number in 0..total {
        let scheduled = begin + Duration::from_secs_f64(number as f64 / f64::from(load.rate));
        tokio::time::sleep_until(scheduled.into()).await;
        while flying.try_join_next().is_some() {}
        tally.borrow_mut().sent += 1;
        let (load, pool, tally) = (load.clone(), pool.clone(), tally.clone());
        flying.spawn_local(async move {
            let outcome = one(&load, &pool).await;
            record(&tally, outcome, scheduled, begin);
        });
    }
    while flying.join_next().await.is_some() {}
    Ok(report(&tally.borrow()))
}

fn record(tally: &RefCell<Tally>, outcome: Result<()>, scheduled: Instant, begin: Instant) {
    let mut tally = tally.borrow_mut();
    let latency_us = u64::try_from(scheduled.elapsed().as_micros()).unwrap_or(u64::MAX);
    tally.latency_us.saturating_record(latency_us);
    match outcome {
        Ok(()) => tally.ok += 1,
        Err(error) => {
            let first_at_s = (scheduled - begin).as_secs_f64();
            let failure = tally
                .failures
                .entry(format!("{error:#}"))
                .or_insert(Failure {
                    count: 0,
                    first_at_s,
                });
            failure.count += 1;
        }
    }
}

fn report(tally: &Tally) -> Report {
    let ms = |us: u64| us as f64 / 1000.0;
    Report {
        sent: tally.sent,
        ok: tally.ok,
        failed: tally.sent - tally.ok,
        failures: tally.failures.clone(),
        p50_ms: ms(tally.latency_us.value_at_quantile(0.5)),
        p99_ms: ms(tally.latency_us.value_at_quantile(0.99)),
        max_ms: ms(tally.latency_us.max()),
    }
}

/// Idle connections, the most recently used last.
type Pool = Rc<RefCell<Vec<SendRequest<Full<Bytes>>>>>;

async fn one(load: &Load, pool: &Pool) -> Result<()> {
    match tokio::time::timeout(load.timeout, exchange(load, pool)).await {
        Ok(result) => result,
        Err(_) => bail!("no answer within {:?}", load.timeout),
    }
}

async fn exchange(load: &Load, pool: &Pool) -> Result<()> {
    let mut sender = connection(load, pool).await?;
    let request = Request::builder()
        .method(load.method.clone())
        .uri(&load.path)
        .header("host", &load.host)
        .body(Full::default())?;
    let answer = sender.send_request(request).await.context("sending")?;
    let status = answer.status();
    let body = answer
        .into_body()
        .collect()
        .await
        .context("reading the body")?
        .to_bytes();
    if pool.borrow().len() < CONNECTIONS_MAX {
        pool.borrow_mut().push(sender);
    }
    if !status.is_success() {
        let text: String = String::from_utf8_lossy(&body).chars().take(160).collect();
        bail!("{status}: {text}");
    }
    match &load.expect {
        Some(expected) if !String::from_utf8_lossy(&body).contains(expected.as_str()) => {
            bail!("a wrong answer: it lacks `{expected}`")
        }
        _ => Ok(()),
    }
}

async fn connection(load: &Load, pool: &Pool) -> Result<SendRequest<Full<Bytes>>> {
    loop {
        let Some(mut idle) = pool.borrow_mut().pop() else {
            break;
        };
        if idle.ready().await.is_ok() {
            return Ok(idle);
        }
    }
    let stream = TcpStream::connect(load.address)
        .await
        .context("connecting")?;
    stream.set_nodelay(true)?;
    let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(driver);
    Ok(sender)
}

/// A load that runs beside what the test does, in a process of its own.
pub struct Running {
    child: std::process::Child,
}

/// Starts the load in a process of its own: the `load` program of this crate.
pub fn start(program: &std::path::Path, load: &Load) -> Result<Running> {
    let child = std::process::Command::new(program)
        .arg(load.address.to_string())
        .args(["--host", &load.host, "--path", &load.path])
        .args([
            "--rate",
            &load.rate.to_string(),
            "--seconds",
            &load.time.as_secs_f64().to_string(),
        ])
        .args(load.expect.iter().flat_map(|text| ["--expect", text]))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(Running { child })
}

impl Running {
    /// Waits for its end.
    pub fn finish(self) -> Result<Report> {
        let output = self.child.wait_with_output()?;
        serde_json::from_slice(&output.stdout).context("the load's report")
    }
}
