//! Whether something gives the variables that `run` and `env` name. Only warnings: what stays unfilled may be meant for a shell.

use std::collections::{BTreeMap, BTreeSet};

use crate::compute::{Service, environment_name};
use crate::ids::ResourceName;

use super::DeclaredService;
use super::check::{Report, join, nearest, shown};
use super::document::{Entry, Node};

/// Every instance has these.
const GIVEN: [&str; 5] = [
    "PORT",
    "HOST",
    "MAINLAND_INSTANCE",
    "MAINLAND_ZONE",
    "MAINLAND_SERVICE",
];
/// What a machine usually has in its own environment.
const OF_THE_MACHINE: [&str; 9] = [
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "SHELL", "PWD",
];
const SHELLS: [&str; 5] = ["sh", "bash", "dash", "ash", "zsh"];

pub(super) fn check(
    report: &mut Report,
    service: &Entry,
    services: &BTreeMap<ResourceName, DeclaredService>,
    secrets: &BTreeSet<&str>,
) {
    let Some(spec) = services.get(service.key.as_str()).map(|known| &known.spec) else {
        return;
    };
    let given = given(spec, services, secrets);
    let path = join("services", &service.key);
    let run = service
        .value
        .get("run")
        .map(Node::items)
        .unwrap_or_default();
    let program = run.first().and_then(Node::text).unwrap_or_default();
    let shell = SHELLS.contains(&program.rsplit('/').next().unwrap_or_default());
    let env = service
        .value
        .get("env")
        .map(Node::entries)
        .unwrap_or_default();
    let run = run.iter().map(|argument| (argument, shell, "run"));
    let env = env.iter().map(|entry| (&entry.value, false, "env"));
    let shown_ones = secret_variables(spec, secrets);
    for (node, shell, key) in run.chain(env) {
        for name in node.text().map(names).unwrap_or_default() {
            if key == "run" && shown_ones.contains(name) {
                let message = format!(
                    "the secret in {} becomes an argument, which every user of the machine can read in /proc/PID/cmdline",
                    shown(name)
                );
                report.warning(node.position, &join(&path, key), message).hint(
                    "let the program read the variable itself, or a file: `needs: [NAME: { file: true }]`"
                        .to_owned(),
                );
            }
            if given.contains(name) || OF_THE_MACHINE.contains(&name) {
                continue;
            }
            let near = if name.len() < 4 {
                None
            } else {
                nearest(name, given.iter().map(String::as_str))
            };
            // A shell has variables of its own.
            if near.is_some() || !shell {
                let message = format!(
                    "nothing gives the variable {}, so it stays as it is",
                    shown(name)
                );
                report
                    .warning(node.position, &join(&path, key), message)
                    .hint(near);
            }
        }
    }
}

/// The variables that hold a secret's value.
fn secret_variables(spec: &Service, secrets: &BTreeSet<&str>) -> BTreeSet<String> {
    let values = spec.needs.iter();
    values
        .filter(|(name, need)| secrets.contains(name.as_str()) && !need.file)
        .map(|(name, _)| environment_name(name))
        .collect()
}

/// The names of all variables that an instance of the service has.
fn given(
    spec: &Service,
    services: &BTreeMap<ResourceName, DeclaredService>,
    secrets: &BTreeSet<&str>,
) -> BTreeSet<String> {
    let mut given: BTreeSet<String> = GIVEN.into_iter().map(str::to_owned).collect();
    let own = spec.ports.keys();
    given.extend(own.map(|port| format!("PORT_{}", environment_name(port))));
    for name in spec.needs.keys() {
        let needed = services.get(name).into_iter();
        for (port, ..) in needed.flat_map(|needed| needed.spec.ports_of(name)) {
            let port = environment_name(&port);
            given.extend(["URL", "HOST", "PORT"].map(|part| format!("{port}_{part}")));
        }
    }
    given.extend(spec.env.keys().cloned());
    for (name, need) in &spec.needs {
        let variable = environment_name(name);
        match (secrets.contains(name.as_str()), need.file) {
            (true, false) => drop(given.insert(variable)),
            (true, true) => drop(given.insert(format!("{variable}_FILE"))),
            (false, _) => {
                given.extend(["URL", "HOST", "PORT"].map(|part| format!("{variable}_{part}")))
            }
        }
    }
    given.extend(
        spec.volumes
            .keys()
            .map(|name| format!("{}_DIR", environment_name(name))),
    );
    given
}

/// The names behind `$` and inside `${}`; `$$` is a dollar sign.
fn names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let after = &rest[at + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            rest = escaped;
            continue;
        }
        let braced = after.strip_prefix('{');
        let start = braced.unwrap_or(after);
        let name = &start[..name_length(start)];
        rest = &start[name.len()..];
        let closed = braced.is_none() || rest.starts_with('}');
        if !name.is_empty() && closed {
            names.push(name);
        }
    }
    names
}

fn name_length(text: &str) -> usize {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}
