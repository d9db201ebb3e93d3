//! wrk: a closed-loop load that is cheaper than what it loads.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Report {
    pub(super) requests: u64,
    pub(super) per_second: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) failed: u64,
}

pub(super) fn run(
    program: &Path,
    address: SocketAddr,
    host: &str,
    connections: usize,
    time: Duration,
) -> Result<Report> {
    let output = Command::new(program)
        .args(["--threads", "1", "--latency"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", time.as_secs())])
        .args(["--header", &format!("Host: {host}")])
        .arg(format!("http://{address}/"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "wrk ended with {}: {said}{error}",
        output.status
    );
    read(&said).with_context(|| format!("wrk said:\n{said}"))
}

/// Reads what it prints for people: it has no other form.
fn read(said: &str) -> Result<Report> {
    let after = |start: &str| {
        let mut lines = said.lines().map(str::trim);
        lines.find_map(|line| line.strip_prefix(start).map(str::trim))
    };
    let requests = said
        .lines()
        .find_map(|line| line.split_once(" requests in "))
        .context("no number of requests")?;
    let wrong = match after("Non-2xx or 3xx responses:") {
        Some(count) => count.parse()?,
        None => 0,
    };
    Ok(Report {
        requests: requests.0.trim().parse()?,
        per_second: after("Requests/sec:").context("no rate")?.parse()?,
        p50: time(after("50%").context("no median")?)?,
        p99: time(after("99%").context("no 99 %")?)?,
        failed: wrong + after("Socket errors:").map_or(0, sum),
    })
}

/// `connect 0, read 3, write 0, timeout 2`.
fn sum(counts: &str) -> u64 {
    let counts = counts.split([' ', ',']);
    counts.filter_map(|word| word.parse::<u64>().ok()).sum()
}

fn time(text: &str) -> Result<Duration> {
    for (unit, seconds) in [("us", 1e-6), ("ms", 1e-3), ("m", 60.0), ("s", 1.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            let number: f64 = number.parse()?;
            return Ok(Duration::from_secs_f64(number * seconds));
        }
    }
    anyhow::bail!("`{text}` is no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
Running 5s test @ http://127.0.0.1:1/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.25ms  210.10us   9.01ms   91.00%
    Req/Sec    51.00k     1.90k   54.00k    80.00%
  Latency Distribution
     50%  950.50us
     75%    1.30ms
     90%    1.42ms
     99%    2.10ms
  255500 requests in 5.00s, 40.00MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 7
Requests/sec:  51100.42
Transfer/sec:      8.00MB
";

    #[test]
    fn what_it_prints_is_understood() {
        let report = read(SAID).unwrap();
        let expect = Report {
            requests: 255_500,
            per_second: 51_100.42,
            p50: Duration::from_nanos(950_500),
            p99: Duration::from_micros(2100),
            failed: 12,
        };
        assert_eq!(report, expect);
        assert!(read("unable to connect").is_err());
    }
}
