//! The server itself: version, health, who asks, events, the audit log.

use std::sync::{Arc, OnceLock};

use api::problem::Problem;
use api::wire;
use boundary::audit::Filter;
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use model::boundary::{Principal, PrincipalName};
use model::ids::ProjectName;
use model::signals::Event;

use super::projects;
use crate::auditor;
use crate::call::{self, Answer, Call};
use crate::problems;
use crate::refusals;
use crate::state::Server;

/// Events and audit records of one answer at most.
const ANSWERED_MOST: usize = 5_000;

pub async fn version(server: Arc<Server>, call: Call) -> Answer {
    let cluster = match call.principal {
        Principal::Anonymous => String::new(),
        _ => server.authority.cluster().to_owned(),
    };
    Ok(call::json(&wire::Version {
        version: server.version.to_owned(),
        cluster,
    }))
}

pub async fn health(server: Arc<Server>, _: Call) -> Answer {
    let fenced = server.leadership.is_fenced();
    let ready = server.with(|shared| shared.ready) && !fenced;
    let reason = match (ready, fenced) {
        (true, _) => None,
        (false, true) => {
            Some("another server took over; this one decides nothing any more".to_owned())
        }
        (false, false) => Some("it has not yet looked at the world".to_owned()),
    };
    Ok(call::json(&wire::Health { ready, reason }))
}

pub async fn whoami(server: Arc<Server>, call: Call) -> Answer {
    let cluster = server.authority.cluster().to_owned();
    Ok(call::json(&wire::WhoAmI {
        principal: call.principal.name(),
        cluster,
    }))
}

/// Anybody may ask for it: it is made once, and every answer is the same bytes.
pub async fn openapi(_: Arc<Server>, _: Call) -> Answer {
    Ok(call::json_bytes(description()))
}

fn description() -> Bytes {
    static DESCRIPTION: OnceLock<Bytes> = OnceLock::new();
    let made = DESCRIPTION.get_or_init(|| api::operations::openapi().to_string().into());
    made.clone()
}

pub async fn audit(server: Arc<Server>, call: Call) -> Answer {
    let limit = call.asks("limit", 100_usize)?.min(ANSWERED_MOST);
    let filter = filter(&call)?;
    let revision = server.look(|world| world.revision.to_string());
    let of_store = |error| problems::of_store(&error);
    let items = auditor::newest(&*server.store, &filter, limit).await;
    let mut items = items.map_err(of_store)?;
    let stored = refusals::stored(&*server.store).await.map_err(of_store)?;
    let refused = stored.into_iter().chain(server.refusals.counted());
    items.extend(refused.filter(|record| filter.matches(record)));
    // Of the same moment in the order of the chain.
    items.sort_by_key(|item| std::cmp::Reverse((item.at, item.sequence)));
    items.truncate(limit);
    Ok(call::json(&wire::List { items, revision }))
}

fn filter(call: &Call) -> Result<Filter, Problem> {
    let text = |name: &str| call.query.get(name).cloned();
    let time = |name: &str| {
        let time = text(name).map(|text| text.parse::<Timestamp>());
        time.transpose().map_err(|error| {
            Problem::invalid(format!("`{name}`: {error}")).remedy("give it as 2026-01-31T12:00:00Z")
        })
    };
    Ok(Filter {
        principal: text("principal").map(PrincipalName),
        action: text("action"),
        on: text("on"),
        since: time("since")?,
        until: time("until")?,
    })
}

/// The audit log as it is chained, from one record on.
pub async fn audit_chain(server: Arc<Server>, call: Call) -> Answer {
    let from = call.asks("from", 1_u64)?;
    let chain = auditor::walk(&*server.store, from).await;
    Ok(call::json(
        &chain.map_err(|error| problems::of_store(&error))?,
    ))
}

/// Of everything, or of the project in the path.
pub async fn events(server: Arc<Server>, call: Call) -> Answer {
    let project = call
        .segment("project")
        .map(|_| call.project())
        .transpose()?;
    let after = call.asks("after", 0_u64)?;
    if call.asks("watch", false)? {
        return Ok(call::lines(follow(server, project, after)));
    }
    let mut items = of_project(server.events.since(after), project.as_ref());
    if let Some(project) = &project
        && after == 0
        && !items.iter().any(|event| event.project.is_some())
        && !server.look(|world| world.projects().contains(project))
    {
        return Err(projects::unknown(&server, project));
    }
    let surplus = items.len().saturating_sub(ANSWERED_MOST);
    items.drain(..surplus);
    let revision = server.look(|world| world.revision.to_string());
    Ok(call::json(&wire::List { items, revision }))
}

fn of_project(mut events: Vec<Event>, project: Option<&ProjectName>) -> Vec<Event> {
    if project.is_some() {
        // What happens to a node happens to every project.
        events.retain(|event| event.project.is_none() || event.project.as_ref() == project);
    }
    events
}

/// Events after a number, and then those that come, until the server ends.
fn follow(
    server: Arc<Server>,
    project: Option<ProjectName>,
    after: u64,
) -> impl stream::Stream<Item = Event> + Send {
    use futures_util::StreamExt;
    let newest = server.events.newest();
    let ending = server.ending.clone();
    let batches = stream::unfold(
        (server, newest, ending, after),
        move |(server, mut newest, mut ending, after)| async move {
            loop {
                newest.mark_unchanged();
                let events = server.events.since(after);
                if let Some(last) = events.last().map(|event| event.sequence) {
                    return Some((events, (server, newest, ending, last)));
                }
                tokio::select! {
                    changed = newest.changed() => changed.ok()?,
                    _ = ending.wait_for(|ending| *ending) => return None,
                }
            }
        },
    );
    batches.flat_map(move |events| stream::iter(of_project(events, project.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_made_once() {
        let (one, other) = (description(), description());
        assert!(one.len() > 10_000);
        assert_eq!(
            one.as_ptr(),
            other.as_ptr(),
            "no answer has a copy of its own"
        );
    }
}
