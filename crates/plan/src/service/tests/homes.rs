//! Where volumes have their home.

use super::*;

fn home(world: &World) -> Option<String> {
    world.group.homes.get(&0).map(ToString::to_string)
}

fn place_of(world: &World) -> String {
    world.group.placements[0].node.to_string()
}

#[test]
fn a_home_is_where_a_copy_was_first_ready() {
    let mut world = World::new(with_volume(service(1)));
    world.step();
    assert_eq!((world.group.placements.len(), home(&world)), (1, None));
    world.run(2);
    assert_eq!(home(&world), Some(place_of(&world)));
}

#[test]
fn what_never_was_ready_is_tried_elsewhere_and_then_stays() {
    // It can't be started on two of three nodes; or it ends again and again there.
    for loops in [false, true] {
        let mut world = World::new(with_volume(service(1)));
        world.step();
        let first = place_of(&world);
        let good = ["node-a", "node-b", "node-c"].map(str::to_owned);
        let good = good.into_iter().find(|name| *name != first).unwrap();
        for name in world.nodes.keys().filter(|name| name.as_str() != good) {
            match loops {
                false => drop(world.failing.insert(name.clone())),
                true => drop(world.looping_on.insert(name.clone())),
            }
        }
        world.run(30);
        assert_eq!(
            (place_of(&world), home(&world)),
            (good.clone(), Some(good.clone()))
        );
        assert_eq!(world.phase(), RolloutPhase::Done);
        // From now on it waits there, whatever happens.
        world.failing.insert(node_name(&good));
        world.reports.clear();
        world.run(60);
        assert_eq!(place_of(&world), good);
        world.lose(&good);
        world.run(60);
        assert_eq!((place_of(&world), world.ready()), (good.clone(), 0));
        assert_eq!(world.group.pending[0].reason.code, "volume-on-lost-node");
    }
}

/// It has no lease, so that it may run on the node that is not heard.
#[test]
fn a_copy_that_never_was_ready_waits_for_its_lost_node() {
    let mut world = World::new(with_volume(service(1)));
    world.step();
    let first = place_of(&world);
    world.lose(&first);
    world.run(4);
    assert_eq!((world.ready(), place_of(&world)), (0, first));
}

/// What was told ready before the node fell silent counts, though it is not heard now.
#[test]
fn a_copy_that_was_ready_when_its_node_was_lost_waits_for_it() {
    let mut world = World::new(with_volume(service(1)));
    world.step();
    world.act();
    world.act();
    let first = place_of(&world);
    world.lose(&first);
    world.run(10);
    assert_eq!(
        (place_of(&world), home(&world)),
        (first.clone(), Some(first))
    );
}

/// It was ready for less than the time between two decisions, or while the leader was another: its node says so ever after.
#[test]
fn a_home_is_bound_by_what_was_ready_and_is_not_any_more() {
    let mut world = World::new(with_volume(service(1)));
    world.step();
    let first = place_of(&world);
    world.looping_on.insert(node_name(&first));
    world.act();
    for report in world.reports.values_mut() {
        report.was_ready = true;
    }
    world.run(60);
    assert_eq!(
        (place_of(&world), home(&world)),
        (first.clone(), Some(first))
    );
}

#[test]
fn a_home_is_bound_under_a_brake_and_nothing_else_is_changed() {
    let mut world = World::new(with_volume(service(1)));
    world.step();
    let (first, placements) = (place_of(&world), world.group.placements.clone());
    world.hold = Some(Reason::new("brake", "half of all nodes are lost"));
    world.run(2);
    assert_eq!(home(&world), Some(first.clone()));
    assert_eq!(world.group.placements, placements);
    // It ends there before the brake is off.
    world.looping_on.insert(node_name(&first));
    for report in world.reports.values_mut() {
        report.ready = false;
        report.was_ready = false;
    }
    world.hold = None;
    world.run(60);
    assert_eq!(place_of(&world), first);
}

/// A release without volumes gives the copy up that waits on a lost node: its volumes are not forgotten with it.
#[test]
fn what_is_given_up_for_a_release_without_volumes_has_its_home_where_it_was() {
    let mut world = World::new(with_volume(service(1)));
    world.step();
    let first = place_of(&world);
    world.lose(&first);
    world.run(2);
    world.release(service(1));
    world.run(30);
    assert_eq!((world.ready(), home(&world)), (1, Some(first.clone())));
    world.release(with_volume(service(1)));
    world.run(60);
    assert_eq!(home(&world), Some(first));
}

#[test]
fn nothing_with_volumes_begins_where_it_may_not() {
    let why = Reason::new(crate::place::LACKS, "it has no PostgreSQL 15");
    let mut world = World::new(with_volume(service(1)));
    let names = ["node-a", "node-b", "node-c"].map(node_name);
    world.barred = names[..2]
        .iter()
        .map(|name| (name.clone(), why.clone()))
        .collect();
    world.run(3);
    assert_eq!(place_of(&world), "node-c");

    let mut world = World::new(with_volume(service(1)));
    world.barred = names
        .iter()
        .map(|name| (name.clone(), why.clone()))
        .collect();
    world.run(3);
    let pending = &world.group.pending[0].reason;
    assert_eq!(pending.code, "lacks-program");
    assert!(
        pending
            .message
            .starts_with("no node has PostgreSQL 15: install it on one"),
        "{pending}"
    );
    world.barred.clear();
    world.run(3);
    assert_eq!(world.ready(), 1);
    // Without volumes nothing is barred.
    let mut world = World::new(service(3));
    world.barred = names
        .iter()
        .map(|name| (name.clone(), why.clone()))
        .collect();
    world.run(3);
    assert_eq!(world.ready(), 3);
}
