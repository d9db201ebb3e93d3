//! What must hold at every moment, and what must come to hold once the faults end. Written against the true state of the world, which no part of
//! the system sees: which processes exist, and what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{OnPartition, PlacementGroup, Purpose, Wanted};
use model::control::{NodeRole, RolloutPhase, Standing};
use model::ids::{Epoch, InstanceName, NodeName, ReleaseNumber, ResourceName, ZoneName};
use model::traffic::Road;

use crate::node::{Node, Process};
use crate::workload::{self, SHELF, SINGLE, STORE, WEB};
use crate::world::{Life, ToNode, World};

/// All is as wanted for this long: then it is believed.
const STEADY_MS: u64 = 6_000;

/// What was seen, to be compared with what is seen later.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    leaders: BTreeMap<Epoch, Life>,
    heard: BTreeSet<(Epoch, NodeName)>,
    holders: BTreeMap<(ResourceName, Epoch), (InstanceName, NodeName)>,
    acknowledged: BTreeMap<ResourceName, (ReleaseNumber, u32)>,
    /// Whose `before_deploy` has ended well.
    prepared: BTreeSet<(ResourceName, ReleaseNumber)>,
    /// Up to which of its lives the data of a service was deleted, as a user was told.
    deleted: BTreeMap<ResourceName, usize>,
    /// Where there is data that somebody was given: of a service, in one of its lives, of a numbered set of volumes.
    data: BTreeMap<(ResourceName, usize, u32), NodeName>,
    /// What each machine last went by.
    roads: BTreeMap<NodeName, BTreeSet<(String, String)>>,
    as_wanted_since: Option<u64>,
}

/// A numbered set of volumes, in one of the lives of its service.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    pub(crate) service: ResourceName,
    pub(crate) slot: u32,
    pub(crate) era: usize,
}

impl Invariants {
    /// One holder per leader's epoch.
    pub(crate) fn leader(&mut self, epoch: Epoch, life: Life) {
        let other = self.leaders.insert(epoch, life);
        assert!(other.is_none(), "two leaders with epoch {epoch}");
    }

    pub(crate) fn ended_well(&mut self, process: &Process) {
        if process.purpose == Purpose::BeforeDeploy {
            let prepared = (process.service.clone(), process.release);
            self.prepared.insert(prepared);
        }
    }

    pub(crate) fn heard(&mut self, by: Epoch, node: &NodeName) {
        self.heard.insert((by, node.clone()));
    }

    pub(crate) fn was_heard(&self, by: Epoch, node: &NodeName) -> bool {
        self.heard.contains(&(by, node.clone()))
    }

    /// One holder per placement's epoch, for ever.
    pub(crate) fn placed(
        &mut self,
        service: &ResourceName,
        group: &PlacementGroup,
    ) -> Option<String> {
        group.placements.iter().find_map(|placement| {
            let holder = (placement.instance.clone(), placement.node.clone());
            let known = self
                .holders
                .entry((service.clone(), placement.epoch))
                .or_insert_with(|| holder.clone());
            (*known != holder).then(|| {
                format!(
                    "epoch {} of {service} was given to {known:?} and to {holder:?}",
                    placement.epoch
                )
            })
        })
    }

    /// A user was told that the service goes, with all its data or without.
    pub(crate) fn deleted(&mut self, service: &ResourceName, era: usize, with_data: bool) {
        self.acknowledged.remove(service);
        if with_data {
            self.deleted.insert(service.clone(), era);
        }
    }

    fn deleted_up_to(&self, service: &ResourceName) -> usize {
        self.deleted.get(service).copied().unwrap_or_default()
    }

    /// That a copy was ready is on its node's disk, and with it that its volume holds what somebody was given.
    pub(crate) fn has_data(&mut self, of: &Volumes, node: &NodeName) {
        let key = (of.service.clone(), of.era, of.slot);
        self.data.entry(key).or_insert_with(|| node.clone());
    }

    pub(crate) fn acknowledged(
        &mut self,
        service: &ResourceName,
        release: ReleaseNumber,
        replicas: u32,
    ) {
        self.acknowledged
            .insert(service.clone(), (release, replicas));
    }
}

impl World {
    pub(crate) fn check_moment(&mut self) {
        self.check_never_twice();
        self.check_intent();
    }

    /// What must not run twice does not: counted by the processes that exist, wherever they are and whoever knows of them.
    fn check_never_twice(&mut self) {
        let mut holders: BTreeMap<(&str, Option<u32>, String), u32> = BTreeMap::new();
        let now_ms = self.now_ms;
        // On a machine that stands still nothing runs; its shims have this moment to act when it goes on.
        let awake = |node: &&Node| now_ms > node.frozen_until_ms + 1;
        for node in self.nodes.values().filter(awake) {
            for process in node.processes.values() {
                let service = process.service.as_str();
                if ![SINGLE, STORE, SHELF].contains(&service) {
                    continue;
                }
                // One for each life of the service, and one at each place, whatever the life.
                let era = self.store.services[&process.service].era(process.epoch);
                let mut count =
                    |what| *holders.entry((service, process.slot, what)).or_default() += 1;
                count(format!("in life {era}"));
                count(format!("on {}", node.name));
            }
        }
        let twice = holders.into_iter().find(|(_, count)| *count > 1);
        if let Some(((service, slot, what), count)) = twice {
            let slot = slot.map_or_else(String::new, |slot| format!(", slot {slot},"));
            let what = format!("{service}{slot} runs {count} times at once {what}");
            self.violated(what);
        }
    }

    /// A node is decided lost when no lease on it runs any more: what holds one is gone, or stands still with its machine.
    pub(crate) fn check_leases_over(&mut self, name: &NodeName) {
        let node = &self.nodes[name];
        let now = self.now_on(node.offset_ms).instant;
        let holder = node
            .processes
            .values()
            .find(|process| process.lease_runs(now));
        if let Some(holder) = holder {
            let what = format!(
                "{name} is decided lost while the lease of pid {} runs",
                holder.pid
            );
            self.violated(what);
        }
    }

    /// Nothing of a release starts before what is to run before it has ended well.
    pub(crate) fn check_prepared(&mut self, started: &Process) {
        let release = (started.service.clone(), started.release);
        let releases = &self.store.services[&release.0].releases;
        // Of what was deleted meanwhile nothing is known any more.
        let Some(spec) = releases.get(&release.1) else {
            return;
        };
        let waits = !spec.before_deploy.is_empty() && started.purpose == Purpose::Serve;
        if waits && !self.invariants.prepared.contains(&release) {
            let (service, release) = release;
            self.violated(format!(
                "release {release} of {service} started before its command had ended well"
            ));
        }
    }

    /// A copy opens its volumes: what was deleted is not there again, and what was not is not missing.
    pub(crate) fn check_volumes(&mut self, node: &NodeName, of: &Volumes, found: Option<usize>) {
        let deleted = self.invariants.deleted_up_to(&of.service);
        let Volumes { service, slot, era } = of;
        if let Some(found) = found.filter(|found| *found <= deleted && *era > deleted) {
            self.violated(format!(
                "{node}: slot {slot} of {service} holds the data of life {found}, which was deleted, in life {era}"
            ));
        }
        let mut lives = deleted + 1..=*era;
        let kept = lives.find_map(|era| {
            let known = self.invariants.data.get(&(service.clone(), era, *slot));
            known.cloned()
        });
        if let Some(home) = kept.filter(|home| home != node || found.is_none()) {
            self.violated(format!(
                "{node}: slot {slot} of {service} starts, and its data is on {home}"
            ));
        }
    }

    /// Who is removed gets nothing, but to hear that.
    pub(crate) fn check_removed(&mut self, node: &NodeName, message: &ToNode) {
        let leads = self.server.as_ref().map(|server| server.epoch) == Some(self.store.epoch);
        if leads && self.store.removed.contains(node) && !matches!(message, ToNode::Removed) {
            self.violated(format!("{node} was removed, and is answered"));
        }
    }

    /// What a user was told is done stays done.
    fn check_intent(&mut self) {
        let undone = self
            .invariants
            .acknowledged
            .iter()
            .find(|(service, acknowledged)| {
                let record = &self.store.services[*service];
                (record.target, record.replicas) != **acknowledged
            });
        if let Some((service, _)) = undone {
            let what = format!("what a user asked of {service} was acknowledged and is undone");
            self.violated(what);
        }
    }

    /// Only from a whole view endpoints are removed; not from a partial one, and not because agent or machine began anew.
    pub(crate) fn check_road(&mut self, node: &NodeName, told_whole: bool) {
        let after = endpoints(&self.nodes[node].road);
        let known = self.invariants.roads.entry(node.clone()).or_default();
        let gone = known.difference(&after).next().cloned();
        *known = after;
        if let Some((service, instance)) = gone.filter(|_| !told_whole) {
            self.violated(format!(
                "{node} lost the endpoint {instance} of {service}, and was not told so by who knows all"
            ));
        }
    }

    /// The faults are over, and all has been as wanted for a while.
    pub(crate) fn has_recovered(&mut self) -> bool {
        if !self.faults_are_over() {
            return false;
        }
        if self.not_as_wanted().is_some() {
            self.invariants.as_wanted_since = None;
            return false;
        }
        let now_ms = self.now_ms;
        let since = *self.invariants.as_wanted_since.get_or_insert(now_ms);
        self.summary.recovered_after_ms = since - self.options.faults_for_ms;
        now_ms - since >= STEADY_MS
    }

    /// What is not yet as it should be in a world without faults.
    pub(crate) fn not_as_wanted(&self) -> Option<String> {
        if let Some(node) = self.store.removed.first() {
            return Some(format!("{node} is not let in again"));
        }
        let lost = self
            .store
            .nodes
            .values()
            .find(|node| node.standing == Standing::Lost);
        if let Some(node) = lost {
            return Some(format!("{} is lost", node.name));
        }
        self.store
            .services
            .keys()
            .find_map(|service| self.service_not_as_wanted(service))
            .or_else(|| self.road_not_as_wanted())
    }

    fn service_not_as_wanted(&self, service: &ResourceName) -> Option<String> {
        let record = &self.store.services[service];
        let placements = &record.group.placements;
        if !record.is_live() || !record.forget.is_empty() {
            return Some(format!("{service} is not made anew, or not forgotten"));
        }
        let done = record.rollout.as_ref().is_some_and(|rollout| {
            rollout.phase == RolloutPhase::Done && rollout.to == record.target
        });
        if !done {
            return Some(format!("the rollout of {service} is {:?}", record.rollout));
        }
        if placements.len() != record.replicas as usize || !record.group.pending.is_empty() {
            return Some(format!(
                "{service} has {} of {} copies",
                placements.len(),
                record.replicas
            ));
        }
        let idle = placements.iter().find(|placement| {
            let id = model::ids::InstanceId::new(workload::project(), placement.instance.clone());
            let process = self.nodes[&placement.node].processes.get(&id);
            let ready = process.is_some_and(|process| process.is_ready(self.now_ms));
            !ready || placement.wanted != Wanted::Run || placement.release != record.target
        });
        if let Some(placement) = idle {
            return Some(format!(
                "{} on {} does not serve",
                placement.instance, placement.node
            ));
        }
        let processes = self.nodes.values().flat_map(|node| node.processes.values());
        let running = processes
            .filter(|process| process.service == *service)
            .count();
        let as_often = (running != placements.len())
            .then(|| format!("{service} runs {running} times, not {}", placements.len()));
        as_often.or_else(|| self.uneven(service))
    }

    /// What may run beside itself and has no volume stands in the zones as evenly as it can: each has room for all of it.
    fn uneven(&self, service: &ResourceName) -> Option<String> {
        let record = &self.store.services[service];
        let spec = &record.releases[&record.target];
        let workers = self.store.nodes.values();
        let workers = workers.filter(|node| node.role == NodeRole::Worker);
        let in_zone = |zone: &ZoneName| {
            let nodes = record.group.placements.iter();
            let zones = nodes.map(|placement| &self.store.nodes[&placement.node].zone);
            zones.filter(|other| *other == zone).count()
        };
        let counts: Vec<_> = workers.map(|node| in_zone(&node.zone)).collect();
        let gap = counts.iter().max()? - counts.iter().min()?;
        let may_move = spec.on_partition == OnPartition::Keep && spec.volumes.is_empty();
        (may_move && gap > 1).then(|| format!("{service} stands unevenly: {counts:?}"))
    }

    /// What a machine must have a way to: the front door to what routes name, the others to what their instances need.
    fn needs(&self, node: &Node) -> impl Iterator<Item = ResourceName> {
        let name = &node.name;
        let is_edge = self.store.nodes[name].role == NodeRole::Edge;
        let web = workload::name(WEB);
        let placements = &self.store.services[&web].group.placements;
        let calls = placements.iter().any(|placement| placement.node == *name);
        let routed = is_edge.then_some(web);
        let called = calls.then(|| [SINGLE, STORE].map(workload::name));
        routed.into_iter().chain(called.into_iter().flatten())
    }

    /// Every node goes by exactly the endpoints that serve.
    fn road_not_as_wanted(&self) -> Option<String> {
        self.nodes.values().find_map(|node| {
            if let Some(missing) = self.needs(node).find(|need| !has_way(node, need)) {
                return Some(format!("{} has no way to {missing}", node.name));
            }
            for destination in &node.road.destinations {
                let group = &self.store.services[&destination.service.name].group;
                let serving: BTreeSet<_> = group
                    .placements
                    .iter()
                    .map(|placement| &placement.instance)
                    .collect();
                let known: BTreeSet<_> = destination
                    .endpoints
                    .iter()
                    .map(|endpoint| &endpoint.instance.name)
                    .collect();
                if serving != known {
                    return Some(format!(
                        "{} goes by {known:?} for {}, not by {serving:?}",
                        node.name, destination.service
                    ));
                }
            }
            (!node.road.complete).then(|| format!("{} has no whole road", node.name))
        })
    }
}

fn has_way(node: &Node, service: &ResourceName) -> bool {
    let destinations = &node.road.destinations;
    destinations
        .iter()
        .any(|destination| destination.service.name == *service)
}

fn endpoints(road: &Road) -> BTreeSet<(String, String)> {
    let of = |destination: &model::traffic::Destination| {
        let service = destination.service.to_string();
        let instances = destination
            .endpoints
            .iter()
            .map(move |endpoint| (service.clone(), endpoint.instance.name.to_string()));
        instances.collect::<Vec<_>>()
    };
    road.destinations.iter().flat_map(of).collect()
}
