//! The table of keys as a JSON Schema, for editors: completion, docs on hover, and most errors while typing.

use serde_json::{Map, Value, json};

use super::keys::{self, Entries, Form, Key, Shape};

/// JSON Schema (2020-12) of `mainland.yaml`.
pub fn schema() -> Value {
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mainland.yaml",
        "description": "What Mainland makes true: services, their needs, secrets and the doors from outside.",
    });
    extend(&mut schema, shape(&keys::ROOT, false));
    schema
}

/// `patch`: inside of a merge patch, where everything may be left out or be `null`.
fn shape(shape: &Shape, patch: bool) -> Value {
    let inner = match shape {
        Shape::Text(form) => text(form),
        Shape::Number { least, most } => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::List(item) => json!({ "type": "array", "items": self::shape(item, false) }),
        Shape::Fields(keys) => return nullable(fields(keys, patch), true),
        Shape::Patch(keys) => return nullable(fields(keys, true), true),
        Shape::Entries(of) => return nullable(entries(of, patch), !of.single),
        Shape::OneOf(shapes) => {
            let supported = shapes
                .iter()
                .filter(|shape| !matches!(shape, Shape::Later(_)));
            let mut any: Vec<Value> = supported.map(|shape| self::shape(shape, false)).collect();
            match any.len() {
                1 => any.remove(0),
                _ => json!({ "anyOf": any }),
            }
        }
        Shape::Later(_) => json!(false),
    };
    if patch {
        json!({ "anyOf": [inner, { "type": "null" }] })
    } else {
        inner
    }
}

/// A section all of whose lines are commented out is `null`, and empty.
fn nullable(mut schema: Value, may: bool) -> Value {
    if may {
        schema["type"] = json!(["object", "null"]);
    }
    schema
}

fn text(form: &Form) -> Value {
    if !form.words.is_empty() {
        let mut words: Vec<Value> = form.words.iter().map(|word| json!(word)).collect();
        // In YAML the word is a truth value when it stands without quotes.
        if form.words == ["true"] {
            words.push(json!(true));
        }
        return json!({ "enum": words });
    }
    // Numbers and truth values are taken as the texts they are written as.
    let mut schema = json!({ "type": ["string", "number", "boolean"] });
    if let Some(pattern) = form.pattern {
        schema["pattern"] = json!(pattern);
    }
    if !form.examples.is_empty() {
        schema["examples"] = json!(form.examples);
    }
    schema
}

fn fields(keys: &[Key], patch: bool) -> Value {
    let supported = || {
        keys.iter()
            .filter(|key| !matches!(key.shape, Shape::Later(_)))
    };
    let mut properties = Map::new();
    for key in supported() {
        let mut property = json!({ "description": key.doc });
        extend(&mut property, shape(&key.shape, patch));
        properties.insert(key.name.to_owned(), property);
    }
    let mut schema =
        json!({ "type": "object", "properties": properties, "additionalProperties": false });
    let required: Vec<&str> = supported()
        .filter(|key| key.required)
        .map(|key| key.name)
        .collect();
    if !patch && !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn entries(entries: &Entries, patch: bool) -> Value {
    let mut schema = json!({ "type": "object", "additionalProperties": shape(&entries.value, patch || entries.unsets) });
    if let Some(pattern) = entries.key.pattern {
        schema["propertyNames"] = json!({ "pattern": pattern });
    }
    schema["maxProperties"] = json!(entries.most);
    if entries.single {
        schema["minProperties"] = json!(1);
    }
    schema
}

fn extend(schema: &mut Value, with: Value) {
    if let (Value::Object(schema), Value::Object(with)) = (schema, with) {
        schema.extend(with);
    }
}
