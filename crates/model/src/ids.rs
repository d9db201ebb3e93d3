//! One type per kind of name and number, so that no two can be confused.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name that somebody gives. With `-` and a number behind it (an instance's name) it still fits into one DNS label.
pub const NAME_MAX_LENGTH: usize = 50;
/// What stays of a node's name where a part of its key is put behind it.
const NODE_NAME_KEPT: usize = NAME_MAX_LENGTH - 9;
/// Longest DNS label (RFC 1035).
const LABEL_MAX_LENGTH: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name can't be empty")]
    Empty,
    #[error("`{name}` is longer than {most} characters")]
    TooLong { name: String, most: usize },
    #[error(
        "`{0}` is not a name: use lower-case letters, digits and `-`, starting with a letter and not ending with `-`"
    )]
    Malformed(String),
}

fn check_name(text: &str, most: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > most {
        return Err(NameError::TooLong {
            name: text.to_owned(),
            most,
        });
    }
    let starts_well = text.starts_with(|first: char| first.is_ascii_lowercase());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !starts_well || text.ends_with('-') || !text.chars().all(allowed) {
        return Err(NameError::Malformed(text.to_owned()));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $most:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks that `text` is a DNS label and wraps it.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                check_name(&text, $most)?;
                Ok(Self(text))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// A tenant; names, quotas, secrets and permissions are scoped to it.
    ProjectName,
    NAME_MAX_LENGTH
);
name_type!(
    /// The name of any declared thing; unique in a project *across* kinds, since `needs` refers to them.
    ResourceName,
    NAME_MAX_LENGTH
);
name_type!(
    /// One machine.
    NodeName,
    NAME_MAX_LENGTH
);
name_type!(
    /// Machines that can fail together.
    ZoneName,
    NAME_MAX_LENGTH
);
name_type!(
    /// A place on earth.
    RegionName,
    NAME_MAX_LENGTH
);
name_type!(
    /// One running copy of a workload: `{service}-{n}`, `n` from a counter that only grows. Unique in a project.
    InstanceName,
    LABEL_MAX_LENGTH
);

/// A declared thing, named across projects: `project/name` in text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId {
    pub project: ProjectName,
    pub name: ResourceName,
}

/// An instance, named across projects: `project/instance` in text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    pub project: ProjectName,
    pub name: InstanceName,
}

impl NodeName {
    /// What a node is called from then on whose name was given to another: nobody can be asked for by this name, and what it holds is still
    /// held by somebody.
    pub fn former(&self, key: &str) -> Self {
        let key = key.get(..8).unwrap_or(key);
        let name = self.0.get(..NODE_NAME_KEPT).unwrap_or(&self.0);
        let name = name.trim_end_matches('-');
        Self(format!("{name}-{key}"))
    }
}

macro_rules! scoped_id {
    ($id:ident, $name:ident) => {
        impl $id {
            pub fn new(project: ProjectName, name: $name) -> Self {
                Self { project, name }
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.project, self.name)
            }
        }

        impl FromStr for $id {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let (project, name) =
                    text.split_once('/').ok_or_else(|| NameError::Malformed(text.to_owned()))?;
                Ok(Self { project: ProjectName::new(project)?, name: $name::new(name)? })
            }
        }

        impl Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $id {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($id).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": "^[a-z][a-z0-9-]*/[a-z][a-z0-9-]*$" })
            }
        }
    };
}

scoped_id!(ResourceId, ResourceName);
scoped_id!(InstanceId, InstanceName);

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type!(
    /// The number of a service's release; grows by one with each.
    ReleaseNumber
);
number_type!(
    /// A number that only grows; a higher one fences every lower one.
    Epoch
);
number_type!(
    /// One life of an agent process: drawn at random when it starts.
    SessionId
);

/// Orders what a leader tells: first by the leader's epoch, then by its counter.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub struct Generation {
    pub epoch: Epoch,
    pub counter: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

/// The SHA-256 of an artifact's bytes: `sha256:` and 64 lower-case hexadecimal digits in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Two lower-case hexadecimal digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits =
        |byte: &u8| [byte >> 4, byte & 0xf].map(|half| char::from(DIGITS[usize::from(half)]));
    bytes.iter().flat_map(digits).collect()
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected `sha256:` and 64 hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    /// The 64 hexadecimal digits without the `sha256:` in front: fit for a file name.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError(text.to_owned());
        let hex = text.strip_prefix("sha256:").ok_or_else(error)?;
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..index * 2 + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Digest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^sha256:[0-9a-f]{64}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "orders-db", "v2"] {
            assert!(ResourceName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "1a",
            "ä",
            "a.b",
            &"a".repeat(64),
        ] {
            assert!(ResourceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_in_hexadecimal() {
        assert_eq!(hex(&[0x00, 0x0f, 0xa0, 0xff]), "000fa0ff");
        assert_eq!(hex(&[]), "");
    }

    #[test]
    fn digests_survive_their_text_form() {
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert!("sha256:xyz".parse::<Digest>().is_err());
    }

    #[test]
    fn a_new_leader_outranks_every_count_of_the_old_one() {
        let old = Generation {
            epoch: Epoch(1),
            counter: 900,
        };
        let new = Generation {
            epoch: Epoch(2),
            counter: 1,
        };
        assert!(new > old);
    }
}
