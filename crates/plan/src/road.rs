//! What each node is told about the way to others, and how a node takes it.
//!
//! A node is told only what its own instances need; an edge, what routes name. Where a service answers is observation, and a leader that has not
//! yet heard from everyone knows only part of it. It says so ([`Road::complete`]), and from a partial view endpoints are only added
//! ([`merge`]): a restarted leader with an empty memory empties no road.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::compute::ports;
use model::compute::{
    InstanceReport, InstanceState, Placement, PlacementGroup, Purpose, Service, Wanted, Work,
};
use model::control::{NodeRecord, NodeRole, Standing};
use model::ids::{InstanceId, NodeName, ReleaseNumber, ResourceId, ResourceName};
use model::traffic::{Address, Callers, Destination, Endpoint, GatewayRoute, Road};

/// One service as the road sees it.
#[derive(Debug, Clone)]
pub struct ServiceEntry<'a> {
    /// Of the release that serves, or is being rolled out: what it asks of callers.
    pub spec: &'a Service,
    /// The releases that its placements name, for their needs.
    pub releases: BTreeMap<ReleaseNumber, &'a Service>,
    pub group: &'a PlacementGroup,
}

/// Everything that roads are made from.
pub struct World<'a> {
    pub nodes: &'a BTreeMap<NodeName, NodeRecord>,
    pub services: &'a BTreeMap<ResourceId, ServiceEntry<'a>>,
    pub routes: &'a [GatewayRoute],
    /// What the node that holds the placement reports of it.
    pub reports: &'a dyn Fn(&InstanceId) -> Option<&'a InstanceReport>,
    /// Where a node's proxy answers, if it said so.
    pub mesh: &'a dyn Fn(&NodeName) -> Option<SocketAddr>,
    /// [`crate::nodes::State::has_heard_all`].
    pub complete: bool,
}

/// What every road is put together from, made once for all nodes.
#[derive(Debug, Clone)]
pub struct Index {
    destinations: BTreeMap<ResourceId, Destination>,
    callers: BTreeMap<ResourceId, Callers>,
    /// On each node: its services, and what they need.
    local: BTreeMap<NodeName, Local>,
    edges: BTreeSet<NodeName>,
    routes: Vec<GatewayRoute>,
    complete: bool,
}

#[derive(Debug, Clone, Default)]
struct Local {
    services: BTreeSet<ResourceId>,
    needs: BTreeSet<ResourceId>,
}

impl Index {
    pub fn new(world: &World<'_>) -> Self {
        let mut routes = world.routes.to_vec();
        routes.sort_by(|a, b| (&a.host, &a.path).cmp(&(&b.host, &b.path)));
        let is_edge = |record: &&NodeRecord| record.role == NodeRole::Edge;
        Self {
            destinations: destinations(world),
            callers: callers(world),
            local: local(world),
            edges: world
                .nodes
                .values()
                .filter(is_edge)
                .map(|record| record.name.clone())
                .collect(),
            routes,
            complete: world.complete,
        }
    }

    /// What one node is told. The same world gives the same road, in the same order.
    pub fn road(&self, node: &NodeName) -> Road {
        let is_edge = self.edges.contains(node);
        let nothing = Local::default();
        let local = self.local.get(node).unwrap_or(&nothing);
        let routed = self
            .routes
            .iter()
            .filter(|_| is_edge)
            .map(|route| &route.to);
        let needed: BTreeSet<_> = local.needs.iter().chain(routed).collect();
        Road {
            complete: self.complete,
            destinations: needed
                .into_iter()
                .filter_map(|id| self.destinations.get(id).cloned())
                .collect(),
            routes: if is_edge {
                self.routes.clone()
            } else {
                Vec::new()
            },
            callers: local
                .services
                .iter()
                .filter_map(|id| self.callers.get(id).cloned())
                .collect(),
            // Who shares a machine is not known here.
            owners: Vec::new(),
        }
    }
}

/// Services, and each of their named ports as if it were one.
fn destinations(world: &World<'_>) -> BTreeMap<ResourceId, Destination> {
    let all = world.services.iter();
    all.flat_map(|(id, entry)| {
        let own = destination(world, id, entry);
        let ports = entry.spec.ports_of(&id.name);
        let ports: Vec<_> = ports
            .map(|(name, port, protocol)| Destination {
                service: ResourceId::new(id.project.clone(), name),
                protocol,
                endpoints: endpoints_at(id, entry, &own.endpoints, port),
                ..own.clone()
            })
            .collect();
        ports.into_iter().chain([own])
    })
    .map(|found| (found.service.clone(), found))
    .collect()
}

/// Where those copies answer at a port whose release has it.
fn endpoints_at(
    id: &ResourceId,
    entry: &ServiceEntry<'_>,
    own: &[Endpoint],
    port: &ResourceName,
) -> Vec<Endpoint> {
    let at_port = |endpoint: &Endpoint| {
        let placements = entry.group.placements.iter();
        let mut same = placements.filter(|placed| placed.instance == endpoint.instance.name);
        let release = entry.releases.get(&same.next()?.release)?;
        let name = ports::instance_of(&endpoint.instance.name, &id.name, port);
        Some(Endpoint {
            instance: InstanceId::new(
                id.project.clone(),
                name.filter(|_| release.ports.contains_key(port))?,
            ),
            ..endpoint.clone()
        })
    };
    own.iter().filter_map(at_port).collect()
}

fn destination(world: &World<'_>, id: &ResourceId, entry: &ServiceEntry<'_>) -> Destination {
    // What runs before a rollout answers nobody.
    let copies = |placement: &&Placement| placement.purpose == Purpose::Serve;
    let placements = entry.group.placements.iter().filter(copies);
    Destination {
        service: id.clone(),
        protocol: entry.spec.protocol,
        traffic: entry.spec.traffic,
        endpoints: endpoints(world, id, placements.collect()),
        external: match &entry.spec.work {
            Work::External { addresses, .. } => addresses
                .iter()
                .filter_map(|address| external(address))
                .collect(),
            Work::Process { .. } | Work::Engine { .. } => Vec::new(),
        },
    }
}

/// Those that are ready. Where none is, those that run and were: a probe that fails everywhere tells of load, or of what all of them need, and a
/// slow answer is better than none.
fn endpoints(world: &World<'_>, id: &ResourceId, placements: Vec<&Placement>) -> Vec<Endpoint> {
    let those = |fits: fn(&InstanceReport) -> bool| -> Vec<Endpoint> {
        let all = placements.iter();
        all.filter_map(|placement| endpoint(world, id, placement, fits))
            .collect()
    };
    let ready = those(|report| report.ready);
    match ready.is_empty() {
        true => those(|report| report.state == InstanceState::Running),
        false => ready,
    }
}

/// One that fits, is wanted, and on a node that is present.
fn endpoint(
    world: &World<'_>,
    id: &ResourceId,
    placement: &Placement,
    fits: fn(&InstanceReport) -> bool,
) -> Option<Endpoint> {
    let node = world.nodes.get(&placement.node)?;
    let instance = InstanceId::new(id.project.clone(), placement.instance.clone());
    let report = (world.reports)(&instance)?;
    let serves = fits(report) && report.epoch == placement.epoch && placement.wanted == Wanted::Run;
    if !serves || node.standing != Standing::Present {
        return None;
    }
    Some(Endpoint {
        instance,
        epoch: placement.epoch,
        node: node.name.clone(),
        zone: node.zone.clone(),
        region: node.region.clone(),
        mesh: (world.mesh)(&node.name)?,
    })
}

/// `host:port`; the manifest has checked the form.
fn external(address: &str) -> Option<Address> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    Some(Address::External {
        host,
        port: port.parse().ok()?,
    })
}

/// The topics whose messages are pushed to each service, in what it should be or in a release that has a placement: their engines call it.
fn topics<'a>(id: &'a ResourceId, entry: &'a ServiceEntry<'_>) -> BTreeSet<ResourceId> {
    let placements = entry.group.placements.iter();
    let placed = placements.filter_map(|placement| entry.releases.get(&placement.release));
    let specs = placed.copied().chain([entry.spec]);
    let topics = specs.flat_map(|spec| spec.on.keys());
    topics
        .map(|topic| ResourceId::new(id.project.clone(), topic.clone()))
        .collect()
}

/// Who may call each service: those that declare it in a release that has a placement, the topics that it consumes, and gateways where a route
/// leads to it.
fn callers(world: &World<'_>) -> BTreeMap<ResourceId, Callers> {
    let mut from: BTreeMap<ResourceId, BTreeSet<ResourceId>> = BTreeMap::new();
    for (id, entry) in world.services {
        from.entry(id.clone())
            .or_default()
            .extend(topics(id, entry));
        for spec in entry
            .group
            .placements
            .iter()
            .filter_map(|placement| entry.releases.get(&placement.release))
        {
            for need in needs(world, id, spec) {
                from.entry(need).or_default().insert(id.clone());
            }
        }
    }
    let callers = |id: &ResourceId| Callers {
        service: id.clone(),
        from: from.get(id).into_iter().flatten().cloned().collect(),
        gateway: world.routes.iter().any(|route| route.to == *id),
    };
    let ports = world.services.iter().flat_map(|(id, entry)| {
        let ports = entry.spec.ports_of(&id.name);
        ports.map(|(name, ..)| ResourceId::new(id.project.clone(), name))
    });
    let all = world.services.keys().cloned().chain(ports);
    all.map(|id| {
        let callers = callers(&id);
        (id, callers)
    })
    .collect()
}

fn local(world: &World<'_>) -> BTreeMap<NodeName, Local> {
    let mut local: BTreeMap<NodeName, Local> = BTreeMap::new();
    let mut consumers: BTreeMap<ResourceId, BTreeSet<ResourceId>> = BTreeMap::new();
    for (id, entry) in world.services {
        for topic in topics(id, entry) {
            consumers.entry(topic).or_default().insert(id.clone());
        }
    }
    for (id, entry) in world.services {
        for placement in &entry.group.placements {
            let here = local.entry(placement.node.clone()).or_default();
            here.services.insert(id.clone());
            if let Some(spec) = entry.releases.get(&placement.release) {
                let ports = spec.ports_of(&id.name);
                let ports = ports.map(|(name, ..)| ResourceId::new(id.project.clone(), name));
                here.services.extend(ports);
            }
            here.needs
                .extend(consumers.get(id).into_iter().flatten().cloned());
            if let Some(spec) = entry.releases.get(&placement.release) {
                here.needs.extend(needs(world, id, spec));
            }
        }
    }
    local
}

/// With a service, all of its ports.
fn needs(world: &World<'_>, id: &ResourceId, spec: &Service) -> impl Iterator<Item = ResourceId> {
    let of_project = |name: ResourceName| ResourceId::new(id.project.clone(), name);
    spec.needs.keys().flat_map(move |need| {
        let own = of_project(need.clone());
        let entry = world.services.get(&own);
        let ports = entry
            .into_iter()
            .flat_map(|entry| entry.spec.ports_of(need));
        let ports = ports.map(|(name, ..)| of_project(name));
        ports.chain([own.clone()]).collect::<Vec<_>>()
    })
}

/// What a node goes by after being `told`, when it went by `previous`. From a partial view endpoints are only added, never removed.
pub fn merge(previous: &Road, told: &Road) -> Road {
    if told.complete {
        return told.clone();
    }
    let mut merged = told.clone();
    for known in &previous.destinations {
        match merged
            .destinations
            .iter_mut()
            .find(|destination| destination.service == known.service)
        {
            Some(destination) => add_known(destination, known),
            None => merged.destinations.push(known.clone()),
        }
    }
    merged
        .destinations
        .sort_by(|a, b| a.service.cmp(&b.service));
    merged
}

fn add_known(destination: &mut Destination, known: &Destination) {
    for endpoint in &known.endpoints {
        let told = destination
            .endpoints
            .iter()
            .any(|other| other.instance == endpoint.instance);
        if !told {
            destination.endpoints.push(endpoint.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{id, node_name, report, service, three_zones};
    use model::compute::{InstanceState, Need, Role};
    use model::control::Reason;
    use model::ids::{Epoch, InstanceName};

    fn placement(instance: &str, node: &str) -> Placement {
        Placement {
            instance: InstanceName::new(instance).unwrap(),
            release: ReleaseNumber(1),
            node: node_name(node),
            slot: None,
            role: Role::Member,
            purpose: model::compute::Purpose::Serve,
            epoch: Epoch(1),
            wanted: Wanted::Run,
            replaces: None,
            reason: Reason::new("placed", "placed"),
            at: jiff::Timestamp::UNIX_EPOCH,
            placed_at: None,
        }
    }

    fn group(placements: Vec<Placement>) -> PlacementGroup {
        PlacementGroup {
            placements,
            ..PlacementGroup::default()
        }
    }

    fn needing(name: &str) -> Service {
        let mut spec = service(1);
        spec.needs.insert(id(name).name, Need::default());
        spec
    }

    /// `web` on a and b needs `api`; `api` is on b and c; a route leads to `web`.
    fn roads(
        change: impl Fn(
            &mut PlacementGroup,
            &mut Vec<InstanceReport>,
            &mut BTreeMap<NodeName, NodeRecord>,
        ),
    ) -> BTreeMap<String, Road> {
        let mut records: BTreeMap<_, _> = three_zones()
            .into_iter()
            .map(|node| (node.name.clone(), node))
            .collect();
        let mut edge = crate::testing::node("edge", "edge");
        edge.role = NodeRole::Edge;
        records.insert(edge.name.clone(), edge);
        let web = group(vec![
            placement("web-1", "node-a"),
            placement("web-2", "node-b"),
        ]);
        let mut api = group(vec![
            placement("api-1", "node-b"),
            placement("api-2", "node-c"),
        ]);
        let mut reports: Vec<_> = web
            .placements
            .iter()
            .chain(&api.placements)
            .map(|placed| report(placed, InstanceState::Running, true))
            .collect();
        change(&mut api, &mut reports, &mut records);
        let (caller, callee) = (needing("api"), service(2));
        let entry = |spec, group| ServiceEntry {
            spec,
            releases: BTreeMap::from([(ReleaseNumber(1), spec)]),
            group,
        };
        let services = BTreeMap::from([
            (id("web"), entry(&caller, &web)),
            (id("api"), entry(&callee, &api)),
        ]);
        let routes = [GatewayRoute {
            host: "*".into(),
            path: "/".into(),
            to: id("web"),
        }];
        let world = World {
            nodes: &records,
            services: &services,
            routes: &routes,
            reports: &|instance| reports.iter().find(|report| report.instance == *instance),
            mesh: &|_| Some("10.0.0.1:7071".parse().unwrap()),
            complete: true,
        };
        let index = Index::new(&world);
        records
            .keys()
            .map(|name| (name.to_string(), index.road(name)))
            .collect()
    }

    fn endpoints(road: &Road) -> Vec<String> {
        let all = road
            .destinations
            .iter()
            .flat_map(|destination| &destination.endpoints);
        all.map(|endpoint| endpoint.instance.name.to_string())
            .collect()
    }

    #[test]
    fn a_node_is_told_what_its_instances_need_and_no_more() {
        let roads = roads(|_, _, _| {});
        assert_eq!(endpoints(&roads["node-a"]), ["api-1", "api-2"]);
        assert_eq!(endpoints(&roads["node-c"]), [""; 0]);
        assert_eq!(endpoints(&roads["edge"]), ["web-1", "web-2"]);
        assert_eq!(roads["edge"].routes.len(), 1);
        assert!(roads["node-a"].routes.is_empty());
        let callers = &roads["node-b"].callers;
        assert_eq!(
            callers[0],
            Callers {
                service: id("api"),
                from: vec![id("web")],
                gateway: false
            }
        );
        assert_eq!(
            callers[1],
            Callers {
                service: id("web"),
                from: vec![],
                gateway: true
            }
        );
    }

    #[test]
    fn a_topic_calls_those_that_consume_it_and_no_others() {
        let records: BTreeMap<_, _> = three_zones()
            .into_iter()
            .map(|node| (node.name.clone(), node))
            .collect();
        let (events, plain) = (group(vec![placement("events-1", "node-a")]), service(1));
        let consuming = consumer_of("events");
        let groups = ["mail-1", "ship-1", "gone-1", "web-1"]
            .map(|instance| group(vec![placement(instance, "node-b")]));
        let nowhere = PlacementGroup::default();
        // What `ship` should be consumes no more, though what runs does; `gone` did and nothing of it runs; `late` will.
        let entry = |spec, placed, group| ServiceEntry {
            spec,
            releases: BTreeMap::from([(ReleaseNumber(1), placed)]),
            group,
        };
        let services = BTreeMap::from([
            (id("events"), entry(&plain, &plain, &events)),
            (id("mail"), entry(&consuming, &consuming, &groups[0])),
            (id("ship"), entry(&plain, &consuming, &groups[1])),
            (id("gone"), entry(&plain, &plain, &groups[2])),
            (id("web"), entry(&plain, &plain, &groups[3])),
            (id("late"), entry(&consuming, &plain, &nowhere)),
        ]);
        let index = Index::new(&World {
            nodes: &records,
            services: &services,
            routes: &[],
            reports: &|_| None,
            mesh: &|_| None,
            complete: true,
        });
        let at_topic = index.road(&node_name("node-a")).destinations;
        let reached: Vec<_> = at_topic
            .iter()
            .map(|one| one.service.name.as_str())
            .collect();
        assert_eq!(reached, ["late", "mail", "ship"]);
        let callers = index.road(&node_name("node-b")).callers;
        let called: Vec<_> = callers
            .iter()
            .filter(|callers| callers.from == [id("events")])
            .map(|callers| callers.service.name.as_str())
            .collect();
        assert_eq!(called, ["mail", "ship"]);
    }

    fn consumer_of(topic: &str) -> Service {
        let mut spec = service(1);
        let subscription = model::state::Subscription {
            path: "/".to_owned(),
            max_in_flight: 1,
            timeout: model::units::Span::seconds(1),
        };
        spec.on.insert(id(topic).name, subscription);
        spec
    }

    /// `api-1` is of a release that has no port yet.
    #[test]
    fn a_named_port_is_on_the_road_like_a_service() {
        use model::traffic::Protocol;
        let records: BTreeMap<_, _> = three_zones()
            .into_iter()
            .map(|node| (node.name.clone(), node))
            .collect();
        let (caller, old) = (needing("api"), service(2));
        let mut new = service(2);
        new.ports.insert(id("admin").name, Protocol::Tcp);
        let web = group(vec![placement("web-1", "node-a")]);
        let mut later = placement("api-2", "node-c");
        later.release = ReleaseNumber(2);
        let api = group(vec![placement("api-1", "node-b"), later]);
        let reports: Vec<_> = [&web, &api]
            .into_iter()
            .flat_map(|group| &group.placements)
            .map(|placed| report(placed, InstanceState::Running, true))
            .collect();
        let services = BTreeMap::from([
            (
                id("web"),
                ServiceEntry {
                    spec: &caller,
                    releases: BTreeMap::from([(ReleaseNumber(1), &caller)]),
                    group: &web,
                },
            ),
            (
                id("api"),
                ServiceEntry {
                    spec: &new,
                    releases: BTreeMap::from([(ReleaseNumber(1), &old), (ReleaseNumber(2), &new)]),
                    group: &api,
                },
            ),
        ]);
        let routes = [GatewayRoute {
            host: "*".into(),
            path: "/".into(),
            to: id("api-admin"),
        }];
        let world = World {
            nodes: &records,
            services: &services,
            routes: &routes,
            reports: &|instance| reports.iter().find(|report| report.instance == *instance),
            mesh: &|_| Some("10.0.0.1:7071".parse().unwrap()),
            complete: true,
        };
        let index = Index::new(&world);
        let road = index.road(&node_name("node-a"));
        let names: Vec<_> = road
            .destinations
            .iter()
            .map(|to| (to.service.name.to_string(), to.protocol))
            .collect();
        let expect = [("api", Protocol::Http), ("api-admin", Protocol::Tcp)];
        assert_eq!(
            names,
            expect.map(|(name, speaks)| (name.to_owned(), speaks))
        );
        assert_eq!(endpoints(&road), ["api-1", "api-2", "api-admin-2"]);
        let callers = |node: &str| {
            let all = index.road(&node_name(node)).callers;
            let of_port = all.into_iter().find(|one| one.service == id("api-admin"));
            of_port.map(|one| (one.from, one.gateway))
        };
        assert_eq!(callers("node-c"), Some((vec![id("web")], true)));
        assert_eq!(callers("node-b"), None, "its release has no such port");
    }

    #[test]
    fn only_what_is_ready_wanted_and_present_is_an_endpoint() {
        let leaving = roads(|api, _, _| api.placements[0].wanted = Wanted::Leave);
        assert_eq!(endpoints(&leaving["node-a"]), ["api-2"]);
        let unready = roads(|_, reports, _| reports[2].ready = false);
        assert_eq!(endpoints(&unready["node-a"]), ["api-2"]);
        let old_epoch = roads(|api, _, _| api.placements[0].epoch = Epoch(2));
        assert_eq!(endpoints(&old_epoch["node-a"]), ["api-2"]);
        let lost =
            roads(|_, _, records| records.get_mut("node-c").unwrap().standing = Standing::Lost);
        assert_eq!(endpoints(&lost["node-a"]), ["api-1"]);
        let none = roads(|_, reports, _| reports.iter_mut().for_each(|one| one.ready = false));
        assert_eq!(
            endpoints(&none["node-a"]),
            ["api-1", "api-2"],
            "a probe that fails everywhere sends nobody away"
        );
        let before_deploy = roads(|api, reports, _| {
            api.placements[0].purpose = Purpose::BeforeDeploy;
            reports.iter_mut().for_each(|one| one.ready = false);
        });
        assert_eq!(endpoints(&before_deploy["node-a"]), ["api-2"]);
    }

    #[test]
    fn a_partial_view_adds_and_never_removes() {
        let known = roads(|_, _, _| {}).remove("node-a").unwrap();
        let mut empty = known.clone();
        empty.destinations.clear();
        empty.complete = false;
        assert_eq!(endpoints(&merge(&known, &empty)), ["api-1", "api-2"]);
        let mut one = roads(|_, reports, _| reports[2].ready = false)
            .remove("node-a")
            .unwrap();
        one.complete = false;
        assert_eq!(endpoints(&merge(&known, &one)), ["api-2", "api-1"]);
        assert_eq!(endpoints(&merge(&empty, &one)), ["api-2"]);
        one.complete = true;
        assert_eq!(endpoints(&merge(&known, &one)), ["api-2"]);
    }

    #[test]
    fn what_runs_elsewhere_is_dialled_by_name() {
        let table = [
            ("pay.example:443", Some(("pay.example", 443))),
            ("[::1]:80", Some(("::1", 80))),
            ("nonsense", None),
        ];
        for (text, expect) in table {
            let expect = expect.map(|(host, port)| Address::External {
                host: host.to_owned(),
                port,
            });
            assert_eq!(external(text), expect, "{text}");
        }
    }
}
