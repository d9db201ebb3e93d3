//! Databases and topics, and those that use them. The reader of a manifest makes no others; an API may be sent anything.

use api::problem::Problem;
use model::compute::{Service, Work};
use model::ids::ResourceName;
use model::state::{Access, ENGINE_VOLUME, Engine, extensions};

use super::{Known, invalid, unknown};

pub(super) fn check(name: &ResourceName, spec: &Service, known: &Known<'_>) -> Result<(), Problem> {
    if let Some(engine) = spec.engine() {
        check_shape(name, spec, engine)?;
    }
    if let Some(Engine::Postgres(postgres)) = spec.engine()
        && let Some(topic) = &postgres.outbox
    {
        check_topic(name, "outbox", topic, known)?;
    }
    for (topic, subscription) in &spec.on {
        check_topic(name, "on", topic, known)?;
        if !subscription.path.starts_with('/') {
            return Err(invalid(format!(
                "{name}: the path of `on.{topic}` begins with `/`"
            )));
        }
        if !(1..=1_024).contains(&subscription.max_in_flight) {
            return Err(invalid(format!(
                "{name}: `on.{topic}.max_in_flight` is 1 to 1024"
            )));
        }
    }
    check_access(name, spec, known)
}

/// As the recipes make them.
fn check_shape(name: &ResourceName, spec: &Service, engine: &Engine) -> Result<(), Problem> {
    let noun = engine.noun();
    let refuse = |why: &str| Err(invalid(format!("{name} is a {noun}: {why}")));
    let outbox = match engine {
        Engine::Postgres(postgres) => postgres.outbox.as_ref(),
        Engine::Topic(_) => None,
    };
    let mut volumes = spec.volumes.keys().map(ResourceName::as_str);
    if let Engine::Postgres(postgres) = engine {
        if postgres.extensions.len() > extensions::MOST {
            return refuse(&format!("it has at most {} extensions", extensions::MOST));
        }
        let mut wrong = postgres
            .extensions
            .keys()
            .map(|name| extensions::check(name));
        if let Some(why) = wrong.find_map(Result::err) {
            return refuse(&why);
        }
    }
    if spec.replicas != 1 {
        return refuse("it has one copy in this version");
    }
    if volumes.next() != Some(ENGINE_VOLUME) || volumes.next().is_some() {
        return refuse("it has one volume, `data`");
    }
    if spec.needs.keys().any(|need| Some(need) != outbox) {
        return refuse("it needs nothing but the topic of its outbox");
    }
    let has_program = !spec.env.is_empty() || !spec.before_deploy.is_empty() || !spec.on.is_empty();
    if has_program {
        return refuse("it takes no `env`, `on` or `before_deploy`");
    }
    if spec.rollout.surge != 0 || spec.rollout.unavailable == 0 {
        return refuse("it is replaced in place: `surge` 0, `unavailable` 1");
    }
    Ok(())
}

fn check_topic(
    name: &ResourceName,
    key: &str,
    topic: &ResourceName,
    known: &Known<'_>,
) -> Result<(), Problem> {
    let Some(found) = known.services.get(topic) else {
        let title = format!("`{key}` of {name} names `{topic}`, which is no topic");
        return Err(unknown(title, known.nearest(topic)));
    };
    match found.engine() {
        Some(Engine::Topic(_)) => Ok(()),
        other => {
            let noun = other.map_or("service", Engine::noun);
            Err(invalid(format!(
                "`{key}` of {name} names `{topic}`, which is a {noun} and no topic"
            )))
        }
    }
}

fn check_access(name: &ResourceName, spec: &Service, known: &Known<'_>) -> Result<(), Problem> {
    let is_database = |need: &ResourceName| match known.services.get(need).map(|found| &found.work)
    {
        Some(Work::Engine { engine }) => matches!(engine, Engine::Postgres(_)),
        Some(Work::External { login, .. }) => login.is_some(),
        _ => false,
    };
    let is_topic = |need: &ResourceName| {
        let engine = known.services.get(need).and_then(|found| found.engine());
        matches!(engine, Some(Engine::Topic(_)))
    };
    for (need, options) in &spec.needs {
        let (word, whose) = match options.access {
            Access::Read if !is_database(need) => ("read", "databases"),
            Access::Consume if !is_topic(need) => ("consume", "topics"),
            _ => continue,
        };
        return Err(invalid(format!(
            "{name} needs `{need}` with `{word}`, which only {whose} know"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use model::compute::{Need, RolloutOptions};
    use model::state::{Postgres, Retention, Subscription, Topic, Volume};
    use model::units::{Bytes, Span};

    use super::*;
    use crate::testing::service;

    fn name(text: &str) -> ResourceName {
        text.parse().unwrap()
    }

    fn engine(engine: Engine) -> Service {
        let volume = Volume {
            size: Bytes::mebibytes(1),
        };
        Service {
            work: Work::Engine { engine },
            volumes: [(name("data"), volume)].into(),
            rollout: RolloutOptions {
                surge: 0,
                unavailable: 1,
                ..RolloutOptions::default()
            },
            ..service(1)
        }
    }

    fn topic() -> Service {
        let retention = Retention {
            age: Span::seconds(1),
            size: Bytes::mebibytes(1),
        };
        engine(Engine::Topic(Topic {
            attempts: 5,
            retention,
        }))
    }

    fn database(outbox: Option<&str>) -> Service {
        let outbox = outbox.map(name);
        let needs = outbox.iter().map(|topic| (topic.clone(), Need::default()));
        let needs = needs.collect();
        let postgres = Postgres {
            version: 15,
            outbox,
            extensions: BTreeMap::new(),
        };
        Service {
            needs,
            ..engine(Engine::Postgres(postgres))
        }
    }

    fn with_extension(name: &str) -> Service {
        engine(Engine::Postgres(Postgres {
            version: 15,
            outbox: None,
            extensions: [(name.to_owned(), extensions::Wish::Create)].into(),
        }))
    }

    fn on(topic: &str, path: &str, max_in_flight: u32) -> Service {
        let subscription = Subscription {
            path: path.to_owned(),
            max_in_flight,
            timeout: Span::seconds(1),
        };
        Service {
            on: [(name(topic), subscription)].into(),
            ..service(1)
        }
    }

    fn reading(need: &str) -> Service {
        needing(need, Access::Read)
    }

    fn needing(need: &str, access: Access) -> Service {
        let options = Need {
            access,
            ..Need::default()
        };
        Service {
            needs: [(name(need), options)].into(),
            ..service(1)
        }
    }

    #[test]
    fn what_engines_and_their_users_may_be_reads_like_a_table() {
        let (db, events, web) = (database(None), topic(), service(1));
        let names = ["db", "events", "web"].map(name);
        let known = Known {
            services: names
                .iter()
                .zip([&db, &events, &web])
                .collect::<BTreeMap<_, _>>(),
            secrets: BTreeSet::new(),
        };
        let table = [
            (topic(), None),
            (database(None), None),
            (with_extension("vector"), None),
            (with_extension("plpython3u"), Some("runs programs")),
            (with_extension("a b"), Some("is not the name")),
            (database(Some("events")), None),
            (on("events", "/x", 16), None),
            (reading("db"), None),
            (
                Service {
                    replicas: 2,
                    ..topic()
                },
                Some("one copy"),
            ),
            (
                Service {
                    volumes: BTreeMap::new(),
                    ..topic()
                },
                Some("one volume"),
            ),
            (
                Service {
                    needs: reading("db").needs,
                    ..topic()
                },
                Some("needs nothing"),
            ),
            (
                Service {
                    on: on("events", "/x", 1).on,
                    ..database(None)
                },
                Some("takes no `env`"),
            ),
            (
                Service {
                    rollout: RolloutOptions::default(),
                    ..topic()
                },
                Some("in place"),
            ),
            (
                database(Some("web")),
                Some("which is a service and no topic"),
            ),
            (database(Some("evnts")), Some("which is no topic")),
            (on("db", "/x", 1), Some("which is a database and no topic")),
            (on("events", "x", 1), Some("begins with `/`")),
            (on("events", "/x", 0), Some("1 to 1024")),
            (reading("events"), Some("only databases")),
            (reading("web"), Some("only databases")),
            (needing("events", Access::Consume), None),
            (needing("db", Access::Consume), Some("only topics")),
            (needing("web", Access::Consume), Some("only topics")),
        ];
        for (spec, expected) in table {
            let found = check(&name("it"), &spec, &known)
                .err()
                .map(|problem| problem.title);
            let fits = match (&found, expected) {
                (None, None) => true,
                (Some(title), Some(part)) => title.contains(part),
                _ => false,
            };
            assert!(fits, "{found:?}, expected {expected:?}");
        }
    }
}
