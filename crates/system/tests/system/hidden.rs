//! A node that can't even see the server's directory, another node's, or the manifest's folder does all of its work.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use system::{proc, wait};

use crate::first::{First, PAGE};

const WITHIN: Duration = Duration::from_secs(30);

/// An agent in a mount namespace of its own. Ended with the test.
struct Hidden {
    agent: Child,
}

impl Hidden {
    /// Starts the agent of a node that has joined, with an empty disk over each of `places`.
    fn start(binary: &Path, node: &Path, places: &[PathBuf]) -> Self {
        let script = "while [ \"$1\" != -- ]; do mount -t tmpfs none \"$1\" || exit 9; shift; done; shift; exec \"$@\"";
        let agent = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .args(places)
            .arg("--")
            .arg(binary)
            .args(["agent", "--data-dir"])
            .arg(node)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .unwrap();
        Self { agent }
    }

    /// What it finds at a place.
    fn sees(&self, place: &Path) -> usize {
        let root = PathBuf::from(format!("/proc/{}/root", self.agent.id()));
        let place = root.join(place.strip_prefix("/").unwrap());
        std::fs::read_dir(place).unwrap().count()
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = proc::signal(self.agent.id(), Signal::KILL);
        let _ = self.agent.wait();
    }
}

#[test]
fn a_node_works_with_everything_else_hidden_from_it() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: nothing can be hidden from a process");
        return;
    }
    let mut first = First::with(2, PAGE);
    first.cloud.up().unwrap();
    first.cloud.wait_ready("page", 2, WITHIN);
    let data = first.cloud.directory.path().join("data");
    first.cloud.kill_node("a").unwrap();
    let lost = || {
        let nodes = first.cloud.nodes().map_err(|error| error.to_string())?;
        let found = nodes
            .iter()
            .any(|node| node.name == "a" && node.state == "lost");
        found.then_some(()).ok_or(format!("{nodes:?}"))
    };
    wait::until("node a is lost", WITHIN, lost);

    let places = ["server", "nodes/b", "nodes/edge"].map(|place| data.join(place));
    let places = [&places[..], std::slice::from_ref(&first.folder)].concat();
    let hidden = Hidden::start(&first.cloud.binary, &data.join("nodes/a"), &places);

    // New files, which a node can only have from the servers.
    let page = first.folder.join("front/pages/index.html");
    std::fs::write(page, "<html>from afar</html>").unwrap();
    first.cloud.say(&["apply", "--wait"]).unwrap();
    first.cloud.say(&["scale", "page", "4", "--wait"]).unwrap();
    let here = || {
        let ready = first
            .cloud
            .ready("page")
            .map_err(|error| error.to_string())?;
        let on_a = ready.iter().find(|one| one.node.as_deref() == Some("a"));
        on_a.cloned().ok_or(format!("{ready:?}"))
    };
    let instance = wait::until("node a has an instance", WITHIN, here).0;
    let read = first
        .cloud
        .say(&["exec", &instance.name, "--", "cat", "index.html"]);
    assert!(read.unwrap().contains("from afar"));
    for place in &places {
        assert_eq!(hidden.sees(place), 0, "{} is not hidden", place.display());
        assert!(std::fs::read_dir(place).unwrap().count() > 0);
    }
    first.cloud.down().unwrap();
}
