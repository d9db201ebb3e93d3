//! What a store answers when it cannot do what was asked.

use std::fmt;
use std::sync::Arc;

use crate::{Condition, LeaseId, Limits, Revision};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A condition of the transaction did not hold; nothing was changed.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// The past that was asked for is forgotten. List again and watch from there.
    #[error("revision {asked} is compacted; the oldest known is {compacted}")]
    Compacted {
        asked: Revision,
        compacted: Revision,
    },
    /// A revision of another store, or of this one before it was restored.
    #[error("revision {asked} has not happened yet; the newest is {current}")]
    NotYet { asked: Revision, current: Revision },
    #[error("the key {key:?} is invalid: {reason}")]
    InvalidKey { key: String, reason: &'static str },
    #[error("the value of {key:?} has {bytes} bytes, more than the {} allowed", Limits::ALL.value_bytes)]
    ValueTooLarge { key: String, bytes: usize },
    #[error("the values of the transaction have {bytes} bytes, more than the {} allowed", Limits::ALL.transaction_bytes)]
    TransactionTooLarge { bytes: usize },
    #[error("the transaction has {count} operations, more than the {} allowed", Limits::ALL.operations)]
    TooManyOperations { count: usize },
    #[error("the transaction has {count} conditions, more than the {} allowed", Limits::ALL.conditions)]
    TooManyConditions { count: usize },
    #[error("the transaction changes {key:?} twice")]
    DuplicateKey { key: String },
    #[error("{0} does not exist or has ended")]
    LeaseUnknown(LeaseId),
    /// Surely not done; may be repeated later.
    #[error("the store cannot answer: {0}")]
    Unavailable(Fault),
    /// A write that was perhaps done, perhaps not: read before repeating it.
    #[error("whether the change was kept is unknown: {0}")]
    OutcomeUnknown(Fault),
}

/// Which condition failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Its place among the conditions of the transaction.
    pub index: usize,
    pub condition: Condition,
}

impl fmt::Display for Conflict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "condition {} does not hold: {}",
            self.index, self.condition
        )
    }
}

/// What the engine met: a full disk, a lost connection.
#[derive(Clone, Debug)]
pub struct Fault(Arc<dyn std::error::Error + Send + Sync>);

impl Fault {
    pub fn new(cause: impl std::error::Error + Send + Sync + 'static) -> Fault {
        Fault(Arc::new(cause))
    }

    /// The engine's own error, for those who know it.
    pub fn cause(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Fault) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Fault {}

impl From<::sqlite::Error> for Error {
    fn from(error: ::sqlite::Error) -> Error {
        match error {
            ::sqlite::Error::OutcomeUnknown { .. } => Error::OutcomeUnknown(Fault::new(error)),
            _ => Error::Unavailable(Fault::new(error)),
        }
    }
}
