//! An order's event as it is delivered: a CloudEvent whose attributes are headers and whose data is the body. It comes at least
//! once, so what is done for it is done by its order and kind, not by how often it came.

use axum::Json;
use axum::extract::{FromRequest, Request};
use http::HeaderMap;
use serde_json::Value;

use crate::service::Refusal;

/// An order was placed.
pub const PLACED: &str = "order.placed";

#[derive(Debug)]
pub struct Event {
    pub kind: String,
    pub order_id: String,
    pub data: Value,
}

impl<S: Send + Sync> FromRequest<S> for Event {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let kind = attribute(request.headers(), "ce-type")?;
        let order_id = attribute(request.headers(), "ce-subject")?;
        let data = Json::from_request(request, state).await;
        let Json(data) = data.map_err(|error| Refusal::bad(error.body_text()))?;
        Ok(Self {
            kind,
            order_id,
            data,
        })
    }
}

fn attribute(headers: &HeaderMap, name: &str) -> Result<String, Refusal> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    let value = value.filter(|value| !value.is_empty());
    value
        .map(str::to_owned)
        .ok_or_else(|| Refusal::bad(format!("no event: the header {name} is missing")))
}
