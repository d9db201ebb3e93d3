//! Who a node is survives its certificates; who was removed runs nothing; a copy touches nothing; and no disk stops the heartbeats.

use std::time::{Duration, Instant};

use model::compute::{InstanceState, OnPartition};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::server::{Server, State};
use crate::world::{BINARY, Node, PATIENCE, ask, block, first_start, spawn, web};

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

/// For as long as the server says: its other place may run yet, and nothing of it is to run twice.
#[tokio::test]
async fn an_agent_that_is_awaited_elsewhere_begins_nothing_and_ends_not() {
    let mut node = Node::start().await;
    node.kill_agent().await;
    node.server.look(|state| {
        state.awaits = 4;
        state.heartbeats = 0;
    });
    node.start_again();
    let before = std::cell::Cell::new(0);
    node.until("it is heard", |node| {
        let (renewed, heartbeats) = node.server.look(|state| (state.renewed, state.heartbeats));
        if renewed <= 4 {
            before.set(heartbeats);
        }
        heartbeats > 0
    })
    .await;
    assert_eq!(before.get(), 0, "it begins nothing before it may");
    assert_eq!(node.server.look(|state| state.renewed), 5);
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

/// As one removes a node whose disk is dead: what serves from memory ends all the same.
#[tokio::test]
async fn who_was_removed_stops_what_it_runs_though_its_disk_stands_still() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let pid = node.until_ready("web-1").await.pid.unwrap();
    // Whoever opens it to write waits until somebody reads.
    let fifo = node.directory().join("removed.json.new");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    node.server.look(|state| state.removed = true);
    let ended = tokio::time::timeout(PATIENCE, node.agent.wait()).await;
    assert!(!ended.expect("the agent ends").unwrap().success());
    assert!(!crate::world::is_alive(pid), "what ran there is gone");
}

/// A machine without power must not forget who it is, nor the key that it joins with: they are synced before they count. What lies in their way here
/// takes every byte, and can't be synced.
#[tokio::test]
async fn who_a_node_is_is_on_the_disk_before_it_counts() {
    let server = Server::start().await;
    for file in ["joining", "identity"] {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("node");
        std::fs::create_dir(&directory).unwrap();
        let beside = directory.join(format!("{file}.json.new"));
        std::os::unix::fs::symlink("/dev/null", &beside).unwrap();
        let command = first_start(
            std::path::Path::new(BINARY),
            folder.path(),
            &server,
            block(),
        );
        let log = folder.path().join("agent.log");
        let mut agent = spawn(command, &log);
        let ended = tokio::time::timeout(PATIENCE, agent.wait()).await;
        assert!(!ended.expect("it ends").unwrap().success(), "{file}");
        let said = std::fs::read_to_string(log).unwrap();
        assert!(said.contains(&format!("{file}.json.new")), "{said}");
        let kept = directory.join(format!("{file}.json"));
        assert!(
            kept.symlink_metadata().is_err(),
            "nothing unsynced is there"
        );
    }
}

/// A unit file still has the token of the first start, which was used up then: the agent that starts with it learns of the removal all the same.
#[tokio::test]
async fn who_was_removed_stops_what_it_runs_though_it_shows_an_old_token() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let pid = node.until_ready("web-1").await.pid.unwrap();
    node.kill_agent().await;
    node.server.look(|state| {
        state.removed = true;
        state.refuses_joins = true;
    });
    node.start_with_token();
    let ended = tokio::time::timeout(Duration::from_secs(20), node.agent.wait()).await;
    assert!(!ended.expect("the agent ends").unwrap().success());
    let lives = std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(!lives, "what ran there is gone");
    assert!(node.directory().join("removed.json").exists());
    // A fresh one lets it in.
    node.server.look(|state| {
        state.removed = false;
        state.refuses_joins = false;
        state.heartbeats = 0;
    });
    node.start_with_token();
    node.until("it is heard again", |node| {
        node.server.look(|state| state.heartbeats > 0)
    })
    .await;
}

/// Its name is another's by now: it was the node, and is to run nothing any more.
#[tokio::test]
async fn who_is_no_node_any_more_stops_what_it_runs() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let pid = node.until_ready("web-1").await.pid.unwrap();
    node.server.look(|state| state.left = true);
    let ended = tokio::time::timeout(Duration::from_secs(20), node.agent.wait()).await;
    assert!(!ended.expect("the agent ends").unwrap().success());
    let lives = std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(!lives, "what ran there is gone");
}

/// The machine is let in, and ends before it hears so: it comes with the same key.
#[tokio::test]
async fn a_first_join_that_was_cut_off_goes_on_with_its_key() {
    let server = Server::start().await;
    server.look(|state| state.loses_joins = 1);
    let folder = tempfile::tempdir().unwrap();
    let block = block();
    let start = || {
        let binary = std::path::Path::new(BINARY);
        let command = first_start(binary, folder.path(), &server, block);
        spawn(command, &folder.path().join("agent.log"))
    };
    let until = async |what: &str, holds: fn(&State) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !server.look(|state| holds(state)) {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut agent = start();
    until("it joins", |state| state.joined.len() == 1).await;
    agent.kill().await.unwrap();
    let _agent = start();
    until("it is heard", |state| state.heartbeats > 0).await;
    let joined = server.look(|state| state.joined.clone());
    assert!(joined.len() == 2 && joined[0] == joined[1], "{joined:?}");
    assert!(!folder.path().join("node/joining.json").exists());
}

/// What the disk refused to forget is said to be there, also after a restart, and tried again.
#[tokio::test]
async fn what_a_disk_refuses_to_forget_is_not_called_forgotten() {
    let mut node = Node::start().await;
    let db: model::ids::ResourceId = "shop/db".parse().unwrap();
    // Nothing can be renamed in a folder that is none.
    let project = node.directory().join("volumes/shop");
    std::fs::write(&project, "").unwrap();
    node.server
        .change(|desired| desired.forget_volumes = vec![db.clone()]);
    let says_so = |node: &Node| {
        let db = db.clone();
        node.server.look(|state| state.not_forgotten == [db])
    };
    node.until("it says so", says_so).await;
    assert!(node.server.look(|state| state.acknowledged.counter > 1));
    node.kill_agent().await;
    node.server.look(|state| state.not_forgotten.clear());
    node.start_again();
    node.until("it still says so", says_so).await;
    std::fs::remove_file(&project).unwrap();
    let data = project.join("db/0/data");
    std::fs::create_dir_all(&data).unwrap();
    node.until("it is forgotten", |node| {
        node.server.look(|state| state.not_forgotten.is_empty())
    })
    .await;
    assert!(!data.exists());
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
async fn a_disk_that_stands_still_stops_no_heartbeat_and_ends_no_lease() {
    let node = Node::start().await;
    let mut leased = web("web-2");
    leased.spec.on_partition = OnPartition::Stop;
    node.server.want(vec![leased.clone()]);
    let pid = node.until_ready("web-2").await.pid;
    for file in [
        "desired.json.new",
        "doors.json.new",
        "instances/shop/web-1.json.new",
    ] {
        stand_still(&node.directory().join(file));
    }
    node.server.want(vec![web("web-1"), leased]);
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
    let report = node.server.report("web-2").unwrap();
    assert_eq!((report.pid, report.restarts), (pid, 0), "{report:?}");
}

/// Shims that do not answer are waited for side by side, and not for long: the node is silent meanwhile, and would be lost.
#[tokio::test]
async fn mute_shims_do_not_keep_a_new_agent_from_being_heard() {
    let mut node = Node::start().await;
    let names = ["web-1", "web-2", "web-3", "web-4"];
    node.server.want(names.map(web).into());
    let mut pids = Vec::new();
    for name in names {
        pids.push(node.until_ready(name).await.pid);
    }
    let shims = names.map(|name| {
        let directory = node.directory().join("instances/shop").join(name);
        let record = compute::instance::read_record(&directory).unwrap();
        Pid::from_raw(record.shim.pid.cast_signed()).unwrap()
    });
    for shim in shims {
        kill_process(shim, Signal::STOP).unwrap();
    }
    node.kill_agent().await;
    let before = node.server.look(|state| state.heartbeats);
    let begun = Instant::now();
    node.start_again();
    node.until("it is heard again", |node| {
        node.server.look(|state| state.heartbeats > before)
    })
    .await;
    // One after the other took 5 s each; a machine that does other things has room here.
    let silent = begun.elapsed();
    assert!(silent < Duration::from_secs(5), "silent for {silent:?}");
    for shim in shims {
        kill_process(shim, Signal::CONT).unwrap();
    }
    for (name, pid) in names.into_iter().zip(pids) {
        let again = node.until_ready(name).await;
        assert_eq!((again.pid, again.restarts), (pid, 0), "{name}");
    }
}

/// Its record is lost; until a server says whether it is wanted, it runs on.
#[tokio::test]
async fn what_has_no_record_is_ended_only_once_a_server_does_not_want_it() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let pid = node.until_ready("web-1").await.pid.unwrap();
    let lives = || std::path::Path::new(&format!("/proc/{pid}")).exists();
    node.kill_agent().await;
    std::fs::remove_file(node.directory().join("instances/shop/web-1.json")).unwrap();
    std::fs::remove_file(node.directory().join("desired.json")).unwrap();
    node.server.falls_silent(true);
    node.start_again();
    let answers = async {
        while node.status().await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let answers = tokio::time::timeout(PATIENCE, answers).await;
    answers.expect("the agent answers on its socket");
    assert!(lives(), "ended without a word of a server");
    node.server.want(Vec::new());
    node.server.falls_silent(false);
    node.until("it is ended", |_| !lives()).await;
}
