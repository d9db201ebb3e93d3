//! The shop's books, and how to read them: newline-delimited JSON in pages, each row with enough to ask for what follows it.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::Instant;

use crate::send::{Client, Question, Unanswered};
use crate::verify::{Id, Item};

/// Rows of a ledger at most: the audit holds them all.
const ROWS_MAX: usize = 5_000_000;
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// The workers each of which must act on every order.
pub const WORKERS: [&str; 3] = ["email", "shipping", "analytics"];

/// All books, read one after the other.
#[derive(Debug, Clone, Default)]
pub struct Ledgers {
    pub orders: Vec<Order>,
    pub payments: Vec<Payment>,
    pub stock: Vec<Stock>,
    pub attempts: Vec<Attempt>,
    /// By worker, in the order of [`WORKERS`].
    pub effects: [Vec<Effect>; WORKERS.len()],
}

#[derive(Debug, Clone, Deserialize)]
pub struct Order {
    pub order_id: Id,
    /// Of the checkout that made it.
    pub key: String,
    pub total_cents: i64,
    pub payment_id: Option<Id>,
    pub items: Vec<Item>,
}

/// A charge, as the provider knows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Payment {
    pub payment_id: Id,
    /// Of the checkout that asked for it.
    pub key: String,
    pub amount_cents: i64,
    pub state: Charge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Charge {
    Authorized,
    Captured,
    Voided,
    Declined,
}

impl Charge {
    /// Whether the customer pays or will pay.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Authorized | Self::Captured)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Stock {
    pub sku: String,
    pub initial: i64,
    pub available: i64,
    pub reserved: i64,
    pub sold: i64,
}

/// What became of a checkout.
#[derive(Debug, Clone, Deserialize)]
pub struct Attempt {
    pub key: String,
    pub state: Progress,
    pub order_id: Option<Id>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    Running,
    Completed,
    Compensated,
}

/// What a worker did for an order.
#[derive(Debug, Clone, Deserialize)]
pub struct Effect {
    pub order_id: Id,
    #[serde(rename = "type", default)]
    pub kind: String,
    /// How often it was done.
    pub count: u64,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("GET {path}: {source}")]
    Unanswered { path: String, source: Unanswered },
    #[error("GET {path}: {status} {body}")]
    Status {
        path: String,
        status: u16,
        body: String,
    },
    #[error("GET {path}: {source}, in the row {row}")]
    Row {
        path: String,
        row: String,
        source: serde_json::Error,
    },
    #[error("GET {path}: the page ends where it began")]
    Stuck { path: String },
    #[error("{name} has more than {ROWS_MAX} rows")]
    TooLong { name: String },
}

/// A row says where the next page begins.
pub trait Row: DeserializeOwned {
    fn cursor(&self) -> String;
}

impl Row for Order {
    fn cursor(&self) -> String {
        self.order_id.0.clone()
    }
}

impl Row for Payment {
    fn cursor(&self) -> String {
        self.payment_id.0.clone()
    }
}

impl Row for Stock {
    fn cursor(&self) -> String {
        self.sku.clone()
    }
}

impl Row for Attempt {
    fn cursor(&self) -> String {
        self.key.clone()
    }
}

impl Row for Effect {
    fn cursor(&self) -> String {
        self.order_id.0.clone()
    }
}

/// Reads all books. While the shop works they may contradict each other: each is of its own moment.
pub async fn read_all(client: &Client) -> Result<Ledgers, Error> {
    let mut effects: [Vec<Effect>; WORKERS.len()] = Default::default();
    let attempts = read(client, "attempts").await?;
    let orders = read(client, "orders").await?;
    for (rows, worker) in effects.iter_mut().zip(WORKERS) {
        *rows = read(client, &format!("effects/{worker}")).await?;
    }
    Ok(Ledgers {
        orders,
        payments: read(client, "payments").await?,
        stock: read(client, "stock").await?,
        attempts,
        effects,
    })
}

/// Reads one book, page by page until one is empty.
pub async fn read<R: Row>(client: &Client, name: &str) -> Result<Vec<R>, Error> {
    let mut rows: Vec<R> = Vec::new();
    let mut path = format!("/api/ledger/{name}");
    loop {
        let page: Vec<R> = page(client, &path).await?;
        let Some(last) = page.last() else {
            return Ok(rows);
        };
        let next = format!("/api/ledger/{name}?after={}", encoded(&last.cursor()));
        if next == path {
            return Err(Error::Stuck { path });
        }
        path = next;
        rows.extend(page);
        if rows.len() > ROWS_MAX {
            return Err(Error::TooLong {
                name: name.to_owned(),
            });
        }
    }
}

async fn page<R: Row>(client: &Client, path: &str) -> Result<Vec<R>, Error> {
    let question = Question::Get(path.to_owned());
    let answer = client.ask(question, Instant::now() + PAGE_TIMEOUT).await;
    let answer = answer.map_err(|source| Error::Unanswered {
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status != http::StatusCode::OK {
        return Err(Error::Status {
            path: path.to_owned(),
            status: answer.status.as_u16(),
            body: text.chars().take(200).collect(),
        });
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| row(path, line)).collect()
}

fn row<R: Row>(path: &str, line: &str) -> Result<R, Error> {
    serde_json::from_str(line).map_err(|source| Error::Row {
        path: path.to_owned(),
        row: line.chars().take(200).collect(),
        source,
    })
}

/// Percent-encoded but for what RFC 3986 calls unreserved.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte as char);
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_as_the_shop_writes_them() {
        let order = r#"{"order_id":"o-1","key":"k","total_cents":5,"payment_id":"p-1","items":[{"sku":"mug","quantity":1,"price_cents":5}],"status":"placed"}"#;
        let order: Order = row("orders", order).unwrap();
        assert_eq!(order.items[0].quantity, 1);
        let payment = r#"{"payment_id":"p-1","key":"k","amount_cents":5,"state":"captured"}"#;
        assert!(row::<Payment>("payments", payment).unwrap().state.is_live());
        let attempt: Attempt = row(
            "attempts",
            r#"{"key":"k","state":"compensated","reason":"declined"}"#,
        )
        .unwrap();
        assert_eq!(
            (attempt.state, attempt.order_id),
            (Progress::Compensated, None)
        );
        let effect: Effect = row("effects", r#"{"order_id":7,"type":"placed","count":2}"#).unwrap();
        assert_eq!((effect.order_id.0.as_str(), effect.count), ("7", 2));
    }

    #[test]
    fn a_row_of_an_unknown_state_is_no_row() {
        let error = row::<Attempt>("/x", r#"{"key":"k","state":"asleep"}"#).unwrap_err();
        assert!(error.to_string().contains("asleep"), "{error}");
    }

    #[test]
    fn cursors_are_encoded() {
        for (cursor, expected) in [
            ("a-1_b.c~", "a-1_b.c~"),
            ("a b&c=ä/", "a%20b%26c%3D%C3%A4%2F"),
        ] {
            assert_eq!(encoded(cursor), expected);
        }
    }
}
