//! What others notice of a client that means ill, and what it costs in memory; and uploads beside the direct rate.
//!
//! | module | what it holds |
//! |---|---|
//! | `watch` | latency, memory and recovery while something goes on |
//! | `upload` | the rate of uploads, through the gateway, directly, and through nginx |

mod upload;
mod watch;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::watch::{Seen, Watch};
use super::Place;
use super::peers::allow_many_files;
use super::table::{Report, Table};
use crate::cloud::{Cloud, built};
use crate::flood::Kind;

/// The service that nobody floods.
const OTHERS: &str = "others.localhost";
/// At most this much of the p99 before is noise of a machine whose two cores have load, flood and cloud to run.
const NOISE_MS: f64 = 10.0;
/// What the flood may add to the memory of one process, at its peak.
const MOST_ADDED_BYTES: u64 = 512 << 20;
const RECOVERED_WITHIN: Duration = Duration::from_secs(2);

/// Those that nobody floods have what they need of the processor, which the others want all of.
const MANIFEST: &str = "
project: floods
defaults: { replicas: 2, cpu: 0.05, memory: 256Mi }
services:
  others: { run: [./answer], cpu: 0.5 }
  target: { run: [./answer], needs: [others] }
routes:
  others.localhost/: others
  target.localhost/: target
";

/// One flood: what it is, where it goes, how many.
struct Case {
    kind: Kind,
    place: &'static str,
    count: usize,
}

const CASES: [Case; 14] = [
    case(Kind::Silent, "gateway", 19_000),
    case(Kind::Silent, "API", 19_000),
    case(Kind::Silent, "node port", 19_000),
    case(Kind::Silent, "mesh", 19_000),
    case(Kind::Silent, "door", 18_000),
    case(Kind::Joins, "node port", 64),
    case(Kind::Joins, "API", 64),
    case(Kind::Writes, "API", 64),
    case(Kind::Interim, "gateway", 16),
    case(Kind::Heads, "gateway", 2_000),
    case(Kind::Heads, "API", 2_000),
    case(Kind::Bodies, "gateway", 2_000),
    case(Kind::Readers, "gateway", 1_000),
    case(Kind::Upgrades, "gateway", 1_024),
];

const fn case(kind: Kind, place: &'static str, count: usize) -> Case {
    Case { kind, place, count }
}

pub fn run(place: &Place) -> Result<Report> {
    allow_many_files()?;
    let folder = tempfile::tempdir_in(&place.scratch)?;
    std::fs::write(folder.path().join("mainland.yaml"), MANIFEST)?;
    std::fs::copy(built("ANSWER_BIN", "answer"), folder.path().join("answer"))?;
    let mut cloud = Cloud::new(&folder.path().join("mainland.yaml"), 1)?;
    cloud.up()?;
    for service in ["others", "target"] {
        cloud.wait_ready(service, 2, Duration::from_secs(30));
    }
    let mut report = Report::new("floods", "Floods");
    introduce(&mut report);
    // Those of `FLOODS`, or all.
    let only = std::env::var("FLOODS").unwrap_or_default();
    for case in &CASES {
        let name = format!("{} at {}", case.kind.name(), case.place);
        if name.contains(&only) {
            one(&cloud, case, &name, &mut report).with_context(|| name.clone())?;
        }
    }
    if "uploads".contains(&only) {
        upload::measure(&cloud, &place.root, folder.path(), &mut report)?;
    }
    cloud.say(&["audit", "verify"])?;
    report.hold("the audit log is whole after all", "verified", true);
    cloud.down()?;
    Ok(report)
}

fn introduce(report: &mut Report) {
    report.say(
        "`mainland up` with one zone, and a client of one address that floods one place. Others: 200 requests/s through the gateway to a service that \
         nobody floods, and 20/s to the API, open loop; from the same machine, whose two cores cloud, load and flood share (the flood has what the others leave, \
         by `nice`). Before and during: p50 and p99. Memory: RSS of the server, and of the proxy that has most, before, at the peak, and 3 s after. Back after: from the flood's end \
         until ten requests in a row are as fast as before.",
    );
    report.say(format!(
        "Held: p99 at most doubled (what is below {NOISE_MS} ms more is noise here), no process takes more than {} MB more, back within {} s.",
        MOST_ADDED_BYTES >> 20,
        RECOVERED_WITHIN.as_secs(),
    ));
    report.tables = vec![Table::new(&[
        "flood",
        "connections",
        "gateway p50",
        "p99 before",
        "during",
        "API p99 before",
        "during",
        "server RSS",
        "proxy RSS",
        "back after",
        "`ps` during",
    ])];
}

/// What was seen of one flood.
struct Course {
    before: Seen,
    during: Seen,
    /// Server and proxy, in bytes.
    after: (u64, u64),
    back: Duration,
    /// How many connections stood, as the flood said.
    stands: String,
    /// How long `ps` took during it; `None`: it failed.
    ps: Option<Duration>,
}

fn one(cloud: &Cloud, case: &Case, name: &str, report: &mut Report) -> Result<()> {
    let watch = Watch::new(cloud);
    let before = watch.look(Duration::from_secs(4))?;
    let flood = Flood::start(cloud, case)?;
    let during = watch.look(Duration::from_secs(6))?;
    let began = Instant::now();
    let ps = cloud.run(&["ps", "-o", "json"])?;
    let ps = ps.status.success().then(|| began.elapsed());
    let stands = flood.end()?;
    let back = watch.until_recovered(before.gateway.p99_ms.max(NOISE_MS) * 2.0)?;
    let after = watch.memory_after(Duration::from_secs(3));
    let course = Course {
        before,
        during,
        after,
        back,
        stands,
        ps,
    };
    tell(name, &course, report);
    hold(name, &course, report);
    Ok(())
}

fn tell(name: &str, course: &Course, report: &mut Report) {
    let Course { before, during, .. } = course;
    let memory = |of: fn(&Seen) -> u64, after: u64| {
        let [before, peak, after] = [of(before), of(during), after].map(|bytes| bytes >> 20);
        format!("{before} → {peak} → {after} MB")
    };
    let ms = |ms: f64| format!("{ms:.1} ms");
    report.tables[0].row([
        name.to_owned(),
        course.stands.clone(),
        format!(
            "{:.1} → {:.1} ms",
            before.gateway.p50_ms, during.gateway.p50_ms
        ),
        ms(before.gateway.p99_ms),
        ms(during.gateway.p99_ms),
        ms(before.api.p99_ms),
        ms(during.api.p99_ms),
        memory(|seen| seen.server_bytes, course.after.0),
        memory(|seen| seen.proxy_bytes, course.after.1),
        seconds(course.back),
        course.ps.map_or("failed".to_owned(), seconds),
    ]);
}

fn hold(name: &str, course: &Course, report: &mut Report) {
    let Course { before, during, .. } = course;
    let failures = [&during.gateway, &during.api].map(|it| (it.failed, it.failures.keys()));
    report.hold(
        format!("{name}: others lose nothing"),
        format!("failed at gateway and API: {failures:?}"),
        during.gateway.failed + during.api.failed == 0 && course.ps.is_some(),
    );
    for (what, before, during) in [
        ("gateway", &before.gateway, &during.gateway),
        ("API", &before.api, &during.api),
    ] {
        report.hold(
            format!("{name}: p99 at the {what} at most doubled"),
            format!("{:.1} → {:.1} ms", before.p99_ms, during.p99_ms),
            during.p99_ms <= (2.0 * before.p99_ms).max(before.p99_ms + NOISE_MS),
        );
    }
    let added = during.added_bytes(before);
    report.hold(
        format!("{name}: memory bounded"),
        format!("{} MB more", added >> 20),
        added <= MOST_ADDED_BYTES,
    );
    report.hold(
        format!("{name}: back in time"),
        seconds(course.back),
        course.back <= RECOVERED_WITHIN,
    );
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// A flood that goes on, in a process of its own.
struct Flood {
    child: Child,
    stands: String,
}

impl Flood {
    /// Returns when it is at it.
    fn start(cloud: &Cloud, case: &Case) -> Result<Self> {
        let mut command = match case.place {
            "door" => at_door(cloud, case.count)?,
            place => {
                let mut command = Command::new("nice");
                command
                    .args(["-n", "19"])
                    .arg(built("FLOOD_BIN", "flood"))
                    .arg(case.kind.name())
                    .arg(address(cloud, place)?.to_string())
                    .arg(case.count.to_string());
                command
            }
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the flood")?;
        let mut stands = String::new();
        let said = child.stdout.take().context("its output is a pipe")?;
        BufReader::new(said).read_line(&mut stands)?;
        let stands = stands.trim().to_owned();
        Ok(Self { child, stands })
    }

    /// How many connections came about, as it said.
    fn end(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.stands)
    }
}

/// Within the service whose door it is: nobody else is let in there.
fn at_door(cloud: &Cloud, count: usize) -> Result<Command> {
    let url = cloud.say(&["exec", "target", "--", "printenv", "OTHERS_URL"])?;
    let address = url
        .trim()
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let mut command = Command::new(&cloud.binary);
    command
        .arg("--data-dir")
        .arg(cloud.directory.path().join("data"))
        .args(["--api", &cloud.api.to_string()])
        .args(["exec", "-i", "target", "--", "./answer", "hold", address])
        .arg(count.to_string());
    Ok(command)
}

fn address(cloud: &Cloud, place: &str) -> Result<SocketAddr> {
    match place {
        "gateway" => Ok(cloud.gateway),
        "API" => Ok(cloud.api),
        "node port" => listening(cloud, &["server", "--api"], &[cloud.api]),
        "mesh" => listening(cloud, &["proxy", "/nodes/a"], &[]),
        other => bail!("there is no place {other}"),
    }
}

/// Where a process listens on 127.0.0.1, `but` some.
fn listening(cloud: &Cloud, words: &[&str], but: &[SocketAddr]) -> Result<SocketAddr> {
    let process = *cloud.processes_with(words).first().context("it runs")?;
    let sockets = sockets(process)?;
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let found = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let ip = u32::from_str_radix(ip, 16).ok()?.to_le_bytes();
        let address = SocketAddr::from((ip, u16::from_str_radix(port, 16).ok()?));
        let listens = *fields.get(3)? == "0A";
        let is_its = sockets.iter().any(|inode| inode == fields[9]);
        (listens && is_its && ip == [127, 0, 0, 1] && !but.contains(&address)).then_some(address)
    });
    found.with_context(|| format!("{words:?} listens nowhere"))
}

/// The inodes of a process's sockets.
fn sockets(process: u32) -> Result<Vec<String>> {
    let links = std::fs::read_dir(Path::new("/proc").join(process.to_string()).join("fd"))?;
    let names = links
        .flatten()
        .filter_map(|link| std::fs::read_link(link.path()).ok());
    let inodes = names.filter_map(|name| {
        let name = name.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(name.to_owned())
    });
    Ok(inodes.collect())
}
