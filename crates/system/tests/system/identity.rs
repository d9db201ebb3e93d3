//! Who asks decides what is answered: a node gets its own and nobody else's, a stranger nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use system::cloud::Cloud;
use system::wait;

use crate::first::{First, PAGE};

/// One copy, so that one node has it and the other has not.
fn with_a_secret() -> String {
    let one = PAGE.replace("replicas: 2", "replicas: 1\n    needs: [api-key]");
    format!("{one}\nsecrets: {{ api-key: {{ generate: 24 }} }}\n")
}

/// What a node shows of itself, as files for curl.
struct Identity {
    folder: tempfile::TempDir,
}

impl Identity {
    fn of(node: &Path) -> Self {
        let kept = std::fs::read(node.join("identity.json")).unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let parts = [
            ("authority", &kept["authority"]),
            ("certificate", &kept["identity"]["certificate"]),
            ("key", &kept["identity"]["key"]),
        ];
        for (name, text) in parts {
            std::fs::write(folder.path().join(name), text.as_str().unwrap()).unwrap();
        }
        Self { folder }
    }

    fn part(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn node_folder(cloud: &Cloud, node: &str) -> PathBuf {
    cloud.directory.path().join("data/nodes").join(node)
}

fn client_file(cloud: &Cloud) -> Value {
    serde_json::from_slice(&std::fs::read(cloud.client_file()).unwrap()).unwrap()
}

/// Asks with curl; the status (0: no answer), and the body or what curl says.
fn ask(command: &mut Command) -> (u16, String) {
    let words = ["-sS", "--max-time", "10", "-w", "\n%{http_code}"];
    let output = command.args(words).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = answer.rsplit_once('\n').unwrap_or(("", "0"));
    let said = String::from_utf8_lossy(&output.stderr);
    (status.parse().unwrap(), format!("{body}{said}"))
}

/// A request to the port for nodes, believing in `ours`, and as somebody.
fn of_nodes_port(cloud: &Cloud, path: &str, ours: &Identity, shown: Option<&Identity>) -> Command {
    let port = client_file(cloud)["nodes"].as_str().unwrap().to_owned();
    let mut curl = Command::new("curl");
    curl.arg("--cacert").arg(ours.part("authority"));
    if let Some(shown) = shown {
        curl.arg("--cert").arg(shown.part("certificate"));
        curl.arg("--key").arg(shown.part("key"));
    }
    curl.arg(format!("https://{port}{path}"));
    curl
}

#[test]
fn a_node_reads_its_own_and_a_stranger_nothing() {
    // A certificate of another cluster, which has a node of the same name.
    let mut first = First::with(2, &with_a_secret());
    let foreign = {
        let mut other = Cloud::empty(1).unwrap();
        other.start().unwrap();
        let node = node_folder(&other, "a");
        let has_joined = || match node.join("identity.json").exists() {
            true => Ok(Identity::of(&node)),
            false => Err("it has no certificate yet".to_owned()),
        };
        let within = Duration::from_secs(30);
        wait::until("a node of another cluster", within, has_joined).0
    };
    first.cloud.up().unwrap();
    let holder = first.cloud.ready("page").unwrap().remove(0).node.unwrap();
    let stranger = if holder == "a" { "b" } else { "a" };
    let own = Identity::of(&node_folder(&first.cloud, &holder));
    let other = Identity::of(&node_folder(&first.cloud, stranger));
    let asks =
        |identity, path: String| ask(&mut of_nodes_port(&first.cloud, &path, &own, identity));

    let secrets = |node: &str| format!("/v1/nodes/{node}/secrets/first/page");
    let (status, body) = asks(Some(&own), secrets(&holder));
    assert!(status == 200 && body.contains("api-key"), "{status} {body}");
    let desired = |node: &str| format!("/v1/nodes/{node}/desired");
    // Another's words and another's things; its own name with what is not placed there; what only people may.
    let refused = [
        (secrets(&holder), "other-node", "may not read secret"),
        (desired(&holder), "other-node", "may not ask what to run"),
        (secrets(stranger), "not-placed-here", "nothing placed on it"),
        (
            "/v1/projects".to_owned(),
            "not-permitted",
            "may not list projects",
        ),
        ("/v1/audit".to_owned(), "not-permitted", "may not"),
    ];
    for (path, code, words) in refused {
        let (status, body) = asks(Some(&other), path.clone());
        assert_eq!(status, 403, "{path}: {body}");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["code"], code, "{path}: {body}");
        let title = problem["title"].as_str().unwrap();
        assert!(
            title.contains(words) && title.contains(&format!("node:{stranger}")),
            "{title}"
        );
    }
    let heartbeat = format!("/v1/nodes/{holder}/heartbeat");
    let mut acts = of_nodes_port(&first.cloud, &heartbeat, &own, Some(&other));
    let (status, body) = ask(acts.args(["--json", "{}"]));
    assert!(
        status == 403 && body.contains("other-node"),
        "{status} {body}"
    );

    // Without a certificate: nobody. With a foreign one: not even that.
    let (status, body) = asks(None, secrets(&holder));
    assert!(
        status == 401 && body.contains("unauthenticated"),
        "{status} {body}"
    );
    // The connection is ended before anything is answered.
    let (status, said) = asks(Some(&foreign), secrets(&holder));
    assert_eq!(status, 0, "{said}");
}

#[test]
fn the_api_wants_the_token_which_only_the_owner_can_read() {
    let mut first = First::with(1, &with_a_secret());
    first.cloud.up().unwrap();
    let token = client_file(&first.cloud)["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let asks = |path: &str, token: Option<&str>| {
        let mut curl = Command::new("curl");
        curl.arg(format!("http://{}{path}", first.cloud.api));
        if let Some(token) = token {
            curl.args(["-H", &format!("Authorization: Bearer {token}")]);
        }
        ask(&mut curl)
    };
    let mut wrong = token.clone();
    let last = wrong.pop().unwrap();
    wrong.push(if last == 'A' { 'B' } else { 'A' });
    for path in [
        "/v1/projects",
        "/v1/nodes",
        "/v1/events",
        "/v1/projects/first/services",
    ] {
        assert_eq!(asks(path, Some(&token)).0, 200, "{path}");
        for shown in [None, Some(wrong.as_str())] {
            let (status, body) = asks(path, shown);
            assert!(
                status == 401 && body.contains("remedy"),
                "{path}: {status} {body}"
            );
        }
    }
    // Whether it lives may be asked by all.
    assert_eq!(asks("/v1/health", None).0, 200);
    only_the_owner_reads(&first.cloud.directory.path().join("data"));
}

/// Keys and tokens have mode 0600, or lie in a folder that only the owner enters.
fn only_the_owner_reads(data: &Path) {
    let files = [
        "client.json",
        "server/keyring",
        "nodes/a/identity.json",
        "nodes/a/services/first.page.json",
        "nodes/a/desired.json",
        "nodes/a/node.sock",
        "nodes/a/proxy.sock",
    ];
    for file in files {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
    for folder in [
        "server",
        "nodes/a/services",
        "nodes/a/proxy",
        "nodes/a/artifacts",
    ] {
        assert_eq!(mode(&data.join(folder)), 0o700, "{folder}");
    }
}

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::metadata(path);
    let metadata = metadata.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    metadata.permissions().mode() & 0o777
}
