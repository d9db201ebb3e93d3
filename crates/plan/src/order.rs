//! What starts after what, and which needs form a cycle.
//!
//! A service starts after those it needs have an endpoint. Needs that lie on a cycle order nothing: a cycle is legal, and named.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::compute::Service;
use model::ids::ResourceName;

/// The start order of one project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// For each service what it waits for, only where that is something.
    pub after: BTreeMap<ResourceName, Vec<ResourceName>>,
    /// Each ring of needs once, beginning with its first name: `[a, b, c]` is `a` needs `b` needs `c` needs `a`.
    pub cycles: Vec<Vec<ResourceName>>,
}

impl Order {
    pub fn start_after(&self, service: &ResourceName) -> &[ResourceName] {
        self.after.get(service).map_or(&[], Vec::as_slice)
    }
}

/// The order among the services of one project. Optional needs, external services and what is no service order nothing.
pub fn order<'a>(services: impl IntoIterator<Item = (&'a ResourceName, &'a Service)>) -> Order {
    let services: BTreeMap<_, _> = services.into_iter().collect();
    let edges: Edges<'_> = services
        .iter()
        .map(|(name, service)| (*name, waits_for(service, &services)))
        .collect();
    let reach: Edges<'_> = edges
        .keys()
        .map(|name| (*name, reachable(name, &edges)))
        .collect();
    let mut order = Order::default();
    for (name, needs) in &edges {
        let after: Vec<_> = needs
            .iter()
            .filter(|need| !reach[*need].contains(name))
            .map(|need| (*need).clone())
            .collect();
        if !after.is_empty() {
            order.after.insert((*name).clone(), after);
        }
    }
    order.cycles = cycles(&edges, &reach);
    order
}

type Edges<'a> = BTreeMap<&'a ResourceName, BTreeSet<&'a ResourceName>>;

fn waits_for<'a>(
    service: &'a Service,
    services: &BTreeMap<&'a ResourceName, &'a Service>,
) -> BTreeSet<&'a ResourceName> {
    let is_ordered =
        |name: &ResourceName| services.get(name).is_some_and(|found| !found.is_external());
    service
        .needs
        .iter()
        .filter(|(name, need)| !need.optional && is_ordered(name))
        .map(|(name, _)| name)
        .collect()
}

/// All that can be reached over one edge or more.
fn reachable<'a>(from: &'a ResourceName, edges: &Edges<'a>) -> BTreeSet<&'a ResourceName> {
    let mut reached = BTreeSet::new();
    let mut ahead: Vec<_> = edges[from].iter().copied().collect();
    while let Some(name) = ahead.pop() {
        if reached.insert(name) {
            ahead.extend(edges[name].iter().copied());
        }
    }
    reached
}

/// One ring for each set of services that need each other, through the first of its names.
fn cycles(edges: &Edges<'_>, reach: &Edges<'_>) -> Vec<Vec<ResourceName>> {
    let mut named = BTreeSet::new();
    let mut cycles = Vec::new();
    for name in edges.keys().filter(|name| reach[**name].contains(**name)) {
        if named.contains(name) {
            continue;
        }
        named.extend(
            reach[name]
                .iter()
                .filter(|other| reach[**other].contains(name))
                .copied(),
        );
        named.insert(name);
        cycles.push(shortest_ring(name, edges));
    }
    cycles
}

/// The shortest way from `start` back to itself. There is one.
fn shortest_ring<'a>(start: &'a ResourceName, edges: &Edges<'a>) -> Vec<ResourceName> {
    let mut came_from: BTreeMap<&ResourceName, &ResourceName> = BTreeMap::new();
    let mut ahead = VecDeque::from([start]);
    while let Some(name) = ahead.pop_front() {
        if edges[name].contains(start) {
            let mut ring = vec![name.clone()];
            let mut at = name;
            while at != start {
                at = came_from[at];
                ring.push(at.clone());
            }
            ring.reverse();
            return ring;
        }
        for next in &edges[name] {
            if *next != start && !came_from.contains_key(next) {
                came_from.insert(next, name);
                ahead.push_back(next);
            }
        }
    }
    vec![start.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::service;
    use model::compute::{Need, Work};

    fn names(texts: &[&str]) -> Vec<ResourceName> {
        texts
            .iter()
            .map(|text| ResourceName::new(*text).unwrap())
            .collect()
    }

    /// `a: b c?` is: `a` needs `b`, and `c` optionally.
    fn check(table: &[&str], after: &[(&str, &[&str])], cycles: &[&[&str]]) {
        let mut services = BTreeMap::new();
        for line in table {
            let (name, needs) = line.split_once(':').unwrap();
            let mut spec = service(1);
            for need in needs.split_whitespace() {
                let optional = need.ends_with('?');
                let name = ResourceName::new(need.trim_end_matches('?')).unwrap();
                spec.needs.insert(
                    name,
                    Need {
                        optional,
                        ..Need::default()
                    },
                );
            }
            services.insert(ResourceName::new(name).unwrap(), spec);
        }
        let found = order(&services);
        let after: BTreeMap<_, _> = after
            .iter()
            .map(|(name, needs)| (ResourceName::new(*name).unwrap(), names(needs)))
            .collect();
        assert_eq!(found.after, after, "{table:?}");
        let cycles: Vec<_> = cycles.iter().map(|ring| names(ring)).collect();
        assert_eq!(found.cycles, cycles, "{table:?}");
    }

    #[test]
    fn order_reads_like_a_table() {
        check(
            &["a: b c", "b: c", "c:"],
            &[("a", &["b", "c"]), ("b", &["c"])],
            &[],
        );
        check(&["a: secret b?", "b:"], &[], &[]);
        check(&["a: b", "b: a"], &[], &[&["a", "b"]]);
        check(&["a: a"], &[], &[&["a"]]);
        check(
            &["front: a", "a: b", "b: c store", "c: a", "store:"],
            &[("b", &["store"]), ("front", &["a"])],
            &[&["a", "b", "c"]],
        );
        check(
            &["a: b", "b: a", "x: y", "y: x"],
            &[],
            &[&["a", "b"], &["x", "y"]],
        );
    }

    #[test]
    fn a_topic_waits_for_none_of_its_consumers() {
        let [events, mail, web] =
            ["events", "mail", "web"].map(|name| ResourceName::new(name).unwrap());
        let topic = service(1);
        let (mut consumer, mut publisher) = (service(1), service(1));
        let subscription = model::state::Subscription {
            path: "/".to_owned(),
            max_in_flight: 1,
            timeout: model::units::Span::seconds(1),
        };
        consumer.on.insert(events.clone(), subscription);
        publisher.needs.insert(events.clone(), Need::default());
        let found = order([(&events, &topic), (&mail, &consumer), (&web, &publisher)]);
        assert_eq!(found.after, BTreeMap::from([(web, vec![events])]));
    }

    #[test]
    fn nobody_waits_for_what_runs_elsewhere() {
        let (a, pay) = (
            ResourceName::new("a").unwrap(),
            ResourceName::new("pay").unwrap(),
        );
        let mut caller = service(1);
        caller.needs.insert(pay.clone(), Need::default());
        let mut external = service(1);
        external.work = Work::External {
            addresses: vec!["pay.example:443".to_owned()],
            login: None,
        };
        assert_eq!(order([(&a, &caller), (&pay, &external)]), Order::default());
    }
}
