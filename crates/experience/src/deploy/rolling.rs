//! `deploy`: upload, release, roll, and say how it went.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::client::Client;
use api::wire::{self, Action, Kind};
use model::control::{Rollout, RolloutPhase};
use model::ids::{ProjectName, ReleaseNumber, ResourceName};
use model::manifest::Manifest;
use model::units::Span;

use super::lock::Lock;
use super::manifest::read_meant;
use super::{MANIFEST, aim_at, describe, find_manifest, is_questionable, request, undeclared};
use crate::failure::Failure;
use crate::output::{Output, say, warnings};
use crate::progress::{self, Rolled};
use crate::{Globals, assent, idempotency_key, notice};

/// Lines of the failing instance that are shown.
const LINES_SHOWN: u32 = 40;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without SERVICE all of the manifest is applied. With it that service alone, which must find what it needs.\n\
                  One deploy runs in a project at a time: another one, or an apply, is told whose it is.\n\n\
                  Exit code 1: it failed, and the version before goes on serving; or it can't come until a person changes something, \
                  which is said after some seconds with the reason. 3: it is not known yet how it ends. A rollout that somebody has \
                  paused is waited for.\n\n\
                  With -o it prints what `apply -o` does; how it ended is told by the exit code.\n\n\
                  Examples:\n  mainland deploy --wait\n  mainland deploy checkout --env staging --wait --timeout 10m\n  \
                  mainland deploy --message \"$(git rev-parse --short HEAD)\""
)]
pub struct Deploy {
    /// The service to deploy (default: all that the manifest changes)
    service: Option<ResourceName>,
    /// The manifest, or the folder that holds it
    #[arg(short, long, value_name = "FILE", default_value = MANIFEST)]
    file: PathBuf,
    /// Wait until it is rolled out; on failure show the last lines of what failed
    #[arg(short, long)]
    wait: bool,
    /// How long to wait, such as 90s or 15m: for the lock, then for the rollout
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = crate::parse_span, allow_hyphen_values = true)]
    timeout: Duration,
    /// Wait for the end of a deploy that somebody else has under way
    #[arg(long)]
    wait_for_lock: bool,
    /// What `releases` shows of it, such as the commit: one line, at most 500 characters
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Assent to what would otherwise be asked
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

/// What is being rolled out, by service.
type Releases = BTreeMap<ResourceName, ReleaseNumber>;

impl Deploy {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = Arc::new(globals.client()?);
        let file = find_manifest(Some(self.file.clone()))?.unwrap_or_else(|| self.file.clone());
        let manifest = self.only_asked(read_meant(&file, globals)?)?;
        let project = manifest.project.clone();
        let patience = self.wait_for_lock.then_some(self.timeout);
        let lock = Lock::take(&client, &project, patience).await?;
        let mut released = Releases::new();
        let aim = aim_at(&file, globals);
        let outcome = tokio::select! {
            outcome = self.deploy(&client, &file, &manifest, &lock, &aim, &mut released) => outcome,
            () = asked_to_end() => Err(interrupted(&project, &released)),
        };
        lock.end().await;
        outcome
    }

    /// The manifest with the one service alone, where one is named.
    fn only_asked(&self, mut manifest: Manifest) -> Result<Manifest, Failure> {
        let Some(service) = &self.service else {
            return Ok(manifest);
        };
        if !manifest.services.contains_key(service) {
            let known: Vec<_> = manifest.services.keys().map(ResourceName::as_str).collect();
            return Err(Failure::missing(
                format!("the manifest declares no service {service}"),
                service.as_str(),
                known.iter().copied(),
                &format!("it declares {}", known.join(", ")),
            ));
        }
        manifest.services.retain(|name, _| name == service);
        manifest.routes.clear();
        manifest.secrets.clear();
        Ok(manifest)
    }

    async fn deploy(
        &self,
        client: &Client,
        file: &std::path::Path,
        manifest: &Manifest,
        lock: &Lock,
        aim: &str,
        released: &mut Releases,
    ) -> Result<u8, Failure> {
        let mut applied = self.apply(client, file, manifest, lock).await?;
        if self.service.is_none() {
            let left = undeclared::warning(client, manifest, aim);
            applied.warnings.extend(left.await);
        }
        let project = &manifest.project;
        let kept = |change: &wire::Change| change.action == Action::Keep;
        let is_same = applied.changes.iter().all(kept);
        self.output.print(&applied, || match is_same {
            true => format!("nothing changed{}\n", warnings(&applied.warnings)),
            false => describe(&applied),
        })?;
        *released = match is_same {
            true => unfinished(client, manifest).await?,
            false => releases(&applied),
        };
        if released.is_empty() {
            return Ok(0);
        }
        match self.wait {
            true => self.follow(client, project, released).await,
            false if self.output.is_for_people() => tell(project, released),
            false => Ok(0),
        }
    }

    async fn follow(
        &self,
        client: &Client,
        project: &ProjectName,
        released: &Releases,
    ) -> Result<u8, Failure> {
        let begin = Instant::now();
        match progress::rolled_out(client, project, released, begin + self.timeout).await? {
            Rolled::Done if self.output.is_for_people() => {
                let list = in_words(released);
                say(&format!(
                    "deployed in {:.1} s: {list}",
                    begin.elapsed().as_secs_f64()
                ))?;
                Ok(0)
            }
            Rolled::Done => Ok(0),
            Rolled::Failed { service, rollout } => {
                Err(failed(client, project, &service, &rollout).await)
            }
            Rolled::Superseded { service, by } => Err(Failure::unknown(format!(
                "{service}: release {by} came in between, and is rolled out instead [superseded]"
            ))),
            Rolled::Late(hindrances) => Err(late(self.timeout, project, released, &hindrances)),
        }
    }

    async fn apply(
        &self,
        client: &Client,
        file: &std::path::Path,
        manifest: &Manifest,
        lock: &Lock,
    ) -> Result<wire::Applied, Failure> {
        let mut ask = request(client, file, manifest).await?;
        ask.undo_rollback = self.yes;
        ask.leave_data = self.yes;
        ask.message.clone_from(&self.message);
        let project = &manifest.project;
        let key = idempotency_key();
        match client.apply_in_deploy(project, &ask, &lock.id, &key).await {
            Err(error) if is_questionable(error.code()) && !self.yes => {
                assent(&format!("{error}\nGo on?"))?;
                ask.undo_rollback = true;
                ask.leave_data = true;
                let key = idempotency_key();
                Ok(client
                    .apply_in_deploy(project, &ask, &lock.id, &key)
                    .await?)
            }
            Err(error) if self.service.is_some() && error.code() == Some("unknown-name") => {
                Err(Failure::failed(format!(
                    "{error}\n  remedy: a service is deployed alone only where all that it needs is there; `mainland apply` makes the rest of the manifest"
                )))
            }
            other => Ok(other?),
        }
    }
}

/// What an earlier deploy of the same file has not brought to its end, or not to a good one.
async fn unfinished(client: &Client, manifest: &Manifest) -> Result<Releases, Failure> {
    let services = client.status_of_services(&manifest.project).await?.services;
    let rollouts = services
        .into_iter()
        .filter(|status| manifest.services.contains_key(&status.name))
        .filter_map(|status| Some((status.name, status.rollout?)));
    let unfinished = rollouts.filter(|(_, rollout)| rollout.phase != RolloutPhase::Done);
    Ok(unfinished
        .map(|(name, rollout)| (name, rollout.to))
        .collect())
}

fn tell(project: &ProjectName, released: &Releases) -> Result<u8, Failure> {
    for (service, release) in released {
        say(&format!(
            "{service}: release {release} is on its way; `mainland rollout status {service} --project {project} --wait` follows it"
        ))?;
    }
    Ok(0)
}

fn releases(applied: &wire::Applied) -> Releases {
    let services = applied
        .changes
        .iter()
        .filter(|change| change.kind == Kind::Services);
    services
        .filter_map(|change| Some((change.name.parse().ok()?, change.release?)))
        .collect()
}

fn in_words(releases: &Releases) -> String {
    let each: Vec<_> = releases
        .iter()
        .map(|(service, release)| format!("{service} release {release}"))
        .collect();
    each.join(", ")
}

/// Until a person or a supervisor asks this command to end.
async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => {
            if pressed.is_err() {
                std::future::pending::<()>().await;
            }
        }
        () = terminated => {}
    }
}

fn interrupted(project: &ProjectName, released: &Releases) -> Failure {
    let message = match released.is_empty() {
        true => {
            "interrupted before anything was released, or just then; `mainland status` shows it"
                .to_owned()
        }
        false => format!(
            "interrupted: {} goes on rolling out by itself, others may deploy now{}",
            in_words(released),
            steered(project, released.keys())
        ),
    };
    Failure::unknown(format!("{message} [interrupted]"))
}

/// What can be done about rollouts that are under way.
fn steered<'a>(project: &ProjectName, services: impl Iterator<Item = &'a ResourceName>) -> String {
    let each = services.map(|service| {
        format!(
            "\n  remedy: `mainland rollout status {service} -p {project} --wait` follows it, `mainland rollout abort {service} -p {project}` gives it up"
        )
    });
    each.collect()
}

fn late(
    timeout: Duration,
    project: &ProjectName,
    released: &Releases,
    hindrances: &[String],
) -> Failure {
    let is_late = |service: &&ResourceName| {
        let head = format!("{service}: ");
        hindrances.iter().any(|line| line.starts_with(&head))
    };
    let list: String = hindrances
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect();
    let timeout = Span(timeout);
    Failure::unknown(format!(
        "not rolled out after {timeout}, and it goes on by itself [timeout]{list}{}",
        steered(project, released.keys().filter(is_late))
    ))
}

/// Shows what the failing instance printed, and says why it was judged and what serves.
async fn failed(
    client: &Client,
    project: &ProjectName,
    service: &ResourceName,
    rollout: &Rollout,
) -> Failure {
    if let Some(culprit) = &rollout.culprit {
        let name = culprit.instance.as_str();
        match progress::last_lines(client, project, name, LINES_SHOWN).await {
            Ok(lines) if lines.is_empty() => notice(&format!("{name} printed nothing")),
            Ok(lines) => notice(&format!("the last lines of {name}:\n{}", lines.join("\n"))),
            Err(failure) => notice(&format!(
                "the output of {name} is not to be had: {}",
                failure.message
            )),
        }
    }
    let detail: String = rollout
        .reason
        .detail
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect();
    Failure::failed(format!(
        "{service}: {} [{}]{detail}\n  remedy: {}",
        rollout.reason,
        rollout.reason.code,
        mended(service, rollout)
    ))
}

/// What can be done about a release that was judged bad.
fn mended(service: &ResourceName, rollout: &Rollout) -> String {
    let again = "mend it and deploy again";
    match rollout.from {
        Some(from) => format!(
            "{again}; or `mainland rollback {service}` gives release {} up, and release {from} is what is wanted",
            rollout.to
        ),
        None => again.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_name_the_service_and_say_what_they_would_do() {
        let project = "shop".parse().unwrap();
        let released = Releases::from([
            ("api".parse().unwrap(), ReleaseNumber(2)),
            ("web".parse().unwrap(), ReleaseNumber(3)),
        ]);
        let late = late(
            Duration::from_secs(9),
            &project,
            &released,
            &["web: 0 of 1 ready, rolling".to_owned()],
        );
        assert_eq!(
            late.message,
            "not rolled out after 9s, and it goes on by itself [timeout]\n  web: 0 of 1 ready, rolling\n  \
             remedy: `mainland rollout status web -p shop --wait` follows it, `mainland rollout abort web -p shop` gives it up"
        );
        let rollout = serde_json::json!({
            "to": 3, "from": 2, "phase": "failed", "started_at": "2026-01-01T00:00:00Z",
            "progressed_at": "2026-01-01T00:00:00Z", "reason": { "code": "bad", "message": "it was judged bad" },
        });
        let rollout: Rollout = serde_json::from_value(rollout).unwrap();
        assert_eq!(
            mended(&"web".parse().unwrap(), &rollout),
            "mend it and deploy again; or `mainland rollback web` gives release 3 up, and release 2 is what is wanted"
        );
    }

    #[test]
    fn what_goes_on_by_itself_is_said() {
        let project = "shop".parse().unwrap();
        let released = Releases::from([("web".parse().unwrap(), ReleaseNumber(3))]);
        let table = [
            (
                interrupted(&project, &Releases::new()),
                "before anything was released",
            ),
            (
                interrupted(&project, &released),
                "web release 3 goes on rolling out by itself",
            ),
            (
                late(
                    Duration::from_secs(9),
                    &project,
                    &released,
                    &["web: 0 of 1 ready".to_owned()],
                ),
                "goes on by itself [timeout]\n  web: 0 of 1",
            ),
        ];
        for (failure, says) in table {
            assert!(failure.message.contains(says), "{}", failure.message);
            assert_eq!(failure.exit_code, crate::failure::UNKNOWN);
        }
    }
}
