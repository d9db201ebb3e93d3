//! The outbox: rows that services insert in the transaction they are about become messages of a topic, at least once, in commit order per key.
//!
//! A relay in the engine reads the committed rows in the order of their commits, publishes a batch of them, and then deletes exactly those. One
//! batch is on its way at a time, and one that was not taken is tried again before anything newer.
//!
//! # Why the order is that of commits
//!
//! Numbers are given at insertion, and a transaction that got its number early may commit late; so rows are ordered by
//! `pg_xact_commit_timestamp(xmin)`, and by `id` within a transaction. Two transactions about one key that are ordered at all - the second saw or
//! waited for the first, as whoever locks an order's row does - have commit timestamps in that order, and whatever snapshot shows the second
//! shows the first. So each reading is in order, and all of it precedes what only a later reading shows. Transactions about one key that ran side
//! by side without seeing each other have no order to keep.
//!
//! Limits: a clock set back between two commits of one key turns them around, if both wait in the table at that moment; a commit with
//! `synchronous_commit = off` may be published and then lost by a crash; rows are inserted and left alone (an update makes a row as young as
//! itself, and a second message of one that was on its way). Rows whose commit time PostgreSQL no longer knows, or never knew, are older than those of which it does, and
//! come first.
//!
//! # Once
//!
//! A message's id is the identity that PostgreSQL gave these files when they were made, the transaction that inserted the row, and the row's number.
//! So a batch that is published again, because the answer or the deletion was lost, has the ids it had, and the topic knows them; and numbers that
//! are given anew, as after `truncate ... restart identity`, are not taken for those before.
//!
//! # What is refused
//!
//! A topic that takes nothing is asked again and again, each time with the rows as they are then. A batch in which something is refused is made
//! smaller until one row is left, which is named: what comes after it waits until somebody mends or deletes it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use model::ids::ResourceName;
use model::state::database_name;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::access::{Access, hand, identifier, literal, told};
use super::health::Health;
use crate::settings::Settings;

/// Rows of one request to the topic, and its bytes: a topic takes a thousand, and 1 MiB.
const BATCH_ROWS: usize = 500;
const BATCH_BYTES: i64 = 960 << 10;
/// Numbers read at once. Ordering looks at every row that waits, so it is not done for each batch.
const READ_ROWS: i64 = 100_000;
/// Of the relay's session: what is enough to find so many of millions without a file, and by one process.
const SETTINGS: &str = "set work_mem = '16MB'; set max_parallel_workers_per_gather = 0";
/// Rows that are counted one by one: who asks how many wait must not wait himself, least of all when they are many.
const COUNTED: u64 = 200_000;
const PUBLISH_PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 16 << 10;
const BACK_OFF: Pace = Pace::new(50, 2000);
/// Between two looks at an empty table.
const IDLE: Pace = Pace::new(20, 100);
/// Deleted rows are swept when so many lie about, or fewer once nothing comes.
const SWEEP_AFTER: usize = 20_000;
const SWEEP_WHEN_IDLE: usize = 2_000;
/// A topic takes the years that RFC 3339 can write.
const TIME_MAX: &str = "9999-12-30T00:00:00Z";
const CONTENT_TYPE: &str = "application/cloudevents-batch+json";

/// A wait that doubles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    next_ms: u64,
    most_ms: u64,
}

impl Pace {
    const fn new(next_ms: u64, most_ms: u64) -> Self {
        Self { next_ms, most_ms }
    }

    fn next(&mut self) -> Duration {
        let wait = Duration::from_millis(self.next_ms);
        self.next_ms = (self.next_ms * 2).min(self.most_ms);
        wait
    }
}

/// The table whose rows become messages.
#[derive(Debug, Clone)]
pub struct Table(String);

impl Table {
    pub fn of(topic: &ResourceName) -> Self {
        Self(database_name(topic))
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn sql(&self) -> String {
        format!("public.{}", identifier(&self.0))
    }

    /// Makes it if there is none. What a topic would refuse is refused to who inserts it: one such row would hold up all after it.
    ///
    /// # Errors
    ///
    /// As PostgreSQL says.
    pub async fn ensure(&self, client: &Client, owner: &str) -> Result<(), tokio_postgres::Error> {
        let name = self.sql();
        let query = "select to_regclass($1) is not null";
        if client.query_one(query, &[&name]).await?.get(0) {
            return Ok(());
        }
        let make = format!(
            "create table {name} (
               id bigint generated always as identity primary key,
               key text not null check (octet_length(key) between 1 and 512),
               type text not null check (octet_length(type) between 1 and 512),
               data jsonb not null check (octet_length(data::text) <= 524288),
               at timestamptz not null default now() check (isfinite(at))
             ) with (
               autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
               autovacuum_analyze_threshold = 100000, autovacuum_vacuum_insert_threshold = -1
             );
             alter table {name} owner to {}",
            identifier(owner)
        );
        client.batch_execute(&make).await
    }

    /// How many rows wait, by an estimate where they are very many, and the age of the first in milliseconds.
    ///
    /// # Errors
    ///
    /// As PostgreSQL says.
    pub async fn backlog(&self, client: &Client) -> Result<(u64, u64), tokio_postgres::Error> {
        let table = self.sql();
        let query = format!(
            "select case when counted < {COUNTED} then counted else greatest(counted, pg_stat_get_live_tuples($1::text::regclass)) end,
               coalesce((extract(epoch from now() - (select at from {table} order by id limit 1)) * 1000)::int8, 0)
             from (select count(*) as counted from (select from {table} limit {COUNTED}) as first) as counted"
        );
        let row = client.query_one(&query, &[&table]).await?;
        let oldest: i64 = row.get(1);
        Ok((
            row.get::<_, i64>(0).unsigned_abs(),
            u64::try_from(oldest).unwrap_or(0),
        ))
    }
}

pub struct Relay {
    pub access: Access,
    pub settings: Settings,
    pub health: Arc<Health>,
    pub table: Table,
    pub topic: ResourceName,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

/// Why a batch was not taken.
#[derive(Debug)]
enum Refusal {
    /// Something in it is refused, or all of it is too large.
    Batch(String),
    Other(String),
}

impl Refusal {
    /// In words, for a batch of which this is the last row.
    fn of(self, row: i64) -> String {
        match self {
            Self::Batch(why) => {
                format!("it refuses the row {row}, which must be mended or deleted: {why}")
            }
            Self::Other(why) => why,
        }
    }
}

/// The statements of a session.
struct Session {
    client: Client,
    read: tokio_postgres::Statement,
    take: tokio_postgres::Statement,
    delete: tokio_postgres::Statement,
    sweep: String,
    deleted: usize,
}

impl Relay {
    pub fn new(
        access: Access,
        settings: Settings,
        health: Arc<Health>,
        topic: ResourceName,
    ) -> Self {
        Self {
            access,
            settings,
            health,
            table: Table::of(&topic),
            topic,
            http: HttpClient::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// For as long as the engine lives.
    pub async fn run(self) {
        let mut back_off = BACK_OFF;
        loop {
            self.health.served().await;
            let Err(error) = self.relay(&mut back_off).await;
            tracing::warn!("the outbox: {}", told(&error));
            sleep(back_off.next()).await;
        }
    }

    /// Ends with an error of the database: whatever was on its way is read anew.
    async fn relay(
        &self,
        back_off: &mut Pace,
    ) -> Result<std::convert::Infallible, tokio_postgres::Error> {
        let mut session = self.session().await?;
        let mut idle = IDLE;
        loop {
            let ids = session.ids().await?;
            *back_off = BACK_OFF;
            if ids.is_empty() {
                session.sweep(SWEEP_WHEN_IDLE).await?;
                sleep(idle.next()).await;
                continue;
            }
            idle = IDLE;
            self.pass_on(&mut session, &ids).await?;
        }
    }

    async fn session(&self) -> Result<Session, tokio_postgres::Error> {
        let client = self.access.connect(&hand()).await?;
        // What a crash brings back is published again under the same id.
        client.batch_execute("set synchronous_commit = off").await?;
        client.batch_execute(SETTINGS).await?;
        let row = "select system_identifier::text from pg_control_system()";
        let identity: String = client.query_one(row, &[]).await?.get(0);
        let table = self.table.sql();
        let source = format!("/databases/{}", self.settings.current().name);
        Ok(Session {
            read: client.prepare(&read(&table)).await?,
            take: client.prepare(&take(&table, &identity, &source)).await?,
            delete: client.prepare(&delete(&table)).await?,
            sweep: format!("vacuum {table}"),
            client,
            deleted: 0,
        })
    }

    /// Publishes these rows in this order, and deletes what the topic has.
    async fn pass_on(
        &self,
        session: &mut Session,
        ids: &[i64],
    ) -> Result<(), tokio_postgres::Error> {
        let (mut rest, mut rows) = (ids, BATCH_ROWS);
        let (mut back_off, mut said) = (BACK_OFF, None);
        while !rest.is_empty() {
            let some = &rest[..rows.min(rest.len())];
            let batch = session.take(some).await?;
            let Some(last) = batch.ids.last() else {
                // Deleted by somebody else.
                rest = &rest[some.len()..];
                continue;
            };
            match self.publish(batch.body.clone()).await {
                Ok(()) => {}
                Err(Refusal::Batch(_)) if batch.ids.len() > 1 => {
                    rows = batch.ids.len() / 2;
                    continue;
                }
                Err(refusal) => {
                    self.say(&mut said, refusal.of(*last));
                    sleep(back_off.next()).await;
                    // A row may be mended meanwhile.
                    continue;
                }
            }
            if said.take().is_some() {
                tracing::info!("the topic `{}` takes the outbox again", self.topic);
            }
            session.delete(&batch).await?;
            let done = rest.iter().position(|id| id == last);
            rest = &rest[done.map_or(some.len(), |at| at + 1)..];
            (rows, back_off) = (BATCH_ROWS, BACK_OFF);
        }
        Ok(())
    }

    /// Once for each reason.
    fn say(&self, said: &mut Option<String>, why: String) {
        if said.as_ref() != Some(&why) {
            tracing::warn!("the outbox waits for the topic `{}`: {why}", self.topic);
        }
        *said = Some(why);
    }

    async fn publish(&self, body: Bytes) -> Result<(), Refusal> {
        // Looked at each time: the node may have moved it.
        let doors = &self.settings.current().doors;
        let door = doors
            .get(&self.topic)
            .ok_or_else(|| Refusal::Other("it has no address yet".to_owned()))?;
        let request = Request::post(format!("http://{door}/messages"))
            .header(header::CONTENT_TYPE, CONTENT_TYPE)
            .body(Full::new(body))
            .map_err(|error| Refusal::Other(error.to_string()))?;
        let answered = timeout(PUBLISH_PATIENCE, self.ask(request)).await;
        answered.unwrap_or_else(|_| Err(Refusal::Other("it did not answer".to_owned())))
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> Result<(), Refusal> {
        let response = self.http.request(request).await;
        let response = response.map_err(|error| {
            let source = std::error::Error::source(&error);
            Refusal::Other(source.map_or_else(|| error.to_string(), ToString::to_string))
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map(|body| body.to_bytes());
        if status.is_success() {
            return Ok(());
        }
        let text = body.unwrap_or_default();
        let text: String = String::from_utf8_lossy(&text).chars().take(300).collect();
        let why = format!("{status} {text}").trim().to_owned();
        Err(match status {
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST => Refusal::Batch(why),
            _ => Refusal::Other(why),
        })
    }
}

/// Rows of one request.
struct Batch {
    ids: Vec<i64>,
    /// That inserted or last changed each.
    transactions: Vec<String>,
    body: Bytes,
}

impl Session {
    async fn ids(&self) -> Result<Vec<i64>, tokio_postgres::Error> {
        let row = self.client.query_one(&self.read, &[&READ_ROWS]).await?;
        Ok(row.get(0))
    }

    /// As many of these rows, from the first on, as fit into one request.
    async fn take(&self, ids: &[i64]) -> Result<Batch, tokio_postgres::Error> {
        let rows = self.client.query(&self.take, &[&ids, &BATCH_BYTES]).await?;
        let events: Vec<&str> = rows.iter().map(|row| row.get(2)).collect();
        Ok(Batch {
            ids: rows.iter().map(|row| row.get(0)).collect(),
            transactions: rows.iter().map(|row| row.get(1)).collect(),
            body: format!("[{}]", events.join(",")).into(),
        })
    }

    async fn delete(&mut self, batch: &Batch) -> Result<(), tokio_postgres::Error> {
        let taken: [&(dyn ToSql + Sync); 2] = [&batch.ids, &batch.transactions];
        self.client.execute(&self.delete, &taken).await?;
        self.deleted += batch.ids.len();
        self.sweep(SWEEP_AFTER).await
    }

    /// Every reading passes over what deleted rows leave behind, and autovacuum comes once in a minute.
    async fn sweep(&mut self, after: usize) -> Result<(), tokio_postgres::Error> {
        if self.deleted < after {
            return Ok(());
        }
        self.deleted = 0;
        self.client.batch_execute(&self.sweep).await
    }
}

/// The oldest rows' numbers. A commit time that is not known any more is older than all that are.
fn read(table: &str) -> String {
    format!(
        "select coalesce(array_agg(id), '{{}}') from (
           select id from {table} order by pg_xact_commit_timestamp(xmin) nulls first, id limit $1
         ) as oldest"
    )
}

/// Rows as CloudEvents, in the order of their numbers in `$1`, up to `$2` bytes, but one at least.
fn take(table: &str, identity: &str, source: &str) -> String {
    let (identity, source) = (literal(&format!("{identity}/")), literal(source));
    format!(
        "select id, transaction, event from (
           select id, row.xmin::text as transaction, event, place, sum(octet_length(event) + 1) over (order by place) as bytes, row_number() over (order by place) as number
           from unnest($1::int8[]) with ordinality as wanted (id, place)
           join {table} as row using (id)
           cross join lateral (select json_build_object(
             'specversion', '1.0', 'id', {identity} || row.xmin || '/' || row.id, 'source', {source}, 'type', row.type,
             'subject', row.key, 'partitionkey', row.key,
             'time', to_char(least(row.at, '{TIME_MAX}') at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
             'datacontenttype', 'application/json', 'data', row.data)::text as event) as told
         ) as events
         where bytes <= $2 or number = 1 order by place"
    )
}

/// The rows with the numbers in `$1`, unless another transaction than that in `$2` has changed them, or made them anew.
fn delete(table: &str) -> String {
    format!(
        "delete from {table} as row using unnest($1::int8[], $2::text[]) as taken (id, transaction)
         where row.id = taken.id and row.xmin = taken.transaction::xid"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_doubles_up_to_its_end() {
        let mut pace = Pace::new(20, 100);
        let waits: Vec<u128> = (0..5).map(|_| pace.next().as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 100, 100]);
    }
}
