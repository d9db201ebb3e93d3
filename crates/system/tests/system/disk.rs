//! A full disk: what runs goes on, what can't be kept is refused in clear words, nothing is lost, and room mends it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use system::proc;

use crate::first::{First, PAGE};

const WITHIN: Duration = Duration::from_secs(30);

/// A cloud whose data directory is a disk of its own, a small one.
struct Small {
    first: First,
    /// After the cloud, which still stands on it while it ends.
    disk: Disk,
}

struct Disk {
    place: PathBuf,
}

impl Disk {
    fn mount(place: PathBuf, mebibytes: u64) -> Self {
        std::fs::create_dir(&place).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={mebibytes}m,mode=711"))
            .arg("none")
            .arg(&place)
            .status();
        assert!(mounted.unwrap().success(), "a tmpfs could not be mounted");
        Self { place }
    }

    fn filler(&self) -> PathBuf {
        self.place.join("filler")
    }

    /// Takes all the room there is, to the last byte.
    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        for length in [1 << 20, 4096, 1] {
            let bytes = vec![7; length];
            while file.write_all(&bytes).is_ok() {}
        }
    }

    /// Takes room until so many percent are used.
    fn fill_to(&self, percent: u64) {
        let found = rustix::fs::statvfs(&self.place).unwrap();
        let filler = std::fs::metadata(self.filler()).map_or(0, |filler| filler.len());
        let used = (found.f_blocks - found.f_bfree) * found.f_frsize - filler;
        let wanted = found.f_blocks * found.f_frsize * percent / 100;
        let mut file = File::create(self.filler()).unwrap();
        let bytes = vec![7; usize::try_from(wanted - used).unwrap()];
        file.write_all(&bytes).unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
        let _ = self.place.parent().map(std::fs::remove_dir_all::<&Path>);
    }
}

impl Small {
    fn up(mebibytes: u64) -> Self {
        let first = First::with(1, PAGE);
        let disk = Disk::mount(first.cloud.directory.path().join("data"), mebibytes);
        let mut small = Self { first, disk };
        small.first.cloud.up().unwrap();
        small
    }
}

#[test]
fn a_full_disk_is_named_and_nothing_is_lost() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: no small disk can be mounted");
        return;
    }
    let mut small = Small::up(24);
    let first = &mut small.first;
    let before = first.cloud.ready("page").unwrap();

    // More than what the store has room for in files that are there already.
    let note = format!("replicas: 3\n    env: {{ NOTE: {} }}", "x".repeat(100_000));
    first.edit("replicas: 2", &note);
    small.disk.fill();
    let output = first.cloud.run(&["apply"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "it can't have been stored");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("no space left") && said.contains("remedy"),
        "{said}"
    );

    // What runs goes on. What ends can't be started, as its record could not be kept: that is said.
    for _ in 0..20 {
        assert!(first.page().unwrap().contains("html"));
    }
    proc::signal(before[0].pid.unwrap(), Signal::KILL).unwrap();
    first.explained(&before[0].name, &["not started", "No space left"]);
    assert!(first.page().unwrap().contains("html"));

    // With room, the same command is done.
    small.disk.make_room();
    first.cloud.say(&["apply", "--wait"]).unwrap();
    first.cloud.wait_ready("page", 3, WITHIN);

    // Killed while the disk is full, and up again with room: all is as it was.
    small.disk.fill();
    first.cloud.kill_everything().unwrap();
    small.disk.make_room();
    first.cloud.up().unwrap();
    first.cloud.wait_ready("page", 3, WITHIN);
    assert!(first.page().unwrap().contains("html"));
}

#[test]
fn a_disk_that_fills_is_told_before_it_is_full() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: no small disk can be mounted");
        return;
    }
    let small = Small::up(64);
    let cloud = &small.first.cloud;
    let says = |words: &[&str], part: &str| {
        let look = || {
            let said = cloud.say(words).map_err(|error| error.to_string())?;
            match said.contains(part) {
                true => Ok(()),
                false => Err(format!("{words:?} does not say `{part}`:\n{said}")),
            }
        };
        system::wait::until("the disk is told", WITHIN, look);
    };
    assert!(!cloud.say(&["status"]).unwrap().contains("disk"));

    small.disk.fill_to(85);
    says(
        &["status"],
        "the disk of the server and nodes a and edge fills: 8",
    );
    says(&["status", "--all"], "fills: 8");
    says(&["status", "-o", "json"], "disk-filling");
    says(&["nodes"], "  8");
    says(&["nodes", "-o", "json"], "\"disk\"");
    says(&["events"], "the disk of node a fills");
    says(&["doctor"], "fills: 8");

    small.disk.fill_to(97);
    says(&["status"], "is as good as full: 9");
    says(&["events"], "the disk of node a is as good as full");
    assert!(small.first.page().unwrap().contains("html"));

    small.disk.make_room();
    let well = || match cloud.say(&["status"]) {
        Ok(said) if !said.contains("disk") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    system::wait::until("the disk is well", WITHIN, well);
}
