//! `releases` and `rollout`: which versions there are, and how the newest one comes in.

use std::time::{Duration, Instant};

use api::wire;
use jiff::Timestamp;
use model::control::RolloutPhase;
use model::ids::ResourceName;

use crate::Globals;
use crate::failure::{FAILED, Failure, UNKNOWN};
use crate::output::{Output, age, table, word};
use crate::progress::{self, Rolled};

/// How long a rollout is waited for where nothing is said of it.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland releases web")]
pub struct Releases {
    /// The service
    service: ResourceName,
    #[command(flatten)]
    output: Output,
}

impl Releases {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let releases = client.releases(&project, &self.service).await?.items;
        let now = Timestamp::now();
        let none = format!("{} has no releases: it runs elsewhere", self.service);
        self.output.list(&releases, &none, || {
            let row = |release: &wire::ReleaseView| {
                let origin = match &release.origin {
                    model::compute::ReleaseOrigin::Apply => "apply".to_owned(),
                    model::compute::ReleaseOrigin::Restart => "restart".to_owned(),
                    model::compute::ReleaseOrigin::Rollback { to } => format!("rollback to {to}"),
                };
                [
                    release_mark(release),
                    age(release.at, now),
                    release.author.to_string(),
                    origin,
                    release.message.clone().unwrap_or_default(),
                    release.diff.join("; "),
                ]
            };
            table(
                ["RELEASE", "AGE", "AUTHOR", "BY", "MESSAGE", "CHANGE"],
                releases.iter().map(row),
            )
        })?;
        Ok(0)
    }
}

/// `3* failed`: what should serve has the star, and whose rollout was judged bad is called so.
fn release_mark(release: &wire::ReleaseView) -> String {
    let star = if release.current { "*" } else { "" };
    let failed = if release.failed { " failed" } else { "" };
    format!("{}{star}{failed}", release.number)
}

#[derive(Debug, clap::Subcommand)]
pub enum Rollout {
    /// How the newest release of a service rolls out
    Status(RolloutStatus),
    /// Hold it where it is, with the releases that serve now
    Pause(Steered),
    /// Let it go on
    Promote(Steered),
    /// Give it up: the release before serves
    Abort(Steered),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  mainland rollout pause web\n  mainland rollout promote web\n  mainland rollout abort web"
)]
pub struct Steered {
    /// The service
    service: ResourceName,
    #[command(flatten)]
    output: Output,
}

impl Steered {
    async fn run(self, globals: &Globals, to: wire::Steer) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let rollout = client.steer_rollout(&project, &self.service, to).await?;
        self.output
            .print(&rollout, || format!("{}: {}", self.service, rollout.reason))?;
        Ok(0)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1 if the rollout failed; with --wait also if it can't come until a person changes something. 3: it was neither done nor \
                  failed in time. One that somebody has paused is waited for.\n\n\
                  Example:\n  mainland rollout status web --wait"
)]
pub struct RolloutStatus {
    /// The service
    service: ResourceName,
    /// Wait until it is done or failed
    #[arg(short, long)]
    wait: bool,
    /// Wait, and for how long, such as 90s or 15m (default: 15m)
    #[arg(long, value_name = "TIME", value_parser = crate::parse_span, allow_hyphen_values = true)]
    timeout: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

impl Rollout {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self {
            Self::Status(command) => command.run(globals).await,
            Self::Pause(command) => command.run(globals, wire::Steer::Pause).await,
            Self::Promote(command) => command.run(globals, wire::Steer::Promote).await,
            Self::Abort(command) => command.run(globals, wire::Steer::Abort).await,
        }
    }
}

impl RolloutStatus {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let mut rollout = client.rollout(&project, &self.service).await?;
        let mut is_late = false;
        if let Some(patience) = self.timeout.or(self.wait.then_some(PATIENCE)) {
            let released = [(self.service.clone(), rollout.to)].into();
            let deadline = Instant::now() + patience;
            let rolled = progress::rolled_out(&client, &project, &released, deadline).await?;
            is_late = matches!(rolled, Rolled::Late(_));
            rollout = match rolled {
                Rolled::Failed { rollout, .. } => *rollout,
                _ => client.rollout(&project, &self.service).await?,
            };
        }
        self.output
            .print(&rollout, || in_words(&self.service, &rollout))?;
        Ok(match rollout.phase {
            RolloutPhase::Failed => FAILED,
            RolloutPhase::Rolling | RolloutPhase::Paused if is_late => UNKNOWN,
            _ => 0,
        })
    }
}

fn in_words(service: &ResourceName, rollout: &model::control::Rollout) -> String {
    let detail: String = rollout
        .reason
        .detail
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect();
    format!(
        "{service} to release {}: {}: {}\n{detail}",
        rollout.to,
        word(&rollout.phase),
        rollout.reason
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_that_failed_is_called_so() {
        for (current, failed, expected) in [
            (true, false, "3*"),
            (true, true, "3* failed"),
            (false, true, "3 failed"),
            (false, false, "3"),
        ] {
            // An older server says nothing of failures.
            let mut view = serde_json::json!({
                "service": "web", "number": 3, "author": "admin:root", "at": "2026-01-01T00:00:00Z",
                "origin": { "by": "apply" }, "diff": [], "digest": null, "current": current,
            });
            if failed {
                view["failed"] = true.into();
            }
            let view: wire::ReleaseView = serde_json::from_value(view).unwrap();
            assert_eq!(release_mark(&view), expected);
        }
    }
}
