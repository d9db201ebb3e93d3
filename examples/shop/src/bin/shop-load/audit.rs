//! What is wrong in the books. Pure: ledgers and what this run was promised in, findings out.
//!
//! | finding | what is counted |
//! |---|---|
//! | lost | confirmed orders that are not in the ledger as they were confirmed |
//! | double charged | keys with more than one live charge, one that no completed attempt explains, or one of another amount than the order |
//! | oversold | products of which less than nothing is left, or whose figures contradict each other or the orders |
//! | uncompensated | attempts that have not ended, or ended by half: charges, reservations or orders that do not fit their end or what was answered |
//! | events lost | orders on which some worker has not acted |
//! | duplicated effects | acts of a worker that were done more than once |
//! | stray effects | acts for an order that is not there; told, but no fault of the shop if someone published by hand |

use std::collections::{HashMap, HashSet};

use crate::ledger::{Attempt, Ledgers, Order, Payment, Progress, Stock, WORKERS};
use crate::verify::{Receipt, same_items};

/// Examples of a finding that are kept.
const EXAMPLES_MAX: usize = 5;

/// What the shop has said to this run.
#[derive(Debug, Clone, Default)]
pub struct Promises {
    /// Confirmed orders.
    pub receipts: Vec<Receipt>,
    /// Keys of checkouts that were refused or undone.
    pub refusals: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    pub lost: Finding,
    pub double_charged: Finding,
    pub oversold: Finding,
    pub uncompensated: Finding,
    pub events_lost: Finding,
    pub duplicated_effects: Finding,
    pub stray_effects: Finding,
}

/// How often, and the first of them in words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Finding {
    pub count: u64,
    pub examples: Vec<String>,
}

impl Finding {
    fn add(&mut self, example: String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example);
        }
    }
}

impl Findings {
    /// Those that must be zero, by name.
    pub fn faults(&self) -> [(&'static str, &Finding); 6] {
        [
            ("lost", &self.lost),
            ("double_charged", &self.double_charged),
            ("oversold", &self.oversold),
            ("uncompensated", &self.uncompensated),
            ("events_lost", &self.events_lost),
            ("duplicated_effects", &self.duplicated_effects),
        ]
    }

    pub fn are_none(&self) -> bool {
        self.faults().iter().all(|(_, finding)| finding.count == 0)
    }
}

/// Audits the books against each other and against what this run was promised.
pub fn audit(ledgers: &Ledgers, promises: &Promises) -> Findings {
    let books = Books::open(ledgers);
    let mut findings = Findings {
        lost: lost(&books, &promises.receipts),
        double_charged: double_charged(&books),
        oversold: oversold(&books),
        uncompensated: uncompensated(&books, &promises.refusals),
        ..Findings::default()
    };
    for (index, worker) in WORKERS.into_iter().enumerate() {
        duplicated_effects(&books, worker, index, &mut findings.duplicated_effects);
        stray_effects(&books, worker, index, &mut findings.stray_effects);
    }
    findings.events_lost = events_lost(&books);
    findings
}

/// The ledgers with their indexes.
struct Books<'a> {
    ledgers: &'a Ledgers,
    orders: HashMap<&'a str, &'a Order>,
    orders_by_key: HashMap<&'a str, &'a Order>,
    attempts: HashMap<&'a str, &'a Attempt>,
    payments: HashMap<&'a str, &'a Payment>,
    live: HashMap<&'a str, Vec<&'a Payment>>,
}

impl<'a> Books<'a> {
    fn open(ledgers: &'a Ledgers) -> Self {
        let orders = ledgers.orders.iter();
        let attempts = ledgers.attempts.iter();
        let payments = ledgers.payments.iter();
        let mut live: HashMap<&str, Vec<&Payment>> = HashMap::new();
        for payment in payments.clone().filter(|payment| payment.state.is_live()) {
            live.entry(&payment.key).or_default().push(payment);
        }
        Self {
            ledgers,
            orders: orders.clone().map(|o| (o.order_id.0.as_str(), o)).collect(),
            orders_by_key: orders.map(|o| (o.key.as_str(), o)).collect(),
            attempts: attempts.map(|a| (a.key.as_str(), a)).collect(),
            payments: payments.map(|p| (p.payment_id.0.as_str(), p)).collect(),
            live,
        }
    }

    /// The order that the attempt says it made.
    fn order_of(&self, attempt: &Attempt) -> Option<&'a Order> {
        let order_id = attempt.order_id.as_ref()?;
        self.orders.get(order_id.0.as_str()).copied()
    }
}

fn lost(books: &Books<'_>, receipts: &[Receipt]) -> Finding {
    let mut finding = Finding::default();
    for receipt in receipts {
        let Some(order) = books.orders.get(receipt.order_id.as_str()) else {
            finding.add(format!("order {} is not there", receipt.order_id));
            continue;
        };
        let is_same = order.key == receipt.key
            && order.total_cents == receipt.total_cents
            && same_items(&order.items, &receipt.items);
        if !is_same {
            finding.add(format!(
                "order {} is another than was confirmed",
                receipt.order_id
            ));
        }
    }
    finding
}

fn double_charged(books: &Books<'_>) -> Finding {
    let mut finding = Finding::default();
    for (key, live) in &books.live {
        if let Some(wrong) = wrong_charge(books, key, live) {
            finding.add(format!("{key}: {wrong}"));
        }
    }
    finding
}

fn wrong_charge(books: &Books<'_>, key: &str, live: &[&Payment]) -> Option<String> {
    if live.len() > 1 {
        return Some(format!("{} live charges", live.len()));
    }
    let amount_cents = live.first()?.amount_cents;
    let completed = books
        .attempts
        .get(key)
        .filter(|a| a.state == Progress::Completed);
    let Some(attempt) = completed else {
        return Some("a live charge without a completed attempt".to_owned());
    };
    // A completed attempt without its order is uncompensated.
    let total_cents = books.order_of(attempt)?.total_cents;
    (amount_cents != total_cents)
        .then(|| format!("charged {amount_cents} for an order of {total_cents}"))
}

fn oversold(books: &Books<'_>) -> Finding {
    let mut ordered: HashMap<&str, i64> = HashMap::new();
    for item in books.ledgers.orders.iter().flat_map(|order| &order.items) {
        *ordered.entry(&item.sku).or_default() += item.quantity;
    }
    let mut finding = Finding::default();
    for stock in &books.ledgers.stock {
        let ordered = ordered.remove(stock.sku.as_str()).unwrap_or(0);
        if let Some(wrong) = wrong_stock(stock, ordered) {
            finding.add(format!("{}: {wrong}", stock.sku));
        }
    }
    for (sku, quantity) in ordered {
        finding.add(format!("{sku}: {quantity} ordered, and no stock is known"));
    }
    finding
}

fn wrong_stock(stock: &Stock, ordered: i64) -> Option<String> {
    let Stock {
        initial,
        available,
        reserved,
        sold,
        ..
    } = stock;
    if *available < 0 || *reserved < 0 {
        return Some(format!("{available} available, {reserved} reserved"));
    }
    if sold + reserved + available != *initial {
        return Some(format!(
            "{sold} sold, {reserved} reserved and {available} available of {initial}"
        ));
    }
    (*sold != ordered).then(|| format!("{sold} sold, but {ordered} ordered"))
}

fn uncompensated(books: &Books<'_>, refusals: &[String]) -> Finding {
    let mut finding = Finding::default();
    let mut is_running = false;
    for attempt in &books.ledgers.attempts {
        is_running |= attempt.state == Progress::Running;
        if let Some(wrong) = wrong_end(books, attempt) {
            finding.add(format!("attempt {}: {wrong}", attempt.key));
        }
    }
    for order in &books.ledgers.orders {
        if let Some(wrong) = wrong_order(books, order) {
            finding.add(format!("order {}: {wrong}", order.order_id.0));
        }
    }
    for key in refusals {
        if let Some(order) = books.orders_by_key.get(key.as_str()) {
            finding.add(format!(
                "attempt {key}: refused, but there is order {}",
                order.order_id.0
            ));
        }
    }
    // While attempts run, reservations are theirs.
    let stock = books.ledgers.stock.iter().filter(|_| !is_running);
    for stock in stock.filter(|stock| stock.reserved > 0) {
        finding.add(format!("{}: {} stay reserved", stock.sku, stock.reserved));
    }
    finding
}

fn wrong_end(books: &Books<'_>, attempt: &Attempt) -> Option<&'static str> {
    let key = attempt.key.as_str();
    match attempt.state {
        Progress::Running => Some("has not ended"),
        Progress::Completed if books.order_of(attempt).is_none() => {
            Some("completed without an order")
        }
        Progress::Completed => None,
        Progress::Compensated if books.live.contains_key(key) => Some("compensated, but charged"),
        Progress::Compensated if books.orders_by_key.contains_key(key) => {
            Some("compensated, but there is an order")
        }
        Progress::Compensated => None,
    }
}

fn wrong_order(books: &Books<'_>, order: &Order) -> Option<&'static str> {
    if !books.attempts.contains_key(order.key.as_str()) {
        return Some("no attempt made it");
    }
    let payment = order.payment_id.as_ref();
    let payment = payment.and_then(|id| books.payments.get(id.0.as_str()));
    match payment {
        Some(payment) if !payment.state.is_live() => Some("its payment is not live"),
        Some(payment) if payment.key != order.key => Some("its payment is of another attempt"),
        Some(_) => None,
        None => Some("without a payment"),
    }
}

fn events_lost(books: &Books<'_>) -> Finding {
    let seen: Vec<HashSet<&str>> = books
        .ledgers
        .effects
        .iter()
        .map(|effects| {
            let done = effects.iter().filter(|effect| effect.count > 0);
            done.map(|effect| effect.order_id.0.as_str()).collect()
        })
        .collect();
    let mut finding = Finding::default();
    for order in &books.ledgers.orders {
        let id = order.order_id.0.as_str();
        let missing = WORKERS
            .iter()
            .zip(&seen)
            .filter(|(_, seen)| !seen.contains(id));
        let missing: Vec<&str> = missing.map(|(worker, _)| *worker).collect();
        if !missing.is_empty() {
            finding.add(format!("order {id}: no {}", missing.join(", no ")));
        }
    }
    finding
}

/// A type of act counts once for an order, whether it stands in one row or several.
fn duplicated_effects(books: &Books<'_>, worker: &str, index: usize, finding: &mut Finding) {
    let mut counts: HashMap<(&str, &str), u64> = HashMap::new();
    for effect in &books.ledgers.effects[index] {
        *counts
            .entry((&effect.order_id.0, &effect.kind))
            .or_default() += effect.count;
    }
    for ((order, kind), count) in counts.into_iter().filter(|(_, count)| *count > 1) {
        finding.add(format!("order {order}: {worker} {kind} {count} times"));
    }
}

fn stray_effects(books: &Books<'_>, worker: &str, index: usize, finding: &mut Finding) {
    for effect in &books.ledgers.effects[index] {
        if !books.orders.contains_key(effect.order_id.0.as_str()) {
            finding.add(format!(
                "{worker} for an order {} that is not there",
                effect.order_id.0
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Charge, Effect};
    use crate::verify::{Id, Item};

    fn id(text: &str) -> Id {
        Id(text.to_owned())
    }

    fn items(mugs: i64) -> Vec<Item> {
        vec![Item {
            sku: "mug".to_owned(),
            quantity: mugs,
        }]
    }

    fn order(number: u32) -> Order {
        Order {
            order_id: id(&format!("o{number}")),
            key: format!("k{number}"),
            total_cents: 200,
            payment_id: Some(id(&format!("p{number}"))),
            items: items(2),
        }
    }

    fn payment(number: u32, state: Charge) -> Payment {
        Payment {
            payment_id: id(&format!("p{number}")),
            key: format!("k{number}"),
            amount_cents: 200,
            state,
        }
    }

    fn attempt(number: u32, state: Progress) -> Attempt {
        let order_id = (state == Progress::Completed).then(|| id(&format!("o{number}")));
        Attempt {
            key: format!("k{number}"),
            state,
            order_id,
        }
    }

    fn effect(number: u32) -> Effect {
        Effect {
            order_id: id(&format!("o{number}")),
            kind: "order.placed".to_owned(),
            count: 1,
        }
    }

    /// Two orders, a declined attempt, and one that was undone after its charge.
    fn good() -> Ledgers {
        Ledgers {
            orders: vec![order(1), order(2)],
            payments: vec![
                payment(1, Charge::Captured),
                payment(2, Charge::Authorized),
                payment(3, Charge::Declined),
                payment(4, Charge::Voided),
            ],
            stock: vec![Stock {
                sku: "mug".to_owned(),
                initial: 10,
                available: 6,
                reserved: 0,
                sold: 4,
            }],
            attempts: vec![
                attempt(1, Progress::Completed),
                attempt(2, Progress::Completed),
                attempt(3, Progress::Compensated),
                attempt(4, Progress::Compensated),
            ],
            effects: std::array::from_fn(|_| vec![effect(1), effect(2)]),
        }
    }

    fn promises() -> Promises {
        Promises {
            receipts: vec![Receipt {
                key: "k1".to_owned(),
                order_id: "o1".to_owned(),
                total_cents: 200,
                items: items(2),
            }],
            refusals: vec!["k3".to_owned()],
        }
    }

    /// All figures but the stray effects.
    fn counts(findings: &Findings) -> Vec<(&'static str, u64)> {
        let faults = findings.faults().into_iter();
        let counts = faults.map(|(name, finding)| (name, finding.count));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Plants a fault into good books and tells what was found.
    #[track_caller]
    fn check(fault: &str, plant: impl FnOnce(&mut Ledgers), expected: &[(&str, u64)]) {
        let mut ledgers = good();
        plant(&mut ledgers);
        let findings = audit(&ledgers, &promises());
        assert_eq!(counts(&findings), expected, "{fault}: {findings:?}");
        assert_eq!(findings.are_none(), expected.is_empty(), "{fault}");
    }

    #[test]
    fn good_books_have_no_finding() {
        assert_eq!(audit(&good(), &promises()), Findings::default());
        assert_eq!(
            audit(&Ledgers::default(), &Promises::default()),
            Findings::default()
        );
    }

    #[test]
    fn lost_orders() {
        check(
            "gone with all its traces",
            |l| {
                l.orders.remove(0);
                l.payments.remove(0);
                l.attempts.remove(0);
                l.stock[0].sold = 2;
                l.stock[0].available = 8;
            },
            &[("lost", 1)],
        );
        check(
            "gone",
            |l| {
                l.orders.remove(0);
            },
            &[("lost", 1), ("oversold", 1), ("uncompensated", 1)],
        );
        check(
            "another total",
            |l| {
                l.orders[0].total_cents = 199;
                l.payments[0].amount_cents = 199;
            },
            &[("lost", 1)],
        );
        check(
            "other items",
            |l| {
                l.orders[0].items = items(1);
                l.stock[0].sold = 3;
                l.stock[0].available = 7;
            },
            &[("lost", 1)],
        );
        check(
            "of another key",
            |l| {
                for key in [
                    &mut l.orders[0].key,
                    &mut l.payments[0].key,
                    &mut l.attempts[0].key,
                ] {
                    *key = "k9".to_owned();
                }
            },
            &[("lost", 1)],
        );
    }

    #[test]
    fn double_charges() {
        check(
            "two live charges",
            |l| {
                let mut again = payment(1, Charge::Authorized);
                again.payment_id = id("p9");
                l.payments.push(again);
            },
            &[("double_charged", 1)],
        );
        check(
            "three are one customer",
            |l| {
                for number in [8, 9] {
                    let mut again = payment(1, Charge::Captured);
                    again.payment_id = id(&format!("p{number}"));
                    l.payments.push(again);
                }
            },
            &[("double_charged", 1)],
        );
        check(
            "a repetition that was voided",
            |l| {
                let mut again = payment(1, Charge::Voided);
                again.payment_id = id("p9");
                l.payments.push(again);
            },
            &[],
        );
        check(
            "charged too much",
            |l| l.payments[0].amount_cents = 400,
            &[("double_charged", 1)],
        );
        check(
            "a charge from nowhere",
            |l| {
                l.payments.push(payment(9, Charge::Captured));
            },
            &[("double_charged", 1)],
        );
        check(
            "a charge of an undone attempt",
            |l| {
                l.payments[3].state = Charge::Authorized;
            },
            &[("double_charged", 1), ("uncompensated", 1)],
        );
        check(
            "a charge of a running attempt",
            |l| {
                l.attempts.push(attempt(9, Progress::Running));
                l.payments.push(payment(9, Charge::Authorized));
            },
            &[("double_charged", 1), ("uncompensated", 1)],
        );
    }

    #[test]
    fn oversold_products() {
        check(
            "less than nothing",
            |l| {
                l.stock[0].available = -1;
                l.stock[0].initial = 3;
            },
            &[("oversold", 1)],
        );
        check(
            "more than there was",
            |l| l.stock[0].available = 7,
            &[("oversold", 1)],
        );
        check(
            "sold, but never ordered",
            |l| {
                l.stock[0].sold = 5;
                l.stock[0].available = 5;
            },
            &[("oversold", 1)],
        );
        check(
            "ordered, but not sold",
            |l| {
                l.stock[0].sold = 3;
                l.stock[0].available = 7;
            },
            &[("oversold", 1)],
        );
        check(
            "a product from nowhere",
            |l| l.stock.clear(),
            &[("oversold", 1)],
        );
    }

    #[test]
    fn uncompensated_attempts() {
        check(
            "running",
            |l| l.attempts.push(attempt(9, Progress::Running)),
            &[("uncompensated", 1)],
        );
        check(
            "a running one's reservation is its own",
            |l| {
                l.attempts.push(attempt(9, Progress::Running));
                l.stock[0].reserved = 1;
                l.stock[0].available = 5;
            },
            &[("uncompensated", 1)],
        );
        check(
            "a reservation stays",
            |l| {
                l.stock[0].reserved = 1;
                l.stock[0].available = 5;
            },
            &[("uncompensated", 1)],
        );
        check(
            "completed without an order",
            |l| {
                l.attempts.push(Attempt {
                    key: "k9".to_owned(),
                    state: Progress::Completed,
                    order_id: None,
                })
            },
            &[("uncompensated", 1)],
        );
        check(
            "completed with an order that is not there",
            |l| {
                l.attempts.push(attempt(9, Progress::Completed));
            },
            &[("uncompensated", 1)],
        );
        check(
            "an order without a payment",
            |l| l.orders[1].payment_id = None,
            &[("uncompensated", 1)],
        );
        check(
            "an order whose payment is not there",
            |l| {
                l.payments.remove(1);
            },
            &[("uncompensated", 1)],
        );
        check(
            "an order whose payment was voided",
            |l| {
                l.payments[1].state = Charge::Voided;
            },
            &[("uncompensated", 1)],
        );
        check(
            "an order with the payment of another",
            |l| {
                l.orders[1].payment_id = Some(id("p1"));
            },
            &[("uncompensated", 1)],
        );
        check(
            "an order that no attempt made",
            |l| {
                l.attempts.remove(1);
            },
            &[("double_charged", 1), ("uncompensated", 1)],
        );
        check(
            "an undone attempt with an order",
            |l| {
                l.attempts[1] = attempt(2, Progress::Compensated);
                l.payments[1].state = Charge::Voided;
            },
            &[("uncompensated", 2)],
        );
    }

    #[test]
    fn refused_checkouts_have_no_order() {
        check(
            "an order after a refusal",
            |l| {
                l.orders.push(order(3));
                l.payments[2].state = Charge::Captured;
                l.attempts[2] = attempt(3, Progress::Completed);
                l.stock[0].sold = 6;
                l.stock[0].available = 4;
                for effects in &mut l.effects {
                    effects.push(effect(3));
                }
            },
            &[("uncompensated", 1)],
        );
    }

    #[test]
    fn effects() {
        check(
            "no mail",
            |l| {
                l.effects[0].remove(0);
            },
            &[("events_lost", 1)],
        );
        check(
            "no mail and no parcel are one lost event",
            |l| {
                l.effects[0].remove(0);
                l.effects[1].remove(0);
            },
            &[("events_lost", 1)],
        );
        check(
            "no analytics for anyone",
            |l| l.effects[2].clear(),
            &[("events_lost", 2)],
        );
        check(
            "an effect of no times",
            |l| l.effects[1][0].count = 0,
            &[("events_lost", 1)],
        );
        check(
            "two mails",
            |l| l.effects[0][0].count = 2,
            &[("duplicated_effects", 1)],
        );
        check(
            "two rows",
            |l| l.effects[1].push(effect(2)),
            &[("duplicated_effects", 1)],
        );
        check(
            "mails of two types",
            |l| {
                let mut other = effect(1);
                other.kind = "order.shipped".to_owned();
                l.effects[0].push(other);
            },
            &[],
        );
        let mut ledgers = good();
        ledgers.effects[0].push(effect(9));
        let findings = audit(&ledgers, &promises());
        assert_eq!(
            (findings.stray_effects.count, findings.are_none()),
            (1, true)
        );
    }

    #[test]
    fn examples_are_bounded() {
        let mut ledgers = good();
        ledgers
            .attempts
            .extend((10..100).map(|number| attempt(number, Progress::Running)));
        let finding = audit(&ledgers, &Promises::default()).uncompensated;
        assert_eq!((finding.count, finding.examples.len()), (90, EXAMPLES_MAX));
    }
}
