//! Latency, memory and recovery while something goes on.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::OTHERS;
use crate::cloud::{Cloud, load_program};
use crate::load::{self, Load, Report};
use crate::{proc, wait};

const GATEWAY_RATE: u32 = 200;
const API_RATE: u32 = 20;
const MEMORY_EACH: Duration = Duration::from_millis(50);
/// So many in a row, each in time, and it is as before.
const IN_A_ROW: usize = 10;
const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);

/// What is watched of a cloud.
pub struct Watch<'a> {
    cloud: &'a Cloud,
    server: Vec<u32>,
    proxies: Vec<u32>,
}

/// What others got, and the most that the processes held meanwhile.
pub struct Seen {
    pub gateway: Report,
    pub api: Report,
    pub server_bytes: u64,
    /// Of the proxy that held most.
    pub proxy_bytes: u64,
}

impl Seen {
    pub fn added_bytes(&self, before: &Self) -> u64 {
        let server = self.server_bytes.saturating_sub(before.server_bytes);
        server.max(self.proxy_bytes.saturating_sub(before.proxy_bytes))
    }
}

impl<'a> Watch<'a> {
    pub fn new(cloud: &'a Cloud) -> Self {
        Self {
            cloud,
            server: cloud.processes_with(&[" server ", "--api"]),
            proxies: cloud.processes_with(&[" proxy "]),
        }
    }

    pub fn look(&self, time: Duration) -> Result<Seen> {
        let program = load_program();
        let gateway = Load::get(self.cloud.gateway, OTHERS, "/", GATEWAY_RATE, time);
        let api = Load::get(self.cloud.api, "localhost", "/v1/health", API_RATE, time);
        let loads = [
            load::start(&program, &gateway)?,
            load::start(&program, &api)?,
        ];
        let over = AtomicBool::new(false);
        let (loads, most) = std::thread::scope(|scope| {
            let memory = scope.spawn(|| self.most(&over));
            let loads = loads.map(load::Running::finish);
            over.store(true, Relaxed);
            (loads, memory.join())
        });
        let [gateway, api] = loads;
        let (server_bytes, proxy_bytes) = most.unwrap_or_default();
        Ok(Seen {
            gateway: gateway?,
            api: api?,
            server_bytes,
            proxy_bytes,
        })
    }

    /// The most that server and proxies hold until it is over.
    fn most(&self, over: &AtomicBool) -> (u64, u64) {
        let mut most = (0, 0);
        let look = || {
            let (server, proxy) = self.memory();
            most = (server.max(most.0), proxy.max(most.1));
            over.load(Relaxed).then_some(()).ok_or_else(String::new)
        };
        let _ = wait::looking_each(MEMORY_EACH, RECOVERY_PATIENCE, look);
        most
    }

    fn memory(&self) -> (u64, u64) {
        let most = |pids: &[u32]| {
            let each = pids.iter().filter_map(|pid| proc::resident(*pid).ok());
            each.max().unwrap_or(0)
        };
        (most(&self.server), most(&self.proxies))
    }

    /// What is held so long from now.
    pub fn memory_after(&self, time: Duration) -> (u64, u64) {
        let until = Instant::now() + time;
        let look = || {
            (Instant::now() >= until)
                .then_some(())
                .ok_or_else(String::new)
        };
        let _ = wait::looking_each(MEMORY_EACH, time * 2, look);
        self.memory()
    }

    /// Until requests are answered within `limit_ms` again, one after the other.
    pub fn until_recovered(&self, limit_ms: f64) -> Result<Duration> {
        let began = Instant::now();
        let mut good = 0;
        let mut good_since = began;
        while good < IN_A_ROW {
            ensure!(began.elapsed() < RECOVERY_PATIENCE, "it never recovers");
            let mut once = Load::get(self.cloud.gateway, OTHERS, "/", 1, Duration::from_secs(1));
            once.timeout = Duration::from_secs(5);
            let asked = Instant::now();
            let report = load::run(&once)?;
            if report.ok == 1 && report.max_ms <= limit_ms {
                if good == 0 {
                    good_since = asked;
                }
                good += 1;
            } else {
                good = 0;
            }
        }
        Ok(good_since - began)
    }
}
