//! What the tests of this crate build their worlds from.

use std::collections::BTreeMap;

use model::compute::{
    Completion, OnPartition, Probe, RolloutOptions, Service, Spread, Work, default_grace,
};
use model::traffic::{Protocol, TrafficOptions};
use model::units::{Bytes, MilliCpu};

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
