//! What is said of processes that end, are stopped or were removed.

use super::layout::EDGE;
use super::supervisor::SERVER;

/// Who was removed runs nothing, and what is to be done about it.
pub fn told_removal(name: &str, directory: &std::path::Path) -> String {
    format!(
        "zone {name} is missing: its node {name} was removed from this cloud and runs nothing; `mainland start {name} --join` lets it in again with its volumes, and without its directory {} `mainland up` makes a new, empty one",
        directory.display()
    )
}

/// What it means that a process was stopped.
pub fn told_stopped(name: &str, pid: u32) -> String {
    match name {
        EDGE => {
            format!("{name} (process {pid}) was stopped by a signal; another one takes its place")
        }
        SERVER => format!(
            "the server (process {pid}) was stopped by a signal: nothing is decided and the API does not answer until `kill -CONT {pid}`"
        ),
        _ => format!(
            "the agent of node {name} (process {pid}) was stopped by a signal: the node counts as lost until `kill -CONT {pid}`"
        ),
    }
}

/// What an agent's death leaves: nothing, or all that it looked after.
pub fn told_death(name: &str, instances: Option<usize>) -> String {
    let left = match instances {
        None => return format!("node {name} died, and starts again"),
        Some(0) => "its proxy runs".to_owned(),
        Some(1) => "its proxy and 1 instance run".to_owned(),
        Some(many) => format!("its proxy and {many} instances run"),
    };
    format!("the agent of node {name} died; {left} on, and it starts again")
}

/// Of what never lives for long.
pub fn told_crash_loop(name: &str, log: &std::path::Path) -> String {
    format!(
        "{name} ends again and again, and goes on being started, every 5 s at most; {} says why",
        log.display()
    )
}

/// What of a node that somebody wants dead.
pub fn told_killed(name: &str) -> String {
    format!(
        "node {name} was killed and stays lost, as a machine without power would; `mainland start {name}` brings it back"
    )
}

/// Of one that ended at its first start.
pub fn told_never_joined(name: &str, log: &std::path::Path) -> String {
    format!(
        "node {name} ended before it had joined; {} says why, and `mainland up` begins it again",
        log.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stopped_is_said_with_what_lets_it_go_on() {
        for (name, expected) in [
            (EDGE, "another one takes its place"),
            (SERVER, "the API does not answer until `kill -CONT 7`"),
            ("a", "node a (process 7) was stopped by a signal"),
        ] {
            let told = told_stopped(name, 7);
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn what_runs_on_without_its_agent_is_said() {
        for (instances, expected) in [
            (None, "node c died, and"),
            (Some(0), "its proxy runs on"),
            (Some(1), "its proxy and 1 instance run on"),
            (Some(6), "its proxy and 6 instances run on"),
        ] {
            let told = told_death("c", instances);
            assert!(told.contains(expected), "{told}");
            assert!(told.contains("starts again"), "{told}");
        }
        assert!(told_killed("c").contains("`mainland start c`"));
    }
}
