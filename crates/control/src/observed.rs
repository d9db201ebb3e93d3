//! What nodes say they see: soft state, in memory only, told anew after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::compute::InstanceReport;
use model::control::{Demand, Heartbeat, Notice, Place, Reason, observed_digest};
use model::ids::{Generation, InstanceId, NodeName, ResourceId, SessionId};
use model::machine::{Disk, Programs};
use plan::Instant;

/// Of one node.
const NOTICES_MOST: usize = 64;
/// What is kept, and stored, of the programs that a node says it has: kinds, versions of each, bytes of a name.
const PROGRAMS_MOST: usize = 16;
const VERSIONS_MOST: usize = 32;
const PROGRAM_NAME_MOST: usize = 32;

/// One node as it last told.
#[derive(Debug, Clone)]
pub struct Node {
    pub session: SessionId,
    pub heard: Instant,
    /// All of it is known; false from the first heartbeat of a session until a full one.
    pub whole: bool,
    pub reports: BTreeMap<InstanceId, InstanceReport>,
    pub demand: Vec<Demand>,
    pub mesh: Option<SocketAddr>,
    pub acknowledged: Generation,
    /// Why it follows a later generation from memory alone.
    pub unkept: Option<Reason>,
    pub pid: u32,
    pub version: String,
    /// Whose volumes it has been told to delete, and has acknowledged.
    pub forgot: BTreeSet<ResourceId>,
    /// Where its agent runs. `None`: it does not say.
    pub place: Option<Place>,
    pub disk: Option<Disk>,
    pub programs: Option<Programs>,
    /// What a person should know of instances there.
    pub notices: Vec<Notice>,
    /// Heartbeats in a row whose clock was far from ours.
    pub skewed: u32,
}

/// All nodes that this server has heard since it began.
#[derive(Debug, Default)]
pub struct Observed {
    pub nodes: BTreeMap<NodeName, Node>,
    /// Grows with each change that decisions rest on.
    pub version: u64,
}

/// What a heartbeat did to the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    pub send_full: bool,
    /// Something that decisions rest on is different.
    pub changed: bool,
}

impl Observed {
    /// Folds in a heartbeat that is news: that it was not overtaken by a later one has been asked before.
    pub fn take(&mut self, name: &NodeName, heartbeat: &Heartbeat, now: Instant) -> Took {
        let before = self
            .nodes
            .remove(name)
            .filter(|node| node.session == heartbeat.session);
        let first = before.is_none();
        let mut node = before.unwrap_or_else(|| fresh(heartbeat));
        node.heard = now;
        node.acknowledged = heartbeat.acknowledged;
        node.unkept.clone_from(&heartbeat.unkept);
        node.place = heartbeat.place;
        let reports_changed = fold(&mut node, heartbeat);
        let programs = heartbeat.programs.as_ref().map(few_programs);
        let rest_changed = node.mesh != heartbeat.mesh
            || node.demand != heartbeat.demand
            || node.programs != programs;
        node.mesh = heartbeat.mesh;
        node.demand.clone_from(&heartbeat.demand);
        node.disk = heartbeat.disk;
        node.programs = programs;
        node.notices = heartbeat
            .notices
            .iter()
            .take(NOTICES_MOST)
            .cloned()
            .collect();
        let matches = observed_digest(node.reports.values()) == heartbeat.digest;
        let became_whole = heartbeat.full && !node.whole;
        // What is all there is needs no proof. Where it does not match, the node is of a later version and says what this one does not know: it says
        // all each time from now on.
        node.whole = heartbeat.full || (matches && node.whole);
        let took = Took {
            send_full: !(matches && node.whole),
            changed: first || reports_changed || rest_changed || became_whole,
        };
        self.nodes.insert(name.clone(), node);
        self.version += u64::from(took.changed);
        took
    }

    /// The node left.
    pub fn forget(&mut self, name: &NodeName) {
        if self.nodes.remove(name).is_some() {
            self.version += 1;
        }
    }

    pub fn report(&self, node: &NodeName, instance: &InstanceId) -> Option<&InstanceReport> {
        self.nodes.get(node)?.reports.get(instance)
    }

    /// Requests that wait for a service, as all nodes last told.
    pub fn demand(&self, service: &ResourceId) -> u32 {
        let told = self.nodes.values().flat_map(|node| &node.demand);
        told.filter(|demand| demand.service == *service)
            .map(|demand| demand.waiting)
            .fold(0, u32::saturating_add)
    }
}

/// As much as is kept of what a node says it has.
pub fn few_programs(told: &Programs) -> Programs {
    let named = told
        .iter()
        .filter(|(name, _)| name.len() <= PROGRAM_NAME_MOST);
    let few = named.take(PROGRAMS_MOST).map(|(name, versions)| {
        let newest = versions.iter().rev().take(VERSIONS_MOST);
        (name.clone(), newest.copied().collect())
    });
    few.collect()
}

fn fresh(heartbeat: &Heartbeat) -> Node {
    Node {
        session: heartbeat.session,
        heard: Instant::default(),
        whole: false,
        reports: BTreeMap::new(),
        demand: Vec::new(),
        mesh: None,
        acknowledged: Generation::default(),
        unkept: None,
        pid: heartbeat.pid,
        version: heartbeat.version.clone(),
        forgot: BTreeSet::new(),
        place: heartbeat.place,
        disk: None,
        programs: None,
        notices: Vec::new(),
        skewed: 0,
    }
}

/// Folds the reports in; answers whether they changed anything.
fn fold(node: &mut Node, heartbeat: &Heartbeat) -> bool {
    if heartbeat.full {
        let all: BTreeMap<_, _> = heartbeat
            .changed
            .iter()
            .map(|report| (report.instance.clone(), report.clone()))
            .collect();
        let changed = node.reports != all;
        node.reports = all;
        return changed;
    }
    for report in &heartbeat.changed {
        node.reports.insert(report.instance.clone(), report.clone());
    }
    for gone in &heartbeat.gone {
        node.reports.remove(gone);
    }
    !heartbeat.changed.is_empty() || !heartbeat.gone.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::compute::InstanceState;
    use model::ids::{Epoch, ReleaseNumber};
    use std::time::Duration;

    fn report(name: &str, ready: bool) -> InstanceReport {
        let instance = format!("shop/{name}").parse().unwrap();
        let service = "web".parse().unwrap();
        InstanceReport {
            state: InstanceState::Running,
            ready,
            ..InstanceReport::blank(instance, service, ReleaseNumber(1), Epoch(1))
        }
    }

    fn beat(
        sequence: u64,
        full: bool,
        changed: Vec<InstanceReport>,
        all: &[InstanceReport],
    ) -> Heartbeat {
        Heartbeat {
            session: SessionId(7),
            sequence,
            acknowledged: Generation::default(),
            unkept: None,
            digest: observed_digest(all),
            full,
            changed,
            gone: Vec::new(),
            demand: Vec::new(),
            mesh: None,
            pid: 1,
            version: "0".to_owned(),
            events: Vec::new(),
            at: None,
            place: None,
            disk: None,
            programs: None,
            not_forgotten: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// What a node says is kept in memory, and some of it stored.
    #[test]
    fn a_node_says_only_so_much_of_its_programs() {
        let long = "x".repeat(PROGRAM_NAME_MOST + 1);
        let names = (0..1000).map(|index| format!("program-{index:04}"));
        let told: Programs = std::iter::once(long)
            .chain(names)
            .map(|name| (name, (0..1000).collect()))
            .collect();
        let mut observed = Observed::default();
        let (name, mut heartbeat) = ("a".parse().unwrap(), beat(1, true, vec![], &[]));
        heartbeat.programs = Some(told);
        for again in [false, true] {
            heartbeat.sequence += 1;
            let took = observed.take(&name, &heartbeat, Instant::default());
            assert_eq!(took.changed, !again);
            let kept = observed.nodes[&name].programs.as_ref().unwrap();
            assert_eq!(kept.len(), PROGRAMS_MOST);
            assert!(kept.keys().all(|name| name.len() <= PROGRAM_NAME_MOST));
            let newest: Vec<u32> = kept["program-0000"].iter().copied().collect();
            assert_eq!(newest, (968..1000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn deltas_fold_and_a_mismatch_asks_for_all() {
        let name: NodeName = "a".parse().unwrap();
        let at = |ms| Instant(Duration::from_millis(ms));
        let mut observed = Observed::default();
        let (one, two) = (report("web-1", true), report("web-2", true));
        let took = |send_full, changed| Took { send_full, changed };

        // The first is not full: the picture may miss something even where the digests agree.
        let first = beat(1, false, vec![], &[]);
        assert_eq!(observed.take(&name, &first, at(0)), took(true, true));
        let full = beat(2, true, vec![one.clone()], std::slice::from_ref(&one));
        assert_eq!(observed.take(&name, &full, at(1)), took(false, true));
        let quiet = beat(3, false, vec![], std::slice::from_ref(&one));
        assert_eq!(observed.take(&name, &quiet, at(2)), took(false, false));
        let delta = beat(4, false, vec![two.clone()], &[two.clone(), one.clone()]);
        assert_eq!(observed.take(&name, &delta, at(3)), took(false, true));
        // A delta was lost on the way.
        let lost = beat(6, false, vec![], std::slice::from_ref(&one));
        assert_eq!(observed.take(&name, &lost, at(4)), took(true, false));
        assert_eq!(observed.nodes[&name].reports.len(), 2);
        assert_eq!(observed.nodes[&name].heard, at(4));
    }

    /// A node of a later version reports more than this one reads: their digests never agree, and all that it says is known nevertheless.
    #[test]
    fn a_node_that_says_more_is_known_whole() {
        let name: NodeName = "a".parse().unwrap();
        let mut observed = Observed::default();
        for sequence in 1..=3 {
            let mut full = beat(sequence, true, vec![report("web-1", true)], &[]);
            full.digest = 1;
            let took = observed.take(&name, &full, Instant::default());
            assert!(took.send_full && observed.nodes[&name].whole);
        }
    }
}
