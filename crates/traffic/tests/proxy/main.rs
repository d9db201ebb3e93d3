//! The proxy as its neighbours see it: real sockets, certificates of an authority, clients and instances that speak by hand.

mod bounds;
mod broken;
mod hanging;
mod harness;
mod heads;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use harness::*;
use model::ids::Epoch;
use model::traffic::{Address, Endpoint, FromProxy, Gate, Identity, Owner, Protocol};
use model::units::Span;

/// A gateway on an edge node, and `shop/web` on nodes a and b behind the mesh.
struct Web {
    edge: Node,
    a: Node,
    b: Node,
    gateway: SocketAddr,
}

fn web(on_a: &Instance, on_b: &Instance) -> Web {
    let authority = Authority::new();
    let mut edge = Node::start(&authority, "edge");
    let mut a = Node::start(&authority, "a");
    let mut b = Node::start(&authority, "b");
    let endpoints = vec![
        a.runs("shop/web-1", "shop/web", on_a.address),
        b.runs("shop/web-2", "shop/web", on_b.address),
    ];
    for node in [&mut a, &mut b] {
        node.lets_in("shop/web", &[], true);
        node.apply();
    }
    let gateway = edge.gateway(&[("web.localhost", "/", "shop/web")]);
    edge.road("shop/web", endpoints);
    edge.apply();
    Web {
        edge,
        a,
        b,
        gateway,
    }
}

#[test]
fn a_request_passes_gateway_mesh_and_gate() {
    let instance = Instance::start(|seen| {
        assert_eq!(header(&seen.head, "host"), Some("web.localhost:8080"));
        assert_eq!(header(&seen.head, "x-forwarded-proto"), Some("http"));
        assert_eq!(header(&seen.head, "x-forwarded-for"), Some("127.0.0.1"));
        assert!(header(&seen.head, "connection").is_none_or(|it| it != "x-mine"));
        assert_eq!(header(&seen.head, "x-mine"), None);
        assert_eq!(header(&seen.head, "mainland-service"), None);
        assert!(header(&seen.head, "mainland-deadline-ms").is_some());
        assert!(
            seen.head.starts_with("GET /path?q=1 HTTP/1.1\r\n"),
            "{}",
            seen.head
        );
        Act::Answer("hello")
    });
    let world = web(&instance, &instance);
    let request = "GET /path?q=1 HTTP/1.1\r\nHost: web.localhost:8080\r\nX-Forwarded-For: 6.6.6.6\r\n\
                   Mainland-Service: a/b\r\nX-Mine: 1\r\nConnection: x-mine\r\n\r\n";
    let answer = ask(world.gateway, request);
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    assert_eq!(instance.count(), 1);

    let lost = get(world.gateway, "other.localhost", "/x");
    assert_eq!(lost.status, 404);
    assert_eq!(
        header(&lost.head, "content-type"),
        Some("application/problem+json")
    );
    assert!(lost.body.contains(r#""code":"no-route""#), "{}", lost.body);
    assert!(
        lost.body
            .contains(r#""detail":"no route for host other.localhost""#),
        "{}",
        lost.body
    );
    assert!(!lost.body.contains("web.localhost"), "{}", lost.body);
}

/// `shop/cart` on node b, called by `shop/web` through a door on node a.
struct Shop {
    a: Node,
    b: Node,
    door: SocketAddr,
}

fn shop(authority: &Authority, cart: SocketAddr, protocol: Protocol) -> Shop {
    shop_of(Node::start, authority, cart, protocol)
}

fn shop_of(
    start: impl Fn(&Authority, &str) -> Node,
    authority: &Authority,
    cart: SocketAddr,
    protocol: Protocol,
) -> Shop {
    let mut a = start(authority, "a");
    let mut b = start(authority, "b");
    let endpoint = b.runs("shop/cart-1", "shop/cart", cart);
    b.lets_in("shop/cart", &["shop/web"], false);
    let door = a.door(authority, "shop/web", "shop/cart", protocol);
    a.road("shop/cart", vec![endpoint]);
    b.apply();
    a.apply();
    Shop { a, b, door }
}

fn holding(text: &'static str) -> (Instance, mpsc::SyncSender<()>) {
    let (let_go, gate) = mpsc::sync_channel(0);
    let gate = Arc::new(Mutex::new(gate));
    (
        Instance::start(move |_| Act::Hold(gate.clone(), text)),
        let_go,
    )
}

#[test]
fn an_undeclared_caller_is_refused_with_the_missing_need_named() {
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    assert_eq!(get(shop.door, "cart", "/").status, 200);

    // The same identity with the need taken away.
    shop.b.snapshot.callers[0].from.clear();
    shop.b.apply();
    let refused = get(shop.door, "cart", "/");
    assert_eq!(refused.status, 403);
    assert!(
        refused
            .body
            .contains("service web does not declare needs: [cart]"),
        "{}",
        refused.body
    );
    assert!(refused.body.contains("caller-not-declared"));
    shop.b.wait("the refused call", |told| {
        matches!(told, FromProxy::CallRefused { caller, callee, .. } if caller == "shop/web" && *callee == id("shop/cart"))
    });
    assert_eq!(cart.count(), 1);
}

#[test]
fn a_node_may_call_only_as_a_gateway() {
    let authority = Authority::new();
    let instance = Instance::answering("web");
    let mut world = web(&instance, &instance);
    for node in [&mut world.a, &mut world.b] {
        node.snapshot.callers[0].gateway = false;
        node.snapshot.callers[0].from.push(id("shop/other"));
        node.apply();
    }
    let refused = get(world.gateway, "web.localhost", "/");
    assert_eq!(refused.status, 403);
    assert!(
        refused.body.contains("no route leads to service web"),
        "{}",
        refused.body
    );
    assert_eq!(instance.count(), 0);
    drop(authority);
}

#[test]
fn foreign_certificates_open_nothing() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    shop.a
        .road("shop/cart", vec![shop.b.endpoint("shop/cart-1")])
        .traffic
        .wait = Span::milliseconds(300);
    for identity in [
        stranger.identity("service/shop/web"),
        authority.identity_in("c2", "service/shop/web"),
        authority.identity("server"),
    ] {
        shop.a
            .snapshot
            .trust
            .services
            .insert(id("shop/web"), identity);
        shop.a.apply();
        let refused = get(shop.door, "cart", "/");
        assert_eq!(refused.status, 503, "{}", refused.body);
    }
    // A peer that is not the node that was meant.
    shop.a
        .snapshot
        .trust
        .services
        .insert(id("shop/web"), authority.identity("service/shop/web"));
    shop.b.snapshot.trust.node = authority.identity("node/c");
    shop.b.apply();
    shop.a.apply();
    assert_eq!(get(shop.door, "cart", "/").status, 503);
    assert_eq!(cart.count(), 0);

    shop.b.snapshot.trust.node = authority.identity("node/b");
    shop.b.apply();
    assert_eq!(get(shop.door, "cart", "/").status, 200);
}

#[test]
fn a_removed_node_is_let_in_no_more_though_its_certificate_is_good() {
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    shop.a
        .road("shop/cart", vec![shop.b.endpoint("shop/cart-1")])
        .traffic
        .wait = Span::milliseconds(300);
    shop.a.apply();
    assert_eq!(get(shop.door, "cart", "/").status, 200);
    // The connection stands, and a new one is no better.
    let key = key_of(&shop.a.snapshot.trust.services[&id("shop/web")]);
    shop.b.snapshot.trust.removed = [key].into();
    shop.b.apply();
    for _ in 0..2 {
        let refused = get(shop.door, "cart", "/");
        assert!(refused.status >= 400, "{}", refused.body);
        shop.a
            .snapshot
            .trust
            .services
            .insert(id("shop/web"), identity_again(&shop.a));
        shop.a.apply();
    }
    assert_eq!(cart.count(), 1);
    shop.b.snapshot.trust.removed.clear();
    shop.b.apply();
    eventually("it is let in again", || {
        get(shop.door, "cart", "/").status == 200
    });
}

/// What a certificate's key is known by.
fn key_of(identity: &Identity) -> model::boundary::KeyFingerprint {
    let chain = tls::certificate::from_pem(&identity.certificate).unwrap();
    tls::certificate::key(&chain[0]).unwrap()
}

/// Nothing more comes, and soon.
fn ends(client: &mut Client) {
    let stream = client.stream();
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience).unwrap();
    let ended = std::io::Read::read(stream, &mut [0]);
    let ended = ended.map_err(|error| error.kind());
    let reset = Err(std::io::ErrorKind::ConnectionReset);
    assert!(ended == Ok(0) || ended == reset, "{ended:?}");
}

#[test]
fn what_a_removed_caller_has_open_ends() {
    let authority = Authority::new();
    let instance = Instance::start(|_| Act::Echo);
    let mut shop = shop(&authority, instance.address, Protocol::Tcp);
    let mut tunnel = pooled(shop.door);
    let key = key_of(&shop.a.snapshot.trust.services[&id("shop/web")]);
    shop.b.snapshot.trust.removed = [key].into();
    shop.b.apply();
    ends(&mut tunnel);
    // And an exchange.
    let (slow, _never) = holding("slow");
    let mut shop = self::shop(&authority, slow.address, Protocol::Http);
    shop.a
        .road("shop/cart", vec![shop.b.endpoint("shop/cart-1")])
        .traffic
        .wait = Span::milliseconds(300);
    shop.a.apply();
    let mut client = Client::connect(shop.door);
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    eventually("it is in hand", || slow.count() == 1);
    let key = key_of(&shop.a.snapshot.trust.services[&id("shop/web")]);
    shop.b.snapshot.trust.removed = [key].into();
    let began = Instant::now();
    shop.b.apply();
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_removed_node_is_called_no_more_and_what_is_open_to_it_ends() {
    let authority = Authority::new();
    let instance = Instance::start(|seen| match header(&seen.head, "upgrade") {
        Some(_) => Act::Echo,
        None => Act::Answer("cart"),
    });
    let mut shop = shop(&authority, instance.address, Protocol::Http);
    shop.a
        .road("shop/cart", vec![shop.b.endpoint("shop/cart-1")])
        .traffic
        .wait = Span::milliseconds(300);
    shop.a.apply();
    let mut tunnel = Client::connect(shop.door);
    tunnel.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(tunnel.receive().unwrap().status, 101);
    assert_eq!(get(shop.door, "cart", "/").body, "cart");
    let key = key_of(&shop.b.snapshot.trust.node);
    shop.a.snapshot.trust.removed = [key].into();
    shop.a.apply();
    let before = instance.count();
    assert_eq!(get(shop.door, "cart", "/").status, 503);
    ends(&mut tunnel);
    assert_eq!(instance.count(), before);
    shop.a.snapshot.trust.removed.clear();
    shop.a.apply();
    eventually("it is called again", || {
        get(shop.door, "cart", "/").status == 200
    });
}

/// What was begun on a connection that is used no more: it was made with an earlier certificate, or leads to where no road leads now.
#[test]
fn what_is_open_to_a_removed_node_ends_whatever_became_of_its_connection() {
    let renewed: fn(&mut Shop) = |shop| {
        let identity = identity_again(&shop.a);
        let services = &mut shop.a.snapshot.trust.services;
        services.insert(id("shop/web"), identity);
    };
    let left: fn(&mut Shop) = |shop| {
        shop.a.road("shop/cart", Vec::new());
    };
    for changed in [|_: &mut Shop| {}, renewed, left] {
        let authority = Authority::new();
        let echo = Instance::start(|_| Act::Echo);
        let mut shop = shop(&authority, echo.address, Protocol::Tcp);
        let mut tunnel = pooled(shop.door);
        changed(&mut shop);
        shop.a.apply();
        echoes(&mut tunnel);
        let key = key_of(&shop.b.snapshot.trust.node);
        shop.a.snapshot.trust.removed = [key].into();
        shop.a.apply();
        ends(&mut tunnel);
    }
    // And an exchange, which its peer goes on with.
    let (slow, _never) = holding("slow");
    let mut shop = shop(&Authority::new(), slow.address, Protocol::Http);
    let mut client = Client::connect(shop.door);
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    eventually("it is in hand", || slow.count() == 1);
    let key = key_of(&shop.b.snapshot.trust.node);
    shop.a.snapshot.trust.removed = [key].into();
    let began = Instant::now();
    shop.a.apply();
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// A peer of which nothing is known but that it goes on: what is open to it ends on our side.
#[test]
fn a_connection_to_a_peer_ends_with_our_certificate_whatever_the_peer_does() {
    let authority = Authority::new();
    let mut a = Node::start(&authority, "a");
    let endpoint = Endpoint {
        mesh: start_old_peer(&authority, "old"),
        node: "old".parse().unwrap(),
        ..a.endpoint("shop/cart-1")
    };
    let door = a.door(&authority, "shop/web", "shop/cart", Protocol::Http);
    let identity = authority.identity_for("service/shop/web", 3);
    let services = &mut a.snapshot.trust.services;
    services.insert(id("shop/web"), identity);
    a.road("shop/cart", vec![endpoint]);
    a.apply();
    let began = Instant::now();
    let mut client = Client::connect(door);
    // The rest never comes, and the peer waits for it; the time of the request is 10 s.
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status, 502, "{}", answer.body);
    let took = began.elapsed().as_secs();
    assert!((1..8).contains(&took), "{took}");
}

#[test]
fn a_need_that_is_taken_away_ends_what_is_open_and_lets_nothing_in() {
    let authority = Authority::new();
    let echo = || {
        Instance::start(|seen| match header(&seen.head, "upgrade") {
            Some(_) => Act::Echo,
            None => Act::Answer("cart"),
        })
    };
    let refused = |told: &FromProxy| matches!(told, FromProxy::CallRefused { caller, callee, .. } if caller == "shop/web" && *callee == id("shop/cart"));
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    // At the caller's door, while the callee's node does not know it yet; and the other way round.
    for at_door in [true, false] {
        // The callee on another node, and on the same.
        for apart in [true, false] {
            for protocol in [Protocol::Tcp, Protocol::Http] {
                let instance = echo();
                let mut shop = shop(&authority, instance.address, protocol);
                if !apart {
                    let endpoint = shop.a.runs("shop/cart-2", "shop/cart", instance.address);
                    shop.a.lets_in("shop/cart", &["shop/web"], false);
                    shop.a.road("shop/cart", vec![endpoint]);
                    shop.a.apply();
                }
                let mut open = Client::connect(shop.door);
                open.send(upgrade);
                let head = open.receive_head().expect("an answer");
                assert!(head.starts_with("HTTP/1.1 101"), "{head}");
                echoes(&mut open);
                let mut kept = (protocol == Protocol::Http).then(|| Client::connect(shop.door));
                let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
                if let Some(client) = &mut kept {
                    client.send(get);
                    assert_eq!(client.receive().expect("an answer").body, "cart");
                }
                let before = instance.count();
                let telling = match (at_door, apart) {
                    (false, true) => &mut shop.b,
                    _ => &mut shop.a,
                };
                match at_door {
                    true => telling.snapshot.doors[0].undeclared = true,
                    false => telling.snapshot.callers[0].from.clear(),
                }
                telling.apply();
                ends(&mut open);
                telling.wait("what was open is told", refused);
                let mut new = Client::connect(shop.door);
                match &mut kept {
                    None => ends(&mut new),
                    Some(kept) => {
                        for client in [kept, &mut new] {
                            client.send(get);
                            let answer = client.receive().expect("an answer");
                            assert_eq!(answer.status, 403, "{}", answer.body);
                            let why = "service web does not declare needs: [cart]";
                            assert!(answer.body.contains(why), "{}", answer.body);
                        }
                    }
                }
                assert_eq!(instance.count(), before);
                // It is declared again.
                shop.a.snapshot.doors[0].undeclared = false;
                for node in [&mut shop.a, &mut shop.b] {
                    for callers in &mut node.snapshot.callers {
                        callers.from = [id("shop/web")].into();
                    }
                    node.apply();
                }
                let mut again = Client::connect(shop.door);
                again.send(upgrade);
                assert!(again.receive_head().is_some_and(|it| it.contains(" 101 ")));
                if let Some(client) = &mut kept {
                    client.send(get);
                    assert_eq!(client.receive().expect("an answer").body, "cart");
                }
            }
        }
    }
}

/// A copy that its node is told to end, by a server that has placed its service elsewhere meanwhile; or one that an agent which begins has found,
/// while it does not know its callers yet.
#[test]
fn where_no_callers_are_told_nothing_begins_and_nothing_that_is_open_ends() {
    let refused = |told: &FromProxy| matches!(told, FromProxy::CallRefused { .. });
    for apart in [true, false] {
        let authority = Authority::new();
        let echo = Instance::start(|seen| match header(&seen.head, "upgrade") {
            Some(_) => Act::Echo,
            None => Act::Answer("leaves"),
        });
        let other = Instance::answering("other");
        let mut shop = shop(&authority, echo.address, Protocol::Http);
        let mut endpoints = vec![shop.b.endpoint("shop/cart-1")];
        if !apart {
            endpoints = vec![shop.a.runs("shop/cart-1", "shop/cart", echo.address)];
            shop.a.lets_in("shop/cart", &["shop/web"], false);
        }
        shop.a.road("shop/cart", endpoints.clone());
        shop.a.apply();
        let mut open = Client::connect(shop.door);
        open.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        assert_eq!(open.receive().expect("an answer").status, 101);
        echoes(&mut open);
        let mut c = Node::start(&authority, "c");
        endpoints.push(c.runs("shop/cart-2", "shop/cart", other.address));
        c.lets_in("shop/cart", &["shop/web"], false);
        c.apply();
        let leaves = if apart { &mut shop.b } else { &mut shop.a };
        leaves.snapshot.callers.clear();
        leaves.apply();
        shop.a.road("shop/cart", endpoints);
        shop.a.apply();
        for _ in 0..20 {
            let answer = post(shop.door, "cart", "", "order");
            assert_eq!((answer.status, &*answer.body), (200, "other"));
        }
        let leaves = if apart { &mut shop.b } else { &mut shop.a };
        leaves.set_gate("shop/cart-1", Gate::Leaving);
        leaves.apply();
        echoes(&mut open);
        assert!(!leaves.has_told(refused));
        assert!(!leaves.has_told(|told| matches!(told, FromProxy::Drained { .. })));
        drop(open);
        let drained = |told: &FromProxy| matches!(told, FromProxy::Drained { .. });
        leaves.wait("drained", drained);
    }
}

#[test]
fn a_proxy_of_an_earlier_version_is_spoken_to_as_it_speaks() {
    let authority = Authority::new();
    let mut edge = Node::start(&authority, "edge");
    let mesh = start_old_peer(&authority, "old");
    let endpoint = Endpoint {
        instance: "shop/web-1".parse().unwrap(),
        epoch: Epoch(1),
        node: "old".parse().unwrap(),
        zone: "old".parse().unwrap(),
        region: "here".parse().unwrap(),
        mesh,
    };
    let gateway = edge.gateway(&[("web.localhost", "/", "shop/web")]);
    edge.road("shop/web", vec![endpoint]);
    edge.apply();
    assert_eq!(get(gateway, "web.localhost", "/").body, "0");
    // More than waits until it is taken, where a peer can be asked for that; and more than a stream's window.
    for length in [10, 60_000, 300_000] {
        let answer = post(gateway, "web.localhost", "", &"x".repeat(length));
        assert_eq!((answer.status, answer.body), (200, length.to_string()));
    }
}

/// The same, in another text: the connections made with it are made anew.
fn identity_again(node: &Node) -> Identity {
    let mut identity = node.snapshot.trust.services[&id("shop/web")].clone();
    identity.key.push('\n');
    identity
}

#[test]
fn a_leaving_copy_ends_what_it_has_and_takes_no_more() {
    let (slow, let_go) = holding("slow");
    let other = Instance::answering("other");
    let mut world = web(&slow, &other);
    // Every request may go to either: ask until the slow one holds one.
    let mut asked = Vec::new();
    while slow.count() == 0 {
        let mut client = Client::connect(world.gateway);
        client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
        asked.push(client);
        eventually("somebody has it", || {
            (slow.count() + other.count()) as usize == asked.len()
        });
    }
    let held = slow.count();

    world.a.set_gate("shop/web-1", Gate::Leaving);
    world.a.apply();
    for _ in 0..20 {
        let answer = post(world.gateway, "web.localhost", "", "order");
        assert_eq!((answer.status, answer.body.as_str()), (200, "other"));
    }
    assert_eq!(
        slow.count(),
        held,
        "nothing new came through the closed gate"
    );
    drop(let_go);
    let mut answers: Vec<_> = asked
        .into_iter()
        .map(|mut it| it.receive().unwrap().body)
        .collect();
    answers.sort();
    assert_eq!(answers.last().unwrap(), "slow");
    let drained = |told: &FromProxy| matches!(told, FromProxy::Drained { instance } if instance.to_string() == "shop/web-1");
    world.a.wait("drained", drained);
    world.a.reconnect();
    world.a.wait("drained, once more", drained);
    world.b.set_gate("shop/web-2", Gate::Leaving);
    world.b.apply();
    world.b.wait("drained at once", |told| {
        matches!(told, FromProxy::Drained { .. })
    });
}

#[test]
fn what_is_tried_again_and_what_is_not() {
    let broken = Instance::start(|_| Act::Close);
    let good = Instance::answering("good");
    let world = web(&broken, &good);
    for _ in 0..20 {
        assert_eq!(get(world.gateway, "web.localhost", "/").body, "good");
    }
    assert!(broken.count() > 0, "the broken one was never asked");

    let keyed = post(
        world.gateway,
        "web.localhost",
        "Idempotency-Key: 1\r\n",
        "order",
    );
    assert_eq!((keyed.status, keyed.body.as_str()), (200, "good"));

    // Ejected by now; a world of its own shows what a POST meets.
    let broken = Instance::start(|_| Act::Close);
    let alone = web(&broken, &broken);
    let refused = post(alone.gateway, "web.localhost", "", "order");
    assert_eq!(refused.status, 502);
    assert!(refused.body.contains("upstream-broken"), "{}", refused.body);
    assert_eq!(
        broken.count(),
        1,
        "a POST that may have begun is not repeated"
    );
}

/// A topic's delivery: its retries are the topic's own.
#[test]
fn through_a_door_that_counts_its_tries_nothing_is_repeated_that_may_have_begun() {
    let authority = Authority::new();
    let broken = Instance::start(|_| Act::Close);
    let nobody = free_address();
    let mut a = Node::start(&authority, "a");
    let mut b = Node::start(&authority, "b");
    let door = a.door(&authority, "shop/topic", "shop/mail", Protocol::Http);
    a.snapshot.doors[0].once = true;
    a.snapshot.doors[0].timeout = Span::milliseconds(700);
    let here = ["shop/mail-1", "shop/mail-2"].map(|name| a.runs(name, "shop/mail", broken.address));
    let there =
        ["shop/mail-3", "shop/mail-4"].map(|name| b.runs(name, "shop/mail", broken.address));
    for node in [&mut a, &mut b] {
        node.lets_in("shop/mail", &["shop/topic"], false);
    }
    b.apply();
    let key = "Idempotency-Key: orders/1\r\n";
    let mut asked = 0;
    for endpoints in [here.to_vec(), there.to_vec()] {
        a.road("shop/mail", endpoints);
        a.apply();
        let answer = post(door, "mail", key, "a message");
        assert_eq!(answer.status, 502, "{}", answer.body);
        asked += 1;
        assert_eq!(broken.count(), asked, "it went to one copy alone");
    }

    // Nobody is there: said as that, before the time is up and after.
    a.road("shop/mail", Vec::new());
    a.apply();
    let answer = post(door, "mail", key, "a message");
    assert_eq!(answer.status, 503, "{}", answer.body);
    let gone = a.runs("shop/mail-5", "shop/mail", nobody);
    a.road("shop/mail", vec![gone]);
    a.apply();
    let answer = post(door, "mail", key, "a message");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("no-endpoint"), "{}", answer.body);
}

#[test]
fn what_broke_off_goes_to_another_node_first() {
    let broken = Instance::start(|_| Act::Close);
    let good = Instance::answering("good");
    let mut world = web(&broken, &good);
    let more =
        ["shop/web-3", "shop/web-4"].map(|name| world.a.runs(name, "shop/web", broken.address));
    world.a.apply();
    let mut endpoints = more.to_vec();
    endpoints.extend(["shop/web-1", "shop/web-2"].map(|name| match name {
        "shop/web-1" => world.a.endpoint(name),
        _ => world.b.endpoint(name),
    }));
    world.edge.road("shop/web", endpoints);
    world.edge.apply();
    for asked in 1..=8 {
        assert_eq!(get(world.gateway, "web.localhost", "/").body, "good");
        assert!(broken.count() <= asked, "a request broke twice on one node");
    }
    assert!(broken.count() > 0, "the broken ones were never asked");
}

#[test]
fn a_refused_connection_is_no_loss_for_any_method() {
    let nobody = Instance::answering("never");
    let good = Instance::start(|seen| {
        assert_eq!(seen.body, b"order");
        Act::Answer("good")
    });
    let mut world = web(&nobody, &good);
    world.a.snapshot.local[0].address = Address::Tcp {
        address: free_address(),
    };
    world.a.apply();
    for _ in 0..20 {
        let answer = post(world.gateway, "web.localhost", "", "order");
        assert_eq!((answer.status, answer.body.as_str()), (200, "good"));
    }
}

#[test]
fn a_kept_connection_that_the_instance_closed_costs_nothing() {
    let instance = Instance::answering("ok");
    let world = web(&instance, &instance);
    for _ in 0..300 {
        let answer = post(world.gateway, "web.localhost", "", "x");
        assert_eq!(answer.status, 200, "{}", answer.body);
        instance.hang_up();
    }
}

#[test]
fn a_shut_gate_gives_up_who_waits() {
    let (frozen, _never) = holding("frozen");
    let other = Instance::answering("other");
    let mut world = web(&frozen, &other);
    let gateway = world.gateway;
    let asking: Vec<_> = (0..16)
        .map(|_| std::thread::spawn(move || get(gateway, "web.localhost", "/").body))
        .collect();
    eventually("one waits at the frozen copy", || frozen.count() > 0);
    world.a.set_gate("shop/web-1", Gate::Shut);
    world.a.apply();
    for asked in asking {
        assert_eq!(asked.join().unwrap(), "other");
    }
}

#[test]
fn bytes_pass_a_tcp_door_with_each_end_closed_alone() {
    let authority = Authority::new();
    let instance = start_tcp_instance();
    let shop = shop(&authority, instance, Protocol::Tcp);
    let mut bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let mut client = Client::connect(shop.door);
    client.stream().write_all(&bytes).unwrap();
    client.stream().shutdown(Shutdown::Write).unwrap();
    bytes.reverse();
    assert_eq!(client.read_to_end(), bytes);
}

#[test]
fn a_connection_is_in_flight_as_long_as_it_lasts() {
    let instance = Instance::start(|_| Act::Echo);
    let mut shop = shop(&Authority::new(), instance.address, Protocol::Tcp);
    let mut client = Client::connect(shop.door);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.receive().unwrap().status, 101);
    shop.b.set_gate("shop/cart-1", Gate::Leaving);
    shop.b.apply();
    client.send("ping");
    assert_eq!(client.read_exact(4), b"ping");
    assert!(
        !shop
            .b
            .has_told(|told| matches!(told, FromProxy::Drained { .. }))
    );
    client.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read_to_end(), b"");
    shop.b
        .wait("drained", |told| matches!(told, FromProxy::Drained { .. }));
}

/// A client of an echo, through the door; it has said something and heard it again.
fn pooled(door: SocketAddr) -> Client {
    let mut client = Client::connect(door);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.receive().unwrap().status, 101);
    echoes(&mut client);
    client
}

fn echoes(client: &mut Client) {
    client.send("ping");
    assert_eq!(client.read_exact(4), b"ping");
}

#[test]
fn a_connection_outlives_every_change_that_is_not_its_own() {
    let authority = Authority::new();
    let instance = Instance::start(|_| Act::Echo);
    let mut shop = shop(&authority, instance.address, Protocol::Tcp);
    let mut client = pooled(shop.door);
    // A certificate that is renewed, another door, another road, another limit.
    let renewed = authority.identity("service/shop/web");
    shop.a
        .snapshot
        .trust
        .services
        .insert(id("shop/web"), renewed);
    shop.a.apply();
    echoes(&mut client);
    let mut second = pooled(shop.door);
    let other = shop
        .a
        .door(&authority, "shop/web", "shop/mail", Protocol::Http);
    shop.a.road("shop/mail", Vec::new());
    shop.a.snapshot.doors[0].timeout = Span::milliseconds(1);
    shop.b.snapshot.local[0].max_in_flight = 1;
    shop.b.runs("shop/mail-1", "shop/mail", free_address());
    shop.a.apply();
    shop.b.apply();
    shop.a.snapshot.doors.retain(|door| door.listen != other);
    let endpoint = shop.b.endpoint("shop/cart-1");
    shop.a.road("shop/cart", Vec::new());
    // Nor does it end when the agent has not yet found again what runs.
    let doors = std::mem::take(&mut shop.a.snapshot.doors);
    shop.a.apply();
    echoes(&mut client);
    shop.a.snapshot.doors = doors;
    shop.a.road("shop/cart", vec![endpoint]);
    shop.a.apply();
    for client in [&mut client, &mut second] {
        echoes(client);
    }
    assert_eq!(instance.count(), 2);
}

#[test]
fn an_undeclared_connection_is_closed_and_told_and_reaches_nothing() {
    let instance = Instance::start(|_| Act::Echo);
    let mut shop = shop(&Authority::new(), instance.address, Protocol::Tcp);
    shop.b.snapshot.callers[0].from.clear();
    shop.b.apply();
    let mut client = Client::connect(shop.door);
    assert_eq!(client.read_to_end(), b"");
    shop.b.wait("the refused call", |told| {
        matches!(told, FromProxy::CallRefused { caller, callee, .. } if caller == "shop/web" && *callee == id("shop/cart"))
    });
    assert_eq!(instance.count(), 0);
}

#[test]
fn connections_end_with_a_copy_that_ends_and_new_ones_wait_for_the_next() {
    let instance = Instance::start(|_| Act::Echo);
    let mut shop = shop(&Authority::new(), instance.address, Protocol::Tcp);
    let mut client = pooled(shop.door);
    shop.b.set_gate("shop/cart-1", Gate::Shut);
    shop.b.apply();
    instance.hang_up();
    assert_eq!(client.read_to_end(), b"");
    let door = shop.door;
    let waiting = std::thread::spawn(move || drop(pooled(door)));
    // Also while nobody knows where the copy will be.
    shop.a.road("shop/cart", Vec::new());
    shop.a.apply();
    shop.a.wait(
        "demand",
        |told| matches!(told, FromProxy::Demand { service, .. } if *service == id("shop/cart")),
    );
    shop.b.set_gate("shop/cart-1", Gate::Open);
    shop.b.apply();
    let endpoint = shop.b.endpoint("shop/cart-1");
    shop.a.road("shop/cart", vec![endpoint]);
    shop.a.apply();
    waiting.join().unwrap();
}

#[test]
fn an_upgraded_connection_passes_the_mesh() {
    let instance = Instance::start(|seen| {
        assert_eq!(header(&seen.head, "upgrade"), Some("websocket"));
        Act::Echo
    });
    let world = web(&instance, &instance);
    let mut client = Client::connect(world.gateway);
    client.send("GET /ws HTTP/1.1\r\nHost: web.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n");
    let answer = client.receive().unwrap();
    assert_eq!(answer.status, 101, "{}", answer.head);
    client.send("ping");
    assert_eq!(client.read_exact(4), b"ping");
    client.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read_to_end(), b"");
}

#[test]
fn a_request_waits_for_the_first_endpoint_and_is_told_as_demand() {
    let cart = Instance::answering("cart");
    let mut shop = shop(&Authority::new(), cart.address, Protocol::Http);
    let endpoint = shop.b.endpoint("shop/cart-1");
    shop.a.road("shop/cart", vec![]).traffic.wait = Span::seconds(15);
    shop.a.apply();
    let door = shop.door;
    let began = Instant::now();
    let asked = std::thread::spawn(move || get(door, "cart", "/").body);
    shop.a.wait("demand", |told| matches!(told, FromProxy::Demand { service, waiting: 1 } if *service == id("shop/cart")));
    shop.a.road("shop/cart", vec![endpoint]);
    shop.a.apply();
    assert_eq!(asked.join().unwrap(), "cart");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "the new road did not wake it"
    );
    shop.a.wait("no demand", |told| {
        matches!(told, FromProxy::Demand { waiting: 0, .. })
    });

    shop.a.road("shop/cart", vec![]).traffic.wait = Span::milliseconds(50);
    shop.a.apply();
    let refused = get(door, "cart", "/");
    assert_eq!(
        (refused.status, header(&refused.head, "retry-after")),
        (503, Some("1"))
    );
    assert!(
        refused
            .body
            .contains("service shop/cart has no copy that is ready; waited 50ms"),
        "{}",
        refused.body
    );
}

#[test]
fn a_single_copy_that_restarts_is_waited_for() {
    let cart = Instance::answering("cart");
    let mut shop = shop(&Authority::new(), cart.address, Protocol::Http);
    shop.b.set_gate("shop/cart-1", Gate::Shut);
    shop.b.apply();
    let door = shop.door;
    // Larger than what is kept: a shut gate must not draw the body in.
    let large = "x".repeat(1_000_000);
    let asked = std::thread::spawn(move || post(door, "cart", "", &large));
    (0..10).for_each(|_| shop.b.apply());
    shop.b.set_gate("shop/cart-1", Gate::Open);
    shop.b.apply();
    let answer = asked.join().unwrap();
    assert_eq!(answer.body, "cart");
    // An older epoch is another instance.
    shop.b.snapshot.local[0].epoch = Epoch(2);
    shop.b.apply();
    shop.a
        .road("shop/cart", vec![shop.b.endpoint("shop/cart-1")])
        .traffic
        .wait = Span::milliseconds(50);
    shop.a.apply();
    assert_eq!(get(door, "cart", "/").status, 503);
    assert_eq!(cart.count(), 1);
}

#[test]
fn a_peer_that_falls_silent_is_given_up_in_time() {
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    let silent = SilentPeer::start(&authority, "c");
    let mut there = shop.b.endpoint("shop/cart-2");
    there.node = "c".parse().unwrap();
    there.mesh = silent.mesh;
    let mut endpoints = vec![shop.b.endpoint("shop/cart-1")];
    endpoints.push(there);
    shop.a.road("shop/cart", endpoints);
    shop.a.apply();
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while silent.requests.load(Ordering::SeqCst) == 0 {
        let one = Instant::now();
        assert_eq!(get(shop.door, "cart", "/").body, "cart");
        longest = longest.max(one.elapsed());
        assert!(
            began.elapsed() < PATIENCE,
            "the silent peer was never asked"
        );
    }
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    assert!(
        longest > Duration::from_millis(200),
        "it was not silence that ended it: {longest:?}"
    );
}

#[test]
fn nothing_fails_while_snapshots_and_gates_change_under_load() {
    let (one, two) = (Instance::answering("one"), Instance::answering("two"));
    let mut world = web(&one, &two);
    let done = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU32::new(0));
    let gateway = world.gateway;
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (done, served) = (done.clone(), served.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(gateway);
                while !done.load(Ordering::SeqCst) {
                    let request = match number % 2 {
                        0 => "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n",
                        _ => {
                            "POST / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 3\r\n\r\nabc"
                        }
                    };
                    client.send(request);
                    let answer = client.receive().expect("an answer");
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let both = [
        world.a.endpoint("shop/web-1"),
        world.b.endpoint("shop/web-2"),
    ];
    for turn in 0..40 {
        let before = served.load(Ordering::SeqCst);
        let (stays, leaves, name) = match turn % 2 {
            0 => (1, &mut world.a, "shop/web-1"),
            _ => (0, &mut world.b, "shop/web-2"),
        };
        // The gate closes first, the road follows: callers meet the closed gate.
        leaves.set_gate(name, Gate::Leaving);
        leaves.apply();
        leaves.wait("drained", |told| matches!(told, FromProxy::Drained { .. }));
        world.edge.road("shop/web", vec![both[stays].clone()]);
        world.edge.apply();
        let back = if turn % 2 == 0 {
            &mut world.a
        } else {
            &mut world.b
        };
        back.set_gate(name, Gate::Open);
        back.apply();
        world.edge.road("shop/web", both.to_vec());
        world.edge.apply();
        eventually("requests went on", || {
            served.load(Ordering::SeqCst) > before + 8
        });
    }
    done.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    assert!(one.count() > 0 && two.count() > 0);
}

#[test]
fn a_proxy_without_an_agent_starts_on_what_it_kept() {
    use std::os::unix::fs::PermissionsExt;
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    let directory = shop.a.stop();
    let kept = directory.path().join("proxy/snapshot.json");
    assert_eq!(
        std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut again = Node::start_in(&authority, "a", directory);
    let generation = shop.a.snapshot.generation;
    again.wait(
        "the kept one is in force",
        |told| matches!(told, FromProxy::Acknowledged { generation: at, .. } if *at == generation),
    );
    assert_eq!(get(shop.door, "cart", "/").body, "cart");
}

#[test]
fn an_address_that_is_taken_is_named_and_the_rest_goes_on() {
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    let taken = shop
        .a
        .door(&authority, "shop/mail", "shop/cart", Protocol::Http);
    let squatter = TcpListener::bind(taken).unwrap();
    let error = shop.a.apply_in_vain();
    assert!(
        error.contains(&format!(
            "the door from shop/mail to shop/cart can't listen on {taken}"
        )),
        "{error}"
    );
    assert_eq!(get(shop.door, "cart", "/").status, 200);
    drop(squatter);
    shop.b.snapshot.callers[0].from.push(id("shop/mail"));
    shop.b.apply();
    eventually("the door opens once its address is free", || {
        std::net::TcpStream::connect(taken).is_ok()
    });
    assert_eq!(get(taken, "cart", "/").status, 200);

    shop.a.snapshot.trust.node.key = "nonsense".to_owned();
    let error = shop.a.apply_in_vain();
    assert!(error.contains("the node's certificate"), "{error}");
    assert_eq!(
        get(shop.door, "cart", "/").status,
        200,
        "the last good one stays"
    );
}

#[test]
fn a_door_is_its_owners_alone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let (web_uid, mail_uid, stranger, loner_uid) = (64_101, 64_102, 64_103, 64_104);
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    shop.a
        .door(&authority, "shop/mail", "shop/queue", Protocol::Http);
    shop.a.snapshot.enforce_uid = true;
    shop.a.snapshot.doors[0].uid = web_uid;
    shop.a.snapshot.doors[1].uid = mail_uid;
    shop.a.apply();
    assert!(ask_as(web_uid, shop.door).contains("cart"));
    let refused = ask_as(mail_uid, shop.door);
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert!(
        refused
            .contains("service mail does not declare needs: [cart] (the address belongs to web)"),
        "{refused}"
    );
    shop.a.runs("shop/loner-1", "shop/loner", free_address());
    shop.a.snapshot.local[0].uid = Some(loner_uid);
    shop.a.apply();
    let refused = ask_as(loner_uid, shop.door);
    assert!(
        refused.contains("service loner does not declare needs: [cart]"),
        "{refused}"
    );
    assert!(
        ask_as(stranger, shop.door)
            .contains("uid 64103 does not declare needs: [cart] (the address belongs to web)")
    );
    shop.a.snapshot.owners = vec![Owner {
        uid: stranger,
        service: id("shop/elsewhere"),
    }];
    shop.a.apply();
    let refused = ask_as(stranger, shop.door);
    assert!(
        refused.contains("service elsewhere does not declare needs: [cart]"),
        "of another node of this machine: {refused}"
    );
    assert_eq!(cart.count(), 1);
    shop.a.wait(
        "the refused call",
        |told| matches!(told, FromProxy::CallRefused { caller, .. } if caller == "shop/mail"),
    );

    shop.a.snapshot.doors[0].protocol = Protocol::Tcp;
    shop.a.apply();
    assert_eq!(ask_as(mail_uid, shop.door), "");
}

/// A GET by another user's process.
fn ask_as(uid: u32, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    let script = format!(
        "exec 3<>/dev/tcp/{ip}/{port}; printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir("/")
        .uid(uid)
        .gid(uid)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_time_for_a_request_ends_it_and_travels() {
    let told = Arc::new(Mutex::new(String::new()));
    let seen = told.clone();
    let (_never, gate) = mpsc::sync_channel::<()>(0);
    let gate = Arc::new(Mutex::new(gate));
    let cart = Instance::start(move |request| {
        *seen.lock().unwrap() = header(&request.head, "mainland-deadline-ms")
            .unwrap()
            .to_owned();
        Act::Hold(gate.clone(), "late")
    });
    let mut shop = shop(&Authority::new(), cart.address, Protocol::Http);
    shop.a.snapshot.doors[0].timeout = Span::milliseconds(300);
    shop.a.apply();
    let late = get(shop.door, "cart", "/");
    assert_eq!(late.status, 504);
    assert!(late.body.contains("deadline-exceeded"), "{}", late.body);
    let left: u64 = told.lock().unwrap().parse().unwrap();
    assert!(left <= 300, "{left}");
    let request = "GET / HTTP/1.1\r\nHost: x\r\nMainland-Deadline-Ms: 100\r\n\r\n";
    let began = Instant::now();
    assert_eq!(ask(shop.door, request).status, 504);
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert!(told.lock().unwrap().parse::<u64>().unwrap() <= 100);
}

#[test]
fn large_bodies_stream_and_odd_heads_are_refused() {
    let instance = Instance::start(|seen| {
        assert!(seen.body.iter().all(|&byte| byte == b'x'));
        Act::Raw(
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
                seen.body.len(),
                "y".repeat(seen.body.len())
            )
            .into_bytes(),
        )
    });
    let world = web(&instance, &instance);
    let body = "x".repeat(3_000_000);
    let answer = post(world.gateway, "web.localhost", "", &body);
    assert_eq!((answer.status, answer.body.len()), (200, body.len()));
    let chunked = "POST / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n2\r\nxx\r\n0\r\n\r\n";
    assert_eq!(ask(world.gateway, chunked).body, "yyyyy");

    let twice = "GET / HTTP/1.1\r\nHost: web.localhost\r\nHost: x\r\n\r\n";
    assert_eq!(ask(world.gateway, twice).status, 400);
    let long = format!(
        "GET / HTTP/1.1\r\nHost: web.localhost\r\nX: {}\r\n\r\n",
        "a".repeat(70_000)
    );
    assert_eq!(ask(world.gateway, &long).status, 431);
}

#[test]
fn a_body_that_breaks_off_is_seen_as_broken() {
    // More than is waited for, before an answer is begun toward the client.
    let instance = Instance::start(|_| {
        Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf".to_vec())
    });
    let world = web(&instance, &instance);
    let mut client = Client::connect(world.gateway);
    client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
    assert!(client.receive().is_none(), "a half body looked whole");

    let chunked = Instance::start(|_| {
        Act::Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec())
    });
    let world = web(&chunked, &chunked);
    let mut client = Client::connect(world.gateway);
    client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
    assert!(
        client.receive().is_none(),
        "a half chunked body looked whole"
    );
}

#[test]
fn callers_on_the_same_node_pass_the_same_gate() {
    let authority = Authority::new();
    let cart = Instance::start(|seen| {
        assert_eq!(header(&seen.head, "x-mine"), None);
        Act::Answer("cart")
    });
    let mut a = Node::start(&authority, "a");
    let door = a.door(&authority, "shop/web", "shop/cart", Protocol::Http);
    let endpoint = a.runs("shop/cart-1", "shop/cart", cart.address);
    a.road("shop/cart", vec![endpoint]).traffic.wait = Span::milliseconds(100);
    a.lets_in("shop/cart", &[], false);
    a.apply();
    assert_eq!(get(door, "cart", "/").status, 403);
    a.snapshot.callers[0].from = [id("shop/web")].into();
    a.apply();
    let request = "GET / HTTP/1.1\r\nHost: cart\r\nX-Mine: 1\r\nConnection: x-mine\r\n\r\n";
    assert_eq!(ask(door, request).body, "cart");
    a.set_gate("shop/cart-1", Gate::Leaving);
    a.apply();
    let refused = get(door, "cart", "/");
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("(leaving)"), "{}", refused.body);
}

#[test]
fn what_runs_elsewhere_is_dialled_as_it_is_named() {
    let authority = Authority::new();
    let outside = Instance::start(|seen| {
        assert!(header(&seen.head, "host").unwrap().starts_with("127."));
        assert_eq!(header(&seen.head, "mainland-deadline-ms"), None);
        Act::Answer("outside")
    });
    let mut a = Node::start(&authority, "a");
    let door = a.door(&authority, "shop/web", "shop/bank", Protocol::Http);
    let (host, port) = (outside.address.ip().to_string(), outside.address.port());
    a.road("shop/bank", vec![]).external = vec![Address::External { host, port }];
    a.apply();
    assert_eq!(get(door, "anything", "/").body, "outside");
    // And where a WebSocket is asked for.
    let answer = ask(
        door,
        "GET / HTTP/1.1\r\nHost: anything\r\nConnection: upgrade\r\nUpgrade: websocket\r\nMainland-Deadline-Ms: 900\r\n\r\n",
    );
    assert_eq!((answer.status, &*answer.body), (200, "outside"));
}

#[test]
fn odd_but_legal_answers_pass_unchanged() {
    let instance = Instance::start(|seen| {
        let answer = match seen.head.split(' ').nth(1).unwrap() {
            "/old" => "HTTP/1.0 200 OK\r\n\r\nold",
            "/nothing" => "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
            "/same" => "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nConnection: close\r\n\r\n",
            "/ours" => {
                "HTTP/1.1 503 No\r\nMainland-Not-Begun: lie\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            }
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
        };
        Act::Raw(answer.as_bytes().to_vec())
    });
    let world = web(&instance, &instance);
    let mut client = Client::connect(world.gateway);
    let mut ask = |method: &str, path: &str| {
        client.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: web.localhost\r\n\r\n"
        ));
        client.receive_head().unwrap()
    };
    assert!(ask("HEAD", "/").contains("content-length: 5\r\n"));
    assert!(ask("GET", "/nothing").starts_with("HTTP/1.1 204"));
    assert!(ask("GET", "/same").contains("etag: \"1\""));
    let lie = ask("POST", "/ours");
    assert!(
        lie.starts_with("HTTP/1.1 503") && !lie.contains("mainland"),
        "{lie}"
    );
    assert_eq!(
        instance.count(),
        4,
        "what the instance says about beginning is not believed"
    );
    let old = get(world.gateway, "web.localhost", "/old");
    assert!(old.head.starts_with("HTTP/1.1 200"), "{}", old.head);
    assert_eq!(old.body, "old");
}

#[test]
fn a_client_that_leaves_takes_its_request_with_it() {
    let (slow, _never) = holding("slow");
    let mut shop = shop(&Authority::new(), slow.address, Protocol::Http);
    let mut client = Client::connect(shop.door);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually("the copy has it", || slow.count() == 1);
    shop.b.set_gate("shop/cart-1", Gate::Leaving);
    shop.b.apply();
    assert!(
        !shop
            .b
            .has_told(|told| matches!(told, FromProxy::Drained { .. }))
    );
    drop(client);
    shop.b
        .wait("drained", |told| matches!(told, FromProxy::Drained { .. }));
}
