//! `unsafe` only in the files listed here, each with its reason, and with a SAFETY comment. A listed file that needs it no more
//! leaves the list.

use std::str::FromStr as _;

use proc_macro2::{TokenStream, TokenTree};

use super::Violation;
use super::workspace::{Source, Workspace};

/// Where it must be, and why.
const ALLOWED: [(&str, &str); 2] = [
    (
        "crates/compute/src/calls.rs",
        "what a program must not inherit is taken away by calls that no safe crate offers",
    ),
    (
        "crates/sqlite/src/testing/vfs.rs",
        "a file layer for SQLite is an interface of C",
    ),
];

pub(crate) fn check(workspace: &Workspace) -> Vec<Violation> {
    check_against(workspace, &ALLOWED)
}

fn check_against(workspace: &Workspace, allowed: &[(&str, &str)]) -> Vec<Violation> {
    let sources = workspace.members.iter().flat_map(|member| &member.sources);
    let unsafe_sources: Vec<&Source> = sources.filter(|source| is_unsafe(source)).collect();
    let mut found = Vec::new();
    for source in &unsafe_sources {
        if !allowed.iter().any(|(path, _)| *path == source.path) {
            let message = "has `unsafe` without standing in the list of xtask/src/tidy/unsafety.rs";
            found.push(Violation::new(&source.path, message));
        } else if !source.text.contains("SAFETY:") {
            found.push(Violation::new(
                &source.path,
                "has `unsafe` without a SAFETY comment",
            ));
        }
    }
    for (path, _) in allowed {
        // Lists of other houses than the one at hand are of no concern: the crate must be there.
        let is_ours = workspace
            .members
            .iter()
            .any(|member| path.starts_with(&member.folder));
        if is_ours && !unsafe_sources.iter().any(|source| source.path == *path) {
            let message = "stands in the list of xtask/src/tidy/unsafety.rs, but has no `unsafe`";
            found.push(Violation::new(*path, message));
        }
    }
    found
}

fn is_unsafe(source: &Source) -> bool {
    TokenStream::from_str(&source.text).is_ok_and(has_keyword)
}

fn has_keyword(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(name) => name == "unsafe",
        TokenTree::Group(group) => has_keyword(group.stream()),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::workspace::testing::house;
    use super::*;

    #[test]
    fn only_listed_files_with_a_comment_are_unsafe() {
        let path = "crates/model/src/raw.rs";
        let listed: &[(&str, &str)] = &[(path, "C")];
        let bare = "fn f() { unsafe { g() } }";
        let commented = "// SAFETY: g needs nothing.\nfn f() { unsafe { g() } }";
        let safe = "#![deny(unsafe_code)] // unsafe\nfn f() { g(\"unsafe\") }";
        for (text, list, expected) in [
            (bare, &[][..], "without standing in the list"),
            (
                "fn f() { h!(unsafe { g() }) }",
                &[],
                "without standing in the list",
            ),
            (bare, listed, "without a SAFETY comment"),
            (commented, listed, ""),
            (safe, listed, "but has no `unsafe`"),
            (safe, &[], ""),
        ] {
            let found = check_against(&house(&[(path, text)]), list);
            let shown: Vec<_> = found
                .iter()
                .map(|violation| violation.message.as_str())
                .collect();
            assert_eq!(
                shown.len(),
                usize::from(!expected.is_empty()),
                "{text}: {shown:?}"
            );
            assert!(
                shown.iter().all(|message| message.contains(expected)),
                "{shown:?}"
            );
        }
    }
}
