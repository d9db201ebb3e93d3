//! The online store under faults: every answer right, and the books right after each of them.
//!
//! The load is the shop's own (`shop-load`): open loop, never retries, checks every answer, and then audits orders, charges, stock and what the
//! workers did. Where the design promises that nothing fails, nothing may; where a database or a topic must restart, what fails is an honest 503
//! and the books are right all the same.

mod cases;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;
use system::cloud::{Cloud, Instance};
use system::shop::Audit;
use system::{proc, wait};

use crate::first::turn;

/// Checkouts a second; reads come on top. At 100 two cores with debug builds serve everything in peace, and have nothing left for a copy that starts while
/// others are killed: checkouts take seconds, and some are undone in time. What an optimised build serves is told by `cargo xtask bench shop`.
const RATE: u32 = 50;
const BACK_WITHIN: Duration = Duration::from_secs(15);
const SERVICES: [(&str, usize); 12] = [
    ("storefront", 2),
    ("cart", 2),
    ("checkout", 3),
    ("inventory", 3),
    ("payment", 3),
    ("provider", 3),
    ("orders", 3),
    ("email", 2),
    ("shipping", 2),
    ("analytics", 1),
    ("orders-db", 1),
    ("order-events", 1),
];

struct Shop {
    cloud: Cloud,
    folder: PathBuf,
    _copy: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A load that runs.
struct Load {
    child: Child,
    rate: u32,
}

impl Shop {
    /// Prepares a copy of the example; nothing runs yet.
    fn prepared() -> Self {
        let turn = turn();
        let copy = tempfile::Builder::new()
            .prefix("mainland-shop-")
            .tempdir()
            .unwrap();
        let folder = copy.path().join("shop");
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
        system::shop::copy(&example, &folder).unwrap();
        let cloud = Cloud::new(&folder.join("mainland.yaml"), 3).unwrap();
        Self {
            cloud,
            folder,
            _copy: copy,
            _turn: turn,
        }
    }

    /// The shop over three zones, everything ready.
    fn up() -> Self {
        let mut shop = Self::prepared();
        shop.cloud.up().unwrap();
        shop.all_ready();
        shop
    }

    fn all_ready(&self) {
        for (service, count) in SERVICES {
            self.cloud.wait_ready(service, count, BACK_WITHIN * 2);
        }
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.folder.join("mainland.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "the manifest lacks `{from}`");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    fn load(&self, rate: u32, seconds: u32) -> Load {
        let child = system::shop::load(self.cloud.gateway, rate, seconds)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Load { child, rate }
    }

    /// Does something while the load runs, none of whose requests may fail.
    fn unnoticed(&mut self, seconds: u32, action: impl FnOnce(&mut Self)) {
        let load = self.load(RATE, seconds);
        action(self);
        let (audit, said) = load.finish();
        books_are_right(&audit, &said);
        assert_eq!(audit.failed, 0, "{said}");
    }

    /// Does something that the load may notice: by a 503, and by nothing else.
    fn honest(&mut self, rate: u32, seconds: u32, action: impl FnOnce(&mut Self)) {
        let load = self.load(rate, seconds);
        action(self);
        let (audit, said) = load.finish();
        books_are_right(&audit, &said);
        assert_eq!(
            audit.failed, audit.unavailable,
            "what failed was no honest 503: {said}"
        );
    }

    /// Kills one instance and waits until it is back as another process.
    fn kill(&self, instance: &Instance) -> Duration {
        proc::signal(instance.pid.unwrap(), Signal::KILL).unwrap();
        let back = || {
            let ready = self
                .cloud
                .ready(&instance.service)
                .map_err(|error| error.to_string())?;
            let back = ready
                .iter()
                .any(|one| one.name == instance.name && one.pid != instance.pid);
            back.then_some(()).ok_or(format!("{ready:?}"))
        };
        wait::until(&format!("{} is back", instance.name), BACK_WITHIN, back).1
    }

    /// What the shop behind a host answers.
    fn get(&self, host: &str, path: &str) -> String {
        let url = format!("http://{}{path}", self.cloud.gateway);
        let said = Command::new("curl")
            .args([
                "-sS",
                "--max-time",
                "20",
                "-H",
                &format!("Host: {host}"),
                &url,
            ])
            .output()
            .unwrap();
        String::from_utf8(said.stdout).unwrap()
    }

    /// Buys a mug; the number of the order.
    fn buy(&self, host: &str) -> String {
        let url = format!("http://{}/api/checkout", self.cloud.gateway);
        let said = Command::new("curl")
            .args(["-sS", "--max-time", "30", "-H", &format!("Host: {host}")])
            .args(["-H", "content-type: application/json"])
            .args(["-H", "idempotency-key: a-mug"])
            .args([
                "-d",
                r#"{"items":[{"sku":"enamel-mug","quantity":1}],"card":"4242424242424242"}"#,
            ])
            .arg(&url)
            .output()
            .unwrap();
        #[derive(Deserialize)]
        struct Bought {
            order_id: String,
        }
        let bought: Bought = serde_json::from_slice(&said.stdout)
            .unwrap_or_else(|error| panic!("{host}: {error}: {said:?}"));
        bought.order_id
    }

    /// What the provider of cards does from now on.
    fn provider_behaves(&self, behaviour: &str) {
        let url = format!("http://{}/api/provider/behaviour", self.cloud.gateway);
        let said = Command::new("curl")
            .args(["-sS", "--fail", "-X", "PUT", "-H", "Host: shop.localhost"])
            .args([
                "-H",
                "content-type: application/json",
                "-d",
                behaviour,
                &url,
            ])
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
    }
}

impl Load {
    fn finish(self) -> (Audit, String) {
        let output = self.child.wait_with_output().unwrap();
        let said = format!(
            "{} checkouts a second: {}{}",
            self.rate,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        println!("{said}");
        let audit = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {said}"));
        (audit, said)
    }
}

fn books_are_right(audit: &Audit, said: &str) {
    assert!(audit.sent > 0 && audit.ok > 0, "{said}");
    assert_eq!(audit.wrong(), [0; 6], "{said}");
}
