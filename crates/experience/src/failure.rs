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

/// The code of a problem after which it is not known whether the change was made.
const OUTCOME_UNKNOWN: &str = "outcome-unknown";

/// What an apply is refused for until somebody assents.
pub const QUESTIONABLE: [&str; 2] = ["would-undo-rollback", "leaves-data"];

impl Failure {
    fn new(exit_code: u8, message: impl Into<String>) -> Self {
        Self {
            exit_code,
            message: message.into(),
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    /// Something was begun, and how it ends is not known.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(UNKNOWN, message)
    }

    pub fn from_error(error: impl std::fmt::Display) -> Self {
        Self::failed(error.to_string())
    }

    /// What is not there, with the name that was probably meant, or else where names are to be found.
    pub fn missing<'a>(
        what: impl std::fmt::Display,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
        else_see: &str,
    ) -> Self {
        let remedy = match api::problem::nearest(name, known) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => else_see.to_owned(),
        };
        Self::failed(format!("{what} [not-found]\n  remedy: {remedy}"))
    }

    /// Whether it says this code.
    pub fn is(&self, code: &str) -> bool {
        self.message.contains(&format!("[{code}]"))
    }

    /// Whether an apply was refused for what somebody may assent to.
    pub fn is_questionable(&self) -> bool {
        QUESTIONABLE.iter().any(|code| self.is(code))
    }

    pub fn print(&self) {
        // A closed stderr is no reason to end otherwise.
        let _ = writeln!(
            std::io::stderr(),
            "error: {}",
            crate::output::for_stderr(&self.message)
        );
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
            Error::Unknown { .. } => Self::unknown(error.to_string()),
            _ if error.code() == Some(OUTCOME_UNKNOWN) => Self::unknown(error.to_string()),
            Error::Unreachable { .. } => Self::failed(format!(
                "{error} [unreachable]\n  remedy: `mainland up` starts a cloud on this machine; --api or MAINLAND_API names another"
            )),
            Error::Unproven { .. } => Self::usage(format!(
                "{error} [unproven]\n  remedy: run this as the user whose cloud it is, with --data-dir where its data is not at the default place; or \
                 set MAINLAND_TOKEN to a token and MAINLAND_AUTHORITY to the certificate of its authority"
            )),
            Error::NotTheServer { address, .. } => {
                let port = address.rsplit(':').next().unwrap_or_default();
                Self::failed(format!(
                    "{error}; it was shown no token [not-the-server]\n  remedy: see what listens there (`ss -ltnp 'sport = :{port}'`), end it, and start \
                     the cloud again; if its server has new data by now, --data-dir names them"
                ))
            }
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
            std::io::ErrorKind::BrokenPipe => Self::new(0, ""),
            _ => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::problem::Problem;

    #[test]
    fn exit_codes_tell_what_is_known() {
        let told = |address: &str| (address.to_owned(), "it broke".to_owned());
        let (address, cause) = told("http://here");
        let table = [
            (Error::from(Problem::not_found("web")), FAILED),
            (
                Problem::unavailable("store-unavailable", "no room").into(),
                FAILED,
            ),
            (
                Problem::unavailable("outcome-unknown", "it broke").into(),
                UNKNOWN,
            ),
            (
                Error::Unreachable {
                    address: address.clone(),
                    cause: cause.clone(),
                },
                FAILED,
            ),
            (
                Error::Silent {
                    address: address.clone(),
                    cause: cause.clone(),
                },
                FAILED,
            ),
            (Error::Unknown { address, cause }, UNKNOWN),
        ];
        for (error, expected) in table {
            let text = error.to_string();
            assert_eq!(Failure::from(error).exit_code, expected, "{text}");
        }
    }

    #[test]
    fn what_is_missing_names_what_was_meant() {
        let known = ["payment", "cart"];
        let near = Failure::missing("there is no service paymnt", "paymnt", known, "see ps");
        assert!(near.message.ends_with("did you mean `payment`?"));
        let far = Failure::missing("there is no service x", "x", known, "see ps");
        assert!(far.is("not-found") && far.message.ends_with("remedy: see ps"));
    }
}
