//! What can be asked of a node, on the machine and through the tunnel.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::stream::Frame;
use api::wire;
use bytes::Bytes;
use futures_util::StreamExt;
use model::compute::InstanceState::{Pending, Starting};
use model::signals::{LogLine, Stream};

use crate::world::{Node, is_alive, running, web};

fn frames(
    exec: &wire::Exec,
    more: Vec<Frame>,
) -> impl futures_util::Stream<Item = Bytes> + Send + 'static {
    let head = Frame::Head(serde_json::to_vec(exec).unwrap().into());
    let sent: Vec<Bytes> = std::iter::once(head)
        .chain(more)
        .map(|frame| frame.encode())
        .collect();
    futures_util::stream::iter(sent).chain(futures_util::stream::pending())
}

pub fn command(words: &[&str]) -> wire::Exec {
    wire::Exec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        terminal: false,
        size: None,
        kind: None,
    }
}

async fn exec(node: &Node, exec: &wire::Exec, more: Vec<Frame>) -> (String, i32) {
    exec_in(node, "web-1", exec, more).await
}

pub async fn exec_in(
    node: &Node,
    instance: &str,
    exec: &wire::Exec,
    more: Vec<Frame>,
) -> (String, i32) {
    let client = node.socket();
    let path = format!("/v1/instances/shop/{instance}/exec");
    let mut answer = client.duplex(&path, frames(exec, more)).await.unwrap();
    let mut said = Vec::new();
    loop {
        match answer.next().await.expect("an end").unwrap() {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => said.extend_from_slice(&bytes),
            Frame::Exit { code } => return (String::from_utf8_lossy(&said).into_owned(), code),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_command_runs_beside_the_instance_as_its_user() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    let script = "read line; echo $line $MAINLAND_INSTANCE; id -u; pwd; exit 7";
    let typed = || {
        vec![
            Frame::Stdin(Bytes::from_static(b"hello\n")),
            Frame::StdinClosed,
        ]
    };
    let (said, code) = exec(&node, &command(&["sh", "-c", script]), typed()).await;
    let uid = if rustix::process::geteuid().is_root() {
        70_123
    } else {
        rustix::process::geteuid().as_raw()
    };
    let work = node
        .directory()
        .join("instances/shop/web-1/work")
        .canonicalize()
        .unwrap();
    assert_eq!(said, format!("hello web-1\n{uid}\n{}\n", work.display()));
    assert_eq!(code, 7);

    // An agent that has only adopted it finds the environment as well.
    node.kill_agent().await;
    node.start_again();
    node.until("the socket", |node| {
        std::os::unix::net::UnixStream::connect(node.directory().join("node.sock")).is_ok()
    })
    .await;
    let (said, code) = exec(&node, &command(&["sh", "-c", "echo $GREETING"]), vec![]).await;
    assert_eq!((said.as_str(), code), ("hello from web-1\n", 0));
}

#[tokio::test]
async fn a_terminal_is_a_terminal_and_a_lost_client_ends_the_command() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    let mut ask = command(&["sh", "-c", "test -t 0 && test -t 1 && stty size"]);
    (ask.terminal, ask.size) = (true, Some((100, 30)));
    let (said, code) = exec(&node, &ask, vec![]).await;
    assert_eq!((said.trim(), code), ("30 100", 0));

    let client = node.socket();
    let ask = command(&["sh", "-c", "echo $$; sleep 1000"]);
    let (typing, typed) = tokio::sync::mpsc::channel::<Bytes>(1);
    let typed = futures_util::stream::unfold(typed, |mut typed| async move {
        Some((typed.recv().await?, typed))
    });
    let head = Frame::Head(serde_json::to_vec(&ask).unwrap().into()).encode();
    let sent = futures_util::stream::iter([head]).chain(typed);
    let mut answer = client
        .duplex("/v1/instances/shop/web-1/exec", sent)
        .await
        .unwrap();
    let Some(Ok(Frame::Stdout(pid))) = answer.next().await else {
        panic!("no pid")
    };
    let pid: u32 = String::from_utf8_lossy(&pid).trim().parse().unwrap();
    assert!(is_alive(pid));
    drop((answer, client, typing));
    node.until("the command ended", |_| !is_alive(pid)).await;
}

#[tokio::test]
async fn logs_are_read_and_followed() {
    let node = Node::start().await;
    let script = "echo one; echo two >&2; sleep 0.3; echo three; sleep 1000";
    node.server
        .want(vec![running("job-1", &["sh", "-c", script])]);
    let client = node.socket();
    node.until("it runs", |node| {
        node.server
            .report("job-1")
            .is_some_and(|report| report.pid.is_some())
    })
    .await;
    let path = "/v1/instances/shop/job-1/logs?tail=10&follow=true";
    let mut lines = client.watch::<LogLine>(path).await.unwrap();
    let mut found = Vec::new();
    while found.len() < 3 {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next())
            .await
            .expect("a line in time");
        let line = line.unwrap().unwrap();
        if line.stream != Stream::Shim {
            found.push((line.stream, line.text));
        }
    }
    assert_eq!(found[2], (Stream::Stdout, "three".to_owned()));
    assert!(
        found[..2].contains(&(Stream::Stderr, "two".to_owned())),
        "{found:?}"
    );

    let last = client
        .watch::<LogLine>("/v1/projects/shop/instances/job-1/logs?tail=1")
        .await
        .unwrap();
    assert_eq!(
        last.collect::<Vec<_>>().await.len(),
        1,
        "not followed: it ends"
    );
}

/// What a person runs has spoken to them: its output pushes out that of no copy.
#[tokio::test]
async fn what_people_run_leaves_no_output_behind() {
    let node = Node::start().await;
    let mut run = running("job-2", &["sleep", "1000"]);
    run.purpose = model::compute::Purpose::Run;
    let copy = web("job-1");
    node.server.want(vec![copy, run]);
    let log = |name: &str| {
        node.directory()
            .join("instances/shop")
            .join(name)
            .join("logs")
    };
    node.until("both have begun", |node| {
        let began = |name| {
            let report = node.server.report(name);
            report.is_some_and(|report| !matches!(report.state, Pending | Starting))
        };
        ["job-1", "job-2"]
            .into_iter()
            .all(|name| began(name) && log(name).exists())
    })
    .await;
    node.server.want(Vec::new());
    let kept = |name: &str| node.directory().join(format!("gone/shop.{name}"));
    node.until("both are gone", |node| {
        let instances = node.directory().join("instances/shop");
        let mut left = ["job-1", "job-2"].into_iter();
        left.all(|name| !instances.join(name).exists())
    })
    .await;
    assert!(kept("job-1").exists());
    assert!(!kept("job-2").exists());
}

#[tokio::test]
async fn what_is_followed_ends_after_its_last_line() {
    let node = Node::start().await;
    let script = "trap 'for i in 1 2 3 4 5 6 7 8 9; do echo last-$i; done; exit 0' TERM; echo first; while :; do sleep 0.05; done";
    node.server
        .want(vec![running("job-1", &["sh", "-c", script])]);
    let client = node.socket();
    node.until("it runs", |node| {
        let report = node.server.report("job-1");
        report.is_some_and(|report| report.pid.is_some())
    })
    .await;
    let path = "/v1/instances/shop/job-1/logs?tail=1000&follow=true";
    let mut lines = client.watch::<LogLine>(path).await.unwrap();
    let mut found = Vec::new();
    let all = async {
        while let Some(line) = lines.next().await {
            let line = line.unwrap();
            if line.stream == Stream::Shim {
                continue;
            }
            if found.is_empty() {
                node.server.want(Vec::new());
            }
            found.push(line.text);
        }
    };
    let ended = tokio::time::timeout(crate::world::PATIENCE, all).await;
    ended.expect("what is followed ends with its instance");
    let last = (1..=9).map(|number| format!("last-{number}"));
    let expected: Vec<_> = std::iter::once("first".to_owned()).chain(last).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn the_servers_ask_through_the_tunnel() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    let status = loop {
        if let Some(answer) = node.server.ask_node("/v1/status").await {
            break serde_json::from_slice::<wire::NodeStatus>(&answer).unwrap();
        }
        assert!(std::time::Instant::now() < deadline, "a tunnel");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((status.node.as_str(), status.connected), ("a", true));
    assert_eq!(status.instances[0].name.as_str(), "web-1");

    let unknown = node
        .socket()
        .get::<serde_json::Value>("/v1/instances/shop/nobody-1/logs")
        .await;
    assert_eq!(unknown.unwrap_err().code(), Some("not-found"));
}

/// Bytes for a command, counted as they are taken; it never ends.
fn counted(exec: &wire::Exec, taken: &Arc<AtomicUsize>) -> api::client::Body {
    let head = Frame::Head(serde_json::to_vec(exec).unwrap().into()).encode();
    let piece = Frame::Stdin(Bytes::from(vec![b'x'; api::stream::FRAME_MAX_BYTES])).encode();
    let taken = taken.clone();
    let pieces = futures_util::stream::repeat_with(move || {
        taken.fetch_add(1, Ordering::Relaxed);
        piece.clone()
    });
    api::client::streamed(futures_util::stream::iter([head]).chain(pieces))
}

/// What one command does not read, and what many follow, stops nothing else that goes through the tunnel.
#[tokio::test]
async fn nobody_in_the_tunnel_stops_others() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    let exec = "/v1/instances/shop/web-1/exec";
    let taken = Arc::new(AtomicUsize::new(0));
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    let _deaf = loop {
        let body = counted(&command(&["sleep", "86400"]), &taken);
        if let Some(deaf) = node.server.converse_with_node(exec, body).await {
            break deaf;
        }
        assert!(std::time::Instant::now() < deadline, "a tunnel");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let mut before = usize::MAX;
    while std::mem::replace(&mut before, taken.load(Ordering::Relaxed)) != before || before == 0 {
        assert!(std::time::Instant::now() < deadline, "its windows fill");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let mut follow = Vec::new();
    for _ in 0..250 {
        let path = "/v1/instances/shop/web-1/logs?follow=true";
        follow.push(node.server.begin_to_ask_node(path));
    }
    let said = vec![
        Frame::Stdin(Bytes::from_static(b"heard\n")),
        Frame::StdinClosed,
    ];
    let body = api::client::streamed(frames(&command(&["cat"]), said));
    let heard = async {
        let mut answer = node.server.converse_with_node(exec, body).await.unwrap();
        let mut out = Vec::new();
        while let Some(Ok(frame)) = answer.next().await {
            match frame {
                Frame::Stdout(bytes) => out.extend_from_slice(&bytes),
                Frame::Exit { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        out
    };
    let heard = tokio::time::timeout(Duration::from_secs(10), heard).await;
    assert_eq!(heard.expect("another command is heard"), b"heard\n");
}
