//! Names and maps: crates are named by their folders, `lib.rs` and `main.rs` begin with module docs, nothing is called `util`, and
//! the lints of the workspace hold everywhere.

use super::Violation;
use super::workspace::{Member, Source, Workspace};

/// Names that say nothing about what is inside, so that everything ends there.
const EMPTY_NAMES: [&str; 8] = [
    "common",
    "commons",
    "util",
    "utils",
    "utilities",
    "helper",
    "helpers",
    "misc",
];

pub(crate) fn check(workspace: &Workspace) -> Vec<Violation> {
    let members = workspace.members.iter();
    members
        .flat_map(|member| {
            let sources = member.sources.iter().flat_map(check_source);
            check_member(member)
                .into_iter()
                .chain(sources)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn check_member(member: &Member) -> Vec<Violation> {
    let mut found = Vec::new();
    let place = format!("{}/Cargo.toml", member.folder);
    let package = member
        .manifest
        .get("package")
        .and_then(|package| package.get("name"));
    if package.and_then(toml::Value::as_str) != Some(&member.name) {
        let message = format!("the crate is not named `{}` like its folder", member.name);
        found.push(Violation::new(&place, message));
    }
    let lints = member
        .manifest
        .get("lints")
        .and_then(|lints| lints.get("workspace"));
    if lints.and_then(toml::Value::as_bool) != Some(true) {
        found.push(Violation::new(&place, "lacks `[lints] workspace = true`"));
    }
    if EMPTY_NAMES.contains(&member.name.as_str()) {
        found.push(Violation::new(&place, empty_name(&member.name)));
    }
    found
}

fn check_source(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let file = source.path.rsplit('/').next().unwrap_or_default();
    if matches!(file, "lib.rs" | "main.rs") && !source.text.starts_with("//!") {
        let message = "does not begin with module docs: say what is here and where";
        found.push(Violation::new(&source.path, message));
    }
    let segments = source
        .path
        .split('/')
        .map(|segment| segment.trim_end_matches(".rs"));
    let modules = source.syntax.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_some() => Some(module.ident.to_string()),
        _ => None,
    });
    let names = segments.map(str::to_owned).chain(modules);
    found.extend(
        names
            .filter(|name| EMPTY_NAMES.contains(&name.as_str()))
            .map(|name| Violation::new(&source.path, empty_name(&name))),
    );
    found
}

fn empty_name(name: &str) -> String {
    format!("`{name}` says nothing about what is inside")
}

#[cfg(test)]
mod tests {
    use super::super::workspace::testing::{MANIFEST, verdict};
    use super::*;

    #[test]
    fn each_rule_of_naming_catches_its_violation() {
        for (path, text, expected) in [
            (
                "crates/model/src/lib.rs",
                "mod a;\n",
                "does not begin with module docs",
            ),
            (
                "crates/model/src/lib.rs",
                "// Nouns.\n",
                "does not begin with module docs",
            ),
            ("crates/model/src/util.rs", "", "`util` says nothing"),
            (
                "crates/model/src/helpers/ids.rs",
                "",
                "`helpers` says nothing",
            ),
            (
                "crates/model/src/ids.rs",
                "mod common { }",
                "`common` says nothing",
            ),
            (
                "crates/model/Cargo.toml",
                "[package]\nname = \"model\"\n",
                "lacks `[lints]",
            ),
            (
                "crates/model/Cargo.toml",
                &MANIFEST.replace("NAME", "nouns"),
                "not named `model`",
            ),
        ] {
            let found = verdict(check, &[(path, text)]);
            assert_eq!(found.len(), 1, "{path}: {found:?}");
            assert!(found[0].contains(expected), "{path}: {found:?}");
        }
    }

    #[test]
    fn names_that_only_contain_such_a_word_are_fine() {
        assert_eq!(
            verdict(check, &[("crates/model/src/utilisation.rs", "")]),
            [""; 0]
        );
    }
}
