//! Publishing, and deliveries to services.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::support::{Gate, PATIENCE, Received, Running, Service, file, until};

#[test]
fn a_message_comes_to_every_consumer_as_a_cloudevent() {
    let (email, shipping) = (Service::willing(), Service::willing());
    let topic = Running::start(file(5, &[("email", 8, &email), ("shipping", 8, &shipping)]));
    let headers = [
        ("content-type", "application/json"),
        ("ce-id", "o-1"),
        ("ce-source", "/orders"),
        ("ce-type", "order.placed"),
        ("ce-partitionkey", "o-1"),
    ];
    let answer = topic.post("/messages", &headers, r#"{"total":5}"#);
    assert_eq!(
        (answer.status, &*answer.text),
        (200, r#"{"positions":[1],"duplicates":0}"#)
    );
    for service in [&email, &shipping] {
        let received = service.until_received(1);
        assert_eq!(received[0].body, r#"{"total":5}"#);
        for (name, value) in [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "o-1"),
            ("ce-source", "/orders"),
            ("ce-type", "order.placed"),
            ("ce-partitionkey", "o-1"),
            ("idempotency-key", "orders/1"),
        ] {
            assert_eq!(received[0].headers[name], value, "{name}");
        }
    }
    topic.until_done("email");
    topic.until_done("shipping");
    assert_eq!(topic.node("GET", "/health", "").status, 200);
}

#[test]
fn a_duplicate_is_acknowledged_with_its_first_position_and_stored_once() {
    let email = Service::willing();
    let disk = sqlite::testing::Disk::new();
    let topic = Running::on(&disk, file(5, &[("email", 8, &email)]));
    let publish = |topic: &Running| {
        topic
            .post("/messages", &[("idempotency-key", "k-1")], "x")
            .text
    };
    assert_eq!(publish(&topic), r#"{"positions":[1],"duplicates":0}"#);
    topic.publish("", "between");
    assert_eq!(publish(&topic), r#"{"positions":[1],"duplicates":1}"#);
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t"});
    let batch = json!([event("a"), event("b"), event("a")]);
    let kind = [("content-type", "application/cloudevents-batch+json")];
    let answer = topic.post("/messages", &kind, &batch.to_string());
    assert_eq!(answer.text, r#"{"positions":[3,4,3],"duplicates":1}"#);
    topic.until_done("email");
    drop(topic);
    let topic = Running::on(&disk, file(5, &[("email", 8, &email)]));
    assert_eq!(
        publish(&topic),
        r#"{"positions":[1],"duplicates":1}"#,
        "after a restart too"
    );
    assert_eq!(topic.publish("", "next"), 5);
    topic.until_done("email");
    let mut positions = email.positions();
    positions.dedup();
    assert_eq!(positions, [1, 2, 3, 4, 5]);
}

#[test]
fn what_two_publishers_number_alike_are_two_messages() {
    let email = Service::start(|message| match &*message.body {
        "of till" => (422, "no".to_owned()),
        _ => (200, String::new()),
    });
    let topic = Running::start(file(1, &[("email", 8, &email)]));
    let post = |service: &str, headers: &[(&str, &str)], body: &str| {
        let caller = (model::traffic::CALLER, service);
        let headers = [&[caller][..], headers].concat();
        topic.post_as_it_is("/messages", &headers, body).text
    };
    let first = |position: u64| format!(r#"{{"positions":[{position}],"duplicates":0}}"#);
    let again = |position: u64| format!(r#"{{"positions":[{position}],"duplicates":1}}"#);
    let id = [("ce-id", "1")];
    assert_eq!(post("shop/till", &id, "of till"), first(1));
    assert_eq!(post("shop/web", &id, "of web"), first(2));
    assert_eq!(post("store/till", &id, "of another till"), first(3));
    // Also where all of them say that it is of one source, by a key, and in a batch.
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t"});
    let batch = json!([event("1"), event("2")]).to_string();
    let kind = [("content-type", "application/cloudevents-batch+json")];
    let both = r#"{"positions":[4,5],"duplicates":0}"#;
    assert_eq!(post("shop/till", &kind, &batch), both);
    let both = r#"{"positions":[6,7],"duplicates":0}"#;
    assert_eq!(post("shop/web", &kind, &batch), both);
    let key = [("idempotency-key", "1")];
    assert_eq!(post("shop/till", &key, "x"), first(8));
    assert_eq!(post("shop/web", &key, "x"), first(9));
    // What a person publishes hides nobody's message, and nobody hides it.
    let by_hand = topic.node("POST", "/messages", "x").text;
    assert_eq!(by_hand, first(10));
    // A dead letter, and one that was redriven, is still that of its publisher.
    until("it is dead", || {
        (topic.consumer("email").dead == 1).then_some(())
    });
    assert_eq!(post("shop/till", &id, "of till"), again(1));
    assert_eq!(post("shop/cart", &id, "of cart"), first(11));
    assert_eq!(
        topic.node("POST", "/redrive", "{}").text,
        r#"{"redriven":1}"#
    );
    assert_eq!(post("shop/till", &id, "of till"), again(1));
    assert_eq!(post("shop/web", &id, "of web"), again(2));
    let sources: Vec<String> = email
        .until_received(12)
        .iter()
        .filter(|one| one.headers["ce-id"] == "1" && one.headers["ce-source"] != "/s")
        .map(|one| format!("{} {}", one.headers["ce-source"], one.body))
        .collect();
    for expected in [
        "/projects/shop/services/till of till",
        "/projects/shop/services/web of web",
        "/projects/store/services/till of another till",
        "/projects/shop/services/cart of cart",
    ] {
        assert!(sources.iter().any(|one| one == expected), "{sources:?}");
    }
}

#[test]
fn a_poisoned_message_dies_while_others_flow_and_is_redriven_when_all_is_mended() {
    let mended = Arc::new(AtomicBool::new(false));
    let last_attempt = Arc::new(Gate::default());
    let (well, held) = (mended.clone(), last_attempt.clone());
    let email = Service::start(move |message| match &*message.body {
        "poison" if !well.load(Ordering::SeqCst) => {
            if message.attempt == 3 {
                held.pass();
            }
            (422, "can't read it".to_owned())
        }
        _ => (200, String::new()),
    });
    let topic = Running::start(file(3, &[("email", 8, &email)]));
    let poison = topic.publish("a", "poison");
    let behind = topic.publish("a", "behind");
    let others: Vec<u64> = (0..20).map(|_| topic.publish("b", "fine")).collect();
    until("other keys do not wait for it", || {
        let positions = email.positions();
        others
            .iter()
            .all(|one| positions.contains(one))
            .then_some(())
    });
    assert_eq!(topic.consumer("email").dead, 0);
    last_attempt.open();
    let died = until("it is dead", || {
        let status = topic.consumer("email");
        (status.dead == 1 && status.backlog == 0).then_some(status)
    });
    assert_eq!(died.retrying, 0);
    let received = email.received();
    let of = |position| received.iter().filter(move |one| one.position == position);
    let attempts: Vec<u32> = of(poison).map(|one| one.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let place = |position| received.iter().rposition(|one| one.position == position);
    assert!(place(behind) > place(poison), "its key waits for it");

    let dead = topic.node("GET", "/dead?consumer=email", "").json();
    let letter = &dead["messages"][0];
    assert_eq!(letter["position"], poison);
    assert_eq!(letter["attempts"], 3);
    assert_eq!(letter["error"], "422 Unprocessable Entity: can't read it");
    assert_eq!(letter["event"]["data"], "poison");

    mended.store(true, Ordering::SeqCst);
    let redriven = topic.node("POST", "/redrive", r#"{"consumer":"email"}"#);
    assert_eq!(redriven.text, r#"{"redriven":1}"#);
    topic.until_done("email");
    assert_eq!(topic.consumer("email").dead, 0);
    let last = email.received().pop().unwrap();
    assert_eq!((last.position, last.attempt), (poison, 1));
    assert_eq!(topic.node("GET", "/dead", "").text, r#"{"messages":[]}"#);
}

#[test]
fn what_the_topic_numbers_is_never_taken_for_what_a_publisher_did() {
    let email = Service::willing();
    let topic = Running::start(file(5, &[("email", 8, &email)]));
    let publish = |headers: &[(&str, &str)]| topic.post("/messages", headers, "x").text;
    assert!(publish(&[("ce-id", "2")]).contains("[1]"));
    assert!(publish(&[]).contains("[2]"));
    let received = email.until_received(2);
    let id = |one: &Received| {
        (
            one.headers["ce-source"].clone(),
            one.headers["ce-id"].clone(),
        )
    };
    assert_ne!(id(&received[0]), id(&received[1]));
}

#[test]
fn a_page_of_dead_letters_or_messages_has_a_bound() {
    let email = Service::start(|_| (500, String::new()));
    let topic = Running::start(file(1, &[("email", 8, &email)]));
    let body = "x".repeat(400_000);
    (0..6).for_each(|_| {
        topic.publish("", &body);
    });
    until("all are dead", || {
        (topic.consumer("email").dead == 6).then_some(())
    });
    for path in ["/dead?consumer=email&limit=100", "/messages?limit=100"] {
        let (mut all, mut after) = (Vec::new(), 0);
        while all.len() < 6 {
            let page = topic.node("GET", &format!("{path}&after={after}"), "");
            assert!(page.text.len() < 1 << 20, "{path}");
            let messages = page.json()["messages"].as_array().unwrap().clone();
            all.extend(messages.iter().map(|one| one["position"].as_u64().unwrap()));
            after = *all.last().unwrap();
        }
        assert_eq!(all, [1, 2, 3, 4, 5, 6], "{path}");
    }
}

#[test]
fn a_discarded_letter_is_gone() {
    let email = Service::start(|_| (500, String::new()));
    let topic = Running::start(file(1, &[("email", 8, &email)]));
    let (first, second) = (topic.publish("", "x"), topic.publish("", "y"));
    until("both are dead", || {
        (topic.consumer("email").dead == 2).then_some(())
    });
    let chosen = json!({"positions": [first]}).to_string();
    assert_eq!(
        topic.node("POST", "/discard", &chosen).text,
        r#"{"discarded":1}"#
    );
    let dead = topic.node("GET", "/dead", "").json();
    assert_eq!(dead["messages"].as_array().unwrap().len(), 1);
    assert_eq!(dead["messages"][0]["position"], second);
    assert_eq!(topic.consumer("email").dead, 1);
}

#[test]
fn a_slow_consumer_slows_nobody_else() {
    let gate = Arc::new(Gate::default());
    let slow = Service::behind(&gate);
    let quick = Service::willing();
    let topic = Running::start(file(50, &[("slow", 2, &slow), ("quick", 2, &quick)]));
    (0..100).for_each(|_| {
        topic.publish("", "x");
    });
    topic.until_done("quick");
    assert!(slow.received().len() <= 6, "two on their way at a time");
    assert!(topic.consumer("slow").backlog == 100);
    gate.open();
    topic.until_done("slow");
}

#[test]
fn a_consumer_that_is_away_burns_no_attempts() {
    let nobody = Service::nobody();
    let topic = Running::start(file(1, &[("email", 8, &nobody)]));
    (0..5).for_each(|_| {
        topic.publish("", "x");
    });
    until("it was tried", || {
        let status = topic.consumer("email");
        (status.backlog == 5 && status.in_flight == 0).then_some(())
    });
    assert_eq!(topic.consumer("email").dead, 0);
    let absent = r#"{"type":"https://mainland.dev/problems/no-endpoint","status":503}"#;
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = ready.clone();
    let email = Service::at(nobody.address, move |_| {
        match is_ready.load(Ordering::SeqCst) {
            true => (200, String::new()),
            false => (503, absent.to_owned()),
        }
    });
    email.until_received(2);
    ready.store(true, Ordering::SeqCst);
    topic.until_done("email");
    assert!(email.received().iter().all(|one| one.attempt == 1));
    assert_eq!(topic.consumer("email").dead, 0);
}

#[test]
fn what_a_slow_consumer_has_is_not_kept_in_memory_for_it() {
    let gate = Arc::new(Gate::default());
    let slow = Service::behind(&gate);
    let topic = Running::start(file(5, &[("slow", 8, &slow)]));
    let position = topic.publish("", "x");
    slow.until_received(1);
    let message = topic.engine().storage.hub().get(position).unwrap();
    until(
        "only what was just published is there, and this test",
        || (Arc::strong_count(&message.event) == 2).then_some(()),
    );
    assert_eq!(topic.consumer("slow").in_flight, 1);
    gate.open();
}

#[test]
fn a_consumer_that_was_away_and_vanished_is_not_waited_for() {
    let absent = r#"{"type":"https://mainland.dev/problems/no-endpoint","status":503}"#;
    let nobody = Service::start(move |_| (503, absent.to_owned()));
    let topic = Running::start(file(5, &[("email", 8, &nobody)]));
    topic.publish("", "x");
    nobody.until_received(2);
    topic.told(file(5, &[]));
    until("nothing is on its way", || {
        (topic.consumer("email").in_flight == 0).then_some(())
    });
    assert_eq!(topic.engine().plan().next_ms, None);
    assert_eq!(topic.consumer("email").backlog, 1, "it is kept for it");
}

#[test]
fn order_holds_per_key_while_deliveries_fail() {
    let email =
        Service::start(
            |message| match (message.position + u64::from(message.attempt)) % 3 {
                0 => (500, String::new()),
                _ => (200, String::new()),
            },
        );
    let topic = Running::start(file(20, &[("email", 16, &email)]));
    let keys = ["a", "b", "c", "d"];
    for turn in 0..25 {
        keys.iter().for_each(|key| {
            topic.publish(key, &turn.to_string());
        });
    }
    topic.until_done("email");
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    for one in email.received() {
        let newest = newest.entry(one.key.unwrap()).or_default();
        assert!(one.position >= *newest, "{} after {newest}", one.position);
        *newest = one.position;
    }
    let mut positions = email.positions();
    positions.dedup();
    assert_eq!(positions, (1..=100).collect::<Vec<u64>>());
}

#[test]
fn a_new_consumer_begins_with_what_comes_and_one_that_vanished_goes_on() {
    let (email, late) = (Service::willing(), Service::willing());
    let topic = Running::start(file(5, &[("email", 8, &email)]));
    topic.publish("", "1");
    topic.until_done("email");
    topic.told(file(5, &[("late", 8, &late)]));
    topic.publish("", "2");
    topic.publish("", "3");
    late.until_received(2);
    assert_eq!((late.positions(), email.positions()), (vec![2, 3], vec![1]));
    assert_eq!(
        topic.consumer("email").backlog,
        2,
        "what it has not done is kept"
    );
    topic.told(file(5, &[("email", 8, &email)]));
    email.until_received(3);
    assert_eq!(email.positions(), [1, 2, 3]);
}

#[test]
fn a_consumer_that_is_far_behind_reads_from_the_disk() {
    let gate = Arc::new(Gate::default());
    let email = Service::behind(&gate);
    let topic = Running::start(file(50, &[("email", 32, &email)]));
    let body = "x".repeat(100_000);
    (0..60).for_each(|_| {
        topic.publish("", &body);
    });
    gate.open();
    topic.until_done("email");
    let mut positions = email.positions();
    positions.dedup();
    assert_eq!(positions, (1..=60).collect::<Vec<u64>>());
    assert!(email.received().iter().all(|one| one.body.len() == 100_000));
}

#[test]
fn what_is_too_large_or_unknown_is_refused_clearly() {
    let topic = Running::start(file(5, &[]));
    let large = "x".repeat((1 << 20) + 1);
    let answer = topic.post("/messages", &[], &large);
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (413, &json!("too-large"))
    );
    let answer = topic.post("/elsewhere", &[], "");
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (404, &json!("not-found"))
    );
}

#[test]
fn who_sends_too_much_reads_that_it_is_too_much() {
    let topic = Running::start(file(5, &[]));
    let size = 24 << 20;
    let body = vec![b'x'; size];
    let chunked = [format!("{size:x}\r\n").into_bytes(), body.clone()].concat();
    for (length, body) in [
        (format!("content-length: {size}"), body),
        ("transfer-encoding: chunked".to_owned(), chunked),
    ] {
        let mut stream = TcpStream::connect(topic.address).unwrap();
        let head = format!("POST /messages HTTP/1.1\r\nhost: topic\r\n{length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // Whoever reads only once everything is sent.
        stream.write_all(&body).expect("it may send all of it");
        let mut answer = String::new();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413"), "{length}: {answer}");
    }
}

#[test]
fn what_breaks_off_is_not_stored_nor_its_key_taken() {
    let topic = Running::start(file(5, &[]));
    let head = "POST /messages HTTP/1.1\r\nhost: topic\r\nidempotency-key: k\r\n";
    let chunks = format!("{head}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    for cut in [
        format!("{head}content-length: 9\r\n\r\nabc"),
        chunks.clone(),
        format!("{chunks}5\r\nab"),
        format!("{chunks}nonsense\r\n"),
        format!("{chunks}0\r\n"),
    ] {
        for reset in [false, true] {
            let mut stream = TcpStream::connect(topic.address).unwrap();
            stream.write_all(cut.as_bytes()).unwrap();
            if reset {
                let linger = Some(std::time::Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
                continue;
            }
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an end");
            assert!(!answer.starts_with("HTTP/1.1 2"), "{cut}: {answer}");
        }
    }
    let whole = topic.post("/messages", &[("idempotency-key", "k")], "abcdef");
    assert_eq!(whole.text, r#"{"positions":[1],"duplicates":0}"#);
}

#[test]
fn who_says_nothing_more_is_not_waited_for() {
    let topic = Running::start(file(5, &[]));
    for begun in ["", "POST /messages HTTP/1.1\r\nhost: "] {
        let mut stream = TcpStream::connect(topic.address).unwrap();
        stream.write_all(begun.as_bytes()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an end");
    }
}

/// As many programs send what they publish: by chunks, without its length.
#[test]
fn bodies_without_a_length_wait_for_none_that_does_not_come() {
    let topic = Running::start(file(5, &[]));
    let caller = "mainland-caller: shop/web\r\nconnection: close\r\n";
    let head = format!(
        "POST /messages HTTP/1.1\r\nhost: topic\r\n{caller}transfer-encoding: chunked\r\n\r\n"
    );
    let begin = || {
        let mut stream = TcpStream::connect(topic.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    // Of the same service, on bad paths.
    let stalled: Vec<_> = (0..8).map(|_| begin()).collect();
    let began = std::time::Instant::now();
    for size in [200, 100_000, 1 << 20] {
        let mut stream = begin();
        let body = "x".repeat(size);
        let chunk = format!("{size:x}\r\n{body}\r\n0\r\n\r\n");
        stream.write_all(chunk.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{size}: {answer}");
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(10));
    drop(stalled);
}

#[test]
fn small_bodies_do_not_wait_for_large_ones_that_do_not_come() {
    let topic = Running::start(file(5, &[]));
    // Of several callers: one alone has a quarter of the room.
    let slow = |number: usize| {
        let mut stream = TcpStream::connect(topic.address).unwrap();
        let head = format!(
            "POST /messages HTTP/1.1\r\nhost: topic\r\nmainland-caller: shop/slow-{number}\r\nexpect: 100-continue\r\ncontent-length: 1048576\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let slow: Vec<TcpStream> = (0..12).map(slow).collect();
    let is_asked = |mut stream: &TcpStream| {
        let mut answer = [0; 25];
        stream.set_nonblocking(true).unwrap();
        let read = stream.read(&mut answer);
        read.is_ok_and(|read| answer[..read].starts_with(b"HTTP/1.1 100"))
    };
    let mut asked = 0;
    until(
        "as many as there is room for, which is 9 MiB, are asked for their bodies",
        || {
            asked += slow.iter().filter(|stream| is_asked(stream)).count();
            (asked == 9).then_some(())
        },
    );
    topic.publish("", "small");
    let is_answered = |mut stream: &TcpStream| stream.read(&mut [0]).is_ok();
    let answers = slow.iter().filter(|stream| is_answered(stream));
    assert_eq!(answers.count(), 0, "they still have time");
}

#[test]
fn messages_can_be_looked_at() {
    let topic = Running::start(file(5, &[]));
    (0..3).for_each(|turn| {
        topic.publish("k", &turn.to_string());
    });
    let page = topic.node("GET", "/messages?after=1&limit=1", "").json();
    let messages = page["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["position"], 2);
    assert_eq!(messages[0]["event"]["data"], "1");
    assert_eq!(messages[0]["event"]["partitionkey"], "k");
    let published = topic.node("POST", "/messages", "by hand");
    assert_eq!(published.text, r#"{"positions":[4],"duplicates":0}"#);
}
