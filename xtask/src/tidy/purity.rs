//! Where decisions are made and nouns are defined, nothing reaches outside: no files, no network, no clock, no hidden randomness,
//! no async.

use syn::visit::{self, Visit};

use super::Violation;
use super::paths::{self, NamedPath};
use super::workspace::{Member, Source, Workspace};

/// The crates that stay pure. Of `plan` the tests too: a decision that needs a clock in its test hides one.
const PURE: [(&str, Tests); 2] = [("model", Tests::Exempt), ("plan", Tests::Included)];

#[derive(PartialEq)]
enum Tests {
    Included,
    /// Files of tests may measure time and read fixtures.
    Exempt,
}

/// Crates that pure ones never depend on.
const FOREIGN: [&str; 10] = [
    "tokio",
    "hyper",
    "hyper-util",
    "axum",
    "rustix",
    "socket2",
    "rusqlite",
    "reqwest",
    "async-std",
    "futures-util",
];

/// What no path begins with.
const OUTSIDE: [&[&str]; 8] = [
    &["std", "fs"],
    &["std", "net", "TcpStream"],
    &["std", "net", "TcpListener"],
    &["std", "net", "UdpSocket"],
    &["std", "process"],
    &["std", "env"],
    &["std", "thread"],
    &["std", "os"],
];

/// What no path contains: clocks, and randomness that was not handed in.
const HIDDEN: [&[&str]; 10] = [
    &["std", "time", "Instant"],
    &["SystemTime"],
    &["Timestamp", "now"],
    &["Zoned", "now"],
    &["Instant", "now"],
    &["rand", "rng"],
    &["rand", "random"],
    &["thread_rng"],
    &["OsRng"],
    &["from_os_rng"],
];

pub(crate) fn check(workspace: &Workspace) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, tests) in &PURE {
        let pure = workspace
            .members
            .iter()
            .filter(|member| member.name == *name);
        for member in pure {
            found.extend(check_manifest(member));
            let sources = member.sources.iter();
            let sources = sources.filter(|source| *tests == Tests::Included || !source.is_test);
            found.extend(sources.flat_map(check_source));
        }
    }
    found
}

fn check_manifest(member: &Member) -> Vec<Violation> {
    let dependencies = member.manifest.get("dependencies");
    let names = dependencies
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(toml::Table::keys);
    let place = format!("{}/Cargo.toml", member.folder);
    names
        .filter(|name| FOREIGN.contains(&name.as_str()))
        .map(|name| {
            let message = format!("depends on `{name}`: `{}` has no I/O", member.name);
            Violation::new(&place, message)
        })
        .collect()
}

fn check_source(source: &Source) -> Vec<Violation> {
    let place = |line| format!("{}:{line}", source.path);
    let named = paths::of(source).into_iter().filter(is_impure).map(|path| {
        Violation::new(
            place(path.line),
            format!("names `{path}`; hand it in instead"),
        )
    });
    let mut asynchronous = Asynchronous(Vec::new());
    asynchronous.visit_file(&source.syntax);
    let asynchronous = asynchronous
        .0
        .into_iter()
        .map(|line| Violation::new(place(line), "is async: nothing here waits"));
    named.chain(asynchronous).collect()
}

fn is_impure(path: &NamedPath) -> bool {
    OUTSIDE.iter().any(|outside| path.starts_with(outside))
        || HIDDEN.iter().any(|hidden| path.contains(hidden))
}

/// Lines with async functions, blocks and closures.
struct Asynchronous(Vec<usize>);

impl<'ast> Visit<'ast> for Asynchronous {
    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        let keyword = signature.asyncness.iter();
        self.0
            .extend(keyword.map(|keyword| keyword.span.start().line));
        visit::visit_signature(self, signature);
    }

    fn visit_expr_async(&mut self, block: &'ast syn::ExprAsync) {
        self.0.push(block.async_token.span.start().line);
        visit::visit_expr_async(self, block);
    }
}

#[cfg(test)]
mod tests {
    use super::super::workspace::testing::{MANIFEST, verdict};
    use super::*;

    #[test]
    fn a_pure_crate_reaches_nothing_outside() {
        for (code, broken) in [
            ("use std::collections::BTreeMap;", false),
            ("use std::net::{IpAddr, SocketAddr};", false),
            ("use std::time::Duration;", false),
            ("use crate::Instant;", false),
            ("pub use time::{Instant, Now};", false),
            ("fn f(now: Timestamp) {}", false),
            ("// std::fs::read", false),
            ("use std::fs;", true),
            ("use std::{fmt, fs};", true),
            ("use std::net::TcpStream;", true),
            ("use std::time::Instant;", true),
            ("use std::time::{Duration, SystemTime};", true),
            ("fn f() { let now = jiff::Timestamp::now(); }", true),
            ("fn f() { let draw = rand::rng().random(); }", true),
            ("fn f() { assert!(std::env::var(\"X\").is_ok()); }", true),
            ("async fn f() {}", true),
            ("fn f() { let later = async {}; }", true),
            ("#[cfg(test)]\nmod tests { use std::thread; }", true),
        ] {
            let text = format!("//! Decisions.\n{code}\n");
            let found = verdict(check, &[("crates/plan/src/lib.rs", &text)]);
            assert_eq!(!found.is_empty(), broken, "{code}: {found:?}");
            // Where deeds are done all of it is allowed.
            let found = verdict(check, &[("crates/control/src/lib.rs", &text)]);
            assert_eq!(found, [""; 0], "{code}");
        }
    }

    #[test]
    fn tests_of_nouns_may_measure_and_those_of_decisions_may_not() {
        let text = "use std::fs;\nuse std::time::Instant;\n";
        assert_eq!(
            verdict(check, &[("crates/model/tests/all.rs", text)]),
            [""; 0]
        );
        assert_eq!(
            verdict(check, &[("crates/plan/tests/all.rs", text)]).len(),
            2
        );
    }

    #[test]
    fn a_pure_crate_depends_on_no_runtime() {
        let manifest = format!("{MANIFEST}tokio.workspace = true\n");
        let found = verdict(check, &[("crates/plan/Cargo.toml", &manifest)]);
        assert_eq!(
            found,
            ["crates/plan/Cargo.toml: depends on `tokio`: `plan` has no I/O"]
        );
    }
}
