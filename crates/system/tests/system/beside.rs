//! What people do beside the copies of a service: a command as one of them, a port that leads to one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use system::proc;
use system::wait;

use crate::first::First;

/// `tool` never has a copy that runs; `page` answers.
const MANIFEST: &str = "
project: first
defaults: { cpu: 0.1, memory: 64Mi, replicas: 1 }
services:
  page:
    run: [python3, -m, http.server, --bind, $HOST, $PORT]
    files: ./front/pages
    health: /
  tool:
    run: ['false']
    files: ./front/pages
    needs: [page, pass]
    env: { COLOUR: blue }
secrets: { pass: { generate: 20 } }
";

const WITHIN: Duration = Duration::from_secs(20);

/// What a copy of `tool` would find: its files, environment, secret, and the page that it needs.
const LOOK: &str = "ls; echo $COLOUR ${PASS:+secret}; python3 -c 'import os, urllib.request as r; \
                    print(r.urlopen(os.environ[\"PAGE_URL\"]).status)'; echo aside >&2; exit 7";

fn up() -> First {
    let mut first = First::with(1, MANIFEST);
    first.cloud.start().unwrap();
    first.cloud.wait_ready("page", 1, WITHIN);
    first
}

#[test]
fn a_command_runs_as_a_copy_would_without_one() {
    let first = up();
    let words = ["run", "--in", "tool", "--", "sh", "-c", LOOK];
    let ran = first.cloud.run(&words).unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert_eq!(ran.status.code(), Some(7), "{out}{err}");
    assert_eq!(out, "index.html\nblue secret\n200\n", "{err}");
    assert!(err.contains("aside"), "{err}");

    // With who asked it ends, and all that it started.
    let sleeps = ["sleep", "98765"];
    let mut running = first
        .cloud
        .begin(&[&["run", "--in", "tool", "--"], &sleeps[..]].concat())
        .unwrap();
    wait::until("it runs", WITHIN, || {
        let found = proc_of(&sleeps);
        found.map(drop).ok_or_else(|| "it does not".to_owned())
    });
    proc::signal(running.id(), Signal::INT).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(130));
    wait::until("nothing of it is left", WITHIN, || match proc_of(&sleeps) {
        None => Ok(()),
        Some(pid) => Err(format!("process {pid}")),
    });

    for (words, expect) in [
        (
            vec!["run", "--in", "tol", "--", "true"],
            "did you mean `tool`?",
        ),
        (vec!["run", "--in", "tool", "--", "/no/such"], "no such"),
    ] {
        let refused = first.cloud.run(&words).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
        assert!(!refused.status.success(), "{words:?}");
        assert!(said.contains(expect), "{words:?}: {said}");
    }
}

/// A process with exactly this command line.
fn proc_of(words: &[&str]) -> Option<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| proc::command_line(*pid) == words)
}

/// Begins `connect`, and reads where it listens.
fn connect(first: &First, words: &[&str]) -> (Child, String) {
    let mut command = first.cloud.command(&[&["connect"], words].concat());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    let address = line.split(' ').next().unwrap_or_default().to_owned();
    assert!(line.contains(" leads to "), "{line}");
    (child, address)
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_port_here_leads_to_a_ready_copy_and_says_when_there_is_none() {
    let first = up();
    let (mut child, address) = connect(&first, &["page"]);
    for _ in 0..3 {
        let answer = get(&address);
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(answer.ends_with("</html>\n"), "{answer}");
    }
    let own = first.cloud.ready("page").unwrap()[0].address.clone();
    let own = own
        .as_deref()
        .and_then(|own| own.rsplit_once(':'))
        .unwrap()
        .1
        .to_owned();
    proc::signal(child.id(), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(
        TcpStream::connect(&address).is_err(),
        "nobody listens any more"
    );

    let (mut by_number, address) = connect(&first, &[&format!("page:{own}"), "0"]);
    assert!(get(&address).starts_with("HTTP/1.0 200"));
    by_number.kill().unwrap();
    by_number.wait().unwrap();

    for (words, expect) in [
        (["connect", "tool"], "no copy of first/tool is ready"),
        (["connect", "pag"], "did you mean `page`?"),
        // The API's own port: it is none of the service's.
        (["connect", "page:1"], "nothing of page listens on port 1"),
    ] {
        let refused = first.cloud.run(&words).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains(expect), "{words:?}: {said}");
    }
}
