//! The workspace as the rules see it: members in order, manifests, sources, documents, and which paths there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, Result};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::Violation;

/// Folders that hold nothing of the project, wherever they are.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "__pycache__"];
/// What is read; of other files only the path is known.
const TEXTS: [&str; 3] = ["rs", "toml", "md"];

pub(crate) struct Workspace {
    /// Bottom to top.
    pub(crate) members: Vec<Member>,
    /// Every file that is read, by its path from the root.
    texts: BTreeMap<String, String>,
    /// Every file and folder.
    paths: BTreeSet<String>,
}

/// A crate of the workspace.
pub(crate) struct Member {
    /// The folder's name, which is the crate's.
    pub(crate) name: String,
    /// From the root.
    pub(crate) folder: String,
    /// The first word of the comment above it in the list of members: `ground`, `rooms`, `planes`, `roof`.
    pub(crate) floor: String,
    pub(crate) manifest: toml::Table,
    pub(crate) sources: Vec<Source>,
}

/// A Rust file.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    /// What could not be parsed is empty here, and reported by [`check`].
    pub(crate) syntax: syn::File,
    error: Option<String>,
    /// Under `tests/`, or a module that exists only in tests.
    pub(crate) is_test: bool,
}

impl Workspace {
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        read_folder(root, "", &mut files)?;
        Self::of(files)
    }

    /// Of files by path; what has no text here is known to exist only.
    pub(crate) fn of(files: BTreeMap<String, Option<String>>) -> Result<Self> {
        let paths = files.keys().flat_map(|path| with_parents(path)).collect();
        let texts: BTreeMap<String, String> = files
            .into_iter()
            .filter_map(|(path, text)| Some((path, text?)))
            .collect();
        let root = texts.get("Cargo.toml").context("no Cargo.toml")?;
        let members = members(root)
            .into_iter()
            .map(|(folder, floor)| Member::of(&folder, &floor, &texts))
            .collect::<Result<_>>()?;
        Ok(Self {
            members,
            texts,
            paths,
        })
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Files whose name ends so, with their texts.
    pub(crate) fn texts(&self, suffix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.texts
            .iter()
            .filter(move |(path, _)| path.ends_with(suffix))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }
}

/// What makes the other rules blind: a file that can't be parsed.
pub(crate) fn check(workspace: &Workspace) -> Vec<Violation> {
    let sources = workspace.members.iter().flat_map(|member| &member.sources);
    sources
        .filter_map(|source| Some(Violation::new(&source.path, source.error.clone()?)))
        .collect()
}

impl Member {
    fn of(folder: &str, floor: &str, texts: &BTreeMap<String, String>) -> Result<Self> {
        let path = format!("{folder}/Cargo.toml");
        let text = texts.get(&path).with_context(|| format!("no {path}"))?;
        let manifest = text.parse().with_context(|| format!("can't read {path}"))?;
        let prefix = format!("{folder}/");
        let mut sources: Vec<Source> = texts
            .iter()
            .filter(|(path, _)| path.starts_with(&prefix) && path.ends_with(".rs"))
            .map(|(path, text)| Source::of(path, text))
            .collect();
        mark_test_modules(&mut sources);
        Ok(Self {
            name: folder.rsplit('/').next().unwrap_or(folder).to_owned(),
            folder: folder.to_owned(),
            floor: floor.to_owned(),
            manifest,
            sources,
        })
    }
}

impl Source {
    fn of(path: &str, text: &str) -> Self {
        let (syntax, error) = match syn::parse_file(text) {
            Ok(syntax) => (syntax, None),
            Err(error) => (empty_file(), Some(format!("can't be parsed: {error}"))),
        };
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            syntax,
            error,
            is_test: path.contains("/tests/") || path.contains("/benches/"),
        }
    }

    /// Whether a line belongs to code that exists only in tests.
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.is_test
            || test_items(&self.syntax)
                .iter()
                .any(|lines| lines.contains(&line))
    }

    /// The folder that holds the files of this file's modules.
    fn module_folder(&self) -> String {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
        match name {
            "lib" | "main" | "mod" => folder.to_owned(),
            _ => stem.to_owned(),
        }
    }
}

fn empty_file() -> syn::File {
    syn::File {
        shebang: None,
        attrs: Vec::new(),
        items: Vec::new(),
    }
}

/// Whether an item exists only in tests: `#[cfg(test)]`, `#[test]`, `#[tokio::test]`.
pub(crate) fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let last = attribute.path().segments.last();
        let is_test = last.is_some_and(|segment| segment.ident == "test");
        let under_test = attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Meta>()
                .is_ok_and(|condition| condition.path().is_ident("test"));
        is_test || under_test
    })
}

/// The lines of items, at any depth of modules, that exist only in tests.
pub(crate) fn test_items(syntax: &syn::File) -> Vec<RangeInclusive<usize>> {
    let mut found = TestItems(Vec::new());
    found.visit_file(syntax);
    found.0
}

struct TestItems(Vec<RangeInclusive<usize>>);

impl<'ast> Visit<'ast> for TestItems {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(module) => &module.attrs,
            syn::Item::Fn(function) => &function.attrs,
            syn::Item::Impl(block) => &block.attrs,
            syn::Item::Use(import) => &import.attrs,
            _ => return,
        };
        if is_for_tests(attributes) {
            let span = item.span();
            self.0.push(span.start().line..=span.end().line);
        } else {
            visit::visit_item(self, item);
        }
    }
}

/// `#[cfg(test)] mod testing;` makes a file, and all below it, a test.
fn mark_test_modules(sources: &mut [Source]) {
    let mut stems = Vec::new();
    for source in &*sources {
        for item in &source.syntax.items {
            if let syn::Item::Mod(module) = item
                && module.content.is_none()
                && is_for_tests(&module.attrs)
            {
                stems.push(format!("{}/{}", source.module_folder(), module.ident));
            }
        }
    }
    for source in sources {
        let below = |stem: &String| {
            let rest = source.path.strip_prefix(stem.as_str());
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        source.is_test |= stems.iter().any(below);
    }
}

/// The members of the workspace with their floors, as the root's manifest lists them. Read by line, since comments count.
fn members(manifest: &str) -> Vec<(String, String)> {
    let list = manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.starts_with("members"))
        .skip(1)
        .take_while(|line| !line.starts_with(']'));
    let mut floor = String::new();
    let mut members = Vec::new();
    for line in list {
        if let Some(comment) = line.strip_prefix('#') {
            let word = comment.split_whitespace().next().unwrap_or_default();
            floor = word.trim_end_matches(':').to_owned();
        } else if let Some(folder) = line.split('"').nth(1) {
            members.push((folder.to_owned(), floor.clone()));
        }
    }
    members
}

fn with_parents(path: &str) -> Vec<String> {
    let slashes = path.match_indices('/').map(|(index, _)| index);
    slashes
        .chain([path.len()])
        .map(|end| path[..end].to_owned())
        .collect()
}

fn read_folder(
    folder: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, Option<String>>,
) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("can't list {folder:?}"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            read_folder(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file() {
            let is_text = TEXTS.iter().any(|end| name.ends_with(&format!(".{end}")));
            let text = is_text.then(|| fs::read_to_string(entry.path()));
            files.insert(path, text.transpose()?);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A small house in which every rule holds.
    const HOUSE: [(&str, &str); 14] = [
        (
            "Cargo.toml",
            "[workspace]\nmembers = [\n# ground\n\"crates/model\",\n# rooms: siblings\n\"crates/store\",\n\"crates/traffic\",\n\
             \"crates/compute\",\n# planes\n\"crates/plan\",\n\"crates/control\",\n]\n",
        ),
        ("crates/model/Cargo.toml", MANIFEST),
        ("crates/model/src/lib.rs", "//! Nouns.\n"),
        ("crates/store/Cargo.toml", MANIFEST),
        ("crates/store/src/lib.rs", "//! Memory.\n"),
        ("crates/traffic/Cargo.toml", MANIFEST),
        ("crates/traffic/src/lib.rs", "//! Roads.\n"),
        ("crates/compute/Cargo.toml", MANIFEST),
        ("crates/compute/src/lib.rs", "//! Work.\n"),
        ("crates/plan/Cargo.toml", MANIFEST),
        ("crates/plan/src/lib.rs", "//! Decisions.\n"),
        ("crates/control/Cargo.toml", MANIFEST),
        ("crates/control/src/lib.rs", "//! Deeds.\n"),
        ("README.md", "# House\n"),
    ];

    /// A manifest without dependencies; the name is told by the folder in [`house`].
    pub(crate) const MANIFEST: &str =
        "[package]\nname = \"NAME\"\n[lints]\nworkspace = true\n[dependencies]\n";

    /// The house with some files changed or added.
    pub(crate) fn house(changes: &[(&str, &str)]) -> Workspace {
        let files = HOUSE.iter().chain(changes).map(|(path, text)| {
            let folder = path.split('/').nth(1).unwrap_or_default();
            let text = match path.ends_with("Cargo.toml") {
                true => text.replace("NAME", folder),
                false => (*text).to_owned(),
            };
            ((*path).to_owned(), Some(text))
        });
        Workspace::of(files.collect()).unwrap()
    }

    /// The house's verdict on a file, as `place: message` lines.
    pub(crate) fn verdict(
        rule: fn(&Workspace) -> Vec<Violation>,
        changes: &[(&str, &str)],
    ) -> Vec<String> {
        let violations = rule(&house(changes)).into_iter();
        violations
            .map(|violation| format!("{}: {}", violation.place, violation.message))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{house, verdict};
    use super::*;

    #[test]
    fn members_come_in_order_with_their_floors() {
        let house = house(&[]);
        let seen: Vec<_> = house
            .members
            .iter()
            .map(|member| (member.name.as_str(), member.floor.as_str()))
            .collect();
        assert_eq!(seen[0], ("model", "ground"));
        assert_eq!(seen[1], ("store", "rooms"));
        assert_eq!(seen[5], ("control", "planes"));
    }

    #[test]
    fn the_small_house_breaks_no_rule() {
        // A file that may be unsafe is.
        let calls = "//! Calls.\n// SAFETY: g needs nothing.\nfn f() { unsafe { g() } }\n";
        let house = house(&[("crates/compute/src/calls.rs", calls)]);
        assert_eq!(super::super::all(&house), []);
    }

    #[test]
    fn a_file_that_cannot_be_parsed_is_named() {
        let found = verdict(check, &[("crates/model/src/ids.rs", "fn {")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("crates/model/src/ids.rs: can't be parsed"));
    }

    #[test]
    fn modules_that_exist_only_in_tests_are_tests() {
        let lib = "//! X.\n#[cfg(test)]\nmod testing;\nmod real;\n";
        let house = house(&[
            ("crates/model/src/lib.rs", lib),
            ("crates/model/src/testing.rs", ""),
            ("crates/model/src/testing/disk.rs", ""),
            ("crates/model/src/real.rs", ""),
            ("crates/model/tests/all.rs", ""),
        ]);
        let tests: Vec<_> = house.members[0]
            .sources
            .iter()
            .filter(|source| source.is_test)
            .map(|source| source.path.as_str())
            .collect();
        assert_eq!(
            tests,
            [
                "crates/model/src/testing.rs",
                "crates/model/src/testing/disk.rs",
                "crates/model/tests/all.rs"
            ]
        );
    }
}
