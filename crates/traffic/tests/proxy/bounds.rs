//! What one client, caller or peer can cost the others: nothing beyond its share.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::hanging::pass;
use super::harness::*;
use super::{shop, shop_of};
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
    authority: Authority,
    edge: Node,
    a: Node,
    gateway: SocketAddr,
}

fn crowd(others: &[(&'static str, &Instance)]) -> Crowd {
    crowd_of(Node::start, others)
}

/// With few descriptors for each proxy.
fn small_crowd(others: &[(&'static str, &Instance)]) -> Crowd {
    crowd_of(Node::start_small, others)
}

fn crowd_of(
    start: impl Fn(&Authority, &str) -> Node,
    others: &[(&'static str, &Instance)],
) -> Crowd {
    let authority = Authority::new();
    let small = Instance::answering("small");
    let mut edge = start(&authority, "edge");
    let mut a = start(&authority, "a");
    let mut routes = Vec::new();
    for (name, instance) in others.iter().copied().chain([("small", &small)]) {
        let service = format!("shop/{name}");
        let endpoint = a.runs(&format!("{service}-1"), &service, instance.address);
        a.lets_in(&service, &[], true);
        edge.road(&service, vec![endpoint]).traffic.max_in_flight = 64;
        routes.push((format!("{name}.localhost"), service));
    }
    let routes = routes.iter().map(|(host, to)| (&**host, "/", &**to));
    let gateway = edge.gateway(&routes.collect::<Vec<_>>());
    a.apply();
    edge.apply();
    Crowd {
        authority,
        edge,
        a,
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
    let deaf = |from, text: &str| {
        let mut client = Client::connect_from(from, crowd.gateway);
        client.send(text);
        client.receive_head().expect("an answer's head");
        client
    };
    let mut readers: Vec<_> = (0..40)
        .map(|n| {
            let get = "GET / HTTP/1.1\r\nHost: large.localhost\r\n\r\n";
            deaf(2 + n % 2, get)
        })
        .collect();
    crowd.others_go_on();
    let upgrade = "GET / HTTP/1.1\r\nHost: flood.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let _tunnels: Vec<_> = (0..40).map(|n| deaf(2 + n % 2, upgrade)).collect();
    crowd.others_go_on();
    // What waited is still whole.
    let body = readers.pop().unwrap().read_exact(LARGE);
    assert!(body.iter().all(|byte| *byte == b'x'));
}

/// Far more than a worker serves itself: requests, and upgrades, over the mesh.
#[test]
fn all_that_one_client_asks_for_on_many_connections_is_answered() {
    let plain = Instance::answering("plain");
    let socket = Instance::start(|_| {
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        Act::Raw(switch.to_vec())
    });
    let crowd = crowd(&[("plain", &plain), ("socket", &socket)]);
    let connect = |_| Client::connect_from(2, crowd.gateway);
    let mut clients: Vec<_> = (0..200).map(connect).collect();
    for _ in 0..2 {
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: plain.localhost\r\n\r\n");
        }
        for client in &mut clients {
            let answer = client.receive().expect("an answer");
            assert_eq!((answer.status, &*answer.body), (200, "plain"));
        }
        crowd.others_go_on();
    }
    let upgrade = "GET / HTTP/1.1\r\nHost: socket.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    // As many as one client may have of such a service.
    for client in &mut clients[100..120] {
        client.send(upgrade);
        let head = client.receive_head().expect("an answer's head");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert_eq!(client.read_exact(5), b"hello");
    }
    crowd.others_go_on();
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

/// A service whose copy takes so many at a time, and which is asked for what takes long.
const PLACES: usize = 64;

fn long_or_short(seen: &Seen) -> Act {
    if !seen.head.contains(" /long ") {
        return Act::Answer("short");
    }
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + LARGE, b'x');
    Act::Raw(answer)
}

#[test]
fn one_client_takes_half_of_a_service_and_the_others_have_the_rest() {
    let busy = Instance::start(long_or_short);
    let crowd = crowd(&[("busy", &busy)]);
    let ask = |from, text: &str| {
        let mut client = Client::connect_from(from, crowd.gateway);
        client.send(text);
        client
    };
    for (line, greedy) in [
        ("GET /long", "\r\n"),
        ("POST /", "Content-Length: 100\r\n\r\nx"),
    ] {
        let greedy = format!("{line} HTTP/1.1\r\nHost: busy.localhost\r\n{greedy}");
        let _held: Vec<_> = (0..2 * PLACES).map(|_| ask(2, &greedy)).collect();
        let mut begun = 0;
        let mut has_begun = || {
            let lines = busy.begun();
            begun += lines.iter().filter(|it| it.starts_with(line)).count();
            begun
        };
        // It is counted from a quarter on, which others may have been part of.
        eventually("it has much", || has_begun() >= PLACES / 4);
        for _ in 0..20 {
            let began = Instant::now();
            let get = "GET / HTTP/1.1\r\nHost: busy.localhost\r\n\r\n";
            let answer = ask(3, get).receive().expect("an answer");
            assert_eq!((answer.status, &*answer.body), (200, "short"), "{greedy}");
            assert!(began.elapsed() < Duration::from_secs(2), "{greedy}");
        }
        // Each worker may take one more at the moment when places become scarce.
        assert!(has_begun() <= PLACES / 2 + 2, "{greedy}");
    }
}

/// Who has its share waits for it, however many requests come at once.
#[test]
fn a_burst_of_one_client_waits_for_its_share_and_is_served() {
    let (let_go, gate) = mpsc::sync_channel(0);
    let gate = Arc::new(Mutex::new(gate));
    let busy = Instance::start(move |seen| match seen.head.contains(" /held ") {
        true => Act::Hold(gate.clone(), "held"),
        false => Act::Answer("short"),
    });
    let crowd = crowd(&[("busy", &busy)]);
    let ask = |from, path| {
        let mut client = Client::connect_from(from, crowd.gateway);
        let text = format!("GET {path} HTTP/1.1\r\nHost: busy.localhost\r\n\r\n");
        client.send(&text);
        client
    };
    let burst: Vec<_> = (0..4 * PLACES).map(|_| ask(2, "/held")).collect();
    // It has its share; others are asked for afterwards, so that the burst has been read.
    let mut begun = 0;
    eventually("it has half", || {
        begun += busy.begun().len();
        begun >= PLACES / 2
    });
    for _ in 0..20 {
        let answer = ask(3, "/").receive().expect("an answer");
        assert_eq!((answer.status, &*answer.body), (200, "short"));
    }
    drop(let_go);
    for mut client in burst {
        let answer = client.receive().expect("an answer");
        assert_eq!((answer.status, &*answer.body), (200, "held"));
    }
}

#[test]
fn a_caller_at_its_door_has_its_share_as_a_client_has() {
    let echo = Instance::start(|seen| match header(&seen.head, "upgrade") {
        Some(_) => Act::Echo,
        None => Act::Answer("plain"),
    });
    let authority = Authority::new();
    let mut shop = shop(&authority, echo.address, Protocol::Http);
    shop.b.lets_in("shop/cart", &["shop/other"], false);
    let other = shop
        .a
        .door(&authority, "shop/other", "shop/cart", Protocol::Http);
    shop.a.snapshot.destinations[0].traffic.max_in_flight = PLACES as u32;
    shop.b.apply();
    shop.a.apply();
    let upgrade =
        "GET / HTTP/1.1\r\nHost: cart\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let ask = |door| {
        let mut client = Client::connect(door);
        client.send(upgrade);
        let head = client.receive_head().expect("an answer's head");
        (client, head)
    };
    let held: Vec<_> = (0..PLACES / 2).map(|_| ask(shop.door)).collect();
    for (_, head) in &held {
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }
    let (_, refused) = ask(shop.door);
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    let (_, head) = ask(other);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(get(other, "cart", "/").body, "plain");
}

#[test]
fn each_client_of_a_balancer_has_its_share() {
    let echo = Instance::start(|_| Act::Echo);
    let mut crowd = crowd(&[("echo", &echo)]);
    let gateway = crowd.edge.snapshot.gateway.as_mut().unwrap();
    gateway.trusted = vec!["127.0.0.9".parse().unwrap()];
    crowd.edge.apply();
    let ask = |from, of: &str| {
        let mut client = Client::connect_from(from, crowd.gateway);
        client.send(&format!(
            "GET / HTTP/1.1\r\nHost: echo.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{of}\r\n"
        ));
        let head = client.receive_head().expect("an answer's head");
        (client, head)
    };
    let one = "X-Forwarded-For: 192.0.2.1\r\n";
    let held: Vec<_> = (0..PLACES / 2).map(|_| ask(9, one)).collect();
    assert!(
        held.iter()
            .all(|(_, head)| head.starts_with("HTTP/1.1 101 "))
    );
    let (mut client, refused) = ask(9, one);
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    let length = header(&refused, "content-length").unwrap().parse().unwrap();
    let text = String::from_utf8(client.read_exact(length)).unwrap();
    assert!(text.contains("--trust-proxy"), "{text}");
    let (_, head) = ask(9, "X-Forwarded-For: 192.0.2.2\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
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

/// Connections that say nothing.
fn silent(count: usize, from: u8, to: SocketAddr) -> Vec<Client> {
    (0..count).map(|_| Client::connect_from(from, to)).collect()
}

/// Whether the proxy ends most of `so_many` of them, `within` less than it takes to end any for its silence. Which of them: two workers need not take
/// them in order.
fn makes_room(held: &mut [Client], so_many: usize, within: Duration) -> bool {
    let end = Instant::now() + within;
    let mut ended = 0;
    while ended < so_many * 3 / 4 {
        if Instant::now() >= end {
            return false;
        }
        pass(Duration::from_millis(5));
        ended = held.iter_mut().map(has_ended).filter(|it| *it).count();
    }
    true
}

fn has_ended(client: &mut Client) -> bool {
    let stream = client.stream();
    stream.set_nonblocking(true).unwrap();
    let ended = match stream.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    stream.set_nonblocking(false).unwrap();
    ended
}

/// Less than the 30 s for a head, the 2 s for a handshake and the 5 s for the PROXY protocol.
const BEFORE_A_HEAD_IS_LATE: Duration = PATIENCE;
const BEFORE_A_HANDSHAKE_IS_LATE: Duration = Duration::from_secs(1);
const BEFORE_A_BALANCER_IS_LATE: Duration = Duration::from_secs(3);

#[test]
fn a_client_that_holds_silent_connections_gives_up_its_own() {
    let crowd = small_crowd(&[]);
    let mut held = silent(60, 2, crowd.gateway);
    assert!(makes_room(&mut held, 20, BEFORE_A_HEAD_IS_LATE));
    crowd.others_go_on();
    let mut own = Client::connect_from(2, crowd.gateway);
    own.send("GET / HTTP/1.1\r\nHost: small.localhost\r\n\r\n");
    assert_eq!(own.receive().expect("an answer").body, "small");
}

/// Behind a balancer that says whose connection it brings.
fn as_client(gateway: SocketAddr, from: &str) -> Client {
    let mut client = Client::connect_from(9, gateway);
    client.send(&format!("PROXY TCP6 {from} ::1 4711 80\r\n"));
    client
}

fn balanced_crowd() -> Crowd {
    let mut crowd = small_crowd(&[]);
    let gateway = crowd.edge.snapshot.gateway.as_mut().unwrap();
    gateway.proxy_protocol = vec!["127.0.0.9".parse().unwrap()];
    crowd.edge.apply();
    crowd
}

#[test]
fn a_site_of_many_networks_gives_up_its_own() {
    let crowd = balanced_crowd();
    let of_site = |number: usize| format!("2001:db8:1:{number:x}::1");
    let mut held: Vec<_> = (0..90)
        .map(|number| as_client(crowd.gateway, &of_site(number)))
        .collect();
    assert!(makes_room(&mut held, 10, BEFORE_A_HEAD_IS_LATE));
    let get = "GET / HTTP/1.1\r\nHost: small.localhost\r\n\r\n";
    for from in ["2001:db8:2::1", &of_site(1000)] {
        let mut client = as_client(crowd.gateway, from);
        client.send(get);
        assert_eq!(client.receive().expect("an answer").body, "small");
    }
}

#[test]
fn connections_whose_balancer_does_not_say_whose_they_are_make_room_for_others() {
    let crowd = balanced_crowd();
    // One that is ended for its silence was not given up: where the machine is too busy to be quicker, once more.
    let mut held = Vec::new();
    eventually("the oldest make room", || {
        held = silent(30, 9, crowd.gateway);
        makes_room(&mut held, 10, BEFORE_A_BALANCER_IS_LATE)
    });
    let mut client = as_client(crowd.gateway, "2001:db8::1");
    client.send("GET / HTTP/1.1\r\nHost: small.localhost\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").body, "small");
}

#[test]
fn uploads_that_stand_still_make_room_and_one_that_flows_does_not() {
    let slow = Instance::answering("slow");
    let mut crowd = small_crowd(&[("slow", &slow)]);
    for to in &mut crowd.edge.snapshot.destinations {
        to.traffic.max_in_flight = 1000;
    }
    for local in &mut crowd.a.snapshot.local {
        local.max_in_flight = 1000;
    }
    crowd.a.apply();
    crowd.edge.apply();
    let upload = |from| {
        let mut client = Client::connect_from(from, crowd.gateway);
        client.send("POST / HTTP/1.1\r\nHost: slow.localhost\r\nContent-Length: 1000\r\n\r\nx");
        client
    };
    // All places of the gateway.
    let mut held: Vec<_> = (0..160_u8).map(|number| upload(2 + number / 40)).collect();
    let mut begun = 0;
    eventually("all are under way", || {
        begun += slow.begun().len();
        begun == 160
    });
    let mut flowing = held.remove(0);
    let mut sent = 1;
    eventually("there is room for another", || {
        pass(Duration::from_millis(20));
        flowing.send("x");
        sent += 1;
        let mut client = Client::connect_from(9, crowd.gateway);
        // Where there is no place it is closed at once.
        let get = b"GET / HTTP/1.1\r\nHost: small.localhost\r\n\r\n";
        client.stream().write_all(get).is_ok()
            && client.receive().is_some_and(|answer| answer.status == 200)
    });
    flowing.send(&"x".repeat(1000 - sent));
    assert_eq!(flowing.receive().expect("an answer").body, "slow");
}

#[test]
fn a_long_answer_is_kept_while_its_client_opens_more_connections() {
    let (let_go, gate) = mpsc::sync_channel(0);
    let gate = Arc::new(Mutex::new(gate));
    let slow = Instance::start(move |_| {
        Act::Halves(
            "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nfirst",
            gate.clone(),
            "later",
        )
    });
    let crowd = small_crowd(&[("slow", &slow)]);
    let mut client = Client::connect_from(2, crowd.gateway);
    client.send("GET / HTTP/1.1\r\nHost: slow.localhost\r\n\r\n");
    client.receive_head().unwrap();
    assert_eq!(client.read_exact(5), b"first");
    // Twice: what was used a moment ago is spared once.
    for _ in 0..2 {
        let mut held = silent(60, 2, crowd.gateway);
        assert!(makes_room(&mut held, 20, BEFORE_A_HEAD_IS_LATE));
    }
    drop(let_go);
    assert_eq!(client.read_exact(5), b"later");
}

#[test]
fn silent_connections_at_the_mesh_keep_no_peer_out() {
    let crowd = small_crowd(&[]);
    // One whose handshake took too long was not given up: where the machine is too busy to be quicker, once more.
    let mut held = Vec::new();
    eventually("the oldest make room", || {
        held = silent(30, 1, crowd.a.snapshot.mesh);
        makes_room(&mut held, 10, BEFORE_A_HANDSHAKE_IS_LATE)
    });
    // The gateway's first request is what dials the mesh.
    crowd.others_go_on();
}

#[test]
fn idle_connections_of_a_peer_make_room_and_one_that_is_asked_on_does_not() {
    let (let_go, gate) = mpsc::sync_channel(0);
    let gate = Arc::new(Mutex::new(gate));
    let slow = Instance::start(move |_| Act::Hold(gate.clone(), "slow"));
    let crowd = small_crowd(&[("slow", &slow)]);
    // The gateway's own key: what it has open is among those.
    let peer = Caller::new(&crowd.authority, &crowd.edge.snapshot.trust.node);
    crowd.others_go_on();
    let busy = peer.connect(&crowd.a);
    let answered = peer.get(&busy, "shop/slow-1");
    eventually("it is asked", || slow.count() == 1);
    let idle: Vec<_> = (0..40).map(|_| peer.connect(&crowd.a)).collect();
    eventually("the oldest make room", || {
        idle[..10].iter().all(Connection::has_ended)
    });
    for _ in 0..10 {
        let answer = post(crowd.gateway, "small.localhost", "", "order");
        assert_eq!((answer.status, &*answer.body), (200, "small"));
    }
    drop(let_go);
    let status = answered.recv_timeout(PATIENCE);
    assert_eq!(status, Ok(200), "it was given up while it was asked on");
}

#[test]
fn silent_connections_at_a_door_stop_that_caller_alone() {
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop_of(Node::start_small, &authority, cart.address, Protocol::Http);
    shop.b.lets_in("shop/cart", &["shop/other"], false);
    let other = shop
        .a
        .door(&authority, "shop/other", "shop/cart", Protocol::Http);
    shop.b.apply();
    shop.a.apply();
    let mut held = silent(30, 1, shop.door);
    assert!(makes_room(&mut held, 10, BEFORE_A_HEAD_IS_LATE));
    for door in [other, shop.door] {
        assert_eq!(get(door, "cart", "/").body, "cart");
    }
}

#[test]
fn upgrades_of_one_client_are_its_share_and_others_go_on() {
    let echo = Instance::start(|seen| match header(&seen.head, "upgrade") {
        Some(_) => Act::Echo,
        None => Act::Answer("plain"),
    });
    let crowd = crowd(&[("echo", &echo)]);
    let upgrade = "GET / HTTP/1.1\r\nHost: echo.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let ask = |from| {
        let mut client = Client::connect_from(from, crowd.gateway);
        client.send(upgrade);
        let head = client.receive_head().expect("an answer's head");
        (client, head)
    };
    // Half of the 64 that the one copy takes.
    let mut held: Vec<_> = (0..32).map(|_| ask(2)).collect();
    for (_, head) in &held {
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }
    let (_, refused) = ask(2);
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    let (mut other, head) = ask(3);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    other.send("ping");
    assert_eq!(other.read_exact(4), b"ping");
    assert_eq!(get(crowd.gateway, "echo.localhost", "/").body, "plain");
    held.truncate(31);
    eventually("a place is free again", || {
        ask(2).1.starts_with("HTTP/1.1 101 ")
    });
}

#[test]
fn interim_answers_without_end_are_no_answer() {
    let listener = TcpListener::bind(free_address()).unwrap();
    let address = listener.local_addr().unwrap();
    let chatty = Instance::nobody_reads(&listener);
    std::thread::spawn(move || {
        let words = Arc::new("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000));
        for mut stream in listener.incoming().map_while(Result::ok) {
            let words = words.clone();
            std::thread::spawn(move || while stream.write_all(words.as_bytes()).is_ok() {});
        }
    });
    assert_eq!(chatty.address, address);
    let crowd = crowd(&[("chatty", &chatty)]);
    let mut asked: Vec<_> = (0..5)
        .map(|_| crowd.send("GET / HTTP/1.1\r\nHost: chatty.localhost\r\n\r\n"))
        .collect();
    crowd.others_go_on();
    for client in &mut asked {
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status, 502, "{}", answer.body);
    }
}
