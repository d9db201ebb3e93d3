//! The power goes while clients write: every acknowledged transaction survives, whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sqlite::testing::Disk;
use store::sqlite::{Options, SqliteStore};
use store::{Store, Transaction};

use crate::engines::block_on;

const CLIENTS: usize = 4;
const LOSSES: usize = 4;

/// What one client knows: its counter's last acknowledged value, and the last one it asked for.
#[derive(Clone, Copy, Default)]
struct Known {
    acknowledged: u64,
    asked: u64,
}

fn open(disk: &Disk, synchronous: Option<&'static str>) -> SqliteStore {
    let mut options = Options::new("store.db");
    options.database.testing.disk = Some(disk.clone());
    options.database.testing.synchronous = synchronous;
    // Small, so that compaction is part of it.
    options.retained_revisions = 50;
    SqliteStore::open(options).unwrap()
}

fn keys(client: usize) -> [String; 2] {
    [format!("left/{client}"), format!("right/{client}")]
}

/// Counts on in both keys of the client until the store fails.
fn write_until_failure(
    store: &dyn Store,
    client: usize,
    mut known: Known,
    acknowledged: &AtomicU64,
) -> Known {
    let [left, right] = keys(client);
    // Large enough that checkpoints and page splits are part of it.
    let filler = " ".repeat(600);
    loop {
        known.asked += 1;
        let value = format!("{}{filler}", known.asked);
        let transaction = Transaction::new()
            .put(left.clone(), value.clone())
            .put(right.clone(), value);
        if block_on(store.transact(transaction)).is_err() {
            return known;
        }
        known.acknowledged = known.asked;
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// The counter after the restart, which both keys must agree on.
fn counter(store: &dyn Store, client: usize) -> Result<u64, String> {
    let [left, right] = keys(client).map(|key| {
        let record = block_on(store.get(&key)).unwrap();
        record.map_or(0, |record| {
            String::from_utf8_lossy(&record.value)
                .trim()
                .parse()
                .unwrap()
        })
    });
    if left == right {
        Ok(left)
    } else {
        Err(format!(
            "client {client} finds half a transaction: {left}, {right}"
        ))
    }
}

fn one_loss(
    disk: &Disk,
    random: &mut SmallRng,
    known: &mut [Known; CLIENTS],
    synchronous: Option<&'static str>,
) {
    let store: Arc<dyn Store> = Arc::new(open(disk, synchronous));
    let acknowledged = AtomicU64::new(0);
    let enough = random.random_range(20..400);
    // All, none, or some of what was not synced reaches the plate.
    let share = *[0.0, 0.5, 1.0]
        .get(random.random_range(0..3))
        .unwrap_or(&0.0);
    std::thread::scope(|scope| {
        let (store, acknowledged) = (&*store, &acknowledged);
        for (client, known) in known.iter_mut().enumerate() {
            scope.spawn(move || *known = write_until_failure(store, client, *known, acknowledged));
        }
        while acknowledged.load(Ordering::SeqCst) < enough {
            std::thread::yield_now();
        }
        disk.lose_power(|| random.random_bool(share));
    });
}

/// Loses power several times on one disk; the first broken promise, if any.
fn run(seed: u64, synchronous: Option<&'static str>) -> Result<(), String> {
    let disk = Disk::new();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut known = [Known::default(); CLIENTS];
    for loss in 0..LOSSES {
        one_loss(&disk, &mut random, &mut known, synchronous);
        let store = open(&disk, synchronous);
        for (client, known) in known.iter_mut().enumerate() {
            let found = counter(&store, client)?;
            if !(known.acknowledged..=known.asked).contains(&found) {
                let Known {
                    acknowledged,
                    asked,
                } = known;
                return Err(format!(
                    "loss {loss}: {acknowledged} was acknowledged, {asked} asked, {found} found"
                ));
            }
            // An unknown outcome is known now.
            *known = Known {
                acknowledged: found,
                asked: found,
            };
        }
    }
    Ok(())
}

#[test]
fn what_was_acknowledged_survives_power_losses() {
    for seed in 0..12 {
        run(seed, None).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

/// The test above must be able to fail.
#[test]
fn a_planted_weaker_sync_is_caught() {
    for weaker in ["OFF", "NORMAL"] {
        let caught = (0..12).any(|seed| {
            std::panic::catch_unwind(|| run(seed, Some(weaker))).is_ok_and(|run| run.is_err())
        });
        assert!(caught, "synchronous={weaker} was not noticed");
    }
}
