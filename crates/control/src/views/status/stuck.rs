//! What can't come until somebody changes something: the file, a secret, the machines.
//!
//! Told by the reasons that are stored with decisions, and only where they are certain. Where a turn of things may still help (a node that
//! comes back, a copy that leaves, a release that is still judged), nothing is said.

use std::collections::BTreeSet;

use api::wire::InstanceView;
use model::compute::{Pending, PlacementGroup, Purpose, Wanted};
use model::control::{NodeRecord, NodeRole, Reason, RolloutPhase, Standing};
use model::ids::{ProjectName, ResourceId, ResourceName};
use plan::backoff::CRASH_LOOP;
use plan::place;

use crate::handlers::rollout_of;
use crate::world::{Entry, World};

/// A project's services with what is seen of them.
pub(super) struct Picture<'w> {
    pub world: &'w World,
    pub project: &'w ProjectName,
    pub instances: &'w [InstanceView],
}

impl Picture<'_> {
    /// Why what a service lacks can't come. `None`: it lacks nothing, or it may still come.
    pub fn stuck(&self, service: &ResourceName) -> Option<Reason> {
        self.why(service, &mut BTreeSet::new())
    }

    /// `asked`: what is on the way here, for needs may form a ring.
    fn why(&self, service: &ResourceName, asked: &mut BTreeSet<ResourceName>) -> Option<Reason> {
        let entry = self.entry(service)?;
        if !self.is_short(service, entry) || !asked.insert(service.clone()) {
            return None;
        }
        let placeless = || {
            let group = entry.group();
            let stuck = |pending: &&Pending| self.finds_no_place(entry, &group, pending);
            let pending = group.pending.iter().find(stuck)?;
            Some(told(&pending.instance, &pending.reason))
        };
        placeless()
            .or_else(|| self.without_secret(service, entry))
            .or_else(|| self.without_need(service, entry, asked))
    }

    fn entry(&self, service: &ResourceName) -> Option<&Entry> {
        let id = ResourceId::new(self.project.clone(), service.clone());
        Some(self.world.service(&id)?.0)
    }

    fn is_short(&self, service: &ResourceName, entry: &Entry) -> bool {
        let serving = self.of(service).filter(|view| super::serves(view));
        let rolls = rollout_of(entry).is_some_and(|rollout| rollout.phase != RolloutPhase::Done);
        rolls || (serving.count() as u64) < u64::from(entry.wanted())
    }

    fn of(&self, service: &ResourceName) -> impl Iterator<Item = &InstanceView> {
        self.instances
            .iter()
            .filter(move |view| view.service == *service)
    }

    /// Whether no node will ever take it, as the nodes and what is asked of them are now.
    fn finds_no_place(&self, entry: &Entry, group: &PlacementGroup, pending: &Pending) -> bool {
        match pending.reason.code.as_str() {
            "volume-on-removed-node" => true,
            // A lost node may be the one that fits.
            "labels" | "cordoned" | place::LACKS => !self.has_lost_nodes(),
            "no-room" | "home-full" | "spread" => {
                self.is_settled() || self.is_too_large(entry, group, pending)
            }
            _ => false,
        }
    }

    fn workers(&self) -> impl Iterator<Item = &NodeRecord> {
        let nodes = self.world.nodes.values().map(|node| &node.value);
        nodes.filter(|node| node.role == NodeRole::Worker)
    }

    fn has_lost_nodes(&self) -> bool {
        self.workers().any(|node| node.standing == Standing::Lost)
    }

    /// Nothing that is under way can make room: no copy leaves, none is about to be replaced, no node is away.
    fn is_settled(&self) -> bool {
        let moves = |entry: &Entry| {
            let group = entry.group();
            let leaves = group
                .placements
                .iter()
                .any(|placement| placement.wanted == Wanted::Leave);
            let replaces = rollout_of(entry).is_some_and(|rollout| {
                let goes_on = matches!(rollout.phase, RolloutPhase::Rolling | RolloutPhase::Paused);
                goes_on && rollout.from.is_some()
            });
            leaves || replaces
        };
        !self.has_lost_nodes() && !self.world.services.values().any(moves)
    }

    /// More than any node has, were it empty.
    fn is_too_large(&self, entry: &Entry, group: &PlacementGroup, pending: &Pending) -> bool {
        let Some(release) = entry.releases.get(&pending.release) else {
            return false;
        };
        let size = place::size_of(&release.spec);
        let home = pending.slot.and_then(|slot| group.homes.get(&slot));
        let mut nodes = self
            .workers()
            .filter(|node| home.is_none_or(|home| node.name == *home))
            .peekable();
        let is_too_small =
            |node: &NodeRecord| node.capacity.memory < size.memory || node.capacity.cpu < size.cpu;
        nodes.peek().is_some() && nodes.all(is_too_small)
    }

    /// A secret without a value: it waits until somebody gives it one.
    fn without_secret(&self, service: &ResourceName, entry: &Entry) -> Option<Reason> {
        let spec = &entry.live()?.spec;
        let is_empty = |need: &ResourceName| {
            let id = ResourceId::new(self.project.clone(), need.clone());
            let secret = self.world.secrets.get(&id);
            secret.is_some_and(|secret| secret.envelope.is_none())
        };
        if !spec.needs.keys().any(is_empty) {
            return None;
        }
        let waits = |reason: &&Reason| reason.code == "waits-for-secret";
        self.of(service)
            .find_map(|view| Some(told(&view.name, view.reason.as_ref().filter(waits)?)))
    }

    /// It can't do without what it needs, and that is not there or can't come itself. A copy that waits for its needs is not stuck: it starts
    /// without them in a moment. What runs once before a release does so as well, but then its failure is final.
    fn without_need(
        &self,
        service: &ResourceName,
        entry: &Entry,
        asked: &mut BTreeSet<ResourceName>,
    ) -> Option<Reason> {
        let can_do_without = |view: &InstanceView| match view.reason.as_ref() {
            Some(reason) if reason.code == CRASH_LOOP => false,
            Some(reason) if reason.code == "waits-for-needs" => {
                view.purpose != Purpose::BeforeDeploy
            }
            _ => true,
        };
        if self.of(service).all(can_do_without) {
            return None;
        }
        let needs = entry.live()?.spec.needs.iter();
        let required = needs.filter(|(_, need)| !need.optional);
        required.map(|(need, _)| need).find_map(|need| {
            let id = ResourceId::new(self.project.clone(), need.clone());
            if self.world.secrets.contains_key(&id) {
                return None;
            }
            let Some(_) = self.entry(need) else {
                let message = format!("{service} needs {need}, which is not declared");
                return Some(Reason::new("need-missing", message));
            };
            let why = self.why(need, asked)?;
            let message = format!("{service} needs {need}: {why}");
            Some(Reason::new("need-stuck", message))
        })
    }
}

fn told(instance: &impl std::fmt::Display, reason: &Reason) -> Reason {
    Reason {
        message: format!("{instance}: {reason}"),
        ..reason.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Current, SecretRecord, ServiceRecord};
    use crate::testing::{release, service, stored};
    use model::boundary::{PrincipalName, SecretSource};
    use model::compute::{InstanceState, Need};
    use model::control::{Capacity, Rollout};
    use model::ids::ReleaseNumber;
    use model::units::{Bytes, MilliCpu};

    const NOW: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

    /// One node of 1000 MiB, and services of one copy of 100 MiB each.
    struct Case {
        world: World,
        instances: Vec<InstanceView>,
    }

    impl Case {
        fn new() -> Self {
            let node = NodeRecord {
                name: "a".parse().unwrap(),
                region: "home".parse().unwrap(),
                zone: "a".parse().unwrap(),
                role: NodeRole::Worker,
                capacity: Capacity {
                    cpu: MilliCpu(4000),
                    memory: Bytes::mebibytes(1000),
                },
                labels: Default::default(),
                cordoned: false,
                standing: Standing::Present,
                reason: Reason::new("joined", "joined"),
                joined_at: NOW,
                key: None,
                programs: None,
                place: None,
            };
            let mut world = World::default();
            world.nodes.insert(node.name.clone(), stored(node));
            Self {
                world,
                instances: Vec::new(),
            }
        }

        fn entry(&mut self, name: &str) -> &mut Entry {
            let id = format!("shop/{name}").parse().unwrap();
            self.world.services.entry(id).or_insert_with(|| {
                let first = ReleaseNumber(1);
                let record = ServiceRecord {
                    spec: service(1),
                    current: Some(Current {
                        number: first,
                        same_since: first,
                        rolled_back_to: None,
                    }),
                    removing: None,
                };
                Entry {
                    record: Some(stored(record)),
                    releases: [(first, stored(release(first)))].into(),
                    placements: Some(stored(PlacementGroup::default())),
                    ..Entry::default()
                }
            })
        }

        fn needs(&mut self, name: &str, need: &str) -> &mut Self {
            let record = self.entry(name).record.as_mut().unwrap();
            let need = need.parse().unwrap();
            record.value.spec.needs.insert(need, Need::default());
            self
        }

        fn pending(&mut self, name: &str, code: &str) -> &mut Self {
            let instance = format!("{name}-1").parse().unwrap();
            let group = self.entry(name).placements.as_mut().unwrap();
            group.value.pending.push(Pending {
                instance,
                release: ReleaseNumber(1),
                slot: None,
                reason: Reason::new(code, "so it is"),
                since: NOW,
            });
            self
        }

        fn large(&mut self, name: &str) -> &mut Self {
            let releases = &mut self.entry(name).releases;
            let first = releases.get_mut(&ReleaseNumber(1)).unwrap();
            first.value.spec.memory = Bytes::mebibytes(1001);
            self
        }

        fn leaving(&mut self, name: &str) -> &mut Self {
            let placement = serde_json::json!({
                "instance": format!("{name}-1"), "release": 1, "node": "a", "epoch": 1, "wanted": "leave",
                "reason": { "code": "scaled-down", "message": "scaled down" }, "at": NOW,
            });
            let placement = serde_json::from_value(placement).unwrap();
            let group = self.entry(name).placements.as_mut().unwrap();
            group.value.placements.push(placement);
            self
        }

        fn rolling(&mut self, name: &str, from: Option<u64>) -> &mut Self {
            self.entry(name).rollout = Some(stored(Rollout {
                to: ReleaseNumber(1),
                from: from.map(ReleaseNumber),
                phase: RolloutPhase::Rolling,
                reason: Reason::new("rolling", "rolls"),
                started_at: NOW,
                progressed_at: NOW,
                prepared: None,
                culprit: None,
            }));
            self
        }

        fn lost(&mut self) -> &mut Self {
            for node in self.world.nodes.values_mut() {
                node.value.standing = Standing::Lost;
            }
            self
        }

        fn says(&mut self, name: &str, code: &str, purpose: Purpose) -> &mut Self {
            self.entry(name);
            self.instances.push(InstanceView {
                name: format!("{name}-1").parse().unwrap(),
                service: name.parse().unwrap(),
                node: Some("a".parse().unwrap()),
                zone: Some("a".parse().unwrap()),
                state: InstanceState::Failed,
                ready: false,
                pid: None,
                address: None,
                restarts: 0,
                version: ReleaseNumber(1),
                purpose,
                project: "shop".parse().unwrap(),
                started_at: None,
                reason: Some(Reason::new(code, "so it is")),
            });
            self
        }

        fn ready(&mut self, name: &str) -> &mut Self {
            self.says(name, "ready", Purpose::Serve);
            self.rolling(name, None);
            let rollout = self.entry(name).rollout.as_mut().unwrap();
            rollout.value.phase = RolloutPhase::Done;
            let view = self.instances.last_mut().unwrap();
            (view.ready, view.state) = (true, InstanceState::Running);
            self
        }

        fn secret(&mut self, name: &str) -> &mut Self {
            let record = SecretRecord {
                source: SecretSource::Given,
                version: 0,
                envelope: None,
                changed_at: NOW,
                changed_by: PrincipalName("admin:root".to_owned()),
            };
            let id = format!("shop/{name}").parse().unwrap();
            self.world.secrets.insert(id, stored(record));
            self
        }

        fn stuck(&self, name: &str) -> String {
            let picture = Picture {
                world: &self.world,
                project: &"shop".parse().unwrap(),
                instances: &self.instances,
            };
            let stuck = picture.stuck(&name.parse().unwrap());
            stuck.map_or_else(String::new, |reason| {
                format!("{} [{}]", reason.message, reason.code)
            })
        }
    }

    /// Something that is so.
    type Given = fn(&mut Case) -> &mut Case;

    #[test]
    fn only_what_cannot_come_is_stuck() {
        const SERVE: Purpose = Purpose::Serve;
        const ONCE: Purpose = Purpose::BeforeDeploy;
        let table: [(Given, &str); 20] = [
            (|case| case.ready("web"), ""),
            (|case| case.rolling("web", None), ""),
            // A place.
            (
                |case| case.pending("web", "labels"),
                "web-1: so it is [labels]",
            ),
            (|case| case.pending("web", "labels").lost(), ""),
            (|case| case.pending("web", "no-node"), ""),
            (|case| case.pending("web", "volume-on-lost-node").lost(), ""),
            (
                |case| case.pending("web", "volume-on-removed-node").lost(),
                "web-1: so it is [volume-on-removed-node]",
            ),
            (
                |case| case.pending("web", "no-room"),
                "web-1: so it is [no-room]",
            ),
            (|case| case.pending("web", "no-room").leaving("other"), ""),
            (
                |case| case.pending("web", "no-room").rolling("other", Some(1)),
                "",
            ),
            (|case| case.pending("web", "no-room").lost(), ""),
            (
                |case| {
                    case.pending("web", "no-room")
                        .large("web")
                        .leaving("other")
                        .lost()
                },
                "web-1: so it is [no-room]",
            ),
            // A secret.
            (
                |case| {
                    case.needs("web", "key").secret("key");
                    case.says("web", "waits-for-secret", SERVE)
                },
                "web-1: so it is [waits-for-secret]",
            ),
            (
                |case| {
                    case.needs("web", "key")
                        .says("web", "waits-for-secret", SERVE)
                },
                "",
            ),
            // A need.
            (
                |case| case.needs("web", "db").says("web", CRASH_LOOP, SERVE),
                "web needs db, which is not declared [need-missing]",
            ),
            (
                |case| {
                    case.needs("web", "db")
                        .ready("db")
                        .says("web", CRASH_LOOP, SERVE)
                },
                "",
            ),
            (
                |case| {
                    case.needs("web", "db").pending("db", "labels");
                    case.says("web", "waits-for-needs", SERVE)
                },
                "",
            ),
            (
                |case| {
                    case.needs("web", "db").pending("db", "labels");
                    case.says("web", "waits-for-needs", ONCE)
                },
                "web needs db: db-1: so it is [need-stuck]",
            ),
            (
                |case| {
                    case.needs("web", "api").needs("api", "db");
                    case.says("web", CRASH_LOOP, SERVE)
                        .says("api", CRASH_LOOP, SERVE)
                },
                "web needs api: api needs db, which is not declared [need-stuck]",
            ),
            (
                |case| {
                    case.needs("web", "api").needs("api", "web");
                    case.says("web", CRASH_LOOP, SERVE)
                        .says("api", CRASH_LOOP, SERVE)
                },
                "",
            ),
        ];
        for (index, (given, expected)) in table.into_iter().enumerate() {
            let mut case = Case::new();
            case.entry("web");
            given(&mut case);
            assert_eq!(case.stuck("web"), expected, "case {index}");
        }
    }
}
