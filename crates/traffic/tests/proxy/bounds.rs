//! What one client, caller or peer can cost the others: nothing beyond its share.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::harness::*;
use super::shop;
use model::traffic::Protocol;

#[test]
fn a_connection_ends_with_its_certificate_and_its_successor_goes_on() {
    let authority = Authority::new();
    let mut shop = shop(&authority, start_tcp_instance(), Protocol::Tcp);
    let mut renew = |identity| {
        let services = &mut shop.a.snapshot.trust.services;
        services.insert(id("shop/web"), identity);
        shop.a.apply();
    };
    let began = Instant::now();
    renew(authority.identity_for("service/shop/web", 4));
    let mut old = Client::connect(shop.door);
    old.send("abc");
    // The tunnel stands before the certificate is renewed: its caller answers nothing until it is written to.
    let mut probe = Client::connect(shop.door);
    probe.send("def");
    probe.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(probe.read_to_end(), b"fed");

    renew(authority.identity("service/shop/web"));
    let mut new = Client::connect(shop.door);
    new.send("xyz");
    let mut byte = [0];
    let cut = old.stream().read(&mut byte);
    assert!(matches!(cut, Ok(0) | Err(_)), "{cut:?}");
    assert!(began.elapsed().as_secs() >= 2, "it was cut too early");
    assert!(began.elapsed() < PATIENCE, "it was never cut");
    new.stream().write_all(b"!").unwrap();
    new.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(new.read_to_end(), b"!zyx");
}

/// A gateway on an edge node, and on node `a` behind the mesh `shop/small` beside one service for each of `others`.
struct Crowd {
    _edge: Node,
    _a: Node,
    gateway: SocketAddr,
}

fn crowd(others: &[(&'static str, &Instance)]) -> Crowd {
    let authority = Authority::new();
    let small = Instance::answering("small");
    let mut edge = Node::start(&authority, "edge");
    let mut a = Node::start(&authority, "a");
    let mut routes = Vec::new();
    for (name, instance) in others.iter().copied().chain([("small", &small)]) {
        let service = format!("shop/{name}");
        let endpoint = a.runs(&format!("{service}-1"), &service, instance.address);
        a.lets_in(&service, &[], true);
        edge.road(&service, vec![endpoint]);
        routes.push((format!("{name}.localhost"), service));
    }
    let routes = routes.iter().map(|(host, to)| (&**host, "/", &**to));
    let gateway = edge.gateway(&routes.collect::<Vec<_>>());
    a.apply();
    edge.apply();
    Crowd {
        _edge: edge,
        _a: a,
        gateway,
    }
}

impl Crowd {
    fn send(&self, text: &str) -> Client {
        let mut client = Client::connect(self.gateway);
        client.send(text);
        client
    }

    /// A service that nobody floods answers as ever, body and all.
    fn others_go_on(&self) {
        for _ in 0..50 {
            let began = Instant::now();
            let answer = get(self.gateway, "small.localhost", "/");
            assert_eq!((answer.status, &*answer.body), (200, "small"));
            assert!(began.elapsed() < Duration::from_secs(2), "others wait");
        }
    }
}

const LARGE: usize = 4 * 1024 * 1024;

#[test]
fn readers_that_do_not_read_stop_nobody_else() {
    let large = Instance::start(|_| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + LARGE, b'x');
        Act::Raw(answer)
    });
    let flood = Instance::start(|_| {
        let mut answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec();
        answer.resize(answer.len() + LARGE, b'x');
        Act::Raw(answer)
    });
    let crowd = crowd(&[("large", &large), ("flood", &flood)]);
    let deaf = |text: &str| {
        let mut client = crowd.send(text);
        client.receive_head().expect("an answer's head");
        client
    };
    let mut readers: Vec<_> = (0..40)
        .map(|_| deaf("GET / HTTP/1.1\r\nHost: large.localhost\r\n\r\n"))
        .collect();
    crowd.others_go_on();
    let upgrade = "GET / HTTP/1.1\r\nHost: flood.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let _tunnels: Vec<_> = (0..40).map(|_| deaf(upgrade)).collect();
    crowd.others_go_on();
    // What waited is still whole.
    let body = readers.pop().unwrap().read_exact(LARGE);
    assert!(body.iter().all(|byte| *byte == b'x'));
}

#[test]
fn uploads_that_nobody_reads_stop_nobody_else() {
    let deaf = TcpListener::bind(free_address()).unwrap();
    let instance = Instance::nobody_reads(&deaf);
    let crowd = crowd(&[("deaf", &instance)]);
    let head =
        format!("POST / HTTP/1.1\r\nHost: deaf.localhost\r\nContent-Length: {LARGE}\r\n\r\n");
    let _writers: Vec<_> = (0..40)
        .map(|_| {
            let mut client = crowd.send(&head);
            let stream = client.stream();
            stream.set_nonblocking(true).unwrap();
            let chunk = [b'x'; 64 * 1024];
            // As much as goes.
            while stream.write(&chunk).is_ok() {}
            client
        })
        .collect();
    crowd.others_go_on();
}

#[test]
fn a_long_body_comes_whole_however_it_is_sent() {
    let instance = Instance::start(|seen| {
        assert_eq!(header(&seen.head, "mainland-ticket"), None);
        assert!(seen.body.iter().all(|byte| *byte == b'x'));
        Act::Raw(format!("HTTP/1.1 200 OK\r\n\r\n{}", seen.body.len()).into_bytes())
    });
    let crowd = crowd(&[("count", &instance)]);
    for bytes in [1, 48 * 1024, 64 * 1024, 1 << 20, 10 << 20] {
        let body = "x".repeat(bytes);
        for (framing, body) in [
            (format!("Content-Length: {bytes}"), body.clone()),
            (
                "Transfer-Encoding: chunked".to_owned(),
                format!("{bytes:x}\r\n{body}\r\n0\r\n\r\n"),
            ),
        ] {
            let head = format!(
                "POST / HTTP/1.1\r\nHost: count.localhost\r\nConnection: close\r\n{framing}\r\n\r\n"
            );
            let mut client = crowd.send(&head);
            client.send(&body);
            let answer = String::from_utf8(client.read_to_end()).unwrap();
            assert!(answer.contains(&bytes.to_string()), "{framing}: {answer}");
        }
    }
}
