//! What `dump` wrote, loaded and put in the place of what was there.

use model::state::Access;
use tokio_postgres::Client;

use super::support::{Engine, until};

on_each_version! {
    a_dump_is_loaded_again,
    a_dump_takes_the_place_of_what_was_there,
    large_objects_come_back_whole,
    what_others_dumped_is_loaded,
    no_program_is_run_and_no_file_read_by_what_is_loaded,
}

const ORDERS: &str = "create table orders (id int primary key, note text); insert into orders values (1, 'a ''b'' c')";

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

fn dump(engine: &Engine) -> String {
    let dump = engine.tool(&["dump"], "");
    assert!(dump.status.success(), "{}", text(dump.stderr));
    // Each dump has a key of its own.
    let lines = text(dump.stdout);
    let lines = lines.lines().filter(|line| !line.contains("restrict "));
    lines.map(|line| format!("{line}\n")).collect()
}

fn done(engine: &Engine, tool: &str, sql: &str) {
    let output = engine.tool(&[tool], sql);
    let said = text(output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

fn refused(engine: &Engine, tool: &str, sql: &str, why: &str) {
    let output = engine.tool(&[tool], sql);
    let said = text(output.stderr);
    assert!(!output.status.success() && said.contains(why), "{said}");
}

async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.expect(query).get(0)
}

async fn a_dump_is_loaded_again(version: u32) {
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    orders.batch_execute(ORDERS).await.expect("it writes");
    let dumped = dump(&engine);
    assert!(dumped.contains("a 'b' c"), "{dumped}");
    assert!(!dumped.contains("order_events"), "{dumped}");

    let drop = "drop table orders";
    orders.batch_execute(drop).await.expect("a drop");
    let broken = format!("{dumped}\nselect nothing from nowhere;");
    refused(&engine, "load", &broken, "ERROR");
    let broken = format!("{dumped}\ncommit; select nothing from nowhere;");
    refused(&engine, "load", &broken, "Take BEGIN and COMMIT out");
    done(&engine, "load", &dumped);
    let again = "update orders set note = note || '!'";
    let again = orders.execute(again, &[]).await;
    assert_eq!(again.expect("its own table"), 1);
    let select = "select note, current_user from orders";
    let shown = engine.tool(&["psql", "-At", "-c", select], "");
    assert_eq!(text(shown.stdout), "a 'b' c!|orders_db\n");
}

async fn a_dump_takes_the_place_of_what_was_there(version: u32) {
    let mut engine = Engine::new(version, Some("order-events"));
    engine.role("orders", Access::Write);
    engine.role("report", Access::Read);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let report = engine.connect("report").await.expect("a reader");
    orders.batch_execute(ORDERS).await.expect("it writes");
    let message = "insert into order_events (key, type, data) values ('k', 't', '1')";
    orders.batch_execute(message).await.expect("a message");
    let dumped = dump(&engine);
    let later = "update orders set note = 'later'; create view notes as select note from orders;
        create schema more; create type more.mood as enum ('good'); create table more.moods (mood more.mood);
        create function id(order_events) returns bigint language sql as 'select $1.id';
        create view waiting as select * from order_events;
        alter default privileges grant select on tables to report;
        select lo_create(7); set role none; create table public.own (id int); set role orders_db";
    orders.batch_execute(later).await.expect("more");

    let before = dump(&engine);
    for (bad, why) in [
        (format!("{dumped}\nselect nothing from nowhere;"), "ERROR"),
        (
            format!("{dumped}\ncommit;\nselect 1;"),
            "Take BEGIN and COMMIT out",
        ),
        ("nonsense".to_owned(), "syntax error"),
        ("\\nonsense\n".to_owned(), "nonsense"),
    ] {
        refused(&engine, "replace", &bad, why);
        assert_eq!(dump(&engine), before, "{bad}");
    }

    done(&engine, "replace", &dumped);
    assert_eq!(dump(&engine), dumped);
    for client in [&orders, &report] {
        let note = "select count(*) from orders where note = 'a ''b'' c'";
        assert_eq!(number(client, note).await, 1);
    }
    let left = "select count(*) from pg_class c join pg_namespace n on n.oid = relnamespace where nspname !~ '^pg_' and nspname <> 'information_schema' and relkind in ('r', 'v')";
    assert_eq!(number(&orders, left).await, 2);
    orders
        .batch_execute("create table more (id int)")
        .await
        .expect("its schema");
    let refused = report.batch_execute("insert into orders values (2)").await;
    refused.expect_err("it only reads");
    // What waited in the outbox waits, and more may.
    orders.batch_execute(message).await.expect("a message");
    assert_eq!(
        number(&orders, "select count(*) from order_events").await,
        2
    );

    // A new start finds nothing to mend.
    engine.signal(rustix::process::Signal::TERM);
    assert!(engine.ended().await.success());
    engine.start_and_serve().await;
    let orders = until("it is back", async || engine.connect("orders").await.ok()).await;
    assert_eq!(
        number(&orders, "select count(*) from order_events").await,
        2
    );
}

async fn large_objects_come_back_whole(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let orders = engine.connect("orders").await.expect("a writer");
    let make = "create table files (data oid); insert into files values (lo_from_bytea(0, '\\x0001ff')), (lo_from_bytea(0, 'hello'))";
    orders.batch_execute(make).await.expect("it writes");
    let dumped = dump(&engine);
    assert!(dumped.contains("\nBEGIN;\n"), "{dumped}");
    let contents = "select string_agg(encode(lo_get(data), 'hex'), ' ' order by data) from files";
    for tool in ["replace", "load"] {
        if tool == "load" {
            let drop = "select lo_unlink(data) from files; drop table files";
            orders.batch_execute(drop).await.expect("a drop");
        }
        done(&engine, tool, &dumped);
        let row = orders.query_one(contents, &[]).await.expect("the files");
        assert_eq!(row.get::<_, String>(0), "0001ff 68656c6c6f", "{tool}");
    }
    // What stood before in the file stands there by its line.
    let broken = dumped.replace("COPY public.files", "COPY public.nothing");
    let line = 1 + broken
        .lines()
        .position(|line| line.starts_with("COPY"))
        .unwrap();
    refused(
        &engine,
        "replace",
        &broken,
        &format!("<stdin>:{line}: ERROR"),
    );
}

async fn what_others_dumped_is_loaded(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let foreign = "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n
CREATE DATABASE shop WITH TEMPLATE = template0;
ALTER DATABASE shop OWNER TO alice;
\\connect shop
SET client_encoding = 'UTF8';
CREATE FUNCTION public.said() RETURNS text LANGUAGE sql AS $$ select 'ALTER TABLE t OWNER TO bob;' $$;
ALTER FUNCTION public.said() OWNER TO alice;
CREATE TABLE public.t (
    id integer, note text
);
ALTER TABLE public.t OWNER TO alice;
COPY public.t (id, note) FROM stdin;
1\tALTER TABLE t OWNER TO bob;
2\t\\\\! no command
\\.
GRANT SELECT ON TABLE public.t TO bob;
GRANT SELECT ON TABLE public.t TO orders;
--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n";
    let output = engine.tool(&["load"], foreign);
    let said = text(output.stderr);
    assert!(output.status.success(), "{said}");
    for part in [
        "left out 3 × OWNER TO",
        "(alice)",
        "left out 1 × GRANT",
        "(bob)",
        "\\connect (shop)",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let orders = engine.connect("orders").await.expect("a writer");
    let found = "select count(*) from t where note in ('ALTER TABLE t OWNER TO bob;', '\\! no command') and said() like '%bob;'";
    assert_eq!(number(&orders, found).await, 2);

    // Archives, and what is packed.
    for format in ["custom", "tar"] {
        let password =
            model::state::role_password(super::support::SECRET, &super::support::name("orders"));
        let program = super::support::machine()[&version].join("pg_dump");
        let archive = engine
            .command(&program)
            .args([
                "--format",
                format,
                "-h",
                "127.0.0.1",
                "-U",
                "orders",
                "-p",
                &engine.port.to_string(),
                "orders_db",
            ])
            .env("PGPASSWORD", password)
            .output()
            .expect("pg_dump");
        assert!(archive.status.success(), "{}", text(archive.stderr));
        orders.batch_execute("drop table t").await.expect("a drop");
        let loaded = engine.tool(&["replace"], &archive.stdout);
        assert!(loaded.status.success(), "{format}: {}", text(loaded.stderr));
        assert_eq!(number(&orders, found).await, 2, "{format}");
        // A tar archive has its rows as they are, and after them what nobody needs.
        let rows = archive
            .stdout
            .windows(10)
            .position(|some| some == b"no command");
        let half = &archive.stdout[..rows.unwrap_or(archive.stdout.len() / 2)];
        let cut_off = engine.tool(&["replace"], half);
        assert!(!cut_off.status.success(), "{format}");
        assert_eq!(number(&orders, found).await, 2, "{format}");
    }
    let packed = engine.tool(&["load"], b"\x1f\x8b\x08\x00");
    let said = text(packed.stderr);
    assert!(
        !packed.status.success() && said.contains("gunzip -c"),
        "{said}"
    );
}

async fn no_program_is_run_and_no_file_read_by_what_is_loaded(version: u32) {
    let mut engine = Engine::new(version, None);
    engine.role("orders", Access::Write);
    engine.start_and_serve().await;
    let mark = engine.path("data/mark");
    let orders = engine.connect("orders").await.expect("a writer");
    for command in [
        "! touch MARK",
        "o |touch MARK",
        "g |touch MARK",
        "set a `touch MARK`",
        "copy t to program 'touch MARK'",
        "i /etc/passwd",
    ] {
        let command = command.replace("MARK", mark.to_str().unwrap());
        let sql = format!("create table t (id int);\nselect 1;\n\\{command}\n");
        refused(&engine, "load", &sql, "line 3: the psql command");
        // What we would not find psql refuses, where it can.
        let hidden = format!(
            "set standard_conforming_strings to 'o''ff';\nselect set_config('standard_conforming_strings', 'off', false);\nselect '\\';\n\\{command}\n--';\n"
        );
        let output = engine.tool(&["load"], &hidden);
        assert!(!output.status.success(), "{command}");
        assert!(!mark.exists(), "{command}");
    }
    assert_eq!(
        number(&orders, "select count(*) from pg_class where relname = 't'").await,
        0
    );
    refused(
        &engine,
        "load",
        "create table t (id int);\nselect 'no end",
        "breaks off",
    );
    refused(
        &engine,
        "load",
        "create table t (id int);\ncopy t from stdin;\n1\n",
        "breaks off",
    );
    assert_eq!(
        number(&orders, "select count(*) from pg_class where relname = 't'").await,
        0
    );
}
