//! Pulling: messages with leases, for who asks.
//!
//! Who pulls has a message until its lease ends: within that it is acknowledged, given back, or the lease extended. A lease that ran out is a
//! failed attempt, and the message is delivered again. A lease is a token: once the message is somebody else's, the old one is refused.
//! Who pulls is a service that declares it, and a consumer is the service's that made it.
//! What is in an answer that was not sent, because who asked had gone, is nobody's: as if it had not been taken ([`Loan`]).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use model::ids::ResourceName;
use serde::Deserialize;

use super::consumer::{Delivery, Token};
use super::engine::{Engine, Outcome, conflict};
use super::http::{Answer, json};
use super::problem::Problem;

/// Messages of one answer.
const PULL_MAX: usize = 256;
/// Bytes of the messages of one answer, unless the first alone has more.
const PULL_BYTES: u64 = 1 << 20;
const WAIT_MAX_MS: u64 = 30_000;
const LEASE_DEFAULT_MS: u64 = 30_000;
const LEASE_MIN_MS: u64 = 100;
const LEASE_MAX_MS: u64 = 12 * 3_600_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    consumer: ResourceName,
    #[serde(default = "one")]
    max: usize,
    #[serde(default)]
    wait_ms: u64,
    lease_ms: Option<u64>,
    /// Where a consumer begins that was never here.
    #[serde(default)]
    start: Start,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Start {
    Earliest,
    #[default]
    Newest,
}

fn one() -> usize {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leases {
    consumer: ResourceName,
    leases: Vec<String>,
    lease_ms: Option<u64>,
}

/// `POST /pull`.
///
/// # Errors
///
/// The consumer can't pull, or messages can't be read.
pub async fn pull(
    engine: Arc<Engine>,
    service: ResourceName,
    asked: Pull,
) -> Result<Answer, Problem> {
    let lease_ms = lease(asked.lease_ms)?;
    if asked.max == 0 || asked.max > PULL_MAX {
        return Err(Problem::bad_request(format!("`max` is 1 to {PULL_MAX}")));
    }
    let name = &asked.consumer;
    if engine.pull_consumer(name, &service, asked.start == Start::Earliest)? {
        // What is published from now on must find it, whatever happens.
        engine.flush().await?;
        engine.wake();
    }
    let wait = Duration::from_millis(asked.wait_ms.min(WAIT_MAX_MS));
    let mut loan = Loan::new(&engine, name);
    match wait.is_zero() {
        true => loan.take(asked.max),
        false => {
            let detail = "so many wait for messages that others could not come; ask again without `wait_ms`, or later";
            let place = engine.waiting.try_acquire();
            let _place = place.map_err(|_| Problem::overloaded(detail))?;
            let waiting = until_some(&mut loan, asked.max);
            let _ = tokio::time::timeout(wait, waiting).await;
        }
    }
    messages(loan, lease_ms).await
}

/// Messages taken for an answer. Dropped before that is sent, it gives them back.
pub struct Loan {
    engine: Arc<Engine>,
    consumer: ResourceName,
    taken: Vec<Delivery>,
}

impl Loan {
    fn new(engine: &Arc<Engine>, consumer: &ResourceName) -> Self {
        Self {
            engine: engine.clone(),
            consumer: consumer.clone(),
            taken: Vec::new(),
        }
    }

    fn take(&mut self, most: usize) {
        self.taken = self.engine.take(&self.consumer, most);
    }

    fn settle(&self, token: Token, outcome: &Outcome) {
        self.engine.settle(&self.consumer, token, outcome);
    }

    /// The answer is sent: its messages are with who asked, until their leases end.
    pub fn sent(mut self) {
        self.taken.clear();
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        for delivery in &self.taken {
            self.settle(delivery.token, &Outcome::Untouched);
        }
    }
}

/// At least one message, once there is one; none when the topic ends.
async fn until_some(loan: &mut Loan, most: usize) {
    while let Some(ready) = loan.engine.ready(&loan.consumer) {
        let woken = ready.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        loan.take(most);
        if !loan.taken.is_empty() {
            return;
        }
        woken.await;
    }
}

/// The answer. What does not fit, or can't be read, is as if it had not been taken.
async fn messages(mut loan: Loan, lease_ms: u64) -> Result<Answer, Problem> {
    if !loan.taken.is_empty() {
        // An attempt is on the disk before it is made.
        loan.engine.flush().await?;
    }
    let source = loan.engine.source();
    let (mut list, mut bytes, mut unread) = (String::new(), 0, None);
    let (mut lent, mut is_full) = (Vec::new(), false);
    for delivery in loan.taken.clone() {
        if is_full {
            continue;
        }
        match loan.engine.storage.message(delivery.position).await {
            Ok(Some(message)) => {
                bytes += message.event.size();
                is_full = bytes > PULL_BYTES && !list.is_empty();
                if !is_full {
                    lend(&mut list, &delivery, &message.to_json(&source));
                    lent.push(delivery);
                }
            }
            Ok(None) => loan.settle(delivery.token, &Outcome::Done),
            Err(error) => (is_full, unread) = (true, Some(error)),
        }
    }
    if let Some(error) = unread.filter(|_| list.is_empty()) {
        return Err(error.into());
    }
    let kept: Vec<Token> = lent.iter().map(|delivery| delivery.token).collect();
    loan.taken
        .retain(|delivery| !kept.contains(&delivery.token));
    let rest = std::mem::replace(&mut loan.taken, lent);
    for delivery in rest {
        loan.settle(delivery.token, &Outcome::Untouched);
    }
    loan.engine.extend(&loan.consumer, &kept, lease_ms);
    Ok(json(format!(r#"{{"messages":[{list}]}}"#)).map(|text| text.lending(loan)))
}

fn lend(list: &mut String, delivery: &Delivery, event: &str) {
    let Delivery {
        position,
        attempt,
        token,
    } = delivery;
    let comma = if list.is_empty() { "" } else { "," };
    let _ = write!(
        list,
        r#"{comma}{{"position":{position},"lease":"{token:x}","attempt":{attempt},"event":{event}}}"#
    );
}

/// `POST /ack`: the messages are done.
///
/// # Errors
///
/// One of the leases is not held any more; the others are done.
pub async fn ack(
    engine: Arc<Engine>,
    service: ResourceName,
    asked: Leases,
) -> Result<Answer, Problem> {
    settle(&engine, &service, &asked, &Outcome::Done)
}

/// `POST /nack`: the messages failed, and will be delivered again after a back-off.
///
/// # Errors
///
/// One of the leases is not held any more; the others have failed.
pub async fn nack(
    engine: Arc<Engine>,
    service: ResourceName,
    asked: Leases,
) -> Result<Answer, Problem> {
    let outcome = Outcome::Failed {
        error: "given back by the consumer".to_owned(),
        retry_after_ms: None,
    };
    settle(&engine, &service, &asked, &outcome)
}

/// `POST /extend`: the leases end `lease_ms` from now.
///
/// # Errors
///
/// One of the leases is not held any more; none is extended.
pub async fn extend(
    engine: Arc<Engine>,
    service: ResourceName,
    asked: Leases,
) -> Result<Answer, Problem> {
    engine.check_owner(&asked.consumer, &service)?;
    let lease_ms = lease(asked.lease_ms)?;
    let tokens = tokens(&asked)?;
    if !engine.holds_all(&asked.consumer, &tokens) {
        return Err(conflict("a lease has run out; pull again"));
    }
    engine.extend(&asked.consumer, &tokens, lease_ms);
    Ok(json(format!(r#"{{"extended":{}}}"#, tokens.len())))
}

fn settle(
    engine: &Engine,
    service: &ResourceName,
    asked: &Leases,
    outcome: &Outcome,
) -> Result<Answer, Problem> {
    engine.check_owner(&asked.consumer, service)?;
    let tokens = tokens(asked)?;
    let late: Vec<&str> = std::iter::zip(&asked.leases, &tokens)
        .filter(|(_, token)| !engine.settle(&asked.consumer, **token, outcome))
        .map(|(lease, _)| lease.as_str())
        .collect();
    if late.is_empty() {
        return Ok(json(format!(r#"{{"settled":{}}}"#, tokens.len())));
    }
    let detail = format!(
        "{} of {} leases are not held: settled already, or run out, and their messages then delivered again: {}",
        late.len(),
        tokens.len(),
        late.join(", ")
    );
    let status = StatusCode::CONFLICT;
    Err(Problem::new(
        status,
        "lease-ran-out",
        "A lease is not held any more",
        detail,
    ))
}

fn tokens(asked: &Leases) -> Result<Vec<Token>, Problem> {
    if asked.leases.len() > PULL_MAX {
        return Err(Problem::bad_request(format!("at most {PULL_MAX} leases")));
    }
    let token = |lease: &String| {
        let token = Token::from_str_radix(lease, 16);
        token.map_err(|_| Problem::bad_request(format!("`{lease}` is no lease")))
    };
    asked.leases.iter().map(token).collect()
}

fn lease(lease_ms: Option<u64>) -> Result<u64, Problem> {
    let lease_ms = lease_ms.unwrap_or(LEASE_DEFAULT_MS);
    match (LEASE_MIN_MS..=LEASE_MAX_MS).contains(&lease_ms) {
        true => Ok(lease_ms),
        false => Err(Problem::bad_request(format!(
            "`lease_ms` is {LEASE_MIN_MS} to {LEASE_MAX_MS}"
        ))),
    }
}
