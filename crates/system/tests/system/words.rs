//! What a person types wrong, or waits for in vain: said at once, with what was meant and what is to be done.

use std::time::{Duration, Instant};

use crate::first::{First, PAGE};

/// What ends early ends long before this.
const TIMEOUT: Duration = Duration::from_secs(100);

/// Types a command that must end with this code; what it says to a person, and to a program.
fn ended(first: &First, words: &[&str], code: i32) -> (String, String) {
    let output = first.cloud.run(words).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (said, printed) = (text(output.stderr), text(output.stdout));
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    (said, printed)
}

#[test]
fn wrong_names_and_empty_lists_are_said_to_be_so() {
    let mut first = First::with(1, PAGE);
    first.cloud.up().unwrap();
    let wrong: [(&[&str], &str); 12] = [
        (&["ps", "pgae"], "did you mean `page`?"),
        (&["logs", "pgae"], "did you mean `page`?"),
        (&["explain", "pgae"], "did you mean `page`?"),
        (&["exec", "pgae", "--", "true"], "did you mean `page`?"),
        (&["scale", "pgae", "3"], "did you mean `page`?"),
        (&["rollback", "pgae"], "did you mean `page`?"),
        (&["deploy", "pgae"], "did you mean `page`?"),
        (&["ps", "-p", "frist"], "did you mean `first`?"),
        (&["topic", "peek", "nope"], "topic list"),
        (&["db", "dump", "nope"], "db list"),
        (&["ps", "nope"], "mainland status"),
        (&["cordon", "nope"], "mainland nodes"),
    ];
    for (words, expected) in wrong {
        let (said, printed) = ended(&first, words, 1);
        let is_named = said.contains(expected) && said.contains("[not-found]");
        assert!(is_named, "{words:?}: {said}");
        assert_eq!(printed, "", "{words:?}");
    }
    for list in [
        ["topic", "list"],
        ["db", "list"],
        ["key", "list"],
        ["secret", "list"],
        ["get", "scales"],
    ] {
        let (said, printed) = ended(&first, &list, 0);
        assert_eq!((said.contains("has no"), printed.as_str()), (true, ""));
        let (said, printed) = ended(&first, &[&list[..], &["-o", "json"]].concat(), 0);
        assert_eq!((said.as_str(), printed.as_str()), ("", "[]\n"));
    }
    let (_, printed) = ended(&first, &["diff"], 0);
    assert_eq!(printed, "Nothing would change.\n");

    // With a second project somebody has to say which one is meant, and waiting would not tell.
    let other = first.cloud.directory.path().join("other.yaml");
    std::fs::write(&other, PAGE.replace("first", "second")).unwrap();
    let other = other.to_str().unwrap();
    let pages = first.folder.join("front");
    let beside = first.cloud.directory.path().join("front");
    std::os::unix::fs::symlink(pages, beside).unwrap();
    ended(&first, &["apply", other, "--wait"], 0);
    std::fs::remove_file(first.folder.join("mainland.yaml")).unwrap();
    for words in [["ps"], ["wait"]] {
        let (said, _) = ended(&first, &words, 2);
        assert!(
            said.contains("first, second") && said.contains("-p NAME"),
            "{said}"
        );
    }
    ended(&first, &["apply", other, "-p", "first"], 2);
    let (said, _) = ended(
        &first,
        &["exec", "-it", "page", "-p", "first", "--", "sh"],
        2,
    );
    assert!(said.contains("[no-terminal]"), "{said}");
    // A shell that is told nothing ends.
    ended(&first, &["exec", "page", "-p", "first"], 0);
    // What somebody needs is not taken away in passing.
    let caller =
        "  caller: { run: [sleep, infinity], health: none, needs: [page], replicas: 1 }\nroutes:";
    let manifest = PAGE.replace("routes:", caller);
    std::fs::write(first.folder.join("mainland.yaml"), manifest).unwrap();
    ended(&first, &["apply"], 0);
    let delete = ["delete", "service", "page", "-p", "first"];
    let (said, _) = ended(&first, &delete, 2);
    assert!(
        said.contains("caller needs it") && said.contains("-y"),
        "{said}"
    );
    let (_, printed) = ended(&first, &[&delete[..], &["-y"]].concat(), 0);
    assert!(printed.starts_with("- service page: "), "{printed}");
}

#[test]
fn what_cannot_come_is_not_waited_for() {
    let mut first = First::with(1, PAGE);
    first.cloud.up().unwrap();
    let big = "services:\n  big: { run: [sleep, infinity], memory: 4000Gi, replicas: 1 }\n";
    let needy = "services:\n  needy: { run: [python3, -m, http.server, --bind, $HOST, $PORT], needs: [token], replicas: 1 }\nsecrets: { token: {} }\n";
    let timeout = format!("{}s", TIMEOUT.as_secs());
    let table: [(&str, &[&str], &str); 3] = [
        (big, &["apply", "--wait"], "[no-room]"),
        (big, &["deploy", "--wait"], "[no-room]"),
        (
            needy,
            &["apply", "--wait", "-o", "json"],
            "mainland secret set token",
        ),
    ];
    for (services, words, expected) in table {
        let manifest = format!("project: first\n{services}");
        std::fs::write(first.folder.join("mainland.yaml"), manifest).unwrap();
        let begin = Instant::now();
        let words = [words, &["--timeout", &timeout]].concat();
        let (said, _) = ended(&first, &words, 1);
        assert!(
            said.contains("[stuck]") && said.contains(expected),
            "{said}"
        );
        assert!(begin.elapsed() < TIMEOUT / 2, "{words:?} waited it out");
        if services == big {
            continue;
        }
        ended(&first, &["delete", "service", "big"], 0);
        // What was missing is given: it comes.
        std::fs::write(first.folder.join("token"), "precious").unwrap();
        ended(&first, &["secret", "set", "token", "--file", "token"], 0);
        ended(&first, &["wait", "--timeout", &timeout], 0);
    }
}
