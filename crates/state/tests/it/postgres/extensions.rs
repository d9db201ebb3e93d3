//! Extensions: made, told, and no way to what is not the services'.

use std::collections::BTreeMap;

use model::state::extensions::{ExtensionStatus, Wish};
use model::state::{Access, Engine as Declared, EngineStatus};
use tokio_postgres::Client;

use super::support::{Engine, SECRET, name, until};

on_each_version! {
    extensions_are_made_and_told_and_dropped,
    what_the_machine_does_not_have_is_told_with_its_package,
    an_extension_opens_no_way_to_the_superuser,
    a_dump_with_extensions_comes_back_whole,
}

fn declare(engine: &mut Engine, wishes: &[(&str, Wish)]) {
    let Declared::Postgres(postgres) = &mut engine.file.engine else {
        panic!("no database");
    };
    postgres.extensions = wishes
        .iter()
        .map(|(name, wish)| ((*name).to_owned(), *wish))
        .collect();
}

fn told(engine: &Engine) -> BTreeMap<String, ExtensionStatus> {
    let (_, status) = engine.get("/status").expect("a status");
    match serde_json::from_str(&status).expect("JSON") {
        EngineStatus::Postgres { extensions, .. } => extensions,
        EngineStatus::Topic { .. } => panic!("{status}"),
    }
}

async fn until_told(engine: &Engine, extension: &str, part: &str) -> ExtensionStatus {
    until(part, async || {
        let status = told(engine).remove(extension)?;
        let concern = status.concern.clone().unwrap_or_default();
        concern.contains(part).then_some(status)
    })
    .await
}

async fn is_there(client: &Client, extension: &str) -> bool {
    let query = "select exists (select from pg_extension where extname = $1)";
    let row = client.query_one(query, &[&extension]).await;
    row.expect("an answer").get(0)
}

fn message(error: &tokio_postgres::Error) -> String {
    let said = error.as_db_error();
    said.map_or_else(|| error.to_string(), |said| said.message().to_owned())
}

async fn extensions_are_made_and_told_and_dropped(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.role("report", Access::Read);
    let all = [
        ("pg_stat_statements", Wish::Create),
        ("postgres_fdw", Wish::Create),
        ("dblink", Wish::Create),
        ("earthdistance", Wish::Create),
    ];
    declare(&mut engine, &all);
    engine.start_and_serve().await;
    // There before anybody may come in.
    let orders = engine.connect("orders").await.expect("a writer");
    for (extension, _) in all {
        assert!(is_there(&orders, extension).await, "{extension}");
        assert_eq!(told(&engine)[extension].concern, None);
    }
    assert!(is_there(&orders, "cube").await, "what another requires");
    assert_eq!(told(&engine).len(), 4);
    let counted = "select count(*) from pg_stat_statements";
    orders.query_one(counted, &[]).await.expect("it is loaded");
    let refused = orders.batch_execute("drop extension dblink").await;
    assert!(message(&refused.expect_err("not theirs")).contains("must be owner"));

    // Live: one more, one that is declared no more, one that is asked to go and is needed.
    let use_it =
        "create extension citext; create table t (c citext, e earth default ll_to_earth(0, 0))";
    orders.batch_execute(use_it).await.expect("a trusted one");
    declare(
        &mut engine,
        &[
            ("pg_stat_statements", Wish::Create),
            ("pgcrypto", Wish::Create),
            ("earthdistance", Wish::Drop),
            ("postgres_fdw", Wish::Drop),
        ],
    );
    engine.tell();
    until_told(&engine, "dblink", "declared no more and stays").await;
    let kept = until_told(&engine, "earthdistance", "other objects depend on it").await;
    assert!(
        kept.concern
            .unwrap_or_default()
            .contains("column e of table")
    );
    assert!(is_there(&orders, "pgcrypto").await && !is_there(&orders, "postgres_fdw").await);
    assert!(is_there(&orders, "dblink").await && is_there(&orders, "earthdistance").await);
    assert!(!told(&engine).contains_key("citext"), "the team's own");
    assert_eq!(engine.get("/health").expect("an answer").0, 200);
}

async fn what_the_machine_does_not_have_is_told_with_its_package(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    declare(
        &mut engine,
        &[
            ("nobody-knows-this", Wish::Create),
            ("plpython3u", Wish::Create),
            // It is not there to be loaded, and keeps PostgreSQL from nothing.
            ("pg_squeeze", Wish::Create),
        ],
    );
    engine.start_and_serve().await;
    let package = format!("postgresql-{version}-squeeze");
    until_told(&engine, "pg_squeeze", &package).await;
    until_told(&engine, "nobody-knows-this", "the machine does not have it").await;
    until_told(&engine, "plpython3u", "refused").await;
    assert!(engine.log().contains(&package), "{}", engine.log());
    let orders = engine.connect("orders").await.expect("it serves");
    orders
        .batch_execute("create table t (id int)")
        .await
        .expect("it writes");

    // What is loaded at the start is told to need one.
    declare(&mut engine, &[("pg_stat_statements", Wish::Create)]);
    engine.tell();
    until_told(&engine, "pg_stat_statements", "mainland restart orders-db").await;
    engine.signal(rustix::process::Signal::TERM);
    assert!(engine.ended().await.success());
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    assert!(is_there(&orders, "pg_stat_statements").await);
}

async fn an_extension_opens_no_way_to_the_superuser(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.role("report", Access::Read);
    declare(
        &mut engine,
        &[("postgres_fdw", Wish::Create), ("dblink", Wish::Create)],
    );
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let socket = engine.path("s");
    let (socket, port) = (socket.display(), engine.port);
    let password = model::state::role_password(SECRET, &name("orders"));
    for connection in [
        format!("host={socket} port={port} user=mainland dbname=orders_db"),
        format!("host={socket} port={port} user=mainland-owner dbname=postgres"),
        format!("host={socket} port={port} user=mainland password=x dbname=orders_db"),
        format!("host={socket} port={port} user=orders password={password} dbname=orders_db"),
        format!("host=127.0.0.1 port={port} user=mainland password=x dbname=orders_db"),
        format!("host=127.0.0.1 port={port} user=orders dbname=orders_db"),
        format!("host=127.0.0.1 port={port} user=orders password={password} dbname=postgres"),
        "dbname=orders_db".to_owned(),
        String::new(),
    ] {
        let ask = "select * from dblink($1, 'select current_user::text') as t (who text)";
        let asked = orders.query(ask, &[&connection]).await;
        asked.expect_err(&connection);
    }
    let unchecked = format!("select dblink_connect_u('host={socket} port={port} user=mainland')");
    let refused = orders.batch_execute(&unchecked).await;
    assert!(message(&refused.expect_err("unchecked")).contains("permission denied"));
    // With its own password it comes to where it may come anyway.
    let own =
        format!("host=127.0.0.1 port={port} user=orders password={password} dbname=orders_db");
    let ask = "select * from dblink($1, 'select session_user::text') as t (who text)";
    let who = orders.query_one(ask, &[&own]).await.expect("itself");
    assert_eq!(who.get::<_, String>(0), "orders");

    let server = format!(
        "create server here foreign data wrapper postgres_fdw options (host '{socket}', port '{port}', dbname 'orders_db');
         create foreign table seen (rolname text, rolpassword text) server here options (schema_name 'pg_catalog', table_name 'pg_authid')"
    );
    orders.batch_execute(&server).await.expect("a server");
    for mapping in [
        "user 'mainland', password_required 'false'",
        "user 'mainland'",
        "user 'mainland', password ''",
        "user 'mainland', password 'x'",
        "user 'mainland-owner'",
    ] {
        let make = format!("create user mapping for current_user server here options ({mapping})");
        if let Err(refused) = orders.batch_execute(&make).await {
            let said = message(&refused);
            assert!(said.contains("password_required"), "{mapping}: {said}");
            continue;
        }
        let read = orders.query("select * from seen", &[]).await;
        read.expect_err(mapping);
        let drop = "drop user mapping for current_user server here";
        orders.batch_execute(drop).await.expect("a drop");
    }
    for attempt in [
        "create extension file_fdw",
        "create extension adminpack",
        "alter extension dblink add table pg_class",
        "alter foreign data wrapper postgres_fdw no validator",
        "create function f() returns int language c as 'dblink', 'dblink_connect'",
        "set role mainland",
        "grant \"mainland-extensions\" to public",
        "alter system set shared_preload_libraries = 'x'",
        "load 'dblink'",
        "copy t from program 'id'",
    ] {
        orders.batch_execute(attempt).await.expect_err(attempt);
    }
    // Who only reads makes no servers.
    let report = engine.connect("report").await.expect("a reader");
    let make = "begin read write; create server mine foreign data wrapper postgres_fdw";
    let refused = report.batch_execute(make).await;
    assert!(message(&refused.expect_err("a reader")).contains("permission denied"));
}

async fn a_dump_with_extensions_comes_back_whole(version: u32) {
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    let declared = [("postgres_fdw", Wish::Create), ("hstore", Wish::Create)];
    declare(&mut engine, &declared);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let make = "create extension citext;
        create table t (id int primary key, name citext, more hstore);
        insert into t values (1, 'Ann', 'a=>1');
        create function said() returns text language sql as $$ select 'x' $$;
        create type colour as enum ('red'); create domain even as int check (value % 2 = 0);
        create view v as select * from t; create sequence s;
        create schema more; create table more.u (h hstore);
        create server there foreign data wrapper postgres_fdw options (host '127.0.0.1');
        reset role; create table of_the_role (id int); set role orders_db;
        insert into order_events (key, type, data) values ('k', 't', '{}')";
    orders.batch_execute(make).await.expect("tables");
    let dump = engine.tool(&["dump"], "");
    let dumped = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    assert!(
        dumped.contains("CREATE EXTENSION IF NOT EXISTS hstore"),
        "{dumped}"
    );
    for turn in 0..2 {
        let loaded = engine.tool(&["replace"], &dumped);
        let said = String::from_utf8_lossy(&loaded.stderr).into_owned();
        assert!(loaded.status.success() && said.is_empty(), "{turn}: {said}");
        let found =
            "select count(*) from t where name = 'ANN' and more -> 'a' = '1' and said() = 'x'
            and exists (select from pg_foreign_server) and (select count(*) from order_events) = 1";
        let row = orders.query_one(found, &[]).await.expect("its rows");
        assert_eq!(row.get::<_, i64>(0), 1);
        for extension in ["postgres_fdw", "hstore", "citext"] {
            assert!(is_there(&orders, extension).await, "{extension}");
        }
    }
    // Nothing is left of what was there.
    let empty = engine.tool(&["replace"], "select 1;");
    assert!(
        empty.status.success(),
        "{}",
        String::from_utf8_lossy(&empty.stderr)
    );
    let left = "select (select count(*) from pg_class where relnamespace = 'public'::regnamespace and relname not like 'order_events%')
        + (select count(*) from pg_namespace where nspname = 'more') + (select count(*) from pg_foreign_server)
        + (select count(*) from pg_type where typname in ('colour', 'even'))";
    let row = orders.query_one(left, &[]).await.expect("an answer");
    assert_eq!(row.get::<_, i64>(0), 0);
    assert!(is_there(&orders, "hstore").await && !is_there(&orders, "citext").await);
    let own = "create table mine (h hstore); create schema x";
    orders.batch_execute(own).await.expect("its schema");

    // One that nobody declared.
    let foreign = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements WITH SCHEMA public;\n";
    let refused = engine.tool(&["load"], foreign);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(
        said.contains("line 1: the extension `pg_stat_statements` needs a superuser"),
        "{said}"
    );
}
