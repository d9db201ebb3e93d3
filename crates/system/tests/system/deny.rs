//! Who has not declared a need is refused, with the need named.

use crate::first::First;

/// Asks for an address from within an instance; status and body.
fn ask(first: &First, instance: &str, url: &str) -> String {
    let output = first.cloud.run(&[
        "exec",
        instance,
        "--",
        "curl",
        "-sS",
        "--max-time",
        "5",
        "-w",
        " %{http_code}",
        url,
    ]);
    let output = output.unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn environment(first: &First, service: &str, name: &str) -> String {
    first
        .cloud
        .say(&["exec", service, "--", "printenv", name])
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn an_undeclared_call_is_refused_by_the_door_and_by_the_port() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: calls are labelled, not enforced");
        return;
    }
    let first = First::up();
    // `front` needs `web`; `store` needs nothing. The address that `front` has for `web` is of no use to `store`.
    let front = first.cloud.ready("front").unwrap().remove(0);
    let door = environment(&first, &front.name, "WEB_URL");
    assert!(ask(&first, &front.name, &format!("{door}/healthz")).ends_with("200"));
    let refused = ask(&first, "store", &format!("{door}/healthz"));
    assert!(
        refused.contains("403") && refused.contains("needs: [web]"),
        "{refused}"
    );
    // Whoever asks later is told who was refused what.
    first.explained("web", &["refused", "needs: [web]"]);
    // Neither is the port of the instance itself.
    let web = first.cloud.ready("web").unwrap().remove(0).address.unwrap();
    let refused = ask(&first, "store", &format!("http://{web}/healthz"));
    assert!(
        !refused.contains("ok") && refused.contains("needs: [web]"),
        "{refused}"
    );
}
