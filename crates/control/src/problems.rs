//! What goes wrong inside, as problems for those outside.

use api::problem::{Problem, nearest};
use boundary::authorize::Refusal;
use model::ids::{NodeName, ProjectName, ResourceId};

use crate::records::NameRecord;
use crate::world::World;

/// A refusal of the boundary.
pub fn of_refusal(refusal: &Refusal) -> Problem {
    let message = refusal.reason.message.clone();
    match refusal.reason.code.as_str() {
        "unauthenticated" => Problem::unauthenticated().detail(message),
        "limit" => Problem::new(422, "limit", message).remedy("delete what is no longer used"),
        code => Problem::new(403, code, message),
    }
}

/// A store that did not do what was asked. Conflicts are met before.
pub fn of_store(error: &store::Error) -> Problem {
    match error {
        store::Error::Unavailable(_) => Problem::unavailable(
            "store-unavailable",
            error.to_string(),
        )
        .remedy(
            "nothing was changed; see that the disk of the server has room and works, then repeat",
        ),
        store::Error::OutcomeUnknown(_) => {
            Problem::unavailable("outcome-unknown", error.to_string())
                .remedy("look whether the change is there before you repeat it")
        }
        store::Error::Conflict(_) => {
            Problem::conflict("busy", "others change the same things all the time")
                .remedy("repeat the command")
        }
        store::Error::ValueTooLarge { .. }
        | store::Error::TransactionTooLarge { .. }
        | store::Error::TooManyOperations { .. }
        | store::Error::TooManyConditions { .. } => {
            Problem::new(413, "too-large", error.to_string())
        }
        store::Error::Compacted { .. } => Problem::new(410, "compacted", error.to_string())
            .remedy("list again and watch from the list's revision"),
        store::Error::NotYet { .. } => Problem::invalid(error.to_string()),
        _ => Problem::internal(error.to_string()),
    }
}

/// Another server leads: this one changes nothing any more.
pub fn fenced() -> Problem {
    Problem::unavailable(
        "fenced",
        "this server no longer leads; another one took over",
    )
    .remedy("ask the other server, or restart this one")
}

/// What is not there, with the name that was probably meant, or else where names are to be found.
pub fn missing<'a>(
    what: impl std::fmt::Display,
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    else_see: &str,
) -> Problem {
    let problem = Problem::not_found(what);
    match nearest(name, known) {
        Some(nearest) => problem.remedy(format!("did you mean `{nearest}`?")),
        None => problem.remedy(else_see),
    }
}

/// A service that is not there, where its project is.
pub fn no_service(world: &World, id: &ResourceId) -> Problem {
    if !world.has_project(&id.project) {
        return no_project(world, &id.project);
    }
    let what = match world.names.get(id) {
        Some(kind) if kind.value != NameRecord::Service => {
            format!("{id} is a {}: a service of that name", kind.value)
        }
        _ => format!("service {id}"),
    };
    let known = world.services_of(&id.project);
    let known = known.map(|(name, ..)| name.as_str());
    missing(
        what,
        id.name.as_str(),
        known,
        "`mainland status` lists them",
    )
}

pub fn no_project(world: &World, project: &ProjectName) -> Problem {
    let projects = world.projects();
    let known = projects.iter().map(ProjectName::as_str);
    missing(
        format!("project {project}"),
        project.as_str(),
        known,
        "apply a manifest that declares it",
    )
}

pub fn no_node(world: &World, name: &NodeName) -> Problem {
    let known = world.nodes.keys().map(NodeName::as_str);
    missing(
        format!("node {name}"),
        name.as_str(),
        known,
        "`mainland nodes` lists them",
    )
}
