//! The ports of instances are closed by another program, which may not answer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::world::{BINARY, Node, set_mode, web};

/// `nft`, in the mounts of whom it is given to: it waits for a word before it does anything.
struct Waiting {
    folder: tempfile::TempDir,
    real: PathBuf,
}

impl Waiting {
    /// `None`, where there is none, or nobody who may put another in its place.
    fn new() -> Option<Self> {
        let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        let real = places.iter().map(|place| place.join("nft"));
        let real = real.into_iter().find(|nft| nft.exists());
        let is_root = rustix::process::geteuid().is_root();
        let Some(real) = real.filter(|_| is_root) else {
            eprintln!("not root, or no nftables");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), 0o755);
        std::fs::copy(&real, folder.path().join("real")).unwrap();
        let script = format!(
            "#!/bin/sh\ncd '{}' || exit 1\nwhile [ -d . ] && [ ! -e answers ]; do sleep 0.02; done\nexec ./real \"$@\"\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("waits"), script).unwrap();
        set_mode(&folder.path().join("waits"), 0o755);
        Some(Self { folder, real })
    }

    fn given_to_agent(&self) -> Command {
        let mut command = Command::new("unshare");
        let script = r#"mount --bind "$0" "$1" && shift && exec "$@""#;
        command.args(["-m", "sh", "-c", script]);
        command
            .arg(self.folder.path().join("waits"))
            .arg(&self.real);
        command.arg(BINARY);
        command
    }

    fn answers(&self) {
        std::fs::write(self.folder.path().join("answers"), "").unwrap();
    }
}

fn is_closed(address: &str) -> bool {
    let port = address.rsplit_once(':').unwrap().1;
    let rules = std::process::Command::new("nft")
        .args(["list", "ruleset"])
        .output();
    let rules = String::from_utf8_lossy(&rules.unwrap().stdout).into_owned();
    rules.contains(&format!("tcp dport {port} "))
}

/// Nobody waits for it but what it is needed for, and that has not failed.
#[tokio::test]
async fn an_agent_does_its_work_though_nft_does_not_answer() {
    let Some(nft) = Waiting::new() else { return };
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1"), web("gone-1")]);
    let kept = node.until_ready("web-1").await;
    node.until_ready("gone-1").await;
    let can_close = is_closed(kept.address.as_deref().unwrap());
    node.kill_agent().await;
    node.server.look(|state| {
        state.reports.clear();
        state.heartbeats = 0;
    });
    let begun = Instant::now();
    node.start_again_by(nft.given_to_agent());
    node.until("it is heard", |node| {
        node.server.look(|state| state.heartbeats > 0)
    })
    .await;
    // On a machine with nothing else to do within one.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    let again = node.until_ready("web-1").await;
    assert_eq!((again.pid, again.restarts), (kept.pid, 0), "adopted");

    node.server.want(vec![web("web-1"), web("new-1")]);
    let new = node.until_reason("new-1", "waits for the firewall").await;
    assert_eq!((new.pid, new.restarts, new.last_exit), (None, 0, None));
    let gone = node.directory().join("instances/shop/gone-1");
    node.until("what is not wanted goes", |_| !gone.exists())
        .await;
    let limits = async |node: &Node| node.status().await.unwrap().limits.join("; ");
    let said = limits(&node).await;
    assert!(said.contains("`nft` has not answered in time"), "{said}");

    nft.answers();
    let new = node.until_ready("new-1").await;
    assert_eq!(new.restarts, 0);
    let said = limits(&node).await;
    assert!(!said.contains("`nft` has not answered"), "{said}");
    for one in [&kept, &new] {
        let address = one.address.as_deref().unwrap();
        assert_eq!(is_closed(address), can_close, "{address}");
    }
}
