//! Databases and topics: who they are, and what of them wants attention.

use std::collections::BTreeMap;

use api::wire::{EngineKind, EngineView, InstanceView};
use model::compute::InstanceState;
use model::control::Reason;
use model::ids::{ProjectName, ResourceName};
use model::state::{Access, ConsumerStatus, Engine, EngineStatus};
use plan::Now;

use super::instances;
use crate::state::Shared;
use crate::world::World;

/// A message, or a row of an outbox, that waits longer than this wants a person: a delivery that fails is tried again within it.
const WAITS_LONG_MS: u64 = 30_000;
/// Lines of one kind.
const CONCERNS_MOST: usize = 20;

/// The engines of a project with the instance that keeps each, not yet asked.
pub fn engines(
    shared: &Shared,
    project: &ProjectName,
    now: Now,
) -> Vec<(EngineView, Option<InstanceView>)> {
    let instances = instances(shared, project, now);
    let engines = shared
        .world
        .services_of(project)
        .filter_map(|(name, _, record)| Some((name, record.spec.engine()?)));
    engines
        .map(|(name, engine)| {
            let instance = keeper(&instances, name).cloned();
            let view = EngineView {
                name: name.clone(),
                kind: kind(engine),
                state: instance
                    .as_ref()
                    .map_or(InstanceState::Pending, |instance| instance.state),
                status: None,
                silence: None,
                access: match engine {
                    Engine::Postgres(_) => access(&shared.world, project, name),
                    Engine::Topic(_) => BTreeMap::new(),
                },
            };
            (view, instance)
        })
        .collect()
}

/// The instance to ask: one that runs, before one that leaves or waits.
fn keeper<'a>(instances: &'a [InstanceView], name: &ResourceName) -> Option<&'a InstanceView> {
    let of_it = instances.iter().filter(|view| view.service == *name);
    of_it.max_by_key(|view| (view.ready, view.state == InstanceState::Running, view.pid))
}

fn kind(engine: &Engine) -> EngineKind {
    match engine {
        Engine::Postgres(_) => EngineKind::Database,
        Engine::Topic(_) => EngineKind::Topic,
    }
}

fn access(
    world: &World,
    project: &ProjectName,
    name: &ResourceName,
) -> BTreeMap<ResourceName, Access> {
    let services = world.services_of(project);
    services
        .filter_map(|(service, _, record)| {
            let need = record.spec.needs.get(name)?;
            Some((service.clone(), need.access))
        })
        .collect()
}

/// What a person should look at, with what to type.
pub fn concerns(engines: &[EngineView]) -> Vec<Reason> {
    let all = engines.iter().flat_map(|view| match &view.status {
        Some(EngineStatus::Topic { consumers, .. }) => of_topic(&view.name, consumers),
        Some(EngineStatus::Postgres {
            outbox_backlog,
            outbox_oldest_ms,
            ..
        }) => of_outbox(&view.name, *outbox_backlog, *outbox_oldest_ms)
            .into_iter()
            .collect(),
        None => Vec::new(),
    });
    all.take(CONCERNS_MOST).collect()
}

fn of_topic(
    topic: &ResourceName,
    consumers: &BTreeMap<ResourceName, ConsumerStatus>,
) -> Vec<Reason> {
    let dead = consumers.iter().filter(|(_, status)| status.dead > 0);
    let dead = dead.map(|(consumer, status)| {
        let text = format!(
            "dead letters of {consumer} in {topic}: {}; `mainland topic dead {topic}`, then `mainland topic redrive {topic} --all`",
            status.dead
        );
        Reason::new("dead-letters", text)
    });
    let late = consumers
        .iter()
        .filter(|(_, status)| status.backlog > 0 && status.oldest_ms > WAITS_LONG_MS);
    let late = late.map(|(consumer, status)| {
        let text = format!(
            "messages of {topic} that wait for {consumer}: {}, the oldest for {} s; see `mainland logs {consumer}`; more copies: `mainland scale {consumer} N`",
            status.backlog,
            status.oldest_ms / 1000
        );
        Reason::new("backlog", text)
    });
    dead.chain(late).collect()
}

fn of_outbox(database: &ResourceName, backlog: u64, oldest_ms: u64) -> Option<Reason> {
    let text = format!(
        "the outbox of {database} does not move: rows that are no messages yet: {backlog}, the oldest for {} s; see `mainland logs {database}`",
        oldest_ms / 1000
    );
    (backlog > 0 && oldest_ms > WAITS_LONG_MS).then(|| Reason::new("outbox", text))
}

#[cfg(test)]
mod tests {
    use model::units::Bytes;

    use super::*;

    fn view(status: EngineStatus) -> EngineView {
        EngineView {
            name: "it".parse().unwrap(),
            kind: EngineKind::Topic,
            state: InstanceState::Running,
            status: Some(status),
            silence: None,
            access: BTreeMap::new(),
        }
    }

    fn topic(backlog: u64, oldest_ms: u64, dead: u64) -> EngineView {
        let consumer = ConsumerStatus {
            backlog,
            oldest_ms,
            dead,
            ..ConsumerStatus::default()
        };
        view(EngineStatus::Topic {
            messages: 9,
            size: Bytes(9),
            consumers: BTreeMap::from([("email".parse().unwrap(), consumer)]),
        })
    }

    fn database(outbox_backlog: u64, outbox_oldest_ms: u64) -> EngineView {
        view(EngineStatus::Postgres {
            version: "15.8".to_owned(),
            size: Bytes(9),
            connections: 1,
            connections_max: 9,
            outbox_backlog,
            outbox_oldest_ms,
        })
    }

    #[test]
    fn only_what_needs_a_person_is_a_concern() {
        for (view, expected) in [
            (topic(0, 0, 0), vec![]),
            (topic(7, 29_000, 0), vec![]),
            (topic(7, 31_000, 0), vec!["backlog"]),
            (topic(0, 31_000, 1), vec!["dead-letters"]),
            (topic(7, 31_000, 1), vec!["dead-letters", "backlog"]),
            (database(0, 40_000), vec![]),
            (database(3, 29_000), vec![]),
            (database(3, 40_000), vec!["outbox"]),
        ] {
            let codes: Vec<_> = concerns(std::slice::from_ref(&view))
                .into_iter()
                .map(|reason| reason.code)
                .collect();
            assert_eq!(codes, expected, "{view:?}");
        }
    }

    #[test]
    fn many_concerns_are_cut_short() {
        let views = vec![topic(0, 0, 1); CONCERNS_MOST + 5];
        assert_eq!(concerns(&views).len(), CONCERNS_MOST);
    }
}
