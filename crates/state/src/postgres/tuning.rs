//! What PostgreSQL is told at each start: `mainland.conf`, from the memory that the database was given.
//!
//! | setting | from | why |
//! |---|---|---|
//! | `shared_buffers` | a quarter, 16 MiB to 8 GiB | as its manual advises; the rest is for connections and the kernel's cache |
//! | `max_connections` | one for each 6 MiB, 20 to 200, for services | a connection is a process of 2 to 5 MiB; and [`RESERVED`] for the engine, [`OF_PEOPLE`] for people |
//! | `work_mem` | what is left, over four for each connection, 1 to 64 MiB | a query may take several |
//! | `maintenance_work_mem` | a sixteenth, 16 MiB to 1 GiB | index builds and vacuum, few at a time |
//! | `effective_cache_size` | three quarters | only an estimate for the planner |
//! | `max_wal_size` | 512 MiB | bounds both the disk and how long a start after a crash takes |
//!
//! What must hold whatever a team sets with `ALTER SYSTEM` is given on the command line: [`fixed`].

use model::state::{Postgres, connections};
use model::units::Bytes;

use super::place::{Place, SETTINGS_FILE};

/// Connections beyond those of services: the engine's own, as superuser.
const RESERVED: u64 = 8;
/// And those of people (`db connect`, `dump`, `load`), and of the engine where it is no superuser: services together have fewer than all.
pub const OF_PEOPLE: u32 = 6;
const MIB: u64 = 1 << 20;
/// The first version that can ask for all files at once. <https://www.postgresql.org/docs/14/release-14.html>
const SYNCFS_FROM: u32 = 14;

/// Of one database.
#[derive(Debug, PartialEq, Eq)]
struct Sizes {
    shared_buffers: u64,
    max_connections: u64,
    work_mem: u64,
    maintenance_work_mem: u64,
    effective_cache_size: u64,
}

impl Sizes {
    fn from(memory: Bytes) -> Self {
        let max_connections = u64::from(connections(memory));
        let memory = memory.0 / MIB;
        let shared_buffers = (memory / 4).clamp(16, 8 * 1024);
        let left = memory.saturating_sub(shared_buffers);
        Self {
            shared_buffers,
            max_connections,
            work_mem: (left / (4 * max_connections)).clamp(1, 64),
            maintenance_work_mem: (memory / 16).clamp(16, 1024),
            effective_cache_size: (memory / 4 * 3).max(32),
        }
    }
}

/// The contents of `mainland.conf`. `libraries`: what is loaded at the start; one that is not there would keep PostgreSQL from starting.
pub fn configuration(memory: Bytes, postgres: &Postgres, libraries: &[&str]) -> String {
    let sizes = Sizes::from(memory);
    let switch = |on| if on { "on" } else { "off" };
    let mut lines = vec![
        "# Written by Mainland at each start. Settings of your own: ALTER SYSTEM.".to_owned(),
        format!("shared_buffers = {}MB", sizes.shared_buffers),
        format!(
            "max_connections = {}",
            sizes.max_connections + u64::from(OF_PEOPLE) + RESERVED
        ),
        format!("superuser_reserved_connections = {RESERVED}"),
        format!("work_mem = {}MB", sizes.work_mem),
        format!("maintenance_work_mem = {}MB", sizes.maintenance_work_mem),
        format!("effective_cache_size = {}MB", sizes.effective_cache_size),
        "min_wal_size = 80MB".to_owned(),
        "max_wal_size = 512MB".to_owned(),
        "checkpoint_timeout = 5min".to_owned(),
        "checkpoint_completion_target = 0.9".to_owned(),
        "synchronous_commit = on".to_owned(),
        "autovacuum_max_workers = 2".to_owned(),
        "random_page_cost = 1.1".to_owned(),
        // Compiling a query costs more than most queries of a service.
        "jit = off".to_owned(),
        // The order of the outbox is that of commits.
        format!(
            "track_commit_timestamp = {}",
            switch(postgres.outbox.is_some())
        ),
        "password_encryption = 'scram-sha-256'".to_owned(),
        "timezone = 'UTC'".to_owned(),
        "log_timezone = 'UTC'".to_owned(),
        "log_line_prefix = '[%p] %q%u@%d '".to_owned(),
        // Values are the team's data, and a log is read by more people than a database.
        "log_parameter_max_length = 0".to_owned(),
        "log_parameter_max_length_on_error = 0".to_owned(),
    ];
    if !libraries.is_empty() {
        let libraries = libraries.join(", ");
        lines.push(format!("shared_preload_libraries = '{libraries}'"));
    }
    if postgres.version >= SYNCFS_FROM {
        // Before it recovers from a crash it makes sure of each of its thousand files, one by one, which takes longer than all the rest.
        lines.push("recovery_init_sync_method = syncfs".to_owned());
    }
    lines.join("\n") + "\n"
}

/// Settings that no file outweighs: where it answers and writes, and that it keeps what it has acknowledged.
pub fn fixed(place: &Place) -> Vec<String> {
    let folder = |path: &std::path::Path| path.display().to_string();
    vec![
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={}", place.port),
        format!("unix_socket_directories={}", folder(&place.socket)),
        "unix_socket_permissions=0700".to_owned(),
        format!("hba_file={}", folder(&place.access_file())),
        "fsync=on".to_owned(),
        "full_page_writes=on".to_owned(),
        "logging_collector=off".to_owned(),
        "log_destination=stderr".to_owned(),
    ]
}

/// The line by which `postgresql.conf` has it.
pub fn include() -> String {
    format!("\ninclude = '{SETTINGS_FILE}'\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::ids::ResourceName;

    use super::*;

    #[test]
    fn sizes_follow_the_memory_like_a_table() {
        let table = [
            // memory, buffers, connections, work_mem, maintenance, cache: MiB
            (64, [16, 20, 1, 16, 48]),
            (256, [64, 42, 1, 16, 192]),
            (1024, [256, 170, 1, 64, 768]),
            (8192, [2048, 200, 7, 512, 6144]),
            (262_144, [8192, 200, 64, 1024, 196_608]),
        ];
        for (memory, [buffers, connections, work, maintenance, cache]) in table {
            let expected = Sizes {
                shared_buffers: buffers,
                max_connections: connections,
                work_mem: work,
                maintenance_work_mem: maintenance,
                effective_cache_size: cache,
            };
            assert_eq!(Sizes::from(Bytes::mebibytes(memory)), expected, "{memory}");
        }
    }

    #[test]
    fn what_is_declared_is_in_the_settings_like_a_table() {
        let topic = ResourceName::new("events").unwrap();
        for (outbox, libraries, line) in [
            (Some(topic), &[][..], "track_commit_timestamp = on"),
            (None, &[], "track_commit_timestamp = off"),
            (
                None,
                &["pg_stat_statements", "x"],
                "shared_preload_libraries = 'pg_stat_statements, x'",
            ),
        ] {
            let postgres = Postgres {
                version: 15,
                outbox,
                extensions: BTreeMap::new(),
            };
            let text = configuration(Bytes::mebibytes(256), &postgres, libraries);
            assert!(text.contains(&format!("\n{line}\n")), "{text}");
            assert_eq!(
                text.contains("shared_preload_libraries"),
                !libraries.is_empty()
            );
        }
    }
}
