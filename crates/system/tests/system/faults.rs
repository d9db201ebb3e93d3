//! Under 1,000 requests a second, faults of every kind lose none.

use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use system::{proc, wait};

use crate::first::{BACK_WITHIN, First};

/// From the return of a zone to its share of the copies serving there: quiet for 25 s, a start, and patience with a machine that also builds.
const SPREAD_WITHIN: Duration = Duration::from_secs(60);
/// From the loss of a zone to the start of the last replacement: 3.5 s until the node is lost, a step of the leader, the order, the start.
const STARTED_WITHIN: Duration = Duration::from_millis(4_500);
/// To the last of them serving. How long a program takes to begin is its own, on cores that the load and builds for debugging share.
const REPLACED_WITHIN: Duration = Duration::from_secs(8);

#[test]
fn instances_are_killed_one_after_the_other() {
    let mut first = First::up();
    first.under_load(Duration::from_secs(12), |first| {
        for service in ["front", "web"] {
            for instance in first.cloud.ready(service).unwrap() {
                proc::signal(instance.pid.unwrap(), Signal::KILL).unwrap();
                let restarted = || {
                    let all = first
                        .cloud
                        .ready(service)
                        .map_err(|error| error.to_string())?;
                    let back = all
                        .iter()
                        .any(|one| one.name == instance.name && one.pid != instance.pid);
                    back.then_some(())
                        .ok_or(format!("{} is not back", instance.name))
                };
                wait::until("a killed instance is restarted", BACK_WITHIN, restarted);
            }
        }
    });
}

#[test]
fn a_killed_agent_comes_back_by_itself_and_a_node_that_was_killed_on_purpose_does_not() {
    let mut first = First::up();
    let node = |first: &First, name: &str| {
        let mut nodes = first.cloud.nodes().unwrap().into_iter();
        nodes
            .find(|node| node.name == name)
            .expect("a node of that name")
    };
    let of_node = |first: &First, name: &str| -> Vec<_> {
        let all = first.cloud.ps().unwrap().into_iter();
        let here = all.filter(|one| one.node.as_deref() == Some(name));
        here.map(|one| (one.name, one.pid)).collect()
    };
    let (ran, dead) = (of_node(&first, "a"), node(&first, "a").pid.unwrap());
    first.under_load(Duration::from_secs(14), |first| {
        proc::signal(dead, Signal::KILL).unwrap();
        let back = || match node(first, "a") {
            node if node.state == "ready" && node.pid.is_some_and(|pid| pid != dead) => Ok(()),
            node => Err(format!("{node:?}")),
        };
        wait::until("another agent of the node", BACK_WITHIN, back);
        first.all_ready();
    });
    assert_eq!(of_node(&first, "a"), ran, "what ran is adopted");
    let said = std::fs::read_to_string(first.cloud.log_path()).unwrap();
    assert!(said.contains("the agent of node a died"), "{said}");
    let events = first.cloud.say(&["events"]).unwrap();
    assert!(!events.contains("node a was not heard"), "{events}");

    // One that somebody wants dead stays that, whatever of it dies when.
    first.cloud.say(&["chaos", "kill", "b"]).unwrap();
    let lost = || {
        let said = first.cloud.say(&["status"]);
        let said = said.map_err(|error| error.to_string())?;
        let has = said.contains("`mainland start b` brings it back");
        has.then_some(()).ok_or(said)
    };
    wait::until("what brings it back is said", BACK_WITHIN, lost);
    let left = first.cloud.processes_with(&["/nodes/b"]);
    assert_eq!(left, [0; 0], "`up` started it again");
    first.cloud.say(&["start", "b"]).unwrap();
    let back = || match node(&first, "b") {
        node if node.state == "ready" => Ok(()),
        node => Err(format!("{node:?}")),
    };
    wait::until("the node is back", BACK_WITHIN, back);
}

#[test]
fn the_server_is_killed_and_back_ten_seconds_later() {
    let mut first = First::up();
    let before: Vec<_> = first
        .cloud
        .ps()
        .unwrap()
        .into_iter()
        .map(|one| (one.name, one.pid))
        .collect();
    first.under_load(Duration::from_secs(18), |first| {
        let supervisor = first.cloud.supervisor().unwrap();
        proc::signal(supervisor, Signal::STOP).unwrap();
        let server = first.cloud.processes_with(&["server", "--api"]);
        assert_eq!(server.len(), 1, "{server:?}");
        proc::signal(server[0], Signal::KILL).unwrap();
        // `ps` goes on answering from the nodes themselves.
        let begin = std::time::Instant::now();
        wait::until(
            "ten seconds without a server",
            Duration::from_secs(30),
            || {
                assert!(!first.cloud.ps().unwrap().is_empty());
                (begin.elapsed() > Duration::from_secs(10))
                    .then_some(())
                    .ok_or(String::new())
            },
        );
        proc::signal(supervisor, Signal::CONT).unwrap();
        first.all_ready();
    });
    let after: Vec<_> = first
        .cloud
        .ps()
        .unwrap()
        .into_iter()
        .map(|one| (one.name, one.pid))
        .collect();
    assert_eq!(
        before, after,
        "nothing was moved or restarted by the absence of the server"
    );
}

#[test]
fn a_whole_zone_dies() {
    let mut first = First::up();
    let store = first.cloud.ready("store").unwrap()[0].node.clone().unwrap();
    let victim = ["a", "b", "c"]
        .into_iter()
        .find(|zone| *zone != store)
        .unwrap();
    first.under_load(Duration::from_secs(12), |first| {
        let before = first.cloud.ps().unwrap();
        let wanted = |service: &str| before.iter().filter(|one| one.service == service).count();
        let wanted = [("front", wanted("front")), ("web", wanted("web"))];
        let killed = Timestamp::now();
        first.cloud.kill_node(victim).unwrap();
        let replaced = || {
            for (service, count) in wanted {
                let ready = first
                    .cloud
                    .ready(service)
                    .map_err(|error| error.to_string())?;
                let outside = ready
                    .iter()
                    .filter(|one| one.zone.as_deref() != Some(victim))
                    .count();
                if outside < count {
                    return Err(format!(
                        "{outside} of {count} {service} outside zone {victim}"
                    ));
                }
            }
            Ok(())
        };
        let took = wait::until(
            "copies serve outside the dead zone",
            Duration::from_secs(15),
            replaced,
        )
        .1;
        let started = first.cloud.last_start_since(killed).unwrap();
        println!("replacements started after {started:?}, all served after {took:?}");
        assert!(
            !started.is_zero() && started < STARTED_WITHIN,
            "{started:?}"
        );
        assert!(took < REPLACED_WITHIN, "{took:?}");
    });
}

/// A lost zone comes back, and a copy moves home: nobody has to ask for it, and nobody's request notices.
#[test]
fn a_zone_that_died_comes_back_and_the_copies_are_spread_again() {
    let mut first = First::up();
    let store = first.cloud.ready("store").unwrap()[0].node.clone().unwrap();
    let victim = ["a", "b", "c"].into_iter().find(|zone| *zone != store);
    let victim = victim.unwrap();
    let zones = |first: &First| -> Vec<String> {
        let web = first.cloud.ready("web").unwrap();
        let mut zones: Vec<_> = web.into_iter().filter_map(|one| one.zone).collect();
        zones.sort();
        zones
    };
    first.under_load(Duration::from_secs(75), |first| {
        first.cloud.kill_node(victim).unwrap();
        let replaced = || match zones(first) {
            zones if zones.len() == 3 && !zones.iter().any(|zone| zone == victim) => Ok(()),
            zones => Err(format!("web serves in {zones:?}")),
        };
        // How fast that is, the test above says.
        wait::until(
            "the others serve for the dead zone",
            SPREAD_WITHIN,
            replaced,
        );
        first.cloud.say(&["start", victim]).unwrap();
        let home = || match zones(first) {
            zones if zones == ["a", "b", "c"] => Ok(()),
            zones => Err(format!("web serves in {zones:?}")),
        };
        let took = wait::until("a copy in each zone again", SPREAD_WITHIN, home).1;
        println!("spread again after {took:?}");
        first.all_ready();
    });
    let moved = format!("moved to zone {victim}");
    let events = first.cloud.say(&["events"]).unwrap();
    assert_eq!(events.matches(&moved).count(), 1, "{events}");
    assert!(
        events.contains(&format!("had 2 copies, zone {victim} none")),
        "{events}"
    );
}

#[test]
fn an_instance_is_stopped_without_a_word() {
    let mut first = First::up();
    first.under_load(Duration::from_secs(8), |first| {
        for service in ["front", "web"] {
            let instance = first.cloud.ready(service).unwrap().remove(0);
            let tree = tree(instance.pid.unwrap());
            for pid in &tree {
                proc::signal(*pid, Signal::STOP).unwrap();
            }
            let unready = || {
                let all = first.cloud.ps().map_err(|error| error.to_string())?;
                let still = all.iter().any(|one| one.name == instance.name && one.ready);
                (!still)
                    .then_some(())
                    .ok_or("it still counts as ready".to_owned())
            };
            wait::until("a stopped instance is not ready", BACK_WITHIN, unready);
            for pid in &tree {
                // It may have been restarted meanwhile.
                let _ = proc::signal(*pid, Signal::CONT);
            }
        }
        first.all_ready();
    });
}

/// A process and all below it.
fn tree(root: u32) -> Vec<u32> {
    let mut tree = vec![root];
    let everything: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let mut looked_at = 0;
    while looked_at < tree.len() {
        let parent = tree[looked_at];
        tree.extend(
            everything
                .iter()
                .filter(|pid| proc::parent(**pid) == Some(parent)),
        );
        looked_at += 1;
    }
    tree
}

#[test]
fn everything_is_killed_and_comes_up_again_with_its_data() {
    let mut first = First::up();
    first.cloud.kill_everything().unwrap();
    first.cloud.up().unwrap();
    first.all_ready();
    assert_eq!(first.read_value(), "precious");
    first.under_load(Duration::from_secs(2), |_| {});
}

#[test]
fn a_clean_end_and_a_new_begin_keep_the_data() {
    let mut first = First::up();
    first.cloud.down().unwrap();
    first.cloud.up().unwrap();
    first.all_ready();
    assert_eq!(first.read_value(), "precious");
    first.under_load(Duration::from_secs(2), |_| {});
}
