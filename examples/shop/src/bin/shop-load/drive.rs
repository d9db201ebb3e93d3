//! Sends what the schedule says and never waits for an answer before the next.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::options::Load;
use crate::progress::Line;
use crate::schedule::{Action, Arrival, Basket, Shelves};
use crate::send::{Answer, Client, Question, Unanswered};
use crate::tally::Tally;
use crate::verify::{self, Catalogue, Product, Receipt, Verdict};

/// A request that leaves later than this was held up by this client, not by the shop.
const LATE: Duration = Duration::from_millis(50);
/// Requests in flight at most; what is scheduled beyond fails at once, so that a dead shop does not fill our memory.
const FLYING_MAX: usize = 50_000;
/// How long the list of products may take at the start.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Begins each key of a run, so that no other run has the same.
#[derive(Debug, Clone, Copy)]
pub struct RunId(u64);

impl RunId {
    /// From fresh entropy: a seed would bring the keys of an earlier run again.
    pub fn new(entropy: u64) -> Self {
        Self(entropy)
    }

    /// In the form of a UUID, version 4: twelve digits of the run, then the number of the request.
    pub fn key(self, number: u64) -> String {
        let (high, middle) = (self.0 >> 32, (self.0 >> 16) & 0xffff);
        format!("{high:08x}-{middle:04x}-4000-8000-{number:012x}")
    }
}

/// The products, which must be there before a load makes sense. A shop that is about to start is waited for.
pub async fn products(client: &Client) -> Result<Vec<Product>> {
    let deadline = Instant::now() + FIRST_ANSWER;
    loop {
        match list(client, deadline).await {
            Ok(products) => return Ok(products),
            Err(error) if Instant::now() + FIRST_PAUSE > deadline => return Err(error),
            Err(_) => tokio::time::sleep(FIRST_PAUSE).await,
        }
    }
}

async fn list(client: &Client, deadline: Instant) -> Result<Vec<Product>> {
    let question = Question::Get("/api/products".to_owned());
    let answer = client.ask(question, deadline).await;
    let answer = answer.context("GET /api/products")?;
    let body = String::from_utf8_lossy(&answer.body);
    if !answer.status.is_success() {
        let start: String = body.chars().take(200).collect();
        bail!("GET /api/products: {} {start}", answer.status);
    }
    let products: Vec<Product> = serde_json::from_str(&body).context("GET /api/products")?;
    match products.is_empty() {
        true => bail!("GET /api/products: the shop has none"),
        false => Ok(products),
    }
}

/// Sends the whole schedule, or until it is stopped, and waits for the answers to what was sent.
pub async fn drive(
    client: &Rc<Client>,
    products: Vec<Product>,
    load: &Load,
    run: RunId,
    mut stopped: watch::Receiver<bool>,
) -> Result<Tally> {
    let catalogue = Catalogue::new(&products);
    let arrivals = load.schedule.arrivals(Shelves::new(catalogue.stock()));
    let driver = Rc::new(Driver {
        client: client.clone(),
        catalogue: RefCell::new(catalogue),
        tally: RefCell::default(),
        timeout: load.timeout,
        run,
        begin: Instant::now(),
    });
    let (shown, length) = (driver.clone(), load.schedule.length);
    let line = Line::show(move || shown.line(length));
    let flying = driver.send_all(arrivals, &mut stopped).await;
    let sending = driver.begin.elapsed();
    finish(flying).await;
    drop(line);
    let mut tally = driver.tally.take();
    tally.sending = sending;
    Ok(tally)
}

/// Ends: each request has a timeout.
async fn finish(mut flying: JoinSet<()>) {
    while flying.join_next().await.is_some() {}
}

struct Driver {
    client: Rc<Client>,
    catalogue: RefCell<Catalogue>,
    tally: RefCell<Tally>,
    timeout: Duration,
    run: RunId,
    begin: Instant,
}

impl Driver {
    async fn send_all(
        self: &Rc<Self>,
        arrivals: impl Iterator<Item = Arrival>,
        stopped: &mut watch::Receiver<bool>,
    ) -> JoinSet<()> {
        let mut flying = JoinSet::new();
        for (number, arrival) in (0u64..).zip(arrivals) {
            tokio::select! {
                biased;
                Ok(_) = stopped.wait_for(|stopped| *stopped) => break,
                () = tokio::time::sleep_until(self.begin + arrival.at) => {}
            }
            while flying.try_join_next().is_some() {}
            self.note_departure(arrival.at);
            if flying.len() >= FLYING_MAX {
                let verdict = Verdict::Failed("not sent: too many requests in flight".to_owned());
                self.record(arrival.at, verdict);
                continue;
            }
            flying.spawn_local(self.clone().one(number, arrival));
        }
        flying
    }

    fn note_departure(&self, at: Duration) {
        let mut tally = self.tally.borrow_mut();
        tally.sent += 1;
        tally.late += u64::from(self.begin.elapsed().saturating_sub(at) > LATE);
    }

    async fn one(self: Rc<Self>, number: u64, arrival: Arrival) {
        let deadline = self.begin + arrival.at + self.timeout;
        let verdict = match arrival.action {
            Action::Checkout(basket) => self.checkout(number, &basket, deadline).await,
            Action::Products => self.products(deadline).await,
            Action::Page => self.page(deadline).await,
            Action::Order(pick) => {
                let receipt = self.tally.borrow().recent(pick).cloned();
                match receipt {
                    Some(receipt) => self.order(&receipt, deadline).await,
                    None => self.page(deadline).await,
                }
            }
        };
        self.record(arrival.at, verdict);
    }

    fn record(&self, at: Duration, verdict: Verdict) {
        let latency = self.begin.elapsed().saturating_sub(at);
        self.tally.borrow_mut().record(at, latency, verdict);
    }

    async fn checkout(&self, number: u64, basket: &Basket, deadline: Instant) -> Verdict {
        self.catalogue.borrow_mut().ask(basket);
        let key = self.run.key(number);
        let body = serde_json::json!({ "items": basket.items, "card": basket.card });
        let question = Question::Checkout {
            key: key.clone(),
            body: body.to_string().into(),
        };
        let answer = self.client.ask(question, deadline).await;
        judge("POST /api/checkout", answer, |answer| {
            self.catalogue.borrow().checkout(basket, &key, answer)
        })
    }

    async fn products(&self, deadline: Instant) -> Verdict {
        let question = Question::Get("/api/products".to_owned());
        let answer = self.client.ask(question, deadline).await;
        judge("GET /api/products", answer, |answer| {
            self.catalogue.borrow_mut().products(answer)
        })
    }

    async fn page(&self, deadline: Instant) -> Verdict {
        let answer = self.client.ask(Question::Get("/".to_owned()), deadline);
        judge("GET /", answer.await, verify::page)
    }

    async fn order(&self, receipt: &Receipt, deadline: Instant) -> Verdict {
        let path = format!("/api/orders/{}", receipt.order_id);
        let answer = self.client.ask(Question::Get(path), deadline).await;
        judge("GET /api/orders", answer, |answer| {
            verify::order(receipt, answer)
        })
    }

    fn line(&self, length: Duration) -> String {
        let tally = self.tally.borrow();
        let (now, end) = (self.begin.elapsed().as_secs_f64(), length.as_secs_f64());
        format!(
            "{:.1} of {end:.0} s   sent {}   ok {}   refused {}   failed {}   p50 {:.0} ms   p99 {:.0} ms",
            now.min(end),
            tally.sent,
            tally.ok,
            tally.refused,
            tally.failed,
            tally.latency_ms(0.5),
            tally.latency_ms(0.99),
        )
    }
}

fn judge(
    what: &str,
    answer: Result<Answer, Unanswered>,
    verdict: impl FnOnce(&Answer) -> Verdict,
) -> Verdict {
    let verdict = match answer {
        Ok(answer) => verdict(&answer),
        Err(error) => return Verdict::Failed(format!("{what}: {error}")),
    };
    // The status stays in front.
    match verdict {
        Verdict::Failed(text) => Verdict::Failed(format!("{text} ({what})")),
        Verdict::Unavailable { said, undone } => Verdict::Unavailable {
            said: format!("{said} ({what})"),
            undone,
        },
        good => good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_look_like_uuids_and_tell_run_and_request() {
        let run = RunId::new(0x1234_5678_9abc_def0);
        assert_eq!(run.key(255), "12345678-9abc-4000-8000-0000000000ff");
        assert_ne!(run.key(1), RunId::new(1).key(1));
    }
}
