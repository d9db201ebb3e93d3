//! The server itself, and what happened anywhere.

use http::Method;
use model::boundary::AuditRecord;
use model::signals::Event;
use serde_json::Value;

use super::{Operation, Shape, json_of, lines_of, operation};
use crate::wire;

pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            "version",
            Method::GET,
            "/v1/version",
            Shape::Nothing,
            json_of::<wire::Version>(),
            "Which version answers",
        ),
        operation(
            "health",
            Method::GET,
            "/v1/health",
            Shape::Nothing,
            json_of::<wire::Health>(),
            "Whether the server decides",
        ),
        operation(
            "whoami",
            Method::GET,
            "/v1/whoami",
            Shape::Nothing,
            json_of::<wire::WhoAmI>(),
            "Who asks",
        ),
        operation(
            "openapi",
            Method::GET,
            "/v1/openapi.json",
            Shape::Nothing,
            json_of::<Value>(),
            "This document",
        ),
        operation(
            "audit",
            Method::GET,
            "/v1/audit",
            Shape::Nothing,
            json_of::<wire::List<AuditRecord>>(),
            "Who changed what, newest first; `?principal=`, `?action=`, `?on=`, `?since=` and `?until=` choose, `?limit=` is 100 where it is not said",
        ),
        operation(
            "auditChain",
            Method::GET,
            "/v1/audit/chain",
            Shape::Nothing,
            json_of::<wire::AuditChain>(),
            "The audit log as it is chained, from record `?from=` on: who walks along it sees whether it is whole",
        ),
        operation(
            "events",
            Method::GET,
            "/v1/events",
            Shape::Nothing,
            lines_of::<Event>(),
            "What happened anywhere; `?watch=true` goes on",
        ),
    ]
}
