//! What a person should know first.

use std::time::Duration;

use api::wire::{InstanceView, RouteStatus, ServiceStatus};
use model::compute::{InstanceState, Purpose};
use model::control::{Reason, RolloutPhase, Standing};
use model::ids::{NodeName, ProjectName, ResourceId, ResourceName};
use plan::Now;
use plan::backoff::CRASH_LOOP;

use crate::engines::{self, Source};
use crate::views::{alike, with_others};
use crate::world::{Entry, World};

/// Lines of one kind.
pub(super) const LINES_MOST: usize = 20;
/// A program that is not ready so long after its start waits for a person.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A project as `status` shows it.
pub(super) struct Seen<'a> {
    pub project: &'a ProjectName,
    pub services: &'a [ServiceStatus],
    pub routes: &'a [RouteStatus],
    pub instances: &'a [InstanceView],
}

impl Seen<'_> {
    pub fn wants(&self, world: &World, now: Now) -> Vec<Reason> {
        let mut all = lost_nodes(world);
        all.extend(self.failed_rollouts());
        all.extend(self.without_copies(world));
        all.extend(self.without_service());
        all.extend(self.troubled(now));
        all.extend(self.old_secrets(world));
        all.extend(self.demand());
        all.extend(self.kept_data(world));
        all
    }

    fn failed_rollouts(&self) -> impl Iterator<Item = Reason> {
        let services = self.services.iter();
        let rollouts = services.filter_map(|one| Some((&one.name, one.rollout.as_ref()?)));
        let failed = rollouts.filter(|(_, rollout)| rollout.phase == RolloutPhase::Failed);
        failed.take(LINES_MOST).map(|(name, rollout)| {
            let remedy = rollout.from.map_or_else(String::new, |from| {
                format!("; `mainland rollback {name}` makes release {from} what is wanted")
            });
            let message = format!("{name}: {}{remedy}", rollout.reason.message);
            Reason {
                message,
                ..rollout.reason.clone()
            }
        })
    }

    /// Scaled to nothing by hand, or by its manifest though a route leads to it.
    fn without_copies(&self, world: &World) -> Vec<Reason> {
        let services = world.services_of(self.project);
        let without =
            services.filter(|(_, entry, record)| entry.wanted() == 0 && !record.spec.is_external());
        let told = without.filter_map(|(name, entry, record)| {
            let nowhere = self.nowhere(name);
            let by_hand = entry.scale.as_ref().filter(|_| record.spec.replicas > 0);
            let message = match by_hand {
                Some(scale) => format!(
                    "{name} was scaled to 0 by {}{}: `mainland delete scale {name}` returns to the manifest's number",
                    scale.owner,
                    nowhere.map_or(String::new(), |nowhere| format!(", so {nowhere}"))
                ),
                None => format!("{name} has no copies, as was declared, so {}", nowhere?),
            };
            Some(Reason::new("scaled-to-0", message))
        });
        told.take(LINES_MOST).collect()
    }

    /// Routes whose service was deleted.
    fn without_service(&self) -> Vec<Reason> {
        let is_there = |to: &ResourceName| self.services.iter().any(|one| one.name == *to);
        let lost = self.routes.iter().filter(|route| !is_there(&route.to));
        let told = lost.map(|route| {
            let place = format!("{}{}", route.host, route.path);
            let message = format!(
                "{place} leads to {}, which is not there: apply a manifest that has it, or `mainland delete route {place}`",
                route.to
            );
            Reason::new("route-to-nothing", message)
        });
        told.take(LINES_MOST).collect()
    }

    /// That the routes to it lead nowhere. `None`: there are none.
    fn nowhere(&self, to: &ResourceName) -> Option<String> {
        let routes = self.routes.iter().filter(|route| route.to == *to);
        let places: Vec<_> = routes
            .map(|route| format!("{}{}", route.host, route.path))
            .collect();
        match places.as_slice() {
            [] => None,
            [one] => Some(format!("{one} leads nowhere")),
            many => Some(format!("{} lead nowhere", many.join(", "))),
        }
    }

    /// Instances that end again and again, have no place, or never answer; those with one reason as one.
    fn troubled(&self, now: Now) -> impl Iterator<Item = Reason> {
        let troubled = self.instances.iter().filter_map(move |view| {
            let reason = view.reason.as_ref()?;
            let is_troubled = reason.code == CRASH_LOOP
                || view.state == InstanceState::Failed
                || (view.state == InstanceState::Pending && view.node.is_none())
                || never_answers(view, reason, now);
            is_troubled.then_some((view, reason))
        });
        let told = alike(troubled, |(view, reason)| {
            (&view.service, &reason.code, &reason.message)
        });
        let told = told.into_iter();
        told.take(LINES_MOST).map(|((view, reason), others)| {
            let mut message = format!("{}: {reason}", with_others(&view.name, others));
            if reason.code == "not-ready" {
                for remedy in &reason.detail {
                    message += &format!("; {remedy}");
                }
            }
            Reason::new(reason.code.clone(), message)
        })
    }

    /// Copies that were started before a secret that they need got its present value.
    fn old_secrets(&self, world: &World) -> Vec<Reason> {
        let services = world.services_of(self.project);
        let told = services.filter_map(|(name, entry, _)| {
            let mut secrets: Vec<String> = Vec::new();
            let mut copies = Vec::new();
            for view in self.instances.iter().filter(|view| view.service == *name) {
                let old = old_secrets_of(world, entry, view);
                if !old.is_empty() {
                    copies.push(view.name.to_string());
                }
                secrets.extend(old);
            }
            secrets.sort_unstable();
            secrets.dedup();
            if copies.is_empty() {
                return None;
            }
            let message = format!(
                "{} still {} with an older value of {}: `mainland restart {name}` gives the new one",
                copies.join(", "),
                if copies.len() == 1 { "runs" } else { "run" },
                secrets.join(" and ")
            );
            Some(Reason::new("old-secret", message))
        });
        told.take(LINES_MOST).collect()
    }

    /// What services left behind that are gone.
    fn kept_data(&self, world: &World) -> Vec<Reason> {
        let told = world.kept_of(self.project).map(|(id, entry)| {
            let group = entry.group();
            let nodes = group.nodes_with_data();
            let nodes: Vec<_> = nodes.iter().map(NodeName::as_str).collect();
            let name = &id.name;
            let (nodes, project) = (nodes.join(", "), self.project);
            let message = format!(
                "data of {name}, which was deleted, is kept on {nodes}: a {name} that is applied again finds it, and `mainland delete service {name} -p {project} --delete-data` deletes it"
            );
            Reason::new("data-kept", message)
        });
        told.take(LINES_MOST).collect()
    }

    fn demand(&self) -> impl Iterator<Item = Reason> {
        let waited_for = self.services.iter();
        let waited_for = waited_for.filter(|service| service.demand > 0 && service.ready == 0);
        waited_for.map(|service| {
            let wait = match service.demand {
                1 => "1 request waits".to_owned(),
                many => format!("{many} requests wait"),
            };
            let message = format!("{wait} for {}, which has no ready instance", service.name);
            Reason::new("demand", message)
        })
    }
}

fn lost_nodes(world: &World) -> Vec<Reason> {
    let nodes = world.nodes.values();
    let lost = nodes.filter(|node| node.standing == Standing::Lost);
    lost.take(LINES_MOST)
        .map(|node| node.reason.clone())
        .collect()
}

/// A program counts as starting until it has answered once.
fn has_process(view: &InstanceView) -> bool {
    matches!(view.state, InstanceState::Starting | InstanceState::Running)
}

fn never_answers(view: &InstanceView, reason: &Reason, now: Now) -> bool {
    let since = view.started_at.map(|start| now.at.duration_since(start));
    has_process(view)
        && reason.code == "not-ready"
        && since.is_some_and(|since| since >= READY_WITHIN.try_into().unwrap_or_default())
}

/// The secrets whose value changed after it was started. A placement is dated by the clock that dates the secret; a start by that of the node.
fn old_secrets_of(world: &World, entry: &Entry, view: &InstanceView) -> Vec<String> {
    let group = entry.group();
    let placement = group
        .placements
        .iter()
        .find(|placement| placement.instance == view.name);
    let (Some(placement), Some(started_at), true) = (placement, view.started_at, has_process(view))
    else {
        return Vec::new();
    };
    let Some(release) = entry.releases.get(&placement.release) else {
        return Vec::new();
    };
    if placement.purpose != Purpose::Serve {
        return Vec::new();
    }
    let service = ResourceId::new(view.project.clone(), view.service.clone());
    let given = engines::given(world, &service, &release.spec).into_iter();
    let old = given.filter_map(|(_, source)| match source {
        Source::Secret(id) => {
            let secret = world.secrets.get(&id)?;
            // The first value is none that took another's place.
            let is_old = secret.version > 1
                && placement.at < secret.changed_at
                && started_at < secret.changed_at;
            is_old.then(|| id.name.to_string())
        }
        Source::Password { .. } | Source::OfItself => None,
    });
    old.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Current, SecretRecord, ServiceRecord};
    use crate::testing::{release, service, stored};
    use jiff::Timestamp;
    use model::boundary::{PrincipalName, SecretSource};
    use model::compute::{Need, PlacementGroup, Scale};
    use model::ids::ReleaseNumber;
    use plan::Instant;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What `status` is made of.
    #[derive(Default)]
    struct Case {
        world: World,
        services: Vec<ServiceStatus>,
        routes: Vec<RouteStatus>,
        instances: Vec<InstanceView>,
    }

    impl Case {
        /// A service of one copy, as the world has it and as `status` shows it.
        fn service(&mut self, name: &str) -> &mut Entry {
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
            let status = json!({
                "name": name, "wanted": 1, "ready": 1, "zones": {}, "release": 1, "rollout": null, "scale": null,
                "external": false, "needs": [], "demand": 0, "reason": null,
            });
            self.services.push(serde_json::from_value(status).unwrap());
            let entry = Entry {
                record: Some(stored(record)),
                releases: [(first, stored(release(first)))].into(),
                placements: Some(stored(PlacementGroup::default())),
                ..Entry::default()
            };
            let id: ResourceId = format!("shop/{name}").parse().unwrap();
            self.world.services.entry(id).or_insert(entry)
        }

        fn route(&mut self, path: &str, to: &str) {
            self.routes.push(RouteStatus {
                port: None,
                host: "shop.localhost".to_owned(),
                path: path.to_owned(),
                to: to.parse().unwrap(),
                serving: false,
            });
        }

        fn scaled(&mut self, name: &str, replicas: u32) {
            let id: ResourceId = format!("shop/{name}").parse().unwrap();
            let entry = self.world.services.get_mut(&id).unwrap();
            entry.scale = Some(stored(Scale {
                replicas,
                owner: PrincipalName("admin:root".to_owned()),
                at: at(0),
            }));
        }

        fn instance(&mut self, name: &str, state: &str, node: Option<&str>, reason: Reason) {
            let service = name.rsplit_once('-').unwrap().0;
            let view = json!({
                "name": name, "service": service, "node": node, "zone": null, "state": state, "ready": false, "pid": null,
                "address": null, "restarts": 0, "version": 1, "project": "shop", "started_at": at(100), "reason": reason,
            });
            self.instances.push(serde_json::from_value(view).unwrap());
        }

        fn placed(&mut self, name: &str, second: i64) {
            let placement = json!({
                "instance": name, "release": 1, "node": "a", "epoch": 1, "wanted": "run",
                "reason": { "code": "placed", "message": "placed" }, "at": at(second),
            });
            let id = format!("shop/{}", name.rsplit_once('-').unwrap().0);
            let entry = self.world.services.get_mut(&id.parse().unwrap()).unwrap();
            let group = &mut entry.placements.as_mut().unwrap().value;
            group
                .placements
                .push(serde_json::from_value(placement).unwrap());
        }

        /// What is said 105 seconds after the epoch, and so many later.
        fn says(&self, later: u64) -> Vec<String> {
            let now = Now {
                instant: Instant::default(),
                at: at(105) + Duration::from_secs(later),
            };
            let seen = Seen {
                project: &"shop".parse().unwrap(),
                services: &self.services,
                routes: &self.routes,
                instances: &self.instances,
            };
            let all = seen.wants(&self.world, now).into_iter();
            all.map(|reason| format!("{reason} [{}]", reason.code))
                .collect()
        }
    }

    #[test]
    fn copies_that_say_the_same_are_told_once() {
        let mut case = Case::default();
        let full = || Reason::new("no-room", "full");
        case.instance("web-1", "running", Some("a"), Reason::new("so", "well"));
        case.instance("web-2", "pending", None, full());
        case.instance("web-3", "pending", None, full());
        case.instance("web-4", "pending", Some("a"), Reason::new("so", "comes"));
        case.instance("web-5", "pending", None, full());
        case.instance(
            "web-6",
            "failed",
            Some("a"),
            Reason::new("so", "exit code 1"),
        );
        case.instance("api-1", "pending", None, full());
        assert_eq!(
            case.says(0),
            [
                "web-2 and 2 more: full [no-room]",
                "web-6: exit code 1 [so]",
                "api-1: full [no-room]"
            ]
        );
    }

    #[test]
    fn a_route_that_leads_nowhere_says_why() {
        let mut case = Case::default();
        case.service("web");
        case.service("api");
        case.service("idle")
            .record
            .as_mut()
            .unwrap()
            .value
            .spec
            .replicas = 0;
        case.service("asleep")
            .record
            .as_mut()
            .unwrap()
            .value
            .spec
            .replicas = 0;
        case.route("/", "web");
        case.route("/api", "api");
        case.route("/v2", "api");
        case.route("/idle", "idle");
        case.route("/cart", "cart");
        case.scaled("api", 0);
        assert_eq!(
            case.says(0),
            [
                "api was scaled to 0 by admin:root, so shop.localhost/api, shop.localhost/v2 lead nowhere: `mainland delete scale api` returns to the manifest's number [scaled-to-0]",
                "idle has no copies, as was declared, so shop.localhost/idle leads nowhere [scaled-to-0]",
                "shop.localhost/cart leads to cart, which is not there: apply a manifest that has it, or `mainland delete route shop.localhost/cart` [route-to-nothing]",
            ]
        );
        case.scaled("api", 1);
        case.routes.truncate(3);
        assert_eq!(case.says(0), [""; 0]);
    }

    #[test]
    fn a_failed_rollout_is_told_with_its_service_and_the_remedy() {
        let mut case = Case::default();
        for (name, from) in [("web", Some(2)), ("api", None)] {
            case.service(name);
            let rollout = json!({
                "to": 3, "from": from, "phase": "failed", "started_at": at(0), "progressed_at": at(0),
                "reason": { "code": "given-up", "message": "release 3 was given up" },
            });
            let status = case.services.last_mut().unwrap();
            status.rollout = Some(serde_json::from_value(rollout).unwrap());
        }
        assert_eq!(
            case.says(0),
            [
                "web: release 3 was given up; `mainland rollback web` makes release 2 what is wanted [given-up]",
                "api: release 3 was given up [given-up]",
            ]
        );
    }

    #[test]
    fn what_never_answers_is_told_after_a_while_with_the_remedy() {
        let mut case = Case::default();
        let fails = Reason::new("not-ready", "its health probe fails: refused");
        let fails = fails.with_detail(vec!["it should listen".to_owned()]);
        case.instance("plain-1", "starting", Some("a"), fails);
        assert_eq!(case.says(0), [""; 0]);
        assert_eq!(
            case.says(5),
            ["plain-1: its health probe fails: refused; it should listen [not-ready]"]
        );
    }

    #[test]
    fn who_runs_with_an_older_value_of_a_secret_is_named() {
        let well = || Reason::new("so", "well");
        // The secret's version and change, when the copy was placed, whether it is told. The copy was started at 100.
        let table = [
            (2, 101, 90, true),
            (2, 99, 90, false),
            // It is new to the clock that dates both.
            (2, 101, 102, false),
            // What it waited for is what it got.
            (1, 101, 90, false),
        ];
        for (version, changed, placed, told) in table {
            let mut case = Case::default();
            let entry = case.service("pay");
            let first = entry.releases.get_mut(&ReleaseNumber(1)).unwrap();
            let needs = &mut first.value.spec.needs;
            needs.insert("key".parse().unwrap(), Need::default());
            let secret = SecretRecord {
                source: SecretSource::Given,
                version,
                envelope: None,
                changed_at: at(changed),
                changed_by: PrincipalName("admin:root".to_owned()),
            };
            let id = "shop/key".parse().unwrap();
            case.world.secrets.insert(id, stored(secret));
            case.placed("pay-1", placed);
            case.placed("pay-2", placed);
            case.instance("pay-1", "running", Some("a"), well());
            case.instance("pay-2", "running", Some("a"), well());
            case.instance("pay-3", "running", Some("a"), well());
            let expected = "pay-1, pay-2 still run with an older value of key: `mainland restart pay` gives the new one [old-secret]";
            let expected = if told { vec![expected] } else { vec![] };
            assert_eq!(case.says(0), expected, "{version} {changed} {placed}");
        }
    }
}
