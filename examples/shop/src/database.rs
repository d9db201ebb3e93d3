//! PostgreSQL that may be gone for seconds: a small pool in which everything has a deadline.
//!
//! Each use is one statement, and so one transaction and one round trip. All statements of the shop may be repeated (they are
//! conditioned on a key or a state), so one that met a broken connection is tried once more on a new one.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Socket, Statement};

/// Of one process: one for what is done in batches, two beside it. Eighteen copies, and half as many again while they are replaced,
/// stay within what a database of 512 MiB gives.
const CONNECTIONS: usize = 3;
/// Until a connection is free, or a new one is made.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(2);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
const STATEMENT_WITHIN: Duration = Duration::from_secs(2);
/// The server gives a statement up as well, so that it holds no locks for a caller who is gone. All statements are small and go by
/// an index, so one plan holds for all parameters, and also for a table that has grown since: planning anew costs more than doing.
const OPTIONS: &str = "-c statement_timeout=2000 -c jit=off -c plan_cache_mode=force_generic_plan -c enable_seqscan=off";

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Whether it was done is unknown.
    #[error("{0}")]
    Unavailable(String),
    /// A row would break this rule of its table; nothing was done.
    #[error("the rule {0} would be broken")]
    Rule(String),
    #[error("{0}")]
    Statement(String),
}

pub type Parameter<'a> = &'a (dyn ToSql + Sync);

pub struct Database {
    config: Config,
    places: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    client: Client,
    traffic: AbortHandle,
    statements: HashMap<&'static str, Statement>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Without this a statement that was given up would keep its connection until it is answered.
        self.traffic.abort();
    }
}

impl Database {
    pub fn new(url: &str) -> Result<Self, Error> {
        let mut config: Config = url.parse().map_err(refused)?;
        config.options(OPTIONS).connect_timeout(ACQUIRE_WITHIN);
        Ok(Self {
            config,
            places: Semaphore::new(CONNECTIONS),
            idle: Mutex::new(Vec::new()),
        })
    }

    /// The rows of one statement.
    pub async fn rows(
        &self,
        statement: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Error> {
        let _place = self.place().await?;
        let reused = self.idle_connection();
        if let Some(mut connection) = reused {
            let answer = connection.rows(statement, parameters).await;
            if !connection.client.is_closed() {
                return self.done(connection, answer);
            }
        }
        let mut connection = self.connect().await?;
        let answer = connection.rows(statement, parameters).await;
        self.done(connection, answer)
    }

    /// The first row of one statement, if there is one.
    pub async fn row(
        &self,
        statement: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Row>, Error> {
        Ok(self.rows(statement, parameters).await?.into_iter().next())
    }

    /// Several statements without parameters, as one transaction. Without the deadline of a statement: tables are made so.
    pub async fn script(&self, statements: &str) -> Result<(), Error> {
        let connection = self.connect().await?;
        connection
            .client
            .batch_execute("set statement_timeout = '60s'")
            .await
            .map_err(sorted)?;
        let script = format!("begin; {statements}; commit");
        connection
            .client
            .batch_execute(&script)
            .await
            .map_err(sorted)
    }

    async fn place(&self) -> Result<SemaphorePermit<'_>, Error> {
        let place = timeout(ACQUIRE_WITHIN, self.places.acquire()).await;
        match place {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Error::Unavailable("all connections are busy".to_owned())),
        }
    }

    fn idle_connection(&self) -> Option<Connection> {
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        idle.retain(|connection| !connection.client.is_closed());
        idle.pop()
    }

    /// A server that refuses is asked again until the time is over: it may only be starting.
    async fn connect(&self) -> Result<Connection, Error> {
        let until = Instant::now() + ACQUIRE_WITHIN;
        loop {
            let Ok(connected) = timeout_at(until, self.config.connect(NoTls)).await else {
                return Err(Error::Unavailable("no connection in time".to_owned()));
            };
            match connected {
                Ok((client, traffic)) => return Ok(Connection::new(client, traffic)),
                Err(error) if Instant::now() + ASK_AGAIN_AFTER > until => {
                    return Err(Error::Unavailable(with_detail(&error)));
                }
                Err(_) => sleep(ASK_AGAIN_AFTER).await,
            }
        }
    }

    /// A connection whose statement was answered is used again; the fate of others is unknown.
    fn done(&self, connection: Connection, answer: Answer) -> Result<Vec<Row>, Error> {
        let Ok(answer) = answer else {
            return Err(Error::Unavailable("no answer in time".to_owned()));
        };
        if !connection.client.is_closed() {
            let mut idle = self
                .idle
                .lock()
                .unwrap_or_else(|broken| broken.into_inner());
            idle.push(connection);
        }
        answer.map_err(sorted)
    }
}

type Answer = Result<Result<Vec<Row>, tokio_postgres::Error>, tokio::time::error::Elapsed>;

impl Connection {
    fn new(client: Client, traffic: tokio_postgres::Connection<Socket, NoTlsStream>) -> Self {
        Self {
            client,
            traffic: tokio::spawn(async move { drop(traffic.await) }).abort_handle(),
            statements: HashMap::new(),
        }
    }

    async fn rows(&mut self, statement: &'static str, parameters: &[Parameter<'_>]) -> Answer {
        timeout(STATEMENT_WITHIN, self.prepared(statement, parameters)).await
    }

    async fn prepared(
        &mut self,
        statement: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let prepared = match self.statements.get(statement) {
            Some(prepared) => prepared.clone(),
            None => {
                let prepared = self.client.prepare(statement).await?;
                self.statements.insert(statement, prepared.clone());
                prepared
            }
        };
        self.client.query(&prepared, parameters).await
    }
}

/// The kinds of failure that callers tell apart.
fn sorted(error: tokio_postgres::Error) -> Error {
    let Some(database) = error.as_db_error() else {
        return match error.is_closed() || std::error::Error::source(&error).is_some() {
            true => Error::Unavailable(with_detail(&error)),
            false => refused(error),
        };
    };
    if *database.code() == SqlState::CHECK_VIOLATION {
        return Error::Rule(database.constraint().unwrap_or_default().to_owned());
    }
    match passes(database.code()) {
        true => Error::Unavailable(with_detail(&error)),
        false => refused(error),
    }
}

fn refused(error: tokio_postgres::Error) -> Error {
    Error::Statement(with_detail(&error))
}

/// Failures that pass by themselves: connections and resources, a server that stops or starts, conflicts between transactions,
/// and tables (or the right to use them) that are still being made.
fn passes(code: &SqlState) -> bool {
    let classes = ["08", "40", "53", "55", "57", "58"];
    let missing = [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::INVALID_CATALOG_NAME,
    ];
    classes.contains(&&code.code()[..2]) || missing.contains(code)
}

/// What the library says, with the cause that it leaves out.
fn with_detail(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
