//! A secret reaches the instance that needs it, and nothing else: no answer, no log, no file.

use std::path::Path;

use base64::Engine as _;

use crate::first::{First, PAGE};

const GIVEN: &str = "correct-horse-battery-staple";
const CHANGED: &str = "tr0ub4dor-and-three-more";

fn with_secrets() -> String {
    let needs = "replicas: 2\n    needs: [api-key, session: { file: true }]";
    let secrets = "secrets: { api-key: { file: ./api.key }, session: { generate: 32 } }";
    format!("{}\n{secrets}\n", PAGE.replace("replicas: 2", needs))
}

/// What an instance finds when it looks.
fn inside(first: &First, script: &str) -> String {
    let said = first.cloud.say(&["exec", "page", "--", "sh", "-c", script]);
    said.unwrap().trim_end_matches('\n').to_owned()
}

#[test]
fn a_secret_is_with_its_instance_and_nowhere_else() {
    let mut first = First::with(1, &with_secrets());
    std::fs::write(first.folder.join("api.key"), GIVEN).unwrap();
    first.cloud.up().unwrap();
    assert_eq!(inside(&first, "printf %s \"$API_KEY\""), GIVEN);
    let generated = inside(&first, "cat \"$SESSION_FILE\"");
    assert!(generated.len() >= 32, "`{generated}` is no 32 bytes");

    // A changed value comes with the next start.
    std::fs::write(first.folder.join("api.key"), CHANGED).unwrap();
    let diff = first.cloud.say(&["diff"]).unwrap();
    first.cloud.say(&["apply", "--wait"]).unwrap();
    first.cloud.say(&["restart", "page", "--wait"]).unwrap();
    assert_eq!(inside(&first, "printf %s \"$API_KEY\""), CHANGED);

    let values = [GIVEN, CHANGED, generated.as_str()];
    let mut answers = vec![("diff".to_owned(), diff)];
    let questions = [
        "get services -o json",
        "get secrets -o yaml",
        "get releases -o json",
        "secret list",
        "releases page",
        "events -A",
        "explain page",
        "explain page-1",
        "explain api-key",
        "logs page",
        "status",
        "ps -o json",
    ];
    for question in questions {
        let words: Vec<&str> = question.split(' ').collect();
        let answer = first.cloud.say(&words);
        answers.push((question.to_owned(), answer.expect(question)));
    }
    for (question, answer) in &answers {
        assert!(
            !tells(answer.as_bytes(), &values),
            "`{question}` tells a secret: {answer}"
        );
    }
    let data = first.cloud.directory.path().join("data");
    let looked_at = look_through(&data, &values);
    assert!(
        looked_at > 20,
        "only {looked_at} files below {}",
        data.display()
    );
    let up = std::fs::read(first.cloud.log_path()).unwrap();
    assert!(!tells(&up, &values), "what `up` prints tells a secret");
}

/// Whether one of the values stands in there, plainly or in base64.
fn tells(bytes: &[u8], values: &[&str]) -> bool {
    let encoded = |value: &&str| base64::engine::general_purpose::STANDARD.encode(value);
    let plain = values.iter().map(|value| value.to_string());
    let mut looked_for = plain.chain(values.iter().map(encoded));
    looked_for.any(|value| {
        bytes
            .windows(value.len())
            .any(|window| window == value.as_bytes())
    })
}

/// Reads every file below a folder; how many they were.
fn look_through(folder: &Path, values: &[&str]) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files += look_through(&path, values);
        } else if kind.is_file() {
            files += 1;
            let bytes = std::fs::read(&path).unwrap_or_default();
            assert!(!tells(&bytes, values), "{} tells a secret", path.display());
        }
    }
    files
}
