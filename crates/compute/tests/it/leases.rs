//! `on_partition: stop`: the shim ends what nobody renews, with the agent dead.

use compute::instance::{read_exit, read_record};
use compute::lease::Moment;
use compute::runtime::{InstanceSpec, Runtime as _};
use jiff::Timestamp;
use model::compute::{Exit, ExitHow, OnPartition};
use model::timing::{EMPTY_AFTER, TERMINATE_AFTER};

use rustix::process::Signal;

use crate::world::{World, is_alive, signal, wait_until};

#[test]
fn without_renewal_it_is_gone_in_time_even_with_the_agent_dead() {
    let mut world = World::new();
    let script = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; echo daemon $$; while :; do sleep 0.1; done' &); while :; do sleep 0.02; done";
    let mut spec = world.shell("a", script);
    spec.on_partition = OnPartition::Stop;
    spec.lease_sent_at = Moment::now();
    let sent_at = Timestamp::now();
    let main = world.start(&spec);
    let daemon: u32 = world.line("a", "o daemon ").parse().expect("a pid");
    world.kill_agent();

    wait_until("both to be gone", || !is_alive(main) && !is_alive(daemon));
    assert_lease_lost_in_time(&spec, sent_at);
    // The daemon ignored the first.
    let output = world.output("a");
    for line in [
        "s SIGTERM: its lease was not renewed for 2.5 s",
        "s SIGKILL",
        "s stopped: its lease was lost",
    ] {
        assert!(
            output.lines().any(|found| found == line),
            "{line} in {output}"
        );
    }
}

#[test]
fn renewed_it_goes_on_and_without_a_lease_it_needs_none() {
    let mut world = World::new();
    let mut renewed = world.spec("renewed", &["sleep", "1000"]);
    renewed.on_partition = OnPartition::Stop;
    // As if the last renewal before the start had been sent two seconds ago.
    let (begun, begun_at) = (Moment::now(), Timestamp::now());
    renewed.lease_sent_at = Moment(begun.0 - 2_000_000_000);
    world.start(&renewed);
    world.runtime().renew(begun);
    let kept = world.spec("kept", &["sleep", "1000"]);
    let mut kept_spec = kept.clone();
    kept_spec.lease_sent_at = Moment(0);
    let kept_pid = world.start(&kept_spec);
    let exit = world.exit();
    assert_eq!(exit.how, ExitHow::LeaseLost);
    assert_in_time(&exit, begun_at);
    assert!(is_alive(kept_pid));
    assert!(read_record(&kept.directory).is_some());
}

/// The threads of an agent may all wait for a disk: what it is told of renewals reaches the shims.
#[test]
fn renewals_reach_a_shim_whatever_the_agent_s_other_tasks_wait_for() {
    let world = World::new();
    let mut spec = world.spec("a", &["sleep", "1000"]);
    spec.on_partition = OnPartition::Stop;
    spec.lease_sent_at = Moment::now();
    let pid = world.start(&spec);
    // As heartbeats do; no task of the agent's own runtime has a turn in between.
    let until = Moment::now().after(EMPTY_AFTER);
    wait_until("a lease without renewal to be over", || {
        world.runtime().renew(Moment::now());
        Moment::now() > until
    });
    assert!(is_alive(pid), "{}", world.output("a"));
}

#[test]
fn a_frozen_workload_and_no_cgroup_are_no_excuse() {
    let mut world = World::without_cgroups();
    let mut spec = world.shell("a", "(setsid sleep 1000 &); exec sleep 1000");
    spec.on_partition = OnPartition::Stop;
    spec.lease_sent_at = Moment::now();
    let sent_at = Timestamp::now();
    let main = world.start(&spec);
    signal(main, Signal::STOP);
    world.kill_agent();
    wait_until("it to be gone", || !is_alive(main));
    assert_lease_lost_in_time(&spec, sent_at);
}

/// By what the shim wrote down: when this test gets to look says more about the machine's load than about the shim.
fn assert_lease_lost_in_time(spec: &InstanceSpec, sent_at: Timestamp) {
    wait_until("the exit", || read_exit(&spec.directory).is_some());
    let exit = read_exit(&spec.directory).expect("it is there");
    assert_eq!(exit.how, ExitHow::LeaseLost);
    assert_in_time(&exit, sent_at);
}

fn assert_in_time(exit: &Exit, sent_at: Timestamp) {
    let ended = exit.at.duration_since(sent_at).unsigned_abs();
    assert!(ended > TERMINATE_AFTER && ended < EMPTY_AFTER, "{ended:?}");
}
