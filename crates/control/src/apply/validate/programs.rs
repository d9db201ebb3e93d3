//! What the programs of a service are given, against what the kernel takes. The reader of a manifest says the same with the line; an API may be
//! sent anything, and only the server knows the values of secrets that were set by hand.

use std::collections::BTreeMap;

use api::problem::Problem;
use boundary::secret::{Keyring, SecretValue};
use model::compute::Service;
use model::compute::programs::{
    Brings, Fault, PASSWORD_BYTES, SPEC_MAX_BYTES, SecretShape, faults,
};
use model::compute::variables::collisions;
use model::ids::{ProjectName, ResourceId, ResourceName};

use super::{Known, Request, invalid};
use crate::apply::secrets::open;
use crate::engines::{self, Source};
use crate::records::encode;
use crate::world::World;

/// Every service of the change, and those that need a secret that it gives a value.
pub(super) fn check(
    world: &World,
    request: &Request<'_>,
    known: &Known<'_>,
) -> Result<(), Problem> {
    let changed = |name: &ResourceName, spec: &Service| {
        request.apply.services.contains_key(name)
            || spec
                .needs
                .keys()
                .any(|need| request.values.contains_key(need))
    };
    for (name, spec) in &known.services {
        if !changed(name, spec) {
            continue;
        }
        let length = encode(spec).len();
        if length > SPEC_MAX_BYTES {
            return Err(invalid(format!(
                "{name} takes {length} bytes as JSON: {SPEC_MAX_BYTES} is the most that is kept of one service"
            ))
            .remedy("put large values into a file in `files`, or into secrets"));
        }
        let needs = brings(world, request, name, spec);
        if let Some(fault) = faults(spec, &needs).into_iter().next() {
            return Err(refusal(name, &fault));
        }
        // One that was taken before goes on: its secrets can be given new values.
        if request.apply.services.contains_key(*name) {
            let ports = |need: &ResourceName| {
                let needed = known.services.get(need).into_iter();
                let ports = needed.flat_map(|needed| needed.ports_of(need));
                ports.map(|(on_road, ..)| on_road).collect()
            };
            if let Some(fault) = collisions(spec, &needs, &ports).into_iter().next() {
                return Err(refusal(name, &fault));
            }
        }
    }
    Ok(())
}

/// Whether all that need a secret could be given this value.
pub fn check_value(
    world: &World,
    keyring: &Keyring,
    id: &ResourceId,
    value: &SecretValue,
) -> Result<(), Problem> {
    for (name, _, record) in world.services_of(&id.project) {
        let service = ResourceId::new(id.project.clone(), name.clone());
        let given = engines::given(world, &service, &record.spec);
        if !given
            .iter()
            .any(|(_, source)| *source == Source::Secret(id.clone()))
        {
            continue;
        }
        let shape = |other: &ResourceId| match other == id {
            true => SecretShape::of(value.expose()),
            false => stored(world, keyring, other),
        };
        let needs = given
            .into_iter()
            .map(|(need, source)| {
                (
                    need.name.clone(),
                    of_source(&need.name, &source, &id.project, &shape),
                )
            })
            .collect();
        if let Some(fault) = faults(&record.spec, &needs).into_iter().next() {
            return Err(refusal(name, &fault));
        }
    }
    Ok(())
}

fn refusal(name: &ResourceName, fault: &Fault) -> Problem {
    invalid(format!("{name}: {} {}", fault.part, fault.message)).remedy(fault.remedy)
}

fn brings(
    world: &World,
    request: &Request<'_>,
    name: &ResourceName,
    spec: &Service,
) -> BTreeMap<ResourceName, Brings> {
    let project = request.project;
    let shape = |id: &ResourceId| match request.values.get(&id.name) {
        Some(value) => SecretShape::of(value.expose()),
        None => stored(world, request.keyring, id),
    };
    let service = ResourceId::new(project.clone(), name.clone());
    let mut needs: BTreeMap<_, _> = engines::given(world, &service, spec)
        .into_iter()
        .map(|(need, source)| {
            (
                need.name.clone(),
                of_source(&need.name, &source, project, &shape),
            )
        })
        .collect();
    // What this very change declares.
    for need in spec.needs.keys() {
        if request.apply.secrets.contains_key(need) {
            let id = ResourceId::new(project.clone(), need.clone());
            needs.insert(need.clone(), Brings::Secret(shape(&id)));
        }
    }
    needs
}

fn of_source(
    need: &ResourceName,
    source: &Source,
    project: &ProjectName,
    shape: &impl Fn(&ResourceId) -> SecretShape,
) -> Brings {
    match source {
        Source::Secret(id) if id.name == *need && id.project == *project => {
            Brings::Secret(shape(id))
        }
        Source::Secret(id) => Brings::Database(shape(id)),
        Source::Password { .. } | Source::OfItself => Brings::Database(SecretShape {
            length: PASSWORD_BYTES,
            is_binary: false,
        }),
    }
}

/// Of one without a value, or one that does not open, nothing is known.
fn stored(world: &World, keyring: &Keyring, id: &ResourceId) -> SecretShape {
    let record = world.secrets.get(id);
    let value = record.and_then(|record| open(keyring, id, record));
    value.map_or(SecretShape::default(), |value| {
        SecretShape::of(value.expose())
    })
}
