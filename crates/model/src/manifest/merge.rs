//! One mapping over another.

use std::collections::{HashMap, HashSet};

use super::document::{Entry, Node, Value};

/// JSON merge patch: <https://www.rfc-editor.org/rfc/rfc7396>. What is patched keeps its place, what is new comes last.
pub(super) fn patch(target: Node, patch: Node) -> Node {
    let Value::Map(changes) = patch.value else {
        return patch;
    };
    let (position, mut entries) = match target.value {
        Value::Map(entries) => (target.position, entries),
        _ => (patch.position, Vec::new()),
    };
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, entry) in entries.iter().enumerate() {
        places.entry(entry.key.clone()).or_insert(place);
    }
    let mut removed = HashSet::new();
    for change in changes {
        match places.get(&change.key) {
            Some(place) if change.value.is_nothing() => {
                removed.insert(*place);
            }
            Some(place) => replace(&mut entries[*place], change),
            None if change.value.is_nothing() => {}
            None => entries.push(fresh(change)),
        }
    }
    let mut place = 0;
    entries.retain(|_| {
        place += 1;
        !removed.contains(&(place - 1))
    });
    Node {
        position,
        value: Value::Map(entries),
    }
}

fn replace(entry: &mut Entry, change: Entry) {
    let target = std::mem::replace(&mut entry.value, nothing(&change.value));
    entry.value = patch(target, change.value);
}

/// A new entry: the nothings inside it remove nothing, and are gone all the same.
fn fresh(change: Entry) -> Entry {
    let empty = nothing(&change.value);
    Entry {
        value: patch(empty, change.value),
        ..change
    }
}

fn nothing(like: &Node) -> Node {
    Node {
        position: like.position,
        value: Value::Scalar {
            text: String::new(),
            plain: true,
        },
    }
}

/// The file with an environment over it. What the environment unsets of a service's variables stays unset, also where the variable comes from the
/// file's `defaults`.
pub(super) fn environment(file: Node, change: &Node) -> Node {
    let mut merged = patch(file, change.clone());
    let services = change
        .get("services")
        .map(Node::entries)
        .unwrap_or_default();
    for service in services {
        let env = service
            .value
            .get("env")
            .map(Node::entries)
            .unwrap_or_default();
        let unset: Vec<Entry> = env
            .iter()
            .filter(|entry| entry.value.is_nothing())
            .map(|entry| Entry {
                value: explicit_nothing(&entry.value),
                ..entry.clone()
            })
            .collect();
        let path = ["services", &service.key, "env"];
        if let Some(variables) = entries_at(&mut merged, &path).filter(|_| !unset.is_empty()) {
            variables.extend(unset);
        }
    }
    merged
}

/// The entries of the mapping at a path; made where only the last key is missing.
fn entries_at<'node>(node: &'node mut Node, path: &[&str]) -> Option<&'node mut Vec<Entry>> {
    let position = node.position;
    let Value::Map(entries) = &mut node.value else {
        return None;
    };
    let Some((key, below)) = path.split_first() else {
        return Some(entries);
    };
    if below.is_empty() && !entries.iter().any(|entry| entry.key == *key) {
        entries.push(Entry {
            key: (*key).to_owned(),
            key_position: position,
            value: Node {
                position,
                value: Value::Map(Vec::new()),
            },
        });
    }
    let entry = entries.iter_mut().find(|entry| entry.key == *key)?;
    entries_at(&mut entry.value, below)
}

fn explicit_nothing(like: &Node) -> Node {
    Node {
        position: like.position,
        value: Value::Scalar {
            text: "~".to_owned(),
            plain: true,
        },
    }
}

/// Where both are mappings they are merged key by key; everything else is replaced as a whole.
/// A probe is one thing: half of a default's and half of a service's would be neither.
const MERGED: [&str; 5] = ["env", "labels", "traffic", "rollout", "spread"];

/// The service with what it leaves out taken from the file's `defaults`.
pub(super) fn with_defaults(service: &Node, defaults: Option<&Node>) -> Node {
    let mut merged = Node {
        position: service.position,
        value: Value::Map(service.entries().to_vec()),
    };
    let Value::Map(entries) = &mut merged.value else {
        return merged;
    };
    for default in defaults.map(Node::entries).unwrap_or_default() {
        let given = entries.iter_mut().find(|entry| entry.key == default.key);
        match given {
            None => entries.push(default.clone()),
            Some(given) if MERGED.contains(&default.key.as_str()) && is_map(given) => {
                given.value = patch(default.value.clone(), given.value.clone());
            }
            Some(_) => {}
        }
    }
    merged
}

fn is_map(entry: &Entry) -> bool {
    matches!(entry.value.value, Value::Map(_))
}
