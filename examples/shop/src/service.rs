//! What each service does alike: it reads its settings from the environment, listens on `HOST:PORT`, answers `/healthz`, leaves on
//! SIGTERM when what it began is done, and refuses in one form.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::database::{self, Database};
use crate::peer::Peer;

/// Larger requests are refused: the largest true one is a cart.
const BODY_LIMIT_BYTES: usize = 64 * 1024;
/// A connection that won't end doesn't keep the process.
const LEAVE_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(&'static str),
    #[error("the environment lacks {0}")]
    Missing(String),
    #[error("{name} is {value:?}: {why}")]
    Unreadable {
        name: String,
        value: String,
        why: String,
    },
    #[error("can't listen on {address}: {source}")]
    Listen {
        address: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("database: {0}")]
    Database(#[from] database::Error),
    #[error("{0}")]
    ByHand(String),
}

impl Error {
    /// Whether whoever started the program is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::Missing(_))
    }
}

/// The environment of a service.
#[derive(Debug, Clone, Default)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    pub fn of_environment() -> Self {
        Self(std::env::vars().collect())
    }

    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self(pairs.iter().map(owned).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn require(&self, name: &str) -> Result<&str, Error> {
        self.get(name)
            .ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// A number, or what holds without one.
    pub fn number(&self, name: &str, otherwise: f64) -> Result<f64, Error> {
        let Some(value) = self.get(name) else {
            return Ok(otherwise);
        };
        value.parse().map_err(|_| Error::Unreadable {
            name: name.to_owned(),
            value: value.to_owned(),
            why: "not a number".to_owned(),
        })
    }

    pub fn database(&self) -> Result<Database, Error> {
        let name = "ORDERS_DB_URL";
        let url = self.require(name)?;
        Database::new(url).map_err(|error| Error::Unreadable {
            name: name.to_owned(),
            // Not the value: it holds a password.
            value: "...".to_owned(),
            why: error.to_string(),
        })
    }

    pub fn peer(&self, name: &str) -> Result<Peer, Error> {
        Ok(Peer::new(self.require(name)?))
    }
}

/// Serves until SIGTERM, then ends what has begun.
pub async fn serve(settings: &Settings, router: Router) -> Result<(), Error> {
    let host = settings.get("HOST").unwrap_or("127.0.0.1");
    let address = format!("{host}:{}", settings.require("PORT")?);
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|source| Error::Listen { address, source })?;
    let router = router
        .route("/healthz", get(|| async { "ok\n" }))
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES));
    let mut terminate = signal(SignalKind::terminate())?;
    let (leave, left) = tokio::sync::watch::channel(false);
    let mut leaving = left.clone();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = leaving.changed().await;
    });
    let patience = async move {
        terminate.recv().await;
        let _ = leave.send(true);
        tokio::time::sleep(LEAVE_WITHIN).await;
    };
    tokio::select! {
        ended = serving => Ok(ended?),
        () = patience => Ok(()),
    }
}

/// Why a request is not done. Its body is JSON with a sentence in `error`.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    body: Value,
    retry_after_seconds: Option<u32>,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            body: json!({"error": error.into()}),
            retry_after_seconds: None,
        }
    }

    pub fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// Not now, but soon.
    pub fn unavailable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error).retry_after(1)
    }

    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.body[field] = value.into();
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }
}

impl From<database::Error> for Refusal {
    fn from(error: database::Error) -> Self {
        // A defect or a database that is gone: both are read in the log, and neither is the caller's.
        eprintln!("database: {error}");
        match error {
            database::Error::Unavailable(_) => Self::unavailable("the database can't be reached"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database refused"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
