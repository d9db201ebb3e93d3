//! Finding the PostgreSQL that is installed on the machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What commit timestamps, `pg_read_all_data` and SCRAM need together.
const OLDEST: u32 = 14;
/// Where packages put one folder per major version: the text before and after its number.
const LAYOUTS: [(&str, &str, &str); 2] = [
    ("Debian", "/usr/lib/postgresql/", "/bin"),
    ("PGDG's RPMs", "/usr/pgsql-", "/bin"),
];
/// Where libraries are, from the folder above that of the programs: Debian and PGDG; built from source; distributions of 64 bits.
const LIBRARIES: [&str; 4] = ["lib", "lib/postgresql", "lib64", "lib64/pgsql"];
/// All that an engine executes.
const NEEDED: [&str; 4] = ["postgres", "initdb", "psql", "pg_dump"];
const NEWEST_LOOKED_FOR: u32 = 40;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("PostgreSQL {0} is too old: {OLDEST} is the oldest that is supported")]
    TooOld(u32),
    #[error(
        "PostgreSQL {version} is not on this machine ({found}); looked for {}; install it: apt-get install postgresql-{version} (Debian, Ubuntu; other versions: apt.postgresql.org) or dnf install postgresql{version}-server (yum.postgresql.org)",
        looked_for(*version)
    )]
    NotFound { version: u32, found: Found },
}

/// The versions that are there, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Found(BTreeMap<u32, PathBuf>);

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nor is any other version");
        }
        f.write_str("there are: ")?;
        for (index, (version, folder)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{version} in {}", folder.display())?;
        }
        Ok(())
    }
}

/// The folder with the programs of one version.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Whether the server finds a library by its bare name: in the folder that was built into it, beside these programs in all layouts.
    pub fn has_library(&self, name: &str) -> bool {
        let programs = self.0.canonicalize().unwrap_or_else(|_| self.0.clone());
        let Some(root) = programs.parent() else {
            return false;
        };
        let file = format!("{name}.so");
        LIBRARIES
            .iter()
            .any(|folder| root.join(folder).join(&file).exists())
    }

    /// Whether psql knows `\restrict`: after it, no other of its commands is done.
    /// <https://www.postgresql.org/about/news/postgresql-176-1610-1514-1419-1322-and-18-beta-3-released-3118/>
    pub fn psql_restricts(&self, version: u32) -> bool {
        let output = Command::new(self.path("psql")).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let minor = minor(&text.unwrap_or_default()).unwrap_or(0);
        match version {
            14 => minor >= 19,
            15 => minor >= 14,
            16 => minor >= 10,
            17 => minor >= 6,
            version => version >= 18,
        }
    }
}

/// # Errors
///
/// It is not on the machine.
pub fn find(version: u32, search: &Search) -> Result<Programs, Error> {
    if version < OLDEST {
        return Err(Error::TooOld(version));
    }
    let found = search.all();
    match found.get(&version) {
        Some(folder) => Ok(Programs(folder.clone())),
        None => Err(Error::NotFound {
            version,
            found: Found(found),
        }),
    }
}

/// What of the supported versions this machine has: version → folder of its programs.
pub fn installed() -> BTreeMap<u32, PathBuf> {
    let mut found = Search::of_machine().all();
    found.retain(|version, _| *version >= OLDEST);
    found
}

/// Where to look: a root other than `/` is for tests.
#[derive(Debug)]
pub struct Search {
    pub root: PathBuf,
    /// The folders of PATH.
    pub path: Vec<PathBuf>,
}

impl Search {
    pub fn of_machine() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            root: "/".into(),
            path: std::env::split_paths(&path).collect(),
        }
    }

    fn all(&self) -> BTreeMap<u32, PathBuf> {
        let on_path = self.path.iter().filter(|folder| is_complete(folder));
        let mut found: BTreeMap<u32, PathBuf> = on_path
            .filter_map(|folder| Some((version_of(folder)?, folder.clone())))
            .collect();
        // A layout that names the version is preferred: links on PATH may come to mean another.
        for version in 1..=NEWEST_LOOKED_FOR {
            let folders = LAYOUTS
                .iter()
                .map(|(_, before, after)| format!("{before}{version}{after}"));
            let folders = folders.map(|folder| self.root.join(folder.trim_start_matches('/')));
            found.extend(
                folders
                    .into_iter()
                    .find(|folder| is_complete(folder))
                    .map(|folder| (version, folder)),
            );
        }
        found
    }
}

fn is_complete(folder: &Path) -> bool {
    NEEDED.iter().all(|name| folder.join(name).exists())
}

fn version_of(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    major(&String::from_utf8(output.stdout).ok()?)
}

/// `postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)`.
fn major(text: &str) -> Option<u32> {
    let number = text.split_once(") ")?.1;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Of `psql (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)`.
fn minor(text: &str) -> Option<u32> {
    let number = text.split_once(") ")?.1.split_once('.')?.1;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn looked_for(version: u32) -> String {
    let folders: Vec<String> = LAYOUTS
        .iter()
        .map(|(whose, before, after)| format!("{before}{version}{after} ({whose})"))
        .collect();
    format!("{} and PATH", folders.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn install(folder: &Path, says: &str) {
        std::fs::create_dir_all(folder).unwrap();
        for name in NEEDED {
            let file = folder.join(name);
            std::fs::write(&file, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn a_version_is_found_in_each_layout_and_what_is_missing_is_said() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        install(&at("usr/lib/postgresql/15/bin"), "");
        install(&at("usr/pgsql-16/bin"), "");
        install(&at("opt/bin"), "postgres (PostgreSQL) 17.2");
        std::fs::create_dir_all(at("usr/lib/postgresql/18/bin")).unwrap();
        let search = Search {
            root: root.path().to_owned(),
            path: vec![at("nowhere"), at("opt/bin")],
        };
        for (version, expected) in [
            (15, "usr/lib/postgresql/15/bin"),
            (16, "usr/pgsql-16/bin"),
            (17, "opt/bin"),
        ] {
            let programs = find(version, &search).unwrap();
            assert_eq!(programs.path("x"), at(expected).join("x"));
        }
        let error = find(18, &search).unwrap_err().to_string();
        for part in [
            "PostgreSQL 18 is not",
            "there are: 15 in",
            "17 in",
            "/usr/pgsql-18/bin",
            "apt-get install postgresql-18",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(matches!(find(13, &search), Err(Error::TooOld(13))));
    }

    #[test]
    fn majors_are_read() {
        for (text, expected) in [
            (
                "postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)",
                Some(15),
            ),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("something else", None),
        ] {
            assert_eq!(major(text), expected);
            assert_eq!(
                minor(text),
                expected.filter(|_| text.contains('.')).map(|_| 8)
            );
        }
    }
}
