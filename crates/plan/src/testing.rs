//! What the tests of this crate build their worlds from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use model::compute::{
    InstanceReport, InstanceState, OnPartition, Placement, RolloutOptions, Service, Work,
};
use model::control::{Capacity, NodeRecord, NodeRole, Reason, Standing};
use model::ids::{
    InstanceId, NodeName, ProjectName, RegionName, ResourceId, ResourceName, ZoneName,
};
use model::state::Volume;
use model::units::{Bytes, MilliCpu, Span};

pub fn project() -> ProjectName {
    ProjectName::new("store").unwrap()
}

pub fn id(name: &str) -> ResourceId {
    ResourceId::new(project(), ResourceName::new(name).unwrap())
}

pub fn node_name(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

pub fn service(replicas: u32) -> Service {
    let work = Work::Process {
        run: vec!["./server".to_owned()],
        artifact: None,
    };
    Service {
        replicas,
        memory: Bytes::mebibytes(100),
        // Most tests are about something else than how long what is new is watched.
        rollout: RolloutOptions {
            ready_for: Span::seconds(0),
            ..RolloutOptions::default()
        },
        ..Service::of(work)
    }
}

pub fn with_volume(mut spec: Service) -> Service {
    let volume = Volume {
        size: Bytes::mebibytes(1),
    };
    spec.volumes
        .insert(ResourceName::new("data").unwrap(), volume);
    spec.on_partition = OnPartition::Stop;
    spec
}

/// A worker with 4 CPUs and 1000 Mi.
pub fn node(name: &str, zone: &str) -> NodeRecord {
    NodeRecord {
        name: node_name(name),
        region: RegionName::new("home").unwrap(),
        zone: ZoneName::new(zone).unwrap(),
        role: NodeRole::Worker,
        capacity: Capacity {
            cpu: MilliCpu(4000),
            memory: Bytes::mebibytes(1000),
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

/// One node in each of the zones a, b, c.
pub fn three_zones() -> Vec<NodeRecord> {
    ["a", "b", "c"]
        .iter()
        .map(|zone| node(&format!("node-{zone}"), zone))
        .collect()
}

pub fn report(placement: &Placement, state: InstanceState, ready: bool) -> InstanceReport {
    let service = placement.instance.as_str().rsplit_once('-').unwrap().0;
    InstanceReport {
        instance: InstanceId::new(project(), placement.instance.clone()),
        service: ResourceName::new(service).unwrap(),
        release: placement.release,
        epoch: placement.epoch,
        state,
        ready,
        was_ready: ready,
        never_started: false,
        pid: Some(1),
        address: None,
        restarts: 0,
        started_at: None,
        last_exit: None,
        reason: None,
    }
}
