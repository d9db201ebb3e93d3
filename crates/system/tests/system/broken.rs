//! What a machine or a person can do wrong: a clear message, nothing lost, the rest runs.

use std::net::TcpListener;
use std::time::Duration;

use system::wait;

use crate::first::First;

fn up_fails(first: &First, words: &[&str]) -> String {
    let output = first.cloud.run(words).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_second_up_says_who_is_there() {
    let first = First::up();
    let said = up_fails(&first, &["up"]);
    assert!(
        said.contains("another `mainland up`") && said.contains("mainland apply"),
        "{said}"
    );
    first.all_ready();
}

#[test]
fn a_taken_port_is_named() {
    let first = First::prepared(1);
    let _taken = TcpListener::bind(first.cloud.api).unwrap();
    let said = up_fails(&first, &["up"]);
    assert!(
        said.contains(&first.cloud.api.to_string()) && said.contains("taken"),
        "{said}"
    );
    assert!(first.cloud.processes().is_empty());
}

#[test]
fn an_unwritable_directory_is_named() {
    let first = First::prepared(1);
    std::fs::write(
        first.cloud.directory.path().join("data"),
        "a file, not a folder",
    )
    .unwrap();
    let said = up_fails(&first, &["up"]);
    assert!(
        said.contains("data") && said.contains("can't be made"),
        "{said}"
    );
}

#[test]
fn a_missing_executable_and_a_crash_loop_are_explained_while_the_rest_runs() {
    let mut first = First::prepared(1);
    first.edit("[sh, start.sh]", "[nowhere-to-be-found]");
    first.edit("routes:", "  loop:\n    run: [sh, -c, 'exit 3']\n\nroutes:");
    // It never becomes ready as a whole: go on as soon as the good part does.
    let binary = first.cloud.binary.clone();
    let mut up = std::process::Command::new(binary)
        .args(["up", "--data-dir"])
        .arg(first.cloud.directory.path().join("data"))
        .args([
            "--api",
            &first.cloud.api.to_string(),
            "--gateway",
            &first.cloud.gateway.to_string(),
        ])
        .current_dir(&first.folder)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let says = |subject: &str, words: &[&str]| {
        let said = first
            .cloud
            .say(&["explain", subject])
            .map_err(|error| error.to_string())?;
        words
            .iter()
            .all(|word| said.contains(word))
            .then_some(())
            .ok_or(said)
    };
    let within = Duration::from_secs(40);
    wait::until("the missing executable is named", within, || {
        says("front-1", &["nowhere-to-be-found"])
    });
    wait::until("the crash loop is named", within, || {
        says("loop-1", &["crash loop", "exit code 3"])
    });
    first.cloud.wait_ready("web", 3, within);
    first.cloud.down().unwrap();
    up.wait().unwrap();
}
