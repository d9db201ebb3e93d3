//! Machines: for people, then what nodes ask for themselves.

use http::Method;
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired};

use super::{Operation, SMALL_BODY_MAX_BYTES, Shape, json_of, lines_of, operation, up_to};
use crate::wire;

/// A whole report: some 400 bytes for each instance of the fullest node.
const HEARTBEAT_MAX_BYTES: usize = 8 << 20;

pub(super) fn for_people() -> Vec<Operation> {
    vec![
        operation(
            "listNodes",
            Method::GET,
            "/v1/nodes",
            Shape::Nothing,
            json_of::<wire::List<wire::NodeView>>(),
            "The machines",
        ),
        operation(
            "cordon",
            Method::PUT,
            "/v1/nodes/{node}/cordoned",
            json_of::<bool>(),
            json_of::<wire::NodeView>(),
            "No new placements on a node, or again",
        ),
        operation(
            "explainNode",
            Method::GET,
            "/v1/nodes/{node}/explain",
            Shape::Nothing,
            json_of::<wire::Explanation>(),
            "Why a node stands as it does",
        ),
        operation(
            "removeNode",
            Method::DELETE,
            "/v1/nodes/{node}",
            Shape::Nothing,
            json_of::<wire::NodeRemoved>(),
            "Remove a node for good that is lost, or cordoned and empty; `?dry_run=true` only says what it would cost",
        ),
        operation(
            "releaseBrake",
            Method::POST,
            "/v1/brake/release",
            Shape::Nothing,
            json_of::<wire::BrakeReleased>(),
            "Say that the nodes that vanished at once are gone: what ran there is replaced",
        ),
        operation(
            "makeJoinToken",
            Method::POST,
            "/v1/join-tokens",
            json_of::<wire::MakeJoinToken>(),
            json_of::<wire::MadeJoinToken>(),
            "Let a machine in",
        ),
    ]
}

/// What a node is, and may know.
pub(super) fn identity() -> Vec<Operation> {
    vec![
        up_to(
            SMALL_BODY_MAX_BYTES,
            operation(
                "join",
                Method::POST,
                "/v1/join",
                json_of::<wire::Join>(),
                json_of::<wire::Joined>(),
                "Become a node, with a join token",
            ),
        ),
        up_to(
            SMALL_BODY_MAX_BYTES,
            operation(
                "renew",
                Method::POST,
                "/v1/nodes/{node}/renew",
                json_of::<wire::Renew>(),
                json_of::<wire::Joined>(),
                "A fresh certificate for a node, by its key",
            ),
        ),
        up_to(
            SMALL_BODY_MAX_BYTES,
            operation(
                "serviceCertificate",
                Method::POST,
                "/v1/nodes/{node}/certificates/{project}/{service}",
                json_of::<wire::CertificateRequest>(),
                json_of::<wire::CertificateAnswer>(),
                "A certificate for a service placed there",
            ),
        ),
        operation(
            "secretValues",
            Method::GET,
            "/v1/nodes/{node}/secrets/{project}/{service}",
            Shape::Nothing,
            json_of::<wire::SecretValues>(),
            "Secrets of a service placed there",
        ),
    ]
}

/// What a node sees, and should do.
pub(super) fn desired() -> Vec<Operation> {
    vec![
        up_to(
            HEARTBEAT_MAX_BYTES,
            operation(
                "heartbeat",
                Method::POST,
                "/v1/nodes/{node}/heartbeat",
                json_of::<Heartbeat>(),
                json_of::<HeartbeatAnswer>(),
                "What the node sees; renews its lease",
            ),
        ),
        operation(
            "desired",
            Method::GET,
            "/v1/nodes/{node}/desired",
            Shape::Nothing,
            lines_of::<NodeDesired>(),
            "What the node should run",
        ),
        operation(
            "tunnel",
            Method::GET,
            "/v1/nodes/{node}/tunnel",
            Shape::Nothing,
            Shape::Bytes,
            "Upgrade to `mainland-tunnel`: HTTP/2 on which the server asks and the node answers",
        ),
    ]
}
