//! Two clouds on one machine: what one gives up over night the other may have in the morning.

use std::time::Duration;

use system::cloud::Cloud;
use system::wait;

use crate::first::{First, PAGE, copy_folder};

/// Someone who calls the page by the address that was given for it.
const CALLER: &str = "  caller: { run: [sleep, infinity], health: none, needs: [page] }\nroutes:";
const CALL: &str =
    "import os, urllib.request as u; print(u.urlopen(os.environ['PAGE_URL'], timeout=5).status)";

/// The page answers at the gateway and to who needs it.
fn serves(cloud: &Cloud, host: &str) {
    wait::until("it serves", Duration::from_secs(30), || {
        let url = format!("http://{}/", cloud.gateway);
        let host = format!("Host: {host}");
        let words = [
            "-sS",
            "--fail",
            "--max-time",
            "5",
            "-o",
            "/dev/null",
            "-H",
            &host,
            &url,
        ];
        let asked = std::process::Command::new("curl").args(words).output();
        let asked = asked.map_err(|error| error.to_string())?;
        if !asked.status.success() {
            return Err(String::from_utf8_lossy(&asked.stderr).into_owned());
        }
        let called = cloud.say(&["exec", "caller", "--", "python3", "-c", CALL]);
        match called.map_err(|error| error.to_string())?.trim() {
            "200" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
}

#[test]
fn a_cloud_whose_ports_a_neighbour_took_over_night_chooses_others() {
    let manifest = PAGE.replace("routes:", CALLER);
    let mut first = First::with(1, &manifest);
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&first.folder, &copy.path().join("other"));
    let path = copy.path().join("other/mainland.yaml");
    std::fs::write(&path, manifest.replace("first", "other")).unwrap();
    let mut other = Cloud::new(&path, 1).unwrap();
    first.cloud.up().unwrap();
    serves(&first.cloud, "first.localhost");
    first.cloud.down().unwrap();

    other.up().unwrap();
    serves(&other, "other.localhost");
    first.cloud.up().unwrap();
    serves(&first.cloud, "first.localhost");
    serves(&other, "other.localhost");
    let said = first.cloud.say(&["events"]).unwrap();
    assert!(!said.contains("proxy refuses"), "{said}");
    other.down().unwrap();
}
