//! The SQLite engine across restarts and on a full disk.

use std::sync::Arc;
use std::time::Duration;

use sqlite::testing::Disk;
use store::sqlite::{Options, SqliteStore};
use store::{Error, Event, List, Store, Transaction, list_all};

use crate::engines::{ManualClock, block_on};

const MINUTE: Duration = Duration::from_secs(60);

fn on(disk: &Disk) -> Options {
    let mut options = Options::new("store.db");
    options.database.testing.disk = Some(disk.clone());
    options
}

#[test]
fn a_restart_keeps_records_revisions_and_the_compacted_past() {
    let disk = Disk::new();
    let (middle, before) = block_on(async {
        let store = SqliteStore::open(on(&disk)).unwrap();
        store
            .transact(Transaction::new().put("a", "1").put("b", "1"))
            .await
            .unwrap();
        let middle = store
            .transact(Transaction::new().put("a", "2"))
            .await
            .unwrap();
        store
            .transact(Transaction::new().delete("b"))
            .await
            .unwrap();
        store.compact(middle).await.unwrap();
        (middle, list_all(&store, "").await.unwrap())
    });
    block_on(async {
        let store = SqliteStore::open(on(&disk)).unwrap();
        assert_eq!(list_all(&store, "").await.unwrap(), before);
        assert_eq!(
            store
                .list(List::prefix("").at(middle))
                .await
                .unwrap()
                .records
                .len(),
            2
        );
        let mut watcher = store.watch("", middle).await.unwrap();
        assert_eq!(watcher.next().await.unwrap().revision, before.1);
        // Everything compacted, even the deletion that was newest: revisions must not be given out again.
        store.compact(before.1).await.unwrap();
    });
    let store = SqliteStore::open(on(&disk)).unwrap();
    assert!(block_on(store.transact(Transaction::new().put("c", "1"))).unwrap() > before.1);
    assert!(matches!(
        block_on(store.watch("", middle)),
        Err(Error::Compacted { .. })
    ));
}

#[test]
fn a_restart_gives_every_lease_its_whole_time_again() {
    let disk = Disk::new();
    let clock = Arc::new(ManualClock::default());
    let open = || {
        SqliteStore::open(Options {
            clock: clock.clone(),
            ..on(&disk)
        })
        .unwrap()
    };
    let lease = block_on(async {
        let store = open();
        let lease = store.grant(MINUTE).await.unwrap();
        store
            .transact(Transaction::new().put_leased("a", "1", lease))
            .await
            .unwrap();
        lease
    });
    clock.advance(MINUTE);
    block_on(async {
        let store = open();
        assert_eq!(store.expire().await, Ok(0));
        store.keep_alive(lease).await.unwrap();
        clock.advance(MINUTE);
        assert_eq!(store.expire().await, Ok(1));
        assert_eq!(store.get("a").await, Ok(None));
    });
    assert_eq!(
        block_on(open().keep_alive(lease)),
        Err(Error::LeaseUnknown(lease))
    );
}

#[test]
fn a_full_disk_is_named_and_mends() {
    let disk = Disk::new();
    let store = SqliteStore::open(on(&disk)).unwrap();
    block_on(async {
        let revision = store
            .transact(Transaction::new().put("a", "1"))
            .await
            .unwrap();
        let mut watcher = store.watch("", revision).await.unwrap();
        disk.set_capacity(Some(disk.used_bytes() + 10_000));
        let error = store
            .transact(Transaction::new().put("b", vec![0; 100_000]))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("no space left"), "{error}");
        assert_eq!(store.revision().await, Ok(revision));
        disk.set_capacity(None);
        let mended = store
            .transact(Transaction::new().put("c", vec![0; 100_000]))
            .await
            .unwrap();
        let change = watcher.next().await.unwrap();
        assert_eq!((change.revision, change.events[0].key()), (mended, "c"));
    });
}

#[test]
fn an_unknown_outcome_is_told_as_such() {
    let disk = Disk::new();
    let store = SqliteStore::open(on(&disk)).unwrap();
    disk.set_syncs_fail(true);
    let error = block_on(store.transact(Transaction::new().put("a", "1"))).unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error:?}");
}

/// The writer remembers what it wrote; it must not remember what the disk then refused.
#[test]
fn what_was_given_up_is_not_remembered() {
    let disk = Disk::new();
    let store = SqliteStore::open(on(&disk)).unwrap();
    block_on(async {
        let first = store
            .transact(Transaction::new().put("a", "1"))
            .await
            .unwrap();
        disk.set_syncs_fail(true);
        let given_up = Transaction::new().put("a", "2").put("b", "2");
        store.transact(given_up).await.unwrap_err();
        let given_up = Transaction::new().delete("a");
        store.transact(given_up).await.unwrap_err();
        disk.set_syncs_fail(false);
        let second = Transaction::new()
            .if_modified("a", first)
            .if_value("a", "1")
            .if_absent("b")
            .put("a", "3");
        let second = store.transact(second).await.unwrap();
        assert_eq!(second.number(), first.number() + 1);
        let record = store.get("a").await.unwrap().unwrap();
        assert_eq!((record.version, record.created), (2, first));
    });
}

#[test]
fn what_a_refused_transaction_wrote_is_not_remembered() {
    let disk = Disk::new();
    let store = SqliteStore::open(on(&disk)).unwrap();
    block_on(async {
        let ended = store.grant(MINUTE).await.unwrap();
        let before = store.revoke(ended).await.unwrap();
        let refused = Transaction::new().put("a", "1").put_leased("b", "1", ended);
        let error = store.transact(refused).await.unwrap_err();
        assert_eq!(error, Error::LeaseUnknown(ended));
        let next = Transaction::new().if_absent("a").put("a", "2");
        let next = store.transact(next).await.unwrap();
        assert_eq!(next.number(), before.number() + 1);
        assert_eq!(store.get("a").await.unwrap().unwrap().version, 1);
    });
}

#[test]
fn maintenance_lets_leases_expire() {
    let disk = Disk::new();
    let clock = Arc::new(ManualClock::default());
    let store = Arc::new(
        SqliteStore::open(Options {
            clock: clock.clone(),
            ..on(&disk)
        })
        .unwrap(),
    );
    block_on(async {
        let lease = store.grant(MINUTE).await.unwrap();
        let put = store
            .transact(Transaction::new().put_leased("a", "1", lease))
            .await
            .unwrap();
        let mut watcher = store.watch("", put).await.unwrap();
        let maintaining = tokio::spawn(store::maintain(store.clone()));
        clock.advance(MINUTE);
        let change = tokio::time::timeout(MINUTE, watcher.next())
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(&change.events[..], [Event::Deleted { key, .. }] if &**key == "a"));
        maintaining.abort();
    });
}
