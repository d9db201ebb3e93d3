//! Releases that no file asked for: the same spec once more, or an earlier one again.

use api::problem::Problem;
use api::wire::Released;
use model::compute::{Release, ReleaseOrigin};
use model::control::RolloutPhase;
use model::ids::{ReleaseNumber, ResourceId};

use super::Author;
use super::services::{next_release, release};
use crate::changes;
use crate::draft::Draft;
use crate::problems;
use crate::records::{Current, Key, ServiceRecord};
use crate::world::{Entry, Stored, World};

/// Every instance anew, as a rolling change.
pub fn restart(
    world: &World,
    id: &ResourceId,
    author: &Author,
) -> Result<(Draft, Released), Problem> {
    let (entry, record, current) = released(world, id)?;
    let number = next_release(entry);
    let made = release(
        id,
        number,
        &record.spec,
        author,
        ReleaseOrigin::Restart,
        Vec::new(),
    );
    let next = Current {
        number,
        same_since: number,
        rolled_back_to: current.rolled_back_to,
    };
    Ok(drafted(id, entry, record, made, next))
}

/// The spec of an earlier release again, with the secrets of now.
pub fn rollback(
    world: &World,
    id: &ResourceId,
    to: Option<ReleaseNumber>,
    author: &Author,
) -> Result<(Draft, Released), Problem> {
    let (entry, record, current) = released(world, id)?;
    let to = match to {
        Some(to) => to,
        None => before_current(entry, current).ok_or_else(|| {
            Problem::conflict(
                "no-earlier-release",
                format!("{id} has no earlier release to return to"),
            )
        })?,
    };
    let target = entry.releases.get(&to).ok_or_else(|| {
        Problem::not_found(format!("release {to} of {id}")).remedy(format!(
            "`mainland releases {}` lists those that are kept",
            id.name
        ))
    })?;
    let number = next_release(entry);
    let diff = changes::diff(&record.spec, &target.spec);
    let made = release(
        id,
        number,
        &target.spec,
        author,
        ReleaseOrigin::Rollback { to },
        diff,
    );
    let next = Current {
        number,
        same_since: number,
        rolled_back_to: Some(to),
    };
    Ok(drafted(id, entry, record, made, next))
}

fn released<'w>(
    world: &'w World,
    id: &ResourceId,
) -> Result<(&'w Entry, &'w Stored<ServiceRecord>, &'w Current), Problem> {
    let (entry, record) = world
        .service(id)
        .ok_or_else(|| problems::no_service(world, id))?;
    let current = record.current.as_ref().ok_or_else(|| {
        Problem::conflict(
            "external",
            format!("{id} runs elsewhere and is only routed to: it has no releases"),
        )
    })?;
    Ok((entry, record, current))
}

/// What served before: what the rollout fell back to or came from, else the release before that was not judged bad.
fn before_current(entry: &Entry, current: &Current) -> Option<ReleaseNumber> {
    let rollout = entry
        .rollout
        .as_ref()
        .filter(|rollout| rollout.to == current.number);
    let came_from = rollout
        .and_then(|rollout| rollout.from)
        .filter(|from| entry.releases.contains_key(from));
    let before = || {
        let mut earlier = entry.releases.range(..current.same_since).rev();
        earlier
            .find(|(_, release)| !release.failed)
            .map(|(number, _)| *number)
    };
    came_from.or_else(before)
}

fn drafted(
    id: &ResourceId,
    entry: &Entry,
    record: &Stored<ServiceRecord>,
    made: Release,
    current: Current,
) -> (Draft, Released) {
    let consequence = match entry.wanted() {
        0 => "nothing runs".to_owned(),
        1 => "1 instance rolls".to_owned(),
        many => format!("{many} instances roll"),
    };
    let unfinished = entry
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.phase == RolloutPhase::Rolling);
    let consequence = match unfinished {
        true => format!("{consequence}, the rollout under way ends"),
        false => consequence,
    };
    let next = ServiceRecord {
        spec: made.spec.clone(),
        current: Some(current),
        removing: None,
    };
    let mut draft = Draft::new();
    draft.put_anyway(Key::Release(id.clone(), made.number), &made);
    draft.put(Key::Service(id.clone()), Some(record), &next);
    let released = Released {
        service: id.name.clone(),
        release: made.number,
        consequence,
    };
    (draft, released)
}
