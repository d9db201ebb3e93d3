//! What the tests of this crate build their worlds from.

use std::collections::BTreeMap;

use model::boundary::PrincipalName;
use model::compute::{
    Completion, OnPartition, Probe, Release, ReleaseOrigin, RolloutOptions, Service, Spread, Work,
    default_grace,
};
use model::ids::ReleaseNumber;
use model::traffic::{Protocol, TrafficOptions};
use model::units::{Bytes, MilliCpu};
use store::Revision;

use crate::world::Stored;

pub fn service(replicas: u32) -> Service {
    Service {
        work: Work::Process {
            run: vec!["/bin/server".to_owned()],
            artifact: None,
        },
        completion: Completion::Never,
        replicas,
        cpu: MilliCpu(100),
        memory: Bytes::mebibytes(100),
        env: BTreeMap::new(),
        needs: BTreeMap::new(),
        protocol: Protocol::Http,
        health: Probe::default(),
        alive: None,
        spread: Spread::default(),
        on_partition: OnPartition::Keep,
        volumes: BTreeMap::new(),
        traffic: TrafficOptions::default(),
        rollout: RolloutOptions::default(),
        grace: default_grace(),
        labels: BTreeMap::new(),
    }
}

pub fn stored<T>(value: T) -> Stored<T> {
    Stored {
        value,
        modified: Revision::from_number(1),
    }
}

pub fn release(number: ReleaseNumber) -> Release {
    Release {
        service: "web".parse().expect("a name"),
        number,
        spec: service(1),
        author: PrincipalName("admin:root".to_owned()),
        at: jiff::Timestamp::UNIX_EPOCH,
        origin: ReleaseOrigin::Apply,
        diff: Vec::new(),
        failed: false,
    }
}
