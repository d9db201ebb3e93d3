//! Session affinity: a cookie keeps a client at one endpoint as long as that is well.
//!
//! The cookie's value is a hash of the endpoint's name, so that every gateway reads it alike and it tells nobody how many there are or where. A
//! client that makes one up reaches no more than it would without: an endpoint of the same service, or none, which is as if it had brought no cookie.

use std::hash::{DefaultHasher, Hash, Hasher};

use http::{HeaderMap, HeaderValue, header};

/// The cookie of one service.
pub struct Cookie {
    name: String,
    /// For each endpoint of the destination its value.
    values: Vec<String>,
}

impl Cookie {
    /// `endpoints`: what names each of them, in the destination's order.
    pub fn new(service: &str, endpoints: impl Iterator<Item = String>) -> Self {
        Self {
            name: format!("mainland-{}", hashed(service)),
            values: endpoints
                .map(|endpoint| hashed(&(service, endpoint)))
                .collect(),
        }
    }

    /// The endpoint that a request's cookie names.
    pub fn asked_for(&self, headers: &HeaderMap) -> Option<usize> {
        let cookies = headers.get_all(header::COOKIE).into_iter();
        let mut pairs = cookies
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        let (_, asked) = pairs.find(|(name, _)| *name == self.name)?;
        self.values.iter().position(|value| value == asked)
    }

    /// Sets it in an answer of the endpoint at `index`, unless the request brought it.
    pub fn set(&self, index: usize, asked: &HeaderMap, answer: &mut HeaderMap) {
        if self.asked_for(asked) == Some(index) {
            return;
        }
        let secure = asked
            .get("x-forwarded-proto")
            .is_some_and(|it| it == "https");
        let secure = if secure { "; Secure" } else { "" };
        let (name, value) = (&self.name, &self.values[index]);
        let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}");
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            answer.append(header::SET_COOKIE, cookie);
        }
    }
}

fn hashed(of: &(impl Hash + ?Sized)) -> String {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_leads_back_to_the_endpoint_that_set_it() {
        let endpoints = || ["a", "b", "c"].map(str::to_owned).into_iter();
        let cookie = Cookie::new("shop/web", endpoints());
        let other = Cookie::new("shop/api", endpoints());
        let mut answer = HeaderMap::new();
        cookie.set(1, &HeaderMap::new(), &mut answer);
        other.set(2, &HeaderMap::new(), &mut answer);
        let set: Vec<_> = answer.get_all(header::SET_COOKIE).iter().collect();
        let pairs: Vec<_> = set
            .iter()
            .map(|it| it.to_str().unwrap().split(';').next().unwrap())
            .collect();
        let mut asked = HeaderMap::new();
        let text = format!("x=y; {}; {}", pairs[0], pairs[1]);
        asked.insert(header::COOKIE, HeaderValue::try_from(text).unwrap());
        assert_eq!(cookie.asked_for(&asked), Some(1));
        assert_eq!(other.asked_for(&asked), Some(2));
        let mut answer = HeaderMap::new();
        cookie.set(1, &asked, &mut answer);
        assert!(answer.is_empty(), "the client has it");
        cookie.set(0, &asked, &mut answer);
        assert_eq!(answer.len(), 1, "another endpoint answered");
    }
}
