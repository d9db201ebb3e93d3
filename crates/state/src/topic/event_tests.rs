//! Tables of what is taken as an event, and how it goes out.

use std::sync::Arc;

use http::header::HeaderName;
use serde_json::json;

use super::*;

const SOURCE: &str = "/projects/shop/topics/orders";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::try_from(*value).unwrap(),
        )
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter().map(pair) {
        headers.append(name, value);
    }
    headers
}

fn read(pairs: &[(&'static str, &str)], body: &str) -> Result<Vec<Event>, Problem> {
    read_of(Some("shop/till"), pairs, body)
}

fn read_of(
    service: Option<&str>,
    pairs: &[(&'static str, &str)],
    body: &str,
) -> Result<Vec<Event>, Problem> {
    let service: Option<ResourceId> = service.map(|id| id.parse().unwrap());
    let publisher = publisher(service.as_ref());
    from_request(&headers(pairs), Bytes::from(body.to_owned()), &publisher, 5)
}

fn publisher(service: Option<&ResourceId>) -> Publisher<'_> {
    Publisher {
        topic: SOURCE,
        service,
        has_unowned: true,
    }
}

/// As one event in the JSON format, with what each must have.
fn whole(members: &str) -> String {
    let rest = members.trim_start_matches('{');
    let comma = if rest == "}" { "" } else { "," };
    format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{comma}{rest}"#)
}

fn message(event: Event) -> Message {
    Message {
        position: 7,
        event: Arc::new(event),
    }
}

#[test]
fn a_body_with_a_content_type_is_an_event() {
    let events = read(&[("content-type", "text/plain; charset=utf-8")], "hello").unwrap();
    let expected = Event {
        at_ms: 5,
        content_type: Some("text/plain; charset=utf-8".to_owned()),
        data: "hello".into(),
        ..Event::default()
    };
    assert_eq!(events, [expected]);
}

#[test]
fn binary_structured_and_batch_say_the_same() {
    let binary = read(
        &[
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/till"),
            ("ce-type", "sold"),
            ("ce-subject", "caf%C3%A9%20au%20lait"),
            ("ce-partitionkey", "table-4"),
            ("content-type", "application/json"),
        ],
        r#"{"n":1}"#,
    );
    let object = r#"{"specversion":"1.0","id":"1","source":"/till","type":"sold","subject":"café au lait","partitionkey":"table-4","data":{"n":1}}"#;
    let structured = read(
        &[(
            "content-type",
            "application/cloudevents+json; charset=utf-8",
        )],
        object,
    );
    let batch = read(
        &[("content-type", "application/cloudevents-batch+json")],
        &format!("[{object}]"),
    );
    let binary = binary.unwrap();
    assert_eq!(binary[0].dedup.as_deref(), Some("\nshop/till\n/till\n1"));
    assert_eq!(binary[0].key.as_deref(), Some("table-4"));
    assert_eq!(binary, structured.unwrap());
    assert_eq!(binary, batch.unwrap());
}

#[test]
fn data_is_bytes_text_or_json() {
    for (event, data, content_type) in [
        (
            json!({"data": {"a": 1}}),
            &br#"{"a":1}"#[..],
            Some("application/json"),
        ),
        (json!({"data": "x"}), br#""x""#, Some("application/json")),
        (
            json!({"data": "x", "datacontenttype": "text/plain"}),
            b"x",
            Some("text/plain"),
        ),
        (json!({"data_base64": "AP8="}), b"\x00\xff", None),
        (json!({}), b"", None),
    ] {
        let events = read(&[("content-type", STRUCTURED)], &whole(&event.to_string())).unwrap();
        assert_eq!(events[0].data, data, "{event}");
        assert_eq!(events[0].content_type.as_deref(), content_type, "{event}");
    }
}

#[test]
fn data_keeps_each_digit() {
    let event = &*whole(r#"{"data": {"price": 12.10, "n": 123456789012345678901234567890}}"#);
    let data = r#"{"price": 12.10, "n": 123456789012345678901234567890}"#;
    let one = read(&[("content-type", STRUCTURED)], event).unwrap();
    let batch = read(&[("content-type", BATCH)], &format!("[{event}]")).unwrap();
    assert_eq!(
        (&*one[0].data, &*batch[0].data),
        (data.as_bytes(), data.as_bytes())
    );
}

#[test]
fn what_is_one_of_a_kind_is_known_by_its_publisher_and_id_or_key() {
    let (till, store) = (Some("shop/till"), Some("store/till"));
    let (id, sourced) = (("ce-id", "1"), ("ce-source", "/s"));
    let key = ("idempotency-key", "k");
    let own = "/projects/shop/services/till";
    for (service, pairs, dedup, before) in [
        (
            till,
            &[id][..],
            &*format!("\nshop/till\n{own}\n1"),
            &*format!("{SOURCE}\n1"),
        ),
        (till, &[id, sourced], "\nshop/till\n/s\n1", "/s\n1"),
        (store, &[id, sourced], "\nstore/till\n/s\n1", "/s\n1"),
        (None, &[id, sourced], "\n\n/s\n1", "/s\n1"),
        (
            None,
            &[id],
            &format!("\n\n{SOURCE}\n1"),
            &format!("{SOURCE}\n1"),
        ),
        (till, &[key], "\nshop/till\nk", "k"),
        (store, &[key], "\nstore/till\nk", "k"),
        (till, &[key, id, sourced], "\nshop/till\n/s\n1", "/s\n1"),
    ] {
        let event = &read_of(service, pairs, "").unwrap()[0];
        assert_eq!(event.dedup.as_deref(), Some(dedup), "{pairs:?}");
        assert_eq!(event.dedup_before.as_deref(), Some(before), "{pairs:?}");
    }
    assert_eq!(read(&[], "").unwrap()[0].dedup, None);
    let batch = [("content-type", BATCH), key];
    let events = read(&batch, &format!("[{}]", whole("{}"))).unwrap();
    assert_eq!(events[0].dedup.as_deref(), Some("\nshop/till\n/s\n1"));
}

#[test]
fn an_id_without_a_source_is_of_its_publisher() {
    for (service, source) in [
        (Some("shop/till"), "/projects/shop/services/till"),
        (None, SOURCE),
    ] {
        let events = read_of(service, &[("ce-id", "1")], "").unwrap();
        let text = message(events[0].clone()).to_json(SOURCE);
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&event["id"], &event["source"]),
            (&json!("1"), &json!(source))
        );
    }
    let event = message(read(&[], "").unwrap()[0].clone()).to_json(SOURCE);
    let event: Value = serde_json::from_str(&event).unwrap();
    assert_eq!(
        event["source"], SOURCE,
        "an id of the topic's is of the topic"
    );
}

#[test]
fn keys_that_are_no_text_are_not_taken_for_each_other() {
    for bytes in [&b"caf\xe9"[..], b"caf\xe8"] {
        let key = HeaderValue::from_bytes(bytes).unwrap();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("idempotency-key"), key)]);
        let read = from_request(&headers, Bytes::new(), &publisher(None), 5);
        assert_eq!(read.unwrap_err().code, "bad-request");
    }
}

#[test]
fn media_types_are_the_same_in_upper_and_lower_case() {
    let structured = [("content-type", "Application/CloudEvents+JSON;charset=UTF-8")];
    let events = read(
        &structured,
        &whole(r#"{"data":"x","datacontenttype":"application/JSON"}"#),
    );
    assert_eq!(events.unwrap()[0].data, r#""x""#);
    let batch = [("content-type", "application/cloudevents-batch+JSON")];
    let two = format!("[{},{}]", whole("{}"), whole("{}"));
    assert_eq!(read(&batch, &two).unwrap().len(), 2);
}

#[test]
fn a_content_type_is_said_once() {
    let named = ("ce-datacontenttype", "text/plain");
    for (pairs, expected) in [
        (&[named][..], "text/plain"),
        (
            &[named, ("content-type", "application/json")],
            "application/json",
        ),
    ] {
        let event = read(pairs, "1").unwrap().remove(0);
        assert_eq!(event.content_type.as_deref(), Some(expected));
        let text = message(event).to_json(SOURCE);
        assert_eq!(text.matches("datacontenttype").count(), 1, "{text}");
    }
}

#[test]
fn values_are_decoded_once_and_otherwise_left_alone() {
    for (value, expected) in [
        ("a%20b%25", "a b%"),
        ("100%", "100%"),
        ("5%+5", "5%+5"),
        ("%c3%A9", "é"),
        ("%zz", "%zz"),
        (
            r#""quoted \"so\" and a \\%20b""#,
            r#"quoted "so" and a \ b"#,
        ),
        (r#""""#, ""),
        ("\"", "\""),
    ] {
        let events = read(&[("ce-subject", value)], "").unwrap();
        assert_eq!(events[0].attributes["subject"], expected, "{value}");
    }
}

#[test]
fn what_is_no_event_is_refused_with_its_reason() {
    let many = serde_json::to_string(&vec![json!({}); BATCH_MAX + 1]).unwrap();
    let with = |members: &str| whole(members);
    let long = "x".repeat(KEY_BYTES_MAX + 1);
    let crowded: BTreeMap<String, u8> = (0..65).map(|n| (format!("a{n}"), 1)).collect();
    let crowded = whole(&serde_json::to_string(&crowded).unwrap());
    for (pairs, body, status, detail) in [
        (
            &[("ce-specversion", "0.3")][..],
            "",
            400,
            "specversion is 0.3",
        ),
        (
            &[("ce-my-own", "1")],
            "",
            400,
            "`my-own` is not of lower-case",
        ),
        (
            &[("ce-partitionkey", long.as_str())],
            "",
            400,
            "longer than 512",
        ),
        (&[("ce-id", "")], "", 400, "`id` is empty"),
        (
            &[("ce-partitionkey", "")],
            "",
            400,
            "`partitionkey` is empty",
        ),
        (&[("ce-id", "1%0A2")], "", 400, "control character"),
        (
            &[("content-type", STRUCTURED)],
            r#"{"specversion":"1.0","type":"t","source":"a\nb","id":"1"}"#,
            400,
            "control character",
        ),
        (&[("ce-subject", "a%0Ab")], "", 400, "control character"),
        (&[("ce-own", "%00")], "", 400, "control character"),
        (&[("ce-partitionkey", "%7F")], "", 400, "control character"),
        (&[("ce-source", "a%20b")], "", 400, "no URI"),
        (&[("ce-dataschema", "{x}")], "", 400, "no URI"),
        (
            &[("content-type", STRUCTURED)],
            &with(r#"{"own":1.5}"#),
            400,
            "whole and has 32 bits",
        ),
        (
            &[("content-type", STRUCTURED)],
            &with(r#"{"own":2147483648}"#),
            400,
            "whole and has 32 bits",
        ),
        (&[("ce-data", "1")], "", 400, "the data is the body"),
        (&[("ce-time", "yesterday")], "", 400, "RFC 3339"),
        (
            &[("content-type", STRUCTURED)],
            &with(r#"{"datacontenttype":"text/plain\n"}"#),
            400,
            "no media type",
        ),
        (
            &[("content-type", STRUCTURED)],
            crowded.as_str(),
            400,
            "more than 64",
        ),
        (&[("idempotency-key", "")], "", 400, "1 to 512 bytes"),
        (
            &[("idempotency-key", long.as_str())],
            "",
            400,
            "1 to 512 bytes",
        ),
        (
            &[("content-type", STRUCTURED)],
            "{",
            400,
            "not the JSON of one",
        ),
        (
            &[("content-type", STRUCTURED)],
            "[]",
            400,
            "not the JSON of one",
        ),
        (
            &[("content-type", STRUCTURED)],
            &with(r#"{"x":{}}"#),
            400,
            "neither text",
        ),
        (
            &[("content-type", STRUCTURED)],
            &with(r#"{"data":1,"data_base64":""}"#),
            400,
            "both",
        ),
        (
            &[("content-type", STRUCTURED)],
            &with(r#"{"data_base64":"?"}"#),
            400,
            "no base64",
        ),
        (&[("content-type", BATCH)], "{}", 400, "not the JSON of one"),
        (
            &[("content-type", STRUCTURED)],
            &with(r#"{"subject":7}"#),
            400,
            "`subject` is no text",
        ),
        (
            &[("content-type", "application/cloudevents+avro")],
            "x",
            415,
            "not application/cloudevents+avro",
        ),
        (
            &[("content-type", "application/cloudevents")],
            "x",
            415,
            "takes application/cloudevents+json",
        ),
        (
            &[("ce-id", "1"), ("ce-id", "2")],
            "",
            400,
            "`id` is said twice",
        ),
        (
            &[("content-type", BATCH)],
            many.as_str(),
            413,
            "at most 1000",
        ),
    ] {
        let problem = read(pairs, body).unwrap_err();
        assert_eq!(problem.status.as_u16(), status, "{pairs:?} {body:.20}");
        assert!(problem.detail.contains(detail), "{}", problem.detail);
    }
}

#[test]
fn who_says_that_it_is_a_cloudevent_says_all_that_one_must() {
    let whole = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
    let refused = |pairs: &[(&'static str, &str)], body: &str, expected: &str| {
        let problem = read(pairs, body).unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.code), (400, "bad-event"));
        assert!(problem.detail.contains(expected), "{}", problem.detail);
    };
    for name in REQUIRED {
        let mut event = whole.clone();
        for (value, expected) in [
            (None, "is missing"),
            (Some(Value::Null), "is missing"),
            (Some(json!("")), name),
            (Some(json!(1)), "no text"),
        ] {
            match value {
                None => drop(event.as_object_mut().unwrap().remove(name)),
                Some(value) => event[name] = value,
            }
            refused(
                &[("content-type", STRUCTURED)],
                &event.to_string(),
                expected,
            );
            let batch = json!([whole, event]).to_string();
            refused(&[("content-type", BATCH)], &batch, expected);
        }
    }
    let said = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
    ];
    assert!(read(&said, "").is_ok());
    for left_out in 1..said.len() {
        let mut some = said.to_vec();
        let (name, _) = some.remove(left_out);
        refused(&some, "", &format!("header `{name}` is missing"));
    }
    // Who does not say so need not know of it.
    assert!(read(&said[1..2], "").is_ok());
}

#[test]
fn it_goes_out_in_binary_mode_with_what_was_left_out() {
    let mut event = read(
        &[("content-type", "text/plain"), ("ce-subject", "a b")],
        "hi",
    )
    .unwrap();
    let headers = message(event.remove(0)).headers(SOURCE, 2);
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "orders/7"),
        ("ce-source", SOURCE),
        ("ce-type", "message"),
        ("ce-subject", "a%20b"),
        ("ce-time", "1970-01-01T00:00:00.005Z"),
        ("ce-position", "7"),
        ("ce-attempt", "2"),
        ("content-type", "text/plain"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert_eq!(headers.len(), 9);
}

#[test]
fn it_is_shown_in_the_json_format() {
    for (content_type, data, expected) in [
        (
            "application/json",
            &br#"{"n": 1.50}"#[..],
            r#""data":{"n": 1.50}"#,
        ),
        (
            "application/json",
            b"no json",
            r#""data_base64":"bm8ganNvbg==""#,
        ),
        ("text/plain", b"a\"b", r#""data":"a\"b""#),
        ("image/png", b"\xff", r#""data_base64":"/w==""#),
    ] {
        let event = Event {
            content_type: Some(content_type.to_owned()),
            data: data.into(),
            key: Some("k".into()),
            ..Event::default()
        };
        let text = message(event).to_json(SOURCE);
        assert!(text.contains(expected), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["partitionkey"], "k");
        assert_eq!(value["datacontenttype"], content_type);
    }
}
