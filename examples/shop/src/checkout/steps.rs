//! The steps of an attempt as calls to their owners, each with a deadline and under the attempt's key.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Body;
use super::saga::{Event, Placed, Reservation, State};
use crate::inventory::{Key, Keys, Wanted};
use crate::orders::NewOrder;
use crate::payment::Payment;
use crate::peer::{Answer, Call, Peer, Unanswered};

const STEP_WITHIN: Duration = Duration::from_secs(3);
/// Payment gives the provider four seconds.
const AUTHORIZE_WITHIN: Duration = Duration::from_secs(5);
/// Payment gives the provider fifteen.
const VOID_WITHIN: Duration = Duration::from_secs(17);

pub struct Steps {
    pub inventory: Peer,
    pub payment: Peer,
    pub orders: Peer,
}

/// An attempt, and what its buyer asked: an owner who took it over without the buyer doesn't know.
pub struct Attempt {
    pub key: String,
    pub body: Option<Body>,
}

impl Steps {
    /// Does what the state says.
    pub async fn perform(&self, attempt: &Attempt, state: &State) -> Event {
        match self.ask(attempt, state).await {
            Ok(answer) => understand(state, answer),
            Err(Unanswered(why)) => Event::Unanswered(why),
        }
    }

    async fn ask(&self, attempt: &Attempt, state: &State) -> Result<Answer, Unanswered> {
        let key = &attempt.key;
        let only_key = json!(Key { key: key.clone() });
        let (peer, path, body, within) = match state {
            State::Reserving => (&self.inventory, "/reserve", wanted(attempt)?, STEP_WITHIN),
            State::Authorizing(reservation) => {
                let body = payment(attempt, reservation)?;
                (&self.payment, "/authorize", body, AUTHORIZE_WITHIN)
            }
            State::Placing(reservation, payment_id) => {
                let body = new_order(key, reservation, payment_id);
                (&self.orders, "/place", body, STEP_WITHIN)
            }
            State::Cancelling(_) => (&self.orders, "/cancel", only_key, STEP_WITHIN),
            State::Voiding(_) => (&self.payment, "/void", only_key, VOID_WITHIN),
            State::Releasing(_) => (&self.inventory, "/release", only_key, STEP_WITHIN),
            State::Ended(_) | State::Left(_) => return Err(Unanswered("it is over".to_owned())),
        };
        post(peer, path, key, body, within).await
    }

    pub async fn settle(&self, keys: Vec<String>) -> Result<(), Unanswered> {
        let key = format!("settle-{}", keys.first().map_or("", String::as_str));
        let body = json!(Keys { keys });
        let answer = post(&self.inventory, "/settle", &key, body, STEP_WITHIN).await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            status => Err(Unanswered(format!("inventory answered {status}"))),
        }
    }
}

async fn post(
    peer: &Peer,
    path: &str,
    key: &str,
    body: Value,
    within: Duration,
) -> Result<Answer, Unanswered> {
    let call = Call {
        method: Method::POST,
        path,
        key,
        body,
        within,
    };
    peer.call(call).await
}

fn body(attempt: &Attempt) -> Result<&Body, Unanswered> {
    let unknown = || Unanswered("what was asked is not known any more".to_owned());
    attempt.body.as_ref().ok_or_else(unknown)
}

fn wanted(attempt: &Attempt) -> Result<Value, Unanswered> {
    Ok(json!(Wanted {
        key: attempt.key.clone(),
        items: body(attempt)?.items.clone(),
    }))
}

fn payment(attempt: &Attempt, reservation: &Reservation) -> Result<Value, Unanswered> {
    Ok(json!(Payment {
        key: attempt.key.clone(),
        amount_cents: reservation.total_cents,
        card: body(attempt)?.card.clone(),
    }))
}

fn new_order(key: &str, reservation: &Reservation, payment_id: &str) -> Value {
    json!(NewOrder {
        key: key.to_owned(),
        items: reservation.lines.clone(),
        total_cents: reservation.total_cents,
        payment_id: payment_id.to_owned(),
    })
}

/// What an answer means. What isn't understood is as good as no answer.
fn understand(state: &State, answer: Answer) -> Event {
    let Answer { status, body } = answer;
    let text = |field: &str| body[field].as_str().map(str::to_owned);
    let event = match (state, status) {
        (_, StatusCode::GONE) => Some(Event::GivenUp),
        (State::Reserving, StatusCode::CREATED) => reservation(&body).map(Event::Reserved),
        (State::Reserving, StatusCode::CONFLICT) => Some(Event::OutOfStock(skus(&body))),
        (State::Reserving, StatusCode::NOT_FOUND) if body["skus"].is_array() => {
            Some(Event::NoSuchProduct(skus(&body)))
        }
        (State::Authorizing(_), StatusCode::CREATED) => text("payment_id").map(Event::Authorized),
        (State::Authorizing(_), StatusCode::PAYMENT_REQUIRED) => Some(Event::Declined),
        (State::Placing(..), StatusCode::CREATED) => placed(&body).map(Event::Placed),
        (State::Cancelling(_), StatusCode::OK) => Some(Event::Cancelled),
        (State::Cancelling(_), StatusCode::CONFLICT) => placed(&body).map(Event::Placed),
        (State::Voiding(_), StatusCode::OK) => Some(Event::Voided),
        (State::Releasing(_), StatusCode::OK) => Some(Event::Released),
        _ => None,
    };
    event.unwrap_or_else(|| Event::Unanswered(format!("{status} was not understood")))
}

fn reservation(body: &Value) -> Option<Reservation> {
    Some(Reservation {
        lines: body.get("lines")?.clone(),
        total_cents: body["total_cents"].as_i64()?,
    })
}

fn placed(body: &Value) -> Option<Placed> {
    Some(Placed {
        order_id: body["order_id"].as_str()?.to_owned(),
        total_cents: body["total_cents"].as_i64()?,
    })
}

fn skus(body: &Value) -> Vec<String> {
    let skus = body["skus"].as_array();
    let texts = skus.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_no_answer() {
        let reservation = || Reservation {
            lines: json!([]),
            total_cents: 5,
        };
        let order = json!({"order_id": "o", "total_cents": 5});
        let placed = Event::Placed(Placed {
            order_id: "o".to_owned(),
            total_cents: 5,
        });
        let cancelling = State::taken_over(None);
        let placing = State::Placing(reservation(), "p".to_owned());
        for (state, status, body, expected) in [
            (&placing, 201, order.clone(), Some(placed.clone())),
            (&placing, 201, json!({}), None),
            (&placing, 200, order.clone(), None),
            (&placing, 404, Value::Null, None),
            (&placing, 410, Value::Null, Some(Event::GivenUp)),
            (&cancelling, 409, order, Some(placed)),
            (&cancelling, 409, Value::Null, None),
            (&cancelling, 200, Value::Null, Some(Event::Cancelled)),
            // A route that isn't there says nothing of products.
            (&State::Reserving, 404, Value::Null, None),
            (&State::Reserving, 429, Value::Null, None),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let event = understand(state, Answer { status, body });
            match expected {
                Some(expected) => assert_eq!(event, expected),
                None => assert!(matches!(event, Event::Unanswered(_)), "{state:?} {status}"),
            }
        }
    }
}
