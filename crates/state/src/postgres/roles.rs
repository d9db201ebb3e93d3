//! Roles: the services that need a database are told by its node, and each has a role of its own name.
//!
//! | access | may | how |
//! |---|---|---|
//! | write | all in the database | member of the owner, and acts as it: what services make belongs to one owner |
//! | read | read all in the database | `pg_read_all_data`, sessions read-only; another database it can't enter |
//! | none any more | nothing | can't log in, its sessions are ended; kept, so what is granted to it comes back with it |

use std::collections::{BTreeMap, BTreeSet};

use model::ids::ResourceName;
use model::state::{Access, EngineSettings, kept_for_newcomers};
use tokio_postgres::{Client, Error};

use super::access::{hand, identifier, keeper, literal, superuser};
use super::password::verifier;
use super::tuning::OF_PEOPLE;

/// The comment by which a role is known as a service's: those that a team makes by hand are its own.
const MARK: &str = "a service, kept by Mainland";
/// Connections of services, as the server was started: all but those of superusers and of people.
pub const FOR_SERVICES: &str = "select current_setting('max_connections')::int4 - current_setting('superuser_reserved_connections')::int4 - $1::text::int4";
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
    /// -1: any number.
    connections: i32,
}

impl Present {
    /// As `create role` makes it.
    fn new() -> Self {
        Self {
            connections: -1,
            ..Self::default()
        }
    }
}

/// A role as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    access: Access,
    verifier: String,
    connections: i32,
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
        || *name == keeper()
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
    settings: &EngineSettings,
) -> Result<(), Error> {
    let row = client
        .query_one(FOR_SERVICES, &[&OF_PEOPLE.to_string()])
        .await?;
    let wanted = wanted(owner, secret, settings, row.get::<_, i32>(0).unsigned_abs());
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
    settings: &EngineSettings,
    connections: u32,
) -> BTreeMap<String, Wanted> {
    let own = hand();
    let shares = shares(settings, connections);
    let services = settings.roles.iter();
    let services = services.filter(|(name, _)| !is_refused(name, owner));
    let all = services.chain([(&own, &Access::Write)]);
    let entry = |(name, access): (&ResourceName, &Access)| {
        let wanted = Wanted {
            access: *access,
            verifier: verifier(secret, name),
            connections: shares.get(name).map_or(-1, |share| share.cast_signed()),
        };
        (name.to_string(), wanted)
    };
    all.map(entry).collect()
}

/// How many connections each service may have: together not more than there are, so that none takes those of others, or of people.
///
/// What is declared is kept as far as all others keep one; those of whom nothing is declared have equal shares of the rest, but for what is
/// [kept for newcomers](kept_for_newcomers). Who has copies of both kinds has what is more. Who has copies from before others came keeps what
/// it had then, and the others have what is free: pools that are open were made for it.
pub fn shares(settings: &EngineSettings, connections: u32) -> BTreeMap<ResourceName, u32> {
    let all = shared(settings, connections);
    let mut holding: Vec<_> = settings
        .newcomers
        .iter()
        .filter_map(|(name, newcomers)| {
            let had = *shared(&without(settings, newcomers), connections).get(name)?;
            (had > *all.get(name)?).then_some((newcomers.len(), had, name))
        })
        .collect();
    if holding.is_empty() {
        return all;
    }
    // The longer a service is there, the more came after it.
    holding.sort_unstable_by(|one, other| other.cmp(one));
    let (mut left, mut others) = (connections, BTreeSet::new());
    let mut shares = BTreeMap::new();
    for (_, had, name) in holding {
        others.insert(name.clone());
        let rest = settings.roles.len() - others.len();
        let rest = u32::try_from(rest).unwrap_or(u32::MAX);
        let share = had.min(left.saturating_sub(rest)).max(1);
        left = left.saturating_sub(share);
        shares.insert(name.clone(), share);
    }
    let rest = divided(&without(settings, &others), left, 0);
    for (name, share) in rest {
        let most = all.get(&name).copied().unwrap_or(share);
        shares.insert(name, share.min(most));
    }
    shares
}

/// As though these did not need the database.
fn without(settings: &EngineSettings, names: &BTreeSet<ResourceName>) -> EngineSettings {
    let mut settings = settings.clone();
    settings.roles.retain(|name, _| !names.contains(name));
    settings.connections.retain(|name, _| !names.contains(name));
    settings.sharing.retain(|name| !names.contains(name));
    settings
}

fn shared(settings: &EngineSettings, connections: u32) -> BTreeMap<ResourceName, u32> {
    divided(settings, connections, kept_for_newcomers(connections))
}

/// `kept` of them are in nobody's equal share.
fn divided(settings: &EngineSettings, connections: u32, kept: u32) -> BTreeMap<ResourceName, u32> {
    let declared = settings.connections.iter();
    let mut declared: BTreeMap<_, _> = declared
        .filter(|(name, _)| !settings.sharing.contains(*name))
        .map(|(name, most)| (name, *most))
        .collect();
    loop {
        let shares = divide(settings, &declared, connections, kept);
        let mut sharing = settings.sharing.iter();
        let short = sharing.find_map(|name| {
            let most = *settings.connections.get(name)?;
            let is_short = shares.get(name).is_some_and(|share| *share < most);
            (is_short && !declared.contains_key(name)).then_some((name, most))
        });
        match short {
            Some((name, most)) => declared.insert(name, most),
            None => return shares,
        };
    }
}

fn divide(
    settings: &EngineSettings,
    declared: &BTreeMap<&ResourceName, u32>,
    connections: u32,
    kept: u32,
) -> BTreeMap<ResourceName, u32> {
    let services = u32::try_from(settings.roles.len()).unwrap_or(u32::MAX);
    let (mut left, mut without) = (connections, services);
    let mut shares = BTreeMap::new();
    for name in settings.roles.keys() {
        if let Some(declared) = declared.get(name) {
            without -= 1;
            let others = services - u32::try_from(shares.len()).unwrap_or(services) - 1;
            let share = (*declared).min(left.saturating_sub(others)).max(1);
            left = left.saturating_sub(share);
            shares.insert(name.clone(), share);
        }
    }
    let share = (left.saturating_sub(kept) / without.max(1)).max(1);
    for name in settings.roles.keys() {
        shares.entry(name.clone()).or_insert(share);
    }
    shares
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
        "select a.rolname::text, coalesce(shobj_description(a.oid, 'pg_authid') = $1, false), a.rolcanlogin, a.rolpassword, {}, {}, a.rolconnlimit
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
            connections: row.get(6),
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
        let present = present.cloned().unwrap_or_else(Present::new);
        if !present.marked {
            self.say(format!("comment on role {role} is {}", literal(MARK)));
        }
        if present.verifier.as_ref() != Some(&wanted.verifier) {
            let verifier = literal(&wanted.verifier);
            self.say(format!("alter role {role} password {verifier}"));
        }
        match wanted.access {
            Access::Write | Access::Consume if !present.writes || present.reads => {
                self.write(owner, &role, &present);
            }
            Access::Read if !present.reads || present.writes => {
                self.read(owner, &role, &present);
                self.ended.push(name.to_owned());
            }
            _ => {}
        }
        if present.connections != wanted.connections {
            let most = wanted.connections;
            self.say(format!("alter role {role} connection limit {most}"));
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
            connections: 9,
        };
        [("the-cart".to_owned(), wanted)].into()
    }

    fn present_as(change: fn(&mut Present)) -> BTreeMap<String, Present> {
        let mut present = Present {
            marked: true,
            login: true,
            verifier: Some("v".to_owned()),
            connections: 9,
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
                    "connection limit 9",
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
                "another share",
                present_as(|role| (role.connections, role.writes) = (4, true)),
                wanted_to(Access::Write),
                &["\"the-cart\" connection limit 9"],
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
    fn connections_are_shared_like_a_table() {
        for (declared, connections, expected) in [
            // 5 are kept for newcomers.
            (&[None][..], 42, &[37][..]),
            (&[None, None, None], 42, &[12, 12, 12]),
            (&[Some(20), None, None], 42, &[20, 8, 8]),
            (&[Some(5), Some(6)], 42, &[5, 6]),
            (&[Some(100), None, Some(100)], 42, &[40, 1, 1]),
            (&[None; 5], 3, &[1; 5]),
        ] {
            let name = |index: usize| ResourceName::new(format!("s{index}")).unwrap();
            let mut settings = EngineSettings::default();
            for (index, declared) in declared.iter().enumerate() {
                settings.roles.insert(name(index), Access::Write);
                settings
                    .connections
                    .extend(declared.map(|most| (name(index), most)));
            }
            let shares: Vec<u32> = shares(&settings, connections).into_values().collect();
            assert_eq!(shares, expected, "{declared:?} of {connections}");
        }
    }

    /// While a rollout goes on, copies of both releases find what theirs declares.
    #[test]
    fn who_counts_on_an_equal_share_has_what_is_more() {
        for (declared, connections, expected) in [
            // An equal share is 12.
            (5, 42, [12, 12, 12]),
            (20, 42, [20, 8, 8]),
            (12, 42, [12, 12, 12]),
            (100, 42, [40, 1, 1]),
        ] {
            let name = |index: usize| ResourceName::new(format!("s{index}")).unwrap();
            let mut settings = EngineSettings::default();
            settings
                .roles
                .extend((0..3).map(|index| (name(index), Access::Write)));
            settings.connections.insert(name(0), declared);
            settings.sharing.insert(name(0));
            let shares: Vec<u32> = shares(&settings, connections).into_values().collect();
            assert_eq!(shares, expected, "{declared} of {connections}");
        }
    }

    /// Whose pools are open keeps what they were made for, and the sum is never more than there is.
    #[test]
    fn who_runs_keeps_its_share_while_others_come() {
        // For each service: what it declares, and those that came after its oldest copy was released.
        type Case<'a> = (&'a str, &'a [(Option<u32>, &'a [usize])], &'a [u32]);
        let table: &[Case<'_>] = &[
            ("alone", &[(None, &[])], &[37]),
            ("a second comes", &[(None, &[1]), (None, &[])], &[37, 5]),
            (
                "and the first was replaced",
                &[(None, &[]), (None, &[])],
                &[18, 18],
            ),
            (
                "a third comes at once",
                &[(None, &[1, 2]), (None, &[2]), (None, &[])],
                &[37, 4, 1],
            ),
            (
                "to two",
                &[(None, &[2]), (None, &[2]), (None, &[])],
                &[18, 18, 6],
            ),
            (
                "one that declares",
                &[(None, &[1]), (Some(20), &[])],
                &[37, 5],
            ),
            (
                "to one that declares",
                &[(Some(20), &[1]), (None, &[])],
                &[20, 17],
            ),
        ];
        for (what, services, expected) in table {
            let name = |index: usize| ResourceName::new(format!("s{index}")).unwrap();
            let mut settings = EngineSettings::default();
            for (index, (declared, newcomers)) in services.iter().enumerate() {
                settings.roles.insert(name(index), Access::Write);
                let declared = declared.map(|most| (name(index), most));
                settings.connections.extend(declared);
                let newcomers: BTreeSet<_> = newcomers.iter().map(|one| name(*one)).collect();
                if !newcomers.is_empty() {
                    settings.newcomers.insert(name(index), newcomers);
                }
            }
            let shares: Vec<u32> = shares(&settings, 42).into_values().collect();
            assert_eq!(shares, *expected, "{what}");
        }
        // However many come, each has one, and they together not more than there are.
        let name = |index: usize| ResourceName::new(format!("s{index:02}")).unwrap();
        let mut settings = EngineSettings::default();
        for index in 0..40 {
            settings.roles.insert(name(index), Access::Write);
            let after: BTreeSet<_> = (index + 1..40).map(name).collect();
            settings.newcomers.insert(name(index), after);
            let shares = shares(&settings, 42);
            assert!(shares.values().all(|share| *share >= 1), "{shares:?}");
            assert!(shares.values().sum::<u32>() <= 42, "{shares:?}");
        }
    }

    #[test]
    fn some_names_are_no_service_s() {
        let services = [
            "mainland",
            "mainland-extensions",
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
        assert_eq!(
            names,
            [
                "mainland",
                "mainland-extensions",
                "mainland-owner",
                "none",
                "public"
            ]
        );
    }
}
