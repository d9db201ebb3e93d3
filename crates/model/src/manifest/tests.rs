//! The reader as tables: what is broken with every message, what is good as a snapshot, and that nothing makes it panic.

use expect_test::{ExpectFile, expect, expect_file};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::compute::programs::SecretShape;

mod documents;

fn read_text(text: &str, environment: Option<&str>) -> Result<Manifest, Vec<Problem>> {
    let file = "mainland.yaml";
    read(Source { file, text }, environment)
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

/// A table of files and what is said about them: `=== name`, the file, and a line for each message behind `! `. With `UPDATE_EXPECT=1` the
/// messages are written anew.
fn check_table(table: ExpectFile, messages: impl Fn(&str, &str) -> Vec<Problem>) {
    let mut actual = String::new();
    let mut count = 0;
    for case in table.data().split("=== ").skip(1) {
        let (name, rest) = case.split_once('\n').unwrap();
        let text = rest.split("\n! ").next().unwrap();
        let text = text
            .strip_prefix("! ")
            .map_or(text, |_| "")
            .trim_end_matches('\n');
        let text = if text.is_empty() {
            String::new()
        } else {
            format!("{text}\n")
        };
        let problems = messages(name, &text);
        assert!(!problems.is_empty(), "{name}: nothing is said");
        let lines: String = problems
            .iter()
            .map(|problem| format!("! {problem}\n"))
            .collect();
        actual.push_str(&format!("=== {name}\n{text}{lines}\n"));
        count += 1;
    }
    assert!(count > 0, "an empty table");
    table.assert_eq(&actual);
}

#[test]
fn broken_files_say_what_and_where() {
    check_table(
        expect_file!["tables/broken.txt"],
        |name, text| match read_text(text, None) {
            Ok(_) => panic!("{name}: was read"),
            Err(problems) => problems,
        },
    );
}

#[test]
fn environments_say_what_and_where() {
    check_table(expect_file!["tables/environments.txt"], |name, text| {
        let (_, environment) = name.split_once(" --env ").unwrap();
        match read_text(text, Some(environment)) {
            Ok(_) => panic!("{name}: was read"),
            Err(problems) => problems,
        }
    });
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    check_table(
        expect_file!["tables/warnings.txt"],
        |name, text| match read_text(text, None) {
            Ok(manifest) => manifest.warnings,
            Err(problems) => panic!("{name}: {}", lines(&problems)),
        },
    );
}

const FULL: &str = include_str!("tables/full.yaml");
const FIRST: &str = include_str!("../../../../examples/first/mainland.yaml");

#[test]
fn a_full_file_is_resolved() {
    let manifest = read_text(FULL, None).unwrap();
    assert_eq!(manifest.warnings, []);
    let service = |service: &DeclaredService| json!({ "spec": service.spec, "files": service.files, "line": service.position.line });
    let services: BTreeMap<_, _> = manifest
        .services
        .iter()
        .map(|(name, declared)| (name, service(declared)))
        .collect();
    let whole = json!({
        "services": services,
        "routes": manifest.routes,
        "secrets": manifest.secrets,
        "environments": manifest.environments,
    });
    let text = serde_json::to_string_pretty(&whole).unwrap() + "\n";
    expect_file!["tables/full.json"].assert_eq(&text);
}

#[test]
fn an_environment_is_a_merge_patch_over_the_file() {
    let manifest = read_text(FULL, Some("staging")).unwrap();
    let replicas: Vec<String> = manifest
        .services
        .iter()
        .map(|(name, service)| {
            format!(
                "{name} {} {:?}",
                service.spec.replicas, service.spec.health.ask
            )
        })
        .collect();
    let routes: Vec<&str> = manifest
        .routes
        .iter()
        .map(|(key, _)| key.as_str())
        .collect();
    assert_eq!(manifest.project.as_str(), "shop-staging");
    assert_eq!(manifest.services["web"].spec.alive, None);
    assert_eq!(
        routes,
        ["shop.localhost/", "shop.localhost/mail", "mail.localhost/"]
    );
    expect![[r#"
        audit 1 Engine
        email 1 Connect
        extra 1 Connect
        far-db 0 Connect
        mail 1 Connect
        order-events 1 Engine
        orders-db 1 Engine
        pay 0 Connect
        store 1 Connect
        web 2 Exec { run: ["./check", "fast"] }"#]]
    .assert_eq(&replicas.join("\n"));
}

#[test]
fn a_variable_is_unset_by_nothing() {
    let text = "project: shop
defaults: { env: { A: all, B: all, C: all } }
services:
  web: { run: [./web], env: { B: ~, D: own } }
  api: { run: [./api] }
environments:
  staging: { services: { web: { env: { A: ~, D: ~, E: own } }, api: { env: { C: null } } } }
";
    let env = |environment| {
        let manifest = read_text(text, environment).unwrap();
        ["web", "api"].map(|name| {
            let env = &manifest.services[name].spec.env;
            env.keys().cloned().collect::<Vec<_>>().join(" ")
        })
    };
    assert_eq!(env(None), ["A C D", "A B C"]);
    assert_eq!(env(Some("staging")), ["C E", "A B"]);
    let forgotten = text.replace("B: ~", "B:");
    let said = lines(&read_text(&forgotten, None).unwrap_err());
    assert!(said.contains("give a value or remove the line"), "{said}");
}

#[test]
fn the_examples_are_read_without_warnings() {
    let manifest = read_text(FIRST, None).unwrap();
    assert_eq!(manifest.warnings, []);
    let files: Vec<_> = manifest
        .services
        .iter()
        .map(|(name, service)| (name.as_str(), service.files.as_deref()))
        .collect();
    assert_eq!(
        files,
        [
            ("front", Some("./front")),
            ("store", None),
            ("web", Some("./web"))
        ]
    );
}

#[test]
fn an_alias_is_what_it_repeats() {
    let text = "project: shop\nservices:\n  a: &a { run: [./a], env: { X: 1 } }\n  b: *a\n";
    let manifest = read_text(text, None).unwrap();
    assert_eq!(manifest.services["a"].spec, manifest.services["b"].spec);
}

#[test]
fn no_input_is_larger_than_it_looks() {
    let laughs = (1..9).fold(
        "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned(),
        |text, n| {
            let before = format!("*a{}", n - 1);
            format!("{text}a{n}: &a{n} [{}]\n", vec![before; 9].join(", "))
        },
    );
    let deeper = (1..30).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
        format!("{text}a{n}: &a{n} [*a{}]\n", n - 1)
    });
    let services: String = (0..1001)
        .map(|n| format!("  s{n}: {{ run: [x] }}\n"))
        .collect();
    let table = [
        (deeper, "nested deeper than 24 levels"),
        (
            format!("project: shop\nservices:\n{services}"),
            "1001 entries: 1000 is the most",
        ),
        ("#".repeat(SIZE_MAX + 1), "larger than 1 MiB"),
        ("[".repeat(200), "nested deeper than 24 levels"),
        ("- ".repeat(100_000), "nested deeper than 24 levels"),
        (
            format!("[{}", "a,".repeat(200_000)),
            "more than 100000 values",
        ),
        (laughs, "more than 100000 values"),
    ];
    for (text, expected) in table {
        let problems = read_text(&text, None).unwrap_err();
        assert!(lines(&problems).contains(expected), "{}", lines(&problems));
    }
}

/// Each as long as a file may be, and made to be slow where something is not linear.
#[test]
fn the_largest_files_are_read_in_bounded_time() {
    let fill = |head: &str, line: fn(usize) -> String| {
        let mut text = head.to_owned();
        for number in 0..50_000 {
            let line = line(number);
            if text.len() + line.len() > SIZE_MAX {
                break;
            }
            text.push_str(&line);
        }
        text
    };
    let table = [
        fill("project: shop\n", |n| format!("key{n}: 1\n")),
        fill("project: shop\nservices:\n", |n| {
            format!("  s{n}: {{ needs: [t{n}] }}\n")
        }),
        fill("project: shop\nservices:\n  a:\n    needs:\n", |n| {
            format!("    - t{n}\n")
        }),
        fill("project: shop\nroutes:\n", |n| format!("  a/{n}: t{n}\n")),
        fill(
            "project: shop\nenvironments:\n  staging:\n    secrets:\n",
            |n| format!("      s{n}: {{}}\n"),
        ),
    ];
    for text in table {
        let start = std::time::Instant::now();
        assert!(read_text(&text, Some("staging")).is_err());
        // It takes well under one second; quadratic time would be minutes.
        assert!(
            start.elapsed() < std::time::Duration::from_secs(20),
            "{}",
            &text[..60]
        );
    }
}

#[test]
fn more_than_the_kernel_takes_is_refused_with_its_line() {
    let long = "x".repeat(100_000);
    let entries = |count, value: &str| -> String {
        (0..count)
            .map(|n| format!("      V{n}: {value}\n"))
            .collect()
    };
    let table = [
        (
            format!("      A: {}{}\n", long, &long[..40_000]),
            6,
            "env.A: takes 140002 bytes: 131071 is the most",
        ),
        (
            format!("      A: {long}\n      B: $A$A\n"),
            7,
            "env.B: takes 200002 bytes",
        ),
        (format!("      A: {long}\n      B: $$A$$A\n"), 0, ""),
        (
            entries(131, &long[..2048]),
            3,
            "bytes as JSON: 262144 is the most",
        ),
        (
            format!("      A: {long}\n{}", entries(25, "$A")),
            3,
            "2064384 is the most that the kernel takes; the largest is",
        ),
    ];
    for (env, line, expected) in table {
        let text = format!("project: shop\nservices:\n  web:\n    run: [./web]\n    env:\n{env}");
        match read_text(&text, None) {
            Ok(_) => assert_eq!(line, 0, "{expected}"),
            Err(problems) => {
                assert_eq!(problems.len(), 1, "{}", lines(&problems));
                assert_eq!(problems[0].line, line);
                assert!(
                    problems[0].to_string().contains(expected),
                    "{}",
                    problems[0]
                );
            }
        }
    }
}

#[test]
fn values_of_secrets_count_once_they_are_known() {
    let names: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
    let secrets: String = names
        .iter()
        .map(|name| format!("  {name}: {{ file: {name} }}\n"))
        .collect();
    let text = format!(
        "project: shop\nservices:\n  web: {{ run: [./web], needs: [{}] }}\n  api:\n    run: [./api]\n    needs: [s1, s2: {{ file: true }}]\nsecrets:\n{secrets}",
        names.join(", ")
    );
    let manifest = read_text(&text, None).unwrap();
    let refused = |length, is_binary| {
        let shape = SecretShape { length, is_binary };
        let values = manifest.secrets.keys().map(|name| (name.clone(), shape));
        lines(&manifest.refused_values("mainland.yaml", &values.collect()))
    };
    assert_eq!(refused(1000, false), "");
    let large = refused(64 << 10, false);
    let expected = "mainland.yaml:3:3: services.web: all that it is given takes 26";
    assert!(large.starts_with(expected), "{large}");
    let binary = refused(10, true);
    let expected = "mainland.yaml:6:13: services.api: the secret `s1` holds a NUL or is no UTF-8, and can't be the variable `S1`; take it as a file";
    assert!(binary.contains(expected), "{binary}");
    let file = "services.api: the secret `s2`";
    assert!(
        !binary.contains(file),
        "as a file any byte is welcome: {binary}"
    );
}

#[test]
fn as_many_problems_are_kept_as_somebody_would_read() {
    let needs: String = (0..5000).map(|n| format!("nothing-{n}, ")).collect();
    let text =
        format!("project: shop\nservices: {{ web: {{ run: [./web], needs: [{needs}] }} }}\n");
    assert_eq!(
        read_text(&text, None).unwrap_err().len(),
        check::PROBLEMS_MAX
    );
}

#[test]
fn the_schema_knows_the_keys_of_the_reader() {
    let schema = schema();
    let service = &schema["properties"]["services"]["additionalProperties"];
    assert_eq!(schema["required"], json!(["project"]));
    assert_eq!(service["additionalProperties"], false);
    for key in ["run", "files", "needs", "health", "volumes"] {
        let doc = service["properties"][key]["description"].as_str();
        assert!(doc.is_some_and(|doc| !doc.is_empty()), "{key}");
    }
    assert!(
        service["properties"].get("image").is_none(),
        "what does not run is not offered"
    );
    let patched = &schema["properties"]["environments"]["additionalProperties"];
    assert!(
        patched.get("required").is_none(),
        "a patch may leave out anything"
    );
}

/// Whether every key of `node` is one that `schema` offers, as an editor would check it.
fn fits(node: &Node, schema: &serde_json::Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| fits(node, schema));
    }
    let is = |kind: &str| match &schema["type"] {
        serde_json::Value::Array(kinds) => kinds.iter().any(|known| known == kind),
        known => known == kind,
    };
    match &node.value {
        _ if node.is_nothing() => is("null"),
        document::Value::Scalar { .. } => {
            schema.get("enum").is_some() || is("string") || is("integer") || is("boolean")
        }
        document::Value::List(items) => {
            is("array") && items.iter().all(|item| fits(item, &schema["items"]))
        }
        document::Value::Map(entries) => {
            let of = |key: &str| {
                schema["properties"]
                    .get(key)
                    .unwrap_or(&schema["additionalProperties"])
            };
            is("object")
                && entries
                    .iter()
                    .all(|entry| fits(&entry.value, of(&entry.key)))
        }
    }
}

#[test]
fn the_schema_takes_what_the_reader_takes() {
    let schema = schema();
    for text in [FULL, FIRST] {
        assert!(fits(&document::load(text).unwrap(), &schema), "{text}");
    }
    for text in [
        "project: shop\nimage: x\n",
        "services: { web: { replcas: 1 } }",
        "services: { web: { run: x } }",
        "routes: { a/: { too: b } }",
    ] {
        assert!(!fits(&document::load(text).unwrap(), &schema), "{text}");
    }
}

/// The words that mean something, and those that break things, thrown together.
fn scraps() -> impl Strategy<Value = String> {
    let words = "project shop services web store run files external needs env health alive spread volumes traffic rollout routes secrets \
        environments staging defaults replicas memory optional http exec connect by file generate to none zone 1 0 -1 128Mi 5s ~ null true \
        /up ./web $PORT a.localhost/ *a &a !t !!str << ? - : , { } [ ] | > # ' \" % @ --- ...";
    let words: Vec<&'static str> = words.split_whitespace().collect();
    let space = prop::sample::select(vec![
        " ", "", "\n", "\n  ", "\n    ", ": ", ":\n    ", ": { ", "\n  - ", "\t", "\r\n", "\0", "é",
    ]);
    let scrap =
        (prop::sample::select(words), space).prop_map(|(word, space)| format!("{word}{space}"));
    prop::collection::vec(scrap, 0..60).prop_map(|scraps| scraps.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_makes_it_panic(text in prop_oneof![scraps(), any::<String>()], staging in any::<bool>()) {
        let environment = staging.then_some("staging");
        if let Err(problems) = read_text(&text, environment) {
            prop_assert!(!problems.is_empty(), "an error must be told");
            prop_assert!(problems.iter().all(|problem| problem.line >= 1 && problem.column >= 1));
        }
    }

    /// A good file with one character lost, doubled or replaced.
    #[test]
    fn a_slip_of_the_finger_is_survived(at in 0..FULL.len(), slip in prop::sample::select(vec!["", "x", ":", "}", "\n", "  ", "~"]), staging in any::<bool>()) {
        let text = format!("{}{slip}{}", &FULL[..at], &FULL[at + 1..]);
        if let Err(problems) = read_text(&text, staging.then_some("staging")) {
            prop_assert!(!problems.is_empty(), "an error must be told");
        }
    }
}
