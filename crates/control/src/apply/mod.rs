//! What an apply would do: from the world as it is and what is asked, the changes with their consequences, the warnings, and the
//! drafts that make it so. Pure but for the sealing of secret values, so a dry run is the same walk without the write.

mod releases;
mod removal;
mod secrets;
mod services;
mod validate;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};

use api::problem::Problem;
use api::wire::{self, Action, Change, Kind};
use boundary::authorize::{self, Limits};
use boundary::secret::{Keyring, SecretValue};
use jiff::Timestamp;
use model::boundary::PrincipalName;
use model::control::{NodeRole, Standing};
use model::ids::{Digest, ProjectName, ReleaseNumber, ResourceId, ResourceName, ZoneName};

use crate::call::IfMatch;
use crate::draft::Draft;
use crate::problems;
use crate::records::Key;
use crate::world::World;

pub use releases::{restart, rollback};
pub use removal::{Deletion, delete_data, remove_project, remove_resource};
pub use secrets::{open as open_secret, set_value, users};
pub use validate::check_value;

/// Who asks for a change, and when.
#[derive(Clone)]
pub struct Author {
    pub name: PrincipalName,
    pub at: Timestamp,
}

/// What is asked.
pub struct Request<'a> {
    pub project: &'a ProjectName,
    pub apply: &'a wire::Apply,
    /// Decoded from `apply`.
    pub values: &'a BTreeMap<ResourceName, SecretValue>,
    pub author: &'a Author,
    /// Of the service, where one is applied alone.
    pub if_match: IfMatch,
    /// Artifacts that `apply` names and that are not uploaded.
    pub missing_artifacts: &'a BTreeSet<Digest>,
    pub limits: &'a Limits,
    pub keyring: &'a Keyring,
    /// Say what it would do, also where it would be refused for undoing a rollback.
    pub dry_run: bool,
}

/// One resource's change and the draft that makes it.
pub struct Step {
    pub change: Change,
    pub draft: Draft,
}

/// All that an apply comes to.
#[derive(Default)]
pub struct Planned {
    pub steps: Vec<Step>,
    pub warnings: Vec<String>,
}

impl Planned {
    pub fn changes(&self) -> Vec<Change> {
        self.steps.iter().map(|step| step.change.clone()).collect()
    }
}

/// Walks through what is asked.
pub fn plan(world: &World, request: &Request<'_>) -> Result<Planned, Problem> {
    validate::check(world, request)?;
    let mut planner = Planner {
        world,
        request,
        planned: Planned::default(),
        uids: Vec::new(),
    };
    for (name, source) in &request.apply.secrets {
        planner.secret(name, source)?;
    }
    planner.values_of_others()?;
    for (name, spec) in &request.apply.services {
        planner.service(name, spec)?;
    }
    for route in &request.apply.routes {
        planner.route(route);
    }
    if request.apply.prune {
        planner.prune();
    }
    warnings::collect(&mut planner);
    Ok(planner.planned)
}

struct Planner<'a> {
    world: &'a World,
    request: &'a Request<'a>,
    planned: Planned,
    /// Uids given in this walk.
    uids: Vec<u32>,
}

impl Planner<'_> {
    fn id(&self, name: &ResourceName) -> ResourceId {
        ResourceId::new(self.request.project.clone(), name.clone())
    }

    fn warn(&mut self, warning: String) {
        self.planned.warnings.push(warning);
    }

    fn push(&mut self, change: Change, draft: Draft) {
        self.planned.steps.push(Step { change, draft });
    }

    fn admit(&self, change: &authorize::Change) -> Result<(), Problem> {
        authorize::admit(change, self.request.limits)
            .map_err(|refusal| problems::of_refusal(&refusal))
    }

    fn route(&mut self, route: &model::traffic::Route) {
        let place = format!("{}{}", route.host, route.path);
        let key = (self.request.project.clone(), place.clone());
        let stored = self.world.routes.get(&key);
        let (action, consequence, diff) = match stored {
            None => (
                Action::Create,
                format!("leads to {}", route.target()),
                Vec::new(),
            ),
            Some(known) if known.value == *route => {
                (Action::Keep, "nothing changes".to_owned(), Vec::new())
            }
            Some(known) => (
                Action::Change,
                format!("leads to {}", route.target()),
                vec![format!("to: {} → {}", known.target(), route.target())],
            ),
        };
        let mut draft = Draft::new();
        if action != Action::Keep {
            draft.put(Key::Route(key.0, key.1), stored, route);
        }
        self.push(
            change(Kind::Routes, place, action, consequence, diff, None),
            draft,
        );
    }

    fn prune(&mut self) {
        let apply = self.request.apply;
        let world = self.world;
        let project = self.request.project;
        let places: BTreeSet<String> = apply
            .routes
            .iter()
            .map(|route| format!("{}{}", route.host, route.path))
            .collect();
        for (place, stored) in world
            .routes_of(project)
            .filter(|(place, _)| !places.contains(*place))
        {
            self.planned
                .steps
                .push(removal::of_route(project, place, stored));
        }
        for (name, entry, _) in world.services_of(project) {
            if !apply.services.contains_key(name) {
                let id = self.id(name);
                self.planned.steps.extend(removal::of_service(
                    &id,
                    entry,
                    apply.delete_data,
                    self.request.author,
                ));
            }
        }
        for (name, stored) in world.secrets_of(project) {
            if !apply.secrets.contains_key(name) {
                let id = self.id(name);
                self.planned
                    .steps
                    .push(removal::of_secret(world, &id, stored));
            }
        }
    }
}

fn change(
    kind: Kind,
    name: impl ToString,
    action: Action,
    consequence: impl Into<String>,
    diff: Vec<String>,
    release: Option<ReleaseNumber>,
) -> Change {
    Change {
        kind,
        name: name.to_string(),
        action,
        consequence: consequence.into(),
        diff,
        release,
    }
}

/// Zones with a node that takes placements.
pub fn open_zones(world: &World) -> BTreeSet<ZoneName> {
    let open = world.nodes.values().filter(|node| {
        node.role == NodeRole::Worker && node.standing == Standing::Present && !node.cordoned
    });
    open.map(|node| node.zone.clone()).collect()
}
