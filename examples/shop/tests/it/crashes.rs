//! Checkout dies after each step, forward and back, and loses answers: a second copy brings every attempt to its end.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::StatusCode;
use serde_json::{Value, json};
use shop::by_hand::copies::Copy;

use crate::world::{CARD, Http, World, cart, world};

/// How orders behaves toward the copy that is tried.
#[derive(Clone, Copy, PartialEq)]
enum Orders {
    Real,
    /// Places nothing, and doesn't answer.
    Failing,
    /// Places, and doesn't answer.
    Mute,
}

struct Case {
    orders: Orders,
    crash_after: Option<&'static str>,
    card: &'static str,
    ends: &'static str,
}

const fn case(orders: Orders, crash_after: Option<&'static str>, ends: &'static str) -> Case {
    Case {
        orders,
        crash_after,
        card: CARD,
        ends,
    }
}

const CASES: [Case; 11] = [
    case(Orders::Real, Some("reserve"), "compensated"),
    case(Orders::Real, Some("authorize"), "compensated"),
    case(Orders::Real, Some("place"), "completed"),
    case(Orders::Failing, Some("place"), "compensated"),
    case(Orders::Failing, Some("cancel"), "compensated"),
    case(Orders::Failing, Some("void"), "compensated"),
    case(Orders::Failing, Some("release"), "compensated"),
    case(Orders::Mute, Some("cancel"), "completed"),
    Case {
        orders: Orders::Real,
        crash_after: Some("authorize"),
        card: "4000000000000002",
        ends: "compensated",
    },
    case(Orders::Failing, None, "compensated"),
    case(Orders::Mute, None, "completed"),
];

#[tokio::test]
async fn every_attempt_ends_after_a_crash_between_any_two_steps() {
    let Some(world) = world().await else { return };
    let mut crashed: Vec<(String, Copy)> = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let key = format!("case-{number}");
        let mut copy = copy(&world, case).await;
        let cart = json!({"items": [{"sku": "tide-clock", "quantity": 2}], "card": case.card});
        let answer = world.http.check_out(&copy.address(), &key, &cart).await;
        match (case.crash_after, case.ends) {
            (Some(_), _) => assert!(
                answer.is_none() && has_died(&mut copy).await,
                "{key}: {answer:?}"
            ),
            (None, "completed") => assert_eq!(answer.map(|a| a.0), Some(201), "{key}"),
            (None, _) => {
                let (status, body) = answer.unwrap_or_default();
                assert_eq!(
                    (status, &body["outcome"]),
                    (503, &json!("not charged")),
                    "{key}"
                );
            }
        }
        crashed.push((key, copy));
    }
    let books = world.audit().await;
    for (case, (key, _)) in CASES.iter().zip(&crashed) {
        assert_eq!(
            books.state(key),
            case.ends,
            "{key}: {}",
            books.attempts[key]
        );
    }
}

#[tokio::test]
async fn a_refusal_outlives_the_copy_that_decided_it() {
    let Some(world) = world().await else { return };
    let case = Case {
        card: "4000000000000002",
        ..case(Orders::Real, Some("release"), "compensated")
    };
    let copy = copy(&world, &case).await;
    let cart = json!({"items": [{"sku": "sea-salt", "quantity": 1}], "card": case.card});
    let died = world
        .http
        .check_out(&copy.address(), "declined", &cart)
        .await;
    assert!(died.is_none(), "{died:?}");
    let (status, body) = ask_until_ended(&world, "declined", &cart).await;
    assert_eq!(status, 402, "{body}");
    let books = world.audit().await;
    assert_eq!(books.state("declined"), case.ends);
}

/// A buyer who asks again until there is an end gets one: the order, or the certainty that nothing was charged.
#[tokio::test]
async fn a_retry_of_the_same_key_takes_over_a_dead_attempt() {
    let Some(world) = world().await else { return };
    for step in ["reserve", "authorize", "place"] {
        let case = case(Orders::Real, Some(step), "");
        let copy = copy(&world, &case).await;
        let cart = cart("sea-salt", 1);
        let died = world.http.check_out(&copy.address(), step, &cart).await;
        assert!(died.is_none(), "{died:?}");
        let (status, body) = ask_until_ended(&world, step, &cart).await;
        let books = world.audit().await;
        match status {
            201 => assert_eq!(books.orders[step]["order_id"], body["order_id"]),
            _ => assert_eq!((status, &body["outcome"]), (503, &json!("not charged"))),
        }
        let again = world.check_out(step, &cart).await;
        assert_eq!(again, Some((status, body)), "the same end is told the same");
    }
}

/// Whatever was undone before it came is refused when it comes, and changes nothing.
#[tokio::test]
async fn what_comes_late_is_refused() {
    let Some(world) = world().await else { return };
    let order = json!({"key": "late", "items": [], "total_cents": 900, "payment_id": "p"});
    let payment = json!({"key": "late", "amount_cents": 900, "card": CARD});
    let wanted = json!({"key": "late", "items": [{"sku": "sea-salt", "quantity": 1}]});
    for (service, undo, route, late) in [
        ("orders", "cancel", "place", order),
        ("payment", "void", "authorize", payment),
        ("inventory", "release", "reserve", wanted),
    ] {
        let address = world.shop.address(service);
        for (route, body, expected) in [
            (undo, json!({"key": "late"}), 200),
            (route, late, 410),
            (undo, json!({"key": "late"}), 200),
        ] {
            let url = format!("{address}/{route}");
            let answer = world.http.send("POST", &url, "late", &body).await;
            let (status, body) = answer.unwrap_or_default();
            assert_eq!(status, expected, "{service} {route}: {body}");
        }
    }
    let books = world.audit().await;
    assert_eq!(books.payments["late"]["state"], "voided");
    assert!(books.orders.is_empty());
}

async fn ask_until_ended(world: &World, key: &str, cart: &Value) -> (u16, Value) {
    for _ in 0..200 {
        let answer = world.check_out(key, cart).await;
        let (status, body) = answer.expect("an answer");
        if body["in_progress"] != true && body["outcome"] != "unknown" {
            return (status, body);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{key} doesn't end");
}

/// A copy of checkout that dies where the case says.
async fn copy(world: &World, case: &Case) -> Copy {
    let crash = case.crash_after.unwrap_or_default();
    let orders = match case.orders {
        Orders::Real => world.shop.address("orders"),
        bad => bad_orders(world.shop.address("orders"), bad).await,
    };
    let more = [("SHOP_CRASH_AFTER", crash), ("ORDERS_URL", &orders)];
    let copy = world.shop.plan.start_another("checkout", &more);
    let copy = copy.expect("a copy starts");
    copy.ready("checkout").await.expect("it is ready");
    copy
}

async fn has_died(copy: &mut Copy) -> bool {
    for _ in 0..200 {
        if copy.has_ended() {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    false
}

/// Stands before orders and loses what is placed, or the answer to it.
async fn bad_orders(real: String, orders: Orders) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("its address");
    let state = Arc::new((real, orders, Http::new()));
    let router = Router::new()
        .route("/place", post(place))
        .route("/cancel", post(cancel))
        .with_state(state);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

type Bad = State<Arc<(String, Orders, Http)>>;

async fn place(State(bad): Bad, body: String) -> StatusCode {
    let (real, orders, http) = &*bad;
    if *orders == Orders::Mute {
        let body: Value = serde_json::from_str(&body).expect("an order");
        let placed = http.send("POST", &format!("{real}/place"), "", &body).await;
        assert_eq!(placed.map(|(status, _)| status), Some(201));
    }
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn cancel(State(bad): Bad, body: String) -> Response {
    let (real, _, http) = &*bad;
    let body: Value = serde_json::from_str(&body).expect("a key");
    let answer = http
        .send("POST", &format!("{real}/cancel"), "", &body)
        .await;
    let (status, body) = answer.expect("an answer");
    let status = StatusCode::from_u16(status).expect("a status");
    (status, body).into_response()
}
