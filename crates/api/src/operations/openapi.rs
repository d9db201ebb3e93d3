//! The OpenAPI document of all operations.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use super::{Operation, Shape, all};
use crate::problem::Problem;

/// The OpenAPI 3.1 document of all operations.
pub fn openapi() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths = serde_json::Map::new();
    for operation in all() {
        // OpenAPI knows no parameter of several segments.
        let path = operation.path.replace("{*", "{");
        let item = paths.entry(path).or_insert_with(|| json!({}));
        let method = operation.method.as_str().to_ascii_lowercase();
        item[method] = described(&operation, &mut generator);
    }
    let problem = generator.subschema_for::<Problem>();
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Mainland", "version": "v1", "license": { "name": "Apache-2.0" } },
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "responses": { "Problem": {
                "description": "What went wrong, and how to mend it",
                "content": { "application/problem+json": { "schema": problem } },
            } },
        },
    })
}

fn described(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = path_parameters(operation.path)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if operation.keyed {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": true, "schema": { "type": "string", "maxLength": 255 },
        }));
    }
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            "200": { "description": "Done", "content": content(&operation.answers, generator) },
            "default": { "$ref": "#/components/responses/Problem" },
        },
    });
    if !matches!(operation.asks, Shape::Nothing) {
        described["requestBody"] =
            json!({ "required": true, "content": content(&operation.asks, generator) });
    }
    described
}

fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*'))
}

fn content(shape: &Shape, generator: &mut SchemaGenerator) -> Value {
    match shape {
        Shape::Nothing => json!({}),
        Shape::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
        Shape::Lines(schema) => json!({ "application/x-ndjson": { "schema": schema(generator) } }),
        Shape::Bytes => json!({ "application/octet-stream": {} }),
        Shape::Frames => json!({ "application/vnd.mainland.frames": {} }),
    }
}
