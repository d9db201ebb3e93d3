//! Whoever holds the API's address while the server is away is shown no token, and its owner reads what is wrong.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use system::cloud::{binary, free_address};
use system::wait;

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    data: tempfile::TempDir,
    api: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Self {
        let (data, api, nodes) = (tempfile::tempdir().unwrap(), free_address(), free_address());
        let mut command = Command::new(binary());
        command.arg("server").arg("--data-dir").arg(data.path());
        command.args(["--api", &api.to_string(), "--nodes", &nodes.to_string()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self {
            child: child.unwrap(),
            data,
            api,
        };
        wait::until("the server answers its owner", PATIENCE, || {
            let (code, text) = server.ask(&["whoami"]);
            if code == Some(0) { Ok(()) } else { Err(text) }
        });
        server
    }

    fn ask(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(binary());
        command.args(words).arg("--data-dir").arg(self.data.path());
        for variable in ["MAINLAND_TOKEN", "MAINLAND_API", "MAINLAND_PROJECT"] {
            command.env_remove(variable);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let texts = [&output.stdout[..], &output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&texts).into_owned(),
        )
    }
}

/// Takes the address and answers whatever comes as a server would; keeps what it was told.
fn take(address: SocketAddr) -> Arc<Mutex<Vec<u8>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut listener = None;
    wait::until("the address is free", PATIENCE, || {
        let bound = TcpListener::bind(address).map_err(|error| error.to_string())?;
        listener = Some(bound);
        Ok(())
    });
    let kept = told.clone();
    std::thread::spawn(move || {
        for stream in listener.unwrap().incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0; 4096];
            let count = stream.read(&mut first).unwrap_or(0);
            kept.lock().unwrap().extend_from_slice(&first[..count]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        }
    });
    told
}

#[test]
fn whoever_holds_the_apis_address_reads_no_token() {
    let mut server = Server::start();
    let file = std::fs::read_to_string(server.data.path().join("client.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&file).unwrap();
    let token = file["token"].as_str().unwrap().to_owned();
    // A script on this machine goes on as before: the same port, in plain text.
    let plain = Command::new("curl")
        .args(["-sS", "-H", &format!("authorization: Bearer {token}")])
        .arg(format!("http://{}/v1/whoami", server.api))
        .output()
        .unwrap();
    let plain = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(plain.contains("admin:owner"), "{plain}");

    let (code, text) = server.ask(&["secret", "rotate-key"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = server.ask(&["audit", "verify"]);
    assert!(
        code == Some(0) && text.contains("the audit log is whole"),
        "{text}"
    );
    let (code, text) = server.ask(&["audit", "--action", "keyring"]);
    assert!(
        code == Some(0) && text.contains("becomes the current one"),
        "{text}"
    );

    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let told = take(server.api);
    let (code, text) = server.ask(&["secret", "list", "-p", "shop"]);
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "not the server of this cloud",
        "[not-the-server]",
        "it was shown no token",
        "remedy: ",
        "ss -ltnp",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let told = told.lock().unwrap();
    assert!(!told.is_empty());
    let has = |needle: &[u8]| told.windows(needle.len()).any(|part| part == needle);
    assert!(!has(token.as_bytes()) && !has(b"ml_admin") && !has(b"uthorization"));
}
