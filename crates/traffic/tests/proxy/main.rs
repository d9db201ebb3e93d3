//! The proxy as its neighbours see it: real sockets, certificates of an authority, clients and instances that speak by hand.

mod harness;

use std::sync::{Arc, Mutex, mpsc};

use harness::*;
use model::traffic::{FromProxy, Gate, Protocol};
use model::units::Span;

/// A gateway on an edge node, and `shop/web` on nodes a and b behind the mesh.
struct Web {
    edge: Node,
    a: Node,
    b: Node,
    gateway: std::net::SocketAddr,
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
        lost.body.contains("these would match: web.localhost/"),
        "{}",
        lost.body
    );
}
