//! What the pages say of the file, against the table of keys that the reader goes by.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{lines, read_text};
use crate::manifest::schema;

const REFERENCE: &str = include_str!("../../../../../docs/manifest.md");
const PAGES: [(&str, &str); 4] = [
    ("docs/manifest.md", REFERENCE),
    (
        "docs/databases.md",
        include_str!("../../../../../docs/databases.md"),
    ),
    (
        "docs/topics.md",
        include_str!("../../../../../docs/topics.md"),
    ),
    ("README.md", include_str!("../../../../../README.md")),
];

/// A row of a table: value, default, meaning.
type Row<'a> = [&'a str; 3];

/// The part of the reference under `## name`.
fn section(name: &str) -> &'static str {
    let (_, rest) = REFERENCE
        .split_once(&format!("\n## {name}\n"))
        .unwrap_or_else(|| panic!("docs/manifest.md has no section `## {name}`"));
    rest.split("\n## ").next().unwrap_or(rest)
}

/// The rows that begin with a key in backticks.
fn rows(section: &str) -> BTreeMap<&str, Row<'_>> {
    let row = |line| -> Option<(&str, Row<'_>)> {
        let cells: Vec<&str> = str::split(line, '|').map(str::trim).collect();
        let [_, key, value, default, meaning, _] = cells[..] else {
            return None;
        };
        let key = key.strip_prefix('`')?.strip_suffix('`')?;
        Some((key, [value, default, meaning]))
    };
    section.lines().filter_map(row).collect()
}

/// All keys below a mapping with what each may be, such as `rollout.surge`. Names that the user chooses are no part of them.
fn keys_below<'a>(schema: &'a Value, path: &str, found: &mut BTreeMap<String, &'a Value>) {
    let ways = schema["anyOf"].as_array().into_iter().flatten();
    for inner in ways
        .chain(schema.get("items"))
        .chain(schema.get("additionalProperties"))
    {
        keys_below(inner, path, found);
    }
    for (key, below) in schema["properties"].as_object().into_iter().flatten() {
        let path = [path, key].join(if path.is_empty() { "" } else { "." });
        let count = found.len();
        keys_below(below, &path, found);
        // What is a mapping and nothing else is known by its keys.
        if found.len() == count || below.get("anyOf").is_some() || is_list_or_names(below) {
            found.insert(path, below);
        }
    }
}

fn is_list_or_names(schema: &Value) -> bool {
    schema.get("items").is_some() || schema["additionalProperties"].is_object()
}

/// What the schema says of a key in so many words, and a row must say too.
fn facts(schema: &Value) -> Vec<String> {
    let mut facts = Vec::new();
    let ways = schema["anyOf"].as_array().into_iter().flatten();
    for way in ways.chain([schema]) {
        if let (Some(least), Some(most)) = (way.get("minimum"), way.get("maximum")) {
            facts.push(format!("{least} to {most}"));
        }
        let words = way["enum"].as_array().into_iter().flatten();
        facts.extend(words.filter_map(|word| Some(format!("`{}`", word.as_str()?))));
    }
    let doc = schema["description"].as_str().unwrap_or_default();
    if let Some((_, default)) = doc.split_once("Default: ") {
        facts.push(default.trim_end_matches('.').to_owned());
    }
    facts
}

#[test]
fn the_reference_names_every_key_with_its_bounds_and_its_default_and_no_other() {
    let schema = schema();
    for (name, of_section) in schema["properties"].as_object().unwrap() {
        let section = section(name);
        let mut known = BTreeMap::new();
        match name.as_str() {
            "project" => drop(known.insert(name.clone(), of_section)),
            // Keys of services, and sections of this very file.
            "defaults" | "environments" => {
                keys_named_in_passing(name, section, of_section);
                continue;
            }
            _ => keys_below(of_section, "", &mut known),
        }
        // It is asked as `health` is.
        known.retain(|key, _| !key.starts_with("alive."));
        let rows = rows(section);
        let told: Vec<&str> = rows.keys().copied().collect();
        let expected: Vec<&str> = known.keys().map(String::as_str).collect();
        assert_eq!(told, expected, "rows of `## {name}` in docs/manifest.md");
        for (key, schema) in known {
            let row = rows[key.as_str()].join(" | ");
            for fact in facts(schema) {
                assert!(
                    row.contains(&fact),
                    "{name}: {key}: `{fact}` is not in: {row}"
                );
            }
        }
    }
}

fn keys_named_in_passing(name: &str, section: &str, schema: &Value) {
    let inner = schema.get("additionalProperties");
    let of = inner.filter(|inner| inner.is_object()).unwrap_or(schema);
    for key in of["properties"].as_object().unwrap().keys() {
        let named = section.contains(&format!("`{key}`"));
        assert!(
            named,
            "`## {name}` in docs/manifest.md does not name `{key}`"
        );
    }
}

#[test]
fn what_the_pages_show_of_the_file_is_read_without_a_word() {
    for (page, text) in PAGES {
        let shown = text.split("```yaml\n").skip(1);
        let shown = shown.filter_map(|rest| rest.split("```").next());
        let mut count = 0;
        for text in shown {
            let whole = match text.starts_with("project:") {
                true => text.to_owned(),
                false => format!("project: shown\n{text}"),
            };
            match read_text(&whole, None) {
                Ok(manifest) => assert_eq!(lines(&manifest.warnings), "", "{page}:\n{text}"),
                Err(problems) => panic!("{page}: {}\n{text}", lines(&problems)),
            }
            count += 1;
        }
        assert!(count > 0, "{page} shows nothing of it");
    }
}
