use super::*;
use crate::testing::{node, node_name, three_zones};
use model::control::NodeRole;

fn at(ms: u64) -> Now {
    Now {
        instant: Instant(Duration::from_millis(ms)),
        at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// A leader and its nodes on one clock: each turn is a tick of 250 ms, with a heartbeat of each living node every second.
struct World {
    state: State,
    records: Vec<NodeRecord>,
    now_ms: u64,
    dead: BTreeSet<NodeName>,
    said: Vec<(u64, String)>,
}

impl World {
    fn new(records: Vec<NodeRecord>) -> Self {
        let state = State::new(&records, at(0));
        let mut world = Self {
            state,
            records,
            now_ms: 0,
            dead: BTreeSet::new(),
            said: Vec::new(),
        };
        world.run(1_000);
        world
    }

    fn run(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += 250;
            self.tell(Input::Tick);
            self.beat();
        }
    }

    /// Heartbeats are spread over the second, as those of machines are.
    fn beat(&mut self) {
        for (turn, record) in self.records.clone().iter().enumerate() {
            let due = (self.now_ms / 250) % 4 == turn as u64 % 4;
            if due && !self.dead.contains(&record.name) {
                self.tell(Input::Heartbeat {
                    node: &record.name,
                    session: SessionId(1),
                    complete: true,
                });
            }
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        for output in step(&mut self.state, input, at(self.now_ms)) {
            let said = match output {
                Output::Lost { node, .. } => format!("lost {node}"),
                Output::Present { node, .. } => format!("back {node}"),
                Output::BrakeOn { .. } => "brake on".to_owned(),
                Output::BrakeOff { .. } => "brake off".to_owned(),
            };
            self.said.push((self.now_ms, said));
        }
    }

    fn kill(&mut self, names: &[&str]) {
        self.dead.extend(names.iter().map(|name| node_name(name)));
    }

    fn revive(&mut self, name: &str) {
        self.dead.remove(&node_name(name));
    }

    fn said(&self) -> Vec<&str> {
        self.said.iter().map(|(_, said)| said.as_str()).collect()
    }
}

#[test]
fn a_silent_node_is_lost_after_three_and_a_half_seconds_and_comes_back() {
    let mut world = World::new(three_zones());
    world.kill(&["node-b"]);
    world.run(2_500);
    assert_eq!(world.said(), [""; 0]);
    assert_eq!(
        world.state.sight(&node_name("node-b"), at(world.now_ms)),
        Sight::Silent
    );
    world.run(2_000);
    assert_eq!(world.said(), ["lost node-b"]);
    world.revive("node-b");
    world.run(1_000);
    assert_eq!(world.said(), ["lost node-b", "back node-b"]);
    assert_eq!(
        world.state.sight(&node_name("node-b"), at(world.now_ms)),
        Sight::Heard
    );
}

#[test]
fn one_of_three_zones_is_no_brake_and_two_are() {
    let mut world = World::new(three_zones());
    world.kill(&["node-a"]);
    world.run(20_000);
    assert_eq!(world.said(), ["lost node-a"]);

    for kill in [
        ["node-a", "node-b"],
        ["node-b", "node-c"],
        ["node-c", "node-a"],
    ] {
        let mut world = World::new(three_zones());
        world.kill(&kill);
        world.run(60_000);
        assert_eq!(world.said(), ["brake on"], "{kill:?}");
        world.revive(kill[0]);
        world.run(2_000);
        assert_eq!(world.said()[..2], ["brake on", "brake off"]);
        assert_eq!(world.said()[2], format!("lost {}", kill[1]));
    }
}

#[test]
fn two_zones_one_shortly_after_the_other_trip_the_brake() {
    let mut world = World::new(three_zones());
    world.kill(&["node-a"]);
    world.run(3_750);
    world.kill(&["node-b"]);
    world.run(60_000);
    assert_eq!(world.said(), ["lost node-a", "brake on"]);
}

#[test]
fn zones_lost_an_hour_apart_trip_nothing() {
    let mut world = World::new(three_zones());
    world.kill(&["node-a"]);
    world.run(60_000);
    world.kill(&["node-b"]);
    world.run(10_000);
    assert_eq!(world.said(), ["lost node-a", "lost node-b"]);
}

#[test]
fn several_zones_of_many_trip_the_brake_and_many_nodes_of_one_do_not() {
    let nodes: Vec<_> = (0..20)
        .map(|n| {
            node(
                &format!("n{n}"),
                &format!("zone-{}", ["a", "b", "c", "d", "e"][n % 5]),
            )
        })
        .collect();
    let mut world = World::new(nodes.clone());
    world.kill(&["n0", "n5", "n10", "n15"]);
    world.run(10_000);
    assert_eq!(world.said.len(), 4, "one zone: {:?}", world.said);
    let mut world = World::new(nodes);
    world.kill(&["n0", "n5", "n10", "n15", "n1", "n6", "n11", "n16"]);
    world.run(10_000);
    assert_eq!(world.said(), ["brake on"], "two zones");
}

#[test]
fn an_operator_releases_the_brake() {
    let mut world = World::new(three_zones());
    world.kill(&["node-a", "node-b"]);
    world.run(10_000);
    world.tell(Input::ReleaseBrake);
    world.run(10_000);
    assert_eq!(
        world.said(),
        ["brake on", "brake off", "lost node-a", "lost node-b"]
    );
}

#[test]
fn who_is_given_up_is_lost_no_sooner_than_its_leases_end() {
    let mut world = World::new(three_zones());
    world.kill(&["node-a", "node-b"]);
    world.run(10_000);
    assert_eq!(world.said(), ["brake on"]);
    // The third was heard a moment more than two seconds ago: it is missing, and its leases may run on.
    world.kill(&["node-c"]);
    let last_heard_ms = (world.now_ms - 1_000)..=world.now_ms;
    world.run(2_250);
    world.tell(Input::ReleaseBrake);
    world.run(5_000);
    let lost = world.said.iter().find(|(_, said)| said == "lost node-c");
    let (at_ms, _) = lost.expect("it is lost in the end");
    assert!(
        at_ms - last_heard_ms.start() >= LOST_AFTER.as_millis() as u64,
        "{:?}",
        world.said
    );
    let before = world
        .said
        .iter()
        .filter(|(ms, said)| ms < at_ms && said.starts_with("lost"));
    assert_eq!(before.count(), 2, "the others at once: {:?}", world.said);
}

#[test]
fn an_edge_is_lost_like_any_node_and_counts_for_no_brake() {
    let edge = |name| NodeRecord {
        role: NodeRole::Edge,
        ..node(name, "edge")
    };
    let mut records = three_zones();
    records.extend([edge("edge-1"), edge("edge-2")]);
    let mut world = World::new(records);
    world.kill(&["edge-1", "edge-2", "node-a"]);
    world.run(10_000);
    assert_eq!(world.said.len(), 3, "{:?}", world.said);
}

#[test]
fn a_new_leader_gives_everyone_an_interval() {
    let mut state = State::new(&three_zones(), at(100_000));
    assert!(step(&mut state, Input::Tick, at(100_000)).is_empty());
    assert!(!state.has_heard_all());
    assert_eq!(
        state.sight(&node_name("node-a"), at(100_000)),
        Sight::Silent
    );
    for name in ["node-a", "node-b", "node-c"] {
        let name = node_name(name);
        step(
            &mut state,
            Input::Heartbeat {
                node: &name,
                session: SessionId(1),
                complete: true,
            },
            at(100_500),
        );
    }
    assert!(state.has_heard_all());
}

#[test]
fn a_leader_that_stalled_blames_nobody() {
    let mut world = World::new(three_zones());
    world.now_ms += 60_000;
    world.tell(Input::Tick);
    assert_eq!(world.said(), [""; 0]);
    world.kill(&["node-a"]);
    world.run(2_000);
    assert_eq!(
        world.said(),
        [""; 0],
        "it has what was left of its interval"
    );
    world.run(3_000);
    assert_eq!(world.said(), ["lost node-a"]);
}

#[test]
fn a_new_session_is_not_relied_on_until_it_told_all() {
    let mut world = World::new(three_zones());
    let name = node_name("node-a");
    world.tell(Input::Heartbeat {
        node: &name,
        session: SessionId(2),
        complete: false,
    });
    assert_eq!(world.state.sight(&name, at(world.now_ms)), Sight::Silent);
    world.tell(Input::Heartbeat {
        node: &name,
        session: SessionId(2),
        complete: true,
    });
    assert_eq!(world.state.sight(&name, at(world.now_ms)), Sight::Heard);
}

#[test]
fn a_heartbeat_that_was_overtaken_is_no_news() {
    let mut state = State::new(&three_zones(), at(0));
    let name = node_name("node-a");
    let table = [
        (100, 1, 5, true),
        (100, 1, 4, false),
        (100, 1, 5, false),
        (100, 1, 6, true),
        (200, 2, 1, true),
        (300, 1, 7, false),
        (400, 2, 2, true),
        // It was the second that was late: the first goes on alone.
        (3_000, 1, 8, true),
        (3_000, 2, 3, false),
    ];
    for (ms, session, sequence, expect) in table {
        let news = state.is_news(&name, SessionId(session), sequence, at(ms));
        assert_eq!(news, expect, "{session} {sequence}");
        if news {
            let session = SessionId(session);
            let heartbeat = Input::Heartbeat {
                node: &name,
                session,
                complete: true,
            };
            step(&mut state, heartbeat, at(ms));
        }
    }
    assert!(!state.is_news(&node_name("nobody"), SessionId(1), 1, at(0)));
}

/// A new leader of three nodes, each of them to wait until it may be heard: its other place can't be heard any more once it has waited.
#[test]
fn who_waits_at_the_door_is_not_lost_for_that() {
    let lost_after = LOST_AFTER.as_millis() as u64;
    let names = ["node-a", "node-b", "node-c"].map(node_name);
    // Who knocks; and who is heard as soon as it may be.
    let table: [(&[usize], &[usize], &str); 5] = [
        (&[0, 1, 2], &[0, 1, 2], ""),
        (&[0, 1], &[0, 1], "3500 lost node-c"),
        (&[0], &[], "3500 brake on"),
        (&[0, 1, 2], &[], "7000 brake on"),
        (&[], &[], "3500 brake on"),
    ];
    for (knock, come, expected) in table {
        let mut world = World::new(three_zones());
        world.state = State::new(&world.records, at(0));
        world.dead.extend(names.iter().cloned());
        world.now_ms = 0;
        knock
            .iter()
            .for_each(|who| world.state.knocks(&names[*who]));
        world.run(lost_after);
        for who in come {
            assert!(!world.state.is_awaited(&names[*who], at(world.now_ms)));
        }
        // A second later: they ask again, and begin.
        world.run(1_000);
        for who in come {
            world.revive(names[*who].as_str());
        }
        world.run(10_000);
        let said: Vec<_> = world
            .said
            .iter()
            .map(|(ms, said)| format!("{ms} {said}"))
            .collect();
        assert_eq!(said.join(", "), expected, "{knock:?} {come:?}");
    }
}

/// It was heard: a knock is no reason to wait for it longer.
#[test]
fn a_knock_prolongs_nothing_for_who_is_heard() {
    let mut world = World::new(three_zones());
    world.kill(&["node-a"]);
    world.state.knocks(&node_name("node-a"));
    world.run(4_500);
    assert_eq!(world.said(), ["lost node-a"]);
}
