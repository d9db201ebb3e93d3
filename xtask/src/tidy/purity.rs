//! Where decisions are made and nouns are defined, nothing reaches outside: no files, no network, no clock, no hidden randomness,
//! no async.

use syn::visit::{self, Visit};

use super::Violation;
use super::paths::{self, NamedPath};
use super::workspace::{Member, Source, Workspace};

/// The crates that stay pure. Their tests may measure time and read fixtures.
const PURE: [&str; 2] = ["model", "plan"];

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
    let members = workspace.members.iter();
    let pure = members.filter(|member| PURE.contains(&member.name.as_str()));
    pure.flat_map(|member| {
        let sources = member.sources.iter().flat_map(check_source);
        check_manifest(member)
            .into_iter()
            .chain(sources)
            .collect::<Vec<_>>()
    })
    .collect()
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
    let named = paths::of(source).into_iter().filter(is_impure);
    let named = named.map(|path| (path.line, format!("names `{path}`; hand it in instead")));
    let mut asynchronous = Asynchronous(Vec::new());
    asynchronous.visit_file(&source.syntax);
    let asynchronous = asynchronous.0.into_iter();
    let asynchronous = asynchronous.map(|line| (line, "is async: nothing here waits".to_owned()));
    named
        .chain(asynchronous)
        .filter(|(line, _)| !source.is_test_line(*line))
        .map(|(line, message)| Violation::new(format!("{}:{line}", source.path), message))
        .collect()
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
            ("#[cfg(test)]\nmod tests { use std::thread; }", false),
            (
                "mod inner { #[cfg(test)]\nmod tests { use std::thread; } }",
                false,
            ),
            ("#[cfg(unix)]\nmod inner { use std::thread; }", true),
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
    fn tests_may_measure() {
        let text = "use std::fs;\nuse std::time::Instant;\n";
        assert_eq!(
            verdict(check, &[("crates/plan/tests/all.rs", text)]),
            [""; 0]
        );
        assert_eq!(verdict(check, &[("crates/plan/src/all.rs", text)]).len(), 2);
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
