//! What people run beside the copies of services: placed like a copy, counted as none, and there for as long as they are connected.
//!
//! In memory only. A server that begins anew knows of none, and the nodes end what they are no longer told: who was connected is not any more.

use std::collections::BTreeMap;

use api::problem::Problem;
use model::compute::{Placement, Purpose, Role, Service, Spread, Wanted};
use model::control::Reason;
use model::ids::{Epoch, InstanceId, InstanceName, NodeName, ReleaseNumber, ResourceId};
use plan::place::{self, Ceiling, Cluster, Request};
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::desired::Seen;
use crate::problems;
use crate::world::World;

/// Runs of all projects at one time.
const RUNS_MAX: usize = 64;

/// Where none is placed, and why.
#[derive(Default)]
pub struct Bars {
    pub never: Vec<(NodeName, Reason)>,
    /// Unless there is no other.
    pub rather_not: Vec<(NodeName, Reason)>,
}

/// Those that there are.
#[derive(Default)]
pub struct Runs {
    placements: BTreeMap<InstanceId, (ResourceId, Placement)>,
    /// Grows with each change.
    version: u64,
}

impl Runs {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn of(&self, service: &ResourceId) -> impl Iterator<Item = &Placement> {
        let all = self.placements.values();
        all.filter(move |(of, _)| of == service)
            .map(|(_, placement)| placement)
    }

    /// The release that a run was started under: a new number would start it anew.
    pub fn started_as(&self, instance: &InstanceId) -> Option<ReleaseNumber> {
        let run = self.placements.get(instance);
        run.map(|(_, placement)| placement.release)
    }

    pub fn is_placed(&self, service: &ResourceId, node: &NodeName) -> bool {
        self.of(service).any(|placement| placement.node == *node)
    }

    /// Places one on the node that a copy more would go to. Its bounds are those of a copy, above what is given out to copies.
    pub fn add(
        &mut self,
        world: &World,
        service: &ResourceId,
        bars: &Bars,
        at: jiff::Timestamp,
    ) -> Result<(InstanceId, NodeName), Problem> {
        if self.placements.len() >= RUNS_MAX {
            let title = format!("{RUNS_MAX} commands of `mainland run` are under way");
            return Err(Problem::unavailable("too-many-runs", title).remedy("end one of them"));
        }
        let (release, spec) = runnable(world, service)?;
        let name = name(service);
        let (node, reason) = self.find(world, service, &name, spec, bars)?;
        let id = InstanceId::new(service.project.clone(), name.clone());
        let placement = Placement {
            instance: name,
            release,
            node: node.clone(),
            slot: None,
            role: Role::Member,
            purpose: Purpose::Run,
            epoch: Epoch(1),
            wanted: Wanted::Run,
            replaces: None,
            reason,
            at,
            placed_at: None,
        };
        self.placements
            .insert(id.clone(), (service.clone(), placement));
        self.version += 1;
        Ok((id, node))
    }

    pub fn remove(&mut self, instance: &InstanceId) {
        self.placements.remove(instance);
        self.version += 1;
    }

    fn find(
        &self,
        world: &World,
        service: &ResourceId,
        name: &InstanceName,
        spec: &Service,
        bars: &Bars,
    ) -> Result<(NodeName, Reason), Problem> {
        let mut cluster = Cluster::new(world.nodes.values().map(|node| &node.value));
        for (id, entry) in &world.services {
            let mut seen = Seen::of(entry);
            seen.add_runs(entry, self.of(id));
            let size = |release: ReleaseNumber| {
                let spec = seen.releases.get(&release);
                spec.map(|spec| place::size_of(spec)).unwrap_or_default()
            };
            cluster.set_group(id, &seen.group, size);
        }
        let all: Vec<_> = [&bars.never[..], &bars.rather_not[..]].concat();
        let request = |barred| Request {
            service,
            instance: name,
            size: place::size_of(spec),
            labels: &spec.labels,
            spread: Spread::default(),
            home: None,
            ceiling: Ceiling::Full,
            avoid: &[],
            barred,
            going: &[],
            instead_of: None,
        };
        let placed = place::place(&mut cluster, &request(&all));
        let placed = placed.or_else(|_| place::place(&mut cluster, &request(&bars.never)));
        match placed {
            Ok(placed) => Ok((placed.node, placed.reason)),
            Err(refused) => Err(Problem::unavailable(
                "no-place",
                format!("no node can run it: {}", refused.reason),
            )
            .remedy("`mainland nodes` shows what they have left")),
        }
    }
}

/// What a copy of the service would be started from now.
fn runnable<'w>(
    world: &'w World,
    id: &ResourceId,
) -> Result<(ReleaseNumber, &'w Service), Problem> {
    let entry = world.services.get(id);
    let record = entry.and_then(|entry| entry.live());
    let Some(record) = record else {
        return Err(problems::no_service(world, id));
    };
    let name = &id.name;
    if record.spec.is_external() {
        let title =
            format!("{name} is external: it runs elsewhere, and nothing of it can be run here");
        return Err(Problem::new(422, "not-run-here", title));
    }
    if record.spec.engine().is_some() {
        let title = format!("{name} is a database or a topic: it has no program of yours");
        let remedy =
            "`mainland db connect` opens psql; `mainland run --in` takes a service that needs it";
        return Err(Problem::new(422, "not-run-here", title).remedy(remedy));
    }
    let current = record.current.as_ref();
    let current = current.ok_or_else(|| {
        Problem::conflict("no-release", format!("{name} has no release yet"))
            .remedy("`mainland deploy` makes one")
    })?;
    Ok((current.number, &record.spec))
}

/// No copy has such a name: theirs end in a number.
fn name(service: &ResourceId) -> InstanceName {
    let drawn = OsRng.try_next_u32().unwrap_or(0) & 0xff_ffff;
    let name = InstanceName::new(format!("{}-run-r{drawn:06x}", service.name));
    name.expect("a service's name and a few letters are a DNS label")
}
