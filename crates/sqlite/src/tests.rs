//! What the crate promises, each promise broken once by a disk or a file made for it.

use std::path::Path;
use std::sync::mpsc;

use rusqlite::Connection;

use crate::testing::Disk;
use crate::{Database, Error, Options, Pending, Steps};

const APPLICATION_ID: i32 = 0x7465_7374;
const MIGRATIONS: &[&str] = &["CREATE TABLE number (value INTEGER UNIQUE, filler BLOB)"];
const PATH: &str = "test.db";

#[derive(Debug, PartialEq)]
enum Refusal {
    Unlucky,
    Database(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Database(error)
    }
}

fn refusal(error: rusqlite::Error) -> Refusal {
    Refusal::Database(Error::from_sqlite(Path::new(PATH), &error))
}

fn on(disk: &Disk) -> Options {
    let mut options = Options::new(PATH, APPLICATION_ID, MIGRATIONS);
    options.testing.disk = Some(disk.clone());
    options
}

fn insert(database: &Database, value: i64, filler_bytes: usize) -> Pending<(), Refusal> {
    database.write(move |connection| {
        connection
            .execute(
                "INSERT INTO number VALUES (?1, zeroblob(?2))",
                (value, filler_bytes as i64),
            )
            .map_err(refusal)?;
        if value == 13 {
            Err(Refusal::Unlucky)
        } else {
            Ok(())
        }
    })
}

fn numbers(database: &Database) -> Vec<i64> {
    let select = |connection: &Connection| -> rusqlite::Result<Vec<i64>> {
        connection
            .prepare("SELECT value FROM number ORDER BY value")?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    database
        .read(move |connection| select(connection).map_err(refusal))
        .wait()
        .unwrap()
}

fn check_integrity(database: &Database) {
    let check = |connection: &Connection| {
        connection
            .query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
            .map_err(refusal)
    };
    assert_eq!(database.read(check).wait(), Ok("ok".to_owned()));
}

/// Keeps the writer busy until the sender is dropped, so that requests gather.
fn hold_writer(database: &Database) -> (mpsc::SyncSender<()>, Pending<(), Refusal>) {
    let (release, held) = mpsc::sync_channel::<()>(1);
    let (started, running) = mpsc::sync_channel(1);
    let pending = database.write(move |_| {
        let _ = started.send(());
        let _ = held.recv();
        Ok(())
    });
    running.recv().unwrap();
    (release, pending)
}

#[test]
fn requests_that_gather_share_a_sync_and_keep_their_own_verdicts() {
    let disk = Disk::new();
    let database = Database::open(on(&disk)).unwrap();
    insert(&database, 1, 0).wait().unwrap();
    let before = disk.syncs();
    let (release, holder) = hold_writer(&database);
    let pending: Vec<_> = (10..20).map(|value| insert(&database, value, 0)).collect();
    let again = insert(&database, 12, 0);
    drop(release);
    holder.wait().unwrap();
    for (value, pending) in (10..20).zip(pending) {
        assert_eq!(
            pending.wait(),
            if value == 13 {
                Err(Refusal::Unlucky)
            } else {
                Ok(())
            }
        );
    }
    assert!(matches!(
        again.wait(),
        Err(Refusal::Database(Error::Request { .. }))
    ));
    assert_eq!(disk.syncs() - before, 1);
    assert_eq!(numbers(&database), [1, 10, 11, 12, 14, 15, 16, 17, 18, 19]);
}

#[test]
fn verdicts_come_in_the_order_of_requests_after_the_sync() {
    let disk = Disk::new();
    let database = Database::open(on(&disk)).unwrap();
    let (release, holder) = hold_writer(&database);
    let before = disk.syncs();
    let (sender, receiver) = mpsc::sync_channel(16);
    for value in 0..5 {
        let (sender, disk) = (sender.clone(), disk.clone());
        let work = move |connection: &Connection| {
            connection
                .execute("INSERT INTO number VALUES (?1, NULL)", [value])
                .map_err(refusal)
        };
        let after = move |verdict: Result<usize, Refusal>| {
            sender.send((value, verdict.is_ok(), disk.syncs())).unwrap();
            verdict
        };
        drop(database.write_then(Steps::Many, work, after));
    }
    drop((release, sender));
    holder.wait().unwrap();
    let told: Vec<_> = receiver.iter().collect();
    assert_eq!(
        told,
        (0..5)
            .map(|value| (value, true, before + 1))
            .collect::<Vec<_>>()
    );
}

/// Writes a number in one step, and then breaks the promise if it is told to.
fn insert_in_one_step(
    database: &Database,
    value: i64,
    fails_after: bool,
) -> impl Future<Output = Result<(), Refusal>> {
    let work = move |connection: &Connection| {
        connection
            .execute("INSERT INTO number VALUES (?1, NULL)", [value])
            .map_err(refusal)?;
        if fails_after {
            Err(Refusal::Unlucky)
        } else {
            Ok(())
        }
    };
    database.write_then(Steps::One, work, |verdict| verdict)
}

#[test]
fn one_step_that_fails_undoes_no_other() {
    let database = Database::open(on(&Disk::new())).unwrap();
    let (release, holder) = hold_writer(&database);
    let verdicts = [1, 2, 2, 3].map(|value| insert_in_one_step(&database, value, false));
    drop(release);
    holder.wait().unwrap();
    let verdicts = verdicts.map(|verdict| block_on(verdict).is_ok());
    assert_eq!(verdicts, [true, true, false, true]);
    assert_eq!(numbers(&database), [1, 2, 3]);
}

#[test]
fn what_fails_after_its_one_step_is_never_kept() {
    let database = Database::open(on(&Disk::new())).unwrap();
    let (release, holder) = hold_writer(&database);
    let before = insert_in_one_step(&database, 1, false);
    let broken = insert_in_one_step(&database, 2, true);
    let after = insert_in_one_step(&database, 3, false);
    drop(release);
    assert!(matches!(
        holder.wait(),
        Err(Refusal::Database(Error::Request { .. }))
    ));
    for given_up in [before, broken] {
        let verdict = block_on(given_up);
        assert!(
            matches!(verdict, Err(Refusal::Database(Error::Request { .. }))),
            "{verdict:?}"
        );
    }
    assert_eq!(block_on(after), Ok(()));
    assert_eq!(numbers(&database), [3]);
}

#[test]
fn verdicts_reach_the_tasks_of_every_runtime_and_plain_threads() {
    let database = Database::open(on(&Disk::new())).unwrap();
    let (release, holder) = hold_writer(&database);
    let here = insert_in_one_step(&database, 1, false);
    let threads: Vec<_> = [10, 20]
        .map(|first| {
            let database = database.clone();
            let (sender, asked) = mpsc::sync_channel(1);
            let thread = std::thread::spawn(move || {
                block_on(async {
                    let pending =
                        [0, 1, 2].map(|add| insert_in_one_step(&database, first + add, false));
                    sender.send(()).unwrap();
                    for verdict in pending {
                        verdict.await.unwrap();
                    }
                });
            });
            asked.recv().unwrap();
            thread
        })
        .into();
    drop(release);
    holder.wait().unwrap();
    block_on(here).unwrap();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(numbers(&database), [1, 10, 11, 12, 20, 21, 22]);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn a_full_disk_refuses_and_mends() {
    let disk = Disk::new();
    let database = Database::open(on(&disk)).unwrap();
    insert(&database, 1, 0).wait().unwrap();
    disk.set_capacity(Some(disk.used_bytes() + 20_000));
    let full = |verdict| {
        assert!(
            matches!(verdict, Err(Refusal::Database(Error::DiskFull { .. }))),
            "{verdict:?}"
        )
    };
    full(insert(&database, 2, 100_000).wait());
    // Larger than the cache, so that SQLite meets the full disk before the commit.
    full(insert(&database, 3, 32 << 20).wait());
    assert_eq!(numbers(&database), [1]);
    disk.set_capacity(None);
    insert(&database, 4, 100_000).wait().unwrap();
    assert_eq!(numbers(&database), [1, 4]);
    check_integrity(&database);
}

#[test]
fn a_failed_sync_leaves_the_outcome_unknown_and_the_database_usable() {
    let disk = Disk::new();
    let database = Database::open(on(&disk)).unwrap();
    insert(&database, 1, 0).wait().unwrap();
    disk.set_syncs_fail(true);
    let verdict = insert(&database, 2, 0).wait();
    assert!(
        matches!(
            verdict,
            Err(Refusal::Database(Error::OutcomeUnknown { .. }))
        ),
        "{verdict:?}"
    );
    disk.set_syncs_fail(false);
    insert(&database, 3, 0).wait().unwrap();
    assert_eq!(numbers(&database), [1, 3]);
    disk.lose_power(|| false);
    drop(database);
    let database = Database::open(on(&disk)).unwrap();
    assert_eq!(numbers(&database), [1, 3]);
}

#[test]
fn a_power_loss_takes_nothing_that_was_told() {
    let disk = Disk::new();
    for round in 100..120 {
        let database = Database::open(on(&disk)).unwrap();
        assert_eq!(numbers(&database), (100..round).collect::<Vec<_>>());
        check_integrity(&database);
        insert(&database, round, 10_000).wait().unwrap();
        disk.lose_power(|| false);
    }
}

#[test]
fn a_weaker_sync_loses_what_was_told() {
    for weaker in ["OFF", "NORMAL"] {
        let disk = Disk::new();
        let mut options = on(&disk);
        options.testing.synchronous = Some(weaker);
        let database = Database::open(options).unwrap();
        insert(&database, 1, 0).wait().unwrap();
        disk.lose_power(|| false);
        drop(database);
        let database = Database::open(on(&disk)).unwrap();
        assert_eq!(numbers(&database), [], "{weaker}");
    }
}

#[test]
fn the_log_stays_short() {
    const MEBIBYTE: u64 = 1 << 20;
    let disk = Disk::new();
    let database = Database::open(on(&disk)).unwrap();
    for value in 100..160 {
        insert(&database, value, MEBIBYTE as usize).wait().unwrap();
    }
    let log = disk.file_bytes(&format!("{PATH}-wal"));
    assert!(log < 10 * MEBIBYTE, "{log}");
    assert_eq!(numbers(&database).len(), 60);
}

#[test]
fn a_panic_is_the_verdict_of_one_request() {
    let database = Database::open(on(&Disk::new())).unwrap();
    let verdict: Result<(), Error> = database.write(|_| panic!("planted")).wait();
    assert!(matches!(verdict, Err(Error::Request { .. })), "{verdict:?}");
    insert(&database, 1, 0).wait().unwrap();
}

#[test]
fn the_queue_is_bounded() {
    let mut options = on(&Disk::new());
    options.queue = 2;
    let database = Database::open(options).unwrap();
    let (release, holder) = hold_writer(&database);
    let pending: Vec<_> = (0..3).map(|value| insert(&database, value, 0)).collect();
    drop(release);
    holder.wait().unwrap();
    let verdicts: Vec<_> = pending.into_iter().map(Pending::wait).collect();
    let overloaded = Error::Overloaded { path: PATH.into() };
    assert_eq!(
        verdicts,
        [Ok(()), Ok(()), Err(Refusal::Database(overloaded))]
    );
}

#[test]
fn closing_finishes_what_is_queued() {
    let disk = Disk::new();
    let database = Database::open(on(&disk)).unwrap();
    let (release, holder) = hold_writer(&database);
    let pending: Vec<_> = (0..10).map(|value| insert(&database, value, 0)).collect();
    drop(release);
    drop(database);
    holder.wait().unwrap();
    pending
        .into_iter()
        .for_each(|pending| pending.wait().unwrap());
    assert_eq!(numbers(&Database::open(on(&disk)).unwrap()).len(), 10);
}

#[test]
fn files_that_cannot_be_used_are_refused_by_cause() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("garbage.db"), "no database ".repeat(1000)).unwrap();
    Connection::open(path("foreign.db"))
        .unwrap()
        .execute_batch("CREATE TABLE theirs (a)")
        .unwrap();
    let newer: &[&str] = &["CREATE TABLE a (a)", "CREATE TABLE b (b)"];
    drop(Database::open(Options::new(path("newer.db"), APPLICATION_ID, newer)).unwrap());
    let table = [
        ("missing/directory.db", "cannot write the database"),
        ("garbage.db/file.db", "cannot write the database"),
        ("garbage.db", "is damaged or is no database"),
        ("foreign.db", "belongs to another application"),
        ("newer.db", "has format 2, and this version knows only 1"),
    ];
    for (name, expected) in table {
        let error = Database::open(Options::new(path(name), APPLICATION_ID, MIGRATIONS))
            .err()
            .unwrap();
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn a_file_of_another_application_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("foreign.db");
    let theirs = Connection::open(&path).unwrap();
    theirs.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(theirs);
    let before = std::fs::read(&path).unwrap();
    let refused = Database::open(Options::new(&path, APPLICATION_ID, MIGRATIONS));
    assert!(matches!(refused.err(), Some(Error::Foreign { .. })));
    assert_eq!(
        std::fs::read(&path).unwrap(),
        before,
        "not even its journal's mode is changed"
    );
}

#[test]
fn a_damaged_file_is_named_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(PATH);
    let options = Options::new(&path, APPLICATION_ID, MIGRATIONS);
    let database = Database::open(options.clone()).unwrap();
    (0..2000)
        .map(|value| insert(&database, value + 100, 500))
        .for_each(|pending| pending.wait().unwrap());
    drop(database);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let database = Database::open(options).unwrap();
    let verdict = insert(&database, 1, 0).wait();
    assert!(
        matches!(verdict, Err(Refusal::Database(Error::Corrupt { .. }))),
        "{verdict:?}"
    );
}

#[test]
fn a_second_opener_is_told_that_the_file_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new(directory.path().join(PATH), APPLICATION_ID, MIGRATIONS);
    let database = Database::open(options.clone()).unwrap();
    assert!(matches!(
        Database::open(options.clone()),
        Err(Error::InUse { .. })
    ));
    drop(database);
    assert!(Database::open(options).is_ok());
}
