//! Uploads that break off: the client's fault, and nobody else's.

use std::io::Read;
use std::net::TcpStream;

use model::traffic::Balance;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// Both directions are closed.
    Fin,
    Reset,
    /// The client still listens.
    HalfClose,
    /// What is no chunk.
    Garbage,
}

const SIZES: [usize; 6] = [0, 1, 3000, 60_000, 70_000, 300_000];
const METHODS: [(&str, &str); 4] = [
    ("PUT", ""),
    ("DELETE", ""),
    ("POST", "Idempotency-Key: k\r\n"),
    ("PATCH", ""),
];

/// One way to break off.
#[derive(Debug, Clone, Copy)]
struct Kind {
    method: (&'static str, &'static str),
    chunked: bool,
    end: End,
}

/// Begins an upload and breaks it off; returns the status of the answer, if one came.
fn cut(to: SocketAddr, kind: Kind, number: usize) -> Option<u16> {
    let Kind {
        method,
        chunked,
        end,
    } = kind;
    let size = SIZES[number % SIZES.len()];
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (method, key) = method;
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {}", size + 10),
    };
    let mut text =
        format!("{method} /{number} HTTP/1.1\r\nHost: web.localhost\r\n{key}{framing}\r\n\r\n");
    if chunked && size > 0 {
        text += &format!("{size:x}\r\n{}\r\n", "x".repeat(size));
    } else {
        text += &"x".repeat(size);
    }
    let _ = stream.write_all(text.as_bytes());
    match end {
        End::Fin => return None,
        End::Reset => {
            let linger = Some(Duration::ZERO);
            socket2::SockRef::from(&stream).set_linger(linger).unwrap();
            return None;
        }
        End::HalfClose => stream.shutdown(Shutdown::Write).unwrap(),
        End::Garbage => drop(stream.write_all(b"zz\r\nnone\r\n")),
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let head = String::from_utf8_lossy(&answer).into_owned();
    head.split(' ').nth(1)?.parse().ok()
}

fn kinds() -> impl Iterator<Item = Kind> {
    let ends = [
        (true, End::Fin),
        (true, End::Reset),
        (true, End::HalfClose),
        (true, End::Garbage),
        (false, End::Fin),
        (false, End::Reset),
        (false, End::HalfClose),
    ];
    METHODS.into_iter().flat_map(move |method| {
        ends.map(|(chunked, end)| Kind {
            method,
            chunked,
            end,
        })
    })
}

/// 200 uploads of each kind through `door`: none is delivered whole, none is sent to a second copy, and both copies stay in good standing.
fn break_off_everywhere(door: SocketAddr, copies: [&Instance; 2]) {
    let whole = || copies.map(Instance::count);
    let mut number = 0;
    let mut begun = Vec::new();
    for kind in kinds() {
        let before = whole();
        for _ in 0..200 {
            number += 1;
            let status = cut(door, kind, number);
            assert!(matches!(status, None | Some(400)), "{kind:?}: {status:?}");
            let listens = matches!(kind.end, End::HalfClose | End::Garbage);
            assert!(status.is_some() || !listens, "{kind:?}: no answer");
        }
        assert_eq!(whole(), before, "{kind:?}: delivered whole");
        for _ in 0..8 {
            assert_eq!(get(door, "web.localhost", "/").status, 200, "{kind:?}");
        }
        let served = [0, 1].map(|copy| whole()[copy] - before[copy]);
        assert_eq!(served[0] + served[1], 8, "{kind:?}: delivered whole, late");
        let blamed = served.iter().any(|&served| served < 2);
        assert!(!blamed, "{kind:?}: a copy was blamed: {served:?}");
        begun.extend(copies.into_iter().flat_map(Instance::begun));
    }
    begun.retain(|line| !line.starts_with("GET"));
    assert!(begun.len() > number / 2, "few uploads were begun at all");
    begun.sort();
    let twice = begun.windows(2).find(|two| two[0] == two[1]);
    assert_eq!(twice, None, "sent to a second copy");
}

/// Who resets does not wait, so that more are on their way than one copy takes by default.
fn never_full(node: &mut Node) {
    for local in &mut node.snapshot.local {
        local.max_in_flight = 4096;
    }
}

#[test]
fn an_upload_that_breaks_off_at_the_gateway_is_nobody_elses_fault() {
    let copies = [Instance::answering("one"), Instance::answering("two")];
    let mut world = web(&copies[0], &copies[1]);
    for node in [&mut world.a, &mut world.b] {
        never_full(node);
        node.apply();
    }
    world.edge.snapshot.destinations[0].traffic.balance = Balance::RoundRobin;
    world.edge.apply();
    break_off_everywhere(world.gateway, [&copies[0], &copies[1]]);
}

#[test]
fn an_upload_that_breaks_off_at_a_door_is_nobody_elses_fault() {
    let authority = Authority::new();
    let copies = [Instance::answering("here"), Instance::answering("there")];
    let mut a = Node::start(&authority, "a");
    let mut b = Node::start(&authority, "b");
    let endpoints = vec![
        a.runs("shop/cart-1", "shop/cart", copies[0].address),
        b.runs("shop/cart-2", "shop/cart", copies[1].address),
    ];
    for node in [&mut a, &mut b] {
        node.lets_in("shop/cart", &["shop/web"], false);
        never_full(node);
    }
    let door = a.door(&authority, "shop/web", "shop/cart", Protocol::Http);
    a.road("shop/cart", endpoints).traffic.balance = Balance::RoundRobin;
    b.apply();
    a.apply();
    break_off_everywhere(door, [&copies[0], &copies[1]]);
}

#[test]
fn a_small_answer_that_breaks_off_is_asked_for_elsewhere() {
    let dying = Instance::start(|_| {
        Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec())
    });
    let good = Instance::answering("good");
    let world = web(&dying, &good);
    for _ in 0..20 {
        assert_eq!(get(world.gateway, "web.localhost", "/").body, "good");
    }
    assert!(dying.count() > 0, "the dying one was never asked");
    let alone = web(&dying, &dying);
    let before = dying.count();
    let refused = post(alone.gateway, "web.localhost", "", "order");
    assert_eq!(refused.status, 502, "{}", refused.body);
    assert_eq!(dying.count() - before, 1, "a POST is not repeated");
}

#[test]
fn a_small_answer_that_takes_its_time_is_begun_all_the_same() {
    let (let_go, gate) = mpsc::sync_channel(0);
    let gate = Arc::new(Mutex::new(gate));
    let slow = Instance::start(move |_| {
        Act::Halves(
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst",
            gate.clone(),
            "later",
        )
    });
    let world = web(&slow, &slow);
    let mut client = Client::connect(world.gateway);
    let began = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
    let head = client.receive_head().unwrap();
    assert!(head.contains("content-length: 10"), "{head}");
    assert_eq!(client.read_exact(5), b"first");
    assert!(began.elapsed() >= Duration::from_millis(100));
    drop(let_go);
    assert_eq!(client.read_exact(5), b"later");
}
