//! What a database answers its node: `GET /health`, `GET /status`, `GET /tables`. Nothing in it is secret.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use model::ids::ResourceName;
use model::state::{EngineStatus, Share, Table};
use model::units::Bytes;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::access::{Access, hand, superuser, told};
use super::extensions::Extensions;
use super::health::Health;
use super::outbox;
use super::tuning::OF_PEOPLE;

/// For a query that asks whether the server answers.
const HEALTH_PATIENCE: Duration = Duration::from_secs(2);
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How old a size may be: finding it looks at every file.
const SIZE_AGE: Duration = Duration::from_secs(10);

const TABLES: &str = "select n.nspname::text, c.relname::text,
    (case when c.reltuples < 0 then pg_stat_get_live_tuples(c.oid) else c.reltuples end)::int8, pg_total_relation_size(c.oid)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'm') and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
    and not (n.nspname = 'public' and c.relname = $1)
  order by 1, 2 limit 1000";
const NUMBERS: &str = "select current_setting('server_version'), current_setting('max_connections')::int4 - current_setting('superuser_reserved_connections')::int4 - $2::text::int4,
    (select count(*) from pg_stat_activity where datname = current_database() and usename <> all($1))";

const SHARES: &str = "select rolname::text, (select count(*) from pg_stat_activity where usesysid = r.oid), rolconnlimit
    from pg_roles r where rolconnlimit > 0 and rolcanlogin and not rolsuper";

pub struct Answers {
    pub health: Arc<Health>,
    /// Once the server runs.
    pub access: OnceLock<Access>,
    pub outbox: Option<outbox::Table>,
    pub extensions: Arc<Extensions>,
    sessions: [Session; 3],
    size: Mutex<Option<(Instant, Bytes)>>,
}

/// A connection that is kept for the next question.
#[derive(Default)]
struct Session(Mutex<Option<Arc<Client>>>);

#[derive(Clone, Copy)]
pub enum Purpose {
    /// Its own, that nothing slow stands before.
    Health,
    Catalog,
    /// As the owner: what is asked may be a view with the team's code in it.
    Outbox,
}

impl Purpose {
    fn user(self) -> ResourceName {
        match self {
            Self::Health | Self::Catalog => superuser(),
            Self::Outbox => hand(),
        }
    }
}

/// Why there is no answer: text with 503.
pub struct NotReady(String);

impl IntoResponse for NotReady {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.0).into_response()
    }
}

impl From<tokio_postgres::Error> for NotReady {
    fn from(error: tokio_postgres::Error) -> Self {
        Self(told(&error))
    }
}

impl Answers {
    pub fn new(
        health: Arc<Health>,
        outbox: Option<outbox::Table>,
        extensions: Arc<Extensions>,
    ) -> Self {
        Self {
            health,
            access: OnceLock::new(),
            outbox,
            extensions,
            sessions: Default::default(),
            size: Mutex::default(),
        }
    }

    /// # Errors
    ///
    /// Why there is none.
    pub async fn client(&self, purpose: Purpose) -> Result<Arc<Client>, NotReady> {
        if let Some(reason) = self.health.reason() {
            return Err(NotReady(reason));
        }
        let access = self.access.get();
        let access = access.ok_or_else(|| NotReady("starting".to_owned()))?;
        let session = &self.sessions[purpose as usize].0;
        let kept = session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(client) = kept.filter(|client| !client.is_closed()) {
            return Ok(client);
        }
        let client = Arc::new(access.connect(&purpose.user()).await?);
        *session.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    fn forget(&self, purpose: Purpose) {
        let session = &self.sessions[purpose as usize].0;
        *session.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A real query: a server that takes connections may still answer nothing.
    async fn check(&self) -> Result<(), NotReady> {
        let client = self.client(Purpose::Health).await?;
        client.simple_query("select 1").await?;
        Ok(())
    }

    async fn status(&self) -> Result<EngineStatus, NotReady> {
        let client = self.client(Purpose::Catalog).await?;
        let own = [superuser().to_string(), hand().to_string()];
        let row = client
            .query_one(NUMBERS, &[&own.as_slice(), &OF_PEOPLE.to_string()])
            .await?;
        let version: String = row.get(0);
        let (backlog, oldest_ms) = self.backlog().await?;
        Ok(EngineStatus::Postgres {
            version: version.split(' ').next().unwrap_or_default().to_owned(),
            size: self.size(&client).await?,
            connections: u32::try_from(row.get::<_, i64>(2)).unwrap_or(u32::MAX),
            connections_max: row.get::<_, i32>(1).unsigned_abs(),
            outbox_backlog: backlog,
            outbox_oldest_ms: oldest_ms,
            shares: shares(&client).await?,
            extensions: self.extensions.now(),
        })
    }

    async fn backlog(&self) -> Result<(u64, u64), NotReady> {
        let Some(table) = &self.outbox else {
            return Ok((0, 0));
        };
        let client = self.client(Purpose::Outbox).await?;
        Ok(table.backlog(&client).await?)
    }

    async fn size(&self, client: &Client) -> Result<Bytes, NotReady> {
        let known = *self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, size)) = known
            && at.elapsed() < SIZE_AGE
        {
            return Ok(size);
        }
        let row = client
            .query_one("select pg_database_size(current_database())", &[])
            .await?;
        let size = Bytes(row.get::<_, i64>(0).unsigned_abs());
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), size));
        Ok(size)
    }

    async fn tables(&self) -> Result<Vec<Table>, NotReady> {
        let client = self.client(Purpose::Catalog).await?;
        let own = self.outbox.as_ref().map_or("", outbox::Table::name);
        let rows = client.query(TABLES, &[&own]).await?;
        let table = |row: &tokio_postgres::Row| Table {
            schema: row.get(0),
            name: row.get(1),
            rows: row.get::<_, i64>(2).unsigned_abs(),
            size: Bytes(row.get::<_, i64>(3).unsigned_abs()),
        };
        Ok(rows.iter().map(table).collect())
    }
}

async fn shares(client: &Client) -> Result<BTreeMap<ResourceName, Share>, NotReady> {
    let rows = client.query(SHARES, &[]).await?;
    let share = |row: &tokio_postgres::Row| {
        let share = Share {
            connections: u32::try_from(row.get::<_, i64>(1)).unwrap_or(u32::MAX),
            most: row.get::<_, i32>(2).unsigned_abs(),
        };
        Some((ResourceName::new(row.get::<_, String>(0)).ok()?, share))
    };
    Ok(rows.iter().filter_map(share).collect())
}

pub fn router(answers: Arc<Answers>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/status", get(status))
        .route("/tables", get(tables))
        .with_state(answers)
}

async fn health(State(answers): State<Arc<Answers>>) -> Result<&'static str, NotReady> {
    within(&answers, Purpose::Health, HEALTH_PATIENCE, answers.check()).await?;
    Ok("serving\n")
}

async fn status(State(answers): State<Arc<Answers>>) -> Result<Json<EngineStatus>, NotReady> {
    let status = answers.status();
    let status = within(&answers, Purpose::Catalog, STATUS_PATIENCE, status).await?;
    Ok(Json(status))
}

async fn tables(State(answers): State<Arc<Answers>>) -> Result<Json<Vec<Table>>, NotReady> {
    let tables = answers.tables();
    let tables = within(&answers, Purpose::Catalog, STATUS_PATIENCE, tables).await?;
    Ok(Json(tables))
}

/// A connection on which an answer did not come is given up, as it may never come.
async fn within<T>(
    answers: &Answers,
    purpose: Purpose,
    patience: Duration,
    answer: impl Future<Output = Result<T, NotReady>>,
) -> Result<T, NotReady> {
    let answer = timeout(patience, answer).await;
    answer.unwrap_or_else(|_| {
        answers.forget(purpose);
        let seconds = patience.as_secs();
        Err(NotReady(format!(
            "PostgreSQL did not answer a query in {seconds} s"
        )))
    })
}
