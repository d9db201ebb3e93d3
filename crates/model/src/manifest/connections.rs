//! Whether a database has the connections that are declared, and each copy of a service one at least.

use crate::ids::ResourceName;
use crate::state::{Engine, connections, kept_for_newcomers};

use super::check::{Report, join};
use super::{DeclaredService, Services};

/// Of every database that is run here. Who says nothing has an equal share of what is left.
pub(super) fn check(report: &mut Report, services: &Services) {
    for (name, database) in services {
        if let Some(Engine::Postgres(_)) = database.spec.engine() {
            of_one(report, services, name, database);
        }
    }
}

fn of_one(
    report: &mut Report,
    services: &Services,
    name: &ResourceName,
    database: &DeclaredService,
) {
    let given = connections(database.spec.memory);
    let users: Vec<_> = services
        .iter()
        .filter_map(|(user, service)| Some((user, service, service.spec.needs.get(name)?)))
        .collect();
    let declared: u32 = users.iter().filter_map(|(.., need)| need.connections).sum();
    let others = users.iter().filter(|(.., need)| need.connections.is_none());
    let others = u32::try_from(others.count()).unwrap_or(u32::MAX);
    if declared.saturating_add(others) > given && !users.is_empty() {
        let rest = match others {
            0 => String::new(),
            others => format!(" and {others} services declare none"),
        };
        let message = format!(
            "services declare {declared} connections{rest}, and its memory of {} gives {given} (one for each 6 MiB, 20 to 200; those of people are apart): they get fewer; give it more `memory`, or them fewer `connections`",
            database.spec.memory
        );
        let path = join("databases", name.as_str());
        report.warning(database.position, &path, message);
        return;
    }
    let shared = given.saturating_sub(declared);
    let share = shared.saturating_sub(kept_for_newcomers(given)) / others.max(1);
    let share = share.max(1);
    for (user, service, need) in users {
        let (most, copies) = (need.connections.unwrap_or(share), service.spec.replicas);
        if copies > most {
            let message = format!(
                "{copies} copies have {most} connections to `{name}` together, so some have none: give it more `connections`, or `{name}` more `memory`"
            );
            let path = join("services", user.as_str());
            let position = service.needs.get(name).copied();
            report.warning(position.unwrap_or(service.position), &path, message);
        }
    }
}
