//! Roles: the services that need a database are told by its node, and each has a role of its own name.
//!
//! | access | may | how |
//! |---|---|---|
//! | write | all in the database | member of the owner, and acts as it: what services make belongs to one owner |
//! | read | read all in the database | `pg_read_all_data`, sessions read-only; another database it can't enter |
//! | none any more | nothing | can't log in, its sessions are ended; kept, so what is granted to it comes back with it |

use std::collections::BTreeMap;

use model::ids::ResourceName;
use model::state::Access;
use tokio_postgres::{Client, Error};

use super::access::{hand, identifier, literal, superuser};
use super::password::verifier;

/// The comment by which a role is known as a service's: those that a team makes by hand are its own.
const MARK: &str = "a service, kept by Mainland";
/// Names that roles can't have.
const RESERVED: [&str; 2] = ["public", "none"];

/// A role as PostgreSQL has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Present {
    marked: bool,
    login: bool,
    verifier: Option<String>,
    /// Member of the owner.
    writes: bool,
    /// Member of `pg_read_all_data`.
    reads: bool,
}

/// A role as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    access: Access,
    verifier: String,
}

/// What leads from one to the other.
#[derive(Debug, PartialEq, Eq, Default)]
struct Changes {
    statements: Vec<String>,
    /// Whose sessions may do more than they now should.
    ended: Vec<String>,
}

/// Services that can't have a role of their name.
pub fn refused<'a>(
    services: &'a BTreeMap<ResourceName, Access>,
    owner: &str,
) -> Vec<&'a ResourceName> {
    let names = services.keys();
    names.filter(|name| is_refused(name, owner)).collect()
}

fn is_refused(name: &ResourceName, owner: &str) -> bool {
    *name == superuser()
        || *name == hand()
        || RESERVED.contains(&name.as_str())
        || name.as_str() == owner
}

/// Makes the roles of the database what they should be.
///
/// # Errors
///
/// As PostgreSQL says; nothing has changed then.
pub async fn apply(
    client: &Client,
    owner: &str,
    secret: &str,
    services: &BTreeMap<ResourceName, Access>,
) -> Result<(), Error> {
    let wanted = wanted(owner, secret, services);
    let changes = changes(owner, &present(client, owner, &wanted).await?, &wanted);
    if !changes.statements.is_empty() {
        // A statement with a verifier in it is not shown when it fails. Several at once are one transaction.
        let quietly = "set local log_min_error_statement = panic;\n".to_owned();
        let statements = quietly + &changes.statements.join(";\n");
        client.batch_execute(&statements).await?;
    }
    if !changes.ended.is_empty() {
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = any($1)";
        client.execute(end, &[&changes.ended]).await?;
    }
    Ok(())
}

fn wanted(
    owner: &str,
    secret: &str,
    services: &BTreeMap<ResourceName, Access>,
) -> BTreeMap<String, Wanted> {
    let own = hand();
    let services = services.iter().filter(|(name, _)| !is_refused(name, owner));
    let all = services.chain([(&own, &Access::Write)]);
    let entry = |(name, access): (&ResourceName, &Access)| {
        let wanted = Wanted {
            access: *access,
            verifier: verifier(secret, name),
        };
        (name.to_string(), wanted)
    };
    all.map(entry).collect()
}

async fn present(
    client: &Client,
    owner: &str,
    wanted: &BTreeMap<String, Wanted>,
) -> Result<BTreeMap<String, Present>, Error> {
    let member = |of: &str| {
        format!(
            "exists (select from pg_auth_members m where m.member = a.oid and m.roleid = {}::regrole)",
            literal(&identifier(of))
        )
    };
    let query = format!(
        "select a.rolname::text, coalesce(shobj_description(a.oid, 'pg_authid') = $1, false), a.rolcanlogin, a.rolpassword, {}, {}
         from pg_authid a
         where not a.rolsuper and (a.rolname = any($2) or shobj_description(a.oid, 'pg_authid') = $1)",
        member(owner),
        member("pg_read_all_data"),
    );
    let names: Vec<&String> = wanted.keys().collect();
    let rows = client.query(&query, &[&MARK, &names]).await?;
    let read = |row: &tokio_postgres::Row| {
        let present = Present {
            marked: row.get(1),
            login: row.get(2),
            verifier: row.get(3),
            writes: row.get(4),
            reads: row.get(5),
        };
        (row.get(0), present)
    };
    Ok(rows.iter().map(read).collect())
}

fn changes(
    owner: &str,
    present: &BTreeMap<String, Present>,
    wanted: &BTreeMap<String, Wanted>,
) -> Changes {
    let mut changes = Changes::default();
    for (name, wanted) in wanted {
        changes.reach(owner, name, present.get(name), wanted);
    }
    let gone = present
        .iter()
        .filter(|(name, role)| role.login && role.marked && !wanted.contains_key(*name));
    for (name, _) in gone {
        changes.say(format!("alter role {} nologin", identifier(name)));
        changes.ended.push(name.clone());
    }
    changes
}

impl Changes {
    fn say(&mut self, statement: String) {
        self.statements.push(statement);
    }

    fn reach(&mut self, owner: &str, name: &str, present: Option<&Present>, wanted: &Wanted) {
        let role = identifier(name);
        if present.is_none() {
            self.say(format!("create role {role}"));
        }
        let present = present.cloned().unwrap_or_default();
        if !present.marked {
            self.say(format!("comment on role {role} is {}", literal(MARK)));
        }
        if present.verifier.as_ref() != Some(&wanted.verifier) {
            let verifier = literal(&wanted.verifier);
            self.say(format!("alter role {role} password {verifier}"));
        }
        match wanted.access {
            Access::Write if !present.writes || present.reads => {
                self.write(owner, &role, &present);
            }
            Access::Read if !present.reads || present.writes => {
                self.read(owner, &role, &present);
                self.ended.push(name.to_owned());
            }
            _ => {}
        }
        // Last: nobody comes in to a role that is not what it should be.
        if !present.login {
            self.say(format!("alter role {role} login"));
        }
    }

    fn write(&mut self, owner: &str, role: &str, present: &Present) {
        let owner = identifier(owner);
        if present.reads {
            self.say(format!("revoke pg_read_all_data from {role}"));
        }
        self.say(format!("grant {owner} to {role}"));
        self.say(format!(
            "alter role {role} reset default_transaction_read_only"
        ));
        self.say(format!("alter role {role} set role = {owner}"));
    }

    fn read(&mut self, owner: &str, role: &str, present: &Present) {
        // The database has its owner's name.
        let owner = identifier(owner);
        if present.writes {
            self.say(format!("revoke {owner} from {role}"));
        }
        self.say(format!("alter role {role} reset role"));
        self.say(format!("grant pg_read_all_data to {role}"));
        self.say(format!("grant connect on database {owner} to {role}"));
        self.say(format!(
            "alter role {role} set default_transaction_read_only = on"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted_to(access: Access) -> BTreeMap<String, Wanted> {
        let wanted = Wanted {
            access,
            verifier: "v".to_owned(),
        };
        [("the-cart".to_owned(), wanted)].into()
    }

    fn present_as(change: fn(&mut Present)) -> BTreeMap<String, Present> {
        let mut present = Present {
            marked: true,
            login: true,
            verifier: Some("v".to_owned()),
            ..Present::default()
        };
        change(&mut present);
        [("the-cart".to_owned(), present)].into()
    }

    #[test]
    fn changes_lead_from_what_is_to_what_should_be() {
        let writer = |role: &mut Present| role.writes = true;
        let reader = |role: &mut Present| role.reads = true;
        type Case = (
            &'static str,
            BTreeMap<String, Present>,
            BTreeMap<String, Wanted>,
            &'static [&'static str],
            bool,
        );
        let table: Vec<Case> = vec![
            (
                "new writer",
                BTreeMap::new(),
                wanted_to(Access::Write),
                &[
                    "create role \"the-cart\"",
                    "password 'v'",
                    "grant \"db\" to",
                    "set role = \"db\"",
                    "\" login",
                ],
                false,
            ),
            (
                "as it was",
                present_as(writer),
                wanted_to(Access::Write),
                &[],
                false,
            ),
            (
                "reader as it was",
                present_as(reader),
                wanted_to(Access::Read),
                &[],
                false,
            ),
            (
                "less than before",
                present_as(writer),
                wanted_to(Access::Read),
                &[
                    "revoke \"db\" from",
                    "reset role",
                    "grant pg_read_all_data",
                    "read_only = on",
                ],
                true,
            ),
            (
                "more than before",
                present_as(reader),
                wanted_to(Access::Write),
                &[
                    "revoke pg_read_all_data",
                    "grant \"db\" to",
                    "reset default_transaction_read_only",
                ],
                false,
            ),
            (
                "gone",
                present_as(writer),
                BTreeMap::new(),
                &["nologin"],
                true,
            ),
            (
                "gone before",
                present_as(|role| role.login = false),
                BTreeMap::new(),
                &[],
                false,
            ),
            (
                "made by hand",
                present_as(|role| role.marked = false),
                BTreeMap::new(),
                &[],
                false,
            ),
            (
                "back again",
                present_as(|role| (role.login, role.writes) = (false, true)),
                wanted_to(Access::Write),
                &["\"the-cart\" login"],
                false,
            ),
            (
                "another secret",
                present_as(|role| (role.verifier, role.writes) = (Some("old".to_owned()), true)),
                wanted_to(Access::Write),
                &["password 'v'"],
                false,
            ),
        ];
        for (name, present, wanted, parts, ended) in table {
            let changes = changes("db", &present, &wanted);
            let text = changes.statements.join(";");
            assert_eq!(text.is_empty(), parts.is_empty(), "{name}: {text}");
            let mut rest = text.as_str();
            for part in parts {
                let at = rest.find(part);
                rest = &rest[at.unwrap_or_else(|| panic!("{name}: {part} in {text}"))..];
            }
            assert_eq!(!changes.ended.is_empty(), ended, "{name}");
        }
    }

    #[test]
    fn some_names_are_no_service_s() {
        let services = [
            "mainland",
            "mainland-owner",
            "none",
            "orders",
            "postgres",
            "public",
        ];
        let services = services.map(|name| (ResourceName::new(name).unwrap(), Access::Write));
        let services: BTreeMap<_, _> = services.into();
        let refused = refused(&services, "db");
        let names: Vec<&str> = refused.iter().map(|name| name.as_str()).collect();
        assert_eq!(names, ["mainland", "mainland-owner", "none", "public"]);
    }
}
