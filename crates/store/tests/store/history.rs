//! Concurrent clients from a seed: every verdict and every watch must fit one order of all transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use store::{Condition, Error, List, Revision, Store, Transaction, list_all};

use crate::engines::{self, Bench, RETAINED_BY_DEFAULT, block_on};
use crate::model::{Answer, Observation, Watched, judge};

const KEYS: [&str; 6] = ["a/1", "a/2", "a/3", "b/1", "b/2", "c"];
const VALUES: [&str; 3] = ["x", "y", "z"];
const CLIENTS: u64 = 4;
const QUESTIONS: usize = 250;
/// Written last: watchers stop when they see it.
const END: &str = "a/end";

struct Client {
    store: Arc<dyn Store>,
    random: SmallRng,
    /// The newest revision that any client was told.
    told: Arc<AtomicU64>,
    compacts: bool,
}

impl Client {
    fn run(mut self) -> Vec<Observation> {
        block_on(async move {
            let mut observations = Vec::new();
            for _ in 0..QUESTIONS {
                let floor = self.told.load(Ordering::SeqCst);
                let answer = self.ask(floor).await;
                let ceiling = self.store.revision().await.unwrap().number();
                observations.extend(answer.map(|answer| Observation {
                    floor,
                    ceiling,
                    answer,
                }));
            }
            observations
        })
    }

    async fn ask(&mut self, floor: u64) -> Option<Answer> {
        match self.random.random_range(0..20) {
            0..3 => {
                let key = KEYS.choose(&mut self.random)?.to_string();
                let record = self.store.get(&key).await.unwrap();
                Some(Answer::Got { key, record })
            }
            3 => {
                let page = self.store.list(List::prefix("")).await.unwrap();
                Some(Answer::Listed {
                    revision: page.revision,
                    records: page.records,
                })
            }
            4 => self.list_the_past(floor).await,
            5 if self.compacts => {
                let through =
                    Revision::from_number(floor.saturating_sub(self.random.random_range(0..20)));
                self.store.compact(through).await.unwrap();
                None
            }
            _ => Some(self.transact(floor).await),
        }
    }

    async fn list_the_past(&mut self, floor: u64) -> Option<Answer> {
        let revision = Revision::from_number(self.random.random_range(0..=floor));
        match self.store.list(List::prefix("").at(revision)).await {
            Ok(page) => Some(Answer::Listed {
                revision,
                records: page.records,
            }),
            Err(Error::Compacted { .. }) if self.compacts => None,
            Err(error) => panic!("{error}"),
        }
    }

    async fn transact(&mut self, floor: u64) -> Answer {
        let transaction = self.transaction(floor);
        match self.store.transact(transaction.clone()).await {
            Ok(revision) => {
                self.told.fetch_max(revision.number(), Ordering::SeqCst);
                Answer::Committed {
                    transaction,
                    revision,
                }
            }
            Err(Error::Conflict(conflict)) => Answer::Refused {
                transaction,
                conflict: *conflict,
            },
            Err(error) => panic!("{error}"),
        }
    }

    fn transaction(&mut self, floor: u64) -> Transaction {
        let random = &mut self.random;
        let mut transaction = Transaction::new();
        for _ in 0..random.random_range(0..3) {
            let key = KEYS.choose(random).unwrap().to_string();
            let revision =
                Revision::from_number(random.random_range(floor.saturating_sub(5)..=floor));
            transaction = transaction.condition(match random.random_range(0..6) {
                0 => Condition::Absent { key },
                1 | 2 => Condition::Exists { key },
                3 => Condition::Version {
                    key,
                    version: random.random_range(0..4),
                },
                4 => Condition::Modified { key, revision },
                _ => Condition::Value {
                    key,
                    value: (*VALUES.choose(random).unwrap()).into(),
                },
            });
        }
        let count = random.random_range(0..3);
        for key in KEYS.choose_multiple(random, count) {
            transaction = match random.random_bool(0.7) {
                true => transaction.put(*key, *VALUES.choose(random).unwrap()),
                false => transaction.delete(*key),
            };
        }
        transaction
    }
}

/// Follows a prefix to the end; lists again whenever the past was compacted.
fn watch(store: Arc<dyn Store>, prefix: &'static str) -> Vec<Watched> {
    block_on(async move {
        let mut segments = Vec::new();
        let (mut after, mut snapshot) = (Revision::ZERO, None);
        loop {
            let mut segment = Watched {
                prefix: prefix.into(),
                after,
                snapshot,
                changes: Vec::new(),
                through: after,
            };
            let ended = follow(&*store, &mut segment).await;
            segments.push(segment);
            if ended {
                return segments;
            }
            let (records, revision) = list_all(&*store, prefix).await.unwrap();
            let last = records.iter().any(|record| &*record.key == END);
            (after, snapshot) = (revision, Some(records.clone()));
            if last {
                let (prefix, changes) = (prefix.into(), Vec::new());
                segments.push(Watched {
                    prefix,
                    after,
                    snapshot: Some(records),
                    changes,
                    through: after,
                });
                return segments;
            }
        }
    })
}

/// True: saw the end. False: fell behind.
async fn follow(store: &dyn Store, segment: &mut Watched) -> bool {
    let mut watcher = match store.watch(&segment.prefix, segment.after).await {
        Err(Error::Compacted { .. }) => return false,
        watcher => watcher.unwrap(),
    };
    loop {
        match watcher.next().await {
            Ok(change) => {
                let last = change.events.iter().any(|event| event.key() == END);
                segment.changes.push(change);
                segment.through = watcher.revision();
                if last {
                    return true;
                }
            }
            Err(Error::Compacted { .. }) => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn run(bench: Bench, seed: u64, compacts: bool) -> (Vec<Observation>, Vec<Watched>, Revision) {
    let told = Arc::new(AtomicU64::new(0));
    let store = &bench.store;
    std::thread::scope(|scope| {
        let watchers = ["", "a/"].map(|prefix| scope.spawn(move || watch(store.clone(), prefix)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let random = SmallRng::seed_from_u64(seed * CLIENTS + client);
                let client = Client {
                    store: store.clone(),
                    random,
                    told: told.clone(),
                    compacts,
                };
                scope.spawn(move || client.run())
            })
            .collect();
        let mut observations: Vec<_> = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect();
        let transaction = Transaction::new().put(END, "");
        let revision = block_on(store.transact(transaction.clone())).unwrap();
        let (floor, ceiling) = (told.load(Ordering::SeqCst), revision.number());
        observations.push(Observation {
            floor,
            ceiling,
            answer: Answer::Committed {
                transaction,
                revision,
            },
        });
        let watched = watchers
            .into_iter()
            .flat_map(|watcher| watcher.join().unwrap())
            .collect();
        (observations, watched, revision)
    })
}

fn check(engine: fn(u64) -> Bench, seed: u64, compacts: bool) {
    let (observations, watched, newest) = run(engine(RETAINED_BY_DEFAULT), seed, compacts);
    assert!(
        newest.number() > 100,
        "the clients changed something: {}",
        newest.number()
    );
    judge(&observations, &watched, newest)
        .unwrap_or_else(|contradiction| panic!("seed {seed}: {contradiction}"));
}

#[test]
fn histories_on_memory_fit_one_order() {
    (0..8).for_each(|seed| check(engines::memory, seed, seed % 2 == 1));
}

#[test]
fn histories_on_sqlite_fit_one_order() {
    (0..8).for_each(|seed| check(engines::sqlite, seed, seed % 2 == 1));
}

type Plant<'a> = &'a dyn Fn(&mut Vec<Observation>, &mut Vec<Watched>);

/// The judge must see what it is there for.
#[test]
fn the_judge_sees_planted_contradictions() {
    let (observations, watched, newest) = run(engines::memory(RETAINED_BY_DEFAULT), 99, false);
    let judged = |change: Plant<'_>| {
        let (mut observations, mut watched) = (observations.clone(), watched.clone());
        change(&mut observations, &mut watched);
        judge(&observations, &watched, newest)
    };
    assert_eq!(judged(&|_, _| {}), Ok(()));
    let planted: [(&str, Plant<'_>); 6] = [
        ("a change that a watcher was not told", &|_, watched| {
            drop(watched[0].changes.remove(50))
        }),
        ("two changes in the wrong order", &|_, watched| {
            watched[1].changes.swap(10, 11)
        }),
        ("a change told twice", &|_, watched| {
            let again = watched[0].changes[50].clone();
            watched[0].changes.insert(50, again);
        }),
        (
            "a commit told before one that it followed",
            &|observations, _| {
                committed(observations).floor = newest.number();
            },
        ),
        ("a lost update", &|observations, _| {
            let Answer::Committed { transaction, .. } = &mut committed(observations).answer else {
                return;
            };
            *transaction = transaction.clone().if_absent("a/1").if_exists("a/1");
        }),
        ("a stale read", &|observations, _| {
            let read = observations.iter_mut().find(|observation| {
                matches!(&observation.answer, Answer::Got { record: Some(record), .. } if record.modified.number() > 10)
            });
            let read = read.expect("somebody read");
            (read.floor, read.ceiling) = (0, 5);
        }),
    ];
    for (name, plant) in planted {
        assert!(judged(plant).is_err(), "{name}");
    }
}

fn committed(observations: &mut [Observation]) -> &mut Observation {
    let commits = |observation: &&mut Observation| matches!(&observation.answer, Answer::Committed { transaction, .. } if !transaction.operations.is_empty());
    observations
        .iter_mut()
        .filter(commits)
        .nth(20)
        .expect("somebody committed")
}
