//! Pulling with leases.

use std::io::Write as _;
use std::net::TcpStream;

use model::ids::ResourceName;
use serde_json::{Value, json};

use super::support::{Answer, CALLER, Running, block_on, file, until};

fn pull(topic: &Running, asked: Value) -> Vec<Value> {
    let answer = topic.post_json("/pull", asked);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["messages"].as_array().unwrap().clone()
}

fn name(name: &str) -> ResourceName {
    ResourceName::new(name).unwrap()
}

fn leases(messages: &[Value]) -> Value {
    messages
        .iter()
        .map(|message| message["lease"].clone())
        .collect()
}

fn positions(messages: &[Value]) -> Vec<u64> {
    messages
        .iter()
        .map(|message| message["position"].as_u64().unwrap())
        .collect()
}

#[test]
fn who_pulls_has_messages_until_their_leases_end() {
    let topic = Running::start(file(5, &[]));
    topic.publish("", "before");
    assert_eq!(pull(&topic, json!({"consumer": "audit"})), [] as [Value; 0]);
    (0..3).for_each(|turn| {
        topic.publish("", &turn.to_string());
    });
    let asked = json!({"consumer": "audit", "max": 2, "wait_ms": 10_000, "lease_ms": 60_000});
    let first = pull(&topic, asked.clone());
    assert_eq!(positions(&first), [2, 3]);
    assert_eq!(first[0]["event"]["data"], "0");
    assert_eq!(first[0]["attempt"], 1);
    let second = pull(&topic, asked);
    assert_eq!(positions(&second), [4]);
    assert_eq!(topic.consumer("audit").in_flight, 3);
    for messages in [&first, &second] {
        let answer = topic.post_json(
            "/ack",
            json!({"consumer": "audit", "leases": leases(messages)}),
        );
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    assert_eq!(topic.consumer("audit").backlog, 0);
}

#[test]
fn what_does_not_fit_into_an_answer_comes_with_the_next() {
    let topic = Running::start(file(5, &[]));
    pull(&topic, json!({"consumer": "audit"}));
    let body = "x".repeat(900_000);
    (0..8).for_each(|_| {
        topic.publish("", &body);
    });
    let asked = json!({"consumer": "audit", "max": 8, "wait_ms": 10_000});
    let mut all = Vec::new();
    until("all have come", || {
        let some = pull(&topic, asked.clone());
        assert!(some.len() <= 1, "an answer has a bound");
        assert!(some.iter().all(|one| one["attempt"] == 1));
        all.extend(positions(&some));
        (all.len() == 8).then_some(())
    });
    assert_eq!(all, (1..=8).collect::<Vec<u64>>());
}

#[test]
fn a_late_receipt_is_refused_and_the_message_comes_again() {
    let topic = Running::start(file(5, &[]));
    let start =
        json!({"consumer": "audit", "start": "earliest", "lease_ms": 100, "wait_ms": 10_000});
    topic.publish("", "x");
    let first = pull(&topic, start.clone());
    let again = pull(&topic, start);
    assert_eq!(
        (positions(&again), &again[0]["attempt"]),
        (vec![1], &json!(2))
    );
    let late = topic.post_json(
        "/ack",
        json!({"consumer": "audit", "leases": leases(&first)}),
    );
    assert_eq!(
        (late.status, &late.json()["code"]),
        (409, &json!("lease-ran-out"))
    );
    let extended = json!({"consumer": "audit", "leases": leases(&first), "lease_ms": 60_000});
    assert_eq!(topic.post_json("/extend", extended).status, 409);
}

#[test]
fn order_holds_per_key_and_what_is_given_back_comes_first() {
    let topic = Running::start(file(5, &[]));
    pull(&topic, json!({"consumer": "audit"}));
    ["a", "a", "b"].iter().for_each(|key| {
        topic.publish(key, "x");
    });
    let asked = json!({"consumer": "audit", "max": 10, "wait_ms": 10_000});
    let mut first = Vec::new();
    until("both heads are there", || {
        first.extend(pull(&topic, asked.clone()));
        (first.len() == 2).then_some(())
    });
    assert_eq!(positions(&first), [1, 3]);
    let nack = json!({"consumer": "audit", "leases": [first[0]["lease"]]});
    assert_eq!(topic.post_json("/nack", nack).status, 200);
    let again = pull(&topic, asked.clone());
    assert_eq!(
        (positions(&again), &again[0]["attempt"]),
        (vec![1], &json!(2))
    );
    let ack = json!({"consumer": "audit", "leases": leases(&again)});
    assert_eq!(topic.post_json("/ack", ack).status, 200);
    assert_eq!(positions(&pull(&topic, asked)), [2]);
}

#[test]
fn who_may_have_no_more_is_not_woken_for_nothing() {
    let topic = Running::start(file(5, &[]));
    let audit = json!({"consumer": "audit", "max": 256, "wait_ms": 10_000});
    pull(&topic, json!({"consumer": "audit"}));
    let kind = [("content-type", "application/cloudevents-batch+json")];
    for count in [1000, 100] {
        let event = |id| json!({"specversion": "1.0", "id": format!("{count}/{id}"), "source": "/s", "type": "t"});
        let batch = Value::from_iter((0..count).map(event)).to_string();
        assert_eq!(topic.post("/messages", &kind, &batch).status, 200);
    }
    until("it has as many as it may", || {
        pull(&topic, audit.clone());
        (topic.consumer("audit").in_flight == 1024).then_some(())
    });
    let ready = topic.engine().ready(&name("audit")).unwrap();
    let woken = ready.notified();
    tokio::pin!(woken);
    woken.as_mut().enable();
    topic.engine().plan();
    assert!(!woken.as_mut().enable(), "it would ask again at once");
}

/// Tries again where others have all the places.
fn wait(topic: &Running, asked: &Value) -> Vec<Value> {
    let answer = until("there is a place", || {
        let answer = topic.post_json("/pull", asked.clone());
        (answer.status == 200).then_some(answer)
    });
    answer.json()["messages"].as_array().unwrap().clone()
}

#[test]
fn those_who_wait_leave_room_for_others_and_are_told_when_the_topic_ends() {
    let topic = Running::start(file(5, &[]));
    let patient = json!({"consumer": "audit", "wait_ms": 30_000});
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| wait(&topic, &patient)))
            .collect();
        let refused = until("so many wait", || {
            let brief = json!({"consumer": "audit", "wait_ms": 1});
            let answer = topic.post_json("/pull", brief);
            (answer.status != 200).then_some(answer)
        });
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (503, &json!("overloaded"))
        );
        topic.engine().stop();
        until("they are answered", || {
            waiting.iter().all(|one| one.is_finished()).then_some(())
        });
        for one in waiting {
            assert_eq!(one.join().unwrap(), [] as [Value; 0]);
        }
    });
}

#[test]
fn a_pull_consumer_outlives_the_process() {
    let disk = sqlite::testing::Disk::new();
    let topic = Running::on(&disk, file(5, &[]));
    pull(&topic, json!({"consumer": "audit"}));
    drop(topic);
    let topic = Running::on(&disk, file(5, &[]));
    topic.publish("", "while nobody pulled");
    assert_eq!(topic.consumer("audit").backlog, 1);
    assert_eq!(
        positions(&pull(
            &topic,
            json!({"consumer": "audit", "wait_ms": 10_000})
        )),
        [1]
    );
}

#[test]
fn what_can_not_be_pulled_is_refused() {
    let email = super::support::Service::willing();
    let topic = Running::start(file(5, &[("email", 8, &email)]));
    for (asked, status) in [
        (json!({"consumer": "email"}), 409),
        (json!({"consumer": "No Name"}), 400),
        (json!({"consumer": "a", "max": 100_000}), 400),
        (json!({"consumer": "a", "lease_ms": 1}), 400),
        (json!({}), 400),
    ] {
        assert_eq!(
            topic.post_json("/pull", asked.clone()).status,
            status,
            "{asked}"
        );
    }
}

/// Of a topic that `reports` and `audit` may pull from, asked by one service.
fn ask_as(topic: &Running, caller: Option<&str>, path: &str, asked: &Value) -> Answer {
    let caller = caller.map(|caller| (model::traffic::CALLER, caller));
    let headers: Vec<_> = caller.into_iter().collect();
    topic.post_as_it_is(path, &headers, &asked.to_string())
}

fn file_for(consumers: &[&str]) -> model::state::EngineFile {
    let mut file = file(5, &[]);
    file.settings.consumers = consumers.iter().map(|one| name(one)).collect();
    file
}

#[test]
fn only_who_declares_it_consumes_and_all_who_call_publish() {
    let topic = Running::start(file_for(&["reports"]));
    let asked = json!({"consumer": "reports", "leases": []});
    for (caller, says) in [
        (
            Some("shop/web"),
            "service web does not declare needs: [orders: consume]",
        ),
        (Some("other/reports"), "service reports does not declare"),
        (Some("reports"), "no proxy says which service calls"),
        (None, "no proxy says which service calls"),
    ] {
        for path in ["/pull", "/ack", "/nack", "/extend"] {
            let answer = ask_as(&topic, caller, path, &asked);
            assert_eq!(answer.status, 403, "{caller:?} {path}: {}", answer.text);
            assert!(answer.text.contains(says), "{}", answer.text);
        }
        let answer = ask_as(&topic, caller, "/messages", &json!({"x": 1}));
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let pull = json!({"consumer": "mine", "start": "earliest", "wait_ms": 10_000});
    assert_eq!(
        ask_as(&topic, Some("shop/reports"), "/pull", &pull).status,
        200
    );
    // Declared and taken back as it runs.
    assert_eq!(
        ask_as(&topic, Some("shop/audit"), "/pull", &asked_by("audit")).status,
        403
    );
    topic.told(file_for(&["audit"]));
    assert_eq!(
        ask_as(&topic, Some("shop/audit"), "/pull", &asked_by("audit")).status,
        200
    );
    assert_eq!(
        ask_as(&topic, Some("shop/reports"), "/pull", &pull).status,
        403
    );
}

fn asked_by(consumer: &str) -> Value {
    json!({"consumer": consumer})
}

#[test]
fn a_consumer_is_the_service_s_that_made_it() {
    let disk = sqlite::testing::Disk::new();
    let both = || file_for(&["reports", "audit"]);
    let (reports, audit) = (Some("shop/reports"), Some("shop/audit"));
    for turn in 0..2 {
        // The second finds it on the disk.
        let topic = Running::on(&disk, both());
        if turn == 0 {
            let made = ask_as(&topic, reports, "/pull", &asked_by("mine"));
            assert_eq!(made.status, 200, "{}", made.text);
            topic.publish("", "x");
        }
        assert_eq!(topic.consumer("mine").owner, Some(name("reports")));
        for path in ["/pull", "/ack", "/nack", "/extend"] {
            let asked = match path {
                "/pull" => asked_by("mine"),
                _ => json!({"consumer": "mine", "leases": []}),
            };
            let answer = ask_as(&topic, audit, path, &asked);
            assert_eq!(answer.status, 403, "{path}: {}", answer.text);
            let why = "the consumer of service reports";
            assert!(answer.text.contains(why), "{}", answer.text);
        }
    }
    // Whose service consumes no more, somebody else goes on with.
    let topic = Running::on(&disk, file_for(&["audit"]));
    let pulled = ask_as(
        &topic,
        audit,
        "/pull",
        &json!({"consumer": "mine", "wait_ms": 10_000}),
    );
    assert_eq!(pulled.json()["messages"].as_array().unwrap().len(), 1);
    assert_eq!(topic.consumer("mine").owner, Some(name("audit")));
}

#[test]
fn a_service_has_a_share_of_the_consumers() {
    let all: Vec<String> = (0..16).map(|number| format!("s{number}")).collect();
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    for (services, share) in [(&names[..1], 32), (&names[..16], 16)] {
        let topic = Running::start(file_for(services));
        for number in 0..=share {
            let consumer = asked_by(&format!("c{number}"));
            let answer = ask_as(&topic, Some("shop/s0"), "/pull", &consumer);
            let expected = if number < share { 200 } else { 409 };
            assert_eq!(answer.status, expected, "{number}: {}", answer.text);
            assert_eq!(answer.text.contains("its share"), number == share);
        }
        if let Some(other) = services.get(1) {
            let caller = format!("shop/{other}");
            let answer = ask_as(&topic, Some(&caller), "/pull", &asked_by("other"));
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    }
}

fn in_flight(topic: &Running) -> u32 {
    topic.consumer("audit").in_flight
}

#[test]
fn who_leaves_before_the_answer_is_sent_has_failed_at_nothing() {
    let topic = Running::start(file(1, &[]));
    pull(&topic, json!({"consumer": "audit"}));
    topic.publish("", "x");
    let asked = json!({"consumer": "audit", "lease_ms": 60_000, "wait_ms": 5_000});
    let asked = || crate::topic::http::parse(&asked.to_string().into()).unwrap();
    // The answer stands, and the connection is gone.
    let unsent = block_on(crate::topic::pull::pull(
        topic.engine().clone(),
        name(CALLER),
        asked(),
    ));
    assert_eq!(in_flight(&topic), 1);
    drop(unsent);
    assert_eq!(in_flight(&topic), 0);
    // It goes while the answer is made.
    block_on(async {
        let mut pulling = std::pin::pin!(crate::topic::pull::pull(
            topic.engine().clone(),
            name(CALLER),
            asked()
        ));
        let pending = std::future::poll_fn(|context| {
            std::task::Poll::Ready(pulling.as_mut().poll(context).is_pending())
        });
        assert!(pending.await, "the attempt is not written down yet");
    });
    assert_eq!(in_flight(&topic), 0);
    let got = pull(&topic, json!({"consumer": "audit", "wait_ms": 10_000}));
    assert_eq!((positions(&got), &got[0]["attempt"]), (vec![1], &json!(1)));
}

#[test]
fn who_leaves_while_it_waits_gets_nothing() {
    let topic = Running::start(file(1, &[]));
    pull(&topic, json!({"consumer": "audit"}));
    let body = json!({"consumer": "audit", "lease_ms": 60_000, "wait_ms": 30_000}).to_string();
    let request = format!(
        "POST /pull HTTP/1.1\r\nhost: topic\r\n{}: shop/{CALLER}\r\ncontent-length: {}\r\n\r\n{body}",
        model::traffic::CALLER,
        body.len()
    );
    let mut waiting = TcpStream::connect(topic.address).unwrap();
    waiting.write_all(request.as_bytes()).unwrap();
    let places = || topic.engine().waiting.available_permits();
    let all = 8;
    until("it waits", || (places() < all).then_some(()));
    drop(waiting);
    until("it is known to be gone", || (places() == all).then_some(()));
    topic.publish("", "x");
    let got = pull(&topic, json!({"consumer": "audit", "wait_ms": 10_000}));
    assert_eq!((positions(&got), &got[0]["attempt"]), (vec![1], &json!(1)));
}
