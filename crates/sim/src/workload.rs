//! What the simulated user declares: one service of each temper.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use model::compute::{Need, OnPartition, PlacementGroup, RolloutOptions, Service, Work};
use model::control::{Capacity, NodeRecord, NodeRole, Reason, Standing};
use model::ids::{
    Epoch, NodeName, ProjectName, RegionName, ReleaseNumber, ResourceId, ResourceName, ZoneName,
};
use model::state::Volume;
use model::traffic::GatewayRoute;
use model::units::{Bytes, MilliCpu, Span};

use crate::store::ServiceRecord;

/// Serves from anywhere, needs the two others.
pub(crate) const WEB: &str = "web";
/// Must never run twice, and has no volume.
pub(crate) const SINGLE: &str = "single";
/// Has a volume for each copy.
pub(crate) const STORE: &str = "store";
/// The same, and is deleted and made anew again and again.
pub(crate) const SHELF: &str = "shelf";

/// The zone of the front door.
const EDGE: &str = "edge";

/// An environment variable that makes a release one whose instances never become ready.
pub(crate) const BROKEN: &str = "BROKEN";

pub(crate) fn project() -> ProjectName {
    ProjectName::new("sim").expect("a name")
}

pub(crate) fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("a name")
}

pub(crate) fn id(service: &ResourceName) -> ResourceId {
    ResourceId::new(project(), service.clone())
}

/// One worker in each of three zones, and a front door.
pub(crate) fn nodes() -> Vec<NodeRecord> {
    let mut edge = node(EDGE);
    edge.role = NodeRole::Edge;
    let workers = ["a", "b", "c"].map(node);
    workers.into_iter().chain([edge]).collect()
}

/// What comes in at the front door goes to [`WEB`].
pub(crate) fn routes() -> [GatewayRoute; 1] {
    [GatewayRoute {
        host: "*".to_owned(),
        path: "/".to_owned(),
        to: id(&name(WEB)),
    }]
}

fn node(zone: &str) -> NodeRecord {
    NodeRecord {
        name: NodeName::new(format!("node-{zone}")).expect("a name"),
        region: RegionName::new("home").expect("a name"),
        zone: ZoneName::new(zone).expect("a name"),
        role: NodeRole::Worker,
        capacity: Capacity {
            cpu: MilliCpu(8000),
            memory: Bytes::mebibytes(2000),
        },
        labels: BTreeMap::new(),
        cordoned: false,
        standing: Standing::Present,
        reason: Reason::new("joined", "joined"),
        joined_at: Timestamp::UNIX_EPOCH,
        key: None,
        programs: None,
        place: None,
    }
}

pub(crate) fn services() -> BTreeMap<ResourceName, ServiceRecord> {
    [WEB, SINGLE, STORE, SHELF]
        .into_iter()
        .map(|text| (name(text), record(spec(text, false))))
        .collect()
}

fn record(spec: Service) -> ServiceRecord {
    ServiceRecord {
        target: ReleaseNumber(1),
        replicas: spec.replicas,
        releases: BTreeMap::from([(ReleaseNumber(1), spec)]),
        rollout: None,
        group: PlacementGroup::default(),
        version: 0,
        removing: None,
        is_gone: false,
        forget: BTreeSet::new(),
        eras: vec![Epoch::default()],
    }
}

/// A release of one of the services.
pub(crate) fn spec(service: &str, broken: bool) -> Service {
    let mut spec = plain();
    if broken {
        spec.env.insert(BROKEN.to_owned(), "1".to_owned());
    }
    match service {
        WEB => {
            spec.replicas = 3;
            spec.before_deploy = vec!["./migrate".to_owned()];
            for need in [SINGLE, STORE] {
                spec.needs.insert(name(need), Need::default());
            }
        }
        SINGLE => {
            spec.on_partition = OnPartition::Stop;
            spec.rollout.surge = 0;
            spec.rollout.unavailable = 1;
        }
        _ => {
            spec.replicas = 2;
            spec.on_partition = OnPartition::Stop;
            spec.volumes.insert(
                name("data"),
                Volume {
                    size: Bytes::mebibytes(1),
                },
            );
        }
    }
    spec
}

fn plain() -> Service {
    let work = Work::Process {
        run: vec!["./server".to_owned()],
        artifact: None,
    };
    Service {
        memory: Bytes::mebibytes(100),
        rollout: RolloutOptions {
            ready_within: Span::seconds(15),
            ..RolloutOptions::default()
        },
        grace: Span::seconds(2),
        ..Service::of(work)
    }
}
