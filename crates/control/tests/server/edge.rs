//! The API's edge: callers that leave, keys that are repeated, floods. What one client does costs no other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::client::{Client, Error, Transport};
use boundary::authority::{Authority, Terms};
use futures_util::StreamExt;
use futures_util::stream;
use model::boundary::{Holder, SpiffeId};
use model::ids::ReleaseNumber;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cloud::*;
use crate::held::{Disk, Held};

async fn held_cloud(directory: &std::path::Path) -> (Cloud, Held) {
    let held = Held::default();
    let memory = Memory::Other(Arc::new(held.clone()));
    let cloud = Cloud::start_with(directory, memory, any(), any()).await;
    (cloud, held)
}

/// A client on a connection of its own.
fn fresh(cloud: &Cloud) -> Client {
    Client::new(
        Transport::Tcp(cloud.file.api),
        Some(cloud.file.token.clone()),
    )
}

async fn releases(cloud: &Cloud) -> usize {
    let all = cloud.client.releases(&project(), &name("web")).await;
    all.unwrap().items.len()
}

#[tokio::test]
async fn a_change_goes_on_though_its_caller_left() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, held) = held_cloud(directory.path()).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    held.set(Disk::Stands("scale/"));
    let client = fresh(&cloud);
    let asked = tokio::spawn(async move { client.scale(&project(), &name("web"), 3).await });
    until("the change is being written", || async {
        (held.waiting() > 0).then_some(())
    })
    .await;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    // The server has seen that the connection ended before the disk works again.
    tokio::time::sleep(Duration::from_millis(50)).await;
    held.set(Disk::Works);
    let record = until("the change and its record", || async {
        let records = cloud.client.audit(50).await.unwrap().items;
        records.into_iter().find(|record| record.action == "scale")
    })
    .await;
    assert_eq!(record.detail, ["replicas: 1 → 3"]);
    let status = cloud.client.status(&project()).await.unwrap();
    assert_eq!(status.services[0].wanted, 3);
}

#[tokio::test]
async fn a_key_is_kept_until_its_outcome_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, held) = held_cloud(directory.path()).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    held.set(Disk::Stands("idempotency/"));
    let client = fresh(&cloud);
    let first =
        tokio::spawn(async move { client.restart(&project(), &name("web"), "one-key").await });
    until("the restart is being written", || async {
        (held.waiting() > 0).then_some(())
    })
    .await;
    first.abort();
    let _ = first.await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let shop = project();
    let again = || async { cloud.client.restart(&shop, &name("web"), "one-key").await };
    assert_eq!(code(again().await), "still-running");
    held.set(Disk::Works);
    let answered = until("the outcome of the first", || async { again().await.ok() }).await;
    assert_eq!(answered.release, ReleaseNumber(2));
    assert_eq!(releases(&cloud).await, 2);
    assert_eq!(again().await.unwrap().release, ReleaseNumber(2));
    assert_eq!(releases(&cloud).await, 2);
}

/// As the owner's commands come: on the API's own port, to who proves what it is.
pub fn pinned(cloud: &Cloud) -> Client {
    let authority = cloud.file.authority.as_deref().unwrap();
    let expect = tls::Expect::Holder(model::boundary::Holder::Server);
    let config = tls::client_config_without_identity(authority, expect, clock());
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let transport = Transport::Tls {
        address: cloud.file.api,
        config: Arc::new(config),
        name: tls::server_name(),
    };
    Client::new(transport, Some(cloud.file.token.clone()))
}

/// Takes one connection, and answers what it was told on it. With an identity it speaks TLS, else it answers in plain text.
async fn impostor(
    address: SocketAddr,
    identity: Option<model::traffic::Identity>,
    authority: String,
) -> Vec<u8> {
    let listener = until("the port is free", || async {
        TcpListener::bind(address).await.ok()
    })
    .await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut told = vec![0; 4096];
    match identity {
        Some(identity) => {
            let auth = tls::ClientAuth::Optional;
            let anyone = tls::Expect::Anyone;
            let config = tls::server_config(&identity, &authority, auth, anyone, clock());
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()));
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return Vec::new();
            };
            let count = stream.read(&mut told).await.unwrap_or(0);
            told.truncate(count);
        }
        None => {
            let count = stream.read(&mut told).await.unwrap();
            told.truncate(count);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")
                .await;
        }
    }
    told
}

#[tokio::test]
async fn whoever_holds_the_address_sees_no_token() {
    let directory = tempfile::tempdir().unwrap();
    let mut cloud = Cloud::start(directory.path()).await;
    // One port for both: scripts go on in plain text.
    pinned(&cloud).projects().await.unwrap();
    cloud.client.projects().await.unwrap();
    let node = cloud.join("a").await;
    let (of_a_node, authority) = (node.identity.clone(), node.authority.clone());
    drop(node);
    cloud.stop().await;
    let stranger = Authority::generate("elsewhere", jiff::Timestamp::now()).unwrap();
    let id = SpiffeId {
        cluster: "elsewhere".to_owned(),
        holder: Holder::Server,
    };
    let of_a_stranger = stranger
        .identity(&id, &Terms::default(), jiff::Timestamp::now())
        .unwrap();
    let impostors = [
        (None, String::new()),
        (Some(of_a_stranger), stranger.certificate().to_owned()),
        // A node of the same cluster is no server.
        (Some(of_a_node), authority),
    ];
    for (identity, authority) in impostors {
        let is_plain = identity.is_none();
        let taken = tokio::spawn(impostor(cloud.file.api, identity, authority));
        let refused = until("the impostor answers", || async {
            match pinned(&cloud).projects().await {
                Err(Error::Unreachable { .. }) => None,
                other => Some(other.unwrap_err()),
            }
        })
        .await;
        assert!(matches!(refused, Error::NotTheServer { .. }), "{refused:?}");
        let told = taken.await.unwrap();
        let text = String::from_utf8_lossy(&told);
        assert!(
            !text.contains("ml_admin") && !text.contains("authorization"),
            "{text}"
        );
        // Of TLS the impostor that can't prove anything is told nothing at all.
        assert_eq!(told.is_empty(), !is_plain);
    }
}

#[tokio::test]
async fn a_key_under_which_nothing_was_done_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, held) = held_cloud(directory.path()).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    let (client, shop, web) = (&cloud.client, project(), name("web"));
    held.set(Disk::Refuses("idempotency/"));
    let refused = client.restart(&shop, &web, "one-key").await;
    assert_eq!(code(refused), "store-unavailable");
    held.set(Disk::Works);
    client.restart(&shop, &web, "one-key").await.unwrap();
    assert_eq!(releases(&cloud).await, 2);
}

/// Bytes of memory that this process has.
pub fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

pub fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// The status that a request without a token is answered, sent as fast as it goes.
async fn shout(address: SocketAddr, head: String, length: usize) -> u16 {
    static CHUNK: [u8; 64 << 10] = [b' '; 64 << 10];
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        writer.write_all(head.as_bytes()).await?;
        for _ in 0..length / CHUNK.len() {
            writer.write_all(&CHUNK).await?;
        }
        // It stays open: who is answered may still have something to send.
        tokio::time::sleep(Duration::from_secs(20)).await;
        Ok::<_, std::io::Error>(())
    });
    let mut status = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(20), reader.read_exact(&mut status)).await;
    sending.abort();
    match read {
        Ok(Ok(_)) => String::from_utf8_lossy(&status[9..]).parse().unwrap_or(0),
        _ => 0,
    }
}

#[tokio::test]
async fn who_shows_no_token_gets_no_memory() {
    raise_descriptors();
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let body = 8 << 20;
    let heads = [
        ("POST", "/v1/join", 401),
        ("POST", "/v1/projects/shop/apply", 401),
        ("PUT", "/v1/projects/shop/secrets/a/value", 401),
    ];
    let before = resident();
    let mut most = before;
    for (method, path, expect) in heads {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {body}\r\n\r\n");
        let all = (0..120).map(|_| shout(cloud.file.api, head.clone(), body));
        let mut all = stream::iter(all).buffer_unordered(120);
        let owner = fresh(&cloud);
        let (mut asked, mut told) = (0, 0);
        while let Some(status) = all.next().await {
            // A client that still sends may see its connection reset rather than the answer.
            assert!(status == expect || status == 0, "{path}: {status}");
            told += usize::from(status == expect);
            most = most.max(resident());
            asked += 1;
            if asked % 20 == 0 {
                owner.projects().await.unwrap();
            }
        }
        assert!(told > 0, "{path}: nobody was told why");
    }
    let grown = (most - before) >> 20;
    println!("3 x 120 bodies of 8 MiB without a token: {grown} MiB more resident");
    assert!(grown < 64, "{grown} MiB");
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    const SILENT: usize = 4_000;
    raise_descriptors();
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    let before = resident();
    let mut silent = Vec::new();
    let mut slowest = Duration::ZERO;
    for index in 0..SILENT {
        for address in [cloud.file.api, cloud.file.nodes] {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Some begin a request and never end it.
        if index % 3 == 0 {
            let last = silent.len() - 2;
            let _ = silent[last].write_all(b"PRI * HT").await;
        }
        if index % 400 == 399 {
            let begun = Instant::now();
            fresh(&cloud).projects().await.unwrap();
            let again = client_as(&node.identity, &node.authority, node.server);
            again.whoami().await.unwrap();
            slowest = slowest.max(begun.elapsed());
        }
    }
    let grown = (resident().saturating_sub(before)) >> 20;
    println!(
        "{} silent connections: {grown} MiB more resident (both ends), the owner's slowest command {slowest:?}",
        silent.len()
    );
    assert!(grown < 200, "{grown} MiB");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert!(cloud.client.health().await.unwrap().ready);
}

/// Every address of loopback is a client of its own.
async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut [0; 1])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn the_busiest_address_gives_up_its_idle_connections() {
    const MANY: usize = 2_300;
    raise_descriptors();
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let api = cloud.file.api;
    // Slow, and no part of the flood.
    let mut slow = connect_from("127.0.0.9", api).await;
    slow.write_all(b"GET /v1/health HTTP/1.1\r\nhost: a\r\nx: ")
        .await
        .unwrap();
    let mut flood = Vec::new();
    for index in 0..MANY {
        flood.push(connect_from("127.0.0.8", api).await);
        if index % 100 == 0 {
            slow.write_all(b"x").await.unwrap();
        }
    }
    until("the oldest of the flood are closed", || async {
        let (mut closed, oldest) = (0, MANY - 2_048);
        for stream in &flood[..oldest] {
            let mut byte = [0; 1];
            let peeked = tokio::time::timeout(Duration::from_millis(1), stream.peek(&mut byte));
            closed += usize::from(matches!(peeked.await, Ok(Ok(0) | Err(_))));
        }
        (closed == oldest).then_some(())
    })
    .await;
    assert!(!is_closed(&mut slow).await);
    slow.write_all(b"\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut told = String::new();
    slow.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
}

#[tokio::test]
async fn who_says_nothing_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let begins: [(SocketAddr, &[u8]); 5] = [
        (cloud.file.api, b""),
        (cloud.file.api, b"PRI * HT"),
        (cloud.file.api, b"GET /v1/health HTTP/1.1\r\nhost:"),
        (cloud.file.api, b"\x16\x03\x01"),
        (cloud.file.nodes, b""),
    ];
    let closed = begins.map(|(address, begin)| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begin).await.unwrap();
            let begun = Instant::now();
            // What it may be told before the end is not looked at.
            let mut told = Vec::new();
            let ended =
                tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut told));
            assert!(ended.await.is_ok(), "{:?}", String::from_utf8_lossy(begin));
            begun.elapsed()
        })
    });
    for after in closed {
        let after = after.await.unwrap();
        assert!(after < Duration::from_secs(20), "{after:?}");
    }
}
