//! A change to a store: conditions that must hold, operations that then happen together.

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;

use crate::{Conflict, Error, LeaseId, Limits, Record, Revision};

/// What must hold for a transaction to happen. A key that does not exist has version 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Absent {
        key: String,
    },
    Exists {
        key: String,
    },
    Version {
        key: String,
        version: u64,
    },
    /// Last changed by exactly this revision: what `If-Match` asks for.
    Modified {
        key: String,
        revision: Revision,
    },
    Value {
        key: String,
        value: Bytes,
    },
}

impl Condition {
    pub fn key(&self) -> &str {
        match self {
            Condition::Absent { key }
            | Condition::Exists { key }
            | Condition::Version { key, .. }
            | Condition::Modified { key, .. }
            | Condition::Value { key, .. } => key,
        }
    }

    /// Whether it holds for the newest record of its key.
    pub fn holds(&self, record: Option<&Record>) -> bool {
        match self {
            Condition::Absent { .. } => record.is_none(),
            Condition::Exists { .. } => record.is_some(),
            Condition::Version { version, .. } => {
                record.map_or(0, |record| record.version) == *version
            }
            Condition::Modified { revision, .. } => {
                record.is_some_and(|record| record.modified == *revision)
            }
            Condition::Value { value, .. } => record.is_some_and(|record| record.value == *value),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Absent { key } => write!(formatter, "{key:?} does not exist"),
            Condition::Exists { key } => write!(formatter, "{key:?} exists"),
            Condition::Version { key, version } => {
                write!(formatter, "{key:?} has version {version}")
            }
            Condition::Modified { key, revision } => {
                write!(formatter, "{key:?} was last changed by {revision}")
            }
            // The value may be secret.
            Condition::Value { key, .. } => write!(formatter, "{key:?} has the expected value"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Put {
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    /// Of a key that does not exist: nothing.
    Delete { key: String },
}

impl Operation {
    pub fn key(&self) -> &str {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key } => key,
        }
    }
}

/// Built step by step: `Transaction::new().if_absent("a").put("a", "1")`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub conditions: Vec<Condition>,
    pub operations: Vec<Operation>,
}

impl Transaction {
    pub fn new() -> Transaction {
        Transaction::default()
    }

    pub fn condition(mut self, condition: Condition) -> Transaction {
        self.conditions.push(condition);
        self
    }

    pub fn if_absent(self, key: impl Into<String>) -> Transaction {
        self.condition(Condition::Absent { key: key.into() })
    }

    pub fn if_exists(self, key: impl Into<String>) -> Transaction {
        self.condition(Condition::Exists { key: key.into() })
    }

    pub fn if_version(self, key: impl Into<String>, version: u64) -> Transaction {
        self.condition(Condition::Version {
            key: key.into(),
            version,
        })
    }

    pub fn if_modified(self, key: impl Into<String>, revision: Revision) -> Transaction {
        self.condition(Condition::Modified {
            key: key.into(),
            revision,
        })
    }

    pub fn if_value(self, key: impl Into<String>, value: impl Into<Bytes>) -> Transaction {
        self.condition(Condition::Value {
            key: key.into(),
            value: value.into(),
        })
    }

    pub fn operation(mut self, operation: Operation) -> Transaction {
        self.operations.push(operation);
        self
    }

    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Transaction {
        self.operation(Operation::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        })
    }

    pub fn put_leased(
        self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Transaction {
        self.operation(Operation::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        })
    }

    pub fn delete(self, key: impl Into<String>) -> Transaction {
        self.operation(Operation::Delete { key: key.into() })
    }

    /// Refuses what no engine takes, before any engine sees it.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let limits = Limits::ALL;
        match (self.operations.len(), self.conditions.len()) {
            (count, _) if count > limits.operations => {
                return Err(Error::TooManyOperations { count });
            }
            (_, count) if count > limits.conditions => {
                return Err(Error::TooManyConditions { count });
            }
            _ => {}
        }
        self.conditions
            .iter()
            .try_for_each(|condition| check_key(condition.key()))?;
        let mut bytes = 0;
        let mut keys = HashSet::new();
        for operation in &self.operations {
            bytes += check_operation(operation)?;
            // One put is the hot path; it cannot be a duplicate.
            if self.operations.len() > 1 && !keys.insert(operation.key()) {
                return Err(Error::DuplicateKey {
                    key: operation.key().to_owned(),
                });
            }
        }
        if bytes > limits.transaction_bytes {
            return Err(Error::TransactionTooLarge { bytes });
        }
        Ok(())
    }

    /// The first condition that does not hold.
    pub(crate) fn conflict<E>(
        &self,
        mut holds: impl FnMut(&Condition) -> Result<bool, E>,
    ) -> Result<Option<Conflict>, E> {
        for (index, condition) in self.conditions.iter().enumerate() {
            if !holds(condition)? {
                return Ok(Some(Conflict {
                    index,
                    condition: condition.clone(),
                }));
            }
        }
        Ok(None)
    }
}

fn check_operation(operation: &Operation) -> Result<usize, Error> {
    check_key(operation.key())?;
    match operation {
        Operation::Put { key, value, .. } if value.len() > Limits::ALL.value_bytes => {
            Err(Error::ValueTooLarge {
                key: key.clone(),
                bytes: value.len(),
            })
        }
        Operation::Put { value, .. } => Ok(value.len()),
        Operation::Delete { .. } => Ok(0),
    }
}

pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    let reason = if key.is_empty() {
        "it is empty"
    } else if key.len() > Limits::ALL.key_bytes {
        "it is longer than 512 bytes"
    } else if key.chars().any(char::is_control) {
        "it has a control character"
    } else {
        return Ok(());
    };
    Err(Error::InvalidKey {
        key: key.chars().take(64).collect(),
        reason,
    })
}

/// The least text above all that start with `prefix`. None: there is no bound.
pub(crate) fn prefix_end(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        // The next scalar value; the surrogates between D7FF and E000 are none.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            _ => char::from_u32(last as u32 + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_text_without_it() {
        let table = [
            ("", None),
            ("a", Some("b")),
            ("res/", Some("res0")),
            ("z\u{10ffff}", Some("{")),
            ("\u{10ffff}", None),
            ("\u{d7ff}", Some("\u{e000}")),
        ];
        for (prefix, end) in table {
            assert_eq!(prefix_end(prefix).as_deref(), end, "{prefix:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused_with_its_own_error() {
        let key = "k".repeat(513);
        let value = vec![0; (1 << 20) + 1];
        let half = vec![0; 1 << 20];
        let many = (0..129).fold(Transaction::new(), |all, index| {
            all.put(format!("k{index}"), "")
        });
        let conditions = (0..129).fold(Transaction::new(), |all, _| all.if_exists("k"));
        let table = [
            (Transaction::new().put("", ""), "is invalid: it is empty"),
            (Transaction::new().put(key, ""), "longer than 512 bytes"),
            (Transaction::new().if_absent("a\n"), "control character"),
            (Transaction::new().put("k", value), "has 1048577 bytes"),
            (
                Transaction::new().put("k", half.clone()).put("l", half),
                "has 2097152 bytes",
            ),
            (many, "has 129 operations"),
            (conditions, "has 129 conditions"),
            (
                Transaction::new().put("k", "").delete("k"),
                "changes \"k\" twice",
            ),
        ];
        for (transaction, expected) in table {
            let message = transaction
                .check()
                .unwrap_err()
                .to_string()
                .replace("have", "has");
            assert!(message.contains(expected), "{message}");
        }
    }
}
