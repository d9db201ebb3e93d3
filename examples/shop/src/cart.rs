//! What somebody means to buy, kept under a session whose cookie is signed: nobody makes one up, or reads another's cart by
//! guessing.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, header};
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::chance;
use crate::database::Database;
use crate::inventory::Item;
use crate::service::{self, Error, Refusal, Settings, hexadecimal};

const COOKIE: &str = "session";
/// Of different things.
pub const ITEMS: usize = 50;
/// Of one thing.
pub const QUANTITY: i64 = 99;

struct Carts {
    database: Database,
    key: hmac::Key,
}

type Shared = State<Arc<Carts>>;

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let key = settings.require("SESSION_KEY")?;
    let carts = Carts {
        database: settings.database()?,
        key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()),
    };
    let router = Router::new()
        .route("/api/cart", get(read).put(write))
        .with_state(Arc::new(carts));
    service::serve(settings, router).await
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Cart {
    items: Vec<Item>,
}

async fn read(State(carts): Shared, headers: HeaderMap) -> Result<Json<Cart>, Refusal> {
    const READ: &str = "select items from carts where session = $1";
    let Some(session) = session(&carts.key, &headers) else {
        return Ok(Json(Cart::default()));
    };
    let row = carts.database.row(READ, &[&session]).await?;
    let items = row.and_then(|row| serde_json::from_value(row.get(0)).ok());
    Ok(Json(Cart {
        items: items.unwrap_or_default(),
    }))
}

async fn write(
    State(carts): Shared,
    headers: HeaderMap,
    Json(cart): Json<Cart>,
) -> Result<Response, Refusal> {
    const WRITE: &str = "insert into carts (session, items) values ($1, $2)
        on conflict (session) do update set items = excluded.items, changed_at = now()";
    let items = tidy(cart.items).map_err(Refusal::bad)?;
    let known = session(&carts.key, &headers);
    let session = known.clone().unwrap_or_else(chance::identifier);
    carts
        .database
        .rows(WRITE, &[&session, &json!(items)])
        .await?;
    let mut response = Json(Cart { items }).into_response();
    if known.is_none() {
        let cookie = cookie(&carts.key, &session);
        if let Ok(value) = cookie.parse() {
            response.headers_mut().insert(header::SET_COOKIE, value);
        }
    }
    Ok(response)
}

/// The same things as one line each, in order, or what is wrong with them.
pub fn tidy(mut items: Vec<Item>) -> Result<Vec<Item>, String> {
    items.sort();
    let mut tidied: Vec<Item> = Vec::new();
    for item in items {
        if item.sku.is_empty() || item.sku.len() > 64 {
            return Err("a sku has 1 to 64 characters".to_owned());
        }
        if !(1..=QUANTITY).contains(&item.quantity) {
            return Err(format!("{}: the quantity is 1 to {QUANTITY}", item.sku));
        }
        match tidied.last_mut() {
            Some(last) if last.sku == item.sku => last.quantity += item.quantity,
            _ => tidied.push(item),
        }
    }
    if tidied.len() > ITEMS {
        return Err(format!("a cart holds at most {ITEMS} different things"));
    }
    match tidied.iter().find(|item| item.quantity > QUANTITY) {
        Some(item) => Err(format!("{}: the quantity is 1 to {QUANTITY}", item.sku)),
        None => Ok(tidied),
    }
}

fn cookie(key: &hmac::Key, session: &str) -> String {
    let signature = hexadecimal(hmac::sign(key, session.as_bytes()).as_ref());
    format!("{COOKIE}={session}.{signature}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000")
}

/// The session that a request shows, if we gave it out.
fn session(key: &hmac::Key, headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).into_iter();
    let cookies = cookies.filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';'));
    pairs.find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        let (session, signature) = value.split_once('.')?;
        let signed = hmac::verify(key, session.as_bytes(), &bytes_of(signature)?);
        (name == COOKIE && signed.is_ok()).then(|| session.to_owned())
    })
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(sku: &str, quantity: i64) -> Item {
        Item {
            sku: sku.to_owned(),
            quantity,
        }
    }

    #[test]
    fn carts_are_tidied_or_refused() {
        for (items, expected) in [
            (vec![], Ok(vec![])),
            (
                vec![item("b", 1), item("a", 2), item("b", 3)],
                Ok(vec![item("a", 2), item("b", 4)]),
            ),
            (vec![item("a", 0)], Err("a: the quantity is 1 to 99")),
            (vec![item("a", -1)], Err("a: the quantity is 1 to 99")),
            (
                vec![item("a", 99), item("a", 1)],
                Err("a: the quantity is 1 to 99"),
            ),
            (vec![item("", 1)], Err("a sku has 1 to 64 characters")),
        ] {
            let expected = expected.map_err(str::to_owned);
            assert_eq!(tidy(items.clone()), expected, "{items:?}");
        }
        let many = (0..=ITEMS).map(|n| item(&n.to_string(), 1)).collect();
        assert!(tidy(many).is_err());
    }

    #[test]
    fn only_our_own_sessions_count() {
        let key = |text: &str| hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes());
        let ours = key("ours");
        let given = cookie(&ours, "s1");
        let given = given.split(';').next().unwrap_or_default();
        let forged = cookie(&key("theirs"), "s1");
        let forged = forged.split(';').next().unwrap_or_default();
        for (shown, expected) in [
            (given.to_owned(), Some("s1")),
            (format!("theme=dark; {given}"), Some("s1")),
            (given.replace("s1", "s2"), None),
            (forged.to_owned(), None),
            ("session=s1".to_owned(), None),
            ("session=s1.xyz".to_owned(), None),
            (String::new(), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, shown.parse().expect("a header"));
            assert_eq!(session(&ours, &headers).as_deref(), expected, "{shown}");
        }
    }
}
