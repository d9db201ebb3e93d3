//! One click that is several owners' work: reserve stock, authorize the payment, place the order with its event.
//!
//! | module | what it is |
//! |---|---|
//! | [`saga`] | the steps, forward and back, as a pure function |
//! | [`steps`] | the steps as calls to their owners |
//! | [`attempts`] | what is kept of each attempt: owner, lease, end |
//! | [`answers`] | what the buyer is told |
//! | [`upkeep`] | leases, sweeps, settling |
//!
//! An attempt is two writes here, its beginning and its end; the end of a completed one is written with others after its buyer is told,
//! since the order itself says how it ended. What happened in between is known to the owners of the steps under the
//! attempt's key, so whoever takes it over asks them. The buyer's retry goes forward; a sweep, which doesn't know the card, goes back,
//! unless the order is placed.

mod answers;
mod attempts;
mod saga;
mod steps;
mod upkeep;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::{Query, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::cart;
use crate::chance;
use crate::inventory::Item;
use crate::ledger::{self, Page};
use crate::service::{self, Error, Refusal, Settings};
use answers::Said;
use attempts::{Admission, Attempts, Completed};
use saga::{Ending, Placed, State};
use steps::{Attempt, Steps};

/// Taken in by one copy; more are told to come again before anything has begun.
const ATTEMPTS: usize = 512;
/// Driven at once by one copy; the others wait for their turn with nothing begun, so that what has begun ends within its deadlines however
/// much there is to do. A provider that is slow holds some of them.
const AT_ONCE: usize = 64;
const TURN_WITHIN: Duration = Duration::from_secs(8);
const SWEPT_AT_ONCE: usize = 64;
/// Completed ones that wait to be settled and written down: more than are driven at once.
const TO_SETTLE: usize = ATTEMPTS + SWEPT_AT_ONCE;
/// How long the buyer is kept waiting. The attempt goes on without.
const BUYER_WAITS: Duration = Duration::from_secs(12);
/// How long a key that runs elsewhere is waited for: longer than the lease of an owner that died.
const OTHER_IS_AWAITED: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Longer than any attempt takes.
const END_WITHIN: Duration = Duration::from_secs(30);
const KEY_CHARACTERS: usize = 200;

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let (completed, to_settle) = mpsc::channel(TO_SETTLE);
    let checkout = Arc::new(Checkout {
        attempts: Attempts::new(settings.database()?, chance::identifier()),
        steps: Steps {
            inventory: settings.peer("INVENTORY_URL")?,
            payment: settings.peer("PAYMENT_URL")?,
            orders: settings.peer("ORDERS_URL")?,
        },
        places: Arc::new(Semaphore::new(ATTEMPTS)),
        turns: Arc::new(Semaphore::new(AT_ONCE)),
        sweeping: Semaphore::new(SWEPT_AT_ONCE),
        driven: Mutex::new(HashMap::new()),
        completed,
        crash_after: CrashPoint::of(settings),
    });
    upkeep::begin(&checkout, to_settle);
    let router = Router::new()
        .route("/api/checkout", post(check_out))
        .route("/api/ledger/attempts", get(ledger_of_attempts))
        .with_state(Arc::clone(&checkout));
    service::serve(settings, router).await?;
    // What was begun is ended by whoever began it, if there is time.
    let all = checkout.places.acquire_many(ATTEMPTS as u32);
    let _ = timeout(END_WITHIN, all).await;
    Ok(())
}

struct Checkout {
    attempts: Attempts,
    steps: Steps,
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    sweeping: Semaphore,
    /// Which attempts are driven here, and since when their lease runs.
    driven: Mutex<HashMap<String, Instant>>,
    completed: mpsc::Sender<ToSettle>,
    crash_after: CrashPoint,
}

/// A completed attempt on its way to the ledger. Until it is there its lease is kept, and whoever leaves waits for it.
struct ToSettle {
    completed: Completed,
    place: Option<OwnedSemaphorePermit>,
}

/// What is bought, and with what. The items are tidy.
#[derive(Debug, Clone, Deserialize)]
pub struct Body {
    items: Vec<Item>,
    card: String,
}

async fn check_out(
    Shared(checkout): Shared<Arc<Checkout>>,
    headers: HeaderMap,
    body: Json<Body>,
) -> Result<Response, Refusal> {
    let key = key_of(&headers)?;
    let body = validate(body.0)?;
    let place = Arc::clone(&checkout.places).try_acquire_owned();
    let busy = || not_begun("too much to do at the moment");
    let place = place.map_err(|_| busy())?;
    let turn = timeout(TURN_WITHIN, Arc::clone(&checkout.turns).acquire_owned());
    let Ok(Ok(turn)) = turn.await else {
        return Err(busy());
    };
    let hash = attempts::body_hash(&key, &body);
    match checkout.admit(&key, &hash).await? {
        Admission::Ours => {}
        Admission::Ended(said) => return Ok(respond(&said)),
        Admission::Running => return Err(running()),
        Admission::OtherRequest => {
            let error = "this key came with another request";
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error));
        }
    }
    let attempt = Attempt {
        key,
        body: Some(body),
    };
    checkout.drive_for_buyer(attempt, place, turn).await
}

fn key_of(headers: &HeaderMap) -> Result<String, Refusal> {
    let key = headers.get("idempotency-key");
    let key = key.and_then(|key| key.to_str().ok()).map(str::trim);
    match key {
        Some(key) if !key.is_empty() && key.len() <= KEY_CHARACTERS => Ok(key.to_owned()),
        _ => Err(Refusal::bad(format!(
            "the header Idempotency-Key is needed: up to {KEY_CHARACTERS} characters"
        ))),
    }
}

fn validate(body: Body) -> Result<Body, Refusal> {
    let items = cart::tidy(body.items).map_err(Refusal::bad)?;
    if items.is_empty() {
        return Err(Refusal::bad("the cart is empty"));
    }
    let card: String = body.card.chars().filter(|c| !c.is_whitespace()).collect();
    let digits = card.chars().all(|c| c.is_ascii_digit());
    if !digits || !(12..=19).contains(&card.len()) {
        return Err(Refusal::bad("a card number has 12 to 19 digits"));
    }
    Ok(Body { items, card })
}

fn not_begun(error: &str) -> Refusal {
    Refusal::unavailable(error).with("outcome", "not charged")
}

fn running() -> Refusal {
    let error = "this attempt is still running";
    Refusal::new(StatusCode::CONFLICT, error)
        .with("in_progress", true)
        .retry_after(1)
}

/// The same key may ask again, and gets the end once there is one.
fn unknown() -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the outcome is not known yet; ask again with the same key",
    )
    .with("outcome", "unknown")
    .retry_after(3)
}

fn respond(said: &Said) -> Response {
    let status = StatusCode::from_u16(said.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(said.body.clone())).into_response()
}

impl Checkout {
    /// Whether the key may be driven here. One that runs elsewhere is waited for: a key comes again mostly because the copy that drove it died, and
    /// then the buyer's own request is what takes it up and carries it on.
    async fn admit(&self, key: &str, hash: &str) -> Result<Admission, Refusal> {
        let begin = Instant::now();
        loop {
            let admitted = self.attempts.begin(key, hash).await;
            let admitted = admitted.map_err(|error| {
                eprintln!("{key}: not begun: {error}");
                // Where somebody else has it, what became of it is not known here.
                match begin.elapsed() < LOOK_AGAIN {
                    true => not_begun("the database can't be reached"),
                    false => unknown(),
                }
            })?;
            if admitted != Admission::Running || begin.elapsed() >= OTHER_IS_AWAITED {
                return Ok(admitted);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// In a task of its own: a buyer who hangs up doesn't stop what is half done.
    async fn drive_for_buyer(
        self: &Arc<Self>,
        attempt: Attempt,
        place: OwnedSemaphorePermit,
        turn: OwnedSemaphorePermit,
    ) -> Result<Response, Refusal> {
        let checkout = Arc::clone(self);
        let driven = tokio::spawn(async move {
            let _turn = turn;
            checkout
                .drive(&attempt, State::Reserving, Some(place))
                .await
        });
        match timeout(BUYER_WAITS, driven).await {
            Ok(Ok(Some(ending))) => Ok(respond(&answers::said(&ending))),
            _ => Err(unknown()),
        }
    }

    /// From a state to the end; `None` if it was left, or somebody else ends it.
    async fn drive(
        &self,
        attempt: &Attempt,
        mut state: State,
        place: Option<OwnedSemaphorePermit>,
    ) -> Option<Ending> {
        let key = &attempt.key;
        self.lock().insert(key.clone(), Instant::now());
        while let Some(doing) = state.name() {
            let event = self.steps.perform(attempt, &state).await;
            self.crash_after.pass(doing);
            state = state.step(event);
            if let State::Releasing(ending @ Ending::Refused(_)) = &state {
                // Where this owner dies now, the next one finds what was decided.
                if let Err(error) = self.attempts.decide(key, ending).await {
                    eprintln!("{key}: what was decided is not written: {error}");
                }
            }
        }
        if let State::Ended(Ending::Completed(placed)) = state {
            self.complete(key, placed.clone(), place);
            return Some(Ending::Completed(placed));
        }
        self.lock().remove(key);
        match state {
            State::Ended(ending) => self.end(key, ending).await,
            State::Left(reason) => {
                eprintln!("{key}: left: {reason}");
                let _ = self.attempts.leave(key, &reason).await;
                None
            }
            _ => None,
        }
    }

    /// The order is there, whoever writes it down: if it isn't done here, a later owner finds it.
    fn complete(&self, key: &str, placed: Placed, place: Option<OwnedSemaphorePermit>) {
        let completed = Completed {
            key: key.to_owned(),
            placed,
        };
        let to_settle = ToSettle { completed, place };
        if self.completed.try_send(to_settle).is_err() {
            self.lock().remove(key);
        }
    }

    async fn end(&self, key: &str, ending: Ending) -> Option<Ending> {
        let written = self.attempts.end(key, &ending).await;
        match written {
            Ok(true) => Some(ending),
            // Another owner may have come to another end.
            Ok(false) => None,
            // All is undone, and stays so.
            Err(error) => {
                eprintln!("{key}: the end was not written: {error}");
                Some(ending)
            }
        }
    }

    fn driven_for(&self, time: Duration) -> Vec<String> {
        let driven = self.lock();
        let old = driven.iter().filter(|(_, since)| since.elapsed() >= time);
        old.map(|(key, _)| key.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.driven
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

/// For tests: the process dies after a step, as `SHOP_CRASH_AFTER` says. Programs for use don't have it.
struct CrashPoint(Option<String>);

impl CrashPoint {
    fn of(settings: &Settings) -> Self {
        let step = settings.get("SHOP_CRASH_AFTER");
        Self(step.filter(|_| cfg!(debug_assertions)).map(str::to_owned))
    }

    fn pass(&self, step: &str) {
        if self.0.as_deref() == Some(step) {
            std::process::abort();
        }
    }
}

/// To an auditor an attempt runs until it has ended, whichever way it goes.
async fn ledger_of_attempts(
    Shared(checkout): Shared<Arc<Checkout>>,
    page: Query<Page>,
) -> Result<Response, Refusal> {
    const LINES: &str = "select json_strip_nulls(row_to_json(line))::text from (
        select key, case state when 'compensating' then 'running' else state end as state, order_id, reason
        from attempts where key > $1 order by key limit 5000) line";
    ledger::page(&checkout.attempts.database, LINES, page).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cart_with_a_card_is_tried() {
        for (items, card, accepted) in [
            (vec![("a", 1)], "4242424242424242", true),
            (vec![("a", 1)], "4242 4242 4242 4242", true),
            (vec![], "4242424242424242", false),
            (vec![("a", 0)], "4242424242424242", false),
            (vec![("a", 1)], "4242", false),
            (vec![("a", 1)], "4242-4242-4242-4242", false),
        ] {
            let item = |(sku, quantity): &(&str, i64)| Item {
                sku: (*sku).to_owned(),
                quantity: *quantity,
            };
            let body = Body {
                items: items.iter().map(item).collect(),
                card: card.to_owned(),
            };
            assert_eq!(validate(body).is_ok(), accepted, "{items:?} {card}");
        }
    }
}
