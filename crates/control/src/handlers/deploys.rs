//! One deploy at a time in a project: who holds it says so again and again, and has let go of it once that stops.

use std::sync::Arc;
use std::time::Duration;

use api::problem::Problem;
use api::wire;
use jiff::Timestamp;
use model::ids::ProjectName;

use crate::call::{self, Answer, Call};
use crate::draft::Draft;
use crate::records::{DeployRecord, Key};
use crate::state::Server;
use crate::world::{Stored, World};

/// Who holds a deploy says so every 5 s; three that did not come are its end.
pub const HELD_FOR: Duration = Duration::from_secs(15);
/// Of an id, and of what a client says of itself.
const TEXT_MAX: usize = 200;

/// Takes it, or keeps it: the same for who repeats either.
pub async fn hold(server: Arc<Server>, mut call: Call) -> Answer {
    let project = call.project()?;
    let id = call.text("id").to_owned();
    let ask: wire::HoldDeploy = call.json().await?;
    if id.len() > TEXT_MAX || ask.client.len() > TEXT_MAX {
        let title = format!("an id and a client are at most {TEXT_MAX} bytes long");
        return Err(Problem::invalid(title));
    }
    let holder = call.principal.name();
    // It is printed on the terminals of others.
    let client: String = ask.client.chars().filter(|c| !c.is_control()).collect();
    let (held, _) = server
        .change_unkept(|world: &World| {
            let now = server.now();
            refuse_other(world, &project, &id, now)?;
            let known = world.deploys.get(&project);
            let mine = known.filter(|known| known.id == id);
            let next = DeployRecord {
                id: id.clone(),
                holder: holder.clone(),
                client: client.clone(),
                since: mine.map_or(now, |mine| mine.since),
                renewed_at: now,
            };
            let mut draft = Draft::new();
            draft.put(Key::Deploy(project.clone()), known, &next);
            Ok((draft, next))
        })
        .await?;
    Ok(call::json(&wire::Deploy {
        id: held.id,
        holder: held.holder,
        client: held.client,
        since: held.since,
    }))
}

/// Lets go of it. Nothing is to be done where another holds it by now.
pub async fn end(server: Arc<Server>, call: Call) -> Answer {
    let project = call.project()?;
    let id = call.text("id").to_owned();
    let (ended, _) = server
        .change_unkept(|world: &World| {
            let mut draft = Draft::new();
            let known = world.deploys.get(&project);
            let mine = known.filter(|known| known.id == id);
            if let Some(mine) = mine {
                draft.delete(Key::Deploy(project.clone()), mine);
            }
            Ok((draft, mine.is_some()))
        })
        .await?;
    Ok(call::json(&ended))
}

/// Under which deploy something is applied. It is looked at on the world that the change is planned on, and by the store as the change is
/// written: who deploys may change in between.
pub struct Under {
    project: ProjectName,
    /// `None`: under none, so that nobody may deploy meanwhile.
    id: Option<String>,
}

/// Who deploys, as it was looked at.
pub struct Held {
    project: ProjectName,
    record: Option<Stored<DeployRecord>>,
}

impl Under {
    pub fn of(call: &Call, project: &ProjectName) -> Self {
        let id = call.query.get("deploy").filter(|id| !id.is_empty());
        Self {
            project: project.clone(),
            id: id.cloned(),
        }
    }

    /// What is applied must not come in between what somebody else deploys.
    pub fn look(&self, world: &World, now: Timestamp) -> Result<Held, Problem> {
        let known = world.deploys.get(&self.project);
        match &self.id {
            Some(id) if known.is_none_or(|known| known.id != *id) => {
                let other = known.filter(|known| is_held(known, now));
                return Err(lost(&self.project, other));
            }
            Some(_) => {}
            None => refuse_other(world, &self.project, "", now)?,
        }
        Ok(Held {
            project: self.project.clone(),
            record: known.cloned(),
        })
    }
}

impl Held {
    /// Lets the draft be written only while that is so.
    pub fn bind(&self, draft: &mut Draft) {
        draft.only_if(Key::Deploy(self.project.clone()), self.record.as_ref());
    }
}

fn lost(project: &ProjectName, other: Option<&Stored<DeployRecord>>) -> Problem {
    let since = |other: &Stored<DeployRecord>| {
        let since = other.since.strftime("%H:%M:%S");
        format!(
            "; {} ({}) deploys since {since}",
            other.holder, other.client
        )
    };
    let title = format!(
        "this deploy of {project} is no longer held: it was ended, or silent for {} s{}",
        HELD_FOR.as_secs(),
        other.map_or_else(String::new, since)
    );
    Problem::conflict("deploy-lost", title).remedy("look at `mainland status`, then deploy again")
}

fn refuse_other(
    world: &World,
    project: &ProjectName,
    id: &str,
    now: Timestamp,
) -> Result<(), Problem> {
    match world.deploys.get(project) {
        Some(known) if known.id != id && is_held(known, now) => {
            let title = format!(
                "deploy in progress: {} ({}) deploys {project} since {}",
                known.holder,
                known.client,
                known.since.strftime("%H:%M:%S")
            );
            Err(Problem::conflict("deploy-in-progress", title).remedy(format!(
                "`mainland deploy --wait-for-lock` waits for its end; a client that died has let go {} s later",
                HELD_FOR.as_secs()
            )))
        }
        _ => Ok(()),
    }
}

/// By the clock of the server alone: it sets both times.
fn is_held(known: &Stored<DeployRecord>, now: Timestamp) -> bool {
    let silent = now.duration_since(known.renewed_at);
    silent.abs() < jiff::SignedDuration::try_from(HELD_FOR).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stored;

    #[test]
    fn one_deploys_and_who_is_silent_has_let_go() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let project: ProjectName = "shop".parse().unwrap();
        let mut world = World::default();
        let held = DeployRecord {
            id: "one".to_owned(),
            holder: model::boundary::PrincipalName("admin:root".to_owned()),
            client: "root@here, pid 7".to_owned(),
            since: at(0),
            renewed_at: at(100),
        };
        world.deploys.insert(project.clone(), stored(held));
        let table = [
            ("", 105, false),
            ("other", 114, false),
            ("one", 114, true),
            ("one", 500, true),
            ("", 115, true),
            ("other", 115, true),
            // The clock was set back by hours: nobody waits for it to come round.
            ("", -7200, true),
        ];
        for (id, second, passes) in table {
            let answer = refuse_other(&world, &project, id, at(second));
            assert_eq!(answer.is_ok(), passes, "{id:?} at {second}");
            if let Err(problem) = answer {
                assert_eq!(
                    (problem.status, problem.code.as_str()),
                    (409, "deploy-in-progress")
                );
                assert!(problem.title.contains("root@here"), "{}", problem.title);
            }
        }
        let other: ProjectName = "shop-staging".parse().unwrap();
        assert!(refuse_other(&world, &other, "", at(105)).is_ok());
    }

    #[test]
    fn what_is_applied_under_a_deploy_needs_it_to_be_held() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let project: ProjectName = "shop".parse().unwrap();
        let held = DeployRecord {
            id: "one".to_owned(),
            holder: model::boundary::PrincipalName("admin:root".to_owned()),
            client: "root@here, pid 7".to_owned(),
            since: at(0),
            renewed_at: at(100),
        };
        // Who holds it; who applies; when; what is answered, and whom it names.
        let table = [
            (None, None, 105, "", ""),
            (None, Some("one"), 105, "deploy-lost", ""),
            (Some("one"), Some("one"), 105, "", ""),
            // Silent for long, and nobody else came: it is still its own.
            (Some("one"), Some("one"), 500, "", ""),
            (Some("two"), Some("one"), 105, "deploy-lost", "root@here"),
            (Some("two"), Some("one"), 500, "deploy-lost", ""),
            (Some("two"), None, 105, "deploy-in-progress", "root@here"),
            (Some("two"), None, 500, "", ""),
        ];
        for (holder, id, second, code, names) in table {
            let mut world = World::default();
            if let Some(holder) = holder {
                let held = DeployRecord {
                    id: holder.to_owned(),
                    ..held.clone()
                };
                world.deploys.insert(project.clone(), stored(held));
            }
            let under = Under {
                project: project.clone(),
                id: id.map(str::to_owned),
            };
            let case = format!("{holder:?} {id:?} {second}");
            match under.look(&world, at(second)) {
                Ok(held) => {
                    assert_eq!(code, "", "{case}");
                    let mut draft = Draft::new();
                    held.bind(&mut draft);
                    let conditions = draft.transaction.conditions;
                    assert_eq!(conditions.len(), 1, "{case}");
                    assert_eq!(conditions[0].key(), "deploy/shop", "{case}");
                }
                Err(problem) => {
                    assert_eq!(
                        (problem.status, problem.code.as_str()),
                        (409, code),
                        "{case}"
                    );
                    assert!(problem.title.contains(names), "{case}: {}", problem.title);
                }
            }
        }
    }
}
