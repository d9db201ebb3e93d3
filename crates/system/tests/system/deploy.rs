//! A deploy ends well, or the version before goes on serving and it is said why; what is to run before it runs once.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use system::load::Running;
use system::{proc, wait};

use crate::first::First;

const PATIENCE: Duration = Duration::from_secs(30);

/// The example's page; before it is rolled out, something that writes down that it ran.
struct Page {
    first: First,
    /// Where it writes.
    marks: PathBuf,
}

const MANIFEST: &str = "
project: first
defaults: { cpu: 0.1, memory: 64Mi }
services:
  page:
    run: [python3, -m, http.server, --bind, $HOST, $PORT]
    files: ./front/pages
    health: /
    replicas: 2
    env: { MARKS: @MARKS@, COLOUR: red }
    before_deploy: [sh, before.sh]
routes:
  first.localhost/: page
";

impl Page {
    /// Prepared; `before` is the script.
    fn with(zones: u32, before: &str) -> Self {
        let first = First::with(zones, "");
        let marks = first.cloud.directory.path().join("marks");
        std::fs::create_dir(&marks).unwrap();
        // The service runs as a user of its own.
        std::fs::set_permissions(&marks, std::fs::Permissions::from_mode(0o777)).unwrap();
        let manifest = MANIFEST.replace("@MARKS@", marks.to_str().unwrap());
        std::fs::write(first.folder.join("mainland.yaml"), manifest).unwrap();
        let page = Self { first, marks };
        page.before(before);
        page
    }

    fn up(zones: u32, before: &str) -> Self {
        let mut page = Self::with(zones, before);
        page.first.cloud.up().unwrap();
        page
    }

    fn before(&self, script: &str) {
        std::fs::write(self.first.folder.join("front/pages/before.sh"), script).unwrap();
    }

    /// Lets what waits for it go on.
    fn mark(&self, name: &str) {
        std::fs::write(self.marks.join(name), "").unwrap();
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.marks.join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn load(&self, time: Duration) -> Running {
        let load = self
            .first
            .cloud
            .load("first.localhost", "/", 50, time, "html");
        load.unwrap()
    }

    fn until_began(&self, times: usize) {
        wait::until("before_deploy runs", PATIENCE, || {
            match self.lines("began").len() {
                began if began == times => Ok(()),
                began => Err(format!("it began {began} times")),
            }
        });
    }

    fn until_rolled_out(&self, release: u64) {
        wait::until("it is rolled out", PATIENCE, || {
            let output = self
                .first
                .cloud
                .run(&["rollout", "status", "page", "-o", "json"]);
            let output = output.map_err(|error| error.to_string())?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let rollout: serde_json::Value =
                serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
            let done = rollout["to"] == release && rollout["phase"] == "done";
            done.then_some(()).ok_or(said)
        });
    }
}

fn ended(output: &Output, code: i32) -> String {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

const RUNS: &str = "echo ran >> $MARKS/runs";

/// Runs until it is let go.
const WAITS: &str = "echo began >> $MARKS/began
while [ ! -e $MARKS/go ]; do sleep 0.05; done
echo ended >> $MARKS/ended";

#[test]
fn good_and_bad_deploys_under_load_lose_no_request() {
    let page = Page::up(3, RUNS);
    assert_eq!(page.lines("runs").len(), 1);
    let load = page.load(Duration::from_secs(14));
    page.first.edit("COLOUR: red", "COLOUR: blue");
    let good = page.first.cloud.run(&["deploy", "--wait"]).unwrap();
    let said = ended(&good, 0);
    assert!(
        said.contains("deployed in") && said.contains("page release 2"),
        "{said}"
    );
    assert_eq!(page.lines("runs").len(), 2);
    let again = page.first.cloud.run(&["deploy", "--wait"]).unwrap();
    assert!(ended(&again, 0).contains("nothing changed"));

    page.first.edit(
        "[python3, -m, http.server, --bind, $HOST, $PORT]",
        "[sh, -c, 'seq 101 125; echo no such luck >&2; exit 7']",
    );
    let bad = page.first.cloud.run(&["deploy", "page", "--wait"]).unwrap();
    let said = ended(&bad, 1);
    for expected in [
        "101",
        "125",
        "no such luck",
        "exit code 7",
        "release 2 goes on serving",
    ] {
        assert!(said.contains(expected), "`{expected}` is not in: {said}");
    }
    // The same again is not passed off as good.
    let again = page.first.cloud.run(&["deploy", "page", "--wait"]).unwrap();
    assert!(ended(&again, 1).contains("no such luck"));
    assert!(
        page.first
            .cloud
            .ready("page")
            .unwrap()
            .iter()
            .all(|one| one.version == 2)
    );
    page.first
        .cloud
        .say(&["rollback", "page", "--wait"])
        .unwrap();
    // A version that was there before needs nothing run.
    assert_eq!(page.lines("runs").len(), 3);
    let report = load.finish().unwrap();
    let events = page.first.cloud.say(&["events", "-A"]).unwrap();
    assert_eq!(report.failed, 0, "{:#?}\n{events}", report.failures);
}

#[test]
fn what_fails_before_a_deploy_stops_it() {
    let page = Page::up(2, RUNS);
    page.before("seq 101 125; echo no such table >&2; exit 3");
    let deploy = page.first.cloud.run(&["deploy", "--wait"]).unwrap();
    let said = ended(&deploy, 1);
    for expected in [
        "101",
        "no such table",
        "`sh before.sh` ended with exit code 3",
        "release 1 goes on serving",
    ] {
        assert!(said.contains(expected), "`{expected}` is not in: {said}");
    }
    let all = page.first.cloud.ps().unwrap();
    let copies: Vec<_> = all.iter().filter(|one| one.purpose == "serve").collect();
    assert!(
        copies.iter().all(|one| one.version == 1 && one.ready),
        "{all:?}"
    );
    let why = page.first.cloud.say(&["explain", "page"]).unwrap();
    assert!(why.contains("ended with exit code 3"), "{why}");
    let events = page.first.cloud.say(&["events", "-o", "json"]).unwrap();
    assert!(events.contains("no such table"), "{events}");
    page.before(RUNS);
    page.first.cloud.say(&["deploy", "--wait"]).unwrap();
    assert!(
        page.first
            .cloud
            .ready("page")
            .unwrap()
            .iter()
            .all(|one| one.version == 3)
    );
}

#[test]
fn one_deploys_at_a_time_and_ctrl_c_lets_the_next() {
    let page = Page::up(1, RUNS);
    let cloud = &page.first.cloud;
    page.before(WAITS);
    let mut holder = cloud.begin(&["deploy", "--wait"]).unwrap();
    page.until_began(1);
    wait::until("ps shows it running", PATIENCE, || {
        let all = cloud.ps().map_err(|error| error.to_string())?;
        let running = all.iter().any(|one| {
            let shown = (one.purpose.as_str(), one.state.as_str());
            shown == ("before-deploy", "running") && !one.ready && one.version == 2
        });
        running.then_some(()).ok_or(format!("{all:?}"))
    });
    let table = cloud.say(&["ps"]).unwrap();
    assert!(
        table.contains("runs `sh before.sh` before release 2"),
        "{table}"
    );
    for words in [
        ["deploy", "--wait"].as_slice(),
        &["apply"],
        &["deploy", "page"],
    ] {
        let said = ended(&cloud.run(words).unwrap(), 1);
        let pid = format!("pid {}", holder.id());
        for expected in ["deploy in progress", &pid, "--wait-for-lock"] {
            assert!(
                said.contains(expected),
                "{words:?}: `{expected}` is not in: {said}"
            );
        }
    }
    // What only looks is not held up.
    cloud.say(&["diff"]).unwrap();
    let waiting = cloud
        .begin(&["deploy", "--wait", "--wait-for-lock"])
        .unwrap();
    proc::signal(holder.id(), Signal::INT).unwrap();
    let status = holder.wait().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(holder.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(
        said.contains("page release 2 goes on rolling out by itself"),
        "{said}"
    );
    page.mark("go");
    // The same file: it waits for what the other began.
    ended(&waiting.wait_with_output().unwrap(), 0);
    page.until_rolled_out(2);
    assert_eq!(
        (page.lines("began").len(), page.lines("ended").len()),
        (1, 1)
    );
}

#[test]
fn server_and_agent_are_killed_while_it_runs_and_it_runs_to_its_end_once() {
    let page = Page::up(1, RUNS);
    let cloud = &page.first.cloud;
    page.before(WAITS);
    cloud.say(&["deploy"]).unwrap();
    page.until_began(1);
    let mut killed = cloud.processes_with(&["server", "--api"]);
    killed.extend(cloud.processes_with(&[" agent ", "/nodes/"]));
    assert!(killed.len() >= 3, "server, node and edge: {killed:?}");
    for process in killed {
        proc::signal(process, Signal::KILL).unwrap();
    }
    page.mark("go");
    page.until_rolled_out(2);
    assert_eq!(
        (page.lines("began").len(), page.lines("ended").len()),
        (1, 1)
    );
    assert!(
        cloud
            .ready("page")
            .unwrap()
            .iter()
            .all(|one| one.version == 2)
    );
}

#[test]
fn a_cloud_that_goes_down_while_it_runs_runs_it_again() {
    let mut page = Page::up(1, RUNS);
    page.before(WAITS);
    page.first.cloud.say(&["deploy"]).unwrap();
    page.until_began(1);
    page.first.cloud.down().unwrap();
    page.mark("go");
    page.first.cloud.up().unwrap();
    page.until_rolled_out(2);
    assert_eq!(
        (page.lines("began").len(), page.lines("ended").len()),
        (2, 1)
    );
}

#[test]
fn a_rollout_is_held_let_go_on_and_given_up() {
    let page = Page::up(1, RUNS);
    let cloud = &page.first.cloud;
    page.before(WAITS);
    cloud.say(&["deploy"]).unwrap();
    page.until_began(1);
    cloud.say(&["rollout", "pause", "page"]).unwrap();
    page.mark("go");
    wait::until("it has ended", PATIENCE, || {
        (page.lines("ended").len() == 1)
            .then_some(())
            .ok_or(String::new())
    });
    let held = cloud.say(&["rollout", "status", "page"]).unwrap();
    assert!(held.contains("paused"), "{held}");
    assert!(
        cloud
            .ready("page")
            .unwrap()
            .iter()
            .all(|one| one.version == 1)
    );
    cloud.say(&["rollout", "promote", "page"]).unwrap();
    page.until_rolled_out(2);

    std::fs::remove_file(page.marks.join("go")).unwrap();
    page.first.edit("COLOUR: red", "COLOUR: blue");
    cloud.say(&["deploy"]).unwrap();
    page.until_began(2);
    let said = cloud.say(&["rollout", "abort", "page"]).unwrap();
    assert!(said.contains("release 2 goes on serving"), "{said}");
    wait::until("what ran before it has left", PATIENCE, || {
        let all = cloud.ps().map_err(|error| error.to_string())?;
        let left = all
            .iter()
            .all(|one| one.purpose == "serve" && one.version == 2);
        left.then_some(()).ok_or(format!("{all:?}"))
    });
    let refused = cloud.run(&["rollout", "promote", "page"]).unwrap();
    assert!(ended(&refused, 1).contains("nothing-rolls"));
}
