//! One address for all routes, as a gateway would give it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The first one that a path begins with, whole segments only.
const ROUTES: [(&str, &str); 12] = [
    ("/api/products", "inventory"),
    ("/api/cart", "cart"),
    ("/api/checkout", "checkout"),
    ("/api/orders", "orders"),
    ("/api/provider", "provider"),
    ("/api/ledger/orders", "orders"),
    ("/api/ledger/payments", "provider"),
    ("/api/ledger/stock", "inventory"),
    ("/api/ledger/attempts", "checkout"),
    ("/api/ledger/effects/email", "email"),
    ("/api/ledger/effects/shipping", "shipping"),
    ("/api/ledger/effects/analytics", "analytics"),
];

struct Front {
    routes: Vec<(&'static str, String)>,
    client: Client<HttpConnector, Body>,
}

pub fn router(address: impl Fn(&str) -> String) -> Router {
    let mut routes: Vec<(&'static str, String)> = ROUTES
        .iter()
        .map(|(prefix, service)| (*prefix, address(service)))
        .collect();
    routes.push(("", address("storefront")));
    let client = Client::builder(TokioExecutor::new()).build_http();
    let front = Arc::new(Front { routes, client });
    Router::new().fallback(pass_on).with_state(front)
}

async fn pass_on(State(front): State<Arc<Front>>, mut request: Request) -> Response {
    let path = request.uri().path();
    let matching = |(prefix, _): &&(&str, String)| {
        let rest = path.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let base = front.routes.iter().find(matching).map(|(_, base)| base);
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let uri: Option<Uri> = base.and_then(|base| format!("{base}{target}").parse().ok());
    let Some(uri) = uri else {
        return StatusCode::NOT_FOUND.into_response();
    };
    *request.uri_mut() = uri;
    match front.client.request(request).await {
        Ok(response) => response.into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
