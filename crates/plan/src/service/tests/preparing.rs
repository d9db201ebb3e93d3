//! What runs before a rollout: once, before anything of the release starts.

use super::*;

const COMMAND: &str = "./migrate";

fn prepared(replicas: u32) -> Service {
    let mut spec = service(replicas);
    spec.before_deploy = vec![COMMAND.to_owned()];
    spec
}

impl World {
    /// Rolled out release 1 of it, and then released it anew.
    fn second(spec: Service) -> Self {
        let mut world = Self::new(spec.clone());
        world.run(4);
        assert_eq!(world.phase(), RolloutPhase::Done);
        world.release(spec);
        world
    }

    fn commands(&self) -> Vec<&Placement> {
        let placements = self.group.placements.iter();
        placements
            .filter(|placed| placed.purpose == Purpose::BeforeDeploy)
            .collect()
    }

    /// How many commands were ever placed: none has an event of another kind.
    fn copies_of(&self, number: u64) -> usize {
        let placements = self.group.placements.iter();
        placements
            .filter(|placed| placed.purpose == Purpose::Serve)
            .filter(|placed| placed.release == ReleaseNumber(number))
            .count()
    }

    fn message(&self) -> &str {
        &self.rollout.as_ref().unwrap().reason.message
    }

    /// How often a command was placed.
    fn times(&self) -> usize {
        let ended = self
            .events
            .iter()
            .filter(|event| event.contains("`./migrate` has ended well"));
        ended.count()
    }
}

#[test]
fn a_command_ends_before_anything_of_its_release_starts() {
    for with_volumes in [false, true] {
        for first in [true, false] {
            let spec = match with_volumes {
                true => with_volume(prepared(2)),
                false => prepared(2),
            };
            let mut world = match first {
                true => World::new(spec),
                false => World::second(spec),
            };
            let case = format!("volumes {with_volumes}, first {first}");
            let number = if first { 1 } else { 2 };
            world.prepares_slowly = true;
            world.run(100);
            assert_eq!(world.commands().len(), 1, "{case}");
            assert_eq!(world.copies_of(number), 0, "{case}");
            assert_eq!(world.copies_of(1), if first { 0 } else { 2 }, "{case}");
            assert_eq!(world.phase(), RolloutPhase::Rolling, "{case}");
            assert!(
                world.message().starts_with("`./migrate` runs first"),
                "{case}"
            );
            world.prepares_slowly = false;
            world.run(8);
            assert_eq!(world.phase(), RolloutPhase::Done, "{case}");
            assert_eq!(
                (world.copies_of(number), world.commands().len()),
                (2, 0),
                "{case}"
            );
            let times = world.times();
            assert!(
                !world.step() && world.times() == times,
                "{case}: it is at rest"
            );
        }
    }
}

#[test]
fn a_command_that_fails_starts_nothing_and_leaves_the_old_version_serving() {
    let mut world = World::second(prepared(3));
    world.unprepared.insert(ReleaseNumber(2));
    world.run(100);
    assert_eq!(world.phase(), RolloutPhase::Failed);
    assert_eq!((world.copies_of(1), world.copies_of(2)), (3, 0));
    assert_eq!((world.fewest_ready, world.commands().len()), (3, 0));
    let rollout = world.rollout.clone().unwrap();
    assert_eq!(rollout.reason.code, "before-deploy-failed");
    assert_eq!(
        rollout.reason.message,
        "release 2 was not rolled out: `./migrate` ended with exit code 1; release 1 goes on serving"
    );
    assert_eq!(rollout.reason.detail, ["its last words: no such table"]);
    assert_eq!(rollout.culprit.unwrap().instance.as_str(), "web-5");
    // What is lost meanwhile is still replaced, by the version that serves.
    world.lose("node-a");
    world.run(5);
    assert_eq!((world.copies_of(1), world.copies_of(2)), (3, 0));
    world.release(prepared(3));
    world.run(12);
    assert_eq!((world.phase(), world.copies_of(3)), (RolloutPhase::Done, 3));
}

#[test]
fn a_first_release_whose_command_fails_is_not_tried_on() {
    let mut world = World::new(prepared(2));
    world.unprepared.insert(ReleaseNumber(1));
    world.run(100);
    assert_eq!(world.phase(), RolloutPhase::Failed);
    assert!(world.group.placements.is_empty(), "{:#?}", world.group);
    assert!(
        world
            .message()
            .ends_with("no release was good before it, so nothing serves")
    );
    world.release(prepared(2));
    world.run(5);
    assert_eq!((world.phase(), world.copies_of(2)), (RolloutPhase::Done, 2));
}

#[test]
fn a_command_takes_at_most_its_time() {
    let mut world = World::second(prepared(1));
    world.prepares_slowly = true;
    world.run(595);
    assert_eq!(world.phase(), RolloutPhase::Rolling);
    // A new leader begins the time anew.
    world.forget();
    world.run(595);
    assert_eq!(world.phase(), RolloutPhase::Rolling);
    world.run(10);
    assert_eq!(
        (world.phase(), world.commands().len()),
        (RolloutPhase::Failed, 0)
    );
    assert!(
        world.message().contains("did not end within 600 s"),
        "{}",
        world.message()
    );
}

#[test]
fn only_what_was_applied_is_prepared() {
    // A rollback or a restart of what was rolled out has its command behind it.
    let mut world = World::second(prepared(2));
    world.run(10);
    let times = world.times();
    world.release(prepared(2));
    world.applied = None;
    world.prepares_slowly = true;
    world.run(10);
    assert_eq!((world.phase(), world.copies_of(3)), (RolloutPhase::Done, 2));
    world.release(prepared(2));
    world.applied = Some(ReleaseNumber(2));
    world.run(10);
    assert_eq!((world.phase(), world.copies_of(4)), (RolloutPhase::Done, 2));
    assert_eq!(world.times(), times);
}

#[test]
fn a_restart_does_not_pass_by_a_command_that_failed() {
    let mut world = World::second(prepared(2));
    world
        .unprepared
        .extend([ReleaseNumber(2), ReleaseNumber(3)]);
    world.run(5);
    world.release(prepared(2));
    world.applied = Some(ReleaseNumber(2));
    world.run(5);
    assert_eq!(
        (world.phase(), world.copies_of(3)),
        (RolloutPhase::Failed, 0)
    );
}

#[test]
fn the_command_of_a_newer_release_waits_for_that_of_the_older() {
    let mut world = World::second(prepared(2));
    world.prepares_slowly = true;
    world.run(5);
    let older = world.commands()[0].instance.clone();
    world.release(prepared(2));
    world.run(5);
    assert_eq!(world.commands()[0].instance, older);
    world.prepares_slowly = false;
    world.run(15);
    assert_eq!((world.phase(), world.copies_of(3)), (RolloutPhase::Done, 2));
    assert_eq!(world.fewest_ready, 2);
}

#[test]
fn on_a_lost_node_it_may_have_ended_so_it_runs_again_elsewhere() {
    let mut world = World::second(prepared(2));
    world.prepares_slowly = true;
    world.run(3);
    let before = world.commands()[0].clone();
    world.silent.insert(before.node.clone());
    world.run(20);
    assert_eq!(
        world.commands()[0].instance,
        before.instance,
        "it may run there still"
    );
    world.lose(before.node.as_str());
    world.run(2);
    let after = world.commands()[0].clone();
    assert_ne!((after.node, after.instance), (before.node, before.instance));
    world.prepares_slowly = false;
    world.run(10);
    assert_eq!((world.phase(), world.copies_of(2)), (RolloutPhase::Done, 2));
}

#[test]
fn a_rollout_that_is_aborted_ends_its_command_and_one_that_is_paused_does_not() {
    let mut world = World::second(prepared(2));
    world.prepares_slowly = true;
    world.run(3);
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Paused;
    world.run(700);
    assert_eq!(world.commands().len(), 1);
    world.prepares_slowly = false;
    world.run(3);
    assert_eq!((world.copies_of(1), world.copies_of(2)), (2, 0));
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Rolling;
    world.run(10);
    assert_eq!((world.phase(), world.copies_of(2)), (RolloutPhase::Done, 2));

    let mut world = World::second(prepared(2));
    world.prepares_slowly = true;
    world.run(3);
    world.rollout.as_mut().unwrap().phase = RolloutPhase::Failed;
    world.run(3);
    assert_eq!((world.commands().len(), world.copies_of(1)), (0, 2));
}

#[test]
fn a_service_that_is_deleted_lets_its_command_go() {
    let mut world = World::new(prepared(2));
    world.prepares_slowly = true;
    world.run(3);
    world.target = None;
    world.run(3);
    assert!(world.group.placements.is_empty());
}

#[test]
fn a_mix_of_releases_stays_while_the_next_is_prepared() {
    let mut world = World::second(prepared(3));
    while world.copies_of(2) < 2 {
        world.run(1);
    }
    assert_eq!(world.phase(), RolloutPhase::Rolling);
    world.prepares_slowly = true;
    world.release(prepared(3));
    world.run(20);
    // The one that was not yet ready was one too many.
    assert_eq!((world.copies_of(1), world.copies_of(2)), (2, 1));
    assert_eq!(world.copies_of(3), 0);
    world.prepares_slowly = false;
    world.run(20);
    assert_eq!((world.phase(), world.copies_of(3)), (RolloutPhase::Done, 3));
    assert_eq!(world.fewest_ready, 3);
}

#[test]
fn what_was_rolled_out_before_this_was_known_of_rollouts_needs_nothing_run() {
    let mut world = World::second(prepared(2));
    world.run(10);
    world.rollout.as_mut().unwrap().prepared = None;
    world.prepares_slowly = true;
    world.release(prepared(2));
    world.applied = Some(ReleaseNumber(2));
    world.run(10);
    assert_eq!((world.phase(), world.copies_of(3)), (RolloutPhase::Done, 2));
}
