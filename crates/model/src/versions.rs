//! Two versions at once: what an earlier one wrote is read, and so is what a later one may write.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::compute::{
    DesiredInstance, ExitHow, InstanceReport, InstanceState, PlacementGroup, Release, Scale,
};
use crate::control::{Heartbeat, HeartbeatAnswer, NodeDesired, NodeRecord, Place, Rollout};
use crate::signals::Level;
use crate::state::{Engine, EngineFile};
use crate::traffic::{ProxySnapshot, Road, Route};

/// Objects whose keys are names.
const MAPS: [&str; 10] = [
    "env",
    "needs",
    "volumes",
    "labels",
    "on",
    "homes",
    "services",
    "roles",
    "doors",
    "subscriptions",
];

fn service() -> Value {
    json!({
        "work": { "runtime": "process", "run": ["./web"] },
        "completion": "never", "replicas": 2, "cpu": "0.1", "memory": "128Mi",
        "env": { "COLOR": "blue" },
        "needs": { "db": { "timeout": "2s", "access": "read" } },
        "on": { "orders": { "path": "/events", "max_in_flight": 4, "timeout": "5s" } },
        "protocol": "http",
        "health": { "ask": { "by": "http", "path": "/up" }, "times": { "every": "1s", "timeout": "1s", "failures": 2 } },
        "spread": { "by": "zone", "require": false },
        "on_partition": "keep",
        "volumes": { "data": { "size": "1Gi" } },
        "traffic": { "timeout": "30s", "wait": "10s", "balance": "least-latency", "max_in_flight": 1024 },
        "rollout": { "surge": 1, "unavailable": 0, "ready_within": "60s" },
        "grace": "10s",
        "labels": { "disk": "fast" },
    })
}

fn instance(name: &str) -> Value {
    json!({
        "instance": format!("shop/{name}"), "service": "web", "release": 3, "epoch": 7, "slot": 0, "role": "member", "wanted": "run",
        "uid": 70001, "spec": service(), "secrets": [{ "name": "key", "file": false }], "start_after": ["db"],
    })
}

fn destination(service: &str) -> Value {
    json!({
        "service": format!("shop/{service}"), "protocol": "http",
        "traffic": { "timeout": "30s", "wait": "10s", "balance": "least-latency", "max_in_flight": 1024 },
        "endpoints": [{
            "instance": format!("shop/{service}-1"), "epoch": 1, "node": "a", "zone": "a", "region": "local", "mesh": "127.0.0.1:7071",
        }],
    })
}

fn road() -> Value {
    json!({
        "complete": true, "destinations": [destination("db"), destination("cart")],
        "callers": [{ "service": "shop/web", "from": ["shop/front"], "gateway": true }],
    })
}

fn desired() -> Value {
    json!({
        "generation": { "epoch": 4, "counter": 9 }, "instances": [instance("web-1"), instance("web-2")], "road": road(),
        "forget_volumes": ["shop/old"],
    })
}

fn report() -> Value {
    json!({
        "instance": "shop/web-1", "service": "web", "release": 3, "epoch": 7, "state": "failed", "ready": false, "restarts": 2,
        "last_exit": { "ended": "code", "code": 3, "at": "2026-01-01T00:00:00Z" },
        "reason": { "code": "crash-loop", "message": "crash loop" },
    })
}

fn heartbeat() -> Value {
    json!({
        "session": 5, "sequence": 6, "acknowledged": { "epoch": 4, "counter": 9 }, "digest": 1, "full": true, "changed": [report()],
        "gone": ["shop/web-9"], "demand": [{ "service": "shop/web", "waiting": 1 }], "mesh": "127.0.0.1:7071", "pid": 1, "version": "0.1",
        "events": [{ "at": "2026-01-01T00:00:00Z", "level": "warning", "reason": { "code": "x", "message": "y" } }],
    })
}

fn reason() -> Value {
    json!({ "code": "placed", "message": "it has room" })
}

fn placement_group() -> Value {
    json!({
        "placements": [{
            "instance": "web-1", "release": 1, "node": "a", "role": "member", "epoch": 1, "wanted": "run", "reason": reason(),
            "at": "2026-01-01T00:00:00Z",
        }],
        "pending": [{ "instance": "web-2", "release": 1, "reason": reason(), "since": "2026-01-01T00:00:00Z" }],
        "next_instance": 3, "next_epoch": 2, "homes": { "0": "a" },
    })
}

fn node_record() -> Value {
    json!({
        "name": "a", "region": "local", "zone": "a", "role": "worker", "capacity": { "cpu": "2", "memory": "4Gi" }, "cordoned": false,
        "standing": "present", "reason": reason(), "joined_at": "2026-01-01T00:00:00Z",
    })
}

fn snapshot() -> Value {
    let identity = json!({ "certificate": "c", "key": "k" });
    json!({
        "generation": { "epoch": 1, "counter": 1 }, "node": "a", "zone": "a", "region": "local", "mesh": "127.0.0.1:7071",
        "trust": { "cluster": "c1", "authority": "a", "node": identity, "services": { "shop/web": identity } },
        "gateway": { "listen": "127.0.0.1:8080", "routes": [{ "host": "a", "path": "/", "to": "shop/web" }] },
        "destinations": [destination("db")], "local": [], "callers": [], "doors": [], "enforce_uid": true,
    })
}

/// Pointers to all objects whose keys are not names.
fn objects(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if !MAPS.contains(&at.rsplit('/').next().unwrap_or_default()) {
                found.push(at.to_owned());
            }
            for (key, field) in fields {
                objects(field, &format!("{at}/{}", key.replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                objects(item, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// As an earlier version wrote it, and with a field more at each place.
fn reads<T: Serialize + DeserializeOwned>(earlier: Value) {
    let shown = |value: Value| -> Result<Value, serde_json::Error> {
        serde_json::to_value(serde_json::from_value::<T>(value)?)
    };
    let name = std::any::type_name::<T>();
    let known = shown(earlier.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut places = Vec::new();
    objects(&earlier, "", &mut places);
    for place in places {
        let mut later = earlier.clone();
        later.pointer_mut(&place).unwrap()["invented"] = json!({ "later": [1] });
        let read = shown(later).unwrap_or_else(|error| panic!("{name} at {place}: {error}"));
        assert_eq!(read, known, "{name} at {place}");
    }
}

#[test]
fn a_field_of_a_later_version_is_passed_over() {
    reads::<DesiredInstance>(instance("web-1"));
    reads::<NodeDesired>(desired());
    reads::<Road>(road());
    reads::<InstanceReport>(report());
    reads::<Heartbeat>(heartbeat());
    reads::<HeartbeatAnswer>(json!({ "epoch": 4, "send_full": false }));
    reads::<ProxySnapshot>(snapshot());
    reads::<NodeRecord>(node_record());
    reads::<PlacementGroup>(placement_group());
    reads::<Route>(json!({ "host": "a", "path": "/", "to": "web" }));
    reads::<Scale>(json!({ "replicas": 3, "owner": "admin:owner", "at": "2026-01-01T00:00:00Z" }));
    reads::<Rollout>(json!({
        "to": 2, "from": 1, "phase": "rolling", "reason": reason(), "started_at": "2026-01-01T00:00:00Z",
        "progressed_at": "2026-01-01T00:00:00Z",
    }));
    reads::<Release>(json!({
        "service": "web", "number": 1, "spec": service(), "author": "admin:owner", "at": "2026-01-01T00:00:00Z",
        "origin": { "by": "apply" }, "diff": [],
    }));
    let topic =
        json!({ "kind": "topic", "attempts": 5, "retention": { "age": "1h", "size": "1Gi" } });
    reads::<Engine>(topic.clone());
    reads::<Engine>(json!({ "kind": "postgres", "version": 15 }));
    reads::<EngineFile>(json!({
        "project": "shop", "name": "orders", "engine": topic, "memory": "128Mi", "doors": { "web": "127.0.0.1:1" },
        "settings": { "subscriptions": { "web": { "path": "/", "max_in_flight": 1, "timeout": "1s" } } },
    }));
}

/// One instance, one destination: what else is told stands, and what is kept of it stays as it came.
#[test]
fn a_word_of_a_later_version_costs_what_it_is_said_of() {
    let places = [
        "/spec/on_partition",
        "/spec/work/runtime",
        "/spec/needs/db/access",
        "/spec/health/ask/by",
        "/spec/traffic/balance",
        "/role",
        "/wanted",
    ];
    for place in places {
        let mut said = desired();
        *said["instances"][1].pointer_mut(place).unwrap() = json!("invented");
        let foreign = said["instances"][1].clone();
        said["road"]["destinations"][0]["protocol"] = json!("invented");
        let read: NodeDesired = serde_json::from_value(said).unwrap();
        let known = read.instances.iter().map(|one| one.instance.to_string());
        assert_eq!(known.collect::<Vec<_>>(), ["shop/web-1"], "{place}");
        assert_eq!(read.foreign.len(), 1, "{place}");
        assert_eq!(read.foreign[0].instance.to_string(), "shop/web-2");
        let destinations = read.road.destinations.iter();
        let destinations = destinations.map(|one| one.service.to_string());
        assert_eq!(destinations.collect::<Vec<_>>(), ["shop/cart"]);
        assert_eq!(read.forget_volumes.len(), 1);
        let kept = serde_json::to_value(&read).unwrap();
        assert_eq!(kept["instances"][1], foreign, "{place}");
        assert_eq!(serde_json::from_value::<NodeDesired>(kept).unwrap(), read);
    }
}

/// A node that is not heard would be given up.
#[test]
fn a_node_of_a_later_version_is_heard_whatever_it_says() {
    let mut said = heartbeat();
    said["changed"][0]["state"] = json!("invented");
    said["changed"][0]["last_exit"] =
        json!({ "ended": "invented", "by": 1, "at": "2026-01-01T00:00:00Z" });
    said["events"][0]["level"] = json!("invented");
    let read: Heartbeat = serde_json::from_value(said).unwrap();
    assert_eq!(read.changed[0].state, InstanceState::Unknown);
    let exit = read.changed[0].last_exit.as_ref().unwrap();
    assert_eq!(exit.how, ExitHow::Unknown);
    assert_eq!(read.events[0].level, Level::Error);
}

/// Servers are newer than agents for a while: also then a node is told from a copy of its directory.
#[test]
fn where_an_agent_of_an_earlier_version_runs_is_read() {
    let now = Place { folder: 3, boot: 5 };
    let before = Place { folder: 7, boot: 0 };
    for (key, said, expected) in [
        ("runs_at", json!({ "folder": 3, "boot": 5 }), Some(now)),
        ("place", json!(7), Some(before)),
        (
            "place",
            json!(u64::MAX),
            Some(Place {
                folder: u64::MAX,
                ..before
            }),
        ),
        ("place", json!(0), None),
        ("place", json!(null), None),
        ("runs_at", json!({ "invented": [1] }), None),
        ("else", json!(7), None),
    ] {
        let mut beat = heartbeat();
        beat.as_object_mut().unwrap().remove("runs_at");
        beat[key] = said.clone();
        let read: Heartbeat = serde_json::from_value(beat).unwrap();
        assert_eq!(read.place, expected, "{key}: {said}");
        let mut record = node_record();
        record.as_object_mut().unwrap().remove("runs_at");
        record[key] = said;
        let read: NodeRecord = serde_json::from_value(record).unwrap();
        assert_eq!(read.place, expected, "{key}");
        let kept = serde_json::to_value(&read).unwrap();
        assert_eq!(kept.get("runs_at").is_some(), expected.is_some(), "{key}");
        assert_eq!(serde_json::from_value::<NodeRecord>(kept).unwrap(), read);
    }
    let copy = Place { folder: 8, boot: 0 };
    assert!(copy.is_elsewhere(&before) && !before.is_elsewhere(&before));
    assert!(now.is_elsewhere(&Place { boot: 6, ..now }));
    // One was replaced by the other.
    assert!(!now.is_elsewhere(&before) && !before.is_elsewhere(&now));
}
