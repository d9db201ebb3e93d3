//! One service: put, scaled, restarted, rolled back, its releases and its rollout.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use api::problem::Problem;
use api::wire::{self, Released};
use model::boundary::PrincipalName;
use model::compute::{Scale, Service};
use model::control::{Reason, Rollout, RolloutPhase};
use model::ids::{ReleaseNumber, ResourceId};

use super::{deploys, projects};
use crate::apply;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::draft::Draft;
use crate::idempotency::Remember;
use crate::problems;
use crate::records::{Key, artifact_of};
use crate::state::Server;
use crate::views;
use crate::world::{Entry, World};

pub async fn put(server: Arc<Server>, mut call: Call) -> Answer {
    let id = call.resource("name")?;
    let spec: Service = call.strict_json().await?;
    let terms = projects::Terms {
        if_match: call.if_match()?,
        dry_run: call.asks("dry_run", false)?,
        under: deploys::Under::of(&call, &id.project),
        remember: None,
    };
    let ask = wire::Apply {
        services: BTreeMap::from([(id.name.clone(), spec)]),
        undo_rollback: call.asks("undo_rollback", false)?,
        leave_data: call.asks("leave_data", false)?,
        ..wire::Apply::default()
    };
    let applied = projects::run(&server, &id.project, &ask, &call.principal, terms).await?;
    Ok(call::json(&applied))
}

pub async fn scale(server: Arc<Server>, mut call: Call) -> Answer {
    let id = call.resource("service")?;
    let ask: wire::SetScale = call.json().await?;
    let if_match = call.if_match()?;
    let author = projects::author(&server, &call.principal);
    let scale = Scale {
        replicas: ask.replicas,
        owner: author.name.clone(),
        at: author.at,
    };
    let limits = server.limits;
    let deed = Deed::new(author.name.clone(), "scale", &id);
    let (warnings, _) = server
        .change(&deed, |world: &World| {
            let missing = || problems::no_service(world, &id);
            let (entry, record) = world.service(&id).ok_or_else(missing)?;
            if record.spec.is_external() {
                return Err(Problem::conflict(
                    "external",
                    format!("{id} runs elsewhere: it can't be scaled here"),
                ));
            }
            check_copies(&id, &record.spec, ask.replicas)?;
            if_match.check(format!("the scale of {id}"), entry.scale.as_ref())?;
            admit(world, &id, ask.replicas, &limits)?;
            let mut draft = Draft::new();
            draft.only_if(Key::Service(id.clone()), Some(record));
            draft.put(Key::Scale(id.clone()), entry.scale.as_ref(), &scale);
            draft.note(format!("replicas: {} → {}", entry.wanted(), ask.replicas));
            let warnings = volumes_of_their_own(&id, entry, &record.spec, ask.replicas);
            Ok((draft, warnings.into_iter().collect()))
        })
        .await?;
    Ok(call::json(&wire::Scaled { scale, warnings }))
}

/// What more or fewer copies mean for data.
fn volumes_of_their_own(
    id: &ResourceId,
    entry: &Entry,
    spec: &Service,
    replicas: u32,
) -> Option<String> {
    let (name, before) = (&id.name, entry.wanted());
    if spec.volumes.is_empty() || spec.engine().is_some() {
        return None;
    }
    match replicas.cmp(&before) {
        Ordering::Greater => Some(format!(
            "each copy of {name} has a volume of its own: one that was not there before begins empty, and what it writes no other copy sees"
        )),
        Ordering::Less => Some(format!(
            "each copy of {name} has a volume of its own: those of the copies that go are kept, and nobody reads them until {name} has {before} again"
        )),
        Ordering::Equal => None,
    }
}

/// An engine's data is in one volume. It may be stopped.
fn check_copies(id: &ResourceId, spec: &Service, replicas: u32) -> Result<(), Problem> {
    match spec.engine() {
        Some(engine) if replicas > 1 => {
            let noun = engine.noun();
            let title = format!("{id} is a {noun}, which has one copy in this version");
            let problem = Problem::new(422, "one-copy", title);
            Err(problem.remedy("give it more `memory` or `cpu` in the file instead"))
        }
        _ => Ok(()),
    }
}

fn admit(
    world: &World,
    id: &ResourceId,
    replicas: u32,
    limits: &boundary::authorize::Limits,
) -> Result<(), Problem> {
    let others = world
        .services_of(&id.project)
        .filter(|(name, ..)| **name != id.name);
    let in_project: u64 = others.map(|(_, entry, _)| u64::from(entry.wanted())).sum();
    let replicas = u64::from(replicas);
    let change = boundary::authorize::Change::Replicas {
        service: id.clone(),
        replicas,
        in_project: in_project + replicas,
    };
    boundary::authorize::admit(&change, limits).map_err(|refusal| problems::of_refusal(&refusal))
}

pub async fn releases(server: Arc<Server>, call: Call) -> Answer {
    let id = call.resource("service")?;
    server.look(|world| {
        let missing = || problems::no_service(world, &id);
        let (entry, record) = world.service(&id).ok_or_else(missing)?;
        let current = record.current.as_ref().map(|current| current.number);
        let newest_first = entry.releases.values().rev();
        let items = newest_first.map(|release| wire::ReleaseView {
            service: release.service.clone(),
            number: release.number,
            author: release.author.clone(),
            at: release.at,
            origin: release.origin.clone(),
            diff: release.diff.clone(),
            message: release.message.clone(),
            digest: artifact_of(&release.spec.work),
            current: Some(release.number) == current,
            failed: release.failed,
        });
        Ok(call::json(&wire::List {
            items: items.collect(),
            revision: world.revision.to_string(),
        }))
    })
}

pub async fn release(server: Arc<Server>, call: Call) -> Answer {
    let id = call.resource("service")?;
    let number = ReleaseNumber(call.parameter("number")?);
    server.look(|world| {
        let missing = || problems::no_service(world, &id);
        let entry = world.services.get(&id).ok_or_else(missing)?;
        let release = entry.releases.get(&number);
        let release =
            release.ok_or_else(|| Problem::not_found(format!("release {number} of {id}")))?;
        Ok(call::tagged(&release.value, release.modified))
    })
}

pub async fn rollout(server: Arc<Server>, call: Call) -> Answer {
    let id = call.resource("service")?;
    let now = server.clock.now();
    server.with(|shared| {
        let missing = || problems::no_service(&shared.world, &id);
        let (entry, record) = shared.world.service(&id).ok_or_else(missing)?;
        let rollout = rollout_of(entry).ok_or_else(|| {
            Problem::not_found(format!("a rollout of {id}"))
                .detail("what runs elsewhere has no releases to roll out")
        })?;
        let modified = entry
            .rollout
            .as_ref()
            .map_or(record.modified, |rollout| rollout.modified);
        let instances = views::instances(shared, &id.project, now);
        let own: Vec<_> = instances
            .iter()
            .filter(|view| view.service == id.name)
            .collect();
        let rollout = views::with_progress(shared, entry, rollout, &own, now);
        Ok(call::tagged(&rollout, modified))
    })
}

/// The older release that serves because the newest was judged bad.
pub fn serving_instead(rollout: &Rollout) -> Option<ReleaseNumber> {
    rollout
        .from
        .filter(|_| rollout.phase == RolloutPhase::Failed)
}

/// The rollout of the newest release. Until the leader has begun it, it is about to begin.
pub fn rollout_of(entry: &Entry) -> Option<Rollout> {
    let current = entry.live()?.current.as_ref()?.number;
    let known = entry
        .rollout
        .as_ref()
        .filter(|rollout| rollout.to == current);
    if let Some(known) = known {
        return Some(known.value.clone());
    }
    let at = entry.releases.get(&current)?.at;
    Some(Rollout {
        to: current,
        from: entry.rollout.as_ref().map(|rollout| rollout.to),
        phase: RolloutPhase::Rolling,
        reason: Reason::new(
            "rolling",
            format!("release {current} is about to be rolled out"),
        ),
        started_at: at,
        progressed_at: at,
        prepared: None,
        culprit: None,
    })
}

pub async fn restart(server: Arc<Server>, call: Call) -> Answer {
    let id = call.resource("service")?;
    let author = projects::author(&server, &call.principal);
    released(&server, Asked::of(&call, "restart"), &id, |world| {
        apply::restart(world, &id, &author)
    })
    .await
}

pub async fn rollback(server: Arc<Server>, mut call: Call) -> Answer {
    let id = call.resource("service")?;
    let ask: wire::Rollback = call.json().await?;
    let author = projects::author(&server, &call.principal);
    released(&server, Asked::of(&call, "rollback"), &id, |world| {
        apply::rollback(world, &id, ask.to, &author)
    })
    .await
}

/// Who asked for what, and how a repetition is recognised.
struct Asked {
    by: PrincipalName,
    action: &'static str,
    remember: Option<Remember>,
}

impl Asked {
    fn of(call: &Call, action: &'static str) -> Self {
        let remember = call.request.extensions().get::<Remember>().cloned();
        Self {
            by: call.principal.name(),
            action,
            remember,
        }
    }
}

async fn released(
    server: &Server,
    asked: Asked,
    id: &ResourceId,
    build: impl Fn(&World) -> Result<(Draft, Released), Problem>,
) -> Answer {
    let deed = Deed::new(asked.by, asked.action, id);
    let (released, _) = server
        .change(&deed, |world| {
            let (mut draft, released) = build(world)?;
            draft.note(format!(
                "release {}: {}",
                released.release, released.consequence
            ));
            if let Some(remember) = &asked.remember {
                remember.add(&mut draft, server.now(), &released);
            }
            Ok((draft, released))
        })
        .await?;
    Ok(call::json(&released))
}
