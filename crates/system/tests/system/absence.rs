//! A cloud that was away for longer than any certificate lives comes back with everything; a node that was removed runs nothing; a copy of a node's
//! directory touches nothing.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use system::wait;

use crate::clock::Clock;
use crate::first::{BACK_WITHIN, First};

const DAY_SECONDS: i64 = 86_400;
const SOON: Duration = Duration::from_secs(20);

/// A page on every zone, and one copy that counts in a volume.
const COUNTING: &str = r#"
project: first
defaults: { cpu: 0.1, memory: 64Mi }
services:
  page:
    run: [python3, -m, http.server, --bind, $HOST, $PORT]
    files: ./front/pages
    health: /
    replicas: 2
  counter:
    run: [python3, -c, "import http.server, os, pathlib\nfile = pathlib.Path(os.environ['DATA_DIR'], 'starts')\nfile.write_text((file.read_text() if file.exists() else '') + 'x')\nos.chdir(file.parent)\nhttp.server.test(http.server.SimpleHTTPRequestHandler, port=int(os.environ['PORT']), bind=os.environ['HOST'])"]
    volumes: { data: 16Mi }
    health: /starts
routes:
  first.localhost/: page
  counter.localhost/: counter
"#;

fn counting(zones: u32) -> First {
    First::with(zones, COUNTING)
}

fn starts(first: &First) -> Result<usize, String> {
    let url = format!("http://{}/starts", first.cloud.gateway);
    let words = [
        "-sS",
        "--fail",
        "--max-time",
        "5",
        "-H",
        "Host: counter.localhost",
    ];
    let output = Command::new("curl").args(words).arg(&url).output().unwrap();
    match output.status.success() {
        true => Ok(output.stdout.iter().filter(|byte| **byte == b'x').count()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn node_folder(first: &First, node: &str) -> PathBuf {
    first.cloud.directory.path().join("data/nodes").join(node)
}

fn home_of_counter(first: &First) -> String {
    let counter = first.cloud.ready("counter").unwrap();
    counter[0].node.clone().unwrap()
}

#[test]
fn a_cloud_that_was_off_for_a_day_or_a_year_comes_back_with_everything() {
    let mut first = counting(2);
    let clock = Clock::give(&mut first);
    first.cloud.up().unwrap();
    assert_eq!(wait::until("it counts", SOON, || starts(&first)).0, 1);
    // 26 hours, then 400 days more; and a clock that was set back.
    let offsets = [DAY_SECONDS + 7200, 401 * DAY_SECONDS, 0];
    for (count, days) in (2..).zip(offsets) {
        first.cloud.down().unwrap();
        clock.set(days);
        first.cloud.up().unwrap();
        first.cloud.wait_ready("page", 2, BACK_WITHIN);
        let counted = || match starts(&first)? {
            found if found == count => first.page(),
            found => Err(format!("started {found} times on its volume, not {count}")),
        };
        wait::until("all is there again", SOON, counted);
        let nodes = first.cloud.nodes().unwrap();
        assert!(nodes.iter().all(|node| node.state == "ready"), "{nodes:?}");
    }
}

#[test]
fn a_server_away_for_three_days_stops_no_traffic() {
    let mut first = counting(2);
    let clock = Clock::give(&mut first);
    first.cloud.up().unwrap();
    wait::until("it counts", SOON, || starts(&first));
    // Nobody starts the server again.
    let supervisor = first.cloud.supervisor().unwrap();
    let signal = |name: &str, pid: u32| {
        let done = Command::new("kill").args([name, &pid.to_string()]).status();
        assert!(done.unwrap().success());
    };
    signal("-STOP", supervisor);
    let server = first.cloud.processes_with(&[" server "]);
    assert_eq!(server.len(), 1, "{server:?}");
    signal("-KILL", server[0]);
    let load = first
        .cloud
        .load("first.localhost", "/", 200, Duration::from_secs(8), "html");
    for day in 1..=3 {
        clock.set(day * DAY_SECONDS);
        wait::until("the counter answers", SOON, || starts(&first));
    }
    let report = load.unwrap().finish().unwrap();
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    // Fresh connections between the nodes' proxies, with certificates of three days ago.
    let proxies = first.cloud.processes_with(&[" proxy ", "/nodes/"]);
    assert_eq!(proxies.len(), 3, "{proxies:?}");
    proxies.iter().for_each(|pid| signal("-KILL", *pid));
    wait::until("all answer again", SOON, || {
        starts(&first).and_then(|_| first.page())
    });
    signal("-CONT", supervisor);
    let heard = || match first.cloud.nodes() {
        Ok(nodes) if nodes.iter().all(|node| node.state == "ready") => Ok(()),
        Ok(nodes) => Err(format!("{nodes:?}")),
        Err(error) => Err(error.to_string()),
    };
    wait::until(
        "the server is back and hears all",
        Duration::from_secs(30),
        heard,
    );
    assert_eq!(starts(&first).unwrap(), 1, "nothing was started again");
}

#[test]
fn a_node_that_was_removed_runs_nothing_and_its_name_brings_no_volume() {
    let mut first = counting(2);
    first.cloud.up().unwrap();
    wait::until("it counts", SOON, || starts(&first));
    let home = home_of_counter(&first);
    first.cloud.say(&["chaos", "kill", &home]).unwrap();
    let leaves = || match first.cloud.run(&["leave", &home, "-y"]) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("it leaves", SOON, leaves);

    let told = first.cloud.run(&["start", &home]).unwrap();
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(!told.status.success(), "{told:?}");
    for part in ["was removed", "runs nothing", "--join"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let folder = format!("/nodes/{home}");
    let gone = || match first.cloud.processes_with(&[&folder]) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?} run")),
    };
    wait::until("nothing of it runs", SOON, gone);

    // Its directory put aside, a new node has its name and not its volume.
    let (node, aside) = (
        node_folder(&first, &home),
        first.cloud.directory.path().join("aside"),
    );
    std::fs::rename(&node, &aside).unwrap();
    first.cloud.down().unwrap();
    first.cloud.start().unwrap();
    first.explained("counter", &["volume on node", "was removed"]);
    assert!(
        starts(&first).is_err(),
        "an empty volume was taken for the old one"
    );

    // And with its directory it is let in again, when somebody says so.
    first.cloud.down().unwrap();
    std::fs::remove_dir_all(&node).unwrap();
    std::fs::rename(&aside, &node).unwrap();
    first.cloud.start().unwrap();
    let told = || {
        let said = std::fs::read_to_string(first.cloud.log_path()).unwrap_or_default();
        let missing = format!("zone {home} is missing");
        said.matches(&missing).next().map(drop).ok_or(said)
    };
    wait::until("`up` says what is missing", Duration::from_secs(40), told);
    let again = || match first.cloud.run(&["start", &home, "--join"]) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("it is let in again", SOON, again);
    let counted = wait::until("its volume is there", SOON, || starts(&first)).0;
    assert_eq!(counted, 2);
}

#[test]
fn a_copy_of_a_nodes_directory_is_refused_and_the_first_unharmed() {
    let mut first = counting(2);
    first.cloud.up().unwrap();
    wait::until("it counts", SOON, || starts(&first));
    let home = home_of_counter(&first);
    let before = first.cloud.ps().unwrap();
    let copy = first.cloud.directory.path().join("copy");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&node_folder(&first, &home), &copy])
        .status();
    assert!(copied.unwrap().success());
    let output = Command::new(&first.cloud.binary)
        .args(["agent", "--data-dir"])
        .arg(&copy)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        !output.status.success() && said.contains("is a copy of"),
        "{said}"
    );
    let after = first.cloud.ps().unwrap();
    let pids = |all: &[system::cloud::Instance]| {
        let mut pids: Vec<_> = all.iter().map(|one| (one.name.clone(), one.pid)).collect();
        pids.sort();
        pids
    };
    assert_eq!(pids(&before), pids(&after));
    assert_eq!(starts(&first).unwrap(), 1);
    let nodes = first.cloud.nodes().unwrap();
    assert!(nodes.iter().all(|node| node.state == "ready"), "{nodes:?}");
}
