//! What callers are told when something can't be done: RFC 9457, with a stable code.

use http::StatusCode;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use model::traffic::PROBLEM_TYPE;

use super::event::quoted;
use super::http::{Answer, json};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// Stable: callers match on it.
    pub code: &'static str,
    pub title: &'static str,
    pub detail: String,
}

impl Problem {
    pub fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            title,
            detail: detail.into(),
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        let title = "The request can't be read";
        Self::new(StatusCode::BAD_REQUEST, "bad-request", title, detail)
    }

    /// Nothing was done.
    pub fn overloaded(detail: impl Into<String>) -> Self {
        let title = "Too many requests are waiting";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", title, detail)
    }

    pub fn response(&self) -> Answer {
        let text = format!(
            r#"{{"type":"{PROBLEM_TYPE}{}","title":{},"status":{},"code":"{}","detail":{}}}"#,
            self.code,
            quoted(self.title),
            self.status.as_u16(),
            self.code,
            quoted(&self.detail)
        );
        let mut response = json(text);
        *response.status_mut() = self.status;
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, problem);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let second = HeaderValue::from_static("1");
            response.headers_mut().insert(RETRY_AFTER, second);
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            let post = HeaderValue::from_static("POST");
            response.headers_mut().insert(ALLOW, post);
        }
        response
    }
}

/// Something went wrong below: the disk, mostly.
impl From<sqlite::Error> for Problem {
    fn from(error: sqlite::Error) -> Self {
        let (code, title) = match &error {
            sqlite::Error::DiskFull { .. } => ("disk-full", "The disk is full"),
            sqlite::Error::Overloaded { .. } => ("overloaded", "Too many requests are waiting"),
            sqlite::Error::OutcomeUnknown { .. } => {
                ("outcome-unknown", "Whether it was stored is unknown")
            }
            _ => ("storage", "The topic's storage failed"),
        };
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            code,
            title,
            error.to_string(),
        )
    }
}
