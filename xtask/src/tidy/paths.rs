//! The paths that a source names: in imports, in code, and inside macros, where the parser does not look.

use std::fmt;
use std::str::FromStr as _;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::workspace::Source;

/// `std::time::Instant`, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedPath {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

impl NamedPath {
    pub(crate) fn starts_with(&self, beginning: &[&str]) -> bool {
        let heads = self.segments.iter().take(beginning.len());
        heads.eq(beginning.iter())
    }

    /// Whether `part` stands in it, segment by segment, anywhere.
    pub(crate) fn contains(&self, part: &[&str]) -> bool {
        let windows = self.segments.windows(part.len());
        windows.into_iter().any(|window| window.iter().eq(part))
    }
}

impl fmt::Display for NamedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.segments.join("::"))
    }
}

/// All paths of a source: of its tokens, plus those that imports in braces spell in pieces.
pub(crate) fn of(source: &Source) -> Vec<NamedPath> {
    let mut found = Vec::new();
    if let Ok(tokens) = TokenStream::from_str(&source.text) {
        from_tokens(tokens, &mut found);
    }
    let mut imports = Imports(Vec::new());
    imports.visit_file(&source.syntax);
    for path in imports.0 {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// Runs of `name :: name :: name`. Comments are no tokens, texts are literals: neither is looked into.
fn from_tokens(tokens: TokenStream, found: &mut Vec<NamedPath>) {
    let mut current: Option<NamedPath> = None;
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(name) => {
                let line = name.span().start().line;
                let path = current.take().filter(|_| colons == 2);
                let mut path = path.unwrap_or(NamedPath {
                    segments: Vec::new(),
                    line,
                });
                path.segments.push(name.to_string());
                found.pop_if(|last| path.segments.len() > 1 && is_begun(last, &path));
                found.push(path.clone());
                current = Some(path);
                colons = 0;
            }
            TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                current = None;
                from_tokens(group.stream(), found);
            }
            _ => current = None,
        }
    }
}

/// Whether `last` is what `path` was before its last segment came.
fn is_begun(last: &NamedPath, path: &NamedPath) -> bool {
    path.segments[..path.segments.len() - 1] == last.segments && path.line == last.line
}

struct Imports(Vec<NamedPath>);

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        flatten(&import.tree, &mut Vec::new(), &mut self.0);
        visit::visit_item_use(self, import);
    }
}

fn flatten(tree: &syn::UseTree, before: &mut Vec<String>, found: &mut Vec<NamedPath>) {
    let mut leaf = |name: &syn::Ident, before: &[String]| {
        let mut segments = before.to_vec();
        if name != "self" {
            segments.push(name.to_string());
        }
        let line = name.span().start().line;
        found.push(NamedPath { segments, line });
    };
    match tree {
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, found);
            before.pop();
        }
        syn::UseTree::Name(name) => leaf(&name.ident, before),
        syn::UseTree::Rename(rename) => leaf(&rename.ident, before),
        syn::UseTree::Glob(glob) => found.push(NamedPath {
            segments: before.clone(),
            line: glob.star_token.spans[0].start().line,
        }),
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, before, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::workspace::testing::house;
    use super::*;

    #[test]
    fn paths_are_found_wherever_they_stand() {
        for (code, expected) in [
            ("use std::time::Instant;", "std::time::Instant"),
            (
                "use std::{fs, time::{Duration, SystemTime}};",
                "std::time::SystemTime",
            ),
            ("use std::fs::{self, File};", "std::fs"),
            (
                "use std::time::SystemTime as Clock;",
                "std::time::SystemTime",
            ),
            ("use std::net::*;", "std::net"),
            ("fn f() { std::fs::read(1); }", "std::fs::read"),
            ("fn f() -> std::io::Result<()> { }", "std::io::Result"),
            ("fn f() { assert!(g(Instant::now())); }", "Instant::now"),
            ("fn f(a: A, b: std::net::IpAddr) {}", "std::net::IpAddr"),
        ] {
            let text = format!("//! X.\n{code}\n");
            let house = house(&[("crates/model/src/lib.rs", &text)]);
            let found = of(&house.members[0].sources[0]);
            let found: Vec<_> = found
                .iter()
                .map(|path| (path.to_string(), path.line))
                .collect();
            let expected = (expected.to_owned(), 2);
            assert!(found.contains(&expected), "{code}: {found:?}");
        }
    }

    #[test]
    fn types_are_no_path_of_their_parameter() {
        let text = "//! X.\nfn f(std: u8, fs: u8) { /* std::fs */ g(\"std::fs\"); }\n";
        let house = house(&[("crates/model/src/lib.rs", text)]);
        let found = of(&house.members[0].sources[0]);
        assert!(!found.iter().any(|path| path.starts_with(&["std", "fs"])));
    }
}
