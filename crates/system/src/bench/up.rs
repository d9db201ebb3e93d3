//! From exec to a platform that is ready, to the example serving; then memory and CPU of Mainland's own processes at rest.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use api::client::{Client, Transport};
use api::wire::NodeState;
use serde::Deserialize;

use super::cpu::Stretch;
use super::table::{Report, Table};
use super::{Place, median};
use crate::cloud::Cloud;
use crate::{load, proc, wait};

/// How often it is begun anew: the median counts.
const RUNS: usize = 5;
const BEGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Between looks: what a measured time may be off by.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Between serving and rest: what begun with a start comes to its end.
const SETTLE: Duration = Duration::from_secs(5);
/// How long CPU time at rest is counted.
const REST: Duration = Duration::from_secs(20);

/// The commands that `up` and its processes run.
const KINDS: [&str; 6] = ["up", "server", "agent", "proxy", "shim", "shim-watchdog"];

const READY_WITHIN: f64 = 0.5;
const SERVING_WITHIN: f64 = 3.0;
const PSS_MAX_BYTES: u64 = 60_000_000;
const CPU_MAX_SHARE: f64 = 0.01;

pub fn run(place: &Place) -> Result<Report> {
    let mut report = Report::new("up", "Up");
    report.say(format!(
        "`mainland up examples/first`. Ready: the API says so, and every node has been heard. Serving: the example answers through gateway, nginx, \
         gunicorn and Redis. {RUNS} starts each, with a new data directory and again after `down`; median, and the slowest."
    ));
    report.say(format!(
        "At rest: all processes of Mainland's own, {} s after the last thing was ready, CPU over {} s.",
        SETTLE.as_secs(),
        REST.as_secs()
    ));
    report.tables = vec![begin_columns(), rest_columns(), kind_columns()];
    for zones in [1, 3] {
        begins(place, zones, &mut report)?;
    }
    rests(place, &mut report)?;
    Ok(report)
}

fn begin_columns() -> Table {
    Table::new(&[
        "zones",
        "start",
        "exec → ready",
        "slowest",
        "exec → serving",
        "slowest",
    ])
}

fn rest_columns() -> Table {
    Table::new(&[
        "zones",
        "deployed",
        "processes",
        "PSS",
        "RSS",
        "CPU of one core",
    ])
}

fn kind_columns() -> Table {
    Table::new(&[
        "zones", "deployed", "process", "count", "PSS each", "CPU each",
    ])
}

struct Begin {
    ready: f64,
    serving: f64,
}

fn begins(place: &Place, zones: u32, report: &mut Report) -> Result<()> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut cloud = Cloud::new(&place.root.join("examples/first/mainland.yaml"), zones)?;
        first.push(begin(&mut cloud, zones)?);
        cloud.down()?;
        again.push(begin(&mut cloud, zones)?);
        cloud.down()?;
    }
    for (start, begins) in [("first", &first), ("again", &again)] {
        tell_begins(report, zones, start, begins);
    }
    Ok(())
}

fn tell_begins(report: &mut Report, zones: u32, start: &str, begins: &[Begin]) {
    let ready: Vec<f64> = begins.iter().map(|begin| begin.ready).collect();
    let serving: Vec<f64> = begins.iter().map(|begin| begin.serving).collect();
    report.tables[0].row([
        zones.to_string(),
        start.to_owned(),
        seconds(median(ready.iter().copied())),
        seconds(slowest(&ready)),
        seconds(median(serving.iter().copied())),
        seconds(slowest(&serving)),
    ]);
    let mut hold = |what: &str, times: Vec<f64>, within: f64| {
        let time = median(times);
        let promise = format!(
            "{what} < {within} s, {} with {}",
            started(start),
            in_words(zones)
        );
        report.hold(promise, seconds(time), time < within);
    };
    if zones == 1 {
        hold("exec → ready", ready, READY_WITHIN);
    }
    if start == "again" {
        hold("exec → serving", serving, SERVING_WITHIN);
    }
}

fn started(start: &str) -> &str {
    match start {
        "again" => "second start",
        _ => "first start",
    }
}

fn in_words(zones: u32) -> String {
    match zones {
        1 => "one zone".to_owned(),
        more => format!("{more} zones"),
    }
}

fn slowest(times: &[f64]) -> f64 {
    times.iter().copied().fold(0.0, f64::max)
}

/// From exec until ready, and until the example answers through the gateway.
fn begin(cloud: &mut Cloud, zones: u32) -> Result<Begin> {
    // What an earlier start has left is not an answer to this one.
    let _ = std::fs::remove_file(cloud.client_file());
    let began = Instant::now();
    cloud.start()?;
    until_ready(cloud, zones)?;
    let ready = began.elapsed().as_secs_f64();
    until_serving(cloud)?;
    let serving = began.elapsed().as_secs_f64();
    Ok(Begin { ready, serving })
}

/// Until the API is ready and has heard every node: the edge and one in each zone.
fn until_ready(cloud: &Cloud, zones: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let deadline = Instant::now() + BEGIN_TIMEOUT;
        let client = loop {
            match client(cloud) {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => return Err(said(cloud, &error)),
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        };
        loop {
            match heard(&client, zones).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(said(cloud, &error)),
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    })
}

/// An error with what `up` said.
fn said(cloud: &Cloud, error: &anyhow::Error) -> anyhow::Error {
    let said = std::fs::read_to_string(cloud.log_path()).unwrap_or_default();
    anyhow!("not after {BEGIN_TIMEOUT:?}: {error:#}; `up` said:\n{said}")
}

/// By what the server leaves for its owner.
fn client(cloud: &Cloud) -> Result<Client> {
    #[derive(Deserialize)]
    struct ClientFile {
        token: String,
    }
    let file: ClientFile = serde_json::from_slice(&std::fs::read(cloud.client_file())?)?;
    Ok(Client::new(Transport::Tcp(cloud.api), Some(file.token)))
}

async fn heard(client: &Client, zones: u32) -> Result<()> {
    let health = client.health().await?;
    ensure!(health.ready, "the server does not decide yet");
    let nodes = client.nodes().await?.items;
    let ready = nodes
        .iter()
        .filter(|node| node.state == NodeState::Ready)
        .count();
    match ready == zones as usize + 1 {
        true => Ok(()),
        false => bail!("{ready} nodes are ready"),
    }
}

fn until_serving(cloud: &Cloud) -> Result<()> {
    let once = load::Load::get(
        cloud.gateway,
        "first.localhost",
        "/api/",
        1,
        Duration::from_secs(1),
    );
    let look = || {
        let report = load::run(&once).map_err(|error| error.to_string())?;
        match report.ok {
            1 => Ok(()),
            _ => Err(format!("{:?}", report.failures)),
        }
    };
    wait::looking_each(LOOK_INTERVAL, BEGIN_TIMEOUT, look)
        .map_err(|hindrance| said(cloud, &anyhow!("{hindrance}")))?;
    Ok(())
}

/// What one kind of process costs, all of a kind together.
#[derive(Default)]
struct Kind {
    count: usize,
    pss_bytes: u64,
    rss_bytes: u64,
    cpu: Duration,
}

fn rests(place: &Place, report: &mut Report) -> Result<()> {
    for zones in [1, 3] {
        let example = place.root.join("examples/first/mainland.yaml");
        for (deployed, cloud) in [
            ("nothing", Cloud::empty(zones)?),
            ("examples/first", Cloud::new(&example, zones)?),
        ] {
            let kinds = at_rest(cloud, zones, deployed == "examples/first")?;
            tell_rest(report, zones, deployed, &kinds);
        }
    }
    Ok(())
}

fn at_rest(mut cloud: Cloud, zones: u32, serves: bool) -> Result<BTreeMap<String, Kind>> {
    cloud.start()?;
    until_ready(&cloud, zones)?;
    if serves {
        until_serving(&cloud)?;
        cloud.say(&["wait", "--timeout", "60s"])?;
    }
    pause(SETTLE);
    let stretches: Vec<(u32, Stretch)> = cloud
        .processes()
        .into_iter()
        .map(|pid| (pid, Stretch::begin(vec![pid])))
        .collect();
    pause(REST);
    let mut kinds = BTreeMap::<String, Kind>::new();
    for (pid, stretch) in stretches {
        let kind = kinds.entry(kind(pid)).or_default();
        kind.count += 1;
        kind.cpu += stretch.used();
        let memory = proc::memory(pid).with_context(|| format!("the memory of {pid}"))?;
        kind.pss_bytes += memory.pss_bytes;
        kind.rss_bytes += memory.rss_bytes;
    }
    cloud.down()?;
    Ok(kinds)
}

/// What a process is for: `server`, `agent`, `shim`.
fn kind(pid: u32) -> String {
    let words = proc::command_line(pid);
    let kind = words.iter().find(|word| KINDS.contains(&word.as_str()));
    kind.cloned().unwrap_or_else(|| "other".to_owned())
}

fn tell_rest(report: &mut Report, zones: u32, deployed: &str, kinds: &BTreeMap<String, Kind>) {
    let count: usize = kinds.values().map(|kind| kind.count).sum();
    let pss: u64 = kinds.values().map(|kind| kind.pss_bytes).sum();
    let rss: u64 = kinds.values().map(|kind| kind.rss_bytes).sum();
    let cpu: Duration = kinds.values().map(|kind| kind.cpu).sum();
    let share = cpu.as_secs_f64() / REST.as_secs_f64();
    report.tables[1].row([
        zones.to_string(),
        deployed.to_owned(),
        count.to_string(),
        megabytes(pss),
        megabytes(rss),
        percent(share),
    ]);
    for (name, kind) in kinds {
        let cpu = kind.cpu.as_secs_f64() / REST.as_secs_f64();
        report.tables[2].row([
            zones.to_string(),
            deployed.to_owned(),
            name.clone(),
            kind.count.to_string(),
            megabytes(kind.pss_bytes / kind.count as u64),
            percent(cpu / kind.count as f64),
        ]);
    }
    if zones == 1 {
        let of = |what: &str| format!("{what} with one zone, {deployed} deployed");
        report.hold(of("PSS < 60 MB"), megabytes(pss), pss < PSS_MAX_BYTES);
        report.hold(
            of("CPU < 1 % of a core"),
            percent(share),
            share < CPU_MAX_SHARE,
        );
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "time at rest is what is measured"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.3} s")
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
