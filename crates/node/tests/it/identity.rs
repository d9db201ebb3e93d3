//! Who a node is survives its certificates; who was removed runs nothing; a copy touches nothing; and no disk stops the heartbeats.

use std::time::{Duration, Instant};

use model::compute::InstanceState;
use tokio::process::Command;

use crate::world::{BINARY, Node, ask, web};

#[tokio::test]
async fn an_agent_that_starts_again_asks_by_its_key() {
    let mut node = Node::start().await;
    node.kill_agent().await;
    assert_eq!(node.server.look(|state| state.renewed), 0);
    node.start_again();
    node.until("it is heard again", |node| {
        node.server
            .look(|state| state.renewed == 1 && state.heartbeats > 0)
    })
    .await;
}

#[tokio::test]
async fn who_was_removed_stops_what_it_runs_and_says_so() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let report = node.until_ready("web-1").await;
    let pid = report.pid.unwrap();
    node.server.look(|state| state.removed = true);
    let ended = tokio::time::timeout(Duration::from_secs(20), node.agent.wait()).await;
    assert!(!ended.expect("the agent ends").unwrap().success());
    let lives = std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(!lives, "what ran there is gone");
    let said = std::fs::read_to_string(node.log()).unwrap();
    assert!(said.contains("was removed from this cluster"), "{said}");
    // Nor does it run anything when it is started again and no server can be asked.
    node.server.falls_silent(true);
    node.start_again();
    let ended = tokio::time::timeout(Duration::from_secs(30), node.agent.wait()).await;
    assert!(!ended.expect("it ends again").unwrap().success());
}

#[tokio::test]
async fn a_copy_of_the_directory_is_refused_and_the_first_unharmed() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let report = node.until_ready("web-1").await;
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(node.directory())
        .arg(copy.path().join("node"))
        .status();
    assert!(copied.await.unwrap().success());
    let start = || {
        Command::new(BINARY)
            .arg("agent")
            .arg(copy.path().join("node"))
            .output()
    };
    // Beside its agent, and beside its instances alone.
    for killed in [false, true] {
        if killed {
            node.kill_agent().await;
        }
        let output = tokio::time::timeout(Duration::from_secs(20), start()).await;
        let output = output.expect("it ends").unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("is a copy"),
            "{said}"
        );
        assert_eq!(ask(&report, "/").await, "web-1");
    }
    node.start_again();
    let again = node.until_ready("web-1").await;
    assert_eq!((again.pid, again.restarts), (report.pid, 0));
    assert_eq!(again.state, InstanceState::Running);
}

/// Who opens a pipe to write waits until somebody reads: so does a disk that stands still.
fn stand_still(path: &std::path::Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[tokio::test]
async fn a_disk_that_stands_still_stops_no_heartbeat() {
    let node = Node::start().await;
    for file in [
        "desired.json.new",
        "doors.json.new",
        "instances/shop/web-1.json.new",
    ] {
        stand_still(&node.directory().join(file));
    }
    node.server.want(vec![web("web-1")]);
    let mut last = (node.server.look(|state| state.heartbeats), Instant::now());
    let deadline = Instant::now() + Duration::from_secs(6);
    while Instant::now() < deadline {
        let beats = node.server.look(|state| state.heartbeats);
        if beats != last.0 {
            last = (beats, Instant::now());
        }
        let silence = last.1.elapsed();
        assert!(
            silence < model::timing::TERMINATE_AFTER,
            "silent for {silence:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
