//! How one try failed.

use http::StatusCode;

use crate::retry::Stage;

/// A failed try: how far it came, and why, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    Try {
        stage: Stage,
        reason: String,
    },
    /// The callee does not let this caller in. Trying elsewhere would not help.
    Refused {
        reason: String,
    },
}

impl Failure {
    pub fn not_begun(reason: impl Into<String>) -> Self {
        Self::at(Stage::NotBegun, reason)
    }

    pub fn unreachable(reason: impl Into<String>) -> Self {
        Self::at(Stage::Unreachable, reason)
    }

    pub fn broken(reason: impl Into<String>) -> Self {
        Self::at(Stage::Broken, reason)
    }

    fn at(stage: Stage, reason: impl Into<String>) -> Self {
        Self::Try {
            stage,
            reason: reason.into(),
        }
    }
}

/// An error with the causes behind it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// An answer that says that something behind who answers is broken.
pub fn is_gateway_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}
