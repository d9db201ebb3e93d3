//! Errors for people: what, where, how to mend it; and the exit code for scripts.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 outcome unknown.

use std::io::Write;

use api::client::Error;

/// A command's end that is not success.
#[derive(Debug)]
pub struct Failure {
    pub exit_code: u8,
    pub message: String,
}

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const UNKNOWN: u8 = 3;

impl Failure {
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit_code: USAGE,
            message: message.into(),
        }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            exit_code: FAILED,
            message: message.into(),
        }
    }

    pub fn from_error(error: impl std::fmt::Display) -> Self {
        Self::failed(error.to_string())
    }

    pub fn print(&self) {
        // A closed stderr is no reason to end otherwise.
        let _ = writeln!(std::io::stderr(), "error: {}", self.message);
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => error.into(),
            Err(error) => Self::failed(format!("{error:#}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::Unknown { .. } => Self {
                exit_code: UNKNOWN,
                message: error.to_string(),
            },
            Error::Unreachable { .. } => Self::failed(format!(
                "{error} [unreachable]\n  remedy: `mainland up` starts a cloud on this machine; --api or MAINLAND_API names another"
            )),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<api::stream::Error> for Failure {
    fn from(error: api::stream::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // A reader that has seen enough (`| head`) is no failure.
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self {
                exit_code: 0,
                message: String::new(),
            },
            _ => Self::failed(error.to_string()),
        }
    }
}
