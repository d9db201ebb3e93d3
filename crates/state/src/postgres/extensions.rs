//! Extensions: those that are declared are made by the engine, as the database's superuser, since most need one and services are none.
//!
//! | declared | there | what is done |
//! |---|---|---|
//! | create | no | made in the schema `public`, or in the one that it asks for; what it requires comes with it |
//! | create | no, nor on the machine | told, with the package |
//! | create, loaded at the start | not loaded | told: a restart |
//! | drop | yes | dropped, unless something depends on it; then that is told |
//! | not any more | yes, made by the engine | told; data may depend on it |
//!
//! None of it keeps the database from serving. What is made by the engine is its superuser's, so no service changes or drops it. What a team's
//! roles made themselves, as they may those that PostgreSQL trusts, is left alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use model::state::extensions::{self, ExtensionStatus, Wish};
use model::state::{EngineFile, Postgres};
use tokio_postgres::{Client, Error};

use super::access::{identifier, keeper, literal, told};
use super::declared;
use super::programs::Programs;

/// How long one may wait for what others have open.
const LOCK_PATIENCE: &str = "5s";
/// Each that is there, but for what every database has: whether it is the engine's, and whether another stands on it.
const PRESENT: &str = "select e.extname::text, e.extversion, pg_get_userbyid(e.extowner) = current_user,
    exists (select from pg_depend d where d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.classid = 'pg_extension'::regclass)
  from pg_extension e where e.extname <> 'plpgsql'";
/// Of one that the machine has: the schema that it asks for, and what it requires.
const AVAILABLE: &str = "select v.schema::text, coalesce(v.requires::text[], '{}') from pg_available_extensions a
    left join pg_available_extension_versions v on v.name = a.name and v.version = a.default_version where a.name = $1";
const LOADED: &str = "select current_setting('shared_preload_libraries')";
/// Foreign data wrappers that a service may use, with the extension that brings each. Whom they let in where, the other side decides: a password is
/// asked of all who are no superuser.
const WRAPPERS: [(&str, &str); 2] = [("postgres_fdw", "postgres_fdw"), ("dblink", "dblink_fdw")];

/// How each is, as last seen.
#[derive(Debug, Default)]
pub struct Extensions(Mutex<BTreeMap<String, ExtensionStatus>>);

impl Extensions {
    pub fn now(&self) -> BTreeMap<String, ExtensionStatus> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// True: there is no concern.
    fn are(&self, new: BTreeMap<String, ExtensionStatus>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, status) in &new {
            if let Some(concern) = &status.concern
                && known.get(name) != Some(status)
            {
                tracing::warn!("extension {name}: {concern}");
            }
        }
        *known = new;
        known.values().all(|status| status.concern.is_none())
    }
}

/// The libraries that PostgreSQL is told to load: of those that are asked for, what the machine has.
pub fn libraries(postgres: &Postgres, programs: &Programs) -> Vec<&'static str> {
    let mut libraries = extensions::preloaded(postgres);
    libraries.retain(|library| programs.has_library(library));
    libraries
}

struct Present {
    version: String,
    ours: bool,
    /// Another extension requires it.
    required: bool,
}

/// Makes the extensions of the database what they should be, and tells how they are. True: all are well.
///
/// # Errors
///
/// The connection is gone. What PostgreSQL refuses of one extension is told as its concern.
pub async fn apply(client: &Client, file: &EngineFile, known: &Extensions) -> Result<bool, Error> {
    let Ok((postgres, _)) = declared(file) else {
        return Ok(true);
    };
    let hand = Hand {
        client,
        postgres,
        name: file.name.as_str(),
        owner: model::state::database_name(&file.name),
    };
    let before = hand.present().await?;
    let mut refused = BTreeMap::new();
    for (name, wish) in &postgres.extensions {
        let done = match (wish, before.get(name)) {
            (Wish::Create, None) => hand.create(name).await?,
            (Wish::Drop, Some(_)) => hand.drop(name).await?,
            _ => Ok(()),
        };
        if let Err(why) = done {
            refused.insert(name.clone(), why);
        }
    }
    let after = hand.present().await?;
    hand.grant(&after).await?;
    Ok(known.are(statuses(postgres, &after, &refused)))
}

fn statuses(
    postgres: &Postgres,
    present: &BTreeMap<String, Present>,
    refused: &BTreeMap<String, String>,
) -> BTreeMap<String, ExtensionStatus> {
    let mut all = BTreeMap::new();
    for (name, present) in present {
        let undeclared =
            present.ours && !present.required && !postgres.extensions.contains_key(name);
        let concern = undeclared.then(|| {
            format!("it is declared no more and stays, since data may depend on it; it goes by `extensions: [{{ {name}: drop }}]`")
        });
        let status = ExtensionStatus {
            version: Some(present.version.clone()),
            concern,
        };
        if undeclared || postgres.extensions.contains_key(name) {
            all.insert(name.clone(), status);
        }
    }
    for (name, why) in refused {
        all.entry(name.clone()).or_default().concern = Some(why.clone());
    }
    all
}

/// What works on one database as its superuser.
struct Hand<'a> {
    client: &'a Client,
    postgres: &'a Postgres,
    /// Of the database, as declared.
    name: &'a str,
    owner: String,
}

/// Done, or why not, in words for a person.
type Done = Result<(), String>;

impl Hand<'_> {
    async fn present(&self) -> Result<BTreeMap<String, Present>, Error> {
        let rows = self.client.query(PRESENT, &[]).await?;
        let one = |row: &tokio_postgres::Row| {
            let present = Present {
                version: row.get(1),
                ours: row.get(2),
                required: row.get(3),
            };
            (row.get(0), present)
        };
        Ok(rows.iter().map(one).collect())
    }

    async fn create(&self, name: &str) -> Result<Done, Error> {
        let row = self.client.query_opt(AVAILABLE, &[&name]).await?;
        let requires = row.iter().flat_map(|row| row.get::<_, Vec<String>>(1));
        if let Some(refused) = requires
            .chain([name.to_owned()])
            .find(|name| extensions::is_refused(name))
        {
            return Ok(Err(format!("`{refused}` is refused")));
        }
        let Some(row) = row else {
            let remedy = extensions::remedy(name, self.postgres.version);
            return Ok(Err(format!("the machine does not have it: {remedy}")));
        };
        if let Some(library) = self.unloaded(name).await? {
            return Ok(Err(format!(
                "PostgreSQL loads its library `{library}` when it starts, and did not find it then: `mainland restart {}` once it is installed",
                self.name
            )));
        }
        let schema: Option<String> = row.get(0);
        let schema = schema.map_or_else(|| "schema public".to_owned(), |_| String::new());
        let create = format!("create extension {} {schema} cascade", identifier(name));
        self.quietly(&create).await
    }

    /// A library that should have been loaded.
    async fn unloaded(&self, name: &str) -> Result<Option<&'static str>, Error> {
        let loaded: String = self.client.query_one(LOADED, &[]).await?.get(0);
        let loaded: Vec<&str> = loaded.split(',').map(str::trim).collect();
        let libraries = extensions::preloads(name).iter();
        Ok(libraries.copied().find(|library| !loaded.contains(library)))
    }

    async fn drop(&self, name: &str) -> Result<Done, Error> {
        self.quietly(&format!("drop extension {}", identifier(name)))
            .await
    }

    /// Alone in a transaction. What PostgreSQL refuses is no error here.
    async fn quietly(&self, statement: &str) -> Result<Done, Error> {
        let statements =
            format!("begin; set local lock_timeout = '{LOCK_PATIENCE}'; {statement}; commit");
        let Err(error) = self.client.batch_execute(&statements).await else {
            return Ok(Ok(()));
        };
        let Some(said) = error.as_db_error() else {
            return Err(error);
        };
        let detail = said
            .detail()
            .map(|detail| format!(": {}", detail.replace('\n', "; ")));
        let why = told(&error) + &detail.unwrap_or_default();
        self.client.batch_execute("rollback").await?;
        Ok(Err(why))
    }

    /// What lets the database's owner use a wrapper that is the superuser's.
    async fn grant(&self, present: &BTreeMap<String, Present>) -> Result<(), Error> {
        let (role, owner) = (keeper(), identifier(&self.owner));
        let quoted = identifier(role.as_str());
        let missing = "select not exists (select from pg_auth_members m where m.roleid = to_regrole($1) and m.member = to_regrole($2))";
        let wrappers: Vec<&str> = WRAPPERS
            .iter()
            .filter(|(extension, _)| self.made(extension, present))
            .map(|(_, wrapper)| *wrapper)
            .collect();
        if wrappers.is_empty() {
            return Ok(());
        }
        if self
            .client
            .query_one(missing, &[&quoted, &owner])
            .await?
            .get(0)
        {
            let make = format!(
                "do $$ begin if to_regrole({}) is null then create role {quoted} nologin; end if; end $$; grant {quoted} to {owner}",
                literal(&quoted)
            );
            self.client.batch_execute(&make).await?;
        }
        for wrapper in wrappers {
            let may = "select has_foreign_data_wrapper_privilege($1::text, $2::text, 'usage')";
            let row = self
                .client
                .query_one(may, &[&role.as_str(), &wrapper])
                .await?;
            if !row.get::<_, bool>(0) {
                let grant = format!("grant usage on foreign data wrapper {wrapper} to {quoted}");
                self.client.batch_execute(&grant).await?;
            }
        }
        Ok(())
    }

    fn made(&self, name: &str, present: &BTreeMap<String, Present>) -> bool {
        let declared = self.postgres.extensions.get(name) == Some(&Wish::Create);
        declared && present.get(name).is_some_and(|present| present.ours)
    }
}
