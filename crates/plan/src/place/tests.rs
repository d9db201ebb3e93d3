use model::control::{NodeRecord, NodeRole, Standing};
use model::ids::{RegionName, ZoneName};
use model::units::{Bytes, MilliCpu};

use super::cluster::free;
use super::*;
use crate::testing::{id, node, node_name, three_zones};

fn names(count: usize) -> Vec<InstanceName> {
    (0..count)
        .map(|n| InstanceName::new(format!("web-{n}")).unwrap())
        .collect()
}

fn size(mebibytes: u64) -> Capacity {
    Capacity {
        cpu: MilliCpu(100),
        memory: Bytes::mebibytes(mebibytes),
    }
}

struct Ask {
    size: Capacity,
    labels: BTreeMap<String, String>,
    spread: Spread,
    home: Option<NodeName>,
    ceiling: Ceiling,
    avoid: Vec<NodeName>,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            size: size(100),
            labels: BTreeMap::new(),
            spread: Spread::default(),
            home: None,
            ceiling: Ceiling::Watermark,
            avoid: Vec::new(),
        }
    }
}

/// Places `count` copies of `web`; each answer is a node's name or the code of the refusal.
fn placed(nodes: &[NodeRecord], ask: &Ask, count: usize) -> Vec<String> {
    let mut cluster = Cluster::new(nodes);
    names(count)
        .iter()
        .map(|name| one(&mut cluster, ask, name))
        .collect()
}

fn one(cluster: &mut Cluster, ask: &Ask, instance: &InstanceName) -> String {
    match full(cluster, ask, instance) {
        Ok(placed) => placed.node.to_string(),
        Err(refused) => refused.reason.code,
    }
}

fn full(cluster: &mut Cluster, ask: &Ask, instance: &InstanceName) -> Result<Placed, Refused> {
    let request = Request {
        service: &id("web"),
        instance,
        size: ask.size,
        labels: &ask.labels,
        spread: ask.spread,
        home: ask.home.as_ref(),
        ceiling: ask.ceiling,
        avoid: &ask.avoid,
        barred: &[],
        going: &[],
        instead_of: None,
    };
    place(cluster, &request)
}

#[test]
fn copies_spread_over_zones_then_nodes() {
    let nodes = [
        node("a1", "a"),
        node("a2", "a"),
        node("b1", "b"),
        node("c1", "c"),
    ];
    let found = placed(&nodes, &Ask::default(), 5);
    let zones: Vec<_> = found.iter().map(|name| &name[..1]).collect();
    assert_eq!(
        zones[..3]
            .iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        3,
        "{found:?}"
    );
    let in_a: Vec<_> = found.iter().filter(|name| name.starts_with('a')).collect();
    assert!(in_a.windows(2).all(|pair| pair[0] != pair[1]), "{found:?}");
}

#[test]
fn regions_come_before_zones() {
    let mut far = node("f1", "f");
    far.region = RegionName::new("far").unwrap();
    let nodes = [node("a1", "a"), node("b1", "b"), far];
    let found = placed(&nodes, &Ask::default(), 4);
    assert_eq!(
        found.iter().filter(|name| *name == "f1").count(),
        2,
        "{found:?}"
    );
}

#[test]
fn single_copies_of_many_services_fill_zones_evenly() {
    let mut cluster = Cluster::new(&three_zones());
    let labels = BTreeMap::new();
    for name in ["one", "two", "three"] {
        let instance = InstanceName::new(format!("{name}-1")).unwrap();
        let request = Request {
            service: &id(name),
            instance: &instance,
            size: size(100),
            labels: &labels,
            spread: Spread::default(),
            home: None,
            ceiling: Ceiling::Watermark,
            avoid: &[],
            barred: &[],
            going: &[],
            instead_of: None,
        };
        place(&mut cluster, &request).unwrap();
    }
    for zone in ["a", "b", "c"] {
        assert_eq!(
            cluster.used(&node_name(&format!("node-{zone}"))),
            size(100),
            "{zone}"
        );
    }
}

#[test]
fn the_fullest_node_with_room_is_taken() {
    let nodes = [node("a1", "a"), node("a2", "a")];
    let mut cluster = Cluster::new(&nodes);
    let other = InstanceName::new("other-1").unwrap();
    cluster.add(&id("other"), &other, &node_name("a2"), size(300));
    assert_eq!(one(&mut cluster, &Ask::default(), &names(1)[0]), "a2");
    let big = Ask {
        size: size(600),
        ..Ask::default()
    };
    assert_eq!(one(&mut cluster, &big, &names(2)[1]), "a1");
}

#[test]
fn every_filter_refuses_by_its_code() {
    let lost = NodeRecord {
        standing: Standing::Lost,
        ..node("n", "a")
    };
    let edge = NodeRecord {
        role: NodeRole::Edge,
        ..node("n", "edge")
    };
    let cordoned = NodeRecord {
        cordoned: true,
        ..node("n", "a")
    };
    let labelled = Ask {
        labels: BTreeMap::from([("disk".into(), "ssd".into())]),
        ..Ask::default()
    };
    let cpu = Ask {
        size: Capacity {
            cpu: MilliCpu(3300),
            memory: Bytes(1),
        },
        ..Ask::default()
    };
    let homeless = Ask {
        home: Some(node_name("n")),
        ..Ask::default()
    };
    let avoided = Ask {
        avoid: vec![node_name("n")],
        ..Ask::default()
    };
    let plain = Ask::default;
    let table = [
        (vec![], plain(), "no-node"),
        (vec![lost.clone()], plain(), "node-lost"),
        (vec![edge], plain(), "no-node"),
        (vec![cordoned], plain(), "cordoned"),
        (vec![node("n", "a")], labelled, "labels"),
        (
            vec![node("n", "a")],
            Ask {
                size: size(801),
                ..plain()
            },
            "no-room",
        ),
        (
            vec![node("n", "a")],
            Ask {
                size: size(800),
                ..plain()
            },
            "n",
        ),
        (
            vec![node("n", "a")],
            Ask {
                size: size(1000),
                ceiling: Ceiling::Full,
                ..plain()
            },
            "n",
        ),
        (
            vec![node("n", "a")],
            Ask {
                size: size(1001),
                ceiling: Ceiling::Full,
                ..plain()
            },
            "no-room",
        ),
        (vec![node("n", "a")], cpu, "no-room"),
        (vec![lost], homeless, "volume-on-lost-node"),
        (vec![node("n", "a")], avoided, "not-started"),
    ];
    for (nodes, ask, expect) in table {
        assert_eq!(placed(&nodes, &ask, 1), [expect], "{nodes:?}");
    }
}

/// What could go elsewhere is kept away by a cordon; a copy with a volume could not, and would be down instead.
#[test]
fn a_cordon_keeps_no_copy_from_its_volume() {
    let cordoned = NodeRecord {
        cordoned: true,
        ..node("a1", "a")
    };
    let mut cluster = Cluster::new(&[cordoned]);
    let home = Ask {
        home: Some(node_name("a1")),
        ..Ask::default()
    };
    let [first, second]: [InstanceName; 2] = names(2).try_into().unwrap();
    let reason = full(&mut cluster, &home, &first).unwrap().reason;
    assert!(reason.message.contains("which is cordoned"), "{reason}");
    assert_eq!(one(&mut cluster, &Ask::default(), &second), "cordoned");
}

#[test]
fn a_volume_stays_on_its_home() {
    let home = Ask {
        home: Some(node_name("node-b")),
        ..Ask::default()
    };
    assert_eq!(placed(&three_zones(), &home, 2), ["node-b", "node-b"]);
    let mut cluster = Cluster::new(&three_zones());
    cluster.remove_node(&node_name("node-b"));
    let refused = full(&mut cluster, &home, &names(1)[0]).unwrap_err();
    assert_eq!(refused.reason.code, "volume-on-removed-node");
    assert!(refused.reason.message.contains("node node-b"));
}

#[test]
fn a_required_spread_refuses_rather_than_bends() {
    let require = |by| Ask {
        spread: Spread { by, require: true },
        size: size(400),
        ..Ask::default()
    };
    let nodes = [node("a1", "a"), node("a2", "a"), node("b1", "b")];
    let found = placed(&nodes, &require(SpreadBy::Zone), 6);
    assert_eq!(
        found.iter().filter(|name| *name == "b1").count(),
        2,
        "{found:?}"
    );
    assert_eq!(
        found[5], "spread",
        "b is full: a fourth copy in a would be two more than b could hold"
    );
    let found = placed(&nodes, &require(SpreadBy::Node), 7);
    assert_eq!(found[6], "no-room", "{found:?}");
}

#[test]
fn reasons_say_what_was_weighed() {
    let mut lost = node("c1", "c");
    lost.standing = Standing::Lost;
    let mut odd = node("b2", "b");
    odd.capacity.memory.0 += 1234;
    let nodes = [node("a1", "a"), node("b1", "b"), odd, lost];
    let mut cluster = Cluster::new(&nodes);
    let all = names(9);
    let first = full(&mut cluster, &Ask::default(), &all[0]).unwrap();
    assert_eq!(first.node, node_name("a1"));
    let second = full(&mut cluster, &Ask::default(), &all[1]).unwrap();
    assert_eq!(
        second.reason.message,
        "zone b had the fewest copies (0 of 1); node b1 had the fewest copies there (0) and is the fullest with room"
    );
    assert_eq!(first.reason.message, "zone a had no copy; node a1 has room");
    assert_eq!(second.reason.detail, ["1 node rejected: lost"]);
    let big = Ask {
        size: size(801),
        ..Ask::default()
    };
    let refused = full(&mut cluster, &big, &all[2]).unwrap_err();
    assert_eq!(
        refused.reason.message,
        "no node can take it: 3 nodes rejected: not enough memory below the 80 % that is given out; 1 node rejected: lost; it asks for cpu 0.1 and memory 801Mi, and no node has more left than cpu 3.2 or memory 800Mi: let it or others ask for less, or add a node"
    );
}

#[test]
fn who_is_no_choice_is_counted_by_cause_and_edges_are_not() {
    let mut lost = node("lost", "a");
    lost.standing = Standing::Lost;
    let mut cordoned = node("cordoned", "a");
    cordoned.cordoned = true;
    let mut edge = node("edge", "edge");
    edge.role = NodeRole::Edge;
    let mut good = node("good", "b");
    good.labels = BTreeMap::from([("disk".into(), "ssd".into()), ("gpu".into(), "yes".into())]);
    let mut slow = node("slow", "b");
    slow.labels = BTreeMap::from([("disk".into(), "tape".into()), ("gpu".into(), "yes".into())]);
    let mut plain = node("plain", "c");
    plain.labels = BTreeMap::from([("disk".into(), "ssd".into())]);
    let ask = Ask {
        labels: good.labels.clone(),
        ..Ask::default()
    };
    let all = names(4);

    let mut cluster = Cluster::new([&lost, &cordoned, &edge, &slow, &good]);
    let placed = full(&mut cluster, &ask, &all[0]).unwrap();
    let at_first = [
        "1 node rejected: lost",
        "1 node rejected: cordoned",
        "1 node rejected: without the label disk=ssd",
    ];
    assert_eq!(placed.reason.detail, at_first);

    // The index is kept: nodes that come, change and go are counted in the pools that are there.
    cluster.set_node(&plain);
    lost.standing = Standing::Present;
    cluster.set_node(&lost);
    cluster.remove_node(&slow.name);
    cordoned.cordoned = false;
    cordoned.labels = good.labels.clone();
    cluster.set_node(&cordoned);
    let placed = full(&mut cluster, &ask, &all[1]).unwrap();
    let later = [
        "1 node rejected: without the label disk=ssd",
        "1 node rejected: without the label gpu=yes",
    ];
    assert_eq!(placed.reason.detail, later);

    let mut cluster = Cluster::new([&plain, &lost, &edge]);
    let refused = full(&mut cluster, &ask, &all[2]).unwrap_err();
    assert_eq!(refused.reason.code, "labels");
    assert_eq!(
        refused.reason.message,
        "no node can take it: 1 node rejected: without the label gpu=yes; 1 node rejected: without the label disk=ssd"
    );
    let unlabelled = full(&mut cluster, &Ask::default(), &all[3]).unwrap();
    assert!(unlabelled.reason.detail.is_empty(), "{unlabelled:?}");
}

#[test]
fn what_is_removed_can_be_placed_again() {
    let nodes = [node("a1", "a")];
    let mut cluster = Cluster::new(&nodes);
    let all = names(9);
    let answers: Vec<_> = all
        .iter()
        .map(|name| one(&mut cluster, &Ask::default(), name))
        .collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "a1").count(), 8);
    cluster.remove(&id("web"), &all[3]);
    cluster.remove(&id("web"), &all[3]);
    assert_eq!(
        cluster.used(&node_name("a1")),
        Capacity {
            cpu: MilliCpu(700),
            memory: Bytes::mebibytes(700)
        }
    );
    assert_eq!(one(&mut cluster, &Ask::default(), &all[8]), "a1");
}

#[test]
fn a_cordon_lifted_and_a_zone_changed_are_seen() {
    let mut record = node("a1", "a");
    record.cordoned = true;
    let mut cluster = Cluster::new([&record]);
    let all = names(3);
    assert_eq!(one(&mut cluster, &Ask::default(), &all[0]), "cordoned");
    record.cordoned = false;
    cluster.set_node(&record);
    assert_eq!(one(&mut cluster, &Ask::default(), &all[0]), "a1");
    record.zone = ZoneName::new("b").unwrap();
    cluster.set_node(&record);
    cluster.set_node(&node("a2", "a"));
    assert_eq!(one(&mut cluster, &Ask::default(), &all[1]), "a2");
}

/// Copies stand on nodes `a1`, `a2`, `b1` of a region and `f1` of another: where one on `from` would stand better, and whether the look at the
/// counts says that any might.
fn better(by: SpreadBy, copies: &[(&str, u32)], from: &str) -> (Option<String>, bool) {
    let mut far = node("f1", "f");
    far.region = RegionName::new("far").unwrap();
    let mut cluster = Cluster::new(&[node("a1", "a"), node("a2", "a"), node("b1", "b"), far]);
    for (node, count) in copies {
        for n in 0..*count {
            let instance = InstanceName::new(format!("{node}-{n}")).unwrap();
            cluster.add(&id("web"), &instance, &node_name(node), size(1));
        }
    }
    let labels = BTreeMap::new();
    let from = node_name(from);
    let request = Request {
        service: &id("web"),
        instance: &InstanceName::new("web-9").unwrap(),
        size: size(1),
        labels: &labels,
        spread: Spread { by, require: false },
        home: None,
        ceiling: Ceiling::Watermark,
        avoid: &[],
        barred: &[],
        going: &[],
        instead_of: Some(&from),
    };
    let found = find(&mut cluster, &request).map(|node| node.to_string());
    (found, cluster.is_uneven(&id("web"), by, &labels))
}

#[test]
fn a_copy_moves_only_to_where_two_fewer_are() {
    use SpreadBy::{Node, Region, Zone};
    type Copies = &'static [(&'static str, u32)];
    let table: [(SpreadBy, Copies, &str, Option<&str>, bool); 12] = [
        (Zone, &[("a1", 2), ("f1", 1)], "a1", Some("b1"), true),
        (
            Zone,
            &[("a1", 1), ("a2", 1), ("f1", 1)],
            "a2",
            Some("b1"),
            true,
        ),
        (Zone, &[("a1", 2), ("b1", 1), ("f1", 1)], "a1", None, false),
        (Zone, &[("a1", 1), ("f1", 1)], "a1", None, false),
        // Regions come before zones.
        (Zone, &[("a1", 2), ("f1", 2)], "f1", None, true),
        (Zone, &[("a1", 3), ("b1", 1), ("f1", 4)], "f1", None, true),
        (
            Zone,
            &[("a1", 3), ("b1", 1), ("f1", 4)],
            "a1",
            Some("b1"),
            true,
        ),
        (Zone, &[("f1", 3)], "f1", Some("a1"), true),
        (
            Node,
            &[("a1", 2), ("b1", 1), ("f1", 1)],
            "a1",
            Some("a2"),
            true,
        ),
        (
            Node,
            &[("a1", 2), ("a2", 1), ("b1", 1), ("f1", 1)],
            "a1",
            None,
            false,
        ),
        (Region, &[("a1", 3), ("f1", 1)], "a1", Some("f1"), true),
        (Region, &[("a1", 3), ("f1", 2)], "a1", None, false),
    ];
    for (by, copies, from, to, uneven) in table {
        let expect = (to.map(str::to_owned), uneven);
        let found = better(by, copies, from);
        let zone = |node: &Option<String>| node.as_ref().map(|name| name[..1].to_owned());
        match by {
            Zone => assert_eq!(
                (zone(&found.0), found.1),
                (zone(&expect.0), expect.1),
                "{copies:?}"
            ),
            _ => assert_eq!(found, expect, "{copies:?}"),
        }
    }
}

proptest::proptest! {
    /// The index finds a node exactly when looking at every node would, and one with the fewest copies in the best zone.
    #[test]
    fn the_index_agrees_with_looking_at_every_node(
        sizes in proptest::collection::vec((0_usize..6, 1_u64..400), 1..60),
        removed in proptest::collection::vec(0_usize..60, 0..20),
    ) {
        let nodes: Vec<_> = (0..6).map(|n| node(&format!("n{n}"), ["a", "b", "c"][n % 3])).collect();
        let mut cluster = Cluster::new(&nodes);
        for (turn, (service, mebibytes)) in sizes.iter().enumerate() {
            let service = id(&format!("s{service}"));
            let instance = InstanceName::new(format!("i-{turn}")).unwrap();
            let needed = size(*mebibytes);
            let fits = nodes.iter().any(|node| {
                let free = free(node.capacity, cluster.used(&node.name), Ceiling::Watermark);
                free.memory >= needed.memory && free.cpu >= needed.cpu
            });
            let labels = BTreeMap::new();
            let request = Request {
                service: &service, instance: &instance, size: needed, labels: &labels,
                spread: Spread::default(), home: None, ceiling: Ceiling::Watermark, avoid: &[], barred: &[], going: &[],
                instead_of: None,
            };
            proptest::prop_assert_eq!(place(&mut cluster, &request).is_ok(), fits);
            if let Some(turn) = removed.get(turn) {
                for service in 0..6 {
                    let instance = InstanceName::new(format!("i-{turn}")).unwrap();
                    cluster.remove(&id(&format!("s{service}")), &instance);
                }
            }
        }
    }
}
