//! What a change of a service is, in lines and in consequences. Pure.

use model::compute::{Need, Service, Work};
use model::ids::ZoneName;
use model::state::Engine;
use model::state::extensions::preloaded;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Whether running instances must be started anew to be what `new` says. `replicas`, `traffic`, `rollout`, `spread`, `grace` and the
/// options of needs are taken up as they run, and so are a database's extensions that need no library loaded at its start.
pub fn restarts(old: &Service, new: &Service) -> bool {
    let mut aligned = old.clone();
    aligned.replicas = new.replicas;
    aligned.traffic = new.traffic;
    aligned.rollout = new.rollout;
    aligned.spread = new.spread;
    aligned.grace = new.grace;
    align_extensions(&mut aligned, new);
    for (name, need) in &mut aligned.needs {
        if let Some(wanted) = new.needs.get(name) {
            *need = Need {
                file: need.file,
                ..wanted.clone()
            };
        }
    }
    aligned != *new
}

/// Extensions are made and dropped as the database runs, but for what PostgreSQL loads when it starts.
fn align_extensions(old: &mut Service, new: &Service) {
    let (old, new) = match (&mut old.work, &new.work) {
        (
            Work::Engine {
                engine: Engine::Postgres(old),
            },
            Work::Engine {
                engine: Engine::Postgres(new),
            },
        ) => (old, new),
        _ => return,
    };
    if preloaded(old) == preloaded(new) {
        old.extensions.clone_from(&new.extensions);
    }
}

/// What differs, a line each: `replicas: 2 → 3`, `env.LOG_LEVEL: added info`.
pub fn diff(old: &Service, new: &Service) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", &value(old), &value(new), &mut lines);
    lines
}

fn value(service: &Service) -> Value {
    serde_json::to_value(service).expect("a service is plain data")
}

fn compare(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(before), Value::Object(after)) => {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match (before.get(name), after.get(name)) {
                    (Some(old), Some(new)) => compare(&path, old, new, lines),
                    // A mapping that appears or goes is told entry by entry.
                    (None, Some(Value::Object(fields))) if !fields.is_empty() => {
                        compare(&path, &nothing(), &after[name], lines);
                    }
                    (Some(Value::Object(fields)), None) if !fields.is_empty() => {
                        compare(&path, &before[name], &nothing(), lines);
                    }
                    (None, Some(new)) => lines.push(line(&path, "added", new)),
                    (Some(old), None) => lines.push(line(&path, "removed", old)),
                    (None, None) => {}
                }
            }
        }
        (old, new) => lines.push(format!("{path}: {} → {}", shown(old), shown(new))),
    }
}

fn nothing() -> Value {
    Value::Object(Map::new())
}

fn line(path: &str, what: &str, value: &Value) -> String {
    format!("{path}: {what} {}", shown(value))
        .trim_end()
        .to_owned()
}

/// A value in a line: short, and a digest by its beginning.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => match text.strip_prefix("sha256:") {
            Some(hex) => format!("sha256:{}…", &hex[..hex.len().min(12)]),
            None => text.clone(),
        },
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => other.to_string(),
    };
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What runs of a service, as far as its consequences go.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// Copies wanted before the change, and after it.
    pub before: u32,
    pub after: u32,
    /// Zones with a node that takes placements.
    pub zones: &'a BTreeSet<ZoneName>,
}

/// What it means that a service appears.
pub fn consequence_of_start(service: &Service, running: Running<'_>) -> String {
    match &service.work {
        Work::External { .. } => "is routed to".to_owned(),
        _ if running.after == 0 => "starts nothing".to_owned(),
        _ if running.zones.is_empty() => format!("{} for a node", waits(running.after)),
        _ => {
            let zones = running.zones.len().min(running.after as usize);
            format!(
                "starts {} over {}",
                instances(running.after),
                count(zones, "zone")
            )
        }
    }
}

/// What it means that a service changes.
pub fn consequence_of_change(old: &Service, new: &Service, running: Running<'_>) -> String {
    if new.is_external() {
        return if old.is_external() {
            "is routed to anew"
        } else {
            "all instances stop, it is routed to"
        }
        .to_owned();
    }
    if old.is_external() {
        return consequence_of_start(new, running);
    }
    let mut parts = Vec::new();
    let staying = running.before.min(running.after);
    match restarts(old, new) {
        true if staying == 1 => parts.push("1 instance rolls".to_owned()),
        true if staying > 0 => parts.push(format!("{staying} instances roll")),
        _ => {}
    }
    match running.after.cmp(&running.before) {
        std::cmp::Ordering::Greater => {
            parts.push(format!(
                "starts {}",
                instances(running.after - running.before)
            ));
        }
        std::cmp::Ordering::Less => parts.push(format!(
            "stops {}",
            instances(running.before - running.after)
        )),
        std::cmp::Ordering::Equal => {}
    }
    if !restarts(old, new) {
        parts.push("nothing restarts".to_owned());
    }
    parts.join(", ")
}

/// What it means that a service no longer has a volume, whose data is on these nodes: it is not moved to one of another name.
pub fn volumes_left(old: &Service, new: &Service, nodes: &[&str]) -> Option<String> {
    let named = |of: &Service, besides: &Service| -> Vec<String> {
        let names = of.volumes.keys();
        let names = names.filter(|name| !besides.volumes.contains_key(*name));
        names.map(|name| format!("`{name}`")).collect()
    };
    let (gone, come) = (named(old, new), named(new, old));
    if gone.is_empty() {
        return None;
    }
    let begin = match come.as_slice() {
        [] => String::new(),
        [one] => format!("volume {one} starts empty; "),
        many => format!("volumes {} start empty; ", listed(many)),
    };
    let on = match nodes {
        [one] => format!("node {one}"),
        many => format!("nodes {}", listed(many)),
    };
    Some(format!(
        "{begin}what is in {} stays on {on}, and nothing uses it",
        listed(&gone)
    ))
}

pub fn consequence_of_removal(running: u32, has_data: bool, delete_data: bool) -> String {
    let stops = match running {
        0 => "nothing stops".to_owned(),
        1 => "1 instance stops".to_owned(),
        many => format!("{many} instances stop"),
    };
    match (has_data, delete_data) {
        (false, _) => stops,
        (true, true) => format!("{stops}, its data is deleted"),
        (true, false) => format!("{stops}, its data stays"),
    }
}

/// Names that a consequence lists at most.
const NAMED_MOST: usize = 5;

/// What the removal of a service means for the services that need it and for the routes to it; begins with `; ` unless it is empty.
pub fn consequence_for_others<N: AsRef<str>>(needed_by: &[N], routes: &[&str]) -> String {
    let needs = (!needed_by.is_empty()).then(|| {
        let verb = if needed_by.len() == 1 {
            "needs"
        } else {
            "need"
        };
        format!("{} {verb} it", listed(needed_by))
    });
    let leads = match routes {
        [] => None,
        [one] => Some(format!("route {one} leads nowhere then")),
        many => Some(format!("routes {} lead nowhere then", listed(many))),
    };
    let parts: Vec<String> = needs.into_iter().chain(leads).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!("; {}", parts.join(", ")),
    }
}

/// `a`, `a and b`, `a, b and c`, `a, b, c, d, e and 3 more`.
fn listed<N: AsRef<str>>(names: &[N]) -> String {
    let more = names.len().saturating_sub(NAMED_MOST);
    let mut shown: Vec<String> = names
        .iter()
        .take(NAMED_MOST)
        .map(|name| name.as_ref().to_owned())
        .collect();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    match shown.pop() {
        Some(last) if !shown.is_empty() => format!("{} and {last}", shown.join(", ")),
        only => only.unwrap_or_default(),
    }
}

pub fn instances(count: u32) -> String {
    self::count(count as usize, "instance")
}

fn waits(replicas: u32) -> String {
    match replicas {
        1 => "1 instance waits".to_owned(),
        many => format!("{many} instances wait"),
    }
}

pub fn count(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        many => format!("{many} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::service;
    use model::state::Postgres;
    use model::state::extensions::Wish;
    use model::units::Span;

    fn zones(names: &[&str]) -> BTreeSet<ZoneName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    /// Something to do to a service.
    type Edit = fn(&mut Service);

    #[test]
    fn changes_read_like_a_table() {
        let table: [(Edit, &[&str], &str); 8] = [
            (
                |service| service.replicas = 5,
                &["replicas: 3 → 5"],
                "starts 2 instances, nothing restarts",
            ),
            (
                |service| service.replicas = 1,
                &["replicas: 3 → 1"],
                "stops 2 instances, nothing restarts",
            ),
            (
                |service| drop(service.env.insert("LOG".to_owned(), "debug".to_owned())),
                &["env.LOG: added debug"],
                "3 instances roll",
            ),
            (
                |service| service.traffic.timeout = Span::seconds(1),
                &["traffic.timeout: 30s → 1s"],
                "nothing restarts",
            ),
            (
                |service| service.needs.get_mut("cache").unwrap().optional = true,
                &["needs.cache.optional: added true"],
                "nothing restarts",
            ),
            (
                |service| service.needs.clear(),
                &["needs.cache: removed"],
                "3 instances roll",
            ),
            (
                |service| {
                    service.replicas = 2;
                    service.memory = model::units::Bytes::mebibytes(64);
                },
                &["memory: 100Mi → 64Mi", "replicas: 3 → 2"],
                "2 instances roll, stops 1 instance",
            ),
            (|_| {}, &[], "nothing restarts"),
        ];
        let mut old = service(3);
        old.needs.insert("cache".parse().unwrap(), Need::default());
        for (edit, lines, consequence) in table {
            let mut new = old.clone();
            edit(&mut new);
            assert_eq!(diff(&old, &new), lines);
            let zones = zones(&["a"]);
            let running = Running {
                before: 3,
                after: new.replicas,
                zones: &zones,
            };
            assert_eq!(consequence_of_change(&old, &new, running), consequence);
        }
    }

    #[test]
    fn only_an_extension_that_is_loaded_at_the_start_restarts_a_database() {
        let database = |extensions: &[&str]| Service {
            work: Work::Engine {
                engine: Engine::Postgres(Postgres {
                    version: 15,
                    outbox: None,
                    extensions: extensions
                        .iter()
                        .map(|name| ((*name).to_owned(), Wish::Create))
                        .collect(),
                }),
            },
            ..service(1)
        };
        let zones = zones(&["a"]);
        let running = Running {
            before: 1,
            after: 1,
            zones: &zones,
        };
        let table: [(Names, Names, Names, &str); 3] = [
            (
                &[],
                &["vector"],
                &["work.engine.extensions.vector: added create"],
                "nothing restarts",
            ),
            (
                &["vector"],
                &["vector", "pg_stat_statements"],
                &["work.engine.extensions.pg_stat_statements: added create"],
                "1 instance rolls",
            ),
            (
                &["vector"],
                &[],
                &["work.engine.extensions.vector: removed create"],
                "nothing restarts",
            ),
        ];
        for (before, after, lines, consequence) in table {
            let (old, new) = (database(before), database(after));
            assert_eq!(diff(&old, &new), lines);
            assert_eq!(consequence_of_change(&old, &new, running), consequence);
        }
    }

    type Names = &'static [&'static str];

    #[test]
    fn a_volume_of_another_name_starts_empty() {
        let volume = model::state::Volume {
            size: model::units::Bytes::mebibytes(64),
        };
        let with = |names: &[&str]| {
            let mut service = service(1);
            for name in names {
                service
                    .volumes
                    .insert(name.parse().unwrap(), volume.clone());
            }
            service
        };
        let table: [(Names, Names, Names, Option<&str>); 4] = [
            (&["data"], &["data"], &["b"], None),
            (&["data"], &["data", "more"], &["b"], None),
            (
                &["data"],
                &["store"],
                &["b"],
                Some(
                    "volume `store` starts empty; what is in `data` stays on node b, and nothing uses it",
                ),
            ),
            (
                &["data", "x"],
                &[],
                &["a", "b"],
                Some("what is in `data` and `x` stays on nodes a and b, and nothing uses it"),
            ),
        ];
        for (old, new, nodes, expected) in table {
            let left = volumes_left(&with(old), &with(new), nodes);
            assert_eq!(left.as_deref(), expected);
        }
    }

    #[test]
    fn a_removal_says_whom_it_leaves_without() {
        let table: [(&[&str], &[&str], &str); 6] = [
            (&[], &[], ""),
            (&["front"], &[], "; front needs it"),
            (
                &["front"],
                &["api.localhost/"],
                "; front needs it, route api.localhost/ leads nowhere then",
            ),
            (&["a", "b"], &[], "; a and b need it"),
            (
                &[],
                &["a/", "b/", "c/"],
                "; routes a/, b/ and c/ lead nowhere then",
            ),
            (
                &["a", "b", "c", "d", "e", "f", "g"],
                &[],
                "; a, b, c, d, e and 2 more need it",
            ),
        ];
        for (needed_by, routes, expected) in table {
            assert_eq!(consequence_for_others(needed_by, routes), expected);
        }
    }

    #[test]
    fn starts_say_how_far_they_spread() {
        let table = [
            (3, vec!["a", "b", "c"], "starts 3 instances over 3 zones"),
            (1, vec!["a", "b", "c"], "starts 1 instance over 1 zone"),
            (3, vec![], "3 instances wait for a node"),
            (0, vec!["a"], "starts nothing"),
        ];
        for (after, names, expected) in table {
            let zones = zones(&names);
            let running = Running {
                before: 0,
                after,
                zones: &zones,
            };
            assert_eq!(consequence_of_start(&service(after), running), expected);
        }
    }
}
