//! Under load, changes that somebody wants lose no request; bad ones stop with the old version serving.

use std::time::Duration;

use crate::first::First;

#[test]
fn scaling_up_and_down() {
    let mut first = First::up();
    first.under_load(Duration::from_secs(12), |first| {
        for count in [5, 2] {
            first
                .cloud
                .say(&["scale", "front", &count.to_string(), "--wait"])
                .unwrap();
            first
                .cloud
                .wait_ready("front", count, Duration::from_secs(10));
        }
        // The file's number does not silently win.
        first.cloud.say(&["apply", "--wait"]).unwrap();
        first.cloud.wait_ready("front", 2, Duration::from_secs(10));
    });
}

#[test]
fn a_rolling_change_and_a_restart() {
    let mut first = First::up();
    first.under_load(Duration::from_secs(20), |first| {
        first.edit(
            "needs: [web]\n",
            "needs: [web]\n    env: { COLOUR: blue }\n",
        );
        let said = first.cloud.say(&["diff"]).unwrap();
        assert!(said.contains("2 instances roll"), "{said}");
        let old = first.cloud.ready("front").unwrap();
        first.cloud.say(&["apply", "--wait"]).unwrap();
        first.cloud.say(&["restart", "front", "--wait"]).unwrap();
        let new = first.cloud.ready("front").unwrap();
        assert!(new.iter().all(|one| one.version == 3), "{new:?}");
        assert!(
            old.iter()
                .all(|one| new.iter().all(|other| other.pid != one.pid))
        );
    });
    let releases = first.cloud.say(&["releases", "front"]).unwrap();
    assert!(releases.contains("env.COLOUR"), "{releases}");
}

#[test]
fn a_broken_version_leaves_the_old_one_serving_and_can_be_rolled_back() {
    let mut first = First::up();
    first.under_load(Duration::from_secs(15), |first| {
        first.edit(
            "needs: [web]\n",
            "needs: [web]\n    rollout: { ready_within: 3s }\n",
        );
        first.edit(
            "[sh, start.sh]",
            "[sh, -c, 'echo no such luck >&2; exit 7']",
        );
        let output = first.cloud.run(&["apply", "--wait"]).unwrap();
        assert_eq!(output.status.code(), Some(1));
        let status = first.cloud.run(&["rollout", "status", "front"]).unwrap();
        assert_eq!(status.status.code(), Some(1));
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(
            said.contains("failed") && said.contains("exit code 7"),
            "{said}"
        );
        first.cloud.wait_ready("front", 2, Duration::from_secs(10));
        assert!(
            first
                .cloud
                .ready("front")
                .unwrap()
                .iter()
                .all(|one| one.version == 1)
        );
        first
            .cloud
            .say(&["rollback", "front", "--to", "1", "--wait"])
            .unwrap();
        // The unchanged file would bring the broken version back: that is said, not done.
        let output = first.cloud.run(&["apply"]).unwrap();
        assert_ne!(output.status.code(), Some(0));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("rollback"), "{said}");
    });
}
