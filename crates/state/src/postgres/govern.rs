//! Making a running server the database that was declared, and keeping it so: database, owner, outbox, roles, extensions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::state::EngineFile;
use tokio_postgres::{Client, Error};

use super::access::{Access, identifier, superuser, told};
use super::extensions::{self, Extensions};
use super::health::Health;
use super::outbox::Table;
use super::roles;
use crate::settings::Settings;

/// Between two tries to come to the server: it is just starting, or it recovers.
const RETRY_FROM: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(250);
/// Between two looks at whether the server still has the engine's connection.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks at extensions of which one is not as it should be: a package may have come.
const EXTENSIONS_EVERY: Duration = Duration::from_secs(30);

pub struct Governor {
    pub access: Access,
    pub settings: Settings,
    pub health: Arc<Health>,
    pub outbox: Option<Table>,
    pub extensions: Arc<Extensions>,
}

impl Governor {
    /// For as long as the engine lives.
    pub async fn run(self) {
        let mut wait = RETRY_FROM;
        loop {
            let Err(error) = self.govern().await else {
                wait = RETRY_FROM;
                self.health
                    .starting("PostgreSQL ended the engine's connection");
                continue;
            };
            // A server that does not listen yet says nothing.
            if error.as_db_error().is_some() || self.health.reason().is_none() {
                self.health.starting(&told(&error));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Returns when the server ended the connection that it governs by.
    async fn govern(&self) -> Result<(), Error> {
        let database = &self.access.place.database;
        let outside = self.access.connect_to("postgres", &superuser()).await?;
        ensure_database(&outside, database).await?;
        drop(outside);
        let client = self.access.connect(&superuser()).await?;
        ensure_schema(&client, database).await?;
        if let Some(table) = &self.outbox {
            table.ensure(&client, database).await?;
        }
        self.follow(&client).await
    }

    async fn follow(&self, client: &Client) -> Result<(), Error> {
        let mut changes = self.settings.changes();
        loop {
            let file = changes.borrow_and_update().clone();
            self.apply_roles(client, &file).await?;
            // One that can't be made keeps nobody from the rest.
            let well = extensions::apply(client, &file, &self.extensions).await?;
            self.health.serving();
            let looked = Instant::now();
            loop {
                match tokio::time::timeout(LOOK_EVERY, changes.changed()).await {
                    Ok(Ok(())) => break,
                    // Nobody tells any more: the engine is ending.
                    Ok(Err(_)) => std::future::pending().await,
                    Err(_) if client.is_closed() => return Ok(()),
                    Err(_) if !well && looked.elapsed() >= EXTENSIONS_EVERY => break,
                    Err(_) => {}
                }
            }
        }
    }

    async fn apply_roles(&self, client: &Client, file: &EngineFile) -> Result<(), Error> {
        let Access { place, secret, .. } = &self.access;
        let services = &file.settings.roles;
        for name in roles::refused(services, &place.database) {
            tracing::warn!(
                "the service `{name}` gets no role in this database: PostgreSQL or Mainland has that name for itself"
            );
        }
        roles::apply(client, &place.database, secret, &file.settings).await
    }
}

async fn ensure_database(client: &Client, name: &str) -> Result<(), Error> {
    let quoted = identifier(name);
    let has = |query: &'static str| async move {
        let row = client.query_one(query, &[&name]).await?;
        Ok::<bool, Error>(row.get(0))
    };
    if !has("select exists (select from pg_roles where rolname = $1)").await? {
        client
            .batch_execute(&format!("create role {quoted} nologin"))
            .await?;
    }
    if !has("select exists (select from pg_database where datname = $1)").await? {
        let create = format!("create database {quoted} owner {quoted}");
        client.batch_execute(&create).await?;
    }
    if has("select has_database_privilege('public', $1, 'connect')").await? {
        let revoke = format!("revoke all on database {quoted} from public");
        client.batch_execute(&revoke).await?;
    }
    Ok(())
}

/// Up to version 14 everyone may make things in `public`; from 15 on its owner does, who is the database's.
async fn ensure_schema(client: &Client, owner: &str) -> Result<(), Error> {
    let query = "select exists (select from pg_namespace where nspname = 'public' and pg_get_userbyid(nspowner)::text <> $1)";
    if client.query_one(query, &[&owner]).await?.get(0) {
        let owner = identifier(owner);
        let change = format!(
            "alter schema public owner to {owner}; revoke create on schema public from public"
        );
        client.batch_execute(&change).await?;
    }
    Ok(())
}
