//! A real PostgreSQL, as a user runs it: each version that the machine has.

/// Makes tests of functions that take a version.
macro_rules! on_each_version {
    ($($test:ident,)*) => {
        mod on_each_version {
            $(
                #[tokio::test]
                async fn $test() {
                    for version in crate::postgres::support::machine().into_keys() {
                        println!("PostgreSQL {version}");
                        super::$test(version).await;
                    }
                }
            )*
        }
    };
}

mod extensions;
mod failure;
mod load;
mod outbox;
mod support;

use std::path::Path;

use model::state::{Access, EngineStatus, Table};
use rustix::process::{Signal, kill_process};

use self::support::{Engine, is_root, machine, until};

on_each_version! {
    services_come_in_as_what_they_are,
    what_is_written_is_there_after_a_stop,
    a_transaction_that_is_open_may_end_when_it_stops,
    what_was_committed_is_there_after_everything_is_killed,
    a_server_is_not_without_its_engine_nor_the_engine_without_it,
    a_user_with_a_name_makes_the_files_itself,
    a_service_takes_no_connections_of_others_or_of_people,
    times_that_a_team_sets_are_not_the_engines,
}

async fn services_come_in_as_what_they_are(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("the-orders", Access::Write);
    engine.role("report", Access::Read);
    engine.start_and_serve().await;

    let orders = engine.connect("the-orders").await.expect("a writer");
    let make = "create table orders (id int primary key); insert into orders values (1), (2)";
    orders.batch_execute(make).await.expect("it writes");
    let owner = "select tableowner::text from pg_tables where tablename = 'orders'";
    let owner: String = orders.query_one(owner, &[]).await.expect("a row").get(0);
    assert_eq!(owner, "orders_db");

    let report = engine.connect("report").await.expect("a reader");
    let count = "select count(*) from orders";
    let counted: i64 = report.query_one(count, &[]).await.expect("it reads").get(0);
    assert_eq!(counted, 2);
    for attempt in [
        "insert into orders values (3)",
        "begin read write; insert into orders values (3)",
        "begin read write; create table mine (id int)",
    ] {
        let refused = report.batch_execute(attempt).await.expect_err(attempt);
        let message = refused.as_db_error().expect("refused").message().to_owned();
        assert!(
            message.contains("permission denied") || message.contains("read-only"),
            "{message}"
        );
        report.batch_execute("rollback").await.expect("a rollback");
    }

    // Neither another's password, nor another database, nor the engine's own roles from outside.
    assert!(
        engine
            .connect_with("report", "x", "orders_db")
            .await
            .is_err()
    );
    let password = model::state::role_password(
        engine.file.secret.as_deref().expect("a secret"),
        &support::name("the-orders"),
    );
    assert!(
        engine
            .connect_with("the-orders", &password, "postgres")
            .await
            .is_err()
    );
    assert!(engine.connect("mainland").await.is_err());
    assert!(engine.connect("mainland-owner").await.is_err());
    assert!(engine.connect("cart").await.is_err());

    // Live: one comes, one may do less, one goes; who stays is not disturbed.
    engine.role("cart", Access::Write);
    engine.tell();
    until("a new role", async || engine.connect("cart").await.ok()).await;
    engine.role("cart", Access::Read);
    engine.file.settings.roles.remove(&support::name("report"));
    engine.tell();
    until("it is cut off", async || report.is_closed().then_some(())).await;
    until("it may read", async || {
        let cart = engine.connect("cart").await.ok()?;
        cart.query_one(count, &[]).await.ok()?;
        cart.batch_execute("insert into orders values (4)")
            .await
            .err()
    })
    .await;
    assert!(engine.connect("report").await.is_err());
    orders
        .query_one(count, &[])
        .await
        .expect("its session goes on");
    engine.role("report", Access::Read);
    engine.tell();
    until("it is back", async || engine.connect("report").await.ok()).await;
}

async fn what_is_written_is_there_after_a_stop(version: u32) {
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    let unfinished = engine.leave_unfinished();
    engine.start_and_serve().await;
    assert!(!unfinished.exists());

    let orders = engine.connect("orders").await.expect("a writer");
    let make = "create table orders (id int primary key); insert into orders values (7)";
    orders.batch_execute(make).await.expect("it writes");
    let (_, tables) = engine.get("/tables").expect("tables");
    let tables: Vec<Table> = serde_json::from_str(&tables).expect("JSON");
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["orders"]);
    let (_, status) = engine.get("/status").expect("a status");
    let EngineStatus::Postgres {
        version: told,
        connections,
        ..
    } = serde_json::from_str(&status).expect("JSON")
    else {
        panic!("{status}");
    };
    assert!(told.starts_with(&format!("{version}.")), "{told}");
    assert_eq!(connections, 1);

    engine.signal(Signal::TERM);
    assert!(engine.ended().await.success(), "{}", engine.log());
    assert!(engine.server().is_empty());
    engine.start_and_serve().await;
    assert!(!engine.log().contains("not properly shut down"));
    let orders = engine.connect("orders").await.expect("a writer");
    let kept = orders.query_one("select id from orders", &[]).await;
    assert_eq!(kept.expect("a row").get::<_, i32>(0), 7);
    assert!(!engine.log().contains("SCRAM-SHA-256$"), "{}", engine.log());
}

async fn a_transaction_that_is_open_may_end_when_it_stops(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    orders
        .batch_execute("create table orders (id int); begin; insert into orders values (1)")
        .await
        .expect("a transaction");
    engine.signal(Signal::TERM);
    until("it stops", async || {
        engine.log().contains("smart shutdown").then_some(())
    })
    .await;
    orders.batch_execute("commit").await.expect("it commits");
    assert!(engine.ended().await.success());
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let kept = orders.query_one("select count(*) from orders", &[]).await;
    assert_eq!(kept.expect("a row").get::<_, i64>(0), 1);
}

async fn what_was_committed_is_there_after_everything_is_killed(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let make = "create table orders (id int primary key)";
    orders.batch_execute(make).await.expect("a table");
    let written = tokio::spawn(async move {
        let mut acknowledged = 0;
        let insert = "insert into orders values ($1)";
        while orders.execute(insert, &[&(acknowledged + 1)]).await.is_ok() {
            acknowledged += 1;
        }
        acknowledged
    });
    let other = engine.connect("orders").await.expect("another");
    until("some are written", async || {
        let row = other.query_one("select count(*) from orders", &[]).await;
        (row.expect("a row").get::<_, i64>(0) > 50).then_some(())
    })
    .await;
    engine.kill_all().await;
    let acknowledged = written.await.expect("a writer");
    assert!(acknowledged > 50);
    // The number in the file is by now another process's.
    let mut stranger = engine.command(Path::new("sleep"));
    let mut stranger = stranger
        .arg("60")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("a process");
    let pid_file = engine.files().join("postmaster.pid");
    let text = std::fs::read_to_string(&pid_file).expect("a pid file");
    let (_, rest) = text.split_once('\n').expect("lines");
    std::fs::write(&pid_file, format!("{}\n{rest}", stranger.id())).expect("a pid file");

    engine.start_and_serve().await;
    let lives = stranger.try_wait().expect("a wait").is_none();
    stranger.kill().expect("a kill");
    stranger.wait().expect("a wait");
    assert!(lives, "it ended a process that is not the server's");
    let orders = engine.connect("orders").await.expect("a writer");
    let row = orders
        .query_one("select max(id), count(*) from orders", &[])
        .await;
    let row = row.expect("a row");
    let last: i32 = row.get(0);
    assert!(last >= acknowledged, "{last} of {acknowledged}");
    assert_eq!(row.get::<_, i64>(1), i64::from(last));
}

async fn a_server_is_not_without_its_engine_nor_the_engine_without_it(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.start_and_serve().await;
    engine.signal(Signal::KILL);
    engine.ended().await;
    until("the server follows", async || {
        engine.server().is_empty().then_some(())
    })
    .await;

    engine.start_and_serve().await;
    kill_process(engine.server()[0], Signal::KILL).expect("a kill");
    assert_eq!(engine.ended().await.code(), Some(1));
    assert!(
        engine.log().contains("PostgreSQL ended by signal 9"),
        "{}",
        engine.log()
    );

    // A server that nobody watches has the files.
    until("no server", async || {
        engine.server().is_empty().then_some(())
    })
    .await;
    let mut stale = engine.command(&machine()[&version].join("postgres"));
    let socket = format!("unix_socket_directories={}", engine.path("s").display());
    stale.arg("-D").arg(engine.files());
    stale.args(["-c", &socket, "-c", "listen_addresses="]);
    let mut stale = stale
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("a server");
    let server = format!("{}\n", stale.id());
    until("it has them", async || {
        std::fs::read_to_string(engine.files().join("postmaster.pid"))
            .is_ok_and(|text| text.starts_with(&server) && text.contains("ready"))
            .then_some(())
    })
    .await;
    engine.start_and_serve().await;
    assert!(stale.try_wait().expect("a wait").is_some());
}

#[tokio::test]
async fn what_is_missing_is_said() {
    let mut engine = Engine::new(99, None);
    engine.start();
    let (status, reason) = until("an answer", async || {
        engine
            .get("/health")
            .filter(|(_, body)| body.contains("99"))
    })
    .await;
    assert_eq!(status, 503);
    for part in ["not on this machine", "apt-get install postgresql-99"] {
        assert!(reason.contains(part), "{reason}");
    }
    for (version, folder) in machine() {
        let found = format!("{version} in {}", folder.display());
        assert!(reason.contains(&found), "{reason}");
    }
    assert_eq!(engine.ended().await.code(), Some(1));
    assert!(engine.log().contains(&reason));

    if !is_root() {
        return;
    }
    let version = *machine().keys().next().expect("a version");
    let nameless = Engine::new(version, None);
    let root = Engine::new(version, None).run_by(0);
    for (mut engine, said) in [
        (nameless, "uid 70001 has none on this machine; give it one"),
        (root, "refuses to run as root"),
    ] {
        engine.start();
        assert_eq!(engine.ended().await.code(), Some(1));
        assert!(engine.log().contains(said), "{}", engine.log());
    }
}

async fn a_user_with_a_name_makes_the_files_itself(version: u32) {
    /// `nobody`.
    const NAMED: u32 = 65_534;
    let mut engine = Engine::new(version, None).run_by(NAMED);
    let unfinished = engine.leave_unfinished();
    engine.start();
    engine.serves().await;
    assert!(!unfinished.exists());
}

async fn a_service_takes_no_connections_of_others_or_of_people(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.file.memory = model::units::Bytes::mebibytes(120);
    engine.role("orders", Access::Write);
    engine.role("report", Access::Read);
    engine.start_and_serve().await;
    let mut taken = Vec::new();
    let refused = loop {
        match engine.connect("orders").await {
            Ok(client) => taken.push(client),
            Err(refused) => break refused,
        }
    };
    assert!(
        refused.contains("too many connections for role"),
        "{refused}"
    );
    assert_eq!(taken.len(), 8, "half of 20, but for what newcomers have");
    let mut reports = Vec::new();
    while let Ok(client) = engine.connect("report").await {
        reports.push(client);
    }
    assert_eq!(reports.len(), 8);
    let shown = engine.tool(&["psql", "-At", "-c", "select 1"], "");
    assert!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
    let (_, status) = engine.get("/status").expect("a status");
    let EngineStatus::Postgres {
        shares,
        connections,
        connections_max,
        ..
    } = serde_json::from_str(&status).expect("JSON")
    else {
        panic!("{status}");
    };
    assert_eq!((connections, connections_max), (16, 20));
    let share = &shares[&support::name("orders")];
    assert_eq!((share.connections, share.most), (8, 8));

    drop(reports);
    engine
        .file
        .settings
        .connections
        .insert(support::name("orders"), 12);
    engine.tell();
    support::until("it has more", async || engine.connect("orders").await.ok()).await;
}

/// What a service sets for the sessions of its database is for those of services.
async fn times_that_a_team_sets_are_not_the_engines(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let mut times = vec!["statement_timeout", "lock_timeout"];
    times.extend((version >= 14).then_some("idle_session_timeout"));
    times.extend((version >= 17).then_some("transaction_timeout"));
    for time in times {
        let set = format!("alter database orders_db set {time} = '2ms'");
        orders.batch_execute(&set).await.expect(&set);
    }
    drop(orders);
    engine.signal(Signal::TERM);
    assert!(engine.ended().await.success(), "{}", engine.log());
    engine.start_and_serve().await;
    engine.role("cart", Access::Write);
    engine.tell();
    let refused_for = async || {
        let refused = engine.connect("cart").await.err();
        // Its own sessions obey: it may be in, and cut off before it is told.
        refused
            .is_none_or(|why| !why.contains("authentication"))
            .then_some(())
    };
    until("a new role", refused_for).await;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while std::time::Instant::now() < end {
        let health = engine.get("/health").expect("an answer");
        assert_eq!(health.0, 200, "{}", health.1);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!engine.log().contains("ended the engine's connection"));
}
