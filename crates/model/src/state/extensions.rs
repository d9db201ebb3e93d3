//! Extensions of a database: which are refused, which PostgreSQL loads when it starts, and which package brings each.
//!
//! Whether a machine has one only that machine knows. The tables here are of what is known beforehand.

use serde::{Deserialize, Serialize};

use schemars::JsonSchema;

use super::Postgres;

/// What is declared of one extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// It is made where it is not there.
    Create,
    /// It goes, unless something depends on it.
    Drop,
}

/// How one extension is, as the database says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExtensionStatus {
    /// `None`: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What a person should do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concern: Option<String>,
}

/// Extensions of one database.
pub const MOST: usize = 100;
/// Of an identifier of PostgreSQL.
const NAME_BYTES_MAX: usize = 63;

/// What reads or writes files of the machine or runs its programs, and untrusted languages whose name does not say so.
const REFUSED: [&str; 7] = [
    "adminpack",
    "file_fdw",
    "file_textarray_fdw",
    "multicorn",
    "pljava",
    "plr",
    "plsh",
];
/// What brings one of the untrusted languages with it, whose own names end in `u`.
const UNTRUSTED_ENDS: [&str; 4] = ["_plpython3u", "_plpython2u", "_plpythonu", "_plperlu"];

/// Libraries that PostgreSQL must load when it starts, for an extension; in the order in which it is told them.
const PRELOADED: [(&str, &[&str]); 18] = [
    // Its documentation asks to be the first.
    ("citus", &["citus"]),
    ("timescaledb", &["timescaledb"]),
    ("pg_stat_statements", &["pg_stat_statements"]),
    ("pg_stat_kcache", &["pg_stat_statements", "pg_stat_kcache"]),
    ("pg_stat_monitor", &["pg_stat_monitor"]),
    ("pg_qualstats", &["pg_qualstats"]),
    ("pg_wait_sampling", &["pg_wait_sampling"]),
    ("pg_cron", &["pg_cron"]),
    ("pg_net", &["pg_net"]),
    ("pg_search", &["pg_search"]),
    ("pg_squeeze", &["pg_squeeze"]),
    ("pgaudit", &["pgaudit"]),
    ("pglogical", &["pglogical"]),
    ("credcheck", &["credcheck"]),
    ("set_user", &["set_user"]),
    ("anon", &["anon"]),
    ("pg_textsearch", &["pg_textsearch"]),
    ("vchord", &["vchord"]),
];

/// Those that come with PostgreSQL itself: in Debian's package of the server, in `-contrib` of others.
const CONTRIB: [&str; 43] = [
    "amcheck",
    "autoinc",
    "bloom",
    "bool_plperl",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dblink",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "fuzzystrmatch",
    "hstore",
    "insert_username",
    "intagg",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "moddatetime",
    "old_snapshot",
    "pageinspect",
    "pg_buffercache",
    "pg_freespacemap",
    "pg_prewarm",
    "pg_stat_statements",
    "pg_surgery",
    "pg_trgm",
    "pg_visibility",
    "pg_walinspect",
    "pgcrypto",
    "pgrowlocks",
    "pgstattuple",
    "postgres_fdw",
    "refint",
    "seg",
    "sslinfo",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "unaccent",
    "uuid-ossp",
];

/// What Debian and apt.postgresql.org call the rest of the package's name, where it is not the extension's own with `-` for `_`.
const PACKAGED: [(&str, &str); 22] = [
    ("address_standardizer", "postgis-3"),
    ("pg_cron", "cron"),
    ("pg_partman", "partman"),
    ("pg_repack", "repack"),
    ("pg_squeeze", "squeeze"),
    ("pgrouting", "pgrouting"),
    ("plperl", "plperl"),
    ("plpgsql_check", "plpgsql-check"),
    ("postgis", "postgis-3"),
    ("postgis_raster", "postgis-3"),
    ("postgis_sfcgal", "postgis-3"),
    ("postgis_tiger_geocoder", "postgis-3"),
    ("postgis_topology", "postgis-3"),
    ("pltcl", "pltcl"),
    ("roaringbitmap", "roaringbitmap"),
    ("temporal_tables", "temporal-tables"),
    ("timescaledb", "timescaledb"),
    ("vector", "pgvector"),
    ("hstore_plperl", "plperl"),
    ("jsonb_plperl", "plperl"),
    ("pg_ivm", "pg-ivm"),
    ("hll", "hll"),
];

/// Whether a name may be declared.
///
/// # Errors
///
/// In words: it is no name of an extension, or one that gives a role of the database what only its superuser has.
pub fn check(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if !begins || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(format!(
            "`{name}` is not the name of an extension: lowercase letters, digits, `_` and `-`, at most {NAME_BYTES_MAX}"
        ));
    }
    if name == "plpgsql" {
        return Err("every database has `plpgsql`".to_owned());
    }
    if is_refused(name) {
        return Err(format!(
            "`{name}` reads or writes files of the machine, or runs programs on it, as the user of the database, who has every service's password: it is refused; do that in a service"
        ));
    }
    Ok(())
}

/// Whether its functions reach what a service has no business with: files and programs of the machine.
pub fn is_refused(name: &str) -> bool {
    let is_untrusted_language = name.starts_with("pl") && name.ends_with('u');
    is_untrusted_language
        || REFUSED.contains(&name)
        || UNTRUSTED_ENDS.iter().any(|end| name.ends_with(end))
}

/// The libraries that PostgreSQL loads at its start, for what is declared. Another list is a restart.
pub fn preloaded(postgres: &Postgres) -> Vec<&'static str> {
    let declared = |name: &str| postgres.extensions.get(name) == Some(&Wish::Create);
    let libraries = PRELOADED
        .iter()
        .filter(|(name, _)| declared(name))
        .flat_map(|(_, libraries)| *libraries);
    let mut all = Vec::new();
    for library in libraries {
        if !all.contains(library) {
            all.push(*library);
        }
    }
    all
}

/// What one extension must have loaded.
pub fn preloads(name: &str) -> &'static [&'static str] {
    let known = PRELOADED.iter().find(|(known, _)| *known == name);
    known.map_or(&[], |(_, libraries)| libraries)
}

/// What a person types where the machine does not have it.
pub fn remedy(name: &str, version: u32) -> String {
    if CONTRIB.contains(&name) {
        return format!(
            "apt-get install postgresql-{version} (Debian, Ubuntu) or dnf install postgresql{version}-contrib"
        );
    }
    let known = PACKAGED.iter().find(|(known, _)| *known == name);
    let end = known.map_or_else(|| name.replace('_', "-"), |(_, end)| (*end).to_owned());
    let package = format!("postgresql-{version}-{end}");
    match known {
        Some(_) => format!("apt-get install {package} (Debian, Ubuntu, apt.postgresql.org)"),
        None => format!(
            "packages are called like `apt-get install {package}`; search: apt-cache search postgresql-{version}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_or_refused_like_a_table() {
        for (name, why) in [
            ("vector", None),
            ("uuid-ossp", None),
            ("pg_stat_statements", None),
            ("postgres_fdw", None),
            ("dblink", None),
            ("plperl", None),
            ("plv8", None),
            ("hstore_plperl", None),
            ("nobody_knows_this", None),
            ("plpgsql", Some("every database has")),
            ("adminpack", Some("runs programs")),
            ("file_fdw", Some("runs programs")),
            ("plpython3u", Some("runs programs")),
            ("plperlu", Some("runs programs")),
            ("pltclu", Some("runs programs")),
            ("plluau", Some("runs programs")),
            ("jsonb_plpython3u", Some("runs programs")),
            ("plsh", Some("runs programs")),
            ("Vector", Some("is not the name")),
            ("", Some("is not the name")),
            ("-x", Some("is not the name")),
            ("a/../b", Some("is not the name")),
            ("a\"; drop", Some("is not the name")),
            ("a\0", Some("is not the name")),
            (&"a".repeat(64), Some("at most 63")),
        ] {
            let told = check(name).err();
            let fits = match (&told, why) {
                (None, None) => true,
                (Some(told), Some(part)) => told.contains(part),
                _ => false,
            };
            assert!(fits, "{name}: {told:?}");
        }
    }

    #[test]
    fn libraries_are_loaded_once_and_in_an_order() {
        let with = |names: &[(&str, Wish)]| Postgres {
            version: 15,
            outbox: None,
            extensions: names
                .iter()
                .map(|(name, wish)| ((*name).to_owned(), *wish))
                .collect(),
        };
        for (names, expected) in [
            (&[("vector", Wish::Create)][..], &[][..]),
            (
                &[("pg_stat_statements", Wish::Create)],
                &["pg_stat_statements"],
            ),
            (&[("pg_stat_statements", Wish::Drop)], &[]),
            (
                &[
                    ("pg_cron", Wish::Create),
                    ("pg_stat_kcache", Wish::Create),
                    ("pg_stat_statements", Wish::Create),
                    ("citus", Wish::Create),
                ],
                &["citus", "pg_stat_statements", "pg_stat_kcache", "pg_cron"],
            ),
        ] {
            assert_eq!(preloaded(&with(names)), expected, "{names:?}");
        }
    }

    #[test]
    fn the_package_is_named() {
        for (name, part) in [
            ("vector", "apt-get install postgresql-15-pgvector (Debian"),
            ("postgis", "postgresql-15-postgis-3 (Debian"),
            ("pg_cron", "postgresql-15-cron (Debian"),
            ("dblink", "dnf install postgresql15-contrib"),
            (
                "pg_hint_plan",
                "called like `apt-get install postgresql-15-pg-hint-plan`",
            ),
        ] {
            let told = remedy(name, 15);
            assert!(told.contains(part), "{told}");
        }
    }
}
