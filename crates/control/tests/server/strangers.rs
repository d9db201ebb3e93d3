//! Those who have not said who they are: what they get, and that they keep nobody else out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use api::client::{Client, Transport};
use boundary::authority::Key;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cloud::*;
use crate::edge::{pinned, raise_descriptors, resident};
use crate::nodes::{renew_with, without_certificate};

/// Asks so many times at once for something, and takes nothing of any answer. Answers how many were answered otherwise than that
/// too much is asked, and whether the connection ended.
async fn asks_and_takes_nothing(
    address: SocketAddr,
    (method, path): (&str, &str),
    times: usize,
) -> (usize, bool) {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(0);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let asked = (0..times).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::builder()
                .method(method)
                .uri(format!("http://mainland{path}"))
                .body(Empty::<Bytes>::new())
                .unwrap();
            sender.send_request(request).await
        }
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut answers = Vec::new();
    while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(5), asked.next()).await {
        let Ok(answer) = answer else { break };
        answers.push(answer);
    }
    // Those that were answered are held; then it is looked whether the connection still is.
    let ended = tokio::time::timeout(Duration::from_secs(5), driver).await;
    let is_served = |answer: &&http::Response<_>| answer.status() != 503;
    (answers.iter().filter(is_served).count(), ended.is_ok())
}

#[tokio::test]
async fn who_takes_no_answer_is_sent_away() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let before = resident();
    for asked in [
        ("GET", "/v1/openapi.json"),
        ("GET", "/v1/projects"),
        ("GET", "/nothing"),
        ("DELETE", "/v1/openapi.json"),
    ] {
        let all = (0..10).map(|_| asks_and_takes_nothing(cloud.file.api, asked, 200));
        let mut all: FuturesUnordered<_> = all.collect();
        while let Some((answers, ended)) = all.next().await {
            assert!(ended && answers <= 64, "{asked:?}: {answers} answers");
        }
    }
    let grown = resident().saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MiB");
    // As many as a client needs are answered, and the owner may have more.
    let (answers, ended) =
        asks_and_takes_nothing(cloud.file.api, ("GET", "/v1/openapi.json"), 20).await;
    assert_eq!((answers, ended), (20, false));
    let many = (0..200).map(|_| cloud.client.projects());
    let mut many: FuturesUnordered<_> = many.collect();
    while let Some(answer) = many.next().await {
        answer.unwrap();
    }
}

/// Sends a head and a piece of its body; answers the status that comes, and when.
async fn begins_a_body(address: SocketAddr, path: &str) -> (u16, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 16000\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(9), stream.read_exact(&mut status)).await;
    let text = String::from_utf8_lossy(&status[9..]).into_owned();
    let status = read.ok().and_then(Result::ok).and(text.parse().ok());
    (status.unwrap_or(0), begun.elapsed())
}

#[tokio::test]
async fn a_body_that_does_not_come_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    // Of a node that there is none of, nothing is read but what is thrown away.
    let (status, after) = begins_a_body(cloud.file.api, "/v1/nodes/nobody/renew").await;
    assert!(
        status == 410 && after < Duration::from_secs(3),
        "{status} {after:?}"
    );

    let slow: Vec<_> = (0..200)
        .map(|_| {
            let address = cloud.file.api;
            tokio::spawn(async move { begins_a_body(address, "/v1/nodes/a/renew").await })
        })
        .collect();
    // They are all begun, and some gave way.
    let mut slow = slow.into_iter().collect::<FuturesUnordered<_>>();
    let (status, _) = slow.next().await.unwrap().unwrap();
    assert_eq!(status, 503);
    let key = Key::from_pem(&node.identity.key).unwrap();
    let begun = Instant::now();
    let (client, ask) = (without_certificate(&node), renew_with(&key, None));
    client.renew(&node.name, &ask).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let (mut displaced, mut late) = (1, 0);
    while let Some(done) = slow.next().await {
        match done.unwrap() {
            (503, _) => displaced += 1,
            (408, after) => {
                assert!(after < Duration::from_secs(6), "{after:?}");
                late += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    // So many bodies are read at once at most.
    assert!(late <= 64, "{displaced} gave way, {late} were given up");
}

/// Opens connections as fast as it can, some silent, some with a byte of this, until told to stop.
fn flood(address: SocketAddr, says: &'static [u8]) -> impl FnOnce() -> usize {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        let (mut open, mut count) = (std::collections::VecDeque::new(), 0);
        while !told.load(Ordering::Relaxed) {
            let wait = Duration::from_millis(200);
            let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, wait) else {
                continue;
            };
            let _ = stream.write_all(says);
            open.push_back(stream);
            count += 1;
            if open.len() > 3_000 {
                open.pop_front();
            }
        }
        count
    });
    move || {
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap()
    }
}

/// The owner's command comes in by a handshake, on the port that the flood has, while it goes on; and so does a node.
#[tokio::test]
async fn a_flood_keeps_no_handshake_out() {
    raise_descriptors();
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    for says in [&b""[..], b"\x16", b"P"] {
        let floods = [cloud.file.api, cloud.file.nodes].map(|address| flood(address, says));
        // All seats are taken, and the oldest connections are no more young.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        for _ in 0..20 {
            let asked = async {
                pinned(&cloud).projects().await.unwrap();
                let again = client_as(&node.identity, &node.authority, node.server);
                again.whoami().await.unwrap();
            };
            let asked = tokio::time::timeout(Duration::from_secs(10), asked).await;
            assert!(asked.is_ok(), "{says:?}: it takes too long");
        }
        let counts = floods.map(|flood| flood());
        println!("{says:?}: {counts:?} connections");
    }
    let nobody = Client::new(Transport::Tcp(cloud.file.api), None);
    assert!(nobody.health().await.unwrap().ready);
}
