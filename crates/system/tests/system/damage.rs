//! One part is damaged or misbehaves: it is named, mended where that can be, and the rest runs.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use system::{proc, wait};

use crate::first::{BACK_WITHIN, First, PAGE};

const WITHIN: Duration = Duration::from_secs(30);

/// The artifacts that a server or a node holds.
fn artifacts(first: &First, holder: &str) -> Vec<PathBuf> {
    let data = first.cloud.directory.path().join("data");
    let folder = data.join(holder).join("artifacts/sha256");
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Turns one bit of each.
fn spoil(artifacts: &[PathBuf]) {
    assert!(!artifacts.is_empty());
    for path in artifacts {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_corrupt_artifact_is_fetched_or_uploaded_again() {
    let mut first = First::with(1, PAGE);
    first.cloud.up().unwrap();

    // The node's copy: the servers have another.
    spoil(&artifacts(&first, "nodes/a"));
    first.cloud.say(&["scale", "page", "3", "--wait"]).unwrap();
    let events = first.cloud.say(&["events", "-A"]).unwrap();
    assert!(events.contains("was corrupt on this node"), "{events}");

    // The servers' copy as well: nobody here has the right bytes, so it is said, and what runs goes on.
    spoil(&artifacts(&first, "nodes/a"));
    spoil(&artifacts(&first, "server"));
    first.cloud.say(&["scale", "page", "4"]).unwrap();
    first.explained("page-4", &["not started", "are not right"]);
    assert_eq!(first.cloud.ready("page").unwrap().len(), 3);
    assert!(first.page().unwrap().contains("html"));

    // Whoever has the files mends it.
    first.cloud.say(&["apply"]).unwrap();
    first.cloud.say(&["scale", "page", "4", "--wait"]).unwrap();
    first.cloud.wait_ready("page", 4, WITHIN);
}

#[test]
fn what_never_becomes_ready_is_given_up_with_its_reason() {
    let mut first = First::with(1, PAGE);
    first.cloud.up().unwrap();
    first.edit(
        "health: /\n",
        "health: /nowhere\n    rollout: { ready_within: 3s }\n",
    );
    let output = first.cloud.run(&["apply", "--wait"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let status = first.cloud.run(&["rollout", "status", "page"]).unwrap();
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    for word in ["failed", "3s", "404"] {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
    first.cloud.wait_ready("page", 2, WITHIN);
    assert!(first.page().unwrap().contains("html"));
}

#[test]
fn a_memory_hog_is_ended_by_its_limit_alone() {
    let hog = "run: [python3, -c, \"x = []\\nwhile True: x.append(bytearray(1 << 20))\"]\n    memory: 32Mi";
    let manifest = PAGE.replace("\nroutes:", &format!("\n  hog:\n    {hog}\n\nroutes:"));
    let mut first = First::with(1, &manifest);
    first.cloud.start().unwrap();
    first.cloud.wait_ready("page", 2, WITHIN);
    let pids = |first: &First| -> Vec<_> {
        let ready = first.cloud.ready("page").unwrap();
        ready.into_iter().map(|one| one.pid).collect()
    };
    let before = pids(&first);
    let limits = first.cloud.say(&["status"]).unwrap_or_default();
    if limits.contains("memory and CPU limits are not enforced") {
        println!("memory limits are not enforced here");
        return;
    }
    first.explained("hog-1", &["out of memory (limit 32Mi)"]);
    assert_eq!(before, pids(&first), "the rest was not touched");
}

#[test]
fn a_killed_proxy_is_started_again() {
    let mut first = First::with(1, PAGE);
    first.cloud.up().unwrap();
    let instances = |first: &First| -> Vec<_> {
        let ready = first.cloud.ready("page").unwrap();
        ready.into_iter().map(|one| (one.name, one.pid)).collect()
    };
    let before = instances(&first);
    for node in ["a", "edge"] {
        let folder = format!("/nodes/{node}/proxy");
        let proxy = first.cloud.processes_with(&["proxy", &folder]);
        assert_eq!(proxy.len(), 1, "node {node} has one proxy: {proxy:?}");
        proc::signal(proxy[0], Signal::KILL).unwrap();
        let another = || match first.cloud.processes_with(&["proxy", &folder]).as_slice() {
            [pid] if *pid != proxy[0] => Ok(()),
            other => Err(format!("proxies of node {node}: {other:?}")),
        };
        wait::until("another proxy runs", BACK_WITHIN, another);
        wait::until("requests are answered again", BACK_WITHIN, || {
            first.page_within(2)
        });
        // Once mended, it stays mended.
        for _ in 0..20 {
            assert!(first.page().unwrap().contains("html"));
        }
    }
    assert_eq!(before, instances(&first), "no instance was touched");
}

#[test]
fn a_directory_has_one_server_and_one_agent() {
    let mut first = First::with(1, PAGE);
    first.cloud.up().unwrap();
    let data = first.cloud.directory.path().join("data");
    let other = system::cloud::free_address().to_string();
    let nodes = system::cloud::free_address().to_string();
    let second = |role: &str, folder: &str, more: &[&str]| {
        let output = std::process::Command::new(&first.cloud.binary)
            .args([role, "--data-dir"])
            .arg(data.join(folder))
            .args(more)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "a second {role}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = second("server", "server", &["--api", &other, "--nodes", &nodes]);
    assert!(said.contains("another server"), "{said}");
    let said = second("agent", "nodes/a", &[]);
    assert!(said.contains("another agent (pid"), "{said}");
    assert_eq!(first.cloud.ready("page").unwrap().len(), 2);
    assert!(first.page().unwrap().contains("html"));
}
