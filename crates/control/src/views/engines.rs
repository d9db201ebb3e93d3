//! Databases and topics: who they are, and what of them wants attention.

use std::collections::BTreeMap;

use api::wire::{EngineKind, EngineView, InstanceView};
use model::compute::InstanceState;
use model::control::Reason;
use model::ids::{ProjectName, ResourceId, ResourceName};
use model::state::extensions::ExtensionStatus;
use model::state::{Access, ConsumerStatus, Engine, EngineStatus, Share};
use plan::Now;

use super::instances;
use crate::state::Shared;
use crate::world::World;

/// A message, or a row of an outbox, that waits longer than this wants a person: a delivery that fails is tried again within it.
const WAITS_LONG_MS: u64 = 30_000;
/// Of the connections of one service.
const CONNECTIONS_WARN_PERCENT: u64 = 80;
/// Consumers that are no services, in one line.
const STRANGERS_NAMED: usize = 3;
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
pub fn concerns(world: &World, project: &ProjectName, engines: &[EngineView]) -> Vec<Reason> {
    let reader = |service: &ResourceName| {
        let id = ResourceId::new(project.clone(), service.clone());
        match world.service(&id) {
            None => Reader::Gone,
            Some((_, record)) if record.spec.volumes.is_empty() => Reader::Alike,
            Some(_) => Reader::WithVolumes,
        }
    };
    concerns_of(engines, reader)
}

/// Who reads a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// Its copies hold nothing of their own: one more takes its share.
    Alike,
    WithVolumes,
    /// It is declared no more.
    Gone,
}

fn concerns_of(
    engines: &[EngineView],
    reader: impl Fn(&ResourceName) -> Reader + Copy,
) -> Vec<Reason> {
    let all = engines.iter().flat_map(|view| match &view.status {
        Some(EngineStatus::Topic { consumers, .. }) => of_topic(&view.name, consumers, reader),
        Some(EngineStatus::Postgres {
            outbox_backlog,
            outbox_oldest_ms,
            shares,
            ..
        }) => of_outbox(&view.name, *outbox_backlog, *outbox_oldest_ms)
            .into_iter()
            .chain(of_connections(&view.name, shares))
            .chain(of_extensions(view))
            .collect(),
        None => of_silence(view).into_iter().collect(),
    });
    all.take(CONCERNS_MOST).collect()
}

fn of_topic(
    topic: &ResourceName,
    consumers: &BTreeMap<ResourceName, ConsumerStatus>,
    reader: impl Fn(&ResourceName) -> Reader,
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
    // Who pulls names its consumers as it likes.
    let service = |consumer: &ResourceName| -> ResourceName {
        let owner = consumers.get(consumer).and_then(|one| one.owner.clone());
        owner.unwrap_or_else(|| consumer.clone())
    };
    let reader = |consumer: &ResourceName| reader(&service(consumer));
    let gone: Vec<_> = late
        .clone()
        .filter(|(consumer, _)| reader(consumer) == Reader::Gone)
        .map(|(consumer, _)| consumer.as_str())
        .collect();
    let is_told_apart =
        |consumer: &ResourceName| gone.len() < 2 || reader(consumer) != Reader::Gone;
    let late = late.filter(|(consumer, _)| is_told_apart(consumer));
    let late = late.map(|(consumer, status)| {
        let reader = reader(consumer);
        let refused = status.retrying >= status.backlog;
        let what = match reader {
            Reader::Gone => "left when it was taken out of the project",
            _ if refused => "fails on, each tried again",
            _ => "is not done with",
        };
        let service = service(consumer);
        let named = match service == *consumer {
            true => consumer.to_string(),
            false => format!("{consumer} (of {service})"),
        };
        let mut text = format!(
            "messages of {topic} that {named} {what}: {}, the oldest for {} s; ",
            status.backlog,
            status.oldest_ms / 1000
        );
        text += &match reader {
            Reader::Gone => format!("its place is kept for a day: a service {service} that is declared again goes on there"),
            _ => format!("see `mainland logs {service}`"),
        };
        if !refused && reader == Reader::Alike {
            text += &format!("; more copies: `mainland scale {service} N`");
        }
        Reason::new("backlog", text)
    });
    dead.chain(late).chain(of_strangers(topic, &gone)).collect()
}

/// Several consumers that are no services: who pulls names itself as it likes, and may have made very many.
fn of_strangers(topic: &ResourceName, names: &[&str]) -> Option<Reason> {
    let some = names[..names.len().min(STRANGERS_NAMED)].join(", ");
    let more = match names.len().saturating_sub(STRANGERS_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = format!(
        "messages of {topic} are kept for {} consumers that are no services of the project: {some}{more}; who pulls no more is forgotten, after a day or a week",
        names.len()
    );
    (names.len() > 1).then(|| Reason::new("backlog", text))
}

/// An engine that runs and does not serve. What doesn't answer at once may only be busy, and its probe tells.
fn of_silence(view: &EngineView) -> Option<Reason> {
    let reason = view.silence.as_ref()?;
    let refuses = view.state == InstanceState::Running && reason.code != "no-answer";
    let name = &view.name;
    let text = format!("{name} runs and does not serve: {reason}; see `mainland logs {name}`");
    refuses.then(|| Reason::new("engine-refuses", text))
}

fn of_outbox(database: &ResourceName, backlog: u64, oldest_ms: u64) -> Option<Reason> {
    let text = format!(
        "the outbox of {database} does not move: rows that are no messages yet: {backlog}, the oldest for {} s; see `mainland logs {database}`",
        oldest_ms / 1000
    );
    (backlog > 0 && oldest_ms > WAITS_LONG_MS).then(|| Reason::new("outbox", text))
}

/// What of a database's extensions is not as declared.
pub fn of_extensions(view: &EngineView) -> Vec<Reason> {
    let Some(EngineStatus::Postgres { extensions, .. }) = &view.status else {
        return Vec::new();
    };
    let concern = |(extension, status): (&String, &ExtensionStatus)| {
        let concern = status.concern.as_ref()?;
        let text = format!("the extension {extension} of {}: {concern}", view.name);
        Some(Reason::new("extension", text))
    };
    extensions.iter().filter_map(concern).collect()
}

/// Who has nearly all connections that it may have.
fn of_connections(
    database: &ResourceName,
    shares: &BTreeMap<ResourceName, Share>,
) -> impl Iterator<Item = Reason> {
    let crowded = shares.iter().filter(|(_, share)| {
        u64::from(share.connections) * 100 >= u64::from(share.most) * CONNECTIONS_WARN_PERCENT
    });
    crowded.map(move |(service, share)| {
        let text = format!(
            "{service} has {} of the {} connections that it may have to {database}: give its pool fewer, or it more: `needs: [{database}: {{ connections: … }}]`, or {database} more `memory`",
            share.connections, share.most
        );
        Reason::new("connections", text)
    })
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
            shares: BTreeMap::new(),
            extensions: BTreeMap::new(),
        })
    }

    fn extended(concern: Option<&str>) -> EngineView {
        let mut view = database(0, 0);
        if let Some(EngineStatus::Postgres { extensions, .. }) = &mut view.status {
            let status = ExtensionStatus {
                version: None,
                concern: concern.map(str::to_owned),
            };
            extensions.insert("vector".to_owned(), status);
        }
        view
    }

    fn connected(connections: u32) -> EngineView {
        let mut view = database(0, 0);
        if let Some(EngineStatus::Postgres { shares, .. }) = &mut view.status {
            let share = Share {
                connections,
                most: 10,
            };
            shares.insert("orders".parse().unwrap(), share);
        }
        view
    }

    #[test]
    fn consumers_that_are_no_services_are_one_line() {
        let mut view = topic(0, 0, 0);
        if let Some(EngineStatus::Topic { consumers, .. }) = &mut view.status {
            for number in 0..255 {
                let late = ConsumerStatus {
                    backlog: 1,
                    oldest_ms: 31_000,
                    ..ConsumerStatus::default()
                };
                consumers.insert(format!("x{number}").parse().unwrap(), late);
            }
        }
        let concerns = concerns_of(std::slice::from_ref(&view), |_| Reader::Gone);
        let [concern] = concerns.try_into().unwrap();
        assert!(
            concern.message.contains("for 255 consumers"),
            "{}",
            concern.message
        );
        assert!(
            concern.message.contains("x0, x1, x10 and 252 more"),
            "{}",
            concern.message
        );
    }

    #[test]
    fn a_consumer_is_told_with_the_service_that_pulls() {
        let mut view = topic(7, 31_000, 0);
        if let Some(EngineStatus::Topic { consumers, .. }) = &mut view.status {
            for status in consumers.values_mut() {
                status.owner = Some("reports".parse().unwrap());
            }
        }
        let reader = |name: &ResourceName| match name.as_str() {
            "reports" => Reader::Alike,
            _ => Reader::Gone,
        };
        let said = concerns_of(&[view], reader);
        for part in [
            "email (of reports)",
            "`mainland logs reports`",
            "scale reports N",
        ] {
            assert!(said[0].message.contains(part), "{}", said[0].message);
        }
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
            (connected(7), vec![]),
            (connected(8), vec!["connections"]),
            (extended(None), vec![]),
            (
                extended(Some("the machine does not have it")),
                vec!["extension"],
            ),
        ] {
            let codes: Vec<_> = concerns_of(std::slice::from_ref(&view), |_| Reader::Alike)
                .into_iter()
                .map(|reason| reason.code)
                .collect();
            assert_eq!(codes, expected, "{view:?}");
        }
    }

    #[test]
    fn more_copies_are_advised_only_where_they_help() {
        let table = [
            (0, Reader::Alike, true),
            (6, Reader::Alike, true),
            // All that waits was refused, and is tried again.
            (7, Reader::Alike, false),
            // A copy more would begin with an empty volume.
            (0, Reader::WithVolumes, false),
            (0, Reader::Gone, false),
        ];
        for (retrying, reader, advised) in table {
            let mut view = topic(7, 31_000, 0);
            if let Some(EngineStatus::Topic { consumers, .. }) = &mut view.status {
                consumers
                    .values_mut()
                    .for_each(|one| one.retrying = retrying);
            }
            let said = concerns_of(&[view], |_| reader);
            let is_said = said[0].message.contains("mainland scale");
            assert_eq!(is_said, advised, "{retrying} {reader:?}");
            // Who is gone has no logs to look at.
            let looks = said[0].message.contains("mainland logs");
            assert_eq!(looks, reader != Reader::Gone, "{}", said[0].message);
        }
    }

    #[test]
    fn an_engine_that_runs_and_refuses_is_a_concern() {
        let table = [
            (InstanceState::Running, "not-ready", 1),
            (InstanceState::Running, "no-answer", 0),
            (InstanceState::Pending, "not-running", 0),
        ];
        for (state, code, concerns) in table {
            let mut view = database(0, 0);
            view.status = None;
            view.state = state;
            view.silence = Some(Reason::new(code, "it-1 refuses: no such table"));
            let said = concerns_of(&[view], |_| Reader::Alike);
            assert_eq!(said.len(), concerns, "{code}");
            let expected =
                "it runs and does not serve: it-1 refuses: no such table; see `mainland logs it`";
            assert!(
                said.iter().all(|reason| reason.message == expected),
                "{said:?}"
            );
        }
    }

    #[test]
    fn many_concerns_are_cut_short() {
        let views = vec![topic(0, 0, 1); CONCERNS_MOST + 5];
        assert_eq!(concerns_of(&views, |_| Reader::Alike).len(), CONCERNS_MOST);
    }
}
