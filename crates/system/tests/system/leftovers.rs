//! What nodes keep on the machine outside of the data directory goes with them, however they end.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use system::cloud::Cloud;
use system::wait;

/// Rounds, as what is under way when it ends is another thing each time.
const ROUNDS: u32 = 4;

const MANY: &str = "
project: many
defaults: { replicas: 12, memory: 16Mi }
services:
  one: { run: [sleep, infinity], health: none, needs: [word] }
  two: { run: [sleep, infinity], health: none, needs: [one, word] }
secrets: { word: { generate: 32 } }
";

/// The folders in memory that say that they are of this cloud's nodes. Each is named as the node's table.
fn in_memory(cloud: &Cloud) -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| uid != 0);
    let place = runtime.map_or(PathBuf::from("/dev/shm"), PathBuf::from);
    let own = place.join(format!("mainland-{uid}"));
    let directory = cloud.directory.path().display().to_string();
    let folders = std::fs::read_dir(own).into_iter().flatten().flatten();
    folders
        .map(|folder| folder.path())
        .filter(|folder| {
            let mark = std::fs::read_to_string(folder.join("node.json"));
            mark.is_ok_and(|mark| mark.contains(&directory))
        })
        .collect()
}

/// What is still there of the nodes that kept these folders.
fn left(folders: &[PathBuf]) -> Vec<String> {
    let listed = Command::new("nft").args(["list", "tables"]).output();
    let tables = listed.map_or_else(
        |_| String::new(),
        |listed| String::from_utf8_lossy(&listed.stdout).into_owned(),
    );
    let there = folders.iter().filter(|folder| folder.exists());
    let mut left: Vec<String> = there.map(|folder| folder.display().to_string()).collect();
    let names = folders.iter().filter_map(|folder| folder.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    left.extend(names.filter(|name| tables.lines().any(|table| table.ends_with(name.as_str()))));
    left
}

/// One with nothing deployed, whose nodes are ready.
fn empty() -> Cloud {
    let mut cloud = Cloud::empty(1).unwrap();
    cloud.start().unwrap();
    let ready = || {
        let nodes = cloud.nodes().map_err(|error| error.to_string())?;
        let ready = nodes.len() == 2 && nodes.iter().all(|node| node.state == "ready");
        ready.then_some(()).ok_or(format!("{nodes:?}"))
    };
    wait::until("its nodes are ready", Duration::from_secs(30), ready);
    cloud
}

#[test]
fn down_in_the_middle_of_a_rollout_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("mainland.yaml");
    std::fs::write(&manifest, MANY).unwrap();
    for _ in 0..ROUNDS {
        let mut cloud = Cloud::new(&manifest, 1).unwrap();
        cloud.start().unwrap();
        let begun = || match cloud.ps() {
            Ok(all) if all.is_empty() => Err("no instance yet".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        wait::until("instances are begun", Duration::from_secs(30), begun);
        let kept = in_memory(&cloud);
        assert_eq!(kept.len(), 2, "the node and the edge: {kept:?}");
        cloud.down().unwrap();
        assert_eq!(left(&kept), [""; 0]);
    }
}

#[test]
fn down_takes_away_what_a_killed_node_kept() {
    let mut cloud = empty();
    let kept = in_memory(&cloud);
    cloud.kill_everything().unwrap();
    assert!(!left(&kept).is_empty(), "a kill is no end");
    cloud.say(&["down", "--delete-data", "-y"]).unwrap();
    assert_eq!(left(&kept), [""; 0]);
}

#[test]
fn what_dead_clouds_left_goes_with_the_next_up_and_the_living_keep_theirs() {
    let mut dead = empty();
    let deads = in_memory(&dead);
    dead.kill_everything().unwrap();
    std::fs::remove_dir_all(dead.directory.path().join("data")).unwrap();
    let lives = empty();
    assert_eq!(left(&deads), [""; 0]);
    // Its proxy runs on and waits for the next agent, which nobody starts while `up` stands still.
    let kill = |pid, signal| system::proc::signal(pid, signal).unwrap();
    let up = lives.supervisor().unwrap();
    kill(up, rustix::process::Signal::STOP);
    let agent = lives.processes_with(&[" agent ", "/nodes/a"]);
    kill(agent[0], rustix::process::Signal::KILL);
    let theirs = in_memory(&lives);
    let before = left(&theirs);
    assert!(before.len() >= 2, "{before:?}");
    let _next = empty();
    assert_eq!(left(&theirs), before);
    kill(up, rustix::process::Signal::CONT);
}
