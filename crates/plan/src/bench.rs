//! How fast [`crate::place`] is: measured by `xtask bench plan`, which hands in a stopwatch, since nothing here reads a clock.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use model::compute::Spread;
use model::control::{Capacity, NodeRecord, NodeRole, Reason, Standing};
use model::ids::{
    InstanceName, NodeName, ProjectName, RegionName, ResourceId, ResourceName, ZoneName,
};
use model::units::{Bytes, MilliCpu};

use crate::place::{Ceiling, Cluster, Request, place};

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub nodes: usize,
    pub zones: usize,
    pub placements: usize,
    /// Those that found no node: must be 0 for the rate to mean anything.
    pub refused: usize,
    /// The most copies of one service in one zone, less the fewest.
    pub skew: u32,
    pub elapsed: Duration,
}

impl Rate {
    pub fn per_second(&self) -> f64 {
        self.placements as f64 / self.elapsed.as_secs_f64()
    }
}

/// Copies of each service: what the zones divide among themselves.
const COPIES: usize = 100;

/// Places `placements` instances of services with 100 copies each on `nodes` nodes in `zones` zones, zone spread on, reasons and all, with
/// every name made beforehand. `stopwatch` is read before and after.
pub fn run(
    nodes: usize,
    zones: usize,
    placements: usize,
    stopwatch: impl Fn() -> Duration,
) -> Rate {
    let mut cluster = Cluster::new(&records(nodes, zones, placements));
    let services: Vec<_> = (0..placements.div_ceil(COPIES)).map(service).collect();
    let instances: Vec<_> = (0..placements).map(|n| (n / COPIES, instance(n))).collect();
    let labels = BTreeMap::new();
    let mut refused = 0;
    let began = stopwatch();
    let mut placed = Vec::with_capacity(placements);
    for (of, instance) in &instances {
        let request = Request {
            service: &services[*of],
            instance,
            size: Capacity {
                cpu: MilliCpu(100),
                memory: Bytes::mebibytes(128),
            },
            labels: &labels,
            spread: Spread::default(),
            home: None,
            ceiling: Ceiling::Watermark,
            avoid: &[],
            barred: &[],
            going: &[],
            instead_of: None,
        };
        match place(&mut cluster, &request) {
            Ok(found) => placed.push(found),
            Err(_) => refused += 1,
        }
    }
    let elapsed = stopwatch().saturating_sub(began);
    let skew = services
        .iter()
        .filter_map(|service| cluster.skew(service))
        .max()
        .unwrap_or(0);
    Rate {
        nodes,
        zones,
        placements,
        refused,
        skew,
        elapsed,
    }
}

fn service(n: usize) -> ResourceId {
    let project = ProjectName::new("bench").expect("a name");
    ResourceId::new(
        project,
        ResourceName::new(format!("service-{n}")).expect("a name"),
    )
}

fn instance(n: usize) -> InstanceName {
    InstanceName::new(format!("service-{}-{n}", n / COPIES)).expect("a name")
}

/// Nodes of three sizes, together with room for the placements twice over.
fn records(nodes: usize, zones: usize, placements: usize) -> Vec<NodeRecord> {
    let each = (placements as u64 * 2).div_ceil(nodes as u64).max(4);
    (0..nodes)
        .map(|n| NodeRecord {
            name: NodeName::new(format!("node-{n}")).expect("a name"),
            region: RegionName::new(format!("region-{}", n % zones % 3)).expect("a name"),
            zone: ZoneName::new(format!("zone-{}", n % zones)).expect("a name"),
            role: NodeRole::Worker,
            capacity: Capacity {
                cpu: MilliCpu(each * 100 * (1 + n as u64 % 3)),
                memory: Bytes::mebibytes(each * 128 * (1 + n as u64 % 3)),
            },
            labels: BTreeMap::new(),
            cordoned: false,
            standing: Standing::Present,
            reason: Reason::new("joined", "joined"),
            joined_at: Timestamp::UNIX_EPOCH,
            key: None,
            programs: None,
            place: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    #[test]
    fn everything_is_placed_and_evenly() {
        let rate = super::run(300, 30, 2_000, || Duration::ZERO);
        assert_eq!(rate.refused, 0);
        assert!(rate.skew <= 1, "{}", rate.skew);
    }

    /// The promise of DESIGN section 9, on the build that it is made for: `cargo test --release -p plan -- --ignored`.
    #[test]
    #[ignore = "measures an optimised build"]
    fn a_hundred_thousand_placements_a_second_on_ten_thousand_nodes() {
        let began = Instant::now();
        let rates = [1_000, 10_000].map(|nodes| super::run(nodes, 33, 200_000, || began.elapsed()));
        for rate in rates {
            println!("{rate:?}: {:.0}/s", rate.per_second());
        }
        assert!(rates[1].refused == 0 && rates[1].per_second() >= 100_000.0);
    }
}
