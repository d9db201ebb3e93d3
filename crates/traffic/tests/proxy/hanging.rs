//! Copies that accept and never answer, and peers that can't be dialled.

use std::sync::Condvar;

use model::traffic::Balance;

use super::*;

/// Lets time pass where time itself is what the test is about: a pace, a slow answer.
#[expect(
    clippy::disallowed_methods,
    reason = "the length is the input of the test, not a wait for something"
)]
fn pass(length: Duration) {
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

#[test]
fn a_slow_answer_is_no_hang() {
    let slow = |text: &'static str| {
        Instance::start(move |_| {
            pass(Duration::from_millis(1300));
            Act::Answer(text)
        })
    };
    let copies = [slow("slow"), slow("slow"), slow("slow")];
    let (_nodes, gateway) = three(&copies[0], [&copies[1], &copies[2]]);
    for _ in 0..3 {
        assert_eq!(get(gateway, "web.localhost", "/").body, "slow");
        assert_eq!(post(gateway, "web.localhost", "", "order").body, "slow");
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
