//! Engines: run from a binary that their user could not reach, told anew while they run, asked over a socket.

use std::path::Path;

use model::compute::*;
use model::state::*;
use model::units::{Bytes, Span};
use rustix::process::Signal;

use crate::talk::{command, exec_in};
use crate::world::*;

fn subscription(path: &str) -> Subscription {
    Subscription {
        path: path.to_owned(),
        max_in_flight: 4,
        timeout: Span::seconds(3),
    }
}

fn topic(instance: &str) -> DesiredInstance {
    let mut desired = running(instance, &[]);
    let retention = Retention {
        age: Span::seconds(60),
        size: Bytes::mebibytes(1),
    };
    desired.spec.work = Work::Engine {
        engine: Engine::Topic(Topic {
            attempts: 5,
            retention,
        }),
    };
    desired.spec.health.ask = Ask::Engine;
    let size = Bytes::mebibytes(1);
    desired.spec.volumes = [("data".parse().unwrap(), Volume { size })].into();
    desired.slot = Some(0);
    desired.settings = Some(EngineSettings::default());
    desired
}

fn consumed_by(mut topic: DesiredInstance, consumers: &[&str]) -> DesiredInstance {
    let one = |name: &&str| (name.parse().unwrap(), subscription("/events"));
    topic.settings = Some(EngineSettings {
        subscriptions: consumers.iter().map(one).collect(),
        ..EngineSettings::default()
    });
    topic
}

/// What the engine answers: the request that reached it, and the file it was told by.
async fn ask_engine(node: &Node, path: &str) -> Option<(String, EngineFile)> {
    let answer = node.server.ask_node(path).await?;
    let answer = String::from_utf8(answer.to_vec()).unwrap();
    let (request, rest) = answer.split_once('\n')?;
    let (_, told) = rest.split_once('\n')?;
    Some((request.to_owned(), serde_json::from_str(told).unwrap()))
}

async fn until_told(node: &Node, what: &str, fits: impl Fn(&EngineFile) -> bool) -> EngineFile {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let answer = ask_engine(node, "/v1/instances/shop/events-1/engine/x").await;
        if let Some((_, told)) = answer.filter(|(_, told)| fits(told)) {
            return told;
        }
        assert!(std::time::Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The proxy opens a door once it took the snapshot that names it, which may be after the engine was told.
async fn until_open(door: std::net::SocketAddr) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while let Err(error) = tokio::net::TcpStream::connect(door).await {
        assert!(std::time::Instant::now() < deadline, "{door}: {error}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_engine_runs_from_a_binary_that_its_user_could_not_reach() {
    let hidden = tempfile::tempdir().unwrap();
    set_mode(hidden.path(), 0o700);
    let binary = hidden.path().join("mainland");
    std::fs::copy(BINARY, &binary).unwrap();
    set_mode(&binary, 0o755);
    let mut node = Node::start_from(&binary).await;
    let mut wanted = topic("events-1");
    wanted.secrets = vec![SecretNeed {
        name: "events".parse().unwrap(),
        file: false,
    }];
    node.server.look(|state| {
        let secret = ("events".parse().unwrap(), b"s3cret".to_vec());
        state.secrets.extend([secret]);
    });
    node.server.want(vec![wanted.clone()]);
    // Its own words say why it is not ready.
    let report = node.until_reason("events-1", "reads its log").await;
    assert!(!report.ready, "{report:?}");
    let pid = report.pid.unwrap();
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(
        String::from_utf8(words).unwrap(),
        "mainland\0engine\0topic\0events\0"
    );
    let data = node.directory().join("volumes/shop/events/0/data");
    std::fs::write(data.join("healthy"), "").unwrap();
    node.until_ready("events-1").await;

    let (request, told) = ask_engine(&node, "/v1/instances/shop/events-1/engine/a/b?c=d")
        .await
        .unwrap();
    assert_eq!(request, "GET /a/b?c=d HTTP/1.1");
    assert_eq!(told.secret.as_deref(), Some("s3cret"));
    assert_eq!(told.memory, wanted.spec.memory);
    assert!(told.doors.is_empty());
    let environment = environment(pid);
    assert!(!environment.contains("s3cret"), "{environment}");

    // A consumer comes, with a door for it, and goes; nothing restarts.
    node.server
        .want(vec![consumed_by(wanted.clone(), &["mail", "ship"])]);
    let told = until_told(&node, "two consumers", |told| told.doors.len() == 2).await;
    assert_eq!(told.settings.subscriptions.len(), 2);
    assert_eq!(told.secret.as_deref(), Some("s3cret"));
    for door in told.doors.values() {
        until_open(*door).await;
    }
    node.server
        .want(vec![consumed_by(wanted.clone(), &["ship"])]);
    until_told(&node, "one consumer", |told| told.doors.len() == 1).await;

    // Another agent goes on with it.
    node.kill_agent().await;
    node.start_again();
    node.until("the agent is back", |node| {
        node.server.look(|state| state.watches >= 2)
    })
    .await;
    node.server
        .want(vec![consumed_by(wanted.clone(), &["ship", "sms"])]);

    let told = until_told(&node, "a third consumer", |told| {
        told.doors.contains_key("sms")
    })
    .await;
    assert_eq!(told.secret.as_deref(), Some("s3cret"), "kept over agents");
    let report = node.until_ready("events-1").await;
    assert_eq!((report.pid, report.restarts), (Some(pid), 0));

    // Beside it, `mainland` is the same binary.
    let beside = command(&["mainland", "engine", "beside"]);
    let (said, code) = exec_in(&node, "events-1", &beside, Vec::new()).await;
    let uid = match rustix::process::geteuid().is_root() {
        true => wanted.uid,
        false => rustix::process::getuid().as_raw(),
    };
    assert_eq!((said.trim(), code), (format!("beside {uid}").as_str(), 0));

    signal(pid, Signal::KILL);
    node.until("it is back", |node| {
        let report = node.server.report("events-1");
        report.is_some_and(|report| report.ready && report.pid != Some(pid))
    })
    .await;
    let socket = variable(pid_of(&node), ENGINE_SOCKET);
    assert!(
        socket.len() < 100 && Path::new(&socket).exists(),
        "{socket}"
    );
    let file = variable(pid_of(&node), ENGINE_FILE);
    node.server.want(Vec::new());
    node.until("nothing is left of it", |_| {
        !Path::new(&socket).exists() && !Path::new(&file).exists()
    })
    .await;
}

fn pid_of(node: &Node) -> u32 {
    node.server.report("events-1").unwrap().pid.unwrap()
}

fn environment(pid: u32) -> String {
    let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8(text).unwrap()
}

fn variable(pid: u32, name: &str) -> String {
    let environment = environment(pid);
    let mut all = environment
        .split('\0')
        .filter_map(|entry| entry.split_once('='));
    all.find(|(known, _)| *known == name).unwrap().1.to_owned()
}
