//! Errors as RFC 9457 problems: `application/problem+json`, with a stable code and a remedy.

use std::fmt;

use model::traffic::PROBLEM_TYPE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub const CONTENT_TYPE: &str = "application/problem+json";

/// What went wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `https://mainland.dev/problems/{code}`: a name, not an address to fetch.
    #[serde(rename = "type")]
    pub kind: String,
    /// Stable and kebab-case: what scripts compare.
    pub code: String,
    pub title: String,
    pub status: u16,
    /// What was being done and with what.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Problem {
    pub fn new(status: u16, code: &str, title: impl Into<String>) -> Self {
        Self {
            kind: format!("{PROBLEM_TYPE}{code}"),
            code: code.to_owned(),
            title: title.into(),
            status,
            detail: String::new(),
            remedy: None,
        }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    pub fn invalid(title: impl Into<String>) -> Self {
        Self::new(400, "invalid", title)
    }

    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(404, "not-found", format!("{what} does not exist"))
    }

    pub fn forbidden(why: impl Into<String>) -> Self {
        Self::new(403, "forbidden", why)
    }

    pub fn unauthenticated() -> Self {
        Self::new(401, "unauthenticated", "the request shows no valid token or certificate").remedy(
            "pass a token in MAINLAND_TOKEN, or run the command on the machine (and as the user) that runs `mainland up`",
        )
    }

    pub fn conflict(code: &str, title: impl Into<String>) -> Self {
        Self::new(409, code, title)
    }

    pub fn unavailable(code: &str, title: impl Into<String>) -> Self {
        Self::new(503, code, title)
    }

    pub fn internal(title: impl Into<String>) -> Self {
        Self::new(500, "internal", title)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.title, self.code)?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  remedy: {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// Names longer than this are nobody's slip of the finger.
const NAME_MAX_BYTES: usize = 128;

/// The name among `known` that was probably meant: at most every third letter is another, or in another place.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > NAME_MAX_BYTES {
        return None;
    }
    let most = name.chars().count().div_ceil(3).max(1);
    let distances = known
        .into_iter()
        .map(|other| (strsim::damerau_levenshtein(name, other), other));
    let (distance, other) = distances.min()?;
    let length = name.chars().count().max(other.chars().count());
    // Names of one letter are all near each other.
    (distance <= most && distance < length).then_some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_was_probably_meant() {
        let known = ["payment", "cart", "orders-db"];
        let long = "payment".repeat(100);
        for (asked, found) in [
            ("paymnt", Some("payment")),
            ("apyment", Some("payment")),
            ("card", Some("cart")),
            // Three letters are missing of six.
            ("orders", None),
            ("zebra", None),
            ("", None),
            (long.as_str(), None),
        ] {
            assert_eq!(nearest(asked, known), found, "{asked}");
        }
        assert_eq!(nearest("web", []), None);
        assert_eq!(nearest("z", ["a", "b"]), None);
        assert_eq!(nearest("aa", ["a", "b"]), Some("a"));
    }
}
