//! What `dump` wrote, loaded and put in the place of what was there.

use model::state::Access;
use tokio_postgres::Client;

use super::support::{Engine, until};

on_each_version! {
    a_dump_is_loaded_again,
    a_dump_takes_the_place_of_what_was_there,
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
