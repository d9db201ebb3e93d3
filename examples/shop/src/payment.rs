//! The shop's side of paying. It alone holds the key to the provider; it repeats what may be repeated, and gives up in time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::inventory::Key;
use crate::peer::{Call, Peer};
use crate::service::{self, Error, Refusal, Settings};

/// Somebody waits for it.
const AUTHORIZE_WITHIN: Duration = Duration::from_secs(4);
/// Nobody waits for it, and it must be done: longer than the provider is ever slow.
const VOID_WITHIN: Duration = Duration::from_secs(15);

type Shared = State<Arc<Peer>>;

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let provider = settings.peer("PROVIDER_URL")?;
    let provider = provider.with_bearer(settings.require("PAYMENT_KEY")?);
    let router = Router::new()
        .route("/authorize", post(authorize))
        .route("/void", post(void))
        .with_state(Arc::new(provider));
    service::serve(settings, router).await
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Payment {
    pub key: String,
    pub amount_cents: i64,
    pub card: String,
}

/// Answers 201 with the payment, 402 if it is declined, 410 if it was given up, 503 if it isn't known.
async fn authorize(
    State(provider): Shared,
    Json(payment): Json<Payment>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let call = Call {
        method: Method::POST,
        path: "/charges",
        key: &payment.key,
        body: json!({"amount_cents": payment.amount_cents, "card": payment.card}),
        within: AUTHORIZE_WITHIN,
    };
    let answer = provider.call(call).await.map_err(unknown)?;
    match answer.status {
        StatusCode::CREATED => Ok((StatusCode::CREATED, Json(answer.body))),
        StatusCode::PAYMENT_REQUIRED => Err(Refusal::new(
            StatusCode::PAYMENT_REQUIRED,
            "the card was declined",
        )),
        StatusCode::CONFLICT => Err(Refusal::new(StatusCode::GONE, "given up")),
        status => Err(unknown(format!("the provider answered {status}"))),
    }
}

/// Takes back what the key authorized, or sees to it that it never will.
async fn void(
    State(provider): Shared,
    Json(Key { key }): Json<Key>,
) -> Result<Json<Value>, Refusal> {
    let call = Call {
        method: Method::POST,
        path: "/void",
        key: &key,
        body: Value::Null,
        within: VOID_WITHIN,
    };
    let answer = provider.call(call).await.map_err(unknown)?;
    match answer.status {
        StatusCode::OK => Ok(Json(json!({"state": "voided"}))),
        status => Err(unknown(format!("the provider answered {status}"))),
    }
}

fn unknown(why: impl ToString) -> Refusal {
    Refusal::unavailable(format!(
        "the provider's answer is unknown: {}",
        why.to_string()
    ))
}
