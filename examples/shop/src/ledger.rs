//! What an auditor reads: one JSON text per line, in the order of the first field, [`LINES`] a page at most. `?after=` the first
//! field of the last line gives the next page; an empty page is the end.

use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use http::header;
use serde::Deserialize;

use crate::database::Database;
use crate::service::Refusal;

/// Of one page. Stands in each statement's `limit` too.
pub const LINES: usize = 5000;

#[derive(Debug, Deserialize)]
pub struct Page {
    #[serde(default)]
    after: String,
}

/// A page of a statement that takes the cursor and gives one column of JSON texts.
pub async fn page(
    database: &Database,
    statement: &'static str,
    Query(page): Query<Page>,
) -> Result<Response, Refusal> {
    let rows = database.rows(statement, &[&page.after]).await?;
    let mut text = String::new();
    for row in &rows {
        text.push_str(row.get(0));
        text.push('\n');
    }
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response())
}
