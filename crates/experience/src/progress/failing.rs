//! Rollouts that failed: which of them end a wait, and what is said of each.

use std::collections::BTreeSet;

use api::client::Client;
use api::wire::ServiceStatus;
use futures_util::StreamExt;
use model::control::{Rollout, RolloutPhase};
use model::ids::{ProjectName, ReleaseNumber, ResourceName};

use super::{Services, Subject, World, hindrances};
use crate::failure::Failure;

/// Services whose last lines are shown.
const SHOWN_MOST: usize = 3;
/// Of each.
const LINES_SHOWN: u32 = 10;
/// Lines on what else is not ready.
const OTHERS_MOST: usize = 20;

type Release = (ProjectName, ResourceName, ReleaseNumber);

/// One that failed.
pub(super) struct Failed<'w> {
    project: &'w ProjectName,
    service: &'w ServiceStatus,
    rollout: &'w Rollout,
}

impl Failed<'_> {
    fn release(&self) -> Release {
        let name = self.service.name.clone();
        (self.project.clone(), name, self.rollout.to)
    }

    fn line(&self) -> String {
        format!(
            "{}: release {} failed: {}",
            self.service.name, self.rollout.to, self.rollout.reason
        )
    }
}

/// Which rollouts had failed before the wait began: it is not about them.
#[derive(Default)]
pub(super) struct Failures {
    before: Option<BTreeSet<Release>>,
}

impl Failures {
    /// Those that end the wait. A release that failed before it ends none while another one serves; where none was ever good, it does so once
    /// nothing else is on its way, as it may become ready all the same.
    pub fn ending<'w>(&mut self, world: &'w World, subjects: &[Subject]) -> Vec<Failed<'w>> {
        let before = self.before.get_or_insert_with(|| known(world, subjects));
        let (old, new): (Vec<_>, Vec<_>) =
            failed(world).partition(|one| before.contains(&one.release()));
        if !new.is_empty() {
            return new;
        }
        let never_good =
            |one: &Failed<'_>| one.rollout.from.is_none() && one.service.ready < one.service.wanted;
        let hopeless: Vec<_> = old.into_iter().filter(never_good).collect();
        let without = but(&hopeless);
        match hindrances(world, &without).is_empty() {
            true => hopeless,
            false => Vec::new(),
        }
    }
}

fn failed(world: &World) -> impl Iterator<Item = Failed<'_>> {
    world.projects.iter().flat_map(|(status, _)| {
        status.services.iter().filter_map(|service| {
            let rollout = service.rollout.as_ref()?;
            (rollout.phase == RolloutPhase::Failed).then_some(Failed {
                project: &status.project,
                service,
                rollout,
            })
        })
    })
}

/// What had failed when it was first looked at, but for what is waited for to be rolled out.
fn known(world: &World, subjects: &[Subject]) -> BTreeSet<Release> {
    let is_awaited = |(project, service, release): &Release| {
        let of_project = subjects.iter().filter(|one| one.project == *project);
        of_project
            .filter_map(|one| one.released.get(service))
            .any(|awaited| awaited == release)
    };
    let all = failed(world).map(|one| one.release());
    all.filter(|release| !is_awaited(release)).collect()
}

fn but(failed: &[Failed<'_>]) -> Services {
    let each = failed.iter();
    each.map(|one| (one.project.clone(), one.service.name.clone()))
        .collect()
}

/// What a person should know of rollouts that failed while an earlier release serves, a line each.
pub(super) fn notes(world: &World, aim: &str) -> Vec<String> {
    let served = failed(world).filter(|one| one.rollout.from.is_some());
    let notes = served.map(|one| {
        let name = &one.service.name;
        format!(
            "! {}; `mainland deploy {name}{aim}` tries again, `mainland rollback {name}{aim}` makes what serves what is wanted",
            one.line()
        )
    });
    notes.collect()
}

/// Names all that failed, with the last lines of the first of them, and what else is not ready.
pub(super) async fn failure(
    client: &Client,
    world: &World,
    failed: &[Failed<'_>],
    aim: &str,
) -> Failure {
    let mut words = Vec::new();
    for one in failed.iter().take(SHOWN_MOST) {
        let Some(culprit) = &one.rollout.culprit else {
            continue;
        };
        let name = culprit.instance.as_str();
        if let Ok(lines) = last_lines(client, one.project, name, LINES_SHOWN).await
            && !lines.is_empty()
        {
            words.push(format!("\n  the last lines of {name}:"));
            words.extend(lines.iter().map(|line| format!("\n  {line}")));
        }
    }
    Failure::failed(text(world, failed, &words.concat(), aim))
}

fn text(world: &World, failed: &[Failed<'_>], last_words: &str, aim: &str) -> String {
    let mut text = match failed {
        [one] => format!("{} [rollout-failed]", one.line()),
        many => {
            let lines: String = many
                .iter()
                .map(|one| format!("\n  {}", one.line()))
                .collect();
            format!("{} rollouts failed [rollout-failed]{lines}", many.len())
        }
    };
    text.push_str(last_words);
    let others = hindrances(world, &but(failed));
    if !others.is_empty() {
        text.push_str("\n  not ready either:");
    }
    for line in others.iter().take(OTHERS_MOST) {
        text.push_str(&format!("\n    {line}"));
    }
    if others.len() > OTHERS_MOST {
        text.push_str("\n    and more: `mainland status` has all");
    }
    let name = failed
        .first()
        .map_or("NAME", |one| one.service.name.as_str());
    text + &format!(
        "\n  remedy: `mainland explain {name}{aim}` says why, `mainland logs {name}{aim}` what it printed"
    )
}

/// What an instance printed last.
pub async fn last_lines(
    client: &Client,
    project: &ProjectName,
    instance: &str,
    count: u32,
) -> Result<Vec<String>, Failure> {
    let mut lines = client.logs(project, instance, count, false).await?;
    let mut last = Vec::new();
    while let Some(line) = lines.next().await {
        last.push(format!("  {}", crate::logs::text(instance, &line?, true)));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `web 1/2 failed 3 after 2`: a copy of two is ready, release 3 failed and release 2 serves; `after 0`: none was ever good.
    fn world(services: &[&str]) -> World {
        let service = |text: &&str| {
            let words: Vec<&str> = text.split(' ').collect();
            let (ready, wanted) = words[1].split_once('/').unwrap();
            let number = |text: &str| text.parse::<u64>().unwrap();
            let rollout = (words.len() > 2).then(|| {
                let from = Some(number(words[5])).filter(|from| *from > 0);
                serde_json::json!({
                    "to": number(words[3]), "from": from, "phase": words[2], "started_at": "2026-01-01T00:00:00Z",
                    "progressed_at": "2026-01-01T00:00:00Z",
                    "reason": { "code": "not-ready", "message": "so it is" },
                })
            });
            serde_json::json!({
                "name": words[0], "wanted": number(wanted), "ready": number(ready), "zones": {}, "release": 3,
                "scale": null, "external": false, "needs": [], "demand": 0, "reason": null, "rollout": rollout,
            })
        };
        let services: Vec<_> = services.iter().map(service).collect();
        let status = serde_json::json!({
            "project": "shop", "routes": [], "attention": [], "services": services,
        });
        let node = serde_json::json!({
            "name": "a", "region": "home", "zone": "a", "role": "worker", "state": "ready", "pid": null, "address": null,
            "capacity": { "cpu": "1", "memory": "1Gi" }, "used": { "cpu": "0", "memory": "0" }, "cordoned": false,
            "reason": { "code": "joined", "message": "joined" }, "heard_ms_ago": null, "version": null,
        });
        World {
            nodes: vec![serde_json::from_value(node).unwrap()],
            projects: vec![(serde_json::from_value(status).unwrap(), Vec::new())],
        }
    }

    fn all() -> Subject {
        Subject::all_of("shop".parse().unwrap())
    }

    fn ends(failures: &mut Failures, services: &[&str], subject: &Subject) -> Vec<String> {
        let world = world(services);
        let ending = failures.ending(&world, std::slice::from_ref(subject));
        ending
            .iter()
            .map(|one| one.service.name.to_string())
            .collect()
    }

    #[test]
    fn what_failed_before_ends_no_wait_while_another_release_serves() {
        let given_up = "web 1/2 failed 3 after 2";
        let mut failures = Failures::default();
        let nothing: [&str; 0] = [];
        assert_eq!(ends(&mut failures, &[given_up, "api 0/1"], &all()), nothing);
        let both = ["web 2/2 failed 3 after 2", "api 1/1"];
        assert_eq!(ends(&mut failures, &both, &all()), nothing);
        assert_eq!(hindrances(&world(&both), &Services::new()), nothing);
        // What fails while it is waited for does; a release of the same service that is newer as well.
        let other = [given_up, "api 1/1 failed 8 after 7"];
        assert_eq!(ends(&mut failures, &other, &all()), ["api"]);
        let newer = ["web 2/2 failed 4 after 2", "api 1/1"];
        assert_eq!(ends(&mut failures, &newer, &all()), ["web"]);
    }

    #[test]
    fn what_was_asked_for_ends_the_wait_however_soon_it_failed() {
        let release = ("web".parse().unwrap(), ReleaseNumber(3));
        let subject = all().with_released([release]);
        let failed = ["web 2/2 failed 3 after 2"];
        assert_eq!(ends(&mut Failures::default(), &failed, &subject), ["web"]);
        let earlier = ["web 2/2 failed 2 after 1"];
        let nothing: [&str; 0] = [];
        assert_eq!(ends(&mut Failures::default(), &earlier, &subject), nothing);
    }

    #[test]
    fn what_was_never_good_ends_the_wait_once_nothing_else_is_on_its_way() {
        let mut failures = Failures::default();
        let web = "web 0/1 failed 1 after 0";
        let nothing: [&str; 0] = [];
        assert_eq!(ends(&mut failures, &[web, "api 0/1"], &all()), nothing);
        let rolling = [web, "api 1/1 rolling 2 after 1"];
        assert_eq!(ends(&mut failures, &rolling, &all()), nothing);
        assert_eq!(ends(&mut failures, &[web, "api 1/1"], &all()), ["web"]);
    }

    #[test]
    fn all_that_failed_by_then_are_named() {
        let world = world(&[
            "web 2/2 failed 3 after 2",
            "api 0/1 failed 1 after 0",
            "db 0/1",
            "mail 1/1",
        ]);
        let failed: Vec<_> = failed(&world).collect();
        assert_eq!(
            text(
                &world,
                &failed,
                "\n  the last lines of web-1:\n    oh",
                " -p shop"
            ),
            "2 rollouts failed [rollout-failed]\n  web: release 3 failed: so it is\n  api: release 1 failed: so it is\n  \
             the last lines of web-1:\n    oh\n  not ready either:\n    db: 0 of 1 ready\n  \
             remedy: `mainland explain web -p shop` says why, `mainland logs web -p shop` what it printed"
        );
        let one = text(&world, &failed[..1], "", "");
        let head = "web: release 3 failed: so it is [rollout-failed]\n  not ready either:\n    api: 0 of 1 ready\n";
        assert!(one.starts_with(head), "{one}");
        assert_eq!(
            notes(&world, ""),
            [
                "! web: release 3 failed: so it is; `mainland deploy web` tries again, `mainland rollback web` makes what serves what is wanted"
            ]
        );
    }
}
