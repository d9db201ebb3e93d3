//! The contract, case by case, on every engine.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use store::{
    Change, Condition, Error, Event, List, Record, Revision, Store, Transaction, Watcher, list_all,
};

use crate::engines::{self, Bench, RETAINED_BY_DEFAULT, block_on};

/// Each case becomes a test per engine.
macro_rules! conformance {
    ($($case:ident($retained:expr);)*) => {
        mod on_memory {
            use super::*;
            $(#[test] fn $case() { block_on(super::$case(engines::memory($retained))) })*
        }
        mod on_sqlite {
            use super::*;
            $(#[test] fn $case() { block_on(super::$case(engines::sqlite($retained))) })*
        }
    };
}

conformance! {
    a_put_is_read_back(RETAINED_BY_DEFAULT);
    versions_and_revisions_count_up(RETAINED_BY_DEFAULT);
    a_key_created_anew_starts_anew(RETAINED_BY_DEFAULT);
    conditions_hold_or_name_what_failed(RETAINED_BY_DEFAULT);
    a_refused_transaction_changes_nothing(RETAINED_BY_DEFAULT);
    what_changes_nothing_makes_no_revision(RETAINED_BY_DEFAULT);
    lists_are_in_order_and_under_the_prefix(RETAINED_BY_DEFAULT);
    pages_show_one_revision(RETAINED_BY_DEFAULT);
    the_past_can_be_listed(RETAINED_BY_DEFAULT);
    the_future_is_refused(RETAINED_BY_DEFAULT);
    compaction_forgets_the_past_and_keeps_the_present(RETAINED_BY_DEFAULT);
    compaction_by_itself_keeps_what_is_retained(100);
    a_watch_sees_all_changes_in_order(RETAINED_BY_DEFAULT);
    a_watch_resumes_where_it_was(RETAINED_BY_DEFAULT);
    a_watch_replays_what_is_long_past(RETAINED_BY_DEFAULT);
    a_watch_waits_and_wakes(RETAINED_BY_DEFAULT);
    a_transaction_is_one_change(RETAINED_BY_DEFAULT);
    a_watcher_that_fell_behind_is_told(100);
    leases_end_and_take_their_keys(RETAINED_BY_DEFAULT);
    signs_of_life_prolong_a_lease(RETAINED_BY_DEFAULT);
    revoking_deletes_at_once(RETAINED_BY_DEFAULT);
    a_key_put_without_its_lease_outlives_it(RETAINED_BY_DEFAULT);
    limits_are_errors(RETAINED_BY_DEFAULT);
    values_are_bytes_and_keys_are_text(RETAINED_BY_DEFAULT);
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    store
        .transact(Transaction::new().put(key, value.to_owned()))
        .await
        .unwrap()
}

async fn delete(store: &dyn Store, key: &str) -> Revision {
    store
        .transact(Transaction::new().delete(key))
        .await
        .unwrap()
}

async fn record(store: &dyn Store, key: &str) -> Record {
    store
        .get(key)
        .await
        .unwrap()
        .unwrap_or_else(|| panic!("{key} exists"))
}

/// `key=value` of each record.
fn shown(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| format!("{}={}", record.key, String::from_utf8_lossy(&record.value)))
        .collect()
}

/// `+key=value` and `-key` of each event.
fn events(change: &Change) -> Vec<String> {
    let show = |event: &Event| match event {
        Event::Put(record) => format!("+{}={}", record.key, String::from_utf8_lossy(&record.value)),
        Event::Deleted { key, .. } => format!("-{key}"),
    };
    change.events.iter().map(show).collect()
}

/// The next change, which must come within a deadline.
async fn next(watcher: &mut Watcher) -> Change {
    tokio::time::timeout(Duration::from_secs(10), watcher.next())
        .await
        .expect("a change comes")
        .unwrap()
}

async fn is_waiting(watcher: &mut Watcher) -> bool {
    let mut next = pin!(watcher.next());
    std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context).is_pending())).await
}

async fn a_put_is_read_back(Bench { store, .. }: Bench) {
    assert_eq!(store.get("res/shop/checkout").await, Ok(None));
    assert_eq!(store.revision().await, Ok(Revision::ZERO));
    let revision = put(&*store, "res/shop/checkout", "spec").await;
    let record = record(&*store, "res/shop/checkout").await;
    assert_eq!(
        (&*record.key, &*record.value),
        ("res/shop/checkout", &b"spec"[..])
    );
    assert_eq!(
        (record.created, record.modified, record.version),
        (revision, revision, 1)
    );
    assert_eq!(store.revision().await, Ok(revision));
}

async fn versions_and_revisions_count_up(Bench { store, .. }: Bench) {
    let first = put(&*store, "a", "1").await;
    let second = put(&*store, "b", "1").await;
    let third = put(&*store, "a", "2").await;
    assert!(first < second && second < third);
    let record = record(&*store, "a").await;
    assert_eq!(
        (record.created, record.modified, record.version),
        (first, third, 2)
    );
}

async fn a_key_created_anew_starts_anew(Bench { store, .. }: Bench) {
    put(&*store, "a", "1").await;
    put(&*store, "a", "2").await;
    delete(&*store, "a").await;
    assert_eq!(store.get("a").await, Ok(None));
    let again = put(&*store, "a", "3").await;
    let record = record(&*store, "a").await;
    assert_eq!((record.created, record.version), (again, 1));
}

async fn conditions_hold_or_name_what_failed(Bench { store, .. }: Bench) {
    let old = put(&*store, "a", "0").await;
    let new = put(&*store, "a", "1").await;
    let key = || "a".to_owned();
    let none = || "none".to_owned();
    let table = [
        (Condition::Absent { key: none() }, true),
        (Condition::Absent { key: key() }, false),
        (Condition::Exists { key: key() }, true),
        (Condition::Exists { key: none() }, false),
        (
            Condition::Version {
                key: key(),
                version: 2,
            },
            true,
        ),
        (
            Condition::Version {
                key: key(),
                version: 1,
            },
            false,
        ),
        (
            Condition::Version {
                key: none(),
                version: 0,
            },
            true,
        ),
        (
            Condition::Version {
                key: key(),
                version: 0,
            },
            false,
        ),
        (
            Condition::Modified {
                key: key(),
                revision: new,
            },
            true,
        ),
        (
            Condition::Modified {
                key: key(),
                revision: old,
            },
            false,
        ),
        (
            Condition::Modified {
                key: none(),
                revision: Revision::ZERO,
            },
            false,
        ),
        (
            Condition::Value {
                key: key(),
                value: "1".into(),
            },
            true,
        ),
        (
            Condition::Value {
                key: key(),
                value: "0".into(),
            },
            false,
        ),
        (
            Condition::Value {
                key: none(),
                value: "".into(),
            },
            false,
        ),
    ];
    for (condition, holds) in table {
        let transaction = Transaction::new()
            .if_exists("a")
            .condition(condition.clone());
        match store.transact(transaction).await {
            Ok(_) => assert!(holds, "{condition}"),
            Err(Error::Conflict(conflict)) => {
                assert!(!holds, "{condition}");
                assert_eq!((conflict.index, conflict.condition), (1, condition));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn a_refused_transaction_changes_nothing(Bench { store, .. }: Bench) {
    let revision = put(&*store, "a", "1").await;
    let refused = Transaction::new()
        .put("b", "1")
        .put("a", "2")
        .delete("a")
        .if_absent("a");
    assert!(matches!(
        store.transact(refused).await,
        Err(Error::DuplicateKey { .. })
    ));
    let refused = Transaction::new()
        .put("b", "1")
        .put("a", "2")
        .if_absent("a");
    assert!(matches!(
        store.transact(refused).await,
        Err(Error::Conflict(_))
    ));
    assert_eq!(store.revision().await, Ok(revision));
    assert_eq!(store.get("b").await, Ok(None));
    assert_eq!(record(&*store, "a").await.version, 1);
}

async fn what_changes_nothing_makes_no_revision(Bench { store, .. }: Bench) {
    let revision = put(&*store, "a", "1").await;
    assert_eq!(delete(&*store, "none").await, revision);
    assert_eq!(store.transact(Transaction::new()).await, Ok(revision));
    assert_eq!(
        store.transact(Transaction::new().if_exists("a")).await,
        Ok(revision)
    );
    assert_eq!(store.revision().await, Ok(revision));
}

async fn lists_are_in_order_and_under_the_prefix(Bench { store, .. }: Bench) {
    for key in [
        "res/b",
        "res/a",
        "ref/x",
        "res0",
        "res/ä",
        "res/\u{10ffff}",
        "res",
    ] {
        put(&*store, key, "1").await;
    }
    delete(&*store, "res/b").await;
    let (records, revision) = list_all(&*store, "res/").await.unwrap();
    assert_eq!(shown(&records), ["res/a=1", "res/ä=1", "res/\u{10ffff}=1"]);
    assert_eq!(store.revision().await, Ok(revision));
    assert_eq!(list_all(&*store, "").await.unwrap().0.len(), 6);
    assert_eq!(list_all(&*store, "none").await.unwrap().0, []);
}

async fn pages_show_one_revision(Bench { store, .. }: Bench) {
    for index in 0..7 {
        put(&*store, &format!("k{index}"), "old").await;
    }
    let mut page = store.list(List::prefix("k").limit(3)).await.unwrap();
    let revision = page.revision;
    put(&*store, "k4", "new").await;
    put(&*store, "k45", "new").await;
    delete(&*store, "k6").await;
    let mut seen = shown(&page.records);
    let mut pages = 1;
    while let Some(next) = page.next() {
        page = store.list(next).await.unwrap();
        assert_eq!(page.revision, revision);
        seen.extend(shown(&page.records));
        pages += 1;
    }
    assert_eq!(
        seen,
        (0..7)
            .map(|index| format!("k{index}=old"))
            .collect::<Vec<_>>()
    );
    assert_eq!(pages, 3);
}

async fn the_past_can_be_listed(Bench { store, .. }: Bench) {
    let first = put(&*store, "a", "1").await;
    let second = put(&*store, "b", "1").await;
    let third = delete(&*store, "a").await;
    let fourth = put(&*store, "a", "2").await;
    let table: [(Revision, &[&str]); 5] = [
        (Revision::ZERO, &[]),
        (first, &["a=1"]),
        (second, &["a=1", "b=1"]),
        (third, &["b=1"]),
        (fourth, &["a=2", "b=1"]),
    ];
    for (revision, expected) in table {
        let page = store.list(List::prefix("").at(revision)).await.unwrap();
        assert_eq!(
            (shown(&page.records), page.revision),
            (expected.iter().map(|s| s.to_string()).collect(), revision)
        );
    }
}

async fn the_future_is_refused(Bench { store, .. }: Bench) {
    let current = put(&*store, "a", "1").await;
    let asked = Revision::from_number(current.number() + 1);
    let expected = Error::NotYet { asked, current };
    assert_eq!(
        store.list(List::prefix("").at(asked)).await.unwrap_err(),
        expected
    );
    assert_eq!(store.watch("", asked).await.err(), Some(expected.clone()));
    assert_eq!(store.compact(asked).await, Err(expected));
}

async fn compaction_forgets_the_past_and_keeps_the_present(Bench { store, .. }: Bench) {
    let past = put(&*store, "a", "1").await;
    put(&*store, "kept", "1").await;
    put(&*store, "gone", "1").await;
    delete(&*store, "gone").await;
    let middle = put(&*store, "a", "2").await;
    put(&*store, "a", "3").await;
    let newest = delete(&*store, "a").await;
    store.compact(middle).await.unwrap();

    let compacted = Error::Compacted {
        asked: past,
        compacted: middle,
    };
    assert_eq!(
        store.list(List::prefix("").at(past)).await.unwrap_err(),
        compacted
    );
    assert_eq!(store.watch("", past).await.err(), Some(compacted));
    let page = store.list(List::prefix("").at(middle)).await.unwrap();
    assert_eq!(shown(&page.records), ["a=2", "kept=1"]);
    let mut watcher = store.watch("", middle).await.unwrap();
    assert_eq!(events(&next(&mut watcher).await), ["+a=3"]);

    // Compacting again, up to now, and into the past.
    store.compact(newest).await.unwrap();
    store.compact(past).await.unwrap();
    assert_eq!(store.revision().await, Ok(newest));
    assert_eq!(shown(&list_all(&*store, "").await.unwrap().0), ["kept=1"]);
    assert!(put(&*store, "a", "4").await > newest);
    assert_eq!(record(&*store, "a").await.version, 1);
}

async fn compaction_by_itself_keeps_what_is_retained(Bench { store, .. }: Bench) {
    put(&*store, "kept", "1").await;
    let mut revisions = Vec::new();
    for index in 0..600 {
        revisions.push(put(&*store, &format!("k{}", index % 3), &index.to_string()).await);
    }
    let oldest = store.list(List::prefix("").at(revisions[0])).await;
    assert!(matches!(oldest, Err(Error::Compacted { .. })), "{oldest:?}");
    let page = store
        .list(List::prefix("k").at(revisions[499]))
        .await
        .unwrap();
    assert_eq!(
        shown(&page.records),
        ["k0=498", "k1=499", "k2=497", "kept=1"]
    );
    assert_eq!(record(&*store, "k2").await.version, 200);
}

async fn a_watch_sees_all_changes_in_order(Bench { store, .. }: Bench) {
    let start = put(&*store, "res/a", "before").await;
    let mut watcher = store.watch("res/", start).await.unwrap();
    put(&*store, "res/a", "1").await;
    put(&*store, "other", "1").await;
    put(&*store, "res/b", "1").await;
    let last = delete(&*store, "res/a").await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(events(&next(&mut watcher).await));
    }
    assert_eq!(seen, ["+res/a=1", "+res/b=1", "-res/a"]);
    assert!(is_waiting(&mut watcher).await);
    assert_eq!(watcher.revision(), last);
}

async fn a_watch_resumes_where_it_was(Bench { store, .. }: Bench) {
    for index in 0..5 {
        put(&*store, "a", &index.to_string()).await;
    }
    let mut watcher = store.watch("a", Revision::ZERO).await.unwrap();
    assert_eq!(events(&next(&mut watcher).await), ["+a=0"]);
    assert_eq!(events(&next(&mut watcher).await), ["+a=1"]);
    let mut resumed = store.watch("a", watcher.revision()).await.unwrap();
    assert_eq!(events(&next(&mut resumed).await), ["+a=2"]);
}

async fn a_watch_replays_what_is_long_past(Bench { store, .. }: Bench) {
    // More than is kept at hand for watchers.
    const CHANGES: usize = 3000;
    for chunk in 0..CHANGES / 100 {
        let puts = (0..100).map(|index| {
            let key = if index % 2 == 0 { "even" } else { "odd" };
            store.transact(Transaction::new().put(key, (chunk * 100 + index).to_string()))
        });
        for put in puts {
            put.await.unwrap();
        }
    }
    let mut watcher = store.watch("odd", Revision::ZERO).await.unwrap();
    for index in (1..CHANGES).step_by(2) {
        assert_eq!(events(&next(&mut watcher).await), [format!("+odd={index}")]);
    }
    assert!(is_waiting(&mut watcher).await);
}

async fn a_watch_waits_and_wakes(Bench { store, .. }: Bench) {
    let mut watcher = store.watch("", Revision::ZERO).await.unwrap();
    assert!(is_waiting(&mut watcher).await);
    let waiting = tokio::spawn(async move { next(&mut watcher).await });
    tokio::task::yield_now().await;
    put(&*store, "a", "1").await;
    assert_eq!(events(&waiting.await.unwrap()), ["+a=1"]);
}

async fn a_transaction_is_one_change(Bench { store, .. }: Bench) {
    put(&*store, "a", "1").await;
    let transaction = Transaction::new()
        .put("b", "1")
        .delete("a")
        .put("c", "1")
        .delete("none");
    let revision = store.transact(transaction).await.unwrap();
    let mut watcher = store
        .watch("", Revision::from_number(revision.number() - 1))
        .await
        .unwrap();
    let change = next(&mut watcher).await;
    assert_eq!(
        (events(&change), change.revision),
        (vec!["+b=1".into(), "-a".into(), "+c=1".into()], revision)
    );
    assert_eq!(
        record(&*store, "b").await.modified,
        record(&*store, "c").await.modified
    );
}

async fn a_watcher_that_fell_behind_is_told(Bench { store, .. }: Bench) {
    let mut watcher = store.watch("a", Revision::ZERO).await.unwrap();
    for index in 0..2000 {
        put(&*store, "a", &index.to_string()).await;
    }
    let error = watcher.next().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Compacted {
                asked: Revision::ZERO,
                ..
            }
        ),
        "{error}"
    );
    // Told again, not skipped.
    assert!(matches!(watcher.next().await, Err(Error::Compacted { .. })));
}

const MINUTE: Duration = Duration::from_secs(60);

async fn leases_end_and_take_their_keys(Bench { store, clock, .. }: Bench) {
    let lease = store.grant(MINUTE).await.unwrap();
    let other = store.grant(2 * MINUTE).await.unwrap();
    let keys = Transaction::new()
        .put_leased("a", "1", lease)
        .put_leased("b", "1", lease)
        .put_leased("c", "1", other);
    let start = store.transact(keys).await.unwrap();
    assert_eq!(record(&*store, "a").await.lease, Some(lease));
    clock.advance(MINUTE - Duration::from_millis(1));
    assert_eq!(store.expire().await, Ok(0));
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        store.keep_alive(lease).await,
        Err(Error::LeaseUnknown(lease))
    );
    assert_eq!(store.expire().await, Ok(1));
    let mut watcher = store.watch("", start).await.unwrap();
    assert_eq!(events(&next(&mut watcher).await), ["-a", "-b"]);
    assert_eq!(shown(&list_all(&*store, "").await.unwrap().0), ["c=1"]);
    let late = store
        .transact(Transaction::new().put_leased("a", "2", lease))
        .await;
    assert_eq!(late, Err(Error::LeaseUnknown(lease)));
    assert_eq!(store.expire().await, Ok(0));
}

async fn signs_of_life_prolong_a_lease(Bench { store, clock, .. }: Bench) {
    let lease = store.grant(MINUTE).await.unwrap();
    store
        .transact(Transaction::new().put_leased("a", "1", lease))
        .await
        .unwrap();
    for _ in 0..5 {
        clock.advance(MINUTE / 2);
        store.keep_alive(lease).await.unwrap();
        assert_eq!(store.expire().await, Ok(0));
    }
    assert_eq!(record(&*store, "a").await.version, 1);
    clock.advance(MINUTE);
    assert_eq!(store.expire().await, Ok(1));
    assert_eq!(store.get("a").await, Ok(None));
}

async fn revoking_deletes_at_once(Bench { store, .. }: Bench) {
    let lease = store.grant(MINUTE).await.unwrap();
    let put = store
        .transact(Transaction::new().put_leased("a", "1", lease))
        .await
        .unwrap();
    let revoked = store.revoke(lease).await.unwrap();
    assert!(revoked > put);
    assert_eq!(store.get("a").await, Ok(None));
    assert_eq!(store.revoke(lease).await, Err(Error::LeaseUnknown(lease)));
    assert_eq!(
        store.keep_alive(lease).await,
        Err(Error::LeaseUnknown(lease))
    );
    assert_ne!(store.grant(MINUTE).await, Ok(lease));
}

async fn a_key_put_without_its_lease_outlives_it(Bench { store, clock, .. }: Bench) {
    let lease = store.grant(MINUTE).await.unwrap();
    store
        .transact(Transaction::new().put_leased("a", "1", lease))
        .await
        .unwrap();
    put(&*store, "a", "2").await;
    clock.advance(MINUTE);
    assert_eq!(store.expire().await, Ok(1));
    let record = record(&*store, "a").await;
    assert_eq!((record.version, record.lease), (2, None));
}

async fn limits_are_errors(Bench { store, .. }: Bench) {
    let operations = |count| {
        (0..count).fold(Transaction::new(), |all, index| {
            all.put(format!("k{index:03}"), "1")
        })
    };
    assert_eq!(
        store.transact(operations(129)).await,
        Err(Error::TooManyOperations { count: 129 })
    );
    store.transact(operations(128)).await.unwrap();
    assert_eq!(list_all(&*store, "k").await.unwrap().0.len(), 128);
    let large = Transaction::new().put("a", vec![0; (1 << 20) + 1]);
    assert!(matches!(
        store.transact(large).await,
        Err(Error::ValueTooLarge { .. })
    ));
    store
        .transact(Transaction::new().put("a", vec![0; 1 << 20]))
        .await
        .unwrap();
    assert!(matches!(store.get("").await, Err(Error::InvalidKey { .. })));
    assert!(matches!(
        store.get(&"k".repeat(513)).await,
        Err(Error::InvalidKey { .. })
    ));
}

async fn values_are_bytes_and_keys_are_text(Bench { store, .. }: Bench) {
    let bytes: Vec<u8> = (0..=255).collect();
    let transaction = Transaction::new()
        .put("schlüssel/值", bytes.clone())
        .put("empty", "");
    store.transact(transaction).await.unwrap();
    assert_eq!(&*record(&*store, "schlüssel/值").await.value, &bytes[..]);
    assert_eq!(&*record(&*store, "empty").await.value, b"");
}
