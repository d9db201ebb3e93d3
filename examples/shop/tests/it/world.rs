//! A shop to try things on, and the audit that must hold whatever happened.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use shop::by_hand::{Shop, postgres};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

pub const CARD: &str = "4242424242424242";
const ENDED_WITHIN: Duration = Duration::from_secs(40);
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

pub struct World {
    pub shop: Shop,
    pub http: Http,
    /// Removed last.
    _folder: TempDir,
}

/// A shop of its own, or nothing where PostgreSQL is missing.
pub async fn world() -> Option<World> {
    if postgres::installed().is_none() {
        eprintln!("skipped: PostgreSQL is not installed");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    open_to_all(folder.path());
    let program = Path::new(env!("CARGO_BIN_EXE_shop"));
    let shop = Shop::start(program, folder.path()).await;
    Some(World {
        shop: shop.expect("the shop starts"),
        http: Http::new(),
        _folder: folder,
    })
}

/// PostgreSQL may run as another user, who has to come by.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, open).expect("our own folder");
}

#[derive(Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

pub fn cart(sku: &str, quantity: u32) -> Value {
    json!({"items": [{"sku": sku, "quantity": quantity}], "card": CARD})
}

impl Http {
    pub fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// Status and body, or nothing if there was no answer.
    pub async fn send(
        &self,
        method: &str,
        url: &str,
        key: &str,
        body: &Value,
    ) -> Option<(u16, String)> {
        let request = Request::builder().method(method).uri(url);
        let request = request
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a request");
        let answered = timeout(ANSWERED_WITHIN, self.0.request(request)).await;
        let response = answered.ok()?.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }

    pub async fn check_out(&self, checkout: &str, key: &str, cart: &Value) -> Option<(u16, Value)> {
        let url = format!("{checkout}/api/checkout");
        let (status, body) = self.send("POST", &url, key, cart).await?;
        Some((status, serde_json::from_str(&body).unwrap_or(Value::Null)))
    }
}

/// All that the shop has written down.
pub struct Books {
    pub attempts: BTreeMap<String, Value>,
    pub orders: BTreeMap<String, Value>,
    pub payments: BTreeMap<String, Value>,
    pub stock: Vec<Value>,
}

impl World {
    pub async fn check_out(&self, key: &str, cart: &Value) -> Option<(u16, Value)> {
        let checkout = self.shop.address("checkout");
        self.http.check_out(&checkout, key, cart).await
    }

    pub async fn lines(&self, service: &str, book: &str) -> Vec<Value> {
        let url = format!("{}/api/ledger/{book}", self.shop.address(service));
        let answer = self.http.send("GET", &url, "", &Value::Null).await;
        let (status, text) = answer.unwrap_or_default();
        assert_eq!(status, 200, "{book}: {text}");
        let line = |line: &str| serde_json::from_str(line).expect("a line of JSON");
        text.lines().map(line).collect()
    }

    async fn books(&self) -> Books {
        Books {
            attempts: by_key(self.lines("checkout", "attempts").await),
            orders: by_key(self.lines("orders", "orders").await),
            payments: by_key(self.lines("provider", "payments").await),
            stock: self.lines("inventory", "stock").await,
        }
    }

    /// Waits until all attempts have ended and all stock is settled, and audits the books.
    pub async fn audit(&self) -> Books {
        let until = Instant::now() + ENDED_WITHIN;
        loop {
            let books = self.books().await;
            let is_open = |attempt: &Value| attempt["state"] == "running";
            let open: Vec<&Value> = books.attempts.values().filter(|a| is_open(a)).collect();
            let reserved = |stock: &Value| stock["reserved"] != 0;
            if open.is_empty() && !books.stock.iter().any(reserved) {
                books.check();
                return books;
            }
            assert!(
                Instant::now() < until,
                "still open: {open:?} {:?}",
                books.stock
            );
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// No key twice: nobody is charged twice, nobody gets two orders.
fn by_key(lines: Vec<Value>) -> BTreeMap<String, Value> {
    let mut by_key = BTreeMap::new();
    for line in lines {
        let key = line["key"].as_str().expect("a key").to_owned();
        let earlier = by_key.insert(key, line);
        assert!(earlier.is_none(), "twice: {earlier:?}");
    }
    by_key
}

impl Books {
    fn check(&self) {
        for (key, attempt) in &self.attempts {
            let payment = self.payments.get(key);
            let is_charged = payment.is_some_and(|payment| payment["state"] == "authorized");
            match attempt["state"].as_str() {
                Some("completed") => {
                    let order = &self.orders[key];
                    assert_eq!(order["order_id"], attempt["order_id"], "{attempt}");
                    assert!(is_charged, "{attempt} {payment:?}");
                    assert_eq!(
                        order["total_cents"],
                        payment.expect("charged")["amount_cents"]
                    );
                }
                Some("compensated") => {
                    assert!(!self.orders.contains_key(key), "{attempt}");
                    assert!(!is_charged, "{attempt} {payment:?}");
                    assert!(attempt["reason"].is_string(), "it says why: {attempt}");
                }
                _ => panic!("not ended: {attempt}"),
            }
        }
        assert!(
            self.orders
                .keys()
                .all(|key| self.attempts.contains_key(key))
        );
        self.stock.iter().for_each(|stock| self.check_stock(stock));
    }

    fn check_stock(&self, stock: &Value) {
        let number = |field: &str| stock[field].as_i64().expect("a number");
        let lines = self
            .orders
            .values()
            .flat_map(|order| order["items"].as_array());
        let of_product = lines.flatten().filter(|line| line["sku"] == stock["sku"]);
        let sold: i64 = of_product
            .filter_map(|line| line["quantity"].as_i64())
            .sum();
        assert_eq!(number("sold"), sold, "{stock}");
        assert_eq!(number("available") + sold, number("initial"), "{stock}");
        assert!(number("available") >= 0, "{stock}");
    }

    pub fn state(&self, key: &str) -> &str {
        self.attempts[key]["state"].as_str().unwrap_or_default()
    }
}
