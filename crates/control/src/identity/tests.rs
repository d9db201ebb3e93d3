use std::time::Duration;

use super::*;
use crate::records::encode;
use model::control::{Capacity, NodeRecord, NodeRole, Standing};

fn key(letter: char) -> KeyFingerprint {
    KeyFingerprint(letter.to_string().repeat(64))
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

struct Cluster {
    store: std::collections::BTreeMap<String, Vec<u8>>,
}

impl Cluster {
    /// A service with a volume on node c, which has the key `a`.
    fn new() -> Self {
        let mut cluster = Self {
            store: Default::default(),
        };
        cluster.node("c", Some(key('a')));
        let group = PlacementGroup {
            homes: [(0, name("c")), (1, name("b"))].into(),
            ..PlacementGroup::default()
        };
        cluster.put("placement/shop/db", &group);
        cluster
    }

    fn put(&mut self, key: &str, value: &impl serde::Serialize) {
        self.store.insert(key.to_owned(), encode(value));
    }

    fn node(&mut self, text: &str, key: Option<KeyFingerprint>) {
        let record = NodeRecord {
            name: name(text),
            region: "home".parse().unwrap(),
            zone: text.parse().unwrap(),
            role: NodeRole::Worker,
            capacity: Capacity::default(),
            labels: Default::default(),
            cordoned: false,
            standing: Standing::Present,
            reason: Reason::new("joined", "joined"),
            joined_at: Timestamp::UNIX_EPOCH,
            key,
            programs: None,
            place: None,
        };
        self.put(&format!("node/{text}"), &record);
    }

    fn world(&self) -> World {
        let records: Vec<_> = self
            .store
            .iter()
            .map(|(key, value)| store::Record {
                key: key.as_str().into(),
                value: value.clone().into(),
                version: 1,
                created: store::Revision::from_number(1),
                modified: store::Revision::from_number(1),
                lease: None,
            })
            .collect();
        World::load(&records, store::Revision::from_number(1)).unwrap()
    }

    fn write(&mut self, draft: Draft) {
        for operation in draft.transaction.operations {
            match operation {
                store::Operation::Put { key, value, .. } => {
                    self.store.insert(key, value.to_vec());
                }
                store::Operation::Delete { key } => {
                    self.store.remove(&key);
                }
            }
        }
    }

    fn joins(&mut self, text: &str, with: &KeyFingerprint) {
        self.comes(text, with, false);
    }

    fn comes(&mut self, text: &str, with: &KeyFingerprint, was_it: bool) {
        let mut draft = Draft::new();
        let now = Timestamp::UNIX_EPOCH + Duration::from_secs(self.store.len() as u64);
        let comer = Comer {
            name: &name(text),
            key: with,
            was_it,
        };
        let renames = take_name(&self.world(), &mut draft, &comer, now);
        for draft in std::iter::once(draft).chain(renames) {
            self.write(draft);
        }
        self.node(text, Some(with.clone()));
    }

    fn leaves(&mut self, text: &str) {
        let world = self.world();
        let key = world.nodes[&name(text)].key.clone().unwrap();
        let mut draft = Draft::new();
        let by = PrincipalName("admin:root".to_owned());
        forget_key(
            &world,
            &mut draft,
            &key,
            &name(text),
            by,
            Timestamp::UNIX_EPOCH,
        );
        self.write(draft);
        self.store.remove(&format!("node/{text}"));
    }

    fn home(&self) -> String {
        let world = self.world();
        let group = world.services[&"shop/db".parse().unwrap()].group();
        assert_eq!(group.homes[&1], name("b"), "another's home is left alone");
        group.homes[&0].to_string()
    }

    fn refusal(&self, text: &str, key: &KeyFingerprint) -> Option<String> {
        let refused = may_renew(&self.world(), &name(text), key).err()?;
        Some(refused.code)
    }
}

#[test]
fn a_volume_waits_for_the_key_of_its_node_whoever_has_the_name() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refusal("c", &key('a')), None);
    cluster.leaves("c");
    assert_eq!(cluster.home(), "c");
    assert_eq!(cluster.refusal("c", &key('a')).unwrap(), "node-removed");
    cluster.joins("c", &key('b'));
    assert_eq!(
        cluster.home(),
        "c-aaaaaaaa",
        "the new one has no such volume"
    );
    assert_eq!(cluster.refusal("c", &key('b')), None);
    assert_eq!(cluster.refusal("c", &key('a')).unwrap(), "node-removed");
    cluster.leaves("c");
    cluster.joins("c", &key('a'));
    assert_eq!(cluster.home(), "c", "it is back");
    assert_eq!(cluster.refusal("c", &key('a')), None);
    assert_eq!(cluster.refusal("c", &key('b')).unwrap(), "node-removed");
}

#[test]
fn who_takes_a_name_over_does_not_take_the_volumes() {
    let mut cluster = Cluster::new();
    cluster.joins("c", &key('a'));
    assert_eq!(cluster.home(), "c", "the same machine again");
    cluster.joins("c", &key('b'));
    assert_eq!(cluster.home(), "c-aaaaaaaa");
    assert_eq!(cluster.refusal("c", &key('a')).unwrap(), "node-removed");
}

/// Before keys were kept the name was the node. Who shows a certificate of it from then has its volumes.
#[test]
fn a_node_from_before_keys_were_kept_has_its_volumes() {
    let mut cluster = Cluster::new();
    cluster.node("c", None);
    cluster.comes("c", &key('a'), true);
    assert_eq!(cluster.home(), "c");
    // Another machine by that name has not.
    let mut cluster = Cluster::new();
    cluster.node("c", None);
    cluster.joins("c", &key('b'));
    assert_eq!(cluster.home(), "c-unknown");
    // And the one whose they are gets them back.
    cluster.comes("c", &key('a'), true);
    assert_eq!(cluster.home(), "c");
    assert_eq!(cluster.refusal("c", &key('b')).unwrap(), "node-removed");
}

#[test]
fn a_name_alone_opens_nothing() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refusal("c", &key('b')).unwrap(), "node-left");
    assert_eq!(cluster.refusal("d", &key('a')).unwrap(), "node-left");
    cluster.node("old", None);
    assert_eq!(cluster.refusal("old", &key('c')).unwrap(), "node-left");
}

#[test]
fn clocks_that_differ_are_both_told() {
    let server: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
    assert_eq!(
        clocks(&name("c"), server + SignedDuration::from_secs(59), server),
        None
    );
    let ahead = clocks(&name("c"), server + SignedDuration::from_hours(26), server).unwrap();
    for part in ["ahead of", "2026-01-03T02:00:00Z", "2026-01-02T00:00:00Z"] {
        assert!(ahead.message.contains(part), "{}", ahead.message);
    }
    let behind = clocks(&name("c"), server - SignedDuration::from_hours(26), server).unwrap();
    assert!(behind.message.contains("behind"), "{}", behind.message);
}
