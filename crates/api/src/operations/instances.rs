//! What runs, its output, and commands beside it.

use http::Method;
use model::signals::LogLine;

use super::{Operation, Shape, json_of, lines_of, operation};
use crate::wire;

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "listInstances",
            Method::GET,
            "/v1/projects/{project}/instances",
            Shape::Nothing,
            json_of::<wire::List<wire::InstanceView>>(),
            "What runs",
        ),
        operation(
            "logs",
            Method::GET,
            "/v1/projects/{project}/instances/{instance}/logs",
            Shape::Nothing,
            lines_of::<LogLine>(),
            "The output of an instance",
        ),
        operation(
            "exec",
            Method::POST,
            "/v1/projects/{project}/instances/{instance}/exec",
            Shape::Frames,
            Shape::Frames,
            "Run a command beside an instance",
        ),
    ]
}
