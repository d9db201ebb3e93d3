use super::*;
use crate::testing::{id, node, node_name, service, three_zones, with_volume};
use model::compute::{Pending, Role, Spread};
use model::control::Reason;
use model::ids::Epoch;

fn placement(number: u64, node: &str) -> Placement {
    Placement {
        instance: InstanceName::new(format!("web-{number}")).unwrap(),
        release: ReleaseNumber(1),
        node: node_name(node),
        slot: None,
        role: Role::Member,
        purpose: model::compute::Purpose::Serve,
        epoch: Epoch(number),
        wanted: Wanted::Run,
        replaces: None,
        reason: Reason::new("placed", "placed"),
        at: jiff::Timestamp::UNIX_EPOCH,
        placed_at: None,
    }
}

/// Copies 1, 2, 3 on a, b, c.
fn sound() -> PlacementGroup {
    PlacementGroup {
        placements: vec![
            placement(1, "node-a"),
            placement(2, "node-b"),
            placement(3, "node-c"),
        ],
        pending: Vec::new(),
        next_instance: 4,
        next_epoch: Epoch(4),
        ..PlacementGroup::default()
    }
}

/// The same with volumes: slots 0, 1, 2.
fn sound_with_volumes() -> PlacementGroup {
    let mut group = sound();
    for (slot, placement) in (0..).zip(&mut group.placements) {
        placement.slot = Some(slot);
        group.homes.insert(slot, placement.node.clone());
    }
    group
}

fn nodes() -> Nodes {
    three_zones()
        .into_iter()
        .map(|node| (node.name.clone(), node))
        .collect()
}

/// The names of the violations' kinds.
fn kinds(violations: &[Violation]) -> Vec<String> {
    violations
        .iter()
        .map(|violation| {
            format!("{violation:?}")
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect()
}

fn lint(nodes: &Nodes, spec: &Service, group: &PlacementGroup) -> Vec<String> {
    let releases = BTreeMap::from([(ReleaseNumber(1), spec)]);
    kinds(&check(
        nodes,
        &[Plan {
            id: &id("web"),
            group,
            releases: &releases,
        }],
    ))
}

fn lint_step(
    nodes: &Nodes,
    spec: &Service,
    before: &PlacementGroup,
    after: &PlacementGroup,
) -> Vec<String> {
    let releases = BTreeMap::from([(ReleaseNumber(1), spec)]);
    kinds(&check_step(
        nodes,
        before,
        &Plan {
            id: &id("web"),
            group: after,
            releases: &releases,
        },
    ))
}

#[test]
fn a_sound_plan_is_passed() {
    assert_eq!(lint(&nodes(), &service(3), &sound()), [""; 0]);
    assert_eq!(
        lint(&nodes(), &with_volume(service(3)), &sound_with_volumes()),
        [""; 0]
    );
    let mut moving = sound();
    replaces(&mut moving, 2, "web-1");
    assert_eq!(lint(&nodes(), &service(3), &moving), [""; 0]);
    assert_eq!(
        lint_step(&nodes(), &service(3), &sound(), &sound()),
        [""; 0]
    );
}

fn replaces(group: &mut PlacementGroup, new: usize, old: &str) {
    group.placements[new].replaces = Some(InstanceName::new(old).unwrap());
}

type Plant = fn(&mut PlacementGroup, &mut Nodes);

#[test]
fn every_bug_planted_in_a_plan_is_caught() {
    let table: [(&str, Plant); 13] = [
        ("SameInstance", |group, _| {
            group.placements[1].instance = group.placements[0].instance.clone()
        }),
        ("SameEpoch", |group, _| group.placements[1].epoch = Epoch(1)),
        ("EpochNotBelowNext", |group, _| group.next_epoch = Epoch(3)),
        ("NumberNotBelowNext", |group, _| group.next_instance = 3),
        ("UnknownRelease", |group, _| {
            group.placements[0].release = ReleaseNumber(9)
        }),
        ("NowhereToRun", |group, _| {
            group.placements[0].node = node_name("nowhere")
        }),
        ("NowhereToRun", |_, nodes| {
            nodes.get_mut(&node_name("node-a")).unwrap().standing = Standing::Lost
        }),
        ("NowhereToRun", |_, nodes| {
            nodes.get_mut(&node_name("node-a")).unwrap().role = NodeRole::Edge
        }),
        ("ReplacesNobody", |group, _| replaces(group, 2, "web-9")),
        ("ReplacesNobody", |group, _| replaces(group, 2, "web-3")),
        ("ReplacesNobody", |group, _| {
            replaces(group, 2, "web-1");
            group.placements[0].wanted = Wanted::Leave;
        }),
        ("ReplacesNobody", |group, _| {
            replaces(group, 2, "web-1");
            group.placements[2].wanted = Wanted::Leave;
        }),
        ("TwoMoves", |group, _| {
            replaces(group, 1, "web-1");
            replaces(group, 2, "web-1");
        }),
    ];
    for (expect, plant) in table {
        let (mut group, mut nodes) = (sound(), nodes());
        plant(&mut group, &mut nodes);
        assert_eq!(lint(&nodes, &service(3), &group), [expect]);
    }
    let mut heavy = service(3);
    heavy.memory = Bytes::mebibytes(1001);
    assert_eq!(lint(&nodes(), &heavy, &sound()), ["OverMemory"; 3]);
    let mut group = sound();
    group.pending.push(Pending {
        instance: InstanceName::new("web-2").unwrap(),
        release: ReleaseNumber(1),
        slot: None,
        reason: Reason::new("", ""),
        since: jiff::Timestamp::UNIX_EPOCH,
    });
    assert_eq!(
        lint(&nodes(), &service(3), &group),
        ["PendingWithoutReason"]
    );
}

#[test]
fn every_bug_planted_with_volumes_is_caught() {
    let table: [(&[&str], Plant); 4] = [
        (&["NoSlot"], |group, _| group.placements[0].slot = None),
        (&["SlotHeldTwice", "AwayFromHome"], |group, _| {
            group.placements[1].slot = Some(0)
        }),
        (&["AwayFromHome"], |group, _| {
            group.placements[0].node = node_name("node-b")
        }),
        (&[], |_, nodes| {
            nodes.get_mut(&node_name("node-a")).unwrap().standing = Standing::Lost
        }),
    ];
    for (expect, plant) in table {
        let (mut group, mut nodes) = (sound_with_volumes(), nodes());
        plant(&mut group, &mut nodes);
        assert_eq!(lint(&nodes, &with_volume(service(3)), &group), expect);
    }
}

#[test]
fn every_bug_planted_in_a_step_is_caught() {
    let table: [(&[&str], Plant); 7] = [
        (&["WentBack"], |group, _| group.next_epoch = Epoch(3)),
        (&["WentBack"], |group, _| group.next_instance = 2),
        (&["HomeForgotten"], |group, _| drop(group.homes.remove(&0))),
        (&["HomeForgotten"], |group, _| {
            drop(group.homes.insert(0, node_name("node-c")))
        }),
        (&["Moved"], |group, _| {
            group.placements[0].node = node_name("node-b")
        }),
        (&["Moved"], |group, _| group.placements[0].epoch = Epoch(9)),
        (&["SlotNotVacated"], |group, _| {
            let mut second = placement(4, "node-a");
            second.slot = Some(0);
            group.placements.push(second);
        }),
    ];
    for (expect, plant) in table {
        let (mut after, mut nodes) = (sound_with_volumes(), nodes());
        plant(&mut after, &mut nodes);
        assert_eq!(
            lint_step(
                &nodes,
                &with_volume(service(3)),
                &sound_with_volumes(),
                &after
            ),
            expect
        );
    }
    let mut leaving = sound();
    leaving.placements[0].wanted = Wanted::Leave;
    assert_eq!(
        lint_step(&nodes(), &service(3), &leaving, &sound()),
        ["CalledBack"]
    );
}

#[test]
fn a_new_copy_in_the_wrong_place_is_caught() {
    let mut spread = service(3);
    spread.spread = Spread {
        by: SpreadBy::Zone,
        require: true,
    };
    let mut nodes = nodes();
    for name in ["node-a2", "node-b2"] {
        let zone = if name == "node-a2" { "a" } else { "b" };
        nodes.insert(node_name(name), node(name, zone));
    }
    let mut before = sound();
    before.placements.pop();
    before.next_epoch = Epoch(3);
    before.next_instance = 3;
    let with = |node: &str| {
        let mut after = before.clone();
        after.placements.push(placement(3, node));
        (after.next_epoch, after.next_instance) = (Epoch(4), 4);
        after
    };
    assert_eq!(
        lint_step(&nodes, &spread, &before, &with("node-a2")),
        ["SpreadBroken"]
    );
    assert_eq!(
        lint_step(&nodes, &spread, &before, &with("node-c")),
        [""; 0]
    );
    let mut reused = with("node-c");
    reused.placements[2].epoch = Epoch(1);
    assert_eq!(
        lint_step(&nodes, &service(3), &before, &reused),
        ["WentBack"]
    );
    nodes.get_mut(&node_name("node-c")).unwrap().cordoned = true;
    assert_eq!(
        lint_step(&nodes, &service(3), &before, &with("node-c")),
        ["PlacedOnCordoned"]
    );
}
