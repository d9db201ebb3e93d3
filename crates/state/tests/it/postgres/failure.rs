//! What goes wrong with the machine, the files and the processes of a database.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use model::state::{Access, EngineStatus};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};

use super::support::{Engine, until};

on_each_version! {
    a_full_disk_is_named_and_room_mends_it,
    files_of_another_version_are_left_as_they_are,
    it_is_tuned_anew_for_other_memory,
    what_a_killed_server_left_does_not_hold_up_the_next,
}

/// As README.md promises.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// A small disk in the place of a folder.
struct Disk(PathBuf);

impl Disk {
    /// `None` where none can be mounted.
    fn mount(engine: &Engine) -> Option<Self> {
        let place = engine.path("data");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=120m", "none"])
            .arg(&place)
            .status();
        mounted.ok()?.success().then(|| {
            engine.give_folders();
            Self(place)
        })
    }

    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).expect("a file");
        while file.write_all(&[7; 4096]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn a_full_disk_is_named_and_room_mends_it(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    let Some(disk) = Disk::mount(&engine) else {
        println!("no small disk can be mounted here");
        return;
    };
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let make = "create table orders (note text); insert into orders values ('kept')";
    orders.batch_execute(make).await.expect("it writes");
    let filler = disk.fill();
    // The log alone: a table that finds no room refuses a row, and all goes on.
    let more = "do $$ begin for i in 1..100 loop
        perform pg_logical_emit_message(false, 'x', repeat('x', 1000000));
    end loop; end $$";
    orders.batch_execute(more).await.expect_err("no room");
    let health = until("it is named", async || {
        engine
            .get("/health")
            .map(|(_, body)| body)
            .filter(|body| body.contains("make room"))
    })
    .await;
    assert!(health.contains("the disk of"), "{health}");
    std::fs::remove_file(filler).expect("room");
    assert_eq!(engine.ended().await.code(), Some(1));
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let kept = "select count(*) from orders where note = 'kept'";
    let kept = orders.query_one(kept, &[]).await.expect("a row");
    assert_eq!(kept.get::<_, i64>(0), 1);
}

async fn files_of_another_version_are_left_as_they_are(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.start_and_serve().await;
    engine.signal(Signal::TERM);
    engine.ended().await;
    let path = engine.files().join("PG_VERSION");
    std::fs::write(&path, "13\n").expect("its version");
    let before = entries(&engine.files());
    engine.start();
    assert_eq!(engine.ended().await.code(), Some(1));
    let said = format!("is of PostgreSQL 13, which {version} can't open");
    assert!(engine.log().contains(&said), "{}", engine.log());
    assert_eq!(entries(&engine.files()), before);

    // That is said too where this version is not there.
    engine.file.engine =
        serde_json::from_value(serde_json::json!({"kind": "postgres", "version": 99}))
            .expect("an engine");
    engine.start();
    assert_eq!(engine.ended().await.code(), Some(1));
    let said = "declare `postgres: 13` again";
    assert!(
        engine
            .log()
            .lines()
            .last()
            .is_some_and(|line| line.contains("which 99 can't open") && line.contains(said)),
        "{}",
        engine.log()
    );
}

/// Names and times of what is in a folder.
fn entries(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    let known = entries.map(|entry| {
        (
            entry.path(),
            entry
                .metadata()
                .and_then(|known| known.modified())
                .expect("a time"),
        )
    });
    let mut all: Vec<_> = known.collect();
    all.sort();
    all
}

#[tokio::test]
async fn one_at_a_time_makes_the_files() {
    let engine = Engine::new(99, None);
    engine.tell();
    let volume = File::open(engine.path("data")).expect("a volume");
    let lock = FlockOperation::NonBlockingLockExclusive;
    flock(&volume, lock).expect("a lock");
    let said = || {
        let output = engine.try_init()?;
        Some(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let Some(refused) = said() else { return };
    assert!(refused.contains("made already"), "{refused}");
    drop(volume);
    let said = said().expect("root");
    assert!(said.contains("PostgreSQL 99 is not on"), "{said}");
}

async fn it_is_tuned_anew_for_other_memory(version: u32) {
    let mut engine = Engine::new(version, None);
    for (memory, expected) in [(120, 20), (600, 100), (60, 20)] {
        engine.file.memory = model::units::Bytes::mebibytes(memory);
        engine.start_and_serve().await;
        let (_, status) = engine.get("/status").expect("a status");
        let EngineStatus::Postgres {
            connections_max, ..
        } = serde_json::from_str(&status).expect("JSON")
        else {
            panic!("{status}");
        };
        assert_eq!(connections_max, expected);
        engine.signal(Signal::TERM);
        assert!(engine.ended().await.success(), "{}", engine.log());
    }
}

async fn what_a_killed_server_left_does_not_hold_up_the_next(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let pid = orders.query_one("select pg_backend_pid()", &[]).await;
    let pid: i32 = pid.expect("a row").get(0);
    // It has the server's memory, and hears nothing.
    let backend = rustix::process::Pid::from_raw(pid).expect("a pid");
    kill_process(backend, Signal::STOP).expect("a signal");
    kill_process(engine.server()[0], Signal::KILL).expect("a kill");
    engine.ended().await;
    assert!(engine.server().contains(&backend));
    let begin = Instant::now();
    engine.start_and_serve().await;
    assert!(begin.elapsed() < BACK_WITHIN, "{:?}", begin.elapsed());
    assert!(!engine.server().contains(&backend));
}
