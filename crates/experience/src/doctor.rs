//! What this machine has and lacks, each with what follows from it and how to mend it.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::machine::{Disk, Fill};

use crate::Globals;
use crate::failure::Failure;
use crate::output::{Output, table};

const LOCAL_NAME: &str = "mainland.localhost";
/// For the name to be found or not.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1 if something that is needed is missing.\n\nExample:\n  mainland doctor"
)]
pub struct Doctor {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, serde::Serialize)]
struct Finding {
    what: &'static str,
    grade: Grade,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum Grade {
    Good,
    /// It runs, with less.
    Less,
    Bad,
}

impl Doctor {
    /// `postgres` is what this machine has of it: version → folder of its programs.
    pub async fn run(
        self,
        globals: &Globals,
        postgres: &BTreeMap<u32, PathBuf>,
    ) -> Result<u8, Failure> {
        let mut findings = vec![
            privilege(),
            cgroups(),
            firewall(),
            postgresql(postgres),
            globals
                .data_dir()
                .map_or_else(unknown_disk, |data| disk(&data)),
            memory(),
            names(),
        ];
        findings.push(server(globals).await);
        self.output.print(&findings, || {
            let mark = |grade| match grade {
                Grade::Good => "✓",
                Grade::Less => "-",
                Grade::Bad => "✗",
            };
            table(
                ["GRADE", "WHAT", "FOUND"],
                findings.iter().map(|one| {
                    [
                        mark(one.grade).to_owned(),
                        one.what.to_owned(),
                        one.message.clone(),
                    ]
                }),
            )
        })?;
        Ok(u8::from(findings.iter().any(|one| one.grade == Grade::Bad)))
    }
}

fn finding(what: &'static str, grade: Grade, message: impl Into<String>) -> Finding {
    Finding {
        what,
        grade,
        message: message.into(),
    }
}

fn privilege() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => finding(
            "privilege",
            Grade::Good,
            "root: each service runs as a user of its own, calls are enforced",
        ),
        false => finding(
            "privilege",
            Grade::Less,
            "not root: services run as you: undeclared calls are labelled, not enforced, and each service can read the admin token, the keyring, the authority's key and all secrets, and write the store and the audit log",
        ),
    }
}

/// Whether programs find the hosts of routes such as `shop.localhost`. Browsers and curl do by themselves (RFC 6761); the C library of Debian asks the
/// network, which knows no such name.
fn names() -> Finding {
    match resolves(LOCAL_NAME, RESOLVE_PATIENCE) {
        Some(true) => finding("names", Grade::Good, "programs find *.localhost"),
        Some(false) | None => finding(
            "names",
            Grade::Less,
            "the C library does not find *.localhost (browsers and curl do): `apt-get install libnss-myhostname` mends it, or ask 127.0.0.1 with a Host header",
        ),
    }
}

/// Whether the C library finds a name. `None`: it does not know within `patience`.
pub(crate) fn resolves(name: &str, patience: Duration) -> Option<bool> {
    let (found, resolved) = std::sync::mpsc::sync_channel(1);
    let name = name.to_owned();
    // In a thread that nobody waits for: a network that is away keeps it for long.
    std::thread::spawn(move || {
        let is_known = (name.as_str(), 80).to_socket_addrs().is_ok();
        let _ = found.send(is_known);
    });
    resolved.recv_timeout(patience).ok()
}

fn cgroups() -> Finding {
    let writable = |path: &str| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    if writable("/sys/fs/cgroup/memory") {
        return finding("cgroups", Grade::Good, "version 1: memory limits are hard");
    }
    let controllers =
        std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.contains("memory") && writable("/sys/fs/cgroup/cgroup.procs") {
        return finding("cgroups", Grade::Good, "version 2: memory limits are hard");
    }
    finding(
        "cgroups",
        Grade::Less,
        "none that may be used: memory limits are counted, not enforced",
    )
}

fn firewall() -> Finding {
    let found = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"]
        .iter()
        .any(|path| Path::new(path).exists());
    match found {
        true if !rustix::process::geteuid().is_root() => finding(
            "nftables",
            Grade::Less,
            "not root: the ports of instances stay open on loopback",
        ),
        true => finding(
            "nftables",
            Grade::Good,
            "the ports of instances can be closed to undeclared callers",
        ),
        false => finding(
            "nftables",
            Grade::Less,
            "missing: the ports of instances stay open on loopback; `apt-get install nftables` mends it",
        ),
    }
}

fn postgresql(installed: &BTreeMap<u32, PathBuf>) -> Finding {
    let what = "PostgreSQL";
    if installed.is_empty() {
        return finding(
            what,
            Grade::Less,
            "missing: `databases` can't run; `apt-get install postgresql` (or dnf install postgresql-server) mends it",
        );
    }
    let each = installed
        .iter()
        .map(|(version, folder)| format!("{version} in {}", folder.display()));
    let each: Vec<_> = each.collect();
    finding(what, Grade::Good, each.join(", "))
}

fn disk(data_dir: &Path) -> Finding {
    let existing = data_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        return finding(
            "data directory",
            Grade::Bad,
            format!(
                "{} can't be written; --data-dir names another",
                existing.display()
            ),
        );
    }
    match api::disk::look(existing) {
        Ok(found) => room(data_dir, &found),
        Err(error) => finding("data directory", Grade::Less, error.to_string()),
    }
}

fn room(data_dir: &Path, disk: &Disk) -> Finding {
    let what = "data directory";
    let free = disk.free.0 >> 20;
    let told = match disk.trouble(&data_dir.display().to_string()) {
        Some(trouble) => trouble.message,
        None => format!(
            "{}: {free} MiB free, {} % used",
            data_dir.display(),
            disk.used_percent()
        ),
    };
    let grade = match disk.fill() {
        Fill::Full => Grade::Bad,
        Fill::Filling => Grade::Less,
        Fill::Well if free < 1024 => Grade::Less,
        Fill::Well => Grade::Good,
    };
    finding(what, grade, told)
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes: u64 = line
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let grade = if kibibytes < 256 << 10 {
        Grade::Less
    } else {
        Grade::Good
    };
    finding(
        "memory",
        grade,
        format!("{} MiB available", kibibytes >> 10),
    )
}

fn first_line(failure: &Failure) -> &str {
    failure.message.lines().next().unwrap_or_default()
}

fn unknown_disk(failure: Failure) -> Finding {
    finding("data directory", Grade::Bad, first_line(&failure))
}

async fn server(globals: &Globals) -> Finding {
    let client = match globals.client() {
        Ok(client) => client,
        Err(failure) => return finding("server", Grade::Less, first_line(&failure)),
    };
    match client.version().await {
        Ok(version) => finding(
            "server",
            Grade::Good,
            format!(
                "{} answers, version {}",
                client.transport(),
                version.version
            ),
        ),
        Err(_) => finding(
            "server",
            Grade::Less,
            "none answers; `mainland up` starts one",
        ),
    }
}

#[cfg(test)]
mod tests {
    use model::units::Bytes;

    use super::*;

    #[test]
    fn a_disk_that_fills_is_named_and_a_full_one_is_bad() {
        let grade = |free: u64| {
            let disk = Disk {
                size: Bytes(100 << 30),
                free: Bytes(free << 30),
                files: 0,
                files_free: 0,
            };
            let found = room(Path::new("/var/lib/mainland"), &disk);
            assert!(found.message.contains("/var/lib/mainland"));
            found.grade
        };
        assert_eq!(
            [50, 20, 5, 0].map(grade),
            [Grade::Good, Grade::Less, Grade::Bad, Grade::Bad]
        );
    }

    #[test]
    fn postgresql_is_named_with_its_place_or_how_to_get_it() {
        let none = postgresql(&BTreeMap::new());
        assert_eq!(none.grade, Grade::Less);
        assert!(none.message.contains("apt-get install postgresql"));
        let two = [(15, "/a".into()), (16, "/b".into())];
        let found = postgresql(&two.into());
        assert_eq!(found.grade, Grade::Good);
        assert_eq!(found.message, "15 in /a, 16 in /b");
    }
}
