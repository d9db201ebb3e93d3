//! A card provider that is not ours, as the shop meets it: a ledger behind HTTP, slow, failing and repeating at set rates.
//!
//! What it does for a key it does once, and a key that was voided before it came is refused when it comes. What it began it ends,
//! whether or not somebody still waits for the answer: the worst case is a charge nobody was told of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::batch::Batcher;
use crate::chance;
use crate::database::{Database, Error as DatabaseError};
use crate::ledger::{self, Page};
use crate::service::{self, Error, Refusal, Settings};

/// Is declined, always.
pub const DECLINED_CARD: &str = "4000000000000002";
/// For how long a copy believes the behaviour it has read.
const BELIEVED: Duration = Duration::from_secs(1);

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let database = Arc::new(settings.database()?);
    let charging = Arc::clone(&database);
    let provider = Arc::new(Provider {
        database,
        charging: Batcher::new(Duration::ZERO, move |charges| {
            charge_all(Arc::clone(&charging), charges)
        }),
        bearer: format!("Bearer {}", settings.require("PAYMENT_KEY")?),
        initial: Behaviour::of(settings)?,
        known: Mutex::new(None),
    });
    let router = Router::new()
        .route("/charges", post(authorize))
        .route("/void", post(void))
        .route("/api/ledger/payments", get(ledger_of_payments))
        .route("/behaviour", put(behave).get(behaviour))
        .route("/api/provider/behaviour", put(behave).get(behaviour))
        .with_state(provider);
    service::serve(settings, router).await
}

struct Provider {
    database: Arc<Database>,
    charging: Batcher<NewCharge, Charged>,
    bearer: String,
    /// What holds until somebody sets another.
    initial: Behaviour,
    known: Mutex<Option<(Instant, Behaviour)>>,
}

type Shared = State<Arc<Provider>>;

/// How it misbehaves. Rates are from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    pub slow_ms: f64,
    pub slow_rate: f64,
    /// Answers 500: half of the times after having done it.
    pub fail_rate: f64,
    /// Does what was asked twice, as a network would that delivers at least once.
    pub repeat_rate: f64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            slow_ms: 50.0,
            slow_rate: 0.05,
            fail_rate: 0.0,
            repeat_rate: 0.0,
        }
    }
}

/// What happens to one request.
#[derive(Debug, PartialEq)]
struct Fate {
    pause: Duration,
    fails_before: bool,
    fails_after: bool,
    times: u32,
}

impl Behaviour {
    fn of(settings: &Settings) -> Result<Self, Error> {
        let mild = Self::default();
        Ok(Self {
            slow_ms: settings.number("PROVIDER_SLOW_MS", mild.slow_ms)?,
            slow_rate: settings.number("PROVIDER_SLOW_RATE", mild.slow_rate)?,
            fail_rate: settings.number("PROVIDER_FAIL_RATE", mild.fail_rate)?,
            repeat_rate: settings.number("PROVIDER_REPEAT_RATE", mild.repeat_rate)?,
        })
    }

    /// Each of the dice is from 0 to 1.
    fn fate(&self, [slow, fail, repeat]: [f64; 3]) -> Fate {
        let pause_ms = if slow < self.slow_rate {
            self.slow_ms
        } else {
            0.0
        };
        Fate {
            pause: Duration::from_secs_f64(pause_ms.clamp(0.0, 60_000.0) / 1000.0),
            fails_before: fail < self.fail_rate / 2.0,
            fails_after: fail >= self.fail_rate / 2.0 && fail < self.fail_rate,
            times: if repeat < self.repeat_rate { 2 } else { 1 },
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Charge {
    pub amount_cents: i64,
    pub card: String,
}

/// A line for the ledger, unless its key has one.
#[derive(Debug, Clone)]
struct NewCharge {
    payment_id: String,
    key: String,
    amount_cents: i64,
    state: &'static str,
}

/// The line that the ledger has under a key.
#[derive(Debug, Clone)]
struct Charged {
    payment_id: String,
    amount_cents: i64,
    state: String,
}

/// A key that is there twice is one too many for the statement: it fails, and each is done alone.
async fn charge_all(
    database: Arc<Database>,
    charges: Vec<NewCharge>,
) -> Result<Vec<Charged>, DatabaseError> {
    const CHARGE: &str = "insert into provider_charges (payment_id, key, amount_cents, state)
        select payment_id, key, amount_cents, state from unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
            as asked (payment_id, key, amount_cents, state) order by key
        on conflict (key) do update set requests = provider_charges.requests + 1
        returning key, payment_id, amount_cents, state";
    let payments: Vec<&str> = charges.iter().map(|c| c.payment_id.as_str()).collect();
    let keys: Vec<&str> = charges.iter().map(|c| c.key.as_str()).collect();
    let amounts: Vec<i64> = charges.iter().map(|c| c.amount_cents).collect();
    let states: Vec<&str> = charges.iter().map(|c| c.state).collect();
    let rows = database
        .rows(CHARGE, &[&payments, &keys, &amounts, &states])
        .await?;
    let charged = |row: &tokio_postgres::Row| Charged {
        payment_id: row.get(1),
        amount_cents: row.get(2),
        state: row.get(3),
    };
    let mut by_key: HashMap<&str, Charged> =
        rows.iter().map(|row| (row.get(0), charged(row))).collect();
    let missing = || DatabaseError::Unavailable("a charge was lost sight of".to_owned());
    keys.iter()
        .map(|key| by_key.remove(key).ok_or_else(missing))
        .collect()
}

/// Answers 201, 402 for a declined card, 409 for a key that was voided, 422 for a key that came with another amount.
async fn authorize(
    State(provider): Shared,
    headers: HeaderMap,
    Json(charge): Json<Charge>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    provider.admit(&headers)?;
    // Without a key each request is a charge of its own, as it is with a bank.
    let key = key_of(&headers).unwrap_or_else(|| format!("unkeyed-{}", chance::identifier()));
    let work = async move {
        let fate = provider.fate().await?;
        sleep(fate.pause).await;
        if fate.fails_before {
            return Err(failed());
        }
        for _ in 1..fate.times {
            let _ = provider.authorize(&key, &charge).await;
        }
        let answer = provider.authorize(&key, &charge).await;
        if fate.fails_after {
            Err(failed())
        } else {
            answer
        }
    };
    to_the_end(work).await
}

async fn void(
    State(provider): Shared,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    provider.admit(&headers)?;
    let key = key_of(&headers).ok_or_else(|| Refusal::bad("no Idempotency-Key"))?;
    let work = async move {
        let fate = provider.fate().await?;
        sleep(fate.pause).await;
        if fate.fails_before {
            return Err(failed());
        }
        for _ in 1..fate.times {
            let _ = provider.void(&key).await;
        }
        let answer = provider.void(&key).await;
        if fate.fails_after {
            Err(failed())
        } else {
            answer
        }
    };
    to_the_end(work).await
}

/// A caller who hangs up doesn't end what was begun.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(failed()))
}

fn failed() -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the provider failed")
}

fn key_of(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("idempotency-key")?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

impl Provider {
    fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let shown = headers.get(header::AUTHORIZATION);
        match shown.is_some_and(|shown| shown.as_bytes() == self.bearer.as_bytes()) {
            true => Ok(()),
            false => Err(Refusal::new(StatusCode::UNAUTHORIZED, "no such account")),
        }
    }

    async fn authorize(
        &self,
        key: &str,
        charge: &Charge,
    ) -> Result<(StatusCode, Json<Value>), Refusal> {
        let state = if charge.card == DECLINED_CARD {
            "declined"
        } else {
            "authorized"
        };
        let new = NewCharge {
            payment_id: format!("p-{}", chance::identifier()),
            key: key.to_owned(),
            amount_cents: charge.amount_cents,
            state,
        };
        let charged = self.charging.ask(new).await?;
        match charged.state.as_str() {
            "voided" => Err(Refusal::new(StatusCode::CONFLICT, "voided")),
            _ if charged.amount_cents != charge.amount_cents => {
                let error = "the same key came with another amount";
                Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error))
            }
            "declined" => Err(Refusal::new(StatusCode::PAYMENT_REQUIRED, "declined")),
            state => {
                let answer = json!({"payment_id": charged.payment_id, "state": state});
                Ok((StatusCode::CREATED, Json(answer)))
            }
        }
    }

    async fn void(&self, key: &str) -> Result<(StatusCode, Json<Value>), Refusal> {
        const VOID: &str = "insert into provider_charges (payment_id, key, amount_cents, state) values ($1, $2, 0, 'voided')
            on conflict (key) do update set state = 'voided', requests = provider_charges.requests + 1
            where provider_charges.state <> 'declined'";
        let payment = format!("p-{}", chance::identifier());
        self.database.rows(VOID, &[&payment, &key]).await?;
        Ok((StatusCode::OK, Json(json!({"state": "voided"}))))
    }

    async fn fate(&self) -> Result<Fate, Refusal> {
        Ok(self.behaviour().await?.fate([
            chance::fraction(),
            chance::fraction(),
            chance::fraction(),
        ]))
    }

    /// As somebody set it for all copies, read at most once a second.
    async fn behaviour(&self) -> Result<Behaviour, Refusal> {
        if let Some((read, behaviour)) = *self.lock()
            && read.elapsed() < BELIEVED
        {
            return Ok(behaviour);
        }
        const SET: &str = "select behaviour from provider_behaviour";
        let row = self.database.row(SET, &[]).await?;
        let set = row.and_then(|row| serde_json::from_value(row.get(0)).ok());
        let behaviour = set.unwrap_or(self.initial);
        *self.lock() = Some((Instant::now(), behaviour));
        Ok(behaviour)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Behaviour)>> {
        self.known
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

async fn behaviour(State(provider): Shared) -> Result<Json<Behaviour>, Refusal> {
    Ok(Json(provider.behaviour().await?))
}

/// Sets the whole behaviour; what isn't named is as mild as at first.
async fn behave(
    State(provider): Shared,
    Json(behaviour): Json<Behaviour>,
) -> Result<Json<Behaviour>, Refusal> {
    const SET: &str = "insert into provider_behaviour (behaviour) values ($1)
        on conflict (single) do update set behaviour = excluded.behaviour";
    provider.database.rows(SET, &[&json!(behaviour)]).await?;
    *provider.lock() = None;
    Ok(Json(behaviour))
}

async fn ledger_of_payments(
    State(provider): Shared,
    page: Query<Page>,
) -> Result<Response, Refusal> {
    const LINES: &str = "select row_to_json(line)::text from (
        select payment_id, key, amount_cents, state, requests from provider_charges where payment_id > $1
        order by payment_id limit 5000) line";
    ledger::page(&provider.database, LINES, page).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_decide_what_happens() {
        let behaviour = Behaviour {
            slow_ms: 10_000.0,
            slow_rate: 0.1,
            fail_rate: 0.3,
            repeat_rate: 0.2,
        };
        for (dice, pause_ms, before, after, times) in [
            ([0.5, 0.5, 0.5], 0, false, false, 1),
            ([0.09, 0.5, 0.5], 10_000, false, false, 1),
            ([0.1, 0.14, 0.5], 0, true, false, 1),
            ([0.1, 0.15, 0.5], 0, false, true, 1),
            ([0.1, 0.3, 0.1], 0, false, false, 2),
        ] {
            let expected = Fate {
                pause: Duration::from_millis(pause_ms),
                fails_before: before,
                fails_after: after,
                times,
            };
            assert_eq!(behaviour.fate(dice), expected, "{dice:?}");
        }
    }

    #[test]
    fn the_mildest_behaviour_never_fails() {
        let fate = Behaviour::default().fate([0.0, 0.0, 0.0]);
        assert!(!fate.fails_before && !fate.fails_after && fate.times == 1);
    }
}
