//! What an answer must be. Pure: a question, what is known of the shop, an answer, a verdict.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::schedule::{Basket, DECLINED_CARD};
use crate::send::Answer;

/// Characters of a body that a failure shows.
const BODY_START: usize = 120;

/// So many of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub sku: String,
    pub quantity: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Product {
    pub sku: String,
    pub price_cents: i64,
    pub stock: i64,
}

/// An order that the shop has confirmed: the ledgers must have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub key: String,
    pub order_id: String,
    pub total_cents: i64,
    pub items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// A read that is right.
    Ok,
    Ordered(Receipt),
    /// 402 or 409, and rightly so. Under this key there must never be an order.
    Refused {
        key: String,
    },
    /// 503, said honestly. With a key: that of a checkout of which it was said that nothing is charged.
    Unavailable {
        said: String,
        undone: Option<String>,
    },
    Failed(String),
}

/// What is known of the shop from outside: prices, and enough to tell whether a product can be out of stock.
#[derive(Debug, Default)]
pub struct Catalogue {
    products: BTreeMap<String, Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    price_cents: i64,
    /// The least that the shop has shown.
    least_stock: i64,
    /// What this run has asked for in all: at most so much has gone since a stock was shown.
    asked: i64,
}

impl Catalogue {
    pub fn new(products: &[Product]) -> Self {
        let known = |product: &Product| Known {
            price_cents: product.price_cents,
            least_stock: product.stock,
            asked: 0,
        };
        let products = products.iter();
        Self {
            products: products.map(|p| (p.sku.clone(), known(p))).collect(),
        }
    }

    /// Product codes with the least stock that was shown.
    pub fn stock(&self) -> impl Iterator<Item = (&str, i64)> + Clone {
        let products = self.products.iter();
        products.map(|(sku, known)| (sku.as_str(), known.least_stock))
    }

    /// Counts what is about to be asked for.
    pub fn ask(&mut self, basket: &Basket) {
        for item in &basket.items {
            if let Some(known) = self.products.get_mut(&item.sku) {
                known.asked += item.quantity;
            }
        }
    }

    fn total_cents(&self, basket: &Basket) -> i64 {
        let price = |sku: &String| self.products.get(sku).map_or(0, |known| known.price_cents);
        let items = basket.items.iter();
        items.map(|item| price(&item.sku) * item.quantity).sum()
    }

    /// All that was asked for may have been sold, and more than that only to others. If the shop names what is short, that must be it.
    fn conflict(&self, basket: &Basket, key: &str, answer: &Answer) -> Verdict {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Conflict {
            in_progress: bool,
            skus: Option<Vec<String>>,
        }
        let conflict: Conflict = serde_json::from_slice(&answer.body).unwrap_or_default();
        if conflict.in_progress {
            return failed(answer, "nobody else has this key");
        }
        let is_named = |sku: &String| conflict.skus.as_ref().is_none_or(|skus| skus.contains(sku));
        let may_be_short = basket.items.iter().any(|item| {
            let known = self.products.get(&item.sku);
            is_named(&item.sku) && known.is_none_or(|known| known.least_stock < known.asked)
        });
        match may_be_short {
            true => refused(key),
            false => failed(answer, "there must be enough in stock"),
        }
    }

    /// Judges the answer to a checkout.
    pub fn checkout(&self, basket: &Basket, key: &str, answer: &Answer) -> Verdict {
        let declined = basket.card == DECLINED_CARD;
        match answer.status {
            StatusCode::CREATED if declined => failed(answer, "the declined card has paid"),
            StatusCode::CREATED => self.created(basket, key, answer),
            StatusCode::PAYMENT_REQUIRED if declined => refused(key),
            StatusCode::PAYMENT_REQUIRED => failed(answer, "the card is good"),
            StatusCode::CONFLICT => self.conflict(basket, key, answer),
            StatusCode::SERVICE_UNAVAILABLE => undone(key, answer),
            _ => unexpected(answer),
        }
    }

    fn created(&self, basket: &Basket, key: &str, answer: &Answer) -> Verdict {
        #[derive(Deserialize)]
        struct Created {
            order_id: Id,
            total_cents: i64,
        }
        let created = serde_json::from_slice(&answer.body).ok();
        let Some(created) = created.filter(|created: &Created| fits_a_path(&created.order_id.0))
        else {
            return failed(answer, "not an order_id and total_cents");
        };
        let total_cents = self.total_cents(basket);
        if created.total_cents != total_cents {
            let expected = format!("the total must be {total_cents}");
            return failed(answer, &expected);
        }
        Verdict::Ordered(Receipt {
            key: key.to_owned(),
            order_id: created.order_id.0,
            total_cents,
            items: basket.items.clone(),
        })
    }

    /// Judges a list of products, and learns the stock from it.
    pub fn products(&mut self, answer: &Answer) -> Verdict {
        if answer.status != StatusCode::OK {
            return unexpected(answer);
        }
        let Ok(products) = serde_json::from_slice::<Vec<Product>>(&answer.body) else {
            return failed(answer, "not a list of products");
        };
        let mut known = 0;
        for product in &products {
            let Some(before) = self.products.get_mut(&product.sku) else {
                continue;
            };
            if before.price_cents != product.price_cents {
                return failed(answer, "a price has changed");
            }
            if product.stock < 0 {
                return failed(answer, "less than nothing is in stock");
            }
            before.least_stock = before.least_stock.min(product.stock);
            known += 1;
        }
        match known == self.products.len() {
            true => Verdict::Ok,
            false => failed(answer, "a product is missing"),
        }
    }
}

fn refused(key: &str) -> Verdict {
    let key = key.to_owned();
    Verdict::Refused { key }
}

/// A 503 of checkout may say that nothing was, or stays, charged.
fn undone(key: &str, answer: &Answer) -> Verdict {
    #[derive(Deserialize)]
    struct Outcome {
        outcome: String,
    }
    let outcome = serde_json::from_slice(&answer.body).ok();
    let is_undone = outcome.is_some_and(|said: Outcome| said.outcome == "not charged");
    match unexpected(answer) {
        Verdict::Unavailable { said, .. } => Verdict::Unavailable {
            said,
            undone: is_undone.then(|| key.to_owned()),
        },
        other => other,
    }
}

/// An order's page is at its id.
fn fits_a_path(id: &str) -> bool {
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"-._~".contains(&c);
    !id.is_empty() && id.bytes().all(fits)
}

/// Judges the page.
pub fn page(answer: &Answer) -> Verdict {
    let text = answer.body.trim_ascii_start();
    let starts_with = |start: &[u8]| {
        let head = text.get(..start.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(start))
    };
    let is_page = starts_with(b"<!doctype html") || starts_with(b"<html");
    match answer.status {
        StatusCode::OK if is_page => Verdict::Ok,
        StatusCode::OK => failed(answer, "not a page"),
        _ => unexpected(answer),
    }
}

/// Judges what the shop says of an order that it has confirmed.
pub fn order(receipt: &Receipt, answer: &Answer) -> Verdict {
    #[derive(Deserialize)]
    struct Order {
        order_id: Id,
        status: String,
        items: Vec<Item>,
        total_cents: i64,
        payment_id: Id,
    }
    if answer.status != StatusCode::OK {
        return unexpected(answer);
    }
    let Ok(order) = serde_json::from_slice::<Order>(&answer.body) else {
        return failed(answer, "not an order");
    };
    let is_whole = !order.status.is_empty() && !order.payment_id.0.is_empty();
    let is_same = order.order_id.0 == receipt.order_id && order.total_cents == receipt.total_cents;
    match is_whole && is_same && same_items(&order.items, &receipt.items) {
        true => Verdict::Ok,
        false => failed(answer, "not the order that was confirmed"),
    }
}

/// Whether both name the same products in the same quantities, in whatever order and portions.
pub fn same_items(one: &[Item], other: &[Item]) -> bool {
    fn sums(items: &[Item]) -> BTreeMap<&str, i64> {
        let mut sums = BTreeMap::new();
        for item in items {
            *sums.entry(item.sku.as_str()).or_default() += item.quantity;
        }
        sums
    }
    sums(one) == sums(other)
}

/// A status that no rule of the shop allows, or the honest 503: a JSON object that says the reason, in the shop's form (`error`) or that of
/// RFC 9457 (`title`), which whatever stands before the shop answers with.
fn unexpected(answer: &Answer) -> Verdict {
    if answer.status != StatusCode::SERVICE_UNAVAILABLE {
        return failed(answer, "unexpected");
    }
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let said = body.as_ref().and_then(|body| {
        let reason = body.get("error").or_else(|| body.get("title"));
        reason.filter(|reason| !reason.is_null())
    });
    match said {
        Some(_) => Verdict::Unavailable {
            said: describe(answer, "unavailable"),
            undone: None,
        },
        None => failed(answer, "a 503 must say its reason as JSON"),
    }
}

fn failed(answer: &Answer, why: &str) -> Verdict {
    Verdict::Failed(describe(answer, why))
}

fn describe(answer: &Answer, why: &str) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let start: String = text.chars().take(BODY_START).map(printable).collect();
    format!("{} {why}: {start}", answer.status.as_u16())
}

/// An id in JSON: text, or a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err(serde::de::Error::custom("an id is text or a number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::CARD;

    fn item(sku: &str, quantity: i64) -> Item {
        Item {
            sku: sku.to_owned(),
            quantity,
        }
    }

    fn catalogue() -> Catalogue {
        let product = |sku: &str, price_cents, stock| Product {
            sku: sku.to_owned(),
            price_cents,
            stock,
        };
        Catalogue::new(&[product("mug", 1200, 1000), product("gem", 9900, 2)])
    }

    fn basket(card: &'static str) -> Basket {
        Basket {
            items: vec![item("mug", 2), item("gem", 1)],
            card,
        }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: body.to_owned().into(),
        }
    }

    /// The verdict in a word.
    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Ok => "ok",
            Verdict::Ordered(_) => "ordered",
            Verdict::Refused { .. } => "refused",
            Verdict::Unavailable { undone: None, .. } => "unavailable",
            Verdict::Unavailable { .. } => "undone",
            Verdict::Failed(_) => "failed",
        }
    }

    #[test]
    fn answers_to_a_checkout() {
        let right = r#"{"order_id":"o-1","total_cents":12300}"#;
        let error = r#"{"error":"the provider is slow"}"#;
        let unknown = r#"{"error":"wait","outcome":"unknown"}"#;
        let undone = r#"{"error":"no stock","outcome":"not charged"}"#;
        let problem = r#"{"type":"urn:x","title":"No copy answers","status":503}"#;
        for (card, status, body, expected) in [
            (CARD, 201, right, "ordered"),
            (
                CARD,
                201,
                r#"{"order_id":7,"total_cents":12300,"more":1}"#,
                "ordered",
            ),
            (
                CARD,
                201,
                r#"{"order_id":"o-1","total_cents":12299}"#,
                "failed",
            ),
            (CARD, 201, r#"{"total_cents":12300}"#, "failed"),
            (CARD, 201, r#"{"order_id":"o-1"}"#, "failed"),
            (
                CARD,
                201,
                r#"{"order_id":"a b","total_cents":12300}"#,
                "failed",
            ),
            (CARD, 201, "", "failed"),
            (CARD, 200, right, "failed"),
            (CARD, 402, error, "failed"),
            (CARD, 409, error, "failed"),
            (CARD, 503, error, "unavailable"),
            (CARD, 503, unknown, "unavailable"),
            (CARD, 503, undone, "undone"),
            (CARD, 503, problem, "unavailable"),
            (CARD, 503, "<h1>Oops</h1>", "failed"),
            (CARD, 503, r#"{"error":null}"#, "failed"),
            (CARD, 503, "", "failed"),
            (CARD, 500, error, "failed"),
            (CARD, 502, error, "failed"),
            (DECLINED_CARD, 402, error, "refused"),
            (DECLINED_CARD, 201, right, "failed"),
            (DECLINED_CARD, 409, error, "failed"),
            (DECLINED_CARD, 503, error, "unavailable"),
        ] {
            let verdict = catalogue().checkout(&basket(card), "key", &answer(status, body));
            assert_eq!(
                word(&verdict),
                expected,
                "{card} {status} {body}: {verdict:?}"
            );
        }
    }

    #[test]
    fn a_refusal_for_want_of_stock_names_what_is_short() {
        let (mut catalogue, basket) = (catalogue(), basket(CARD));
        for _ in 0..3 {
            catalogue.ask(&basket);
        }
        for (body, expected) in [
            (r#"{"error":"out of stock","skus":["gem"]}"#, "refused"),
            (r#"{"error":"out of stock","skus":["mug"]}"#, "failed"),
            (r#"{"error":"out of stock","skus":["rug"]}"#, "failed"),
            (r#"{"error":"still running","in_progress":true}"#, "failed"),
            ("sold out", "refused"),
        ] {
            let verdict = catalogue.checkout(&basket, "key", &answer(409, body));
            assert_eq!(word(&verdict), expected, "{body}");
        }
    }

    #[test]
    fn a_refusal_for_want_of_stock_must_be_plausible() {
        let mut catalogue = catalogue();
        let (basket, conflict) = (basket(CARD), answer(409, r#"{"error":"out of stock"}"#));
        for (asked, expected) in [(1, "failed"), (2, "failed"), (3, "refused")] {
            catalogue.ask(&basket);
            let verdict = catalogue.checkout(&basket, "key", &conflict);
            assert_eq!(word(&verdict), expected, "{asked} of 2 asked for");
        }
    }

    #[test]
    fn a_list_of_products_teaches_the_stock() {
        let mut catalogue = catalogue();
        let (basket, conflict) = (basket(CARD), answer(409, "{}"));
        catalogue.ask(&basket);
        let sold_out = r#"[{"sku":"mug","name":"M","price_cents":1200,"stock":9},{"sku":"gem","name":"G","price_cents":9900,"stock":0}]"#;
        assert_eq!(catalogue.products(&answer(200, sold_out)), Verdict::Ok);
        let verdict = catalogue.checkout(&basket, "key", &conflict);
        assert_eq!(word(&verdict), "refused");
    }

    #[test]
    fn answers_to_reads() {
        let mug = r#"{"sku":"mug","price_cents":1200,"stock":9}"#;
        let gem = |price: i64, stock: i64| {
            format!(r#"{{"sku":"gem","price_cents":{price},"stock":{stock}}}"#)
        };
        for (status, body, expected) in [
            (200, format!("[{mug},{}]", gem(9900, 1)), "ok"),
            (200, format!("[{mug},{}]", gem(9901, 1)), "failed"),
            (200, format!("[{mug},{}]", gem(9900, -1)), "failed"),
            (200, format!("[{mug}]"), "failed"),
            (200, "[]".to_owned(), "failed"),
            (404, String::new(), "failed"),
            (503, r#"{"error":"x"}"#.to_owned(), "unavailable"),
        ] {
            let verdict = catalogue().products(&answer(status, &body));
            assert_eq!(word(&verdict), expected, "{status} {body}");
        }
        for (status, body, expected) in [
            (200, "\n<!DOCTYPE html><title>", "ok"),
            (200, "<html lang=en>", "ok"),
            (200, "", "failed"),
            (200, "{}", "failed"),
            (404, "<html>", "failed"),
            (503, "{\"error\":\"x\"}", "unavailable"),
        ] {
            assert_eq!(
                word(&page(&answer(status, body))),
                expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn answers_about_an_order() {
        let receipt = Receipt {
            key: "key".to_owned(),
            order_id: "o-1".to_owned(),
            total_cents: 12300,
            items: basket(CARD).items,
        };
        let right = r#"{"order_id":"o-1","status":"placed","items":[{"sku":"gem","quantity":1,"price_cents":9900},{"sku":"mug","quantity":2}],"total_cents":12300,"payment_id":"p"}"#;
        for (status, body, expected) in [
            (200, right.to_owned(), "ok"),
            (200, right.replace("o-1", "o-2"), "failed"),
            (200, right.replace("12300", "1"), "failed"),
            (
                200,
                right.replace("\"quantity\":2", "\"quantity\":3"),
                "failed",
            ),
            (200, right.replace("\"p\"", "null"), "failed"),
            (200, right.replace("placed", ""), "failed"),
            (404, String::new(), "failed"),
            (503, r#"{"error":"x"}"#.to_owned(), "unavailable"),
        ] {
            let verdict = order(&receipt, &answer(status, &body));
            assert_eq!(word(&verdict), expected, "{status} {body}");
        }
    }
}
