//! What `load` and `replace` have psql do around the SQL that it reads, in one transaction.
//!
//! ```text
//! begin ─▶ replace: empty the database ─▶ guard ─▶ the SQL, through [`scan`] ─▶ release the guard ─▶ commit
//! ```
//!
//! The guard is a trigger that refuses any commit before the last step: one that is written in the SQL, or psql's own after a step that failed, or
//! after input that ended too soon since who gave it has died.
//!
//! | module | what it knows |
//! |---|---|
//! | [`feed`] | the way of the SQL into psql |
//! | [`format`](mod@format) | what is no SQL |
//! | [`scan`], [`statement`] | what is left out of the SQL, and refused |

pub mod feed;
mod format;
mod scan;
mod statement;

use super::access::{hand, identifier};
use super::outbox::Table;

const OPTIONS: [&str; 5] = [
    "--no-psqlrc",
    "--quiet",
    "--set=ON_ERROR_STOP=1",
    "--single-transaction",
    "--output=/dev/null",
];
const GUARD: &str = "create temporary table mainland_load (whole int);
create function pg_temp.mainland_load() returns trigger language plpgsql as $$ begin
  if current_setting('mainland.whole', true) is distinct from 'yes' then
    raise exception 'what is loaded is one transaction: a COMMIT amid it would keep a part of it' using hint = 'Take BEGIN and COMMIT out of it.';
  end if;
  return null;
end $$;
create constraint trigger whole after insert on pg_temp.mainland_load deferrable initially deferred
  for each row execute function pg_temp.mainland_load();
insert into pg_temp.mainland_load values (1)";
/// The last line that psql reads.
const RELEASE: &str = "set local mainland.whole = 'yes';\n";
/// Where the outbox waits while all else goes.
const ASIDE: &str = "mainland_aside";
/// For transactions of others that use what is to go.
const LOCK_PATIENCE: &str = "30s";

/// What psql is told. `emptying`: what it does first; `restriction`: a key known to nobody, where psql can keep itself from all its other commands.
pub fn arguments(emptying: Option<String>, restriction: Option<String>) -> Vec<String> {
    let options = OPTIONS.map(str::to_owned).into_iter();
    let restriction = restriction.map(|key| format!("\\restrict {key}"));
    let commands = emptying.into_iter().chain([GUARD.to_owned()]);
    let commands = commands.chain(restriction).flat_map(command);
    let read = ["--file", "-"].map(str::to_owned);
    options.chain(commands).chain(read).collect()
}

fn command(sql: String) -> [String; 2] {
    ["--command".to_owned(), sql]
}

/// All that is in `public` and no extension's, where an extension keeps the schema: each by its kind and name, as `drop` takes them.
const IN_PUBLIC: &str = "select case o.type when 'composite type' then 'type' when 'statistics object' then 'statistics' else o.type end as kind, o.identity as name
    from pg_depend d, lateral pg_identify_object(d.classid, d.objid, 0) o
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid = 'public'::regnamespace and d.deptype = 'n'
      and d.classid <> 'pg_extension'::regclass and d.classid <> 'pg_default_acl'::regclass
      and not exists (select from pg_depend e where e.classid = d.classid and e.objid = d.objid and e.deptype = 'e')";

/// The statements after which a database has nothing but its outbox, whose rows are messages that are on their way, and the extensions that are
/// the superuser's.
///
/// Done as the engine's hand: it is a member of the owner, and may own what is not to go with all that is the owner's.
pub fn emptying(owner: &str, outbox: Option<&Table>) -> String {
    let (owner, hand) = (identifier(owner), identifier(hand().as_str()));
    let (aside, back) = outbox.map_or_else(Default::default, |table| moves(table, &owner, &hand));
    format!(
        "set local role none;
set local client_min_messages = error;
set local lock_timeout = '{LOCK_PATIENCE}';
{aside}
do $$ begin if to_regnamespace('public') is not null then alter schema public owner to {hand}; end if; end $$;
drop owned by {owner} cascade;
do $$ declare other text; kind text; begin
  for other in select nspname from pg_namespace n where nspname !~ '^pg_' and nspname not in ('information_schema', '{ASIDE}')
    and not exists (select from pg_depend d where d.classid = 'pg_namespace'::regclass and d.objid = n.oid and d.deptype = 'e')
    and not exists (select from pg_extension e where e.extnamespace = n.oid)
  loop execute format('drop schema %I cascade', other); end loop;
  if to_regnamespace('public') is not null then
    for kind, other in {IN_PUBLIC}
    loop execute format('drop %s if exists %s cascade', kind, other); end loop;
  end if;
end $$;
create schema if not exists public authorization {owner};
alter schema public owner to {owner};
comment on schema public is 'standard public schema';
{back}
set local lock_timeout = 0;
set local client_min_messages = notice;
set local role {owner}"
    )
}

/// Away, and back.
fn moves(table: &Table, owner: &str, hand: &str) -> (String, String) {
    let (here, there) = (table.sql(), format!("{ASIDE}.{}", identifier(table.name())));
    let aside = format!(
        "create schema {ASIDE};
alter table if exists {here} set schema {ASIDE};
alter table if exists {there} owner to {hand};"
    );
    let back = format!(
        "alter table if exists {there} set schema public;
alter table if exists {here} owner to {owner};
drop schema {ASIDE};"
    );
    (aside, back)
}
