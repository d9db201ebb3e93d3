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
        operation(
            "run",
            Method::POST,
            "/v1/projects/{project}/services/{service}/run",
            Shape::Frames,
            Shape::Frames,
            "Run a command as a copy of a service would, on a node of the scheduler's choice, for as long as the connection lives",
        ),
        operation(
            "connect",
            Method::POST,
            "/v1/projects/{project}/services/{service}/connect",
            Shape::Frames,
            Shape::Frames,
            "Carry one connection to a ready copy of a service: to its `PORT`, or `?port=NUMBER` of its node on which it listens",
        ),
    ]
}
