//! A project as a whole.

use http::Method;
use model::ids::ProjectName;
use model::signals::Event;

use super::{Operation, Shape, json_of, lines_of, operation};
use crate::wire;

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "listProjects",
            Method::GET,
            "/v1/projects",
            Shape::Nothing,
            json_of::<wire::List<ProjectName>>(),
            "Projects with anything declared; `?kept=true` also those of which only data is left",
        ),
        operation(
            "deleteProject",
            Method::DELETE,
            "/v1/projects/{project}",
            Shape::Nothing,
            json_of::<Vec<wire::Change>>(),
            "Remove all of a project",
        ),
        operation(
            "status",
            Method::GET,
            "/v1/projects/{project}/status",
            Shape::Nothing,
            json_of::<wire::ProjectStatus>(),
            "How a project does",
        ),
        operation(
            "projectEvents",
            Method::GET,
            "/v1/projects/{project}/events",
            Shape::Nothing,
            lines_of::<Event>(),
            "What happened in a project; `?watch=true` goes on",
        ),
        operation(
            "explain",
            Method::GET,
            "/v1/projects/{project}/explain/{subject}",
            Shape::Nothing,
            json_of::<wire::Explanation>(),
            "Why a thing is as it is",
        ),
    ]
}
