//! No document names a path that is gone: links of Markdown files, and what stands in backticks there and in doc comments, when it
//! looks like a path of the repository.

use super::Violation;
use super::workspace::Workspace;

/// What a path of the repository begins with.
const FOLDERS: [&str; 7] = [
    "crates/",
    "docs/",
    "examples/",
    "xtask/",
    "bench/",
    ".ci/",
    ".cargo/",
];
/// Documents of the past may name what is gone.
const OF_THE_PAST: &str = "CHANGELOG.md";

pub(crate) fn check(workspace: &Workspace) -> Vec<Violation> {
    let documents = workspace
        .texts(".md")
        .filter(|(path, _)| *path != OF_THE_PAST);
    let documents = documents.flat_map(|(path, text)| check_document(workspace, path, text));
    let sources = workspace.members.iter().flat_map(|member| &member.sources);
    let comments = sources.flat_map(|source| check_comments(workspace, &source.path, &source.text));
    documents.chain(comments).collect()
}

fn check_document(workspace: &Workspace, path: &str, text: &str) -> Vec<Violation> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let links = links(line).filter_map(|link| resolve(folder, link));
        let named = quoted(line).filter_map(repository_path);
        for target in links.chain(named) {
            if !workspace.has(&target) {
                found.push(dead(path, index, &target));
            }
        }
    }
    found
}

fn check_comments(workspace: &Workspace, path: &str, text: &str) -> Vec<Violation> {
    let lines = text.lines().enumerate();
    let comments = lines.filter(|(_, line)| {
        let line = line.trim_start();
        line.starts_with("//!") || line.starts_with("///")
    });
    comments
        .flat_map(|(index, line)| quoted(line).map(move |text| (index, text)))
        .filter_map(|(index, text)| Some((index, repository_path(text)?)))
        .filter(|(_, target)| !workspace.has(target))
        .map(|(index, target)| dead(path, index, &target))
        .collect()
}

fn dead(path: &str, index: usize, target: &str) -> Violation {
    let message = format!("names `{target}`, which is not there");
    Violation::new(format!("{path}:{}", index + 1), message)
}

/// What stands between `](` and `)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

/// What stands in backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The file that a link leads to, from the root; `None` for one that leads outside or into its own document.
fn resolve(folder: &str, link: &str) -> Option<String> {
    let target = link.split(['#', ' ']).next().unwrap_or_default();
    if target.is_empty() || target.contains(':') {
        return None;
    }
    let from = if target.starts_with('/') { "" } else { folder };
    let mut segments: Vec<&str> = from
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    for segment in target.split('/') {
        match segment {
            "" | "." => {}
            ".." if segments.pop().is_none() => return Some(target.to_owned()),
            ".." => {}
            _ => segments.push(segment),
        }
    }
    // The root itself is there.
    (!segments.is_empty()).then(|| segments.join("/"))
}

/// The path that a quoted text is, if it looks like one of the repository: no placeholders, no wildcards.
fn repository_path(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    let begins = FOLDERS.iter().any(|folder| text.starts_with(folder));
    let text = text.split(':').next().unwrap_or(text);
    let is_example = text.split(['/', '.']).any(|segment| segment == "NAME");
    (begins && !is_example && text.chars().all(plain))
        .then(|| text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::workspace::testing::verdict;
    use super::*;

    #[test]
    fn dead_paths_are_named_and_living_ones_are_not() {
        for (text, expected) in [
            ("[x](README.md) [y](../README.md#top) [z](/README.md)", ""),
            (
                "[x](https://example.org/a) [y](#below) ![i](mailto:a@b)",
                "",
            ),
            (
                "`crates/model/src/lib.rs` `crates/model/` `crates/model/src/lib.rs:12`",
                "",
            ),
            (
                "`crates/{name}/src` `crates/*/src` `bench/NAME.md` `shop/checkout` `/v1/projects`",
                "",
            ),
            ("```\n`crates/gone`\n[x](gone.md)\n```", ""),
            (
                "[x](gone.md)",
                "docs/a.md:1: names `docs/gone.md`, which is not there",
            ),
            (
                "\n[x](../../up.md)",
                "docs/a.md:2: names `../../up.md`, which is not there",
            ),
            (
                "see `crates/gone/src`",
                "docs/a.md:1: names `crates/gone/src`, which is not there",
            ),
            (
                "see `bench/gone.md`",
                "docs/a.md:1: names `bench/gone.md`, which is not there",
            ),
        ] {
            // `..` from docs/ is the root, so that README.md is found from both.
            let found = verdict(check, &[("docs/README.md", ""), ("docs/a.md", text)]);
            assert_eq!(found.join("\n"), expected, "{text}");
        }
    }

    #[test]
    fn doc_comments_count_and_code_does_not() {
        for (text, broken) in [
            ("//! See `crates/gone`.\n", true),
            ("//! X.\n/// See `docs/gone.md`.\nfn f() {}\n", true),
            ("//! X.\nconst PATH: &str = \"`crates/gone`\";\n", false),
        ] {
            let found = verdict(check, &[("crates/model/src/lib.rs", text)]);
            assert_eq!(!found.is_empty(), broken, "{text}: {found:?}");
        }
    }

    #[test]
    fn the_changelog_may_speak_of_the_past() {
        assert_eq!(
            verdict(check, &[("CHANGELOG.md", "`crates/gone`")]),
            [""; 0]
        );
    }
}
