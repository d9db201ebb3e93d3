//! Declared things of any kind: read, listed, watched, deleted.

use std::sync::Arc;

use api::problem::Problem;
use api::wire::{self, Kind, WatchEvent};
use futures_util::{Stream, stream};
use model::ids::{ProjectName, ReleaseNumber};
use serde_json::{Value, json};
use store::{Error, Event, Revision, Watcher};

use super::projects;
use crate::apply;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::problems;
use crate::records::{self, Key, ServiceRecord};
use crate::state::Server;
use crate::views;
use crate::world::World;

/// A quiet watch says how far it is this often.
const PROGRESS_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

fn kind(call: &Call) -> Result<Kind, Problem> {
    let text = call.text("kind");
    Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| {
            let names = Kind::ALL.map(Kind::as_str);
            Problem::not_found(format!("the kind `{text}`"))
                .remedy(format!("the kinds are {}", names.join(", ")))
        })
}

pub async fn list(server: Arc<Server>, call: Call) -> Answer {
    let (project, kind) = (call.project()?, kind(&call)?);
    if call.asks("watch", false)? {
        let from = call.query.get("from").cloned();
        return watch(server, from, project, kind).await;
    }
    Ok(server.look(|world| {
        let items = views::resources(world, &project, kind).into_iter().map(|(name, value, revision)| {
            json!({ "name": name, "revision": revision.to_string(), "spec": value })
        });
        let list = wire::List { items: items.collect(), revision: world.revision.to_string() };
        call::json(&list)
    }))
}

pub async fn get(server: Arc<Server>, call: Call) -> Answer {
    let (project, kind) = (call.project()?, kind(&call)?);
    let name = call.text("name").to_owned();
    let found = server.look(|world| {
        let all = views::resources(world, &project, kind);
        all.into_iter().find(|(known, ..)| *known == name)
    });
    let missing = || server.look(|world| missing(world, &project, kind, &name));
    let (_, value, revision) = found.ok_or_else(missing)?;
    Ok(call::tagged(&value, revision))
}

fn missing(world: &World, project: &ProjectName, kind: Kind, name: &str) -> Problem {
    if !world.has_project(project) {
        return problems::no_project(world, project);
    }
    let noun = kind.as_str().trim_end_matches('s');
    let resources = views::resources(world, project, kind);
    let known = resources.iter().map(|(name, ..)| name.as_str());
    problems::missing(
        format!("{noun} {project}/{name}"),
        name,
        known,
        &format!("`mainland get {}` lists them", kind.as_str()),
    )
}

pub async fn delete(server: Arc<Server>, call: Call) -> Answer {
    let (project, kind) = (call.project()?, kind(&call)?);
    let name = call.text("name").to_owned();
    let deletion = apply::Deletion {
        delete_data: call.asks("delete_data", false)?,
        though_needed: call.asks("though_needed", false)?,
    };
    let if_match = call.if_match()?;
    let author = projects::author(&server, &call.principal);
    let deed = Deed::new(author.name.clone(), "delete", format!("{project}/{name}"));
    let (change, _) = server
        .change(&deed, |world: &World| {
            let step =
                apply::remove_resource(world, &project, kind, &name, deletion, if_match, &author);
            let step = step.map_err(|problem| match problem.status {
                404 => missing(world, &project, kind, &name),
                _ => problem,
            })?;
            let (mut draft, change) = (step.draft, step.change);
            draft.lines = projects::lines(std::slice::from_ref(&change));
            Ok((draft, change))
        })
        .await?;
    let changes = [change];
    Ok(call::json(&changes))
}

async fn watch(
    server: Arc<Server>,
    from: Option<String>,
    project: ProjectName,
    kind: Kind,
) -> Answer {
    let after = match from {
        Some(text) => text.parse::<Revision>().map_err(|error| {
            Problem::invalid(error.to_string()).remedy("pass the revision that a list answered")
        })?,
        None => server.look(|world| world.revision),
    };
    let prefix = prefix(kind, &project);
    let opened = server.store.watch(&prefix, after).await;
    let watcher = match opened {
        Ok(watcher) => watcher,
        Err(Error::Compacted { compacted, .. }) => {
            let told = WatchEvent::Compacted {
                revision: compacted.to_string(),
            };
            return Ok(call::lines(stream::iter([told])));
        }
        Err(error) => return Err(problems::of_store(&error)),
    };
    Ok(call::lines(changes(server, watcher, prefix, kind)))
}

fn prefix(kind: Kind, project: &ProjectName) -> String {
    let name = kind.as_str().trim_end_matches('s');
    format!("{name}/{project}/")
}

/// Change after change until the past is gone or the server ends.
fn changes(
    server: Arc<Server>,
    watcher: Watcher,
    prefix: String,
    kind: Kind,
) -> impl Stream<Item = WatchEvent> + Send {
    use futures_util::StreamExt;
    let ending = server.ending.clone();
    let batches = stream::unfold(Some((watcher, ending, prefix)), move |state| async move {
        let (mut watcher, mut ending, prefix) = state?;
        let next = tokio::select! {
            next = tokio::time::timeout(PROGRESS_EVERY, watcher.next()) => next,
            _ = ending.wait_for(|ending| *ending) => return None,
        };
        match next {
            Err(_) => {
                let revision = watcher.revision().to_string();
                Some((
                    vec![WatchEvent::Progress { revision }],
                    Some((watcher, ending, prefix)),
                ))
            }
            Ok(Ok(change)) => {
                let told = change
                    .events
                    .iter()
                    .filter_map(|event| told(kind, &prefix, event, change.revision))
                    .collect();
                Some((told, Some((watcher, ending, prefix))))
            }
            Ok(Err(Error::Compacted { compacted, .. })) => Some((
                vec![WatchEvent::Compacted {
                    revision: compacted.to_string(),
                }],
                None,
            )),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a watch ended");
                None
            }
        }
    });
    batches.flat_map(stream::iter)
}

/// One record's change as it is told. A service on its way out counts as deleted.
fn told(kind: Kind, prefix: &str, event: &Event, revision: Revision) -> Option<WatchEvent> {
    let revision = revision.to_string();
    let name = shown_name(kind, event.key().strip_prefix(prefix)?);
    Some(match event {
        Event::Deleted { .. } => WatchEvent::Deleted {
            kind,
            name,
            revision,
        },
        Event::Put(record) => match shown(kind, &record.key, &record.value)? {
            Some(value) => WatchEvent::Put {
                kind,
                name,
                value,
                revision,
            },
            None => WatchEvent::Deleted {
                kind,
                name,
                revision,
            },
        },
    })
}

/// `web/0000000003` → `web/3`.
fn shown_name(kind: Kind, rest: &str) -> String {
    match (kind, rest.rsplit_once('/')) {
        (Kind::Releases, Some((service, number))) => {
            format!(
                "{service}/{}",
                ReleaseNumber(number.parse().unwrap_or_default())
            )
        }
        _ => rest.to_owned(),
    }
}

fn shown(kind: Kind, key: &str, value: &[u8]) -> Option<Option<Value>> {
    match kind {
        Kind::Services => {
            let record: ServiceRecord = records::decode(key, value).ok()?;
            let is_live = record.removing.is_none();
            Some(is_live.then(|| json!(record.spec)))
        }
        Kind::Secrets => {
            let Ok(Key::Secret(id)) = key.parse::<Key>() else {
                return None;
            };
            let record = records::decode(key, value).ok()?;
            Some(Some(json!(views::secret(&id, &record))))
        }
        Kind::Routes | Kind::Scales | Kind::Releases | Kind::Rollouts => {
            serde_json::from_slice(value).ok().map(Some)
        }
    }
}
