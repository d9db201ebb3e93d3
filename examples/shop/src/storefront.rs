//! The pages a person sees, from memory: plain HTML, CSS and JavaScript that need nothing from elsewhere.

use axum::Router;
use axum::http::HeaderName;
use axum::response::IntoResponse;
use axum::routing::get;
use http::header;

use crate::service::{self, Error, Settings};

/// Shows one page for all: what it shows, it decides by its address.
const PAGE: &str = include_str!("storefront/page.html");
const STYLE: &str = include_str!("storefront/shop.css");
const SCRIPT: &str = include_str!("storefront/shop.js");
const PICTURES: &str = include_str!("storefront/pictures.js");
const SCENES: &str = include_str!("storefront/scenes.js");

pub async fn run(settings: &Settings) -> Result<(), Error> {
    let router = Router::new()
        .route("/", get(|| text(PAGE, "text/html; charset=utf-8")))
        .route(
            "/orders/{order_id}",
            get(|| text(PAGE, "text/html; charset=utf-8")),
        )
        .route("/shop.css", get(|| text(STYLE, "text/css; charset=utf-8")))
        .route(
            "/shop.js",
            get(|| text(SCRIPT, "text/javascript; charset=utf-8")),
        )
        .route(
            "/pictures.js",
            get(|| text(PICTURES, "text/javascript; charset=utf-8")),
        )
        .route(
            "/scenes.js",
            get(|| text(SCENES, "text/javascript; charset=utf-8")),
        );
    service::serve(settings, router).await
}

async fn text(text: &'static str, kind: &'static str) -> impl IntoResponse {
    let policy: (HeaderName, &str) = (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    );
    (
        [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "max-age=60"),
            policy,
        ],
        text,
    )
}
