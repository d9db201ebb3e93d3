//! A rollout under way is held, let go on, or given up.

use std::sync::Arc;

use api::problem::Problem;
use api::wire::{self, Steer};
use model::control::{Reason, Rollout, RolloutPhase};
use model::ids::ResourceId;

use super::projects;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::draft::Draft;
use crate::problems;
use crate::records::Key;
use crate::state::Server;
use crate::world::World;

pub async fn steer(server: Arc<Server>, mut call: Call) -> Answer {
    let id = call.resource("service")?;
    let ask: wire::SteerRollout = call.json().await?;
    let author = projects::author(&server, &call.principal);
    let deed = Deed::new(author.name.clone(), "rollout", &id);
    let (rollout, _) = server
        .change(&deed, |world: &World| {
            let unknown = || problems::no_service(world, &id);
            let (entry, record) = world.service(&id).ok_or_else(unknown)?;
            let current = record.current.as_ref().map(|current| current.number);
            let stored = entry.rollout.as_ref();
            let Some(stored) = stored.filter(|rollout| Some(rollout.to) == current) else {
                return Err(nothing_rolls(&id));
            };
            let next = steered(&id, stored, ask.to, &author)?;
            let mut draft = Draft::new();
            draft.note(next.reason.message.clone());
            draft.only_if(Key::Service(id.clone()), Some(record));
            draft.put(Key::Rollout(id.clone()), Some(stored), &next);
            if let Some(release) = entry.releases.get(&next.to)
                && next.phase == RolloutPhase::Failed
            {
                let mut marked = release.value.clone();
                marked.failed = true;
                draft.put(Key::Release(id.clone(), next.to), Some(release), &marked);
            }
            Ok((draft, next))
        })
        .await?;
    Ok(call::json(&rollout))
}

fn nothing_rolls(id: &ResourceId) -> Problem {
    Problem::conflict("nothing-rolls", format!("no rollout of {id} is under way"))
        .remedy("`mainland rollout status` shows how the last one ended")
}

fn steered(
    id: &ResourceId,
    rollout: &Rollout,
    to: Steer,
    author: &crate::apply::Author,
) -> Result<Rollout, Problem> {
    use RolloutPhase::{Failed, Paused, Rolling};
    let (name, release) = (&author.name, rollout.to);
    let (phase, code, message) = match (to, rollout.phase) {
        (Steer::Pause, Rolling | Paused) => (
            Paused,
            "paused",
            format!("{name} holds release {release} where it is"),
        ),
        (Steer::Promote, Rolling | Paused) => (
            Rolling,
            "rolling",
            format!("{name} lets release {release} go on"),
        ),
        (Steer::Abort, Rolling | Paused) => match rollout.from {
            Some(from) => (
                Failed,
                "aborted",
                format!("release {release} was given up by {name}; release {from} goes on serving"),
            ),
            None => {
                let title =
                    format!("release {release} of {id} is the first: there is none to return to");
                return Err(Problem::conflict("no-earlier-release", title)
                    .remedy("`mainland delete services NAME` removes it"));
            }
        },
        _ => return Err(nothing_rolls(id)),
    };
    Ok(Rollout {
        phase,
        reason: Reason::new(code, message),
        progressed_at: author.at,
        ..rollout.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ids::ReleaseNumber;

    #[test]
    fn what_rolls_is_held_let_go_on_or_given_up() {
        use RolloutPhase::{Done, Failed, Paused, Rolling};
        let rollout = |phase, from| Rollout {
            to: ReleaseNumber(3),
            from,
            phase,
            reason: Reason::new("rolling", "rolling"),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            progressed_at: jiff::Timestamp::UNIX_EPOCH,
            prepared: Some(ReleaseNumber(3)),
            culprit: None,
        };
        let second = Some(ReleaseNumber(2));
        let table = [
            (Steer::Pause, Rolling, second, Ok(Paused)),
            (Steer::Pause, Paused, second, Ok(Paused)),
            (Steer::Promote, Paused, second, Ok(Rolling)),
            (Steer::Abort, Rolling, second, Ok(Failed)),
            (Steer::Abort, Paused, second, Ok(Failed)),
            (Steer::Abort, Rolling, None, Err("no-earlier-release")),
            (Steer::Abort, Done, second, Err("nothing-rolls")),
            (Steer::Promote, Failed, second, Err("nothing-rolls")),
            (Steer::Pause, Done, second, Err("nothing-rolls")),
        ];
        let author = crate::apply::Author {
            name: model::boundary::PrincipalName("admin:root".to_owned()),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        for (to, phase, from, expect) in table {
            let steered = steered(
                &"shop/web".parse().unwrap(),
                &rollout(phase, from),
                to,
                &author,
            );
            match (steered, expect) {
                (Ok(next), Ok(phase)) => {
                    assert_eq!(next.phase, phase, "{to:?}");
                    assert_eq!(next.prepared, Some(ReleaseNumber(3)));
                }
                (Err(problem), Err(code)) => assert_eq!(problem.code, code, "{to:?} {phase:?}"),
                (other, _) => panic!("{to:?} {phase:?}: {other:?}"),
            }
        }
    }
}
