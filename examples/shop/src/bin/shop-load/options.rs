//! What the user types, and what it means.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, ValueEnum};
use http::Uri;

use crate::schedule::{Arrivals, Schedule};
use crate::send::Target;

/// Each answered order is remembered until the audit, so a run has an end.
const REQUESTS_MAX: f64 = 2_000_000.0;
/// Loopback connections that a gateway and this process should both afford.
const CONNECTIONS: usize = 2048;

/// Load the shop without mercy, verify each answer, and audit its books
///
/// Requests leave on schedule whatever the answers do; none is sent twice; latency counts from the scheduled time.
#[derive(Debug, Parser)]
#[command(
    name = "shop-load",
    max_term_width = 100,
    after_help = "Exit codes: 0 all is well, 1 a figure from failed to events_lost is not 0, 2 usage, 3 no audit was possible.\n\n\
                  Example:\n  shop-load --url http://127.0.0.1:8080 --rate 200 --seconds 20 -o json"
)]
pub struct Options {
    /// Where the shop is, such as http://127.0.0.1:8080 or http://shop.localhost:8080
    #[arg(long)]
    url: Uri,
    /// Host to ask for [default: that of --url if it ends in .localhost, else shop.localhost]
    #[arg(long)]
    host: Option<String>,
    /// Checkouts a second; reads come on top
    #[arg(long, required_unless_present = "audit_only")]
    rate: Option<f64>,
    /// How long to send
    #[arg(long, required_unless_present = "audit_only")]
    seconds: Option<f64>,
    /// Reads per checkout: products, the page, and completed orders
    #[arg(long, default_value_t = 0.25)]
    reads: f64,
    /// How checkouts follow each other
    #[arg(long, value_enum, default_value_t = Arrivals::Fixed)]
    arrivals: Arrivals,
    /// Same seed, same arrivals and baskets (keys are always new)
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Send nothing; audit what is there
    #[arg(long)]
    audit_only: bool,
    /// Seconds that attempts and workers have to finish after the load
    #[arg(long, default_value_t = 30.0)]
    settle: f64,
    /// Seconds until a request without an answer counts as failed
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
    /// Connections at most
    #[arg(long, default_value_t = CONNECTIONS)]
    connections: usize,
    /// Failed requests alone don't make the exit code 1
    #[arg(long)]
    allow_failed: bool,
    /// How to print the figures
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// What to do; everything is checked.
#[derive(Debug)]
pub struct Plan {
    pub target: Target,
    /// Connections at most.
    pub connections: usize,
    /// None: only the audit.
    pub load: Option<Load>,
    /// How long attempts and workers have to finish.
    pub settle: Duration,
    pub allow_failed: bool,
    pub json: bool,
}

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    pub schedule: Schedule,
    /// From the scheduled time until a request counts as failed.
    pub timeout: Duration,
}

impl Options {
    pub fn plan(&self) -> Result<Plan, clap::Error> {
        let load = match self.audit_only {
            true => None,
            false => Some(self.load()?),
        };
        if self.connections == 0 {
            return Err(usage("--connections must be at least 1"));
        }
        Ok(Plan {
            target: self.target()?,
            connections: self.connections,
            load,
            settle: positive("--settle", self.settle).map(Duration::from_secs_f64)?,
            allow_failed: self.allow_failed,
            json: self.output == Format::Json,
        })
    }

    fn load(&self) -> Result<Load, clap::Error> {
        let rate = positive("--rate", self.rate.unwrap_or(0.0))?;
        let seconds = positive("--seconds", self.seconds.unwrap_or(0.0))?;
        if !(0.0..=100.0).contains(&self.reads) {
            return Err(usage("--reads must be from 0 to 100"));
        }
        if rate * (1.0 + self.reads) * seconds > REQUESTS_MAX {
            let message = format!("--rate times --seconds is more than {REQUESTS_MAX} requests");
            return Err(usage(&message));
        }
        let schedule = Schedule {
            rate,
            reads: self.reads,
            length: Duration::from_secs_f64(seconds),
            arrivals: self.arrivals,
            seed: self.seed,
        };
        let timeout = positive("--timeout", self.timeout).map(Duration::from_secs_f64)?;
        Ok(Load { schedule, timeout })
    }

    fn target(&self) -> Result<Target, clap::Error> {
        let url = &self.url;
        let scheme_fits = url.scheme_str().is_none_or(|scheme| scheme == "http");
        let path_fits = matches!(url.path(), "" | "/") && url.query().is_none();
        let host = url.host().filter(|_| scheme_fits && path_fits);
        let host = host.ok_or_else(|| usage("--url must be http://HOST[:PORT]"))?;
        let port = url.port_u16().unwrap_or(80);
        let address = resolve(host, port)
            .ok_or_else(|| usage(&format!("--url: no address is known for {host}")))?;
        let named = host.ends_with(".localhost").then_some(host);
        let asked = self.host.as_deref().or(named).unwrap_or("shop.localhost");
        let asked = http::HeaderValue::from_str(asked)
            .map_err(|_| usage("--host can't stand in a header"))?;
        Ok(Target {
            address,
            host: asked,
        })
    }
}

/// Every name under `localhost` is this machine (RFC 6761), whatever the resolver knows.
fn resolve(host: &str, port: u16) -> Option<SocketAddr> {
    if host == "localhost" || host.ends_with(".localhost") {
        return Some((Ipv4Addr::LOCALHOST, port).into());
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    (bare, port).to_socket_addrs().ok()?.next()
}

/// A number of seconds or requests that arithmetic can carry: more than zero, less than a year of seconds.
fn positive(option: &str, number: f64) -> Result<f64, clap::Error> {
    if number > 0.0 && number < 31_536_000.0 {
        return Ok(number);
    }
    Err(usage(&format!("{option} must be more than 0")))
}

fn usage(message: &str) -> clap::Error {
    Options::command().error(ErrorKind::ValueValidation, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &str) -> Result<Plan, clap::Error> {
        let words = std::iter::once("shop-load").chain(words.split_whitespace());
        Options::try_parse_from(words).and_then(|options| options.plan())
    }

    #[test]
    fn the_host_asked_for_follows_from_the_url() {
        for (words, address, host) in [
            (
                "--url http://127.0.0.1:8080",
                "127.0.0.1:8080",
                "shop.localhost",
            ),
            (
                "--url http://shop.localhost:8080",
                "127.0.0.1:8080",
                "shop.localhost",
            ),
            (
                "--url http://staging.shop.localhost",
                "127.0.0.1:80",
                "staging.shop.localhost",
            ),
            ("--url http://localhost:9 --host a.b", "127.0.0.1:9", "a.b"),
            ("--url http://[::1]:9/", "[::1]:9", "shop.localhost"),
        ] {
            let target = plan(&format!("{words} --audit-only")).unwrap().target;
            assert_eq!(target.address.to_string(), address, "{words}");
            assert_eq!(target.host, host, "{words}");
        }
    }

    #[test]
    fn what_can_not_be_done_is_a_usage_error() {
        for words in [
            "--url http://127.0.0.1:1",
            "--url http://127.0.0.1:1 --rate 5",
            "--url http://127.0.0.1:1 --rate 0 --seconds 1",
            "--url http://127.0.0.1:1 --rate nan --seconds 1",
            "--url http://127.0.0.1:1 --rate 10 --seconds 1 --reads -1",
            "--url http://127.0.0.1:1 --rate 100000 --seconds 1000",
            "--url http://127.0.0.1:1 --audit-only --connections 0",
            "--url https://127.0.0.1:1 --audit-only",
            "--url http://127.0.0.1:1/path --audit-only",
            "--url /path --audit-only",
            "--rate 1 --seconds 1",
        ] {
            let error = plan(words).expect_err(words);
            assert_eq!(error.exit_code(), 2, "{words}: {error}");
        }
    }

    #[test]
    fn only_an_audit_needs_no_rate() {
        assert!(
            plan("--url http://127.0.0.1:1 --audit-only")
                .unwrap()
                .load
                .is_none()
        );
        let load = plan("--url http://127.0.0.1:1 --rate 200 --seconds 2")
            .unwrap()
            .load;
        assert_eq!(load.unwrap().schedule.length, Duration::from_secs(2));
    }
}
