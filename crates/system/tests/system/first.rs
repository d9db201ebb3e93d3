//! `examples/first` in a copy that a test may change, up and ready, with loads that check every answer.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use system::cloud::Cloud;
use system::load::{Report, Running};
use system::wait;

/// Copies of each service are back within this after a fault.
pub const BACK_WITHIN: Duration = Duration::from_secs(10);

/// A machine that also builds may take its time to come to a reason.
const EXPLAINED_WITHIN: Duration = Duration::from_secs(40);

/// The example's page from a server that starts at once, without what stands behind it.
pub const PAGE: &str = "
project: first
defaults: { cpu: 0.2, memory: 64Mi }
services:
  page:
    run: [python3, -m, http.server, --bind, $HOST, $PORT]
    files: ./front/pages
    health: /
    replicas: 2
routes:
  first.localhost/: page
";

/// Clouds take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The turn of one cloud, for as long as it is held.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct First {
    pub cloud: Cloud,
    pub folder: PathBuf,
    _copy: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl First {
    /// Prepares the example; nothing runs yet.
    pub fn prepared(zones: u32) -> Self {
        let turn = turn();
        let copy = tempfile::Builder::new()
            .prefix("mainland-first-")
            .tempdir()
            .unwrap();
        let folder = copy.path().join("first");
        copy_folder(&example(), &folder);
        let cloud = Cloud::new(&folder.join("mainland.yaml"), zones).unwrap();
        Self {
            cloud,
            folder,
            _copy: copy,
            _turn: turn,
        }
    }

    /// The example's folder with a manifest of the test's own: less to start.
    pub fn with(zones: u32, manifest: &str) -> Self {
        let first = Self::prepared(zones);
        std::fs::write(first.folder.join("mainland.yaml"), manifest).unwrap();
        first
    }

    /// The example on three zones, everything ready, a value stored.
    pub fn up() -> Self {
        let mut first = Self::prepared(3);
        first.cloud.up().unwrap();
        first.store_value();
        first
    }

    /// Stores the value that the loads ask for.
    pub fn store_value(&self) {
        let url = format!("http://{}/set?key=kept", self.cloud.gateway);
        let status = std::process::Command::new("curl")
            .args([
                "-sS",
                "--fail",
                "-H",
                "Host: api.first.localhost",
                "-d",
                "precious",
                &url,
            ])
            .status()
            .unwrap();
        assert!(status.success(), "a value could not be stored");
    }

    /// The stored value, once.
    pub fn read_value(&self) -> String {
        let url = format!("http://{}/get?key=kept", self.cloud.gateway);
        let output = std::process::Command::new("curl")
            .args([
                "-sS",
                "--fail",
                "--max-time",
                "10",
                "-H",
                "Host: api.first.localhost",
                &url,
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What the gateway answers for the page; the error in words when it does not.
    pub fn page(&self) -> Result<String, String> {
        self.page_within(10)
    }

    /// The same, from who has less patience.
    pub fn page_within(&self, seconds: u32) -> Result<String, String> {
        let url = format!("http://{}/", self.cloud.gateway);
        let words = ["-sS", "--fail", "--max-time", &seconds.to_string()];
        let output = std::process::Command::new("curl")
            .args(words)
            .args(["-H", "Host: first.localhost", &url])
            .output()
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Waits until the reasons that are stored about a thing contain all of these words; all that was said.
    pub fn explained(&self, subject: &str, words: &[&str]) -> String {
        let look = || {
            let said = self.cloud.say(&["explain", subject]);
            let said = said.map_err(|error| error.to_string())?;
            match words.iter().all(|word| said.contains(word)) {
                true => Ok(said),
                false => Err(said),
            }
        };
        let what = format!("`explain {subject}` says {words:?}");
        wait::until(&what, EXPLAINED_WITHIN, look).0
    }

    /// Replaces a text in the manifest.
    pub fn edit(&self, from: &str, to: &str) {
        let path = self.folder.join("mainland.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "the manifest lacks `{from}`");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    pub fn all_ready(&self) {
        for (service, count) in [("front", 2), ("web", 3), ("store", 1)] {
            self.cloud.wait_ready(service, count, BACK_WITHIN);
        }
    }

    /// Does something while 1,000 requests a second ask for the page and 50 for the stored value; none may fail, every answer must be right.
    pub fn under_load(&mut self, time: Duration, action: impl FnOnce(&mut Self)) {
        let loads = self.start_loads(time);
        action(self);
        for (name, load) in loads {
            let report = load.finish().unwrap();
            println!("{name}: {}", serde_json::to_string(&report).unwrap());
            self.check(name, &report);
        }
    }

    fn start_loads(&self, time: Duration) -> [(&'static str, Running); 2] {
        let page = self.cloud.load("first.localhost", "/", 1000, time, "html");
        let value = self
            .cloud
            .load("api.first.localhost", "/get?key=kept", 50, time, "precious");
        [("page", page.unwrap()), ("value", value.unwrap())]
    }

    fn check(&self, name: &str, report: &Report) {
        assert!(report.sent > 0);
        if report.failed == 0 {
            return;
        }
        let events = self.cloud.say(&["events", "-A"]).unwrap_or_default();
        panic!(
            "{name}: {} of {} failed: {:#?}\nevents:\n{events}",
            report.failed, report.sent, report.failures
        );
    }
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/first")
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}
