//! Whether a body has a key that its type does not have.
//!
//! Types ignore what they do not know, so that two versions understand each other. What a person or a script asks of the API is held to the schema
//! instead: a misspelt key would otherwise do nothing, in silence. Where a schema is open, so is this.

pub use schemars::JsonSchema;
use serde_json::{Map, Value};

use crate::problem::nearest;

/// A key that nothing reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// From the top: `services.web.replcas`.
    pub path: String,
    /// One that is known there and looks like it.
    pub nearest: Option<String>,
}

/// The first one in a body that is to be a `T`.
pub fn unknown_key<T: JsonSchema>(body: &Value) -> Option<UnknownKey> {
    let schema = schemars::schema_for!(T);
    let root = schema.as_value();
    Check { root }.look(body, &[root], &mut Vec::new())
}

struct Check<'s> {
    root: &'s Value,
}

impl<'s> Check<'s> {
    /// `schemas`: all that say something of this value.
    fn look(
        &self,
        body: &Value,
        schemas: &[&'s Value],
        path: &mut Vec<String>,
    ) -> Option<UnknownKey> {
        let mut parts = Vec::new();
        for schema in schemas {
            self.parts(schema, body, &mut parts);
        }
        match body {
            Value::Object(body) => self.look_at_keys(body, &parts, path),
            Value::Array(items) => {
                let of_items: Vec<_> = parts.iter().filter_map(|part| part.get("items")).collect();
                items.iter().enumerate().find_map(|(index, item)| {
                    path.push(index.to_string());
                    let found = self.look(item, &of_items, path);
                    path.pop();
                    found
                })
            }
            _ => None,
        }
    }

    fn look_at_keys(
        &self,
        body: &Map<String, Value>,
        parts: &[&'s Value],
        path: &mut Vec<String>,
    ) -> Option<UnknownKey> {
        let is_false = |part: &&Value, word| part.get(word) == Some(&Value::Bool(false));
        let is_closed = parts.iter().any(|part| {
            is_false(part, "additionalProperties") || is_false(part, "unevaluatedProperties")
        });
        for (key, value) in body {
            let mut known = properties_of(parts, key);
            if known.is_empty() {
                known = of_any_key(parts);
            }
            path.push(key.clone());
            if known.is_empty() && is_closed {
                return Some(UnknownKey {
                    path: path.join("."),
                    nearest: nearest(key, keys(parts)).map(str::to_owned),
                });
            }
            let found = self.look(value, &known, path);
            path.pop();
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// A schema with all that it refers to, but for what is said of another variant than the body's.
    fn parts(&self, schema: &'s Value, body: &Value, parts: &mut Vec<&'s Value>) {
        if !fits(schema, body) {
            return;
        }
        parts.push(schema);
        let reference = schema.get("$ref").and_then(Value::as_str);
        let pointer = reference.and_then(|reference| reference.strip_prefix('#'));
        if let Some(referred) = pointer.and_then(|pointer| self.root.pointer(pointer)) {
            self.parts(referred, body, parts);
        }
        for word in ["allOf", "anyOf", "oneOf"] {
            let of_it = schema.get(word).and_then(Value::as_array);
            for one in of_it.into_iter().flatten() {
                self.parts(one, body, parts);
            }
        }
    }
}

/// A variant of an enum is told by a property that can have one value only.
fn fits(schema: &Value, body: &Value) -> bool {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().all(|(key, property)| {
        let only = property.get("const");
        only.is_none_or(|only| body.get(key).is_none_or(|said| said == only))
    })
}

fn properties_of<'s>(parts: &[&'s Value], key: &str) -> Vec<&'s Value> {
    let of_key = |part: &&'s Value| part.get("properties")?.get(key);
    parts.iter().filter_map(of_key).collect()
}

/// What a map says of its values.
fn of_any_key<'s>(parts: &[&'s Value]) -> Vec<&'s Value> {
    let additional = parts
        .iter()
        .filter_map(|part| part.get("additionalProperties"));
    let by_pattern = parts
        .iter()
        .filter_map(|part| part.get("patternProperties")?.as_object())
        .flat_map(Map::values);
    let all = additional.chain(by_pattern);
    all.filter(|schema| **schema != Value::Bool(false))
        .collect()
}

fn keys<'s>(parts: &[&'s Value]) -> impl Iterator<Item = &'s str> {
    let properties = parts
        .iter()
        .filter_map(|part| part.get("properties")?.as_object());
    properties.flat_map(Map::keys).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use model::compute::{Need, Service, Work};
    use model::state::{Engine, Postgres, Volume};
    use model::units::Bytes;
    use serde_json::json;

    use super::*;
    use crate::wire::Apply;

    fn spec() -> Service {
        let work = Work::Process {
            run: vec!["./web".to_owned()],
            artifact: None,
        };
        let mut spec = Service::of(work);
        spec.needs.insert("db".parse().unwrap(), Need::default());
        let size = Bytes::mebibytes(1);
        spec.volumes
            .insert("data".parse().unwrap(), Volume { size });
        spec.env.insert("ANY".to_owned(), "thing".to_owned());
        spec.labels.insert("disk".to_owned(), "fast".to_owned());
        spec
    }

    /// Sets what a pointer leads to.
    fn with(mut body: Value, folder: &str, key: &str) -> Value {
        let folder = body.pointer_mut(folder).unwrap();
        folder[key] = json!(1);
        body
    }

    #[test]
    fn what_a_person_misspelt_is_found_wherever_it_is() {
        let engine = Engine::Postgres(Postgres {
            version: 15,
            outbox: None,
            extensions: Default::default(),
        });
        let apply = |work: Option<Work>| {
            let mut spec = spec();
            spec.work = work.unwrap_or(spec.work);
            json!({ "services": { "web": spec }, "routes": [] })
        };
        let (web, database) = (apply(None), apply(Some(Work::Engine { engine })));
        assert!(serde_json::from_value::<Apply>(database.clone()).is_ok());
        let table = [
            (web.clone(), None),
            (database.clone(), None),
            (with(web.clone(), "", "rutes"), Some(("rutes", "routes"))),
            (
                with(web.clone(), "/services/web", "replcas"),
                Some(("services.web.replcas", "replicas")),
            ),
            (
                with(web.clone(), "/services/web/needs/db", "acess"),
                Some(("services.web.needs.db.acess", "access")),
            ),
            (
                with(database.clone(), "/services/web/traffic", "timout"),
                Some(("services.web.traffic.timout", "timeout")),
            ),
            (
                with(database, "/services/web/work/engine", "outbx"),
                Some(("services.web.work.engine.outbx", "outbox")),
            ),
            (
                json!({ "routes": [{ "host": "a", "path": "/", "to": "web", "prot": "x" }] }),
                Some(("routes.0.prot", "port")),
            ),
        ];
        for (body, expected) in table {
            let found = unknown_key::<Apply>(&body);
            let found = found.map(|found| (found.path, found.nearest.unwrap_or_default()));
            let expected = expected.map(|(path, near)| (path.to_owned(), near.to_owned()));
            assert_eq!(found, expected, "{body}");
        }
    }
}
