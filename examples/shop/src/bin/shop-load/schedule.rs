//! When a request leaves and what it asks: from the seed alone, before any answer is known.
//!
//! Checkouts and reads arrive as two independent streams, merged by time, so that a run of S seconds at rate R has R × S checkouts (with
//! Poisson arrivals: on average) whatever share of reads is added.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::verify::Item;

/// The provider always declines it.
pub const DECLINED_CARD: &str = "4000000000000002";
/// The provider accepts it.
pub const CARD: &str = "4242424242424242";
/// Checkouts with the declined card.
const DECLINED_SHARE: f64 = 0.02;
/// Checkouts that want something scarce.
const SCARCE_SHARE: f64 = 0.03;
/// A product is scarce if the best stocked one has so many times its stock.
const SCARCE_RATIO: i64 = 20;
const PRODUCTS_PER_ORDER: usize = 3;
const QUANTITY_MAX: i64 = 3;

/// How arrivals follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// The same gap between all
    Fixed,
    /// As many people who know nothing of each other arrive
    Poisson,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Checkouts a second.
    pub rate: f64,
    /// Reads per checkout.
    pub reads: f64,
    pub length: Duration,
    pub arrivals: Arrivals,
    pub seed: u64,
}

/// One request to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Since the begin of the run.
    pub at: Duration,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Checkout(Basket),
    /// The list of products.
    Products,
    /// The page.
    Page,
    /// A completed order: this number, modulo how many are known.
    Order(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Basket {
    /// Different products.
    pub items: Vec<Item>,
    pub card: &'static str,
}

/// What there is to buy, as the list of products showed at the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shelves {
    ordinary: Vec<String>,
    scarce: Vec<String>,
}

impl Shelves {
    /// From product codes with their stock.
    pub fn new<'a>(stock: impl Iterator<Item = (&'a str, i64)> + Clone) -> Self {
        let most = stock.clone().map(|(_, stock)| stock).max().unwrap_or(0);
        let is_scarce = |stock: i64| stock.saturating_mul(SCARCE_RATIO) < most;
        let (scarce, ordinary): (Vec<_>, Vec<_>) = stock.partition(|(_, stock)| is_scarce(*stock));
        let names =
            |list: Vec<(&str, i64)>| list.iter().map(|(sku, _)| (*sku).to_owned()).collect();
        Self {
            ordinary: names(ordinary),
            scarce: names(scarce),
        }
    }

    fn basket(&self, random: &mut StdRng) -> Basket {
        let mut items: Vec<Item> = Vec::with_capacity(PRODUCTS_PER_ORDER);
        if !self.scarce.is_empty() && random.random_bool(SCARCE_SHARE) {
            items.push(pick(&self.scarce, random));
        }
        for _ in items.len()..random.random_range(1..=PRODUCTS_PER_ORDER) {
            let item = pick(&self.ordinary, random);
            if items.iter().all(|other| other.sku != item.sku) {
                items.push(item);
            }
        }
        let declined = random.random_bool(DECLINED_SHARE);
        Basket {
            items,
            card: if declined { DECLINED_CARD } else { CARD },
        }
    }
}

fn pick(shelf: &[String], random: &mut StdRng) -> Item {
    Item {
        sku: shelf[random.random_range(0..shelf.len())].clone(),
        quantity: random.random_range(1..=QUANTITY_MAX),
    }
}

impl Schedule {
    /// All requests of the run, in order of time. There must be something on the shelves.
    pub fn arrivals(&self, shelves: Shelves) -> impl Iterator<Item = Arrival> + use<> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut checkouts = Stream::new(self.rate, self.arrivals);
        let mut reads = Stream::new(self.rate * self.reads, self.arrivals);
        let length = self.length.as_secs_f64();
        std::iter::from_fn(move || {
            let is_checkout = checkouts.next <= reads.next;
            let stream = if is_checkout {
                &mut checkouts
            } else {
                &mut reads
            };
            let at = stream.next;
            if at >= length {
                return None;
            }
            stream.advance(&mut random);
            let action = match is_checkout {
                true => Action::Checkout(shelves.basket(&mut random)),
                false => read(&mut random),
            };
            let at = Duration::from_secs_f64(at);
            Some(Arrival { at, action })
        })
    }
}

fn read(random: &mut StdRng) -> Action {
    match random.random_range(0..3) {
        0 => Action::Products,
        1 => Action::Page,
        _ => Action::Order(random.random_range(0..usize::MAX)),
    }
}

/// Points in time, in seconds since the begin.
struct Stream {
    rate: f64,
    arrivals: Arrivals,
    count: f64,
    next: f64,
}

impl Stream {
    fn new(rate: f64, arrivals: Arrivals) -> Self {
        let next = if rate > 0.0 { 0.0 } else { f64::INFINITY };
        Self {
            rate,
            arrivals,
            count: 0.0,
            next,
        }
    }

    /// Fixed arrivals are multiples, not sums: a million of them has no drift.
    fn advance(&mut self, random: &mut StdRng) {
        self.count += 1.0;
        self.next = match self.arrivals {
            Arrivals::Fixed => self.count / self.rate,
            Arrivals::Poisson => self.next - (1.0 - random.random::<f64>()).ln() / self.rate,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(arrivals: Arrivals, seed: u64) -> Schedule {
        Schedule {
            rate: 200.0,
            reads: 0.25,
            length: Duration::from_secs(20),
            arrivals,
            seed,
        }
    }

    fn shelves() -> Shelves {
        let stock = [
            ("mug", 100_000),
            ("hat", 90_000),
            ("pen", 80_000),
            ("rug", 100),
            ("gem", 0),
        ];
        Shelves::new(stock.into_iter())
    }

    fn all(arrivals: Arrivals, seed: u64) -> Vec<Arrival> {
        schedule(arrivals, seed).arrivals(shelves()).collect()
    }

    fn baskets(arrivals: &[Arrival]) -> Vec<&Basket> {
        let basket = |arrival: &'_ Arrival| matches!(arrival.action, Action::Checkout(_));
        let checkouts = arrivals.iter().filter(|arrival| basket(arrival));
        checkouts
            .map(|arrival| match &arrival.action {
                Action::Checkout(basket) => basket,
                _ => unreachable!("only checkouts are left"),
            })
            .collect()
    }

    #[test]
    fn a_fixed_rate_has_exactly_its_requests() {
        let arrivals = all(Arrivals::Fixed, 1);
        assert_eq!(baskets(&arrivals).len(), 4000);
        assert_eq!(arrivals.len(), 5000);
        assert!(arrivals.is_sorted_by_key(|arrival| arrival.at));
        assert!(arrivals.last().unwrap().at < Duration::from_secs(20));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_no_beat() {
        let arrivals = all(Arrivals::Poisson, 1);
        let checkouts = baskets(&arrivals).len();
        // Six standard deviations of a Poisson count of 4000.
        assert!((3620..4380).contains(&checkouts), "{checkouts}");
        let gaps = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at);
        let long = gaps.filter(|gap| *gap > Duration::from_millis(12)).count();
        // exp(-250/s * 12 ms) = 5 % of gaps; a fixed schedule has none.
        assert!((150..350).contains(&long), "{long}");
    }

    #[test]
    fn the_seed_decides_everything() {
        for arrivals in [Arrivals::Fixed, Arrivals::Poisson] {
            assert_eq!(all(arrivals, 7), all(arrivals, 7));
            assert_ne!(all(arrivals, 7), all(arrivals, 8));
        }
    }

    #[test]
    fn shares_are_as_promised() {
        let arrivals = all(Arrivals::Fixed, 3);
        let baskets = baskets(&arrivals);
        let declined = baskets.iter().filter(|b| b.card == DECLINED_CARD).count();
        assert!((40..130).contains(&declined), "{declined} of 4000 are 2 %");
        let wants_scarce = |basket: &Basket| {
            basket
                .items
                .iter()
                .any(|item| ["rug", "gem"].contains(&item.sku.as_str()))
        };
        let scarce = baskets.iter().filter(|basket| wants_scarce(basket)).count();
        assert!((70..180).contains(&scarce), "{scarce} of 4000 are 3 %");
        for basket in &baskets {
            let mut skus: Vec<_> = basket.items.iter().map(|item| &item.sku).collect();
            skus.sort();
            skus.dedup();
            assert_eq!(
                skus.len(),
                basket.items.len(),
                "products of a basket differ"
            );
            assert!((1..=PRODUCTS_PER_ORDER).contains(&basket.items.len()));
            assert!(
                basket
                    .items
                    .iter()
                    .all(|item| (1..=QUANTITY_MAX).contains(&item.quantity))
            );
        }
        let pages = arrivals.iter().filter(|a| a.action == Action::Page).count();
        assert!(
            (230..440).contains(&pages),
            "a third of 1000 reads: {pages}"
        );
    }

    #[test]
    fn without_reads_there_are_none() {
        let schedule = Schedule {
            reads: 0.0,
            ..schedule(Arrivals::Fixed, 1)
        };
        let arrivals: Vec<_> = schedule.arrivals(shelves()).collect();
        assert_eq!(baskets(&arrivals).len(), arrivals.len());
    }
}
