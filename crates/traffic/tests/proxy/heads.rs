//! Heads of requests and answers: what is passed on, what is changed, what is refused.

use super::*;

fn mirror() -> Instance {
    Instance::start(|_| Act::Mirror)
}

fn mirrored() -> (Web, Instance) {
    let instance = mirror();
    (web(&instance, &instance), instance)
}

/// What the instance saw of a request that was sent as it stands here.
fn seen(to: SocketAddr, request: &str) -> String {
    let answer = ask(to, request);
    assert_eq!(answer.status, 200, "{request}: {}", answer.body);
    answer.body
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_a_request_like_any_other() {
    let (world, _instance) = mirrored();
    let shop = shop(&Authority::new(), mirror().address, Protocol::Http);
    for to in [world.gateway, shop.door] {
        for upgrade in ["h2c", "TLS/1.0", "websocket, h2c", "echo"] {
            let head = format!(
                "Host: web.localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
            );
            for (framing, body) in [
                ("Content-Length: 5", "hello"),
                ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
            ] {
                let began = Instant::now();
                let text = seen(
                    to,
                    &format!("POST / HTTP/1.1\r\n{head}{framing}\r\n\r\n{body}"),
                );
                assert!(text.ends_with("hello"), "{upgrade}: {text}");
                assert_eq!(header(&text, "upgrade"), None);
                assert_eq!(header(&text, "http2-settings"), None);
                assert!(began.elapsed() < Duration::from_secs(3), "{upgrade}");
            }
        }
        let get =
            "GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        assert_eq!(header(&seen(to, get), "upgrade"), None);
    }
}

#[test]
fn connect_connects_to_nothing() {
    let (world, instance) = mirrored();
    let cart = mirror();
    let shop = shop(&Authority::new(), cart.address, Protocol::Http);
    for to in [world.gateway, shop.door] {
        for target in ["web.localhost:80", "127.0.0.1:22", "/"] {
            let text = format!("CONNECT {target} HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
            let mut client = Client::connect(to);
            client.send(&text);
            let head = client.receive_head().unwrap();
            let status = head.split(' ').nth(1).unwrap();
            // `/` is no target of CONNECT (RFC 9110, 9.3.6).
            assert!(matches!(status, "405" | "400"), "{target}: {head}");
            if status == "405" {
                assert!(
                    header(&head, "allow").is_some_and(|it| it.contains("GET")),
                    "{head}"
                );
            }
        }
    }
    assert_eq!((instance.count(), cart.count()), (0, 0));
}

#[test]
fn what_a_client_says_of_itself_does_not_pass() {
    let (world, _instance) = mirrored();
    let text = seen(
        world.gateway,
        "GET / HTTP/1.1\r\nHost: web.localhost\r\n\
         Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Host, Mainland-Deadline-Ms, Cookie, X-Mine\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Forwarded-Port: 66\r\nX-Forwarded-Prefix: /6\r\nX-Original-URL: /6\r\nX-Rewrite-URL: /6\r\n\
         Mainland_Deadline_Ms: 6\r\nCookie: a=b\r\nX-Mine: 1\r\n\r\n",
    );
    assert!(
        !text.contains('6')
            || header(&text, "mainland-deadline-ms").is_some_and(|it| !it.starts_with('6')),
        "{text}"
    );
    for (name, expected) in [
        ("host", Some("web.localhost")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("web.localhost")),
        ("x_forwarded_for", None),
        ("forwarded", None),
        ("x-real-ip", None),
        ("x-forwarded-port", None),
        ("x-original-url", None),
        ("mainland_deadline_ms", None),
        ("cookie", Some("a=b")),
        ("x-mine", None),
    ] {
        assert_eq!(header(&text, name), expected, "{name}: {text}");
    }
}

#[test]
fn a_declared_balancer_is_believed() {
    let (mut world, _instance) = mirrored();
    let gateway = world.edge.snapshot.gateway.as_mut().unwrap();
    gateway.trusted = vec!["127.0.0.0/8".parse().unwrap()];
    world.edge.apply();
    let text = seen(
        world.gateway,
        "GET / HTTP/1.1\r\nHost: web.localhost\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
         X_Forwarded_For: 6.6.6.6\r\nX-Forwarded-Host: outside.example\r\n\r\n",
    );
    for (name, expected) in [
        ("host", Some("web.localhost")),
        ("x-forwarded-for", Some("192.0.2.7")),
        ("x-forwarded-proto", Some("https")),
        ("x-forwarded-host", Some("web.localhost")),
        ("x_forwarded_for", None),
    ] {
        assert_eq!(header(&text, name), expected, "{name}: {text}");
    }
}

#[test]
fn a_balancer_that_speaks_the_proxy_protocol_says_whose_connection_it_is() {
    let (mut world, _instance) = mirrored();
    let gateway = world.edge.snapshot.gateway.as_mut().unwrap();
    gateway.proxy_protocol = vec!["127.0.0.1".parse().unwrap()];
    world.edge.apply();
    let get = "GET / HTTP/1.1\r\nHost: web.localhost\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    let line = "PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n";
    let text = seen(world.gateway, &format!("{line}{get}"));
    assert_eq!(header(&text, "x-forwarded-for"), Some("192.0.2.7"));
    let mut client = Client::connect(world.gateway);
    client.send(get);
    assert!(client.receive().is_none(), "it came without");

    // Nobody else is believed.
    let gateway = world.edge.snapshot.gateway.as_mut().unwrap();
    gateway.proxy_protocol = vec!["192.0.2.0/24".parse().unwrap()];
    world.edge.apply();
    let mut client = Client::connect(world.gateway);
    client.send(&format!("{line}{get}"));
    assert!(client.receive().is_none_or(|answer| answer.status == 400));
}

#[test]
fn a_service_sets_none_of_our_headers() {
    let cart = mirror();
    let shop = shop(&Authority::new(), cart.address, Protocol::Http);
    let text = seen(
        shop.door,
        "GET / HTTP/1.1\r\nHost: cart\r\nMainland-Insist: 1\r\nMainland_Insist: 1\r\nMainland-Service: a/b\r\nMainland-Epoch: 9\r\n\
         X-Forwarded-For: 192.0.2.7\r\n\r\n",
    );
    for (name, expected) in [
        ("mainland-insist", None),
        ("mainland_insist", None),
        ("mainland-service", None),
        ("mainland-epoch", None),
        // Its own clients are its own business.
        ("x-forwarded-for", Some("192.0.2.7")),
    ] {
        assert_eq!(header(&text, name), expected, "{name}: {text}");
    }
    let held = mirror();
    let mut world = self::shop(&Authority::new(), held.address, Protocol::Http);
    world.b.set_gate("shop/cart-1", Gate::Held);
    world.b.apply();
    world.a.snapshot.destinations[0].traffic.wait = Span::milliseconds(1);
    world.a.apply();
    let insists =
        "GET / HTTP/1.1\r\nHost: cart\r\nMainland-Insist: 1\r\nMainland-Deadline-Ms: 1\r\n\r\n";
    assert_ne!(ask(world.door, insists).status, 200);
}

#[test]
fn only_an_engine_is_told_who_calls_and_by_the_proxy_alone() {
    let cart = mirror();
    let mut shop = shop(&Authority::new(), cart.address, Protocol::Http);
    let forged = "POST / HTTP/1.1\r\nHost: cart\r\nMainland-Caller: shop/admin\r\nMainland_Caller: shop/admin\r\nContent-Length: 0\r\n\r\n";
    for (told, expected) in [(false, None), (true, Some("shop/web"))] {
        shop.b.snapshot.local[0].told_callers = told;
        shop.b.apply();
        let text = seen(shop.door, forged);
        assert_eq!(header(&text, "mainland-caller"), expected, "{text}");
        assert_eq!(header(&text, "mainland_caller"), None, "{text}");
    }
}

#[test]
fn the_host_is_the_targets_and_a_valid_one() {
    let instance = mirror();
    let mut world = web(&instance, &instance);
    let mut routes = world.edge.snapshot.gateway.clone().unwrap().routes;
    let mut any = routes[0].clone();
    any.host = "*".to_owned();
    any.path = "/any".to_owned();
    routes.push(any);
    world.edge.snapshot.gateway.as_mut().unwrap().routes = routes;
    world.edge.apply();
    let gateway = world.gateway;
    for (request, status, host) in [
        (
            "GET http://web.localhost/x HTTP/1.1\r\nHost: raw\r\n",
            200,
            Some("web.localhost"),
        ),
        (
            "GET http://web.localhost/x HTTP/1.1\r\n",
            200,
            Some("web.localhost"),
        ),
        (
            "GET / HTTP/1.1\r\nHost: WEB.localhost.:8080\r\n",
            200,
            Some("WEB.localhost.:8080"),
        ),
        ("GET /any HTTP/1.0\r\n", 200, Some("*")),
        ("GET /any HTTP/1.1\r\n", 400, None),
        ("GET /any HTTP/1.1\r\nHost:\r\n", 400, None),
        ("GET /any HTTP/1.1\r\nHost: a b\r\n", 400, None),
        ("GET /any HTTP/1.1\r\nHost: u@web.localhost\r\n", 400, None),
        ("GET /any HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400, None),
        (
            "GET web.localhost:80 HTTP/1.1\r\nHost: web.localhost\r\n",
            400,
            None,
        ),
        (
            "GET http://u@web.localhost/x HTTP/1.1\r\nHost: web.localhost\r\n",
            400,
            None,
        ),
    ] {
        let answer = ask(gateway, &format!("{request}\r\n"));
        assert_eq!(answer.status, status, "{request}: {}", answer.body);
        match host {
            Some("*") => assert!(
                header(&answer.body, "host").unwrap().starts_with("127."),
                "{request}"
            ),
            Some(host) => {
                assert_eq!(header(&answer.body, "host"), Some(host), "{request}");
                assert_eq!(
                    header(&answer.body, "x-forwarded-host"),
                    Some(host),
                    "{request}"
                );
                let line = answer.body.lines().next().unwrap();
                assert!(line.starts_with("GET /"), "{line}");
            }
            None => {}
        }
    }
}

#[test]
fn framing_is_read_one_way_only() {
    let (world, instance) = mirrored();
    let coded = "POST / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    let refused = ask(world.gateway, coded);
    assert_eq!(refused.status, 501, "{}", refused.body);
    assert!(
        refused.body.contains("coding-not-supported"),
        "{}",
        refused.body
    );
    assert_eq!(instance.count(), 0);
    let text = seen(
        world.gateway,
        "GET / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    assert!(text.ends_with("hello"), "a GET lost its body: {text}");

    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let odd = Instance::start(move |_| Act::Raw(answer.as_bytes().to_vec()));
        let world = web(&odd, &odd);
        let refused = get(world.gateway, "web.localhost", "/");
        assert_eq!(refused.status, 502, "{answer}: {}", refused.body);
        let shop = shop(&Authority::new(), odd.address, Protocol::Http);
        assert_eq!(get(shop.door, "cart", "/").status, 502, "{answer}");
    }
}

#[test]
fn trailers_pass_both_ways() {
    let instance = Instance::start(|seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        assert_eq!(body.to_ascii_lowercase(), "hellox-sum: 7");
        Act::Raw(
            b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 8\r\n\r\n".to_vec(),
        )
    });
    let world = web(&instance, &instance);
    let answer = ask(
        world.gateway,
        "POST / HTTP/1.1\r\nHost: web.localhost\r\nTE: trailers\r\nTrailer: X-Sum, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 7\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body.to_ascii_lowercase(), "okx-sum: 8");
    assert!(header(&answer.head, "date").is_some(), "{}", answer.head);
}

#[test]
fn a_request_without_a_host_gets_that_of_the_door() {
    let (cart, bank) = (mirror(), mirror());
    let authority = Authority::new();
    let mut a = Node::start(&authority, "a");
    let mut b = Node::start(&authority, "b");
    let here = a.runs("shop/bank-1", "shop/bank", bank.address);
    let there = b.runs("shop/cart-1", "shop/cart", cart.address);
    let doors = ["shop/bank", "shop/cart"].map(|need| {
        for node in [&mut a, &mut b] {
            node.lets_in(need, &["shop/web"], false);
        }
        a.door(&authority, "shop/web", need, Protocol::Http)
    });
    a.road("shop/bank", vec![here]);
    a.road("shop/cart", vec![there]);
    b.apply();
    a.apply();
    for door in doors {
        let text = seen(door, "GET / HTTP/1.0\r\n\r\n");
        assert!(text.starts_with("GET / HTTP/1.1\r\n"), "{text}");
        assert_eq!(header(&text, "host"), Some(&*door.to_string()), "{text}");
        let text = seen(door, "GET / HTTP/1.0\r\nHost: own\r\n\r\n");
        assert_eq!(header(&text, "host"), Some("own"), "{text}");
    }
}

#[test]
fn no_answer_brings_our_headers_to_a_client() {
    let lying = Instance::start(|seen| {
        let answer = match seen.head.split(' ').nth(1).unwrap() {
            "/switch" => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nMainland-Not-Begun: lie\r\n\r\n"
            }
            "/trailers" => {
                "HTTP/1.1 200 OK\r\nTrailer: X-Sum, Mainland-Not-Begun\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nMainland-Not-Begun: lie\r\nX-Sum: 1\r\n\r\n"
            }
            _ => "HTTP/1.1 403 No\r\nMainland-Refused: lie\r\nContent-Length: 0\r\n\r\n",
        };
        Act::Raw(answer.as_bytes().to_vec())
    });
    let world = web(&lying, &lying);
    let authority = Authority::new();
    let mut a = Node::start(&authority, "a");
    let door = a.door(&authority, "shop/web", "shop/bank", Protocol::Http);
    let (host, port) = (lying.address.ip().to_string(), lying.address.port());
    a.road("shop/bank", vec![]).external = vec![Address::External { host, port }];
    a.apply();
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for to in [world.gateway, door] {
        for (path, fields) in [
            ("/switch", upgrade),
            ("/refused", upgrade),
            ("/refused", ""),
            ("/trailers", "TE: trailers\r\nConnection: close\r\n"),
        ] {
            let mut client = Client::connect(to);
            client.send(&format!(
                "GET {path} HTTP/1.1\r\nHost: web.localhost\r\n{fields}\r\n"
            ));
            let mut text = client.receive_head().unwrap();
            if path == "/trailers" {
                text += &String::from_utf8(client.read_to_end()).unwrap();
            }
            let text = text.to_lowercase();
            assert!(!text.contains("\nmainland"), "{text}");
            assert!(path != "/trailers" || text.contains("\nx-sum: 1"), "{text}");
        }
    }
}

#[test]
fn an_old_client_is_offered_no_upgrade_and_an_old_answer_to_one_is_a_new_one() {
    let old = Instance::start(|seen| match header(&seen.head, "upgrade") {
        Some(_) => Act::Raw(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()),
        None => Act::Answer("plain"),
    });
    let world = web(&old, &old);
    let fields = "Host: web.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    for (version, expected) in [
        ("1.0", "HTTP/1.0 200 OK"),
        ("1.1", "HTTP/1.1 404 Not Found"),
    ] {
        let answer = ask(world.gateway, &format!("GET / HTTP/{version}\r\n{fields}"));
        assert_eq!(answer.head.lines().next(), Some(expected));
    }
}

#[test]
fn what_an_answer_says_in_its_head_alone_is_passed_on() {
    let instance = Instance::start(|seen| {
        let answer = match seen.head.split(' ').nth(1).unwrap() {
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 1234\r\n\r\n",
            "/304-bare" => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            "/204" => "HTTP/1.1 204 No Content\r\nContent-Length: 1234\r\n\r\n",
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            "/299" => "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n",
            "/599" => "HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n",
            _ => return Act::Answer("next"),
        };
        Act::Raw(answer.as_bytes().to_vec())
    });
    let world = web(&instance, &instance);
    let authority = Authority::new();
    let mut a = Node::start(&authority, "a");
    let endpoint = a.runs("shop/bank-1", "shop/bank", instance.address);
    a.lets_in("shop/bank", &["shop/web"], false);
    let door = a.door(&authority, "shop/web", "shop/bank", Protocol::Http);
    a.road("shop/bank", vec![endpoint]);
    a.apply();
    for to in [world.gateway, door] {
        for (request, line, length) in [
            ("GET /304", "HTTP/1.1 304 Not Modified", Some("1234")),
            ("HEAD /304", "HTTP/1.1 304 Not Modified", Some("1234")),
            ("GET /304-bare", "HTTP/1.1 304 Not Modified", None),
            // It must not have one (RFC 9110, 8.6).
            ("GET /204", "HTTP/1.1 204 No Content", None),
            ("HEAD /head", "HTTP/1.1 200 OK", Some("1234")),
            ("GET /299", "HTTP/1.1 299 ", Some("0")),
            ("GET /599", "HTTP/1.1 599 ", Some("0")),
        ] {
            let mut client = Client::connect(to);
            client.send(&format!(
                "{request} HTTP/1.1\r\nHost: web.localhost\r\nIf-None-Match: \"a\"\r\n\r\n"
            ));
            let head = client.receive_head().expect("an answer's head");
            assert_eq!(head.lines().next(), Some(line), "{request}");
            assert_eq!(header(&head, "content-length"), length, "{request}: {head}");
            assert_eq!(
                header(&head, "transfer-encoding"),
                None,
                "{request}: {head}"
            );
            // Nothing of a body came, nor is any waited for.
            client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
            let next = client.receive().expect("the next answer");
            assert_eq!((next.status, &*next.body), (200, "next"), "{request}");
        }
    }
}

#[test]
fn what_cant_be_read_is_refused_with_its_reason() {
    let (world, instance) = mirrored();
    let many: String = (0..300).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (request, status, reason) in [
        (
            "GET /?q={\"a\":1} HTTP/1.1\r\nHost: web.localhost\r\n\r\n".to_owned(),
            400,
            "%",
        ),
        (
            "GET /a b HTTP/1.1\r\nHost: web.localhost\r\n\r\n".to_owned(),
            400,
            "%20",
        ),
        (
            "GET / HTTP/1.1\r\nHost: web.localhost\r\nno field\r\n\r\n".to_owned(),
            400,
            "field 2",
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: web.localhost\r\nX: {}\r\n\r\n",
                "a".repeat(70_000)
            ),
            431,
            "65536",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: web.localhost\r\n{many}\r\n"),
            431,
            "256",
        ),
    ] {
        // Also after a request that was well.
        for before in [false, true] {
            let mut client = Client::connect(world.gateway);
            if before {
                client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
                assert_eq!(client.receive().unwrap().status, 200);
            }
            client.send(&request);
            let answer = client.receive().unwrap();
            assert_eq!(answer.status, status, "{}", answer.head);
            assert_eq!(
                header(&answer.head, "content-type"),
                Some("application/problem+json")
            );
            assert!(answer.body.contains(reason), "{}", answer.body);
            assert_eq!(client.read_to_end(), b"");
        }
    }
    let before = instance.count();
    let bare = Instance::start(|_| {
        Act::Raw(
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec(),
        )
    });
    assert_eq!(
        get(web(&bare, &bare).gateway, "web.localhost", "/").body,
        "",
        "a program's own answer"
    );
    assert_eq!(instance.count(), before);
}

#[test]
fn a_body_that_reads_like_a_refusal_passes_as_it_is() {
    const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    // More than is waited for, so that the piece comes by itself; and what is small.
    for padding in [0, 70_000] {
        let (let_go, gate) = mpsc::sync_channel(0);
        let gate = Arc::new(Mutex::new(gate));
        let length = padding + BARE.len();
        let first = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
            "x".repeat(padding)
        );
        let first: &'static str = Box::leak(first.into_boxed_str());
        let page = Instance::start(move |_| Act::Halves(first, gate.clone(), BARE));
        let world = web(&page, &page);
        let mut client = Client::connect(world.gateway);
        client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n");
        let head = client.receive_head().unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        client.read_exact(padding);
        drop(let_go);
        let rest = String::from_utf8(client.read_exact(BARE.len())).unwrap();
        assert_eq!(rest, BARE);
    }
}

#[test]
fn an_answer_that_comes_before_the_upload_has_ended_arrives() {
    // Reads the head alone, refuses, and closes over what is unread.
    let address = free_address();
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        use std::io::Read;
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(
                b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntoo",
            );
        }
    });
    let authority = Authority::new();
    let mut a = Node::start(&authority, "a");
    let mut b = Node::start(&authority, "b");
    let endpoints = [
        ("shop/cart", a.runs("shop/cart-1", "shop/cart", address)),
        ("shop/bank", b.runs("shop/bank-1", "shop/bank", address)),
    ];
    let mut doors = Vec::new();
    for (need, endpoint) in endpoints {
        for node in [&mut a, &mut b] {
            node.lets_in(need, &["shop/web"], false);
        }
        doors.push(a.door(&authority, "shop/web", need, Protocol::Http));
        a.road(need, vec![endpoint]);
    }
    b.apply();
    a.apply();
    let body = "x".repeat(4_000_000);
    for door in doors {
        for framing in [
            "Content-Length: 4000000\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n3d0900\r\n",
        ] {
            // Nothing can follow on a connection where more of the body is to come.
            let mut client = Client::connect(door);
            let begun = &body[..100_000];
            client.send(&format!("POST / HTTP/1.1\r\nHost: x\r\n{framing}{begun}"));
            let answer = client.receive().expect("an answer");
            assert_eq!(
                header(&answer.head, "connection"),
                Some("close"),
                "{framing}"
            );
            for _ in 0..10 {
                let mut client = Client::connect(door);
                client.send(&format!("POST / HTTP/1.1\r\nHost: x\r\n{framing}"));
                // As Python's clients do: all of it, and only then a look at the answer.
                client.send(&body);
                let answer = client.receive().expect("an answer");
                assert_eq!(
                    (answer.status, answer.body.as_str()),
                    (413, "too"),
                    "{framing}"
                );
            }
        }
    }
}

#[test]
fn a_client_keeps_its_copy_by_a_cookie_when_that_is_asked_for() {
    let (one, two) = (Instance::answering("one"), Instance::answering("two"));
    let mut world = web(&one, &two);
    let first = get(world.gateway, "web.localhost", "/");
    assert_eq!(
        header(&first.head, "set-cookie"),
        None,
        "nobody asked for it"
    );
    world.edge.snapshot.destinations[0].traffic.affinity = model::traffic::Affinity::Cookie;
    world.edge.apply();
    let first = get(world.gateway, "web.localhost", "/");
    let cookie = header(&first.head, "set-cookie").unwrap().to_owned();
    assert!(
        cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: web.localhost\r\nCookie: a=b; {cookie}\r\n\r\n");
    for _ in 0..40 {
        let answer = ask(world.gateway, &request);
        assert_eq!(answer.body, first.body);
        assert_eq!(header(&answer.head, "set-cookie"), None);
    }
    // Its copy leaves: another one, and its cookie.
    let (node, copy) = match first.body.as_str() {
        "one" => (&mut world.a, "shop/web-1"),
        _ => (&mut world.b, "shop/web-2"),
    };
    node.set_gate(copy, Gate::Leaving);
    node.apply();
    let answer = ask(world.gateway, &request);
    assert_eq!(answer.status, 200);
    assert_ne!(answer.body, first.body);
    assert!(header(&answer.head, "set-cookie").is_some_and(|it| !it.starts_with(cookie)));
}
