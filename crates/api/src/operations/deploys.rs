//! Making a manifest true.

use http::Method;

use super::{Operation, Shape, json_of, keyed, operation, up_to};
use crate::wire;

/// Some hundred services at the longest specs, or as many secrets.
const APPLY_MAX_BYTES: usize = 8 << 20;

pub(super) fn all() -> Vec<Operation> {
    vec![
        keyed(up_to(
            APPLY_MAX_BYTES,
            operation(
                "apply",
                Method::POST,
                "/v1/projects/{project}/apply",
                json_of::<wire::Apply>(),
                json_of::<wire::Applied>(),
                "Make many resources true in one step; `?dry_run=true` only says what it would do; `?deploy=ID` by who holds the deploy",
            ),
        )),
        operation(
            "holdDeploy",
            Method::PUT,
            "/v1/projects/{project}/deploys/{id}",
            json_of::<wire::HoldDeploy>(),
            json_of::<wire::Deploy>(),
            "Deploy alone in a project under an id of one's own, and say every 5 s that one still does: 15 s of silence end it",
        ),
        operation(
            "endDeploy",
            Method::DELETE,
            "/v1/projects/{project}/deploys/{id}",
            Shape::Nothing,
            json_of::<bool>(),
            "Let others deploy; whether it was still held",
        ),
    ]
}
