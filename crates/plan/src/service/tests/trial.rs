//! Copies that answer, and end soon after.

use super::*;

/// What a manifest that says nothing of it has.
fn watched(replicas: u32) -> Service {
    let mut spec = service(replicas);
    spec.rollout.ready_for = model::compute::RolloutOptions::default_ready_for();
    spec
}

impl World {
    /// Release 1 serves; release 2 is on its way, and each of its copies ends so many seconds after it answered.
    fn with_second(spec: Service, ends_after: u64) -> Self {
        let mut world = Self::new(spec.clone());
        world.run(3);
        assert_eq!(world.phase(), RolloutPhase::Done);
        world.short_lived.insert(ReleaseNumber(2), ends_after);
        world.release(spec);
        world
    }

    fn wanted_of(&self, number: u64) -> usize {
        let placements = self.group.placements.iter();
        placements
            .filter(|placed| placed.wanted == Wanted::Run)
            .filter(|placed| placed.release == ReleaseNumber(number))
            .count()
    }

    /// Runs until the rollout is judged, and looks each second whether anything old went.
    fn until_judged(&mut self, within: u64) -> Option<u64> {
        let old = self.replicas as usize;
        for second in 1..=within {
            self.run(1);
            if self.phase() == RolloutPhase::Failed {
                return Some(second);
            }
            assert_eq!(self.wanted_of(1), old, "after {second} s");
            assert_eq!(self.phase(), RolloutPhase::Rolling, "after {second} s");
        }
        None
    }
}

#[test]
fn no_old_copy_goes_for_a_new_one_that_ends_soon() {
    for replicas in [1, 2, 3] {
        for surge in [1, 3] {
            for ends_after in 0..=5 {
                let mut spec = watched(replicas);
                spec.rollout.surge = surge;
                let mut world = World::with_second(spec, ends_after);
                let judged = world.until_judged(60);
                assert!(judged.is_some(), "{replicas} {surge} {ends_after}");
                world.run(5);
                assert_eq!(
                    (world.wanted_of(1), world.of_release(2)),
                    (replicas as usize, 0)
                );
                let rollout = world.rollout.as_ref().unwrap();
                let says = &rollout.reason.message;
                assert!(says.contains("ends again and again"), "{says}");
                assert!(rollout.culprit.is_some());
            }
        }
    }
}

#[test]
fn a_release_that_stays_up_is_waited_for_once() {
    for (replicas, most) in [(1, 10), (3, 14), (10, 35)] {
        let mut world = World::with_second(watched(replicas), u64::MAX);
        let mut seconds = 0;
        while seconds == 0 || world.phase() != RolloutPhase::Done {
            world.run(1);
            seconds += 1;
            assert!(seconds <= most, "{replicas}: {:?}", world.rollout);
        }
        assert!(seconds > 6, "{replicas}: {seconds}");
        assert_eq!(world.fewest_ready, replicas as usize);
    }
}

/// A copy that somebody kills costs time, and the rollout goes on.
#[test]
fn one_end_is_no_verdict() {
    let mut world = World::with_second(watched(3), u64::MAX);
    world.run(5);
    let new = |world: &World| {
        let mut placements = world.group.placements.iter();
        let new = placements.find(|placed| placed.release == ReleaseNumber(2));
        new.unwrap().instance.clone()
    };
    let killed = new(&world);
    world.reports.get_mut(&killed).unwrap().restarts += 1;
    world.run(4);
    assert_eq!(world.wanted_of(1), 3);
    world.run(12);
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 3)
    );
}

#[test]
fn a_first_release_is_watched_for_a_second() {
    let mut world = World::new(watched(2));
    world.run(2);
    assert_eq!((world.phase(), world.ready()), (RolloutPhase::Rolling, 2));
    world.run(1);
    assert_eq!(world.phase(), RolloutPhase::Done);
    let mut world = World::new(watched(2));
    world.short_lived.insert(ReleaseNumber(1), 0);
    world.run(8);
    assert_eq!(world.phase(), RolloutPhase::Failed);
    let says = &world.rollout.as_ref().unwrap().reason.message;
    assert!(says.contains("ends again and again"), "{says}");
}

#[test]
fn what_is_returned_to_has_proved_itself() {
    let mut world = World::new(watched(3));
    world.run(3);
    world.release(watched(3));
    world.applied = None;
    world.run(10);
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 3)
    );
}

#[test]
fn in_place_too_the_next_goes_when_the_first_has_proved_itself() {
    let mut world = World::with_second(with_volume(watched(3)), 4);
    for _ in 0..40 {
        world.run(1);
        let gone = 3 - world.wanted_of(1).min(3);
        assert!(gone <= 1, "{:#?}", world.group);
    }
    world.run(5);
    assert_eq!((world.phase(), world.ready()), (RolloutPhase::Failed, 3));
    assert_eq!(world.of_release(2), 0);
}

#[test]
fn a_new_leader_watches_anew_and_comes_to_an_end() {
    let mut world = World::with_second(watched(2), u64::MAX);
    for _ in 0..4 {
        world.run(4);
        world.forget();
        assert_eq!(world.wanted_of(1), 2);
    }
    world.run(15);
    assert_eq!(world.phase(), RolloutPhase::Done);
}

#[test]
fn what_cannot_be_started_is_told_once_another_node_was_tried() {
    // The first release and a later one; on three nodes, and on one.
    for first in [true, false] {
        for nodes in [3, 1] {
            for replicas in [1, 3] {
                let spec = watched(replicas);
                let nodes: Vec<_> = three_zones().into_iter().take(nodes).collect();
                let mut world = World::on(nodes.clone(), spec.clone());
                if !first {
                    world.run(3);
                    world.release(spec);
                }
                let newest = world.target.unwrap();
                world.unstartable.insert(newest);
                world.run(8);
                assert_eq!(
                    world.phase(),
                    RolloutPhase::Failed,
                    "{first} {replicas} {}",
                    nodes.len()
                );
                let says = &world.rollout.as_ref().unwrap().reason;
                assert!(says.message.contains("could not be started"), "{says}");
            }
        }
    }
    // One node of three can't: that is its own fault.
    let mut world = World::new(watched(1));
    world.failing.insert(node_name("node-a"));
    world.run(10);
    assert_eq!(world.phase(), RolloutPhase::Done);
    assert!(
        !world
            .events
            .iter()
            .any(|event| event.contains("judged bad"))
    );
}

#[test]
fn a_later_release_is_not_called_the_first_where_none_was_good() {
    let nodes: Vec<_> = three_zones().into_iter().take(1).collect();
    let mut world = World::on(nodes, watched(1));
    for number in [1, 2] {
        if number > 1 {
            world.release(watched(1));
        }
        let newest = world.target.unwrap();
        world.unstartable.insert(newest);
        world.run(8);
        assert_eq!(world.phase(), RolloutPhase::Failed, "{number}");
        let says = &world.rollout.as_ref().unwrap().reason.message;
        let head = format!("release {number} was judged bad: ");
        assert!(says.starts_with(&head), "{says}");
        assert!(
            says.ends_with("no release was good before it, so it is tried on"),
            "{says}"
        );
    }
}

#[test]
fn a_rollout_whose_copies_all_wait_for_a_lost_node_is_not_done_nor_bad() {
    let mut world = World::new(with_volume(watched(1)));
    world.run(3);
    let home = world.group.homes[&0].clone();
    world.lose(home.as_str());
    world.run(2);
    world.release(with_volume(watched(1)));
    world.run(200);
    assert_eq!(world.phase(), RolloutPhase::Rolling);
    world.stand(home.as_str(), Standing::Present);
    world.run(20);
    assert_eq!(
        (world.phase(), world.of_release(2)),
        (RolloutPhase::Done, 1)
    );
}

#[test]
fn a_rollout_says_how_many_wait_for_a_lost_node() {
    let mut world = World::new(with_volume(watched(3)));
    world.run(4);
    let home = world.group.homes[&0].clone();
    world.lose(home.as_str());
    world.run(2);
    world.release(with_volume(watched(3)));
    world.run(40);
    assert_eq!(world.phase(), RolloutPhase::Done);
    let says = &world.rollout.as_ref().unwrap().reason.message;
    assert_eq!(
        says,
        "release 2 serves with 2 ready; 1 waits for its lost node"
    );
}
