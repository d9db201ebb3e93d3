//! Every operation as data: the OpenAPI document comes from it, and the server's tests check that each has a handler.
//!
//! A module for each noun lists what can be done with it; [`openapi()`] describes all of them.

mod about;
mod artifacts;
mod deploys;
mod engines;
mod instances;
mod keys;
mod nodes;
mod openapi;
mod projects;
mod resources;
mod services;

pub use openapi::openapi;

use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// One operation of the API.
pub struct Operation {
    pub id: &'static str,
    pub method: Method,
    /// `{name}` stands for one segment, `{*name}` for all that follow.
    pub path: &'static str,
    pub summary: &'static str,
    pub asks: Shape,
    pub answers: Shape,
    /// Whether a POST must carry an `Idempotency-Key`.
    pub keyed: bool,
    /// Longest body in bytes. What is longer is refused with 413 before the rest of it is read. No bound of a body that is passed on as it
    /// comes ([`Shape::Frames`]).
    pub body_max_bytes: usize,
}

/// Longest body where none is asked for, of what asks for a certificate, and of a join. A signing request has some 500 bytes.
pub const SMALL_BODY_MAX_BYTES: usize = 16 << 10;
/// Longest body of JSON where the operation says nothing else.
const JSON_MAX_BYTES: usize = 64 << 10;

/// What a body holds.
pub enum Shape {
    Nothing,
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// One JSON text a line.
    Lines(fn(&mut SchemaGenerator) -> Schema),
    Bytes,
    Frames,
}

/// All of them: for people and scripts first, then for nodes.
pub fn all() -> Vec<Operation> {
    [
        about::all(),
        projects::all(),
        deploys::all(),
        resources::all(),
        resources::keyring(),
        keys::all(),
        services::all(),
        services::rollouts(),
        instances::all(),
        artifacts::all(),
        engines::all(),
        nodes::for_people(),
        nodes::identity(),
        nodes::desired(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn json_of<T: JsonSchema>() -> Shape {
    Shape::Json(|generator| generator.subschema_for::<T>())
}

fn lines_of<T: JsonSchema>() -> Shape {
    Shape::Lines(|generator| generator.subschema_for::<T>())
}

fn operation(
    id: &'static str,
    method: Method,
    path: &'static str,
    asks: Shape,
    answers: Shape,
    summary: &'static str,
) -> Operation {
    let body_max_bytes = match asks {
        Shape::Json(_) => JSON_MAX_BYTES,
        _ => SMALL_BODY_MAX_BYTES,
    };
    Operation {
        id,
        method,
        path,
        summary,
        asks,
        answers,
        keyed: false,
        body_max_bytes,
    }
}

/// With another bound of its body.
fn up_to(body_max_bytes: usize, operation: Operation) -> Operation {
    Operation {
        body_max_bytes,
        ..operation
    }
}

fn keyed(operation: Operation) -> Operation {
    Operation {
        keyed: true,
        ..operation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_distinct_ids_and_places() {
        let mut ids: Vec<_> = all().iter().map(|operation| operation.id).collect();
        let mut places: Vec<_> = all()
            .iter()
            .map(|operation| format!("{} {}", operation.method, operation.path))
            .collect();
        for names in [ids.len(), places.len()] {
            assert!(names > 30);
        }
        ids.sort_unstable();
        ids.dedup();
        places.sort_unstable();
        places.dedup();
        assert_eq!((ids.len(), places.len()), (all().len(), all().len()));
    }

    #[test]
    fn every_reference_of_the_document_resolves() {
        let document = openapi();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
