//! The ring of keys that seal secrets.

use std::sync::Arc;

use crate::call::{self, Answer, Call};
use crate::ring;
use crate::state::Server;

pub async fn status(server: Arc<Server>, _: Call) -> Answer {
    Ok(call::json(&ring::status(&server).await?))
}

pub async fn rotate(server: Arc<Server>, call: Call) -> Answer {
    let status = ring::rotate(&server, call.principal.name()).await?;
    Ok(call::json(&status))
}
