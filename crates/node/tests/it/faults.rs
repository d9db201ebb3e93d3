//! What goes wrong is said in words that help, and the rest runs.

use bytes::Bytes;
use compute::artifact::digest_of;
use model::compute::{ArtifactForm, ArtifactRef, ExitHow, InstanceState, Work};
use model::ids::Digest;
use model::signals::Level;

use crate::world::{BINARY, Node, ask, program, running, web};

fn with_artifact(
    node: &Node,
    instance: &str,
    contents: &'static [u8],
    digest: Option<Digest>,
) -> model::compute::DesiredInstance {
    let (found, size) = digest_of(contents).unwrap();
    let digest = digest.unwrap_or(found);
    node.server
        .look(|state| state.artifacts.insert(digest, Bytes::from_static(contents)));
    let mut desired = web(instance);
    desired.spec.work = Work::Process {
        run: vec!["./serve".to_owned(), program().to_owned()],
        artifact: Some(ArtifactRef {
            digest,
            form: ArtifactForm::File {
                name: "serve".to_owned(),
                executable: true,
            },
            size: model::units::Bytes(size),
        }),
    };
    desired
}

const SCRIPT: &[u8] = b"#!/bin/sh\nexec \"$1\" web\n";

#[tokio::test]
async fn an_artifact_is_fetched_verified_and_run() {
    let node = Node::start().await;
    node.server
        .want(vec![with_artifact(&node, "web-1", SCRIPT, None)]);
    let report = node.until_ready("web-1").await;
    assert_eq!(ask(&report, "/").await, "web-1");

    // Spoiled on this node's disk: discarded, fetched again, run.
    let (digest, _) = digest_of(SCRIPT).unwrap();
    let path = node.directory().join("artifacts/sha256").join(digest.hex());
    std::fs::write(&path, "spoiled!").unwrap();
    let second = with_artifact(&node, "web-2", SCRIPT, None);
    node.server
        .want(vec![with_artifact(&node, "web-1", SCRIPT, None), second]);
    let report = node.until_ready("web-2").await;
    assert_eq!(ask(&report, "/").await, "web-2");
    let corrupt = |node: &Node| {
        node.server.look(|state| {
            state
                .events
                .iter()
                .any(|event| event.reason.code == "corrupt-artifact")
        })
    };
    node.until("said so", corrupt).await;
}

#[tokio::test]
async fn instances_of_one_artifact_do_not_disturb_each_other() {
    let node = Node::start().await;
    let names: Vec<String> = (1..=8).map(|number| format!("web-{number}")).collect();
    let all = names
        .iter()
        .map(|name| with_artifact(&node, name, SCRIPT, None));
    node.server.want(all.collect());
    for name in &names {
        let report = node.until_ready(name).await;
        assert_eq!(report.last_exit, None, "{name} was started twice");
    }
}

#[tokio::test]
async fn a_server_with_wrong_bytes_is_not_believed() {
    let node = Node::start().await;
    let other = digest_of(&b"other"[..]).unwrap().0;
    node.server.want(vec![
        with_artifact(&node, "web-1", SCRIPT, Some(other)),
        web("web-2"),
    ]);
    let report = node.until_reason("web-1", "not started").await;
    assert!(matches!(
        report.last_exit.unwrap().how,
        ExitHow::NotStarted { .. }
    ));
    node.until_ready("web-2").await;
}

#[tokio::test]
async fn what_cannot_be_executed_is_named() {
    let node = Node::start().await;
    let mut wrong_name = with_artifact(&node, "wrong-1", SCRIPT, None);
    if let Work::Process { run, .. } = &mut wrong_name.spec.work {
        run[0] = "./server".to_owned();
    }
    let nowhere = running("nowhere-1", &["no-such-program"]);
    node.server.want(vec![wrong_name, nowhere, web("web-1")]);
    node.until_reason("wrong-1", "./server").await;
    node.until_reason("nowhere-1", "no-such-program").await;
    let web = node.until_ready("web-1").await;
    assert_eq!(web.state, InstanceState::Running, "the rest runs");
}

#[tokio::test]
async fn a_crash_loop_is_called_one() {
    let node = Node::start().await;
    node.server
        .want(vec![running("job-1", &["sh", "-c", "echo no; exit 3"])]);
    let report = node.until_reason("job-1", "crash loop: exit code 3").await;
    assert_eq!(report.last_exit.unwrap().how, ExitHow::Code { code: 3 });
    assert!(report.restarts >= 4);
}

#[tokio::test]
async fn an_instance_over_its_memory_is_told_so() {
    let node = Node::start().await;
    if node
        .status()
        .await
        .unwrap()
        .limits
        .iter()
        .any(|limit| limit.contains("memory"))
    {
        eprintln!("memory limits are not enforced on this machine: not tested");
        return;
    }
    // It keeps what may be the last line, and there is no end of it.
    node.server
        .want(vec![running("eater-1", &["tail", "/dev/zero"])]);
    node.until_reason("eater-1", "out of memory (limit 64Mi)")
        .await;
}

#[tokio::test]
async fn what_listens_elsewhere_is_told_where() {
    let node = Node::start().await;
    // A child of the shell listens, at a port of its own choice.
    let elsewhere = format!("PORT=0 {} web; true", program());
    node.server
        .want(vec![running("web-1", &["sh", "-c", &elsewhere])]);
    let told = "its health probe fails: connection refused, while it listens at 127.0.0.1:";
    let report = node.until_reason("web-1", told).await;
    let reason = report.reason.unwrap();
    let (_, port) = reason.message.rsplit_once(':').unwrap();
    let found = format!("127.0.0.1:{port}").parse::<std::net::SocketAddr>();
    std::net::TcpStream::connect(found.unwrap()).expect("it is there");
}

#[tokio::test]
async fn a_secret_without_a_value_is_waited_for() {
    let node = Node::start().await;
    let mut web = web("web-1");
    let name: model::ids::ResourceName = "token".parse().unwrap();
    web.spec.needs.insert(name.clone(), Default::default());
    web.secrets = vec![model::compute::SecretNeed { name, file: false }];
    node.server.want(vec![web]);
    let lacks =
        "waits for secret token: it has no value; `mainland secret set token -p shop` gives it one";
    let waits = node.until_reason("web-1", lacks).await;
    assert_eq!(waits.state, InstanceState::Pending);
    assert_eq!(waits.reason.unwrap().code, "waits-for-secret");

    // It asks again and again; that is no news, and no failure.
    let asked = node.server.look(|state| state.asked_secrets);
    node.until("asked again", |node| {
        node.server.look(|state| state.asked_secrets) >= asked + 3
    })
    .await;
    let told = node.server.look(|state| {
        let events = state.events.iter();
        // The disk below may be as full as it is.
        events
            .map(|event| event.reason.code.clone())
            .filter(|code| !code.starts_with("disk-"))
            .collect::<Vec<_>>()
    });
    assert_eq!(told, ["waits-for-secret"]);
    node.server.look(|state| {
        state
            .secrets
            .insert("token".parse().unwrap(), b"s3cret".to_vec())
    });
    let ready = node.until_ready("web-1").await;
    assert_eq!((ready.restarts, &ready.last_exit), (0, &None));
    assert!(ask(&ready, "/env").await.contains("s3cret"));
}

#[tokio::test]
async fn what_the_proxy_cannot_do_is_said_while_it_lasts() {
    let mut node = Node::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = taken.local_addr().unwrap();
    node.kill_agent().await;
    let config = node.directory().join("agent.json");
    let mut given: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    given["gateway"] = gateway.to_string().into();
    std::fs::write(&config, given.to_string()).unwrap();
    node.start_again();
    let refusals = |node: &Node| {
        node.server.look(|state| {
            let events = state.events.iter();
            let refusals = events.filter(|event| event.reason.code == "proxy-refused");
            refusals.cloned().collect::<Vec<_>>()
        })
    };
    node.until("said so", |node| !refusals(node).is_empty())
        .await;
    // Refused again with the next snapshot, which is no news.
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    let said = refusals(&node);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!((said[0].level, &said[0].instance), (Level::Error, &None));
    let message = &said[0].reason.message;
    assert!(message.contains(&gateway.to_string()), "{message}");

    let limits = async || node.status().await.unwrap().limits;
    assert!(limits().await.contains(message), "{:?}", limits().await);
    drop(taken);
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    while limits().await.contains(message) {
        assert!(std::time::Instant::now() < deadline, "it is over");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_taken_port_is_passed_over() {
    let node = Node::start().await;
    let config = std::fs::read_to_string(node.directory().join("agent.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let (first, last) = config["ports"].as_str().unwrap().split_once('-').unwrap();
    let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
    // The last is the mesh's; all but one of the rest are somebody else's.
    let _held: Vec<_> = (first..last - 1)
        .filter_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok())
        .collect();
    node.server.want(vec![web("web-1"), web("web-2")]);
    let ready = |node: &Node| {
        ["web-1", "web-2"]
            .iter()
            .filter(|name| node.server.report(name).is_some_and(|one| one.ready))
            .count()
    };
    node.until("one of them", |node| ready(node) == 1).await;
    let full = |node: &Node| {
        let reasons =
            ["web-1", "web-2"].map(|name| node.server.report(name).and_then(|one| one.reason));
        reasons
            .into_iter()
            .flatten()
            .any(|reason| reason.message.contains("is free on this node"))
    };
    node.until("the other says why not", full).await;
}

#[tokio::test]
async fn one_directory_has_one_agent_and_one_node() {
    let node = Node::start().await;
    let second = std::process::Command::new(BINARY)
        .arg("agent")
        .arg(node.directory())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success());
    assert!(
        said.contains(&format!("another agent (pid {})", node.agent.id().unwrap())),
        "{said}"
    );

    let empty = tempfile::tempdir().unwrap();
    let unnamed = std::process::Command::new(BINARY)
        .arg("agent")
        .arg(empty.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&unnamed.stderr);
    assert!(said.contains("its first start needs `--name`"), "{said}");
}

/// A disk that is full, or is mounted read-only for a while: what should stop must, and nobody may believe that a restart would know of it.
#[tokio::test]
async fn what_a_disk_refuses_to_keep_is_followed_and_not_called_taken() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1"), web("web-2")]);
    node.until_ready("web-1").await;
    let leaves = node.until_ready("web-2").await;
    let is_taken = |node: &Node| {
        let wanted = node.server.generation();
        node.server
            .look(|state| state.acknowledged == wanted && state.unkept.is_none())
    };
    node.until("it is taken", is_taken).await;
    let before = node.server.generation();

    // What is kept of the desired state is written beside and renamed over; here it can't be.
    let in_the_way = node.directory().join("desired.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    node.server.want(vec![web("web-1"), web("web-3")]);
    node.until_ready("web-3").await;
    node.until("what is to stop does", |node| {
        node.server.report("web-2").is_none() && !crate::world::is_alive(leaves.pid.unwrap())
    })
    .await;
    node.until("it is said why", |node| {
        let unkept = node.server.look(|state| state.unkept.clone());
        unkept.is_some_and(|reason| {
            reason.code == "disk-refuses" && reason.message.contains("from memory alone")
        })
    })
    .await;
    assert_eq!(node.server.look(|state| state.acknowledged), before);
    let of_it = |node: &Node| {
        let is_it = |event: &&model::control::NodeEvent| event.reason.code == "disk-refuses";
        node.server
            .look(|state| state.events.iter().filter(is_it).count())
    };
    node.until("it is an event", |node| of_it(node) == 1).await;

    std::fs::remove_dir(&in_the_way).unwrap();
    node.until("it is taken once it is on the disk", is_taken)
        .await;
    let kept = std::fs::read(node.directory().join("desired.json")).unwrap();
    let kept: model::control::NodeDesired = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept.generation, node.server.generation());
    assert_eq!(of_it(&node), 1, "said once, however often it is tried");
}

/// A small disk of the node's own.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(place: &std::path::Path) -> Self {
        std::fs::create_dir(place).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m,mode=711", "none"])
            .arg(place)
            .status();
        assert!(mount.unwrap().success());
        Self(place.to_owned())
    }

    /// To the last byte.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        for length in [1 << 16, 4096, 1] {
            while file.write_all(&vec![7; length]).is_ok() {}
        }
    }

    /// What came free meanwhile.
    fn fill_again(&self) {
        use std::io::Write;
        let file = std::fs::File::options()
            .append(true)
            .open(self.0.join("filler"));
        let mut file = file.unwrap();
        for length in [1 << 16, 4096, 1] {
            while file.write_all(&vec![7; length]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let umount = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        drop(umount);
    }
}

#[tokio::test]
async fn a_node_whose_disk_is_full_still_stops_things() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no small disk can be mounted, and nothing is tested");
        return;
    }
    let mut small = None;
    let binary = std::path::Path::new(BINARY);
    let mut node = Node::start_after(binary, |place| small = Some(Small::mount(place))).await;
    let small = small.unwrap();
    node.server.want(vec![web("web-1"), web("web-2")]);
    let stays = node.until_ready("web-1").await;
    let leaves = node.until_ready("web-2").await;
    node.until("it is taken", |node| {
        let wanted = node.server.generation();
        node.server.look(|state| state.acknowledged == wanted)
    })
    .await;
    small.fill();
    node.server.want(vec![web("web-1")]);
    node.until("it stops", |node| {
        node.server.report("web-2").is_none() && !crate::world::is_alive(leaves.pid.unwrap())
    })
    .await;
    node.until("it is said why", |node| {
        let unkept = node.server.look(|state| state.unkept.clone());
        unkept.is_some_and(|reason| reason.message.contains("No space left"))
    })
    .await;
    assert_eq!(ask(&stays, "/").await, "web-1", "what runs goes on");
    let acknowledged = node.server.look(|state| state.acknowledged);
    assert!(
        acknowledged < node.server.generation(),
        "nobody believes it"
    );

    // Nor does an agent that begins then: it is heard again, and goes on from what servers tell it.
    node.kill_agent().await;
    small.fill_again();
    node.server.want(vec![web("web-2")]);
    node.server.look(|state| state.reports.clear());
    node.start_again();
    node.until("another agent stops things", |node| {
        node.server.report("web-1").is_none()
            && node.server.report("web-2").is_some()
            && !crate::world::is_alive(stays.pid.unwrap())
    })
    .await;
    small.make_room();
    node.until("it is taken once there is room", |node| {
        let wanted = node.server.generation();
        node.server
            .look(|state| state.acknowledged == wanted && state.unkept.is_none())
    })
    .await;
    drop(node);
    drop(small);
}

/// A disk that stands still must not keep what is told later from being followed.
#[tokio::test]
async fn what_is_wanted_is_followed_while_the_disk_stands_still() {
    let node = Node::start().await;
    // Whoever opens it to write waits until somebody reads.
    let fifo = node.directory().join("desired.json.new");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let before = node.server.look(|state| state.acknowledged);
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    node.server.want(Vec::new());
    node.until("it stops", |node| node.server.report("web-1").is_none())
        .await;
    assert_eq!(node.server.look(|state| state.acknowledged), before);
    // As a disk that goes on: the write ends, and what came meanwhile is written next.
    let reader = std::fs::File::open(&fifo).unwrap();
    // The writer may have put it in its place by now.
    let _ = std::fs::remove_file(&fifo);
    drop(reader);
    node.until("it is taken", |node| {
        let wanted = node.server.generation();
        node.server.look(|state| state.acknowledged == wanted)
    })
    .await;
}
