//! Who a request is from, in the gateway's words.
//!
//! Programs behind a gateway take `X-Forwarded-For` and its like for true, so they are the gateway's word alone: whatever a client says of itself is
//! dropped, in every spelling that a program may read as the same. Only a peer that is declared as a balancer is believed about its clients.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use model::traffic::Network;

use super::wire;

pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Addresses that are looked at in the list of a balancer, from its end.
const MOST_HOPS: usize = 16;

/// The client of one connection.
pub struct Origin {
    address: IpAddr,
    text: HeaderValue,
}

/// What a declared balancer says of one request. Others of its kind, `X-Forwarded-Host`, `-Port` and `-Prefix`, most balancers pass on as they come from the
/// client, so that they are nobody's word.
struct Told {
    client: Option<HeaderValue>,
    proto: HeaderValue,
}

impl Origin {
    pub fn new(client: SocketAddr) -> Self {
        let address = client.ip().to_canonical();
        Self {
            address,
            text: HeaderValue::from_str(&address.to_string()).expect("an IP is ASCII"),
        }
    }

    /// The client is on this machine: most likely who deploys, and not the public.
    pub fn is_local(&self) -> bool {
        self.address.is_loopback()
    }

    /// Replaces what the client claims by what is known. `trusted`: whose word about others is taken.
    pub fn mark(&self, headers: &mut HeaderMap, trusted: &[Network]) {
        let told = is_trusted(self.address, trusted).then(|| told(headers, trusted));
        wire::remove_ours(headers);
        wire::remove_where(headers, is_claim);
        let Told { client, proto } = told.unwrap_or_else(Told::nothing);
        headers.insert(FORWARDED_FOR, client.unwrap_or_else(|| self.text.clone()));
        headers.insert(FORWARDED_PROTO, proto);
        if let Some(host) = headers.get(header::HOST).cloned() {
            headers.insert(FORWARDED_HOST, host);
        }
    }
}

impl Told {
    fn nothing() -> Self {
        Self {
            client: None,
            proto: HeaderValue::from_static("http"),
        }
    }
}

fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(address))
}

/// The last address that no declared balancer has: what stands before it is the client's own word.
fn told(headers: &HeaderMap, trusted: &[Network]) -> Told {
    let mut client = None;
    for hop in last_first(headers, &FORWARDED_FOR).take(MOST_HOPS) {
        let Some(address) = address_of(hop) else {
            break;
        };
        client = Some(address);
        if !is_trusted(address, trusted) {
            break;
        }
    }
    let is_https = last_first(headers, &FORWARDED_PROTO)
        .next()
        .is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
    Told {
        client: client.and_then(|address| HeaderValue::from_str(&address.to_string()).ok()),
        proto: HeaderValue::from_static(if is_https { "https" } else { "http" }),
    }
}

fn last_first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().rev();
    values
        .flat_map(|value| value.to_str().unwrap_or_default().rsplit(','))
        .map(str::trim)
}

/// `192.0.2.1`, with a port or without; `[2001:db8::1]:80`, with brackets or without.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    let with_port = || Some(text.parse::<SocketAddr>().ok()?.ip());
    address
        .or_else(with_port)
        .map(|ip: IpAddr| ip.to_canonical())
}

/// Whether a header says who the client is, or what it asked for before somebody changed it. Programs that see headers as CGI variables can't tell
/// `X_Forwarded_For` from `X-Forwarded-For` (RFC 3875, 4.1.18).
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !matches!(
        name.as_bytes().first(),
        Some(b'x' | b'f' | b't' | b'c' | b'p')
    ) {
        return false;
    }
    let name = if name.contains('_') {
        Cow::Owned(name.replace('_', "-"))
    } else {
        Cow::Borrowed(name)
    };
    name.starts_with("x-forwarded")
        || matches!(
            name.as_ref(),
            "forwarded"
                | "x-real-ip"
                | "x-client-ip"
                | "x-cluster-client-ip"
                | "client-ip"
                | "true-client-ip"
                | "x-original-url"
                | "x-original-uri"
                | "x-original-host"
                | "x-original-forwarded-for"
                | "x-rewrite-url"
                | "x-host"
                // A program that takes headers for variables would take it for its own proxy (CVE-2016-5385).
                | "proxy"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn marked(from: &str, pairs: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let trusted: Vec<Network> = ["10.0.0.0/8", "2001:db8::/32"]
            .map(|network| network.parse().unwrap())
            .to_vec();
        let mut map = headers(pairs);
        Origin::new(from.parse().unwrap()).mark(&mut map, &trusted);
        let mut left: Vec<_> = map
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        left.sort();
        left
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn what_a_client_says_of_itself_is_dropped_in_every_spelling() {
        let claims = [
            ("host", "shop.localhost"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded_host", "evil"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-prefix", "/admin"),
            ("x-forwarded", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x_real_ip", "6.6.6.6"),
            ("x-original-url", "/admin"),
            ("x_rewrite_url", "/admin"),
            ("mainland_insist", "1"),
            ("client-ip", "6.6.6.6"),
            ("client_ip", "6.6.6.6"),
            ("x-cluster-client-ip", "6.6.6.6"),
            ("proxy", "http://6.6.6.6"),
            ("cookie", "c"),
            ("priority", "u=1"),
            ("x-forward", "mine"),
            ("from", "me"),
        ];
        let expected = pairs(&[
            ("cookie", "c"),
            ("from", "me"),
            ("host", "shop.localhost"),
            ("priority", "u=1"),
            ("x-forward", "mine"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "shop.localhost"),
            ("x-forwarded-proto", "http"),
        ]);
        assert_eq!(marked("192.0.2.1:5", &claims), expected);
        assert_eq!(marked("[::ffff:192.0.2.1]:5", &claims), expected);
    }

    #[test]
    fn a_declared_balancer_is_believed_about_the_last_that_is_none() {
        for (list, expected) in [
            (&["6.6.6.6, 192.0.2.9"][..], "192.0.2.9"),
            (&["6.6.6.6", "192.0.2.9, 10.1.1.1"], "192.0.2.9"),
            (&["2001:db8::7, 10.1.1.1"], "2001:db8::7"),
            (&["[2001:db9::7]:443"], "2001:db9::7"),
            (&["192.0.2.9:1234"], "192.0.2.9"),
            (&["192.0.2.9, unknown"], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            let mut given = vec![("host", "a"), ("x-forwarded-proto", "HTTPS")];
            given.extend(list.iter().map(|value| ("x-forwarded-for", *value)));
            let expected = pairs(&[
                ("host", "a"),
                ("x-forwarded-for", expected),
                ("x-forwarded-host", "a"),
                ("x-forwarded-proto", "https"),
            ]);
            assert_eq!(marked("10.0.0.1:5", &given), expected, "{list:?}");
        }
        let given = [
            ("host", "inner"),
            ("x-forwarded-host", "outer"),
            ("x-forwarded-port", "443"),
            ("x_forwarded_port", "1"),
            ("x-forwarded-prefix", "/admin"),
        ];
        let expected = pairs(&[
            ("host", "inner"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "inner"),
            ("x-forwarded-proto", "http"),
        ]);
        assert_eq!(marked("10.0.0.1:5", &given), expected);
    }
}
