//! What a project has and its manifest does not name: it goes on as it is, which who renamed a route does not expect.

use std::collections::BTreeSet;

use api::client::Client;
use api::wire::ProjectStatus;
use model::manifest::Manifest;

/// Names that are listed.
const NAMED_MOST: usize = 10;

/// `None`: all is declared, or the server does not say.
pub(super) async fn warning(client: &Client, manifest: &Manifest, aim: &str) -> Option<String> {
    let status = client.status_of_services(&manifest.project).await.ok()?;
    let services = manifest.services.keys().map(ToString::to_string);
    let routes = manifest.routes.iter();
    let routes = routes.map(|(_, route)| format!("{}{}", route.host, route.path));
    in_words(&status, &services.collect(), &routes.collect(), aim)
}

fn in_words(
    status: &ProjectStatus,
    services: &BTreeSet<String>,
    routes: &BTreeSet<String>,
    aim: &str,
) -> Option<String> {
    let in_force = status.services.iter().map(|one| one.name.to_string());
    let left = in_force.filter(|name| !services.contains(name));
    let left = left.map(|name| format!("service {name}"));
    let places = status.routes.iter();
    let places = places.map(|route| format!("{}{}", route.host, route.path));
    let places = places.filter(|place| !routes.contains(place));
    let all: Vec<_> = places
        .map(|place| format!("route {place}"))
        .chain(left)
        .collect();
    if all.is_empty() {
        return None;
    }
    let more = match all.len().saturating_sub(NAMED_MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = all.get(..NAMED_MOST).unwrap_or(&all).join(", ");
    Some(format!(
        "the manifest does not declare {named}{more}: it goes on as it is; `mainland apply --prune{aim}` removes it, and with --dry-run says so first"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(declared: (&[&str], &[&str])) -> Option<String> {
        let service = |name: &str| {
            serde_json::json!({
                "name": name, "wanted": 1, "ready": 1, "zones": {}, "external": false, "needs": [], "demand": 0,
            })
        };
        let route = |host: &str| serde_json::json!({ "host": host, "path": "/", "to": "web", "serving": true });
        let status = serde_json::json!({
            "project": "shop", "attention": [], "services": [service("web"), service("db")],
            "routes": [route("old.localhost"), route("new.localhost")],
        });
        let status = serde_json::from_value(status).unwrap();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        in_words(&status, &set(declared.0), &set(declared.1), " -p shop")
    }

    #[test]
    fn what_is_in_force_and_not_declared_is_named() {
        let routes = &["old.localhost/", "new.localhost/"];
        assert_eq!(said((&["db", "web", "more"], routes)), None);
        assert_eq!(
            said((&["web"], &routes[1..])).unwrap(),
            "the manifest does not declare route old.localhost/, service db: it goes on as it is; \
             `mainland apply --prune -p shop` removes it, and with --dry-run says so first"
        );
    }
}
