//! Who may do what: principals, secrets, audit records.

pub mod audit;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{NodeName, ResourceId};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// May all.
    Administrator { name: String },
    /// May read what its own placements need, and report.
    Node { name: NodeName },
    /// May nothing yet.
    Service { id: ResourceId },
    /// Has shown nothing, or nothing valid.
    Anonymous,
}

/// The text form of a principal: `admin:root`, `node:a`, `service:shop/checkout`, `anonymous`, `system:leader`.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct PrincipalName(pub String);

impl fmt::Display for PrincipalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Administrator { name } => write!(f, "admin:{name}"),
            Self::Node { name } => write!(f, "node:{name}"),
            Self::Service { id } => write!(f, "service:{id}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

impl Principal {
    pub fn name(&self) -> PrincipalName {
        PrincipalName(self.to_string())
    }
}

/// Who a node is: the SHA-256 of its public key (the SubjectPublicKeyInfo of RFC 5280, DER), as 64 hexadecimal digits. The key is made at the
/// node's first start and never changes; certificates end, and names are given away.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct KeyFingerprint(pub String);

impl KeyFingerprint {
    /// Enough of it to tell one node from another of the same name.
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name in a certificate: `spiffe://{cluster}/node/{name}`, `spiffe://{cluster}/service/{project}/{name}` or
/// `spiffe://{cluster}/server`. <https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/>
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    pub cluster: String,
    pub holder: Holder,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Holder {
    Server,
    Node(NodeName),
    Service(ResourceId),
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.cluster)?;
        match &self.holder {
            Holder::Server => f.write_str("server"),
            Holder::Node(name) => write!(f, "node/{name}"),
            Holder::Service(id) => write!(f, "service/{id}"),
        }
    }
}

/// Why a text is not one of our SPIFFE names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the SPIFFE name of a server, node or service")]
pub struct SpiffeError(String);

impl FromStr for SpiffeId {
    type Err = SpiffeError;
    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let error = || SpiffeError(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(error)?;
        let (cluster, path) = rest.split_once('/').ok_or_else(error)?;
        if cluster.is_empty() {
            return Err(error());
        }
        let holder = match path.split_once('/') {
            None if path == "server" => Holder::Server,
            Some(("node", name)) => Holder::Node(name.parse().map_err(|_| error())?),
            Some(("service", id)) => Holder::Service(id.parse().map_err(|_| error())?),
            _ => return Err(error()),
        };
        Ok(Self {
            cluster: cluster.to_owned(),
            holder,
        })
    }
}

/// A declared secret: where its value comes from. The value itself is an envelope in the store, never part of a spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum SecretSource {
    /// Read by the CLI whenever it applies, sent apart from the spec. Other content is a new value.
    File { path: String },
    /// Random bytes, made by the server when the secret first appears, given as lower-case hexadecimal. 16 to 1024.
    Generate { bytes: u32 },
    /// Set by hand with `mainland secret set`.
    Given,
}

/// Who changed what, when: one record per change. Of what was refused there is one for all requests of a kind within a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditRecord {
    /// Its place in the chain. What was refused has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Of what was refused several times: the first time.
    pub at: Timestamp,
    pub principal: PrincipalName,
    /// `apply`, `delete`, `scale`, `restart`, `rollback`, `secret.set`, `node.join`, ...
    pub action: String,
    /// `shop/checkout`, `node/a`.
    pub on: String,
    pub outcome: AuditOutcome,
    /// How often it was asked for.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub times: u64,
    /// What changed, a line each; never a secret's value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
}

fn once() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_once(times: &u64) -> bool {
    *times == 1
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum AuditOutcome {
    Done,
    Refused { why: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_names_survive_their_text_form() {
        for text in [
            "spiffe://c1/server",
            "spiffe://c1/node/a",
            "spiffe://c1/service/shop/checkout",
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        for bad in [
            "spiffe:///server",
            "https://c1/server",
            "spiffe://c1/node",
            "spiffe://c1/service/x",
            "spiffe://c1/a/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
