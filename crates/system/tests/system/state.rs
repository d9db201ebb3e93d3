//! A database and a topic: who declared them uses them, nobody else does, and what they hold outlives every process.

use std::path::Path;
use std::process::Command;
use std::sync::MutexGuard;
use std::time::Duration;

use rustix::process::Signal;
use system::cloud::Cloud;
use system::{proc, wait};

use crate::first;

/// From SIGKILL to the next answer, as a caller sees it.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// For what takes as long as a busy machine lets it.
const PATIENCE: Duration = Duration::from_secs(30);

/// `state/`, over three zones.
struct State {
    cloud: Cloud,
    _turn: MutexGuard<'static, ()>,
}

impl State {
    fn up() -> Self {
        let turn = first::turn();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/state");
        let mut cloud = Cloud::new(&folder.join("mainland.yaml"), 3).unwrap();
        cloud.up().unwrap();
        Self { cloud, _turn: turn }
    }

    fn curl(&self, words: &[&str], path: &str) -> String {
        let url = format!("http://{}{path}", self.cloud.gateway);
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "25", "-H", "Host: state.localhost"]);
        let output = curl.args(words).arg(url).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Publishes a number; the answer of the topic.
    fn publish(&self, number: u32) -> String {
        self.curl(&["-X", "POST"], &format!("/publish?{number}"))
    }

    fn until_mailed(&self, numbers: std::ops::RangeInclusive<u32>) {
        wait::until("all is mailed", PATIENCE, || {
            let mailed = self.curl(&[], "/mail");
            let has = |number: &u32| mailed.lines().any(|line| line == number.to_string());
            let missing: Vec<u32> = numbers.clone().filter(|number| !has(number)).collect();
            missing
                .is_empty()
                .then_some(())
                .ok_or(format!("{missing:?} are missing"))
        });
    }

    /// What a shell says beside an instance of a service: output, and whether it ended well.
    fn inside(&self, service: &str, script: &str) -> (String, bool) {
        let output = self
            .cloud
            .run(&["exec", service, "--", "sh", "-c", script])
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            String::from_utf8_lossy(&said).trim().to_owned(),
            output.status.success(),
        )
    }

    fn query(&self, service: &str, sql: &str) -> (String, bool) {
        self.inside(
            service,
            &format!("timeout 25 psql \"$ORDERS_DB_URL\" -Atc '{sql}'"),
        )
    }

    fn good(&self, sql: &str) -> String {
        let (said, well) = self.query("web", sql);
        assert!(well, "{sql}: {said}");
        said
    }

    fn engine(&self, service: &str) -> system::cloud::Instance {
        self.cloud.ready(service).unwrap().remove(0)
    }
}

#[test]
fn who_declared_a_database_or_a_topic_uses_it_and_nobody_else_does() {
    let state = State::up();
    for number in 1..=20 {
        let answer = state.publish(number);
        assert!(answer.contains("\"positions\""), "{answer}");
    }
    assert!(state.publish(20).contains("\"duplicates\":1"));
    state.until_mailed(1..=20);

    state.good("create table orders (id int)");
    state.good("insert into orders values (7)");
    assert_eq!(
        state.query("report", "select id from orders"),
        ("7".to_owned(), true)
    );
    let (said, well) = state.query("report", "insert into orders values (8)");
    assert!(!well && said.contains("read-only"), "{said}");

    // With the words of another, by the door and by the port: refused before the database sees it, and told.
    let url = state.inside("web", "printf %s \"$ORDERS_DB_URL\"").0;
    let port = state.engine("orders-db").address.unwrap();
    let (head, rest) = url.split_once('@').unwrap();
    let database = rest.split_once('/').unwrap().1;
    for url in [url.clone(), format!("{head}@{port}/{database}")] {
        let (said, well) = state.inside(
            "stranger",
            &format!("timeout 10 psql '{url}' -c 'select 1'"),
        );
        assert!(!well && !said.contains("authentication"), "{said}");
    }
    wait::until("the refusal is told", PATIENCE, || {
        let events = state
            .cloud
            .say(&["events"])
            .map_err(|error| error.to_string())?;
        let told = events.contains("does not declare needs: [orders-db]");
        told.then_some(()).ok_or(events)
    });
    let denied = state.inside("stranger", "env").0;
    assert!(
        !denied.contains("ORDERS_DB") && !denied.contains("EVENTS"),
        "{denied}"
    );

    // Beside an engine, its own tools.
    let words = [
        "exec",
        "orders-db",
        "--",
        "mainland",
        "engine",
        "psql",
        "-Atc",
        "select count(*) from orders",
    ];
    assert_eq!(state.cloud.say(&words).unwrap().trim(), "1");

    // What they hold is named for what it is when it can't be had twice.
    let warned = state.cloud.say(&["check"]).unwrap();
    for single in [
        "the database orders-db has one copy",
        "the topic events has one copy",
    ] {
        assert!(warned.contains(single), "{warned}");
    }
    assert!(warned.contains("report, web depend on it"), "{warned}");
}

#[test]
fn what_a_database_and_a_topic_hold_outlives_their_processes() {
    let mut state = State::up();
    state.good("create table orders (id int)");
    for round in 1..=3 {
        state.good(&format!("insert into orders values ({round})"));
        let victim = state.engine("orders-db");
        proc::signal(victim.pid.unwrap(), Signal::KILL).unwrap();
        let begin = std::time::Instant::now();
        // It waits, and is answered by what comes back.
        assert_eq!(state.good("select count(*) from orders"), round.to_string());
        assert!(
            begin.elapsed() < BACK_WITHIN,
            "the database took {:?}",
            begin.elapsed()
        );

        let victim = state.engine("events");
        proc::signal(victim.pid.unwrap(), Signal::KILL).unwrap();
        let begin = std::time::Instant::now();
        let answer = state.publish(round);
        assert!(answer.contains("\"positions\""), "{answer}");
        assert!(
            begin.elapsed() < BACK_WITHIN,
            "the topic took {:?}",
            begin.elapsed()
        );
    }
    state.until_mailed(1..=3);

    // An agent that is killed is missed by nobody, and its successor goes on with what runs.
    let before = state.engine("orders-db");
    let node = before.node.clone().unwrap();
    let nodes = state.cloud.nodes().unwrap().into_iter();
    let agent = nodes
        .filter(|one| one.name == node)
        .find_map(|one| one.pid)
        .unwrap();
    proc::signal(agent, Signal::KILL).unwrap();
    assert_eq!(state.good("select count(*) from orders"), "3");
    state.cloud.say(&["start", &node]).unwrap();
    state.cloud.wait_ready("orders-db", 1, PATIENCE);
    assert_eq!(state.engine("orders-db").pid, before.pid);

    // Replaced in place: who asks meanwhile waits.
    let restart = state
        .cloud
        .begin(&["restart", "orders-db", "--wait"])
        .unwrap();
    assert_eq!(state.good("select count(*) from orders"), "3");
    let ended = restart.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert_ne!(state.engine("orders-db").name, before.name);

    state.cloud.down().unwrap();
    state.cloud.up().unwrap();
    assert_eq!(state.good("select count(*) from orders"), "3");
    let answer = state.publish(1);
    assert!(answer.contains("\"duplicates\":1"), "{answer}");
    state.publish(4);
    state.until_mailed(1..=4);
}
