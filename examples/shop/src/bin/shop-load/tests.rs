//! The whole program against a small shop in this process, which is honest or lies in one way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;

use bytes::Bytes;
use clap::Parser as _;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::drive::RunId;
use crate::options::Options;
use crate::report::Report;
use crate::run_plan;
use crate::schedule::DECLINED_CARD;

/// Rows of a page: few, so that every run pages.
const PAGE: usize = 7;
/// A lie is told about each so-manieth checkout.
const LIE_EVERY: u64 = 10;

/// What the shop does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    WrongTotal,
    ForgetsOrders,
    ChargesTwice,
    ChargesAndRefuses,
    SellsAndRefuses,
    SellsTooMuch,
    LeavesAttempts,
    ForgetsMails,
    MailsTwice,
    RefusesGoodCards,
    RefusesFullShelves,
    SaysUnavailable,
    HidesUnavailable,
    NeverAnswers,
    AnswersNoCheckout,
    BreaksOff,
    ClosesConnections,
    HidesLedgers,
}

/// The books and the shelves.
struct Shop {
    lie: Lie,
    checkouts: u64,
    stock: BTreeMap<&'static str, Shelf>,
    orders: Vec<Value>,
    payments: Vec<Value>,
    attempts: Vec<Value>,
    effects: BTreeMap<&'static str, Vec<Value>>,
}

#[derive(Clone, Copy)]
struct Shelf {
    price: i64,
    initial: i64,
    available: i64,
    sold: i64,
}

enum Reply {
    Json(u16, Value),
    Text(u16, String),
    Never,
    Break,
}

impl Shop {
    fn new(lie: Lie) -> Self {
        let shelf = |price, initial| Shelf {
            price,
            initial,
            available: initial,
            sold: 0,
        };
        Self {
            lie,
            checkouts: 0,
            stock: BTreeMap::from([
                ("gem", shelf(9900, 2)),
                ("hat", shelf(2500, 100_000)),
                ("mug", shelf(1200, 100_000)),
                ("pen", shelf(300, 100_000)),
            ]),
            orders: Vec::new(),
            payments: Vec::new(),
            attempts: Vec::new(),
            effects: BTreeMap::from([
                ("email", Vec::new()),
                ("shipping", Vec::new()),
                ("analytics", Vec::new()),
            ]),
        }
    }

    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        after: &str,
        key: &str,
        body: &[u8],
    ) -> Reply {
        if let Some(ledger) = path.strip_prefix("/api/ledger/") {
            return self.ledger(ledger, after);
        }
        if let Some(id) = path.strip_prefix("/api/orders/") {
            let order = self.orders.iter().find(|order| order["order_id"] == id);
            return order.map_or(Reply::Text(404, "no".to_owned()), |order| {
                Reply::Json(200, order.clone())
            });
        }
        match (method, path) {
            (&Method::GET, "/") => Reply::Text(200, "<!doctype html><html>".to_owned()),
            (&Method::GET, "/api/products") => {
                let stock = self.stock.iter();
                let list = stock.map(|(sku, shelf)| json!({ "sku": sku, "name": sku, "price_cents": shelf.price, "stock": shelf.available }));
                Reply::Json(200, list.collect())
            }
            (&Method::POST, "/api/checkout") => self.checkout(key, body),
            _ => Reply::Text(404, "no".to_owned()),
        }
    }

    fn checkout(&mut self, key: &str, body: &[u8]) -> Reply {
        self.checkouts += 1;
        let lies = self.checkouts.is_multiple_of(LIE_EVERY) || self.lie == Lie::AnswersNoCheckout;
        let lie = if lies { self.lie } else { Lie::None };
        let unavailable = json!({ "error": "the provider is slow" });
        match lie {
            Lie::NeverAnswers | Lie::AnswersNoCheckout => Reply::Never,
            Lie::BreaksOff => Reply::Break,
            Lie::SaysUnavailable => Reply::Json(503, unavailable),
            Lie::HidesUnavailable => Reply::Text(503, "<h1>Oops</h1>".to_owned()),
            Lie::RefusesGoodCards => Reply::Json(402, json!({ "error": "declined" })),
            Lie::RefusesFullShelves => Reply::Json(409, json!({ "error": "sold out" })),
            _ => self.sell(lie, key, &serde_json::from_slice(body).unwrap()),
        }
    }

    fn sell(&mut self, lie: Lie, key: &str, basket: &Value) -> Reply {
        assert!(
            self.attempts.iter().all(|attempt| attempt["key"] != key),
            "{key} comes twice"
        );
        let items = basket["items"].as_array().unwrap();
        let sku = |item: &Value| item["sku"].as_str().unwrap().to_owned();
        let quantity = |item: &Value| item["quantity"].as_i64().unwrap();
        let amount = items
            .iter()
            .map(|item| self.stock[sku(item).as_str()].price * quantity(item))
            .sum::<i64>();
        if items
            .iter()
            .any(|item| self.stock[sku(item).as_str()].available < quantity(item))
        {
            self.attempts
                .push(json!({ "key": key, "state": "compensated", "reason": "out of stock" }));
            return Reply::Json(409, json!({ "error": "out of stock" }));
        }
        let payment = format!("p-{}", self.checkouts);
        let paid = |id: &str, state: &str| json!({ "payment_id": id, "key": key, "amount_cents": amount, "state": state });
        if basket["card"] == DECLINED_CARD {
            self.payments.push(paid(&payment, "declined"));
            self.attempts
                .push(json!({ "key": key, "state": "compensated", "reason": "declined" }));
            return Reply::Json(402, json!({ "error": "declined" }));
        }
        self.payments.push(paid(&payment, "captured"));
        if lie == Lie::ChargesTwice {
            self.payments
                .push(paid(&format!("{payment}-again"), "authorized"));
        }
        if lie == Lie::ChargesAndRefuses {
            self.attempts
                .push(json!({ "key": key, "state": "compensated" }));
            return Reply::Json(503, json!({ "error": "no luck" }));
        }
        for item in items {
            let shelf = self.stock.get_mut(sku(item).as_str()).unwrap();
            shelf.sold += quantity(item);
            if lie != Lie::SellsTooMuch {
                shelf.available -= quantity(item);
            }
        }
        self.place(lie, key, &payment, amount, &basket["items"])
    }

    fn place(&mut self, lie: Lie, key: &str, payment: &str, amount: i64, items: &Value) -> Reply {
        let id = format!("o-{}", self.checkouts);
        let state = if lie == Lie::LeavesAttempts {
            "running"
        } else {
            "completed"
        };
        self.attempts
            .push(json!({ "key": key, "state": state, "order_id": id }));
        if lie != Lie::ForgetsOrders {
            self.orders.push(json!({ "order_id": id, "key": key, "total_cents": amount, "payment_id": payment, "items": items, "status": "placed" }));
            for (worker, effects) in &mut self.effects {
                let count = match lie {
                    Lie::ForgetsMails if *worker == "email" => continue,
                    Lie::MailsTwice if *worker == "email" => 2,
                    _ => 1,
                };
                effects.push(json!({ "order_id": id, "type": "order.placed", "count": count }));
            }
        }
        let told = if lie == Lie::WrongTotal {
            amount + 1
        } else {
            amount
        };
        if lie == Lie::SellsAndRefuses {
            return Reply::Json(503, json!({ "error": "no", "outcome": "not charged" }));
        }
        Reply::Json(201, json!({ "order_id": id, "total_cents": told }))
    }

    fn ledger(&self, name: &str, after: &str) -> Reply {
        let stock = self.stock.iter().map(|(sku, shelf)| {
            json!({ "sku": sku, "initial": shelf.initial, "available": shelf.available, "reserved": 0, "sold": shelf.sold })
        });
        let (rows, id): (Vec<Value>, &str) = match name {
            _ if self.lie == Lie::HidesLedgers => return Reply::Text(500, "no books".to_owned()),
            "orders" => (self.orders.clone(), "order_id"),
            "payments" => (self.payments.clone(), "payment_id"),
            "attempts" => (self.attempts.clone(), "key"),
            "stock" => (stock.collect(), "sku"),
            _ => {
                let worker = name.strip_prefix("effects/").unwrap();
                (self.effects[worker].clone(), "order_id")
            }
        };
        let seen = rows.iter().position(|row| row[id] == after);
        let from = seen.map_or(0, |index| index + 1);
        let page = rows[from..].iter().take(PAGE);
        Reply::Text(200, page.map(|row| format!("{row}\n")).collect())
    }
}

/// Serves until the test's tasks end.
async fn open(shop: Rc<RefCell<Shop>>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shop = shop.clone();
            let keep_alive = shop.borrow().lie != Lie::ClosesConnections;
            let service = service_fn(move |request| serve(shop.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .keep_alive(keep_alive)
                .serve_connection(TokioIo::new(stream), service);
            tokio::task::spawn_local(connection);
        }
    });
    port
}

async fn serve(
    shop: Rc<RefCell<Shop>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    assert_eq!(head.headers["host"], "shop.localhost");
    let body = body.collect().await.unwrap().to_bytes();
    let key = head.headers.get("idempotency-key");
    let key = key.map_or("", |key| key.to_str().unwrap());
    let query = head.uri.query().unwrap_or("");
    let after = query.strip_prefix("after=").unwrap_or("");
    let reply = shop
        .borrow_mut()
        .answer(&head.method, head.uri.path(), after, key, &body);
    let (status, text) = match reply {
        Reply::Json(status, value) => (status, value.to_string()),
        Reply::Text(status, text) => (status, text),
        Reply::Never => std::future::pending().await,
        Reply::Break => return Err(std::io::Error::other("broken on purpose")),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    Ok(response)
}

/// Runs a future that may spawn on this thread.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Loads a shop that lies so.
async fn load(lie: Lie, more: &str) -> (anyhow::Result<Report>, Rc<RefCell<Shop>>) {
    let shop = Rc::new(RefCell::new(Shop::new(lie)));
    let port = open(shop.clone()).await;
    let words = format!("shop-load --url http://shop.localhost:{port} --settle 0.2 {more}");
    let plan = Options::parse_from(words.split_whitespace())
        .plan()
        .unwrap();
    let (_stop, stopped) = watch::channel(false);
    let report = run_plan(&plan, RunId::new(1), stopped).await;
    (report, shop)
}

const LOAD: &str = "--rate 400 --seconds 0.25 --timeout 10";
/// For shops that leave questions open.
const IMPATIENT: &str = "--rate 400 --seconds 0.25 --timeout 0.3";

/// The figures that are not zero, of those that decide the exit code.
fn faults(report: &Report) -> Vec<&'static str> {
    let figures = [
        ("failed", report.failed),
        ("unavailable", report.unavailable),
        ("lost", report.lost),
        ("double_charged", report.double_charged),
        ("oversold", report.oversold),
        ("uncompensated", report.uncompensated),
        ("events_lost", report.events_lost),
        ("duplicated_effects", report.duplicated_effects),
    ];
    let faults = figures.into_iter().filter(|(_, count)| *count > 0);
    faults.map(|(name, _)| name).collect()
}

#[test]
fn an_honest_shop_passes() {
    let (report, shop) = run(load(Lie::None, "--rate 400 --seconds 0.5"));
    let report = report.unwrap();
    assert_eq!(faults(&report), [""; 0], "{}", report.remarks());
    assert!(!report.is_bad(false));
    assert_eq!(report.sent, 250, "200 checkouts and their reads");
    assert_eq!(report.ok + report.refused, report.sent);
    assert!(report.refused > 0, "cards are declined and gems sell out");
    let shop = shop.borrow();
    assert_eq!(shop.checkouts, 200);
    assert_eq!(report.orders_in_ledger, shop.orders.len() as u64);
    assert_eq!(report.attempts_in_ledger, 200, "page after page");
}

#[test]
fn each_lie_is_found_by_its_name() {
    for (lie, expected) in [
        (Lie::WrongTotal, vec!["failed"]),
        (
            Lie::ForgetsOrders,
            vec!["lost", "oversold", "uncompensated"],
        ),
        (Lie::ChargesTwice, vec!["double_charged"]),
        (
            Lie::ChargesAndRefuses,
            vec!["failed", "unavailable", "double_charged", "uncompensated"],
        ),
        (
            Lie::SellsAndRefuses,
            vec!["failed", "unavailable", "uncompensated"],
        ),
        (Lie::SellsTooMuch, vec!["oversold"]),
        (Lie::LeavesAttempts, vec!["double_charged", "uncompensated"]),
        (Lie::ForgetsMails, vec!["events_lost"]),
        (Lie::MailsTwice, vec!["duplicated_effects"]),
        (Lie::RefusesGoodCards, vec!["failed"]),
        (Lie::RefusesFullShelves, vec!["failed"]),
        (Lie::SaysUnavailable, vec!["failed", "unavailable"]),
        (Lie::HidesUnavailable, vec!["failed"]),
        (Lie::NeverAnswers, vec!["failed"]),
        (Lie::BreaksOff, vec!["failed"]),
        (Lie::ClosesConnections, vec![]),
    ] {
        let words = if lie == Lie::NeverAnswers {
            IMPATIENT
        } else {
            LOAD
        };
        let (report, _) = run(load(lie, words));
        let report = report.unwrap();
        let mut found = faults(&report);
        // A lie about a confirmed order shows when it is read, too, if it is.
        if lie == Lie::ForgetsOrders {
            found.retain(|name| *name != "failed");
        }
        assert_eq!(found, expected, "{lie:?}: {}", report.remarks());
        assert_eq!(report.is_bad(false), !expected.is_empty(), "{lie:?}");
    }
}

#[test]
fn a_shop_that_does_not_answer_stops_no_request() {
    let words = format!("{IMPATIENT} --reads 0 --connections 4");
    let (report, _) = run(load(Lie::AnswersNoCheckout, &words));
    let report = report.unwrap();
    assert_eq!((report.sent, report.failed), (100, 100));
    // Who waited for answers would have sent four in each 300 ms, and almost all late.
    assert!(report.late < 50, "{} left late", report.late);
    assert!(
        (290.0..2000.0).contains(&report.p50_ms),
        "{} ms",
        report.p50_ms
    );
    let remarks = report.remarks();
    assert!(remarks.contains("no answer in time"), "{remarks}");
}

#[test]
fn an_audit_alone_sends_nothing() {
    let (report, shop) = run(load(Lie::None, "--audit-only"));
    assert_eq!(report.unwrap().sent, 0);
    assert_eq!(shop.borrow().checkouts, 0);
}

#[test]
fn without_ledgers_there_is_no_report() {
    let (report, _) = run(load(Lie::HidesLedgers, LOAD));
    let error = format!("{:#}", report.map(|report| report.to_json()).unwrap_err());
    assert!(error.contains("no books"), "{error}");
    assert!(
        error.contains("sent 125, ok 1"),
        "what was seen is told: {error}"
    );
}

#[test]
fn stopped_early_it_still_audits() {
    let (report, shop) = run(async {
        let shop = Rc::new(RefCell::new(Shop::new(Lie::None)));
        let port = open(shop.clone()).await;
        let words =
            format!("shop-load --url http://shop.localhost:{port} --rate 100 --seconds 1000");
        let plan = Options::parse_from(words.split_whitespace())
            .plan()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let watched = shop.clone();
        tokio::task::spawn_local(async move {
            while watched.borrow().checkouts < 10 {
                tokio::task::yield_now().await;
            }
            stop.send(true).unwrap();
        });
        (run_plan(&plan, RunId::new(1), stopped).await, shop)
    });
    let report = report.unwrap();
    assert!((10..100).contains(&report.sent), "{}", report.sent);
    assert_eq!(report.attempts_in_ledger, shop.borrow().checkouts);
    assert!(!report.is_bad(false), "{}", report.remarks());
}
