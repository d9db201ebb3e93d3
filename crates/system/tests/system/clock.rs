//! The machine's clock is set forward and back by an hour: nobody is lost, nothing restarts, no request fails, and changes go on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::first::First;

const HOUR_SECONDS: i64 = 3600;

/// A wall clock that a test can set, for all of a cloud's own processes.
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    pub fn give(first: &mut First) -> Self {
        let folder = first.cloud.directory.path();
        let (library, file) = (folder.join("clock.so"), folder.join("clock"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/clock.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .status();
        assert!(built.unwrap().success());
        let variable = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
        first.cloud.environment = vec![
            variable("LD_PRELOAD", &library),
            variable("CLOCK_OFFSET_FILE", &file),
        ];
        let clock = Self { file };
        clock.set(0);
        clock
    }

    /// How far it is from the true one.
    pub fn set(&self, seconds: i64) {
        let beside = self.file.with_extension("new");
        std::fs::write(&beside, seconds.to_string()).unwrap();
        std::fs::rename(beside, &self.file).unwrap();
    }
}

/// How far from now the newest release says that it was made.
fn newest_release_is_off_by(first: &First) -> i64 {
    let releases = first
        .cloud
        .say(&["releases", "front", "-o", "json"])
        .unwrap();
    let releases: serde_json::Value = serde_json::from_str(&releases).unwrap();
    let stamps = releases.as_array().unwrap().iter();
    let newest = stamps
        .max_by_key(|release| release["number"].as_u64())
        .unwrap();
    let at: jiff::Timestamp = newest["at"].as_str().unwrap().parse().unwrap();
    at.as_second() - jiff::Timestamp::now().as_second()
}

#[test]
fn a_clock_that_jumps_by_an_hour_disturbs_nobody() {
    let mut first = First::prepared(3);
    let clock = Clock::give(&mut first);
    first.cloud.up().unwrap();
    first.store_value();
    first.under_load(Duration::from_secs(20), |first| {
        for jump in [HOUR_SECONDS, 0, -HOUR_SECONDS, 0] {
            clock.set(jump);
            // A change goes through everybody who looks at a clock: server, agents, proxies.
            first.cloud.say(&["restart", "front", "--wait"]).unwrap();
            let off = newest_release_is_off_by(first);
            assert!((off - jump).abs() < 300, "{off} is not {jump}: no jump");
            first.all_ready();
            let all = first.cloud.ps().unwrap();
            assert!(all.iter().all(|one| one.restarts == 0), "{all:?}");
            let nodes = first.cloud.nodes().unwrap();
            assert!(nodes.iter().all(|node| node.state == "ready"), "{nodes:?}");
        }
    });
    let events = first.cloud.say(&["events", "-A"]).unwrap();
    for word in ["lost", "expired", "not valid"] {
        assert!(!events.contains(word), "`{word}` in: {events}");
    }
}
