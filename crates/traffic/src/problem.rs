//! The problems that clients of a proxy see: RFC 9457, with a stable code.

use http::StatusCode;
use model::traffic::PROBLEM_TYPE;
use serde::Serialize;

/// One problem. `detail` says what happened and what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub code: Code,
    pub detail: String,
}

/// Stable: users match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// No route leads from this host and path to a service.
    NoRoute,
    /// The request names no host, or one that is none.
    BadHost,
    /// The request can't be read, or its body broke off: the client's fault.
    RequestBroken,
    /// The head of the request is larger than is taken.
    HeadTooLarge,
    /// The target of the request is longer than is taken.
    TargetTooLong,
    /// The method has no meaning here.
    MethodNotAllowed,
    /// The request has a transfer coding other than `chunked`.
    CodingNotSupported,
    /// The caller has not declared the need.
    CallerNotDeclared,
    /// No copy of the service answers now; nothing was begun.
    NoEndpoint,
    /// A copy took the request and broke off; whether it was done is unknown.
    UpstreamBroken,
    /// The time for the whole request ran out; whether it was done is unknown.
    DeadlineExceeded,
    /// This proxy is not told of the service.
    UnknownService,
    /// The client has as many connections to the service as one client may.
    ClientShare,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::BadHost => "bad-host",
            Self::RequestBroken => "request-broken",
            Self::HeadTooLarge => "head-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::CodingNotSupported => "coding-not-supported",
            Self::CallerNotDeclared => "caller-not-declared",
            Self::NoEndpoint => "no-endpoint",
            Self::UpstreamBroken => "upstream-broken",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::UnknownService => "unknown-service",
            Self::ClientShare => "client-share",
        }
    }

    pub fn status(self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BadHost | Self::RequestBroken => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::CodingNotSupported => StatusCode::NOT_IMPLEMENTED,
            Self::CallerNotDeclared => StatusCode::FORBIDDEN,
            Self::NoEndpoint | Self::UnknownService => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamBroken => StatusCode::BAD_GATEWAY,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientShare => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::NoRoute => "No route leads there",
            Self::BadHost => "The request names no valid host",
            Self::RequestBroken => "The request can't be read",
            Self::TargetTooLong => "The target of the request is too long",
            Self::HeadTooLarge => "The head of the request is too large",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::CodingNotSupported => "The transfer coding is not supported",
            Self::CallerNotDeclared => "The caller has not declared this need",
            Self::NoEndpoint => "No copy of the service answers",
            Self::UpstreamBroken => "The service broke off",
            Self::DeadlineExceeded => "The time for the request ran out",
            Self::UnknownService => "The service is not known here",
            Self::ClientShare => "The client has its share",
        }
    }

    /// Whether it is worth asking again soon.
    pub fn passes(self) -> bool {
        matches!(
            self,
            Self::NoEndpoint | Self::UnknownService | Self::ClientShare
        )
    }
}

#[derive(Serialize)]
struct Text<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }

    pub fn to_json(&self) -> String {
        let code = self.code.as_str();
        let text = Text {
            kind: format!("{PROBLEM_TYPE}{code}"),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            code,
            detail: &self.detail,
        };
        serde_json::to_string(&text).expect("a problem is plain text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_like_rfc_9457() {
        let problem = Problem::new(Code::NoRoute, "no route for `x/`");
        assert_eq!(
            problem.to_json(),
            r#"{"type":"https://mainland.dev/problems/no-route","title":"No route leads there","status":404,"code":"no-route","detail":"no route for `x/`"}"#
        );
    }
}
