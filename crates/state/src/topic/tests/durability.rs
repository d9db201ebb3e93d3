//! What is on the disk: power that goes, a disk that is full, a topic that is full, what is kept and what is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use model::ids::ResourceName;
use model::units::{Bytes, Span};
use proptest::prelude::*;
use serde_json::json;
use sqlite::testing::Disk;

use crate::topic::engine::Clock;
use crate::topic::event::{Event, REPEATED_WITHIN_MS};

use super::support::{CALLER, Gate, Running, Service, block_on, file, open, until, with_retention};

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    let disk = Disk::new();
    let topic = Running::on(&disk, file(5, &[]));
    for turn in 0..20 {
        topic.publish("", &turn.to_string());
    }
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t"});
    let batch = json!([event("1"), event("2")]);
    let kind = [("content-type", "application/cloudevents-batch+json")];
    assert_eq!(
        topic.post("/messages", &kind, &batch.to_string()).status,
        200
    );
    disk.lose_power(|| false);
    drop(topic);
    let email = Service::willing();
    let topic = Running::on(&disk, file(5, &[("email", 8, &email)]));
    let page = topic.node("GET", "/messages?limit=100", "").json();
    assert_eq!(page["messages"].as_array().unwrap().len(), 22);
    assert_eq!(topic.publish("", "next"), 23);
    topic.until_done("email");
}

#[test]
fn what_is_published_after_a_consumer_came_is_its_own_however_soon_the_power_goes() {
    let disk = Disk::new();
    let email = Service::willing();
    let consumers = [("email", 8, &email)];
    // Nothing is written down beside what is asked for.
    let engine = open(&disk, file(5, &consumers), Clock::start());
    let published = block_on(engine.publish(vec![Event::default()])).unwrap();
    assert_eq!(published[0].position, 1);
    disk.lose_power(|| false);
    drop(engine);
    let topic = Running::on(&disk, file(5, &consumers));
    topic.until_done("email");
    assert_eq!(email.positions(), [1]);
}

#[test]
fn what_a_version_before_stored_without_its_publisher_is_known_by_what_it_says() {
    let disk = Disk::new();
    let engine = open(&disk, file(5, &[]), Clock::start());
    let old = |dedup: &str, attributes: &[(&str, &str)], data: &'static str| Event {
        at_ms: Clock::wall_ms(),
        dedup: Some(dedup.to_owned()),
        content_type: Some("text/plain".to_owned()),
        attributes: attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        data: data.into(),
        ..Event::default()
    };
    let events = vec![
        old("/projects/shop/topics/orders\n1", &[("id", "1")], "a"),
        old("/s\n1", &[("id", "1"), ("source", "/s")], "b"),
        old("k", &[], "c"),
        Event {
            at_ms: Clock::wall_ms() - REPEATED_WITHIN_MS - 1000,
            ..old("long ago", &[], "d")
        },
    ];
    assert_eq!(block_on(engine.publish(events)).unwrap().len(), 4);
    drop(engine);
    let topic = Running::on(&disk, file(5, &[]));
    let post = |topic: &Running, header: (&str, &str), source: Option<&str>, body: &str| {
        let mut headers = vec![("content-type", "text/plain"), header];
        headers.extend(source.map(|source| ("ce-source", source)));
        topic.post("/messages", &headers, body).text
    };
    let (id, key) = (("ce-id", "1"), ("idempotency-key", "k"));
    let again = |position: u64| format!(r#"{{"positions":[{position}],"duplicates":1}}"#);
    let first = |position: u64| format!(r#"{{"positions":[{position}],"duplicates":0}}"#);
    assert_eq!(
        post(&topic, id, None, "a"),
        again(1),
        "one that is published again"
    );
    assert_eq!(post(&topic, id, Some("/s"), "b"), again(2));
    assert_eq!(post(&topic, key, None, "c"), again(3));
    assert_eq!(
        post(&topic, id, None, "another's"),
        first(5),
        "nothing vanishes"
    );
    assert_eq!(post(&topic, id, Some("/s"), "another's"), first(6));
    assert_eq!(post(&topic, key, None, "another's"), first(7));
    // Who repeats it so late is another, who happens to say the same.
    let late = ("idempotency-key", "long ago");
    assert_eq!(post(&topic, late, None, "d"), first(8));
    assert_eq!(post(&topic, late, None, "d"), again(8));
    drop(topic);
    let topic = Running::on(&disk, file(5, &[]));
    assert_eq!(post(&topic, id, None, "another's"), again(5));
    assert_eq!(post(&topic, id, None, "a"), again(1));
}

#[test]
fn a_dead_letter_and_its_attempts_survive_the_power() {
    let disk = Disk::new();
    let email = Service::start(|_| (500, "no".to_owned()));
    let topic = Running::on(&disk, file(2, &[("email", 8, &email)]));
    topic.publish("a", "x");
    until("it is dead", || {
        (topic.consumer("email").dead == 1).then_some(())
    });
    disk.lose_power(|| false);
    drop(topic);
    let topic = Running::on(&disk, file(2, &[("email", 8, &email)]));
    let status = topic.consumer("email");
    assert_eq!((status.dead, status.backlog), (1, 0));
    let dead = topic.node("GET", "/dead", "").json();
    assert_eq!(dead["messages"][0]["attempts"], 2);
    assert_eq!(email.received().len(), 2, "it is not tried again");
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let disk = Disk::new();
    let email = Service::willing();
    let topic = Running::on(&disk, file(5, &[("email", 8, &email)]));
    topic.publish("", "before");
    topic.until_done("email");
    disk.set_capacity(Some(disk.used_bytes()));
    let body = "x".repeat(100_000);
    let refused = until("it is refused", || {
        let answer = topic.post("/messages", &[], &body);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (503, &json!("disk-full"))
    );
    disk.set_capacity(None);
    let position = topic.publish("", "after");
    topic.until_done("email");
    assert_eq!(email.positions().last(), Some(&position));
    assert_eq!(email.positions(), (1..=position).collect::<Vec<u64>>());
}

#[test]
fn a_full_topic_names_the_slowest_consumer_and_takes_more_once_that_is_done() {
    let gate = Arc::new(Gate::default());
    let slow = Service::behind(&gate);
    let quick = Service::willing();
    let consumers = [("slow", 4, &slow), ("quick", 4, &quick)];
    let small = with_retention(
        file(100, &consumers),
        Span::seconds(3600),
        Bytes::mebibytes(1),
    );
    let topic = Running::start(small);
    let body = "x".repeat(100_000);
    let refused = until("it is full", || {
        let answer = topic.post("/messages", &[], &body);
        (answer.status != 200).then_some(answer)
    });
    let problem = refused.json();
    assert_eq!(
        (refused.status, &problem["code"]),
        (507, &json!("topic-full"))
    );
    assert!(
        problem["detail"].as_str().unwrap().contains("`slow`"),
        "{problem}"
    );
    let unfinished = topic.consumer("slow").backlog;
    assert_eq!(unfinished, 10, "what nobody is done with is kept");
    gate.open();
    topic.until_done("slow");
    until("there is room", || {
        (topic.post("/messages", &[], &body).status == 200).then_some(())
    });
}

#[test]
fn what_is_done_with_is_removed_by_size_and_age_and_pages_are_used_again() {
    let disk = Disk::new();
    let email = Service::willing();
    let retained = |age| with_retention(file(5, &[("email", 8, &email)]), age, Bytes::mebibytes(1));
    let topic = Running::on(&disk, retained(Span::seconds(3600)));
    let body = "x".repeat(50_000);
    let mut largest = Vec::new();
    for _ in 0..3 {
        for _ in 0..40 {
            assert_eq!(
                topic.post("/messages", &[], &body).status,
                200,
                "there is always room"
            );
            topic.until_done("email");
        }
        until("it is as small as it should be", || {
            (size(&topic) <= 1 << 20).then_some(())
        });
        largest.push(disk.file_bytes("topic.db"));
    }
    assert!(
        largest[2] <= 6 << 20,
        "the file is as large as the topic once was: {largest:?}"
    );
    let kept = topic.node("GET", "/messages?limit=100", "").json();
    assert!(
        kept["messages"].as_array().unwrap().len() >= 15,
        "no more than needed is removed"
    );
    topic.told(retained(Span::milliseconds(1)));
    until("all are too old", || (size(&topic) == 0).then_some(()));
    assert_eq!(
        topic.publish("", "next"),
        121,
        "positions are never used again"
    );
}

#[test]
fn what_somebody_is_not_done_with_is_kept_however_old() {
    let gate = Arc::new(Gate::default());
    let slow = Service::behind(&gate);
    let quick = Service::willing();
    let topic = Running::start(file(100, &[("slow", 1, &slow), ("quick", 8, &quick)]));
    (0..5).for_each(|_| {
        topic.publish("", "x");
    });
    topic.until_done("quick");
    slow.until_received(1);
    let in_a_year = Clock::wall_ms() + 365 * 24 * 3_600_000;
    let compact = || block_on(topic.engine().compact(in_a_year)).unwrap();
    compact();
    let left = || {
        let page = topic.node("GET", "/messages", "").json();
        page["messages"].as_array().unwrap().len()
    };
    assert_eq!(left(), 5);
    gate.open();
    topic.until_done("slow");
    assert_eq!(slow.positions()[..1], [1]);
    until("now they go", || {
        compact();
        (left() == 0).then_some(())
    });
}

#[test]
fn a_consumer_that_begins_before_what_is_removed_does_not_look_for_it_forever() {
    let disk = Disk::new();
    let brief = with_retention(file(5, &[]), Span::milliseconds(1), Bytes::mebibytes(1));
    let topic = Running::on(&disk, brief.clone());
    topic.publish("", "x");
    until("it is removed", || (size(&topic) == 0).then_some(()));
    drop(topic);
    let engine = open(&disk, brief, Clock::start());
    // Before the topic has measured what is there.
    let audit = ResourceName::new("audit").unwrap();
    engine.pull_consumer(&audit, &audit, true).unwrap();
    let looks = engine.plan().looks;
    assert_eq!(looks, [(audit.clone(), 0)]);
    block_on(engine.look(audit, 0));
    assert_eq!(engine.plan().looks, []);
    assert_eq!(engine.consumers()[0].1.backlog, 0);
}

const HOUR_MS: u64 = 3_600_000;

#[test]
fn a_clock_that_is_set_back_while_a_retry_waits_does_not_hold_it() {
    let disk = Disk::new();
    let mended = Arc::new(AtomicBool::new(false));
    let well = mended.clone();
    let email = Service::start(move |_| match well.load(Ordering::SeqCst) {
        true => (200, String::new()),
        false => (500, String::new()),
    });
    let consumers = [("email", 8, &email)];
    let ahead = Clock::start_at(Clock::wall_ms() + HOUR_MS);
    let topic = Running::by(ahead, &disk, file(100, &consumers));
    topic.publish("", "x");
    email.until_received(2);
    drop(topic);
    mended.store(true, Ordering::SeqCst);
    let topic = Running::on(&disk, file(100, &consumers));
    topic.until_done("email");
}

#[test]
fn messages_bear_the_time_of_the_wall_though_the_machine_has_slept() {
    // Such a clock stands still meanwhile.
    let behind = Clock::start_at(Clock::wall_ms() - 8 * HOUR_MS);
    let topic = Running::by(behind, &Disk::new(), file(5, &[]));
    topic.publish("", "x");
    let page = topic.node("GET", "/messages", "").json();
    let published = page["messages"][0]["published"].as_str().unwrap();
    let published: jiff::Timestamp = published.parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(published);
    assert!(age.as_secs() < 60, "{age:?}");
}

#[test]
fn who_could_not_pull_since_the_topic_was_down_is_not_forgotten() {
    let disk = Disk::new();
    let audit = ResourceName::new("audit").unwrap();
    let engine = open(&disk, file(5, &[]), Clock::start());
    engine
        .pull_consumer(&audit, &ResourceName::new(CALLER).unwrap(), false)
        .unwrap();
    block_on(engine.publish(vec![Event::default()])).unwrap();
    drop(engine);
    let later = Clock::start_at(Clock::wall_ms() + 8 * 24 * HOUR_MS);
    let engine = open(&disk, file(5, &[]), later);
    block_on(engine.compact(Clock::wall_ms())).unwrap();
    assert_eq!(engine.consumers()[0].1.backlog, 1);
}

fn size(topic: &Running) -> u64 {
    topic.node("GET", "/status", "").json()["size"]
        .as_str()
        .map_or(u64::MAX, |size| size.parse::<Bytes>().unwrap().0)
}

#[test]
fn a_dead_letter_outlives_its_retention() {
    let email = Service::start(|message| match &*message.body {
        "poison" => (500, String::new()),
        _ => (200, String::new()),
    });
    let consumers = [("email", 8, &email)];
    let brief = with_retention(
        file(1, &consumers),
        Span::milliseconds(1),
        Bytes::mebibytes(1),
    );
    let topic = Running::start(brief);
    let poison = topic.publish("", "poison");
    topic.publish("", "fine");
    until("it is dead", || {
        (topic.consumer("email").dead == 1).then_some(())
    });
    until("the other is removed", || {
        let page = topic.node("GET", "/messages", "").json();
        let left = page["messages"].as_array()?.len();
        (left == 1).then_some(())
    });
    let dead = topic.node("GET", "/dead", "").json();
    assert_eq!(dead["messages"][0]["position"], poison);
    assert_eq!(
        topic.node("POST", "/discard", "").text,
        r#"{"discarded":1}"#
    );
    until("now it goes too", || {
        let page = topic.node("GET", "/messages", "").json();
        page["messages"].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn dead_letters_without_data_fill_a_topic_too() {
    let email = Service::start(|_| (500, String::new()));
    let consumers = [("email", 8, &email)];
    let brief = with_retention(
        file(1, &consumers),
        Span::milliseconds(1),
        Bytes::mebibytes(1),
    );
    let topic = Running::start(brief);
    let subject = "x".repeat(8000);
    let refused = until("it is full", || {
        let answer = topic.post("/messages", &[("ce-subject", &subject)], "");
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.json()["code"], "topic-full", "{}", refused.text);
    topic.node("POST", "/discard", "");
    until("there is room", || {
        (topic.post("/messages", &[], "").status == 200).then_some(())
    });
}

/// What happens to a topic, step by step.
#[derive(Debug, Clone)]
enum Step {
    Publish {
        key: u8,
    },
    Batch {
        key: u8,
        count: u8,
    },
    /// All deliveries fail for a while.
    Fail(bool),
    /// The process is killed; the power goes too, or not.
    Restart {
        power: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..3_u8).prop_map(|key| Step::Publish { key }),
        2 => (0..3_u8, 1..5_u8).prop_map(|(key, count)| Step::Batch { key, count }),
        2 => any::<bool>().prop_map(Step::Fail),
        2 => any::<bool>().prop_map(|power| Step::Restart { power }),
    ];
    prop::collection::vec(step, 1..40)
}

fn publish(topic: &Running, key: u8, count: u8) -> Vec<u64> {
    let key = key.to_string();
    static IDS: AtomicU64 = AtomicU64::new(0);
    let event = |_| {
        let id = IDS.fetch_add(1, Ordering::Relaxed).to_string();
        json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "partitionkey": key, "data": 1})
    };
    let events: Vec<_> = (0..count).map(event).collect();
    let kind = [("content-type", "application/cloudevents-batch+json")];
    let answer = topic.post("/messages", &kind, &json!(events).to_string());
    assert_eq!(answer.status, 200, "{}", answer.text);
    let positions = answer.json()["positions"].as_array().unwrap().clone();
    positions
        .iter()
        .map(|position| position.as_u64().unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// At least once, to every consumer, in order for each key: whatever fails, and however often the process dies.
    #[test]
    fn all_that_is_acknowledged_is_delivered_in_order(steps in steps()) {
        let failing = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let (fail, turn) = (failing.clone(), turns.clone());
        let weak = Service::start(move |_| {
            let unlucky = turn.fetch_add(1, Ordering::SeqCst).is_multiple_of(5);
            match unlucky || fail.load(Ordering::SeqCst) {
                true => (500, String::new()),
                false => (200, String::new()),
            }
        });
        let strong = Service::willing();
        let consumers = [("weak", 4, &weak), ("strong", 4, &strong)];
        let disk = Disk::new();
        let mut topic = Running::on(&disk, file(100, &consumers));
        let mut acknowledged = BTreeSet::new();
        for step in &steps {
            match step {
                Step::Publish { key } => acknowledged.extend(publish(&topic, *key, 1)),
                Step::Batch { key, count } => acknowledged.extend(publish(&topic, *key, *count)),
                Step::Fail(fail) => failing.store(*fail, Ordering::SeqCst),
                Step::Restart { power } => {
                    if *power {
                        disk.lose_power(|| false);
                    }
                    drop(topic);
                    topic = Running::on(&disk, file(100, &consumers));
                }
            }
        }
        failing.store(false, Ordering::SeqCst);
        topic.until_done("weak");
        topic.until_done("strong");
        for service in [&weak, &strong] {
            let delivered: BTreeSet<u64> = service.positions().into_iter().collect();
            prop_assert_eq!(&delivered, &acknowledged);
        }
        prop_assert!(in_order(&strong) && in_order(&weak));
    }
}

/// The first delivery of each message comes after the first of all before it with its key. Repetitions may follow a crash.
fn in_order(service: &Service) -> bool {
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    service.received().into_iter().all(|one| {
        let newest = newest.entry(one.key.unwrap_or_default()).or_default();
        let good = !seen.insert(one.position) || one.position > *newest;
        *newest = one.position.max(*newest);
        good
    })
}

#[test]
fn a_message_that_ends_the_topic_each_time_comes_as_often_as_declared() {
    let (disk, gate) = (Disk::new(), Arc::new(Gate::default()));
    let email = Service::behind(&gate);
    let declared = || file(3, &[("email", 8, &email)]);
    let topic = Running::on(&disk, declared());
    topic.publish("a", "poison");
    topic.publish("a", "behind");
    email.until_received(1);
    drop(topic);
    for deliveries in 2..=3 {
        let topic = Running::on(&disk, declared());
        email.until_received(deliveries);
        drop(topic);
    }
    let topic = Running::on(&disk, declared());
    until("it is dead", || {
        (topic.consumer("email").dead == 1).then_some(())
    });
    let received = email.until_received(4);
    let attempts: Vec<_> = received
        .iter()
        .map(|one| (one.position, one.attempt))
        .collect();
    assert_eq!(attempts, [(1, 1), (1, 2), (1, 3), (2, 1)]);
    let dead = topic.node("GET", "/dead?consumer=email", "").json();
    assert_eq!(dead["messages"][0]["attempts"], 3);
    let error = dead["messages"][0]["error"].as_str().unwrap();
    assert!(error.starts_with("the topic ended before"), "{error}");
    gate.open();
    topic.until_done("email");
}

#[test]
fn who_was_not_there_when_the_topic_ended_has_used_up_nothing() {
    let (disk, nobody) = (Disk::new(), Service::nobody());
    let declared = || file(2, &[("email", 8, &nobody)]);
    for _ in 0..4 {
        let topic = Running::on(&disk, declared());
        if topic.consumer("email").backlog == 0 {
            topic.publish("", "x");
        }
        until("it was tried, and that is stored", || {
            let entry = topic.engine().plan().next_ms;
            let begun = disk_begun(&topic);
            (entry.is_some() && !begun).then_some(())
        });
    }
    let topic = Running::on(&disk, declared());
    let email = Service::at(nobody.address, |_| (200, String::new()));
    assert_eq!(email.until_received(1)[0].attempt, 1);
    topic.until_done("email");
}

/// Whether the file has it that something is with somebody.
fn disk_begun(topic: &Running) -> bool {
    block_on(topic.engine().storage.begun()).unwrap() > 0
}
