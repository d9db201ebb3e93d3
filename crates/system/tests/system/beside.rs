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

/// Listens on its named ports alone: one says back what it is told, the other is a web server.
const BROKER: &str = r#"
import http.server, os, socketserver, threading
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())
host = os.environ["HOST"]
amqp = socketserver.ThreadingTCPServer((host, int(os.environ["PORT_AMQP"])), Echo)
threading.Thread(target=amqp.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer((host, int(os.environ["PORT_ADMIN"])), http.server.SimpleHTTPRequestHandler).serve_forever()
"#;

const WITH_PORTS: &str = "
project: first
defaults: { cpu: 0.1, memory: 64Mi, replicas: 1 }
services:
  broker:
    run: [python3, broker.py]
    files: ./front/pages
    ports: { amqp: tcp, admin: http }
    health: { port: admin, http: / }
    replicas: 2
  worker: { run: [sleep, '100000'], needs: [broker], health: none }
  stranger: { run: [sleep, '100000'], health: none }
routes: { admin.localhost/: 'broker:admin' }
";

/// What a caller of the broker does at both of its ports.
const CALL: &str = "import os, socket, urllib.request as r
print(os.environ['BROKER_AMQP_URL'].split(':')[0])
s = socket.create_connection((os.environ['BROKER_AMQP_HOST'], int(os.environ['BROKER_AMQP_PORT'])))
s.sendall(b'hello\\n')
print(s.makefile().readline().strip())
print(r.urlopen(os.environ['BROKER_ADMIN_URL']).status)";

#[test]
fn a_port_with_a_name_is_reached_by_callers_routes_and_people() {
    let mut first = First::with(2, WITH_PORTS);
    std::fs::write(first.folder.join("front/pages/broker.py"), BROKER).unwrap();
    first.cloud.up().unwrap();
    let called = first
        .cloud
        .say(&["exec", "worker", "--", "python3", "-c", CALL]);
    assert_eq!(called.unwrap(), "tcp\nhello\n200\n");

    let gateway = first.cloud.gateway.to_string();
    let mut stream = TcpStream::connect(&gateway).unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: admin.localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let (mut child, address) = connect(&first, &["broker:amqp"]);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"hello from here\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello from here\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let refused = first.cloud.run(&["connect", "broker:ampq"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("its ports are admin, amqp"), "{said}");

    // The port of an instance is its proxy's to call, as its own is.
    if rustix::process::geteuid().is_root() {
        let port = first
            .cloud
            .say(&["exec", "broker", "--", "printenv", "PORT_ADMIN"])
            .unwrap();
        let url = format!("http://127.0.0.1:{}/", port.trim());
        let asked = ["exec", "stranger", "--", "curl", "-s", "-m", "5", &url];
        let told = first.cloud.run(&asked).unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(
            !told.contains("Directory") && !told.contains("<html"),
            "{told}"
        );
    }
}

/// Of each connection the first byte says what becomes of it: `d` is not read on, `b` is answered without end, others are said back.
const MOODS: &str = "
project: moods
services:
  moods:
    run:
      - python3
      - -c
      - |
        import os, socket, threading, time
        def serve(c):
            said = c.recv(1)
            if said == b'd': time.sleep(86400)
            while said == b'b': c.sendall(b'x' * 65536)
            c.sendall(said)
        s = socket.create_server((os.environ.get('HOST', '127.0.0.1'), int(os.environ['PORT'])))
        while True:
            c, _ = s.accept()
            threading.Thread(target=serve, args=(c,), daemon=True).start()
";

/// Connections by one `connect` don't wait for each other, whatever is unread in some of them.
#[test]
fn a_connection_that_stands_still_holds_up_no_other() {
    let mut first = First::with(1, MOODS);
    first.cloud.start().unwrap();
    first.cloud.wait_ready("moods", 1, WITHIN);
    let (mut child, address) = connect(&first, &["moods"]);
    let dial = |mood: &[u8]| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(mood).unwrap();
        stream
    };
    let mut deaf = dial(b"d");
    deaf.set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let piece = [0; 65_536];
    let mut written = 0;
    while deaf.write_all(&piece).is_ok() {
        written += piece.len();
        assert!(written < 256 << 20, "what nobody reads is kept without end");
    }
    let babbling: Vec<_> = (0..4).map(|_| dial(b"b")).collect();
    for mut unread in &babbling {
        unread.read_exact(&mut [0]).unwrap();
    }
    for _ in 0..20 {
        let mut heard = dial(b"e");
        heard.set_read_timeout(Some(WITHIN)).unwrap();
        let mut said = [0];
        heard.read_exact(&mut said).unwrap();
        assert_eq!(said, *b"e");
    }
    proc::signal(child.id(), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
}
