//! What people do with topics and databases by hand: look, mend, deliver anew; write out and read in.

use std::time::Duration;

use serde_json::Value;
use system::wait;

use crate::first::First;

/// A worker that cannot read one kind of message until it is mended.
const WORKER: &str = r#"
import http.server, json, os
done = []
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if body.startswith("poison") and "MENDED" not in os.environ:
            return self.answer(500, "this can't be read")
        done.append(body)
        self.answer(200, "")
    def do_GET(self):
        self.answer(200, json.dumps(done))
http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"#;

const WITH_TOPIC: &str = "
project: first
defaults: { cpu: 0.1, memory: 64Mi }
services:
  worker:
    run: [python3, worker.py]
    files: ./worker.py
    replicas: 1
    health: /
    on: { events: /events }
topics:
  events: { attempts: 3 }
";

const WITH_DATABASES: &str = "
project: first
defaults: { cpu: 0.1, memory: 64Mi }
databases:
  one: { postgres: 15, memory: 256Mi, disk: 1Gi }
  two: { postgres: 15, memory: 256Mi, disk: 1Gi }
";

const WITHIN: Duration = Duration::from_secs(30);

fn up(manifest: &str) -> First {
    let mut first = First::with(1, manifest);
    std::fs::write(first.folder.join("worker.py"), WORKER).unwrap();
    first.cloud.up().unwrap();
    first
}

fn say(first: &First, words: &[&str]) -> String {
    first.cloud.say(words).unwrap()
}

fn listed(first: &First, words: &[&str]) -> Vec<Value> {
    let text = say(first, &[words, &["-o", "json"]].concat());
    serde_json::from_str(&text).unwrap()
}

/// Waits until the worker has done exactly this, in some order.
fn until_done(first: &First, expected: &[&str]) {
    let ask = "python3 -c 'import os, urllib.request as r; print(r.urlopen(\"http://127.0.0.1:\" + os.environ[\"PORT\"]).read().decode())'";
    wait::until(&format!("{expected:?} is done"), WITHIN, || {
        let said = first.cloud.say(&["exec", "worker", "--", "sh", "-c", ask]);
        let said = said.map_err(|error| error.to_string())?;
        let mut done: Vec<String> =
            serde_json::from_str(&said).map_err(|error| error.to_string())?;
        done.sort();
        match done == expected {
            true => Ok(()),
            false => Err(said),
        }
    });
}

#[test]
fn a_poison_message_is_looked_at_mended_and_redriven_while_others_flow() {
    let first = up(WITH_TOPIC);
    for (key, data) in [
        ("k", "before"),
        ("p", "poison"),
        ("p", "behind it"),
        ("k", "after"),
    ] {
        let words = [
            "topic", "publish", "events", "--type", "test", "--key", key, data,
        ];
        say(&first, &words);
    }
    // One of its key as well, once it is out of the way.
    until_done(&first, &["after", "before", "behind it"]);
    let dead = listed(&first, &["topic", "dead", "events"]);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(
        (&dead[0]["position"], &dead[0]["attempts"]),
        (&2.into(), &3.into())
    );
    assert_eq!(dead[0]["consumer"], "worker");
    assert!(
        dead[0]["error"]
            .as_str()
            .unwrap()
            .contains("this can't be read"),
        "{dead:?}"
    );
    let whole = say(&first, &["topic", "dead", "events", "--show", "2"]);
    assert!(whole.ends_with("\npoison\n"), "{whole}");
    let peeked = listed(&first, &["topic", "peek", "events"]);
    assert_eq!(peeked.len(), 4, "looking takes nothing: {peeked:?}");
    let status = say(&first, &["status"]);
    assert!(status.contains("mainland topic dead events"), "{status}");

    first.edit("replicas: 1", "replicas: 1\n    env: { MENDED: yes }");
    say(&first, &["apply", "--wait"]);
    let redriven = say(&first, &["topic", "redrive", "events", "--all"]);
    assert!(redriven.contains("anew: 1"), "{redriven}");
    until_done(&first, &["poison"]);
    assert!(listed(&first, &["topic", "dead", "events"]).is_empty());
    let status = say(&first, &["status"]);
    assert!(!status.contains("topic dead"), "{status}");
}

/// What a real bash offers after these words, the last of which is begun.
fn completed(first: &First, words: &[&str]) -> Vec<String> {
    const ASK: &str = r#"
source <("$MAINLAND" completion bash) || exit 1
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_mainland_complete "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;
    let of_cloud = first.cloud.command(&[]);
    let mut bash = std::process::Command::new("bash");
    bash.args(["--norc", "--noprofile", "-c", ASK, "bash", "mainland"]);
    bash.args(words).current_dir(&first.folder);
    let said = of_cloud.get_args().collect::<Vec<_>>();
    bash.env("MAINLAND", of_cloud.get_program())
        .env("MAINLAND_DATA_DIR", said[1])
        .env("MAINLAND_API", said[3]);
    let output = bash.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaint.is_empty(),
        "{complaint}"
    );
    let offered = String::from_utf8(output.stdout).unwrap();
    offered
        .lines()
        .map(str::to_owned)
        .filter(|word| !word.is_empty())
        .collect()
}

#[test]
fn a_shell_is_offered_the_names_that_are_there() {
    let mut first = up(WITH_TOPIC);
    say(&first, &["key", "put", "x", "y"]);
    for (words, expected) in [
        (&["rest"][..], &["restart"][..]),
        (&["restart", "w"], &["worker"]),
        (&["scale", ""], &["events", "worker"]),
        (&["logs", "worker"], &["worker", "worker-1"]),
        (&["exec", "worker-"], &["worker-1"]),
        (&["explain", "a"], &["a"]),
        (&["topic", "peek", ""], &["events"]),
        (&["topic", "redrive", "--all", "e"], &["events"]),
        (&["rollout", "status", "wor"], &["worker"]),
        (&["connect", "wor"], &["worker"]),
        (&["cordon", ""], &["a", "edge"]),
        (&["-p", "first", "restart", "w"], &["worker"]),
        (&["restart", "-p", ""], &["first"]),
        (&["restart", "--project", "none", "w"], &[]),
        (&["db", "connect", "e"], &[]),
    ] {
        let (offered, _) = wait::until("the names", WITHIN, || {
            // A machine that also builds may take longer than who presses a key waits.
            let offered = completed(&first, words);
            let names = offered.iter().filter(|word| !word.starts_with('-'));
            let names: Vec<_> = names.cloned().collect();
            match names == expected {
                true => Ok(offered.clone()),
                false => Err(format!("{words:?}: {offered:?}")),
            }
        });
        let hidden = ["--token", "--authority"];
        assert!(
            !offered.iter().any(|word| hidden.contains(&word.as_str())),
            "{offered:?}"
        );
    }
    let options = completed(&first, &["logs", "--"]);
    assert!(options.contains(&"--follow".to_owned()), "{options:?}");
    assert!(!options.contains(&"--token".to_owned()), "{options:?}");
    // Silent, and soon, where nobody answers.
    first.cloud.down().unwrap();
    assert!(completed(&first, &["restart", "w"]).is_empty());
    assert_eq!(completed(&first, &["rest"]), ["restart"]);
}

#[test]
fn a_dump_gives_the_same_rows_elsewhere_and_a_bad_one_nothing() {
    let first = up(WITH_DATABASES);
    let fill = "create table t (id int primary key, b bytea, note text);
        insert into t select i, decode(repeat(md5(i::text), 64), 'hex'), 'ä\\t' || i from generate_series(1, 3000) i";
    say(&first, &["db", "connect", "one", "-c", fill]);
    let file = first.folder.join("one.sql");
    let file = file.to_str().unwrap();
    say(&first, &["db", "dump", "one", "-f", file]);
    say(&first, &["db", "load", "two", file]);
    let sum = |database| {
        let rows = "select count(*), md5(string_agg(id || note || md5(b), '' order by id)) from t";
        say(
            &first,
            &["db", "connect", database, "-c", rows, "--", "-At"],
        )
    };
    assert!(sum("one").starts_with("3000|"), "{}", sum("one"));
    assert_eq!(sum("one"), sum("two"));

    // Nobody is asked here, so nothing is done.
    for replace in [&[][..], &["--replace"]] {
        let again = [&["db", "load", "two", file], replace].concat();
        let again = first.cloud.run(&again).unwrap();
        assert_eq!(again.status.code(), Some(2), "{again:?}");
    }
    // Half of a dump takes the place of nothing, a whole one that of all.
    let more = "insert into t select i, '', 'more' from generate_series(3001, 3100) i";
    say(&first, &["db", "connect", "two", "-c", more]);
    let dump = std::fs::read(file).unwrap();
    let half = first.folder.join("half.sql");
    std::fs::write(&half, &dump[..dump.len() / 2]).unwrap();
    let half = half.to_str().unwrap();
    let half = ["db", "load", "-y", "--replace", "two", half];
    let half = first.cloud.run(&half).unwrap();
    let said = String::from_utf8_lossy(&half.stderr).into_owned();
    assert!(
        !half.status.success() && said.contains("breaks off"),
        "{said}"
    );
    assert!(sum("two").starts_with("3100|"), "{}", sum("two"));
    say(&first, &["db", "load", "-y", "--replace", "two", file]);
    assert_eq!(sum("one"), sum("two"));
    std::fs::write(
        file,
        "create table x (a int);\ninsert into x values (nope);\n",
    )
    .unwrap();
    let bad = first.cloud.run(&["db", "load", "-y", "two", file]).unwrap();
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(
        !bad.status.success() && said.contains(":2: ERROR"),
        "{said}"
    );
    let tables = say(&first, &["db", "connect", "two", "-c", "\\dt", "--", "-At"]);
    assert_eq!(tables.lines().count(), 1, "{tables}");

    // A dump that fails leaves what was there.
    let failed = first
        .cloud
        .run(&["db", "dump", "three", "-f", file])
        .unwrap();
    assert!(!failed.status.success());
    assert!(
        std::fs::read_to_string(file)
            .unwrap()
            .starts_with("create table x")
    );
}
