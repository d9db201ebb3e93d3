//! May this principal do this (`authorize`), and does it fit into the limits (`admit`)? Both are plain functions that every
//! request passes.
//!
//! The first policy:
//!
//! | principal | may |
//! |---|---|
//! | administrator | everything |
//! | node | report and ask as itself; read what its own placements need: their secrets, certificates and artifacts |
//! | service | ask for health and version |
//! | anonymous | ask for health and version, and try to join |
//!
//! Whether something is placed on a node is known to the caller, who says so in the [`Action`] ([`Placed`]).

use model::boundary::Principal;
use model::control::Reason;
use model::ids::{Digest, NodeName, ProjectName, ResourceId, ResourceName};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Health,
    Version,
    /// To become a node. The join token is checked by the one who lets in.
    Join,
    /// Something of a project.
    Resource {
        verb: Verb,
        project: ProjectName,
        /// As in the path: `services`, `secrets`, `routes`.
        kind: String,
        /// `None`: all of the kind.
        name: Option<ResourceName>,
    },
    /// The cluster itself: its nodes, events, audit log, tokens, artifacts from the outside.
    Cluster {
        verb: Verb,
        /// As in the path: `nodes`, `events`, `audit`.
        kind: String,
        /// `None`: all of the kind.
        name: Option<String>,
    },
    /// What an agent asks for in the name of a node.
    Node {
        node: NodeName,
        wants: NodeWants,
    },
}

/// How something is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Read,
    /// Create or change.
    Write,
    Delete,
    /// Change what runs and not what is declared: restart, cordon, exec.
    Operate,
}

/// What an agent asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeWants {
    /// To report.
    Heartbeat,
    /// To be told what to run.
    Desired,
    /// To be dialled back through its own connection: logs, exec.
    Tunnel,
    /// A certificate of its own name.
    Certificate,
    /// A certificate of a service's name.
    ServiceCertificate { service: ResourceId, placed: Placed },
    /// A secret's value, which services placed on it need.
    Secret { secret: ResourceId, placed: Placed },
    /// The bytes of an artifact, which its placements use.
    Artifact { digest: Digest, placed: Placed },
}

/// Whether a placement puts it, or something that needs it, on the node that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placed {
    Here,
    Elsewhere,
}

impl Placed {
    pub fn here(here: bool) -> Self {
        if here { Self::Here } else { Self::Elsewhere }
    }
}

/// Why something was refused: for the answer, the audit log and `explain`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    pub reason: Reason,
}

impl Refusal {
    fn new(code: &str, message: String) -> Self {
        Self {
            reason: Reason::new(code, message),
        }
    }

    /// The same refusal in the words of who knows the operation: `words` ends the sentence *may not …*.
    pub fn in_words(mut self, principal: &Principal, words: &str) -> Self {
        match self.reason.code.as_str() {
            "unauthenticated" => self.reason.message = format!("to {words}, show a token"),
            "not-permitted" => self.reason.message = format!("{principal} may not {words}"),
            _ => {}
        }
        self
    }
}

/// Whether `principal` may do `action`.
///
/// Codes of refusals: `unauthenticated` (nobody was shown, so showing somebody may help), `not-permitted`, `other-node`,
/// `not-placed-here`.
pub fn authorize(principal: &Principal, action: &Action) -> Result<(), Refusal> {
    match (principal, action) {
        (_, Action::Health | Action::Version) => Ok(()),
        (Principal::Administrator { .. }, _) => Ok(()),
        (Principal::Anonymous, Action::Join) => Ok(()),
        // Its certificate may have ended: who gives it another looks at its key.
        (
            Principal::Anonymous,
            Action::Node {
                wants: NodeWants::Certificate,
                ..
            },
        ) => Ok(()),
        (Principal::Anonymous, _) => Err(Refusal::new(
            "unauthenticated",
            format!("to {action}, show a token or a certificate"),
        )),
        (Principal::Node { name }, Action::Node { node, wants }) => {
            authorize_node(name, node, wants)
        }
        (Principal::Node { .. } | Principal::Service { .. }, _) => Err(Refusal::new(
            "not-permitted",
            format!("{principal} may not {action}"),
        )),
    }
}

fn authorize_node(name: &NodeName, node: &NodeName, wants: &NodeWants) -> Result<(), Refusal> {
    if name != node {
        let message = format!("node:{name} may not {wants} as node {node}");
        return Err(Refusal::new("other-node", message));
    }
    match wants {
        NodeWants::ServiceCertificate {
            placed: Placed::Elsewhere,
            ..
        }
        | NodeWants::Secret {
            placed: Placed::Elsewhere,
            ..
        }
        | NodeWants::Artifact {
            placed: Placed::Elsewhere,
            ..
        } => Err(Refusal::new(
            "not-placed-here",
            format!("node:{name} may not {wants}: nothing placed on it needs that"),
        )),
        _ => Ok(()),
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Health => f.write_str("ask for health"),
            Self::Version => f.write_str("ask for the version"),
            Self::Join => f.write_str("join"),
            Self::Resource {
                verb,
                project,
                kind,
                name: None,
            } => write!(f, "{verb} the {kind} of {project}"),
            Self::Resource {
                verb,
                project,
                kind,
                name: Some(name),
            } => write!(f, "{verb} {kind} {project}/{name}"),
            Self::Cluster {
                verb,
                kind,
                name: None,
            } => write!(f, "{verb} the {kind} of the cluster"),
            Self::Cluster {
                verb,
                kind,
                name: Some(name),
            } => write!(f, "{verb} {kind} {name}"),
            Self::Node { node, wants } => write!(f, "{wants} as node {node}"),
        }
    }
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "change",
            Self::Delete => "delete",
            Self::Operate => "operate",
        })
    }
}

impl std::fmt::Display for NodeWants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Heartbeat => f.write_str("report"),
            Self::Desired => f.write_str("ask what to run"),
            Self::Tunnel => f.write_str("open a tunnel"),
            Self::Certificate => f.write_str("get a node's certificate"),
            Self::ServiceCertificate { service, .. } => {
                write!(f, "get the certificate of service {service}")
            }
            Self::Secret { secret, .. } => write!(f, "read secret {secret}"),
            Self::Artifact { digest, .. } => write!(f, "read artifact {digest}"),
        }
    }
}

/// How much there may be. Generous: they keep a mistake in a script from filling the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub projects: usize,
    /// Of all kinds together, in one project.
    pub resources_per_project: usize,
    /// Wanted copies of one service.
    pub replicas_per_service: u64,
    /// Wanted copies of all services of one project.
    pub replicas_per_project: u64,
    /// Bytes of one secret's value.
    pub secret_length: usize,
    /// Bytes of one resource's spec, as JSON.
    pub spec_length: usize,
    pub nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            projects: 1_000,
            resources_per_project: 5_000,
            replicas_per_service: 10_000,
            replicas_per_project: 100_000,
            secret_length: crate::secret::VALUE_MAX_LENGTH,
            spec_length: model::compute::programs::SPEC_MAX_BYTES,
            nodes: 10_000,
        }
    }
}

/// What a change would make of the cluster: counts *after* it, as the caller knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Project {
        projects: usize,
    },
    Resource {
        project: ProjectName,
        resources: usize,
        /// Of this one's spec.
        spec_length: usize,
    },
    Replicas {
        service: ResourceId,
        replicas: u64,
        in_project: u64,
    },
    Secret {
        secret: ResourceId,
        length: usize,
    },
    Node {
        nodes: usize,
    },
}

/// Whether a change, which is permitted, also fits. All refusals have the code `limit`.
pub fn admit(change: &Change, limits: &Limits) -> Result<(), Refusal> {
    match change {
        Change::Project { projects } => at_most(*projects, limits.projects, || {
            "projects in the cluster".to_owned()
        }),
        Change::Resource {
            project,
            resources,
            spec_length,
        } => {
            at_most(*resources, limits.resources_per_project, || {
                format!("resources in project {project}")
            })?;
            at_most(*spec_length, limits.spec_length, || {
                "bytes in the spec of a resource".to_owned()
            })
        }
        Change::Replicas {
            service,
            replicas,
            in_project,
        } => {
            at_most(*replicas, limits.replicas_per_service, || {
                format!("replicas of {service}")
            })?;
            at_most(*in_project, limits.replicas_per_project, || {
                format!("replicas in project {}", service.project)
            })
        }
        Change::Secret { secret, length } => at_most(*length, limits.secret_length, || {
            format!("bytes in secret {secret}")
        }),
        Change::Node { nodes } => {
            at_most(*nodes, limits.nodes, || "nodes in the cluster".to_owned())
        }
    }
}

fn at_most<N: PartialOrd + std::fmt::Display>(
    asked: N,
    most: N,
    of_what: impl Fn() -> String,
) -> Result<(), Refusal> {
    if asked <= most {
        return Ok(());
    }
    let message = format!("{asked} {} would be too many: at most {most}", of_what());
    Err(Refusal::new("limit", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principals() -> [Principal; 4] {
        [
            Principal::Administrator {
                name: "root".to_owned(),
            },
            Principal::Node {
                name: "a".parse().unwrap(),
            },
            Principal::Service {
                id: "shop/cart".parse().unwrap(),
            },
            Principal::Anonymous,
        ]
    }

    fn resource(verb: Verb, kind: &str) -> Action {
        Action::Resource {
            verb,
            project: "shop".parse().unwrap(),
            kind: kind.to_owned(),
            name: Some("cart".parse().unwrap()),
        }
    }

    fn cluster(verb: Verb) -> Action {
        Action::Cluster {
            verb,
            kind: "nodes".to_owned(),
            name: Some("a".to_owned()),
        }
    }

    fn node(name: &str, wants: NodeWants) -> Action {
        Action::Node {
            node: name.parse().unwrap(),
            wants,
        }
    }

    fn certificate(placed: Placed) -> NodeWants {
        NodeWants::ServiceCertificate {
            service: "shop/cart".parse().unwrap(),
            placed,
        }
    }

    fn secret(placed: Placed) -> NodeWants {
        NodeWants::Secret {
            secret: "shop/key".parse().unwrap(),
            placed,
        }
    }

    fn artifact(placed: Placed) -> NodeWants {
        NodeWants::Artifact {
            digest: Digest([1; 32]),
            placed,
        }
    }

    const YES: &str = "";
    const WHO: &str = "unauthenticated";
    const NO: &str = "not-permitted";
    const OTHER: &str = "other-node";
    const ELSEWHERE: &str = "not-placed-here";

    /// An action and the verdict on administrator, node `a`, service and anonymous.
    fn table() -> Vec<(Action, [&'static str; 4])> {
        use Placed::{Elsewhere, Here};
        vec![
            (Action::Health, [YES, YES, YES, YES]),
            (Action::Version, [YES, YES, YES, YES]),
            (Action::Join, [YES, NO, NO, YES]),
            (resource(Verb::Read, "services"), [YES, NO, NO, WHO]),
            (resource(Verb::Write, "services"), [YES, NO, NO, WHO]),
            (resource(Verb::Delete, "routes"), [YES, NO, NO, WHO]),
            (resource(Verb::Operate, "services"), [YES, NO, NO, WHO]),
            (resource(Verb::Read, "secrets"), [YES, NO, NO, WHO]),
            (cluster(Verb::Read), [YES, NO, NO, WHO]),
            (cluster(Verb::Operate), [YES, NO, NO, WHO]),
            (node("a", NodeWants::Heartbeat), [YES, YES, NO, WHO]),
            (node("a", NodeWants::Desired), [YES, YES, NO, WHO]),
            (node("a", NodeWants::Tunnel), [YES, YES, NO, WHO]),
            (node("a", NodeWants::Certificate), [YES, YES, NO, YES]),
            (node("b", NodeWants::Heartbeat), [YES, OTHER, NO, WHO]),
            (node("b", NodeWants::Desired), [YES, OTHER, NO, WHO]),
            (node("b", NodeWants::Tunnel), [YES, OTHER, NO, WHO]),
            (node("b", NodeWants::Certificate), [YES, OTHER, NO, YES]),
            (node("b", secret(Here)), [YES, OTHER, NO, WHO]),
            (node("a", certificate(Here)), [YES, YES, NO, WHO]),
            (node("a", certificate(Elsewhere)), [YES, ELSEWHERE, NO, WHO]),
            (node("a", secret(Here)), [YES, YES, NO, WHO]),
            (node("a", secret(Elsewhere)), [YES, ELSEWHERE, NO, WHO]),
            (node("a", artifact(Here)), [YES, YES, NO, WHO]),
            (node("a", artifact(Elsewhere)), [YES, ELSEWHERE, NO, WHO]),
        ]
    }

    #[test]
    fn each_principal_may_what_the_policy_says() {
        for (action, expected) in table() {
            for (principal, expected) in principals().iter().zip(expected) {
                let verdict = authorize(principal, &action);
                let code = verdict
                    .err()
                    .map_or(String::new(), |refusal| refusal.reason.code);
                assert_eq!(code, expected, "{principal}: {action}");
            }
        }
    }

    #[test]
    fn a_refusal_says_who_may_not_do_what() {
        let [_, a, ..] = principals();
        let refusal = authorize(&a, &node("a", secret(Placed::Elsewhere))).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "node:a may not read secret shop/key: nothing placed on it needs that"
        );
    }

    #[test]
    fn changes_fit_up_to_the_limit() {
        let limits = Limits {
            projects: 2,
            resources_per_project: 3,
            replicas_per_service: 4,
            replicas_per_project: 5,
            secret_length: 6,
            spec_length: 7,
            nodes: 8,
        };
        let project = || "shop".parse::<ProjectName>().unwrap();
        let id = || "shop/cart".parse::<ResourceId>().unwrap();
        let resource = |resources, spec_length| Change::Resource {
            project: project(),
            resources,
            spec_length,
        };
        let replicas = |replicas, in_project| Change::Replicas {
            service: id(),
            replicas,
            in_project,
        };
        let secret = |length| Change::Secret {
            secret: id(),
            length,
        };
        for (change, fits) in [
            (Change::Project { projects: 2 }, true),
            (Change::Project { projects: 3 }, false),
            (resource(3, 7), true),
            (resource(4, 7), false),
            (resource(3, 8), false),
            (replicas(4, 5), true),
            (replicas(5, 5), false),
            (replicas(4, 6), false),
            (secret(6), true),
            (secret(7), false),
            (Change::Node { nodes: 8 }, true),
            (Change::Node { nodes: 9 }, false),
        ] {
            assert_eq!(admit(&change, &limits).is_ok(), fits, "{change:?}");
        }
    }
}
