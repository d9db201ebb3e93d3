//! Who comes in how, and how the engine itself does.
//!
//! | who | how | as |
//! |---|---|---|
//! | the engine, for what only a superuser may | the socket | [`superuser`] |
//! | the engine, where the team's code may run (triggers, views); people | the socket | [`hand`], which is the owner |
//! | services | TCP, through the node's proxy | a role each |
//!
//! All with passwords derived from the database's secret.

use std::time::Duration;

use model::ids::ResourceName;
use model::state::role_password;
use tokio_postgres::{Client, Config, NoTls};

use super::place::Place;

/// Made with the files.
pub fn superuser() -> ResourceName {
    ResourceName::new("mainland").expect("a name")
}

/// Whoever may write in a database can leave code in it that runs as who looks at it. So nobody looks as superuser.
pub fn hand() -> ResourceName {
    ResourceName::new("mainland-owner").expect("a name")
}

/// Has what the owner may do by an extension and no owner of a database can: the owner is its member, and keeps that when all it owns is dropped.
pub fn keeper() -> ResourceName {
    ResourceName::new("mainland-extensions").expect("a name")
}

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// What all of the engine's own connections have: no name is looked up where the team puts things, and no time that the team set for its own
/// sessions (`alter database ... set statement_timeout`) ends ours. What a connection begins with comes before that.
const OPTIONS: &str = "-c search_path=pg_catalog,pg_temp -c role=none -c default_transaction_read_only=off \
                       -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0";
/// The same that some versions have, and from which on. A name that PostgreSQL does not know lets nobody in.
const OPTIONS_SINCE: [(u32, &str); 2] = [
    (14, " -c idle_session_timeout=0"),
    (17, " -c transaction_timeout=0"),
];

fn options(version: u32) -> String {
    let known = OPTIONS_SINCE.iter().filter(|(since, _)| version >= *since);
    let known = known.map(|(_, option)| *option);
    std::iter::once(OPTIONS).chain(known).collect()
}

/// The contents of PostgreSQL's file of who may come in.
pub fn rules(database: &str) -> String {
    format!(
        "# Written by Mainland at each start.\n\
         local all {superuser},{hand} scram-sha-256\n\
         host all {superuser},{hand} all reject\n\
         host {database} all 127.0.0.1/32 scram-sha-256\n",
        // Quoted, a name is never one of the words that mean several databases.
        database = identifier(database),
        superuser = superuser(),
        hand = hand(),
    )
}

/// How the engine connects.
#[derive(Debug, Clone)]
pub struct Access {
    pub place: Place,
    pub secret: String,
    /// The major version of PostgreSQL there.
    pub version: u32,
}

impl Access {
    /// To the engine's own database.
    ///
    /// # Errors
    ///
    /// As PostgreSQL says.
    pub async fn connect(&self, user: &ResourceName) -> Result<Client, tokio_postgres::Error> {
        self.connect_to(&self.place.database, user).await
    }

    /// # Errors
    ///
    /// As PostgreSQL says.
    pub async fn connect_to(
        &self,
        database: &str,
        user: &ResourceName,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config
            .host_path(&self.place.socket)
            .port(self.place.port)
            .user(user.as_str())
            .password(role_password(&self.secret, user))
            .dbname(database)
            .application_name("mainland")
            .options(options(self.version))
            .connect_timeout(CONNECT_PATIENCE);
        let (client, connection) = config.connect(NoTls).await?;
        // It ends with the client, or with an error that the client's next statement shows.
        tokio::spawn(connection);
        Ok(client)
    }
}

/// As a name in SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As a text in SQL, with standard_conforming_strings.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What went wrong, with PostgreSQL's own words, which the error's text leaves out.
pub fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(database) => database.message().to_owned(),
        None => {
            let source = std::error::Error::source(error);
            let why = source.map(|source| format!(": {source}"));
            format!("{error}{}", why.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_begins_with_what_its_postgresql_knows() {
        let names = [
            "statement_timeout",
            "idle_session_timeout",
            "transaction_timeout",
        ];
        for (version, known) in [(13, 1), (14, 2), (16, 2), (17, 3), (18, 3)] {
            let options = options(version);
            let told = names.map(|name| options.contains(&format!(" -c {name}=0")));
            let expect = [0, 1, 2].map(|index| index < known);
            assert_eq!(told, expect, "{version}: {options}");
        }
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(identifier("a-b\"c"), "\"a-b\"\"c\"");
        assert_eq!(literal("it's"), "'it''s'");
    }
}
