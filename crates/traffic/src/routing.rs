//! Host and path → service.
//!
//! A host matches exactly, or by `*` when no route names it. Of the routes of a host the longest path prefix wins; a prefix
//! matches whole segments only, so `/api` takes `/api` and `/api/x` but not `/apis`.

use std::collections::HashMap;
use std::sync::Arc;

use model::ids::ResourceId;
use model::traffic::GatewayRoute;

const ANY_HOST: &str = "*";

/// How many paths a refusal lists; more would hide the one that is meant.
const LISTED_PATHS: usize = 20;

/// The routes of a gateway, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Router {
    /// For each host its routes, longest prefix first.
    hosts: HashMap<String, Vec<Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// Without the slash at its end: empty is all.
    prefix: String,
    to: Arc<ResourceId>,
}

impl Router {
    pub fn new(routes: &[GatewayRoute]) -> Self {
        let mut hosts: HashMap<String, Vec<Entry>> = HashMap::new();
        for route in routes {
            hosts
                .entry(route.host.to_ascii_lowercase())
                .or_default()
                .push(Entry {
                    prefix: route.path.trim_end_matches('/').to_owned(),
                    to: Arc::new(route.to.clone()),
                });
        }
        for entries in hosts.values_mut() {
            entries.sort_by(|one, other| {
                (other.prefix.len(), &one.prefix).cmp(&(one.prefix.len(), &other.prefix))
            });
        }
        Self { hosts }
    }

    /// `host` may carry a port, any case, and the dot of the root at its end. Empty: the request names none.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<ResourceId>> {
        self.entries(host)?
            .iter()
            .find(|entry| prefix_matches(&entry.prefix, path))
            .map(|entry| &entry.to)
    }

    fn entries(&self, host: &str) -> Option<&Vec<Entry>> {
        let host = without_port(host);
        self.hosts.get(host).or_else(|| self.find_other(host))
    }

    /// The slow way: a host with capitals or with the dot of the root at its end, then `*`.
    fn find_other(&self, host: &str) -> Option<&Vec<Entry>> {
        let without_dot = host.strip_suffix('.').unwrap_or(host);
        self.hosts
            .get(&without_dot.to_ascii_lowercase())
            .or_else(|| self.hosts.get(ANY_HOST))
    }

    /// The paths that lead somewhere on this host, for the one who asked in vain: sorted, at most twenty. Empty for a host without routes.
    /// Other hosts are nobody's business who asks for this one.
    pub fn paths(&self, host: &str) -> Vec<&str> {
        let entries = self.entries(host).into_iter().flatten();
        let mut paths: Vec<&str> = entries
            .map(|entry| match entry.prefix.as_str() {
                "" => "/",
                prefix => prefix,
            })
            .collect();
        paths.sort_unstable();
        paths.truncate(LISTED_PATHS);
        paths
    }
}

fn prefix_matches(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        || prefix.is_empty()
}

/// `shop.localhost:8080` → `shop.localhost`, `[::1]:80` → `[::1]`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str, path: &str, to: &str) -> GatewayRoute {
        GatewayRoute {
            host: host.to_owned(),
            path: path.to_owned(),
            to: format!("shop/{to}").parse().unwrap(),
        }
    }

    #[test]
    fn the_longest_prefix_on_whole_segments_wins() {
        let router = Router::new(&[
            route("shop.localhost", "/", "storefront"),
            route("shop.localhost", "/api", "checkout"),
            route("shop.localhost", "/api/cart/", "cart"),
            route("only.localhost", "/x", "x"),
            route("*", "/", "fallback"),
        ]);
        for (host, path, expected) in [
            ("shop.localhost", "/", Some("storefront")),
            ("shop.localhost:8080", "/api", Some("checkout")),
            ("SHOP.localhost", "/api/x", Some("checkout")),
            ("shop.localhost.", "/api", Some("checkout")),
            ("Shop.Localhost.:8080", "/api", Some("checkout")),
            ("shop.localhost..", "/api", Some("fallback")),
            ("", "/api", Some("fallback")),
            ("shop.localhost", "/apis", Some("storefront")),
            ("shop.localhost", "/api/cart", Some("cart")),
            ("shop.localhost", "/api/cart/7", Some("cart")),
            ("shop.localhost", "/api/carts", Some("checkout")),
            ("only.localhost", "/y", None),
            ("other.localhost", "/y", Some("fallback")),
            ("[::1]:8080", "/y", Some("fallback")),
            ("shop.localhost", "*", Some("storefront")),
        ] {
            let found = router.find(host, path).map(|id| id.name.as_str());
            assert_eq!(found, expected, "{host}{path}");
        }
    }

    #[test]
    fn a_refusal_lists_the_paths_of_the_host_and_no_other() {
        let named = [
            route("b", "/", "x"),
            route("a", "/web", "y"),
            route("a", "/api/", "y"),
        ];
        let any = [route("*", "/any", "z"), route("a", "/api", "y")];
        for (routes, host, expected) in [
            (&named[..], "A:80", vec!["/api", "/web"]),
            (&named, "b", vec!["/"]),
            (&named, "c", vec![]),
            (&any, "a", vec!["/api"]),
            (&any, "c", vec!["/any"]),
            (&[], "a", vec![]),
        ] {
            assert_eq!(Router::new(routes).paths(host), expected, "{host}");
        }
        let many: Vec<_> = (0..30).map(|n| route("a", &format!("/{n}"), "y")).collect();
        assert_eq!(Router::new(&many).paths("a").len(), LISTED_PATHS);
    }
}
