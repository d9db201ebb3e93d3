//! Copies that accept and never answer, and peers that can't be dialled.

use std::sync::Condvar;

use model::traffic::Balance;

use super::*;

/// Lets time pass where time itself is what the test is about: a pace, a slow answer.
#[expect(
    clippy::disallowed_methods,
    reason = "the length is the input of the test, not a wait for something"
)]
pub fn pass(length: Duration) {
    std::thread::sleep(length);
}

/// A gateway and three copies, of which the first never answers; each request may take 2 s.
fn three(hangs: &Instance, well: [&Instance; 2]) -> (Vec<Node>, SocketAddr) {
    let authority = Authority::new();
    let mut nodes: Vec<Node> = ["a", "b", "c"]
        .map(|name| Node::start(&authority, name))
        .into();
    let mut endpoints = Vec::new();
    for (number, (node, copy)) in nodes.iter_mut().zip([hangs, well[0], well[1]]).enumerate() {
        endpoints.push(node.runs(&format!("shop/web-{number}"), "shop/web", copy.address));
        node.lets_in("shop/web", &[], true);
        node.apply();
    }
    let mut edge = Node::start(&authority, "edge");
    let gateway = edge.gateway(&[("web.localhost", "/", "shop/web")]);
    let traffic = &mut edge.road("shop/web", endpoints).traffic;
    traffic.timeout = Span::seconds(2);
    edge.apply();
    nodes.push(edge);
    (nodes, gateway)
}

#[test]
fn a_copy_that_hangs_costs_its_first_requests_and_no_more() {
    let (hangs, _never) = holding("never");
    let well = [Instance::answering("well"), Instance::answering("well")];
    let (_nodes, gateway) = three(&hangs, [&well[0], &well[1]]);
    let mut slow = 0;
    let began = Instant::now();
    // Longer than the first ejections last.
    while began.elapsed() < Duration::from_secs(5) {
        let one = Instant::now();
        let answer = get(gateway, "web.localhost", "/");
        assert_eq!((answer.status, answer.body.as_str()), (200, "well"));
        slow += u32::from(one.elapsed() > Duration::from_millis(800));
        pass(Duration::from_millis(2));
    }
    assert!(hangs.count() > 0, "the hanging copy was never asked");
    assert!(slow <= 2, "{slow} requests waited for the hanging copy");
    assert!(hangs.count() <= 6, "{} were sent there", hangs.count());
}

#[test]
fn what_may_not_be_repeated_fails_at_a_hanging_copy_only_before_it_is_known() {
    let (hangs, _never) = holding("never");
    let well = [Instance::answering("well"), Instance::answering("well")];
    let (_nodes, gateway) = three(&hangs, [&well[0], &well[1]]);
    let mut failed = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        let status = post(gateway, "web.localhost", "", "order").status;
        assert!(matches!(status, 200 | 504), "{status}");
        failed += u32::from(status == 504);
        pass(Duration::from_millis(2));
    }
    assert!(failed <= 2, "{failed} failed");
    assert_eq!(hangs.count(), failed, "each was sent to one copy");
}

#[test]
fn a_copy_that_hangs_gets_no_dearer_by_clients_without_patience() {
    let (hangs, _never) = holding("never");
    let well = [Instance::answering("well"), Instance::answering("well")];
    let (_nodes, gateway) = three(&hangs, [&well[0], &well[1]]);
    let mut given_up = 0;
    for _ in 0..200 {
        let mut client = Client::connect(gateway);
        let patience = Some(Duration::from_millis(300));
        client.stream().set_read_timeout(patience).unwrap();
        client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
        given_up += u32::from(client.receive().is_none());
    }
    assert!(given_up <= 4, "{given_up} of 200 gave up");
}

/// As it was asked for: `/slow` takes longer than a try has.
fn slow_or_not(seen: &Seen) -> Act {
    if seen.head.contains(" /slow ") {
        pass(Duration::from_millis(1300));
        return Act::Answer("slow");
    }
    Act::Answer("quick")
}

#[test]
fn a_slow_answer_is_no_hang() {
    let copies = [0; 3].map(|_| Instance::start(slow_or_not));
    let (_nodes, gateway) = three(&copies[0], [&copies[1], &copies[2]]);
    for _ in 0..3 {
        assert_eq!(get(gateway, "web.localhost", "/slow").body, "slow");
        let order = "POST /slow HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 5\r\n\r\norder";
        assert_eq!(ask(gateway, order).body, "slow");
    }
    let begun: Vec<_> = copies.iter().flat_map(Instance::begun).collect();
    let of = |method: &str| begun.iter().filter(|it| it.starts_with(method)).count();
    assert_eq!(of("POST"), 3, "each ran once");
    assert!((3..=6).contains(&of("GET")), "{begun:?}");
}

#[test]
fn slowness_does_not_double_the_load() {
    const SLOW: usize = 100;
    let copies = [0; 3].map(|_| Instance::start(slow_or_not));
    let (mut nodes, gateway) = three(&copies[0], [&copies[1], &copies[2]]);
    for node in &mut nodes[..3] {
        node.snapshot.local[0].max_in_flight = 4096;
        node.apply();
    }
    nodes[3].snapshot.destinations[0].traffic.balance = Balance::RoundRobin;
    nodes[3].apply();
    let asked: Vec<_> = (0..SLOW)
        .map(|_| std::thread::spawn(move || get(gateway, "web.localhost", "/slow").body))
        .collect();
    // The copies answer others all the time, so that it is plain that none hangs.
    while !asked.iter().all(std::thread::JoinHandle::is_finished) {
        assert_eq!(get(gateway, "web.localhost", "/").body, "quick");
        pass(Duration::from_millis(20));
    }
    for asked in asked {
        assert_eq!(asked.join().unwrap(), "slow");
    }
    let begun = copies.iter().flat_map(Instance::begun);
    let ran = begun.filter(|it| it.contains("/slow")).count();
    assert!(ran < SLOW * 9 / 5, "{ran} ran for {SLOW} requests");
}

#[test]
fn what_is_kept_no_longer_is_sent_to_one_copy_alone() {
    let copies = [0; 3].map(|_| {
        Instance::start(|seen| {
            assert!(matches!(seen.body.len(), 30_000 | 1_000_000), "a stump");
            slow_or_not(seen)
        })
    });
    let (_nodes, gateway) = three(&copies[0], [&copies[1], &copies[2]]);
    for (framing, length, most) in [
        ("length", 1_000_000, 1),
        ("chunked", 1_000_000, 1),
        ("length", 30_000, 2),
    ] {
        let body = "x".repeat(length);
        let framed = match framing {
            "length" => format!("Content-Length: {length}\r\n\r\n{body}"),
            _ => format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
        };
        let mut client = Client::connect(gateway);
        for _ in 0..2 {
            client.send(&format!(
                "GET /slow HTTP/1.1\r\nHost: web.localhost\r\n{framed}"
            ));
            assert_eq!(client.receive().expect("an answer").body, "slow");
            let begun: Vec<_> = copies.iter().flat_map(Instance::begun).collect();
            assert!((1..=most).contains(&begun.len()), "{framing}: {begun:?}");
        }
        // Whatever connections it went by are in step.
        for _ in 0..9 {
            let answer = get_long(gateway, 30_000);
            assert_eq!((answer.status, &*answer.body), (200, "quick"));
        }
        copies.iter().for_each(|copy| drop(copy.begun()));
    }
}

fn get_long(gateway: SocketAddr, length: usize) -> Answer {
    let body = "x".repeat(length);
    ask(
        gateway,
        &format!("GET / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: {length}\r\n\r\n{body}"),
    )
}

#[test]
fn a_long_poll_waits_at_the_copy_that_its_client_keeps() {
    let named = |name: &'static str| {
        Instance::start(move |seen| match slow_or_not(seen) {
            Act::Answer(_) => Act::Answer(name),
            other => other,
        })
    };
    let copies = ["one", "two", "three"].map(named);
    let (mut nodes, gateway) = three(&copies[0], [&copies[1], &copies[2]]);
    nodes[3].snapshot.destinations[0].traffic.affinity = model::traffic::Affinity::Cookie;
    nodes[3].apply();
    let first = get(gateway, "web.localhost", "/");
    let cookie = header(&first.head, "set-cookie").unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let kept = |method: &str, path: &str| {
        let fields = format!("Host: web.localhost\r\nCookie: {cookie}\r\nContent-Length: 0");
        let answer = ask(
            gateway,
            &format!("{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n"),
        );
        let set = header(&answer.head, "set-cookie").map(str::to_owned);
        (answer.body, set)
    };
    copies.iter().for_each(|copy| drop(copy.begun()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            // Nobody else is answered while it waits; what is sent meanwhile comes there too.
            let poll = scope.spawn(|| kept("GET", "/slow"));
            pass(Duration::from_millis(1150));
            for method in ["POST", "GET"] {
                assert_eq!(kept(method, "/"), (first.body.clone(), None));
            }
            assert_eq!(poll.join().unwrap(), (first.body.clone(), None));
            assert_eq!(kept("POST", "/slow"), (first.body.clone(), None));
        }
    });
    let polls = copies.iter().flat_map(Instance::begun);
    let polls = polls.filter(|it| it.starts_with("GET /slow")).count();
    assert_eq!(polls, 2, "each ran once");
}

/// How often each of two copies is asked in eight rounds by eight clients at a time.
fn spread(gateway: SocketAddr, copies: [&Instance; 2]) -> [u32; 2] {
    let before = copies.map(Instance::count);
    for _ in 0..8 {
        let ask = move || get(gateway, "web.localhost", "/").status;
        let asked: Vec<_> = (0..8).map(|_| std::thread::spawn(ask)).collect();
        for asked in asked {
            assert_eq!(asked.join().unwrap(), 200);
        }
    }
    [0, 1].map(|copy| copies[copy].count() - before[copy])
}

#[test]
fn an_upload_that_takes_its_time_makes_no_copy_dearer() {
    let copy = || {
        Instance::start(|_| {
            pass(Duration::from_millis(40));
            Act::Answer("well")
        })
    };
    for whole in [true, false] {
        let copies = [copy(), copy()];
        let world = web(&copies[0], &copies[1]);
        let copies = [&copies[0], &copies[1]];
        let served = spread(world.gateway, copies);
        assert!(served.iter().all(|it| *it > 0), "{served:?}");
        let mut client = Client::connect(world.gateway);
        client.send("PUT / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 20\r\n\r\n");
        for _ in 0..15 {
            pass(Duration::from_millis(200));
            client.send("x");
        }
        if whole {
            client.send("xxxxx");
            assert_eq!(client.receive().unwrap().body, "well");
        }
        drop(client);
        pass(Duration::from_millis(100));
        let served = spread(world.gateway, copies);
        assert!(served.iter().all(|it| *it > 2), "{whole}: {served:?}");
    }
}

#[test]
fn a_copy_that_upgrades_nothing_is_found_out_by_upgrades() {
    let echo = || Instance::start(|_| Act::Echo);
    let well = [echo(), echo()];
    for hangs in [false, true] {
        // It accepts, and closes or never answers.
        let (held, _never) = holding("never");
        let closes = Instance::start(|_| Act::Close);
        let bad = if hangs { &held } else { &closes };
        let (mut nodes, gateway) = three(bad, [&well[0], &well[1]]);
        nodes[3].snapshot.destinations[0].traffic.balance = Balance::RoundRobin;
        nodes[3].apply();
        let upgrade = "GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let asked: Vec<_> = (0..30)
            .map(|_| {
                let asked = std::thread::spawn(move || {
                    let mut client = Client::connect(gateway);
                    client.send(upgrade);
                    let head = client.receive_head().unwrap_or_default();
                    head.starts_with("HTTP/1.1 101 ")
                });
                pass(Duration::from_millis(100));
                asked
            })
            .collect();
        let upgraded = asked.into_iter().map(|it| it.join().unwrap());
        let upgraded = upgraded.filter(|upgraded| *upgraded).count();
        match hangs {
            // What was sent there in the first second is lost, and the test of one later on.
            true => assert!(upgraded >= 24, "{upgraded} of 30"),
            false => assert_eq!(upgraded, 30),
        }
        assert!((1..=7).contains(&bad.count()), "{} asked", bad.count());
    }
}

/// An address where connections never come about: its queue is full.
fn without_power() -> (SocketAddr, Vec<socket2::Socket>) {
    let address = free_address();
    let socket = || {
        let kind = socket2::Type::STREAM;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let listener = socket();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let client = socket();
        let _ = client.connect(&address.into());
        sockets.push(client);
    }
    (address, sockets)
}

#[test]
fn a_peer_without_power_fails_no_request_that_has_little_time() {
    let authority = Authority::new();
    let cart = Instance::answering("cart");
    let mut shop = shop(&authority, cart.address, Protocol::Http);
    let (mesh, _queue) = without_power();
    let mut there = shop.b.endpoint("shop/cart-2");
    there.node = "c".parse().unwrap();
    there.mesh = mesh;
    let endpoints = vec![there, shop.b.endpoint("shop/cart-1")];
    shop.a.road("shop/cart", endpoints).traffic.balance = Balance::RoundRobin;
    shop.a.snapshot.doors[0].timeout = Span::milliseconds(600);
    shop.a.apply();
    for _ in 0..60 {
        let answer = post(shop.door, "cart", "", "order");
        assert_eq!((answer.status, answer.body.as_str()), (200, "cart"));
    }
}

#[test]
fn an_upload_lives_as_long_as_it_flows() {
    let cart = Instance::answering("cart");
    let mut shop = shop(&Authority::new(), cart.address, Protocol::Http);
    shop.a.snapshot.doors[0].timeout = Span::milliseconds(500);
    shop.a.apply();
    let mut client = Client::connect(shop.door);
    client.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n");
    for _ in 0..15 {
        pass(Duration::from_millis(100));
        client.send("x");
    }
    assert_eq!(client.receive().unwrap().body, "cart");

    // One that stands still does not.
    let mut client = Client::connect(shop.door);
    client.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\nx");
    assert_eq!(client.receive().unwrap().status, 504);
}

/// A copy that can be made to keep what it is asked in hand, and to die with it.
struct Mortal {
    copy: Instance,
    hand: Arc<(Mutex<Hand>, Condvar)>,
}

#[derive(Default)]
struct Hand {
    in_hand: usize,
    holds: bool,
}

impl Mortal {
    fn start() -> Self {
        let hand = Arc::<(Mutex<Hand>, Condvar)>::default();
        let own = hand.clone();
        let copy = Instance::start(move |_| {
            let (hand, changed) = &*own;
            let mut hand = hand.lock().unwrap();
            if !hand.holds {
                return Act::Answer("well");
            }
            hand.in_hand += 1;
            while hand.holds {
                hand = changed.wait(hand).unwrap();
            }
            hand.in_hand -= 1;
            Act::Close
        });
        Self { copy, hand }
    }

    fn holds(&self) {
        self.hand.0.lock().unwrap().holds = true;
    }

    fn in_hand(&self) -> usize {
        self.hand.0.lock().unwrap().in_hand
    }

    /// Dies with all that it has in hand; its successor, who serves at once, is asked for what comes from now on.
    fn dies_and_is_back(&self) {
        self.hand.0.lock().unwrap().holds = false;
        self.hand.1.notify_all();
    }
}

/// Far more than the retry budget takes.
const IN_HAND: usize = 50;

#[test]
fn copies_that_die_one_after_the_other_fail_no_request_that_may_be_repeated() {
    let copies = [Mortal::start(), Mortal::start(), Mortal::start()];
    let (mut nodes, gateway) = three(&copies[0].copy, [&copies[1].copy, &copies[2].copy]);
    let edge = nodes.last_mut().unwrap();
    let traffic = &mut edge.snapshot.destinations[0].traffic;
    (traffic.balance, traffic.timeout) = (Balance::RoundRobin, Span::seconds(20));
    edge.apply();
    let mut asked = Vec::new();
    for copy in &copies {
        copy.holds();
        while copy.in_hand() < IN_HAND {
            let ask = move || get(gateway, "web.localhost", "/").status;
            asked.extend((0..8).map(|_| std::thread::spawn(ask)));
            assert!(asked.len() < 64 * IN_HAND, "it is never asked");
            pass(Duration::from_millis(5));
        }
        // The one before is taken for broken still, so that most others are not well.
        copy.dies_and_is_back();
    }
    for asked in asked {
        assert_eq!(asked.join().unwrap(), 200);
    }
}
