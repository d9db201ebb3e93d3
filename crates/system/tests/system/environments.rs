//! Two environments of one file beside each other on one machine: names, secrets, users and routes apart.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use crate::first::{First, PAGE};

const OVERLAY: &str = "
environments:
  staging:
    services: { page: { replicas: 1 } }
";

const ROUTES: &str = "    routes: { first.localhost/: ~, staging.first.localhost/: page }\n";

fn page_of(first: &First, host: &str) -> bool {
    let url = format!("http://{}/", first.cloud.gateway);
    let host = format!("Host: {host}");
    let words = [
        "-sS",
        "--fail",
        "--max-time",
        "10",
        "-o",
        "/dev/null",
        "-H",
        &host,
        &url,
    ];
    let status = std::process::Command::new("curl").args(words).status();
    status.unwrap().success()
}

#[test]
fn two_environments_stand_beside_each_other() {
    let needs = "replicas: 2\n    needs: [session]";
    let secrets = "secrets: { session: { generate: 32 } }";
    let manifest = format!(
        "{}\n{secrets}\n{OVERLAY}",
        PAGE.replace("replicas: 2", needs)
    );
    let mut first = First::with(1, &manifest);
    first.cloud.up().unwrap();

    // Its routes are the first one's: it is said what to do.
    let taken = first.cloud.run(&["apply", "--env", "staging"]).unwrap();
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(1), "{said}");
    for expected in [
        "belongs to project first",
        "environments: staging: routes:",
        "first.localhost/: ~",
    ] {
        assert!(said.contains(expected), "`{expected}` is not in: {said}");
    }
    let path = first.folder.join("mainland.yaml");
    std::fs::write(&path, format!("{manifest}{ROUTES}")).unwrap();
    first.cloud.say(&["check", "--env", "staging"]).unwrap();
    let diff = first.cloud.say(&["diff", "--env", "staging"]).unwrap();
    assert!(diff.contains("+ service page"), "{diff}");
    let deployed = first
        .cloud
        .say(&["deploy", "--env", "staging", "--wait"])
        .unwrap();
    assert!(deployed.contains("page release 1"), "{deployed}");

    let of = |environment: &[&str]| {
        let words = [&["ps", "-o", "json"], environment].concat();
        let said = first.cloud.say(&words).unwrap();
        let all: Vec<system::cloud::Instance> = serde_json::from_str(&said).unwrap();
        all
    };
    let (production, staging) = (of(&[]), of(&["--env", "staging"]));
    assert_eq!((production.len(), staging.len()), (2, 1));
    let users = |all: &[system::cloud::Instance]| -> BTreeSet<u32> {
        let pids = all.iter().map(|one| one.pid.unwrap());
        pids.map(|pid| std::fs::metadata(format!("/proc/{pid}")).unwrap().uid())
            .collect()
    };
    if rustix::process::geteuid().is_root() {
        assert!(users(&production).is_disjoint(&users(&staging)));
    }
    let secret = |environment: &[&str]| {
        let words = [
            environment,
            &["exec", "page", "--", "sh", "-c", "printf %s \"$SESSION\""],
        ]
        .concat();
        first.cloud.say(&words).unwrap()
    };
    assert_ne!(secret(&[]), secret(&["--env", "staging"]));
    assert!(page_of(&first, "first.localhost") && page_of(&first, "staging.first.localhost"));

    first
        .cloud
        .say(&["delete", "--all", "-y", "--env", "staging"])
        .unwrap();
    assert!(page_of(&first, "first.localhost") && !page_of(&first, "staging.first.localhost"));
    assert_eq!(of(&[]).len(), 2);
}
