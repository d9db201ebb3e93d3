//! What is waited for and can't come: to wait out the time would tell nobody more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::wire::NodeState;
use model::control::Reason;
use model::ids::{ProjectName, ResourceName};

use super::{Subject, World};
use crate::failure::Failure;

/// A verdict must stand this long: a node may be about to join, and what was asked for a moment ago may not be decided on yet.
const STANDS_FOR: Duration = Duration::from_secs(5);

/// Since when the server says of a service that what it lacks can't come.
#[derive(Default)]
pub(super) struct Verdicts {
    since: BTreeMap<(ProjectName, ResourceName), Instant>,
}

impl Verdicts {
    /// The services that have been stuck for long enough.
    pub fn look(&mut self, world: &World, now: Instant) -> Vec<(ResourceName, Reason)> {
        let joins = |state| state == NodeState::Unknown;
        if world.nodes.iter().any(|node| joins(node.state)) {
            self.since.clear();
            return Vec::new();
        }
        let mut standing = BTreeMap::new();
        let mut found = Vec::new();
        for (status, _) in &world.projects {
            for service in &status.services {
                let Some(reason) = &service.stuck else {
                    continue;
                };
                let key = (status.project.clone(), service.name.clone());
                let since = self.since.get(&key).copied().unwrap_or(now);
                if now.duration_since(since) >= STANDS_FOR {
                    found.push((service.name.clone(), reason.clone()));
                }
                standing.insert(key, since);
            }
        }
        self.since = standing;
        found
    }
}

/// What was there to be waited for, and was deleted.
pub(super) fn deleted(world: &World, subjects: &[Subject]) -> Option<ResourceName> {
    let each = subjects.iter().zip(&world.projects);
    each.flat_map(|(subject, (status, _))| {
        let named = subject.services.iter().flatten();
        named.filter(|name| status.services.iter().all(|service| service.name != **name))
    })
    .next()
    .cloned()
}

/// `None` where nothing is stuck.
pub fn failure(stuck: &[(ResourceName, Reason)]) -> Option<Failure> {
    let (first, _) = stuck.first()?;
    let lines: String = stuck
        .iter()
        .map(|(service, reason)| format!("\n  {service}: {reason} [{}]", reason.code))
        .collect();
    Some(Failure::failed(format!(
        "it can't become ready until something is changed [stuck]{lines}\n  remedy: `mainland explain {first}` says more"
    )))
}

pub fn deletion(service: &ResourceName) -> Failure {
    Failure::failed(format!("{service} was deleted meanwhile [deleted]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(services: &[(&str, bool)], node: &str) -> World {
        let service = |(name, stuck): &(&str, bool)| {
            let mut service = serde_json::json!({
                "name": name, "wanted": 1, "ready": 0, "zones": {}, "release": 1, "rollout": null, "scale": null,
                "external": false, "needs": [], "demand": 0, "reason": null,
            });
            if *stuck {
                service["stuck"] = serde_json::json!({ "code": "no-room", "message": "so it is" });
            }
            service
        };
        let services: Vec<_> = services.iter().map(service).collect();
        let status = serde_json::json!({
            "project": "shop", "routes": [], "attention": [], "services": services,
        });
        let node = serde_json::json!({
            "name": "a", "region": "home", "zone": "a", "role": "worker", "state": node, "pid": null, "address": null,
            "capacity": { "cpu": "1", "memory": "1Gi" }, "used": { "cpu": "0", "memory": "0" }, "cordoned": false,
            "reason": { "code": "joined", "message": "joined" }, "heard_ms_ago": null, "version": null,
        });
        World {
            nodes: vec![serde_json::from_value(node).unwrap()],
            projects: vec![(serde_json::from_value(status).unwrap(), Vec::new())],
        }
    }

    #[test]
    fn a_verdict_stands_for_a_while_before_it_counts() {
        let begin = Instant::now();
        let mut verdicts = Verdicts::default();
        let stuck: &[(&str, bool)] = &[("db", false), ("web", true)];
        let well: &[(&str, bool)] = &[("web", false)];
        // Second by second: what is seen, whether that ends the wait.
        let table = [
            (0, stuck, "ready", false),
            (4, stuck, "ready", false),
            (5, stuck, "ready", true),
            // A node that comes may change all.
            (6, stuck, "unknown", false),
            (7, stuck, "ready", false),
            (11, stuck, "ready", false),
            (12, stuck, "ready", true),
            (13, well, "ready", false),
            (14, stuck, "ready", false),
            (18, stuck, "ready", false),
            (19, stuck, "ready", true),
        ];
        for (second, services, node, ends) in table {
            let now = begin + Duration::from_secs(second);
            let found = verdicts.look(&world(services, node), now);
            let said = failure(&found);
            assert_eq!(said.is_some(), ends, "at {second}");
            if let Some(said) = said {
                let line = "\n  web: so it is [no-room]\n";
                assert!(said.message.contains(line), "{}", said.message);
                assert_eq!(said.exit_code, 1);
            }
        }
    }

    #[test]
    fn what_was_deleted_is_not_waited_for() {
        let subject = |services: &[&str]| {
            let services = services.iter().map(|name| name.parse().unwrap());
            Subject::services("shop".parse().unwrap(), services)
        };
        let world = world(&[("web", false)], "ready");
        assert_eq!(deleted(&world, &[subject(&["web"])]), None);
        let gone = deleted(&world, &[subject(&["db", "web"])]).unwrap();
        assert_eq!(gone.as_str(), "db");
        let all = Subject::all_of("shop".parse().unwrap());
        assert_eq!(deleted(&world, &[all]), None);
    }
}
