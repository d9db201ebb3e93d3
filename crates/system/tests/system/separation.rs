//! Server and nodes share a connection and nothing else; an agent may be restarted at any time.

use std::time::Duration;

use rustix::process::Signal;
use system::{proc, wait};

use crate::first::{BACK_WITHIN, First};

#[test]
fn a_restarted_agent_adopts_all_and_knows_what_died_meanwhile() {
    let first = First::up();
    let before = first.cloud.ps().unwrap();
    let node = before
        .iter()
        .find(|one| one.service == "front")
        .unwrap()
        .node
        .clone()
        .unwrap();
    let agent = first
        .cloud
        .nodes()
        .unwrap()
        .into_iter()
        .find(|one| one.name == node)
        .unwrap();
    proc::signal(agent.pid.unwrap(), Signal::KILL).unwrap();
    let victim = before
        .iter()
        .find(|one| one.service == "front" && one.node.as_ref() == Some(&node))
        .unwrap();
    proc::signal(victim.pid.unwrap(), Signal::KILL).unwrap();
    first.cloud.say(&["start", &node]).unwrap();
    wait::until("how it died is told", BACK_WITHIN, || {
        let said = first
            .cloud
            .say(&["explain", &victim.name])
            .map_err(|error| error.to_string())?;
        said.contains("signal 9").then_some(()).ok_or(said)
    });
    first.all_ready();
    let after = first.cloud.ps().unwrap();
    for old in before
        .iter()
        .filter(|one| one.node.as_ref() == Some(&node) && one.name != victim.name)
    {
        let new = after.iter().find(|one| one.name == old.name);
        assert_eq!(
            new.and_then(|one| one.pid),
            old.pid,
            "{} was not adopted",
            old.name
        );
    }
}

#[test]
fn ps_and_logs_answer_on_the_node_with_the_server_gone() {
    let first = First::up();
    let supervisor = first.cloud.supervisor().unwrap();
    proc::signal(supervisor, Signal::STOP).unwrap();
    for server in first.cloud.processes_with(&["server", "--api"]) {
        proc::signal(server, Signal::KILL).unwrap();
    }
    assert_eq!(first.cloud.ready("web").unwrap().len(), 3);
    let logs = first.cloud.say(&["logs", "web", "--tail", "5"]).unwrap();
    assert!(logs.contains("web-"), "{logs}");
    let echo = first
        .cloud
        .say(&["exec", "web", "--", "printenv", "MAINLAND_SERVICE"])
        .unwrap();
    assert_eq!(echo.trim(), "web");
    proc::signal(supervisor, Signal::CONT).unwrap();
}

/// A shell, a unit or a CI runner may have open what only root may read, and not know that it passes it on.
#[test]
fn what_the_caller_of_up_has_open_is_open_in_no_instance() {
    let file = tempfile::NamedTempFile::new().unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let first = First::up();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC).unwrap();
    first.all_ready();
    for instance in first.cloud.ps().unwrap() {
        let open = format!("/proc/{}/fd", instance.pid.unwrap());
        for descriptor in std::fs::read_dir(open).unwrap().flatten() {
            let leads = std::fs::read_link(descriptor.path()).unwrap_or_default();
            assert_ne!(leads, file.path(), "{}", instance.name);
        }
    }
}

#[test]
fn no_process_opens_what_belongs_to_another() {
    let first = First::up();
    first.all_ready();
    let data = first.cloud.directory.path().join("data");
    let homes: Vec<_> = ["server", "nodes/a", "nodes/b", "nodes/c", "nodes/edge"]
        .map(|home| data.join(home))
        .into();
    for pid in first.cloud.processes() {
        let words = proc::command_line(pid).join(" ");
        let Some(own) = homes
            .iter()
            .find(|home| words.contains(&home.display().to_string()))
        else {
            continue;
        };
        for open in open_files(pid) {
            let foreign = homes
                .iter()
                .any(|home| home != own && open.starts_with(home));
            assert!(
                !foreign && !open.starts_with(&first.folder),
                "`{words}` has {} open",
                open.display()
            );
        }
    }
}

fn open_files(pid: u32) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let links = entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .chain(std::fs::read_link(format!("/proc/{pid}/cwd")))
        .collect()
}

#[test]
fn an_instance_with_a_volume_waits_for_its_node() {
    let first = First::up();
    let store = first.cloud.ready("store").unwrap().remove(0);
    let node = store.node.unwrap();
    first.cloud.kill_node(&node).unwrap();
    let pending = || {
        let all = first.cloud.ps().map_err(|error| error.to_string())?;
        let state = all
            .iter()
            .find(|one| one.service == "store")
            .map(|one| one.state.clone());
        match state.as_deref() {
            Some("pending") => Ok(()),
            other => Err(format!("the store is {other:?}")),
        }
    };
    wait::until("a volume's instance is pending", BACK_WITHIN, pending);
    let said = first.cloud.say(&["explain", "store"]).unwrap();
    assert!(
        said.contains(&format!("volume on lost node {node}")),
        "{said}"
    );
    first.cloud.say(&["start", &node]).unwrap();
    first.cloud.wait_ready("store", 1, Duration::from_secs(20));
    assert_eq!(first.read_value(), "precious");
}

#[test]
fn reasons_are_told_for_the_placed_the_restarted_and_the_lost() {
    let first = First::up();
    let instance = first.cloud.ready("front").unwrap().remove(0);
    let said = first.cloud.say(&["explain", &instance.name]).unwrap();
    let zone = instance.zone.as_deref().unwrap();
    let first_there = said.contains(&format!("zone {zone} had no copy"));
    let fewest_there = said.contains(&format!("zone {zone} had the fewest copies"));
    assert!(first_there || fewest_there, "{said}");
    proc::signal(instance.pid.unwrap(), Signal::KILL).unwrap();
    wait::until("the restart is explained", BACK_WITHIN, || {
        let said = first
            .cloud
            .say(&["explain", &instance.name])
            .map_err(|error| error.to_string())?;
        (said.contains("signal 9") || said.contains("SIGKILL"))
            .then_some(())
            .ok_or(said)
    });
    let node = instance.node.unwrap();
    first.cloud.kill_node(&node).unwrap();
    wait::until("the loss is explained", BACK_WITHIN, || {
        let said = first
            .cloud
            .say(&["explain", &format!("node/{node}")])
            .map_err(|error| error.to_string())?;
        said.contains("lost").then_some(()).ok_or(said)
    });
}
