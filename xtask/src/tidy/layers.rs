//! Who may import whom. Development and build dependencies count: a cycle through tests is a cycle.

use super::Violation;
use super::paths;
use super::workspace::{Member, Workspace};

/// The floor whose crates are siblings that never import each other.
const ROOMS: &str = "rooms";

/// Crates that import nothing of ours but this.
const NOTHING_BUT: [(&str, &[&str]); 7] = [
    ("model", &[]),
    ("sqlite", &[]),
    ("tls", &["model"]),
    ("plan", &["model"]),
    ("api", &["model"]),
    ("experience", &["model", "api"]),
    ("system", &["model", "api"]),
];

/// Crates that never import this, and why.
const NEVER: [(&str, &str, &str); 3] = [
    (
        "control",
        "traffic",
        "proxies are told what to do through the API",
    ),
    ("control", "state", "engines are workloads, run by nodes"),
    (
        "control",
        "sqlite",
        "the store is a trait; which engine it has, the binary decides",
    ),
];

/// Crates that use of another only this module, and why.
const ONLY_MODULE: [(&str, &str, &str, &str); 1] = [(
    "control",
    "compute",
    "artifact",
    "control keeps artifacts; running things is the nodes' part",
)];

pub(crate) fn check(workspace: &Workspace) -> Vec<Violation> {
    let members = workspace.members.iter().enumerate();
    members
        .flat_map(|(position, member)| {
            let mut found = above(workspace, position, member);
            found.extend(allowed(workspace, member));
            found.extend(modules(member));
            found
        })
        .collect()
}

/// A crate imports only what stands above it in the list, and a room no room.
fn above(workspace: &Workspace, position: usize, member: &Member) -> Vec<Violation> {
    let mut found = Vec::new();
    for name in own_dependencies(workspace, member) {
        let other = workspace
            .members
            .iter()
            .position(|other| other.name == name);
        let Some(other) = other else { continue };
        let message = if other >= position {
            format!("imports `{name}`, which does not stand above it in the list of members")
        } else if member.floor == ROOMS && workspace.members[other].floor == ROOMS {
            format!("imports `{name}`: rooms never import each other")
        } else {
            continue;
        };
        found.push(Violation::new(manifest_of(member), message));
    }
    found
}

fn allowed(workspace: &Workspace, member: &Member) -> Vec<Violation> {
    let mut found = Vec::new();
    for name in own_dependencies(workspace, member) {
        for (crate_name, only) in NOTHING_BUT {
            if member.name == crate_name && !only.contains(&name.as_str()) {
                let only = if only.is_empty() {
                    "nothing".to_owned()
                } else {
                    only.join(", ")
                };
                let message = format!("imports `{name}`, but of ours may import only: {only}");
                found.push(Violation::new(manifest_of(member), message));
            }
        }
        for (crate_name, never, why) in NEVER {
            if member.name == crate_name && name == never {
                let message = format!("imports `{name}`: {why}");
                found.push(Violation::new(manifest_of(member), message));
            }
        }
    }
    found
}

fn modules(member: &Member) -> Vec<Violation> {
    let mut found = Vec::new();
    let rules = ONLY_MODULE.iter().filter(|rule| rule.0 == member.name);
    for (_, other, module, why) in rules {
        for source in &member.sources {
            let foreign = paths::of(source)
                .into_iter()
                .filter(|path| path.starts_with(&[other]) && !path.starts_with(&[other, module]))
                .filter(|path| path.segments.len() > 1);
            found.extend(foreign.map(|path| {
                let message = format!("uses `{path}` beside `{other}::{module}`: {why}");
                Violation::new(format!("{}:{}", source.path, path.line), message)
            }));
        }
    }
    found
}

fn manifest_of(member: &Member) -> String {
    format!("{}/Cargo.toml", member.folder)
}

/// The members that a manifest names as dependencies of any kind, for any target.
fn own_dependencies(workspace: &Workspace, member: &Member) -> Vec<String> {
    let mut tables = vec![&member.manifest];
    let targets = member
        .manifest
        .get("target")
        .and_then(toml::Value::as_table);
    let targets = targets.into_iter().flat_map(toml::Table::values);
    tables.extend(targets.filter_map(toml::Value::as_table));
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut names: Vec<String> = tables
        .iter()
        .flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flatten()
        .map(|(key, value)| {
            let renamed = value.get("package").and_then(toml::Value::as_str);
            renamed.unwrap_or(key).to_owned()
        })
        .filter(|name| workspace.members.iter().any(|member| member.name == *name))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::super::workspace::testing::{MANIFEST, verdict};
    use super::*;

    fn with(dependencies: &str) -> String {
        format!("{MANIFEST}{dependencies}\n")
    }

    #[test]
    fn imports_go_upwards_in_the_list_only() {
        for (path, dependencies, expected) in [
            ("plan", "model.workspace = true", ""),
            ("control", "plan.workspace = true", ""),
            ("control", "compute.workspace = true", ""),
            ("store", "plan.workspace = true", "does not stand above"),
            ("store", "store.workspace = true", "does not stand above"),
            (
                "control",
                "[dev-dependencies]\ncontrol.workspace = true",
                "does not stand above",
            ),
            (
                "store",
                "[dev-dependencies]\nplan.workspace = true",
                "does not stand above",
            ),
            ("traffic", "store.workspace = true", "rooms never"),
            (
                "traffic",
                "[dev-dependencies]\nstore.workspace = true",
                "rooms never",
            ),
            (
                "traffic",
                "[build-dependencies]\nstore.workspace = true",
                "rooms never",
            ),
            (
                "traffic",
                "x = { package = \"store\", version = \"1\" }",
                "rooms never",
            ),
            (
                "traffic",
                "[target.'cfg(unix)'.dependencies]\nstore = \"1\"",
                "rooms never",
            ),
            ("plan", "store.workspace = true", "may import only: model"),
            ("control", "traffic.workspace = true", "through the API"),
        ] {
            let manifest = format!("crates/{path}/Cargo.toml");
            let found = verdict(check, &[(&manifest, &with(dependencies))]);
            match expected {
                "" => assert_eq!(found, [""; 0], "{path}: {dependencies}"),
                _ => {
                    assert_eq!(found.len(), 1, "{path}: {dependencies}: {found:?}");
                    assert!(found[0].contains(expected), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn control_uses_of_compute_only_the_artifacts() {
        for (code, broken) in [
            ("use compute::artifact::Store;", false),
            ("use compute::{artifact::Store, process::Shim};", true),
            ("fn f() { compute::process::start() }", true),
            (
                "fn f() { println!(\"{}\", compute::process::start()) }",
                true,
            ),
            ("fn f() { self::compute::start() }", false),
        ] {
            let text = format!("//! Deeds.\n{code}\n");
            let found = verdict(check, &[("crates/control/src/lib.rs", &text)]);
            assert_eq!(!found.is_empty(), broken, "{code}: {found:?}");
        }
    }
}
