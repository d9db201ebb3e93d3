//! Releases that no file asked for: the same spec once more, or an earlier one again.

use api::problem::Problem;
use api::wire::Released;
use model::compute::{Release, ReleaseOrigin};
use model::control::{Rollout, RolloutPhase};
use model::ids::{ReleaseNumber, ResourceId};

use super::services::{next_release, release};
use super::{Author, validate};
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

/// The spec of an earlier release again, with the secrets of now. Where copies of it serve, they go on; where it is what serves, nothing is done.
pub fn rollback(
    world: &World,
    id: &ResourceId,
    to: Option<ReleaseNumber>,
    author: &Author,
) -> Result<(Draft, Released), Problem> {
    let (entry, record, current) = released(world, id)?;
    let to = match to.or_else(|| before_current(entry, record, current)) {
        Some(to) => original(entry, to),
        None if current.rolled_back_to.is_some() && is_done(entry, current) => {
            let why = "there is no earlier good one to return to";
            return Ok(nothing_to_do(id, record, current, why));
        }
        None => {
            return Err(Problem::conflict(
                "no-earlier-release",
                format!("{id} has no earlier release to return to"),
            ));
        }
    };
    let target = kept(id, entry, to)?;
    if is_done(entry, current) && target.spec == record.spec {
        return Ok(nothing_to_do(
            id,
            record,
            current,
            "it is the version that runs",
        ));
    }
    // Where copies of it serve, what leads to it finds no more than it would after this.
    let serves = serving(entry, current).map(|from| &entry.releases[&from].spec);
    if serves != Some(&target.spec) {
        validate::check_return(world, id, to, &target.spec)?;
    }
    let number = next_release(entry);
    let diff = changes::diff(&record.spec, &target.spec);
    let mut made = release(
        id,
        number,
        &target.spec,
        author,
        ReleaseOrigin::Rollback { to },
        diff,
    );
    let serves = serving(entry, current)
        .filter(|from| !changes::restarts(&entry.releases[from].spec, &target.spec));
    made.same_as = serves.map(|from| entry.oldest_same(from));
    let next = Current {
        number,
        same_since: number,
        rolled_back_to: Some(to),
    };
    let (draft, mut released) = drafted(id, entry, record, made, next);
    if let Some(from) = serves {
        released.consequence =
            format!("nothing rolls: the copies of release {from} run that version and go on");
    }
    Ok((draft, released))
}

fn kept<'e>(
    id: &ResourceId,
    entry: &'e Entry,
    number: ReleaseNumber,
) -> Result<&'e Stored<Release>, Problem> {
    entry.releases.get(&number).ok_or_else(|| {
        Problem::not_found(format!("release {number} of {id}")).remedy(format!(
            "`mainland releases {}` lists those that are kept",
            id.name
        ))
    })
}

fn nothing_to_do(
    id: &ResourceId,
    record: &Stored<ServiceRecord>,
    current: &Current,
    why: &str,
) -> (Draft, Released) {
    let mut draft = Draft::new();
    draft.only_if(Key::Service(id.clone()), Some(record));
    let released = Released {
        service: id.name.clone(),
        release: current.number,
        consequence: format!("nothing to do: {why}"),
    };
    (draft, released)
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

/// The rollout of the current release, where one was begun.
fn rollout_of<'e>(entry: &'e Entry, current: &Current) -> Option<&'e Rollout> {
    let rollout = entry.rollout.as_ref().map(|rollout| &rollout.value);
    rollout.filter(|rollout| rollout.to == current.number)
}

fn is_done(entry: &Entry, current: &Current) -> bool {
    rollout_of(entry, current).is_some_and(|rollout| rollout.phase == RolloutPhase::Done)
}

/// What serves instead of a current release that is not rolled out, or was judged bad.
fn serving(entry: &Entry, current: &Current) -> Option<ReleaseNumber> {
    rollout_of(entry, current)
        .filter(|rollout| rollout.phase != RolloutPhase::Done)
        .and_then(|rollout| rollout.from)
        .filter(|from| entry.releases.contains_key(from))
}

/// What serves instead of the current one; else the newest that says something else and was not judged bad. Releases that somebody left by a
/// rollback are none to return to: who rolls back twice goes further back.
fn before_current(
    entry: &Entry,
    record: &ServiceRecord,
    current: &Current,
) -> Option<ReleaseNumber> {
    serving(entry, current).or_else(|| {
        let before = current.rolled_back_to.unwrap_or(current.number);
        let mut earlier = entry.releases.range(..before).rev();
        earlier
            .find(|(_, release)| !release.failed && release.spec != record.spec)
            .map(|(number, _)| *number)
    })
}

/// The release that a rollback made anew, where it is kept: what was left since is left by this one too.
fn original(entry: &Entry, release: ReleaseNumber) -> ReleaseNumber {
    let mut found = release;
    // Each is older than the one before.
    while let Some(ReleaseOrigin::Rollback { to }) =
        entry.releases.get(&found).map(|known| known.origin.clone())
        && entry.releases.contains_key(&to)
        && to < found
    {
        found = to;
    }
    found
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
