//! `explain` answers from reasons that were stored when something was decided or happened.

use rustix::process::Signal;
use system::proc;

use crate::first::{First, PAGE};

/// The page, and more services beside it.
fn beside(services: &str) -> String {
    PAGE.replace("\nroutes:", &format!("\n{services}\nroutes:"))
}

#[test]
fn what_is_placed_and_what_is_pending_is_told_by_a_new_server_too() {
    let big = "  big:\n    run: [sleep, infinity]\n    memory: 4000Gi\n";
    let mut first = First::with(1, &beside(big));
    first.cloud.start().unwrap();
    let explained = || {
        let pending = first.explained("big-1", &["pending", "memory"]);
        assert!(
            pending.contains("1 node"),
            "who was rejected is counted: {pending}"
        );
        first.explained("big", &["big-1", "memory"]);
        first.explained("page-1", &["running", "room", "[placed]", "[ready]"]);
        first.explained("node/a", &["ready in zone a", "joined"]);
    };
    explained();
    let server = first.cloud.processes_with(&["server", "--api"]);
    assert_eq!(server.len(), 1, "{server:?}");
    proc::signal(server[0], Signal::KILL).unwrap();
    explained();
    assert_ne!(first.cloud.processes_with(&["server", "--api"]), server);
}

#[test]
fn a_refused_call_is_told_to_both_sides() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: calls are labelled, not enforced");
        return;
    }
    let serve = "run: [python3, -m, http.server, --bind, $HOST, $PORT]";
    let services = format!("  friend: {{ {serve}, needs: [page] }}\n  stranger: {{ {serve} }}\n");
    let mut first = First::with(1, &beside(&services));
    first.cloud.up().unwrap();
    let of_friend = first
        .cloud
        .say(&["exec", "friend", "--", "printenv", "PAGE_URL"]);
    let of_friend = of_friend.unwrap().trim().to_owned();
    let ask = |service: &str| {
        let call = [
            "exec",
            service,
            "--",
            "curl",
            "-sS",
            "--max-time",
            "10",
            &of_friend,
        ];
        first.cloud.say(&call).unwrap()
    };
    assert!(ask("friend").contains("html"));
    assert!(ask("stranger").contains("needs: [page]"));
    let words = ["refused", "first/stranger", "first/page", "needs: [page]"];
    first.explained("stranger", &words);
    first.explained("page", &words);
}
