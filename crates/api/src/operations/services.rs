//! A service that runs: its copies, releases and rollouts.

use http::Method;
use model::compute::Release;
use model::control::Rollout;

use super::{Operation, Shape, json_of, keyed, operation};
use crate::wire;

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "scale",
            Method::PUT,
            "/v1/projects/{project}/scales/{service}",
            json_of::<wire::SetScale>(),
            json_of::<wire::Scaled>(),
            "Ask for a number of copies",
        ),
        operation(
            "listReleases",
            Method::GET,
            "/v1/projects/{project}/services/{service}/releases",
            Shape::Nothing,
            json_of::<wire::List<wire::ReleaseView>>(),
            "Releases, newest first",
        ),
        operation(
            "getRelease",
            Method::GET,
            "/v1/projects/{project}/services/{service}/releases/{number}",
            Shape::Nothing,
            json_of::<Release>(),
            "One release, whole",
        ),
        keyed(operation(
            "restart",
            Method::POST,
            "/v1/projects/{project}/services/{service}/restart",
            Shape::Nothing,
            json_of::<wire::Released>(),
            "Start every instance anew, as a rolling change",
        )),
        keyed(operation(
            "rollback",
            Method::POST,
            "/v1/projects/{project}/services/{service}/rollback",
            json_of::<wire::Rollback>(),
            json_of::<wire::Released>(),
            "Return to an earlier release's spec",
        )),
    ]
}

pub(super) fn rollouts() -> Vec<Operation> {
    vec![
        operation(
            "getRollout",
            Method::GET,
            "/v1/projects/{project}/rollouts/{service}",
            Shape::Nothing,
            json_of::<Rollout>(),
            "How the newest release rolls out",
        ),
        operation(
            "steerRollout",
            Method::POST,
            "/v1/projects/{project}/rollouts/{service}/steer",
            json_of::<wire::SteerRollout>(),
            json_of::<Rollout>(),
            "Hold a rollout where it is, let it go on, or give it up",
        ),
    ]
}
