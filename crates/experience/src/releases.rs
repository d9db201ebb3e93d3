//! `releases` and `rollout`: which versions there are, and how the newest one comes in.

use std::time::Duration;

use api::wire;
use jiff::Timestamp;
use model::ids::ResourceName;

use crate::Globals;
use crate::failure::Failure;
use crate::output::{Output, age, say, table, word};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland releases web")]
pub struct Releases {
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
        self.output.print(&releases, || {
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
                    release.diff.join("; "),
                ]
            };
            table(
                ["RELEASE", "AGE", "AUTHOR", "BY", "CHANGE"],
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
    service: ResourceName,
}

impl Steered {
    async fn run(self, globals: &Globals, to: wire::Steer) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let rollout = client.steer_rollout(&project, &self.service, to).await?;
        say(&format!("{}: {}", self.service, rollout.reason))?;
        Ok(0)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1 if the rollout failed.\n\nExample:\n  mainland rollout status web --wait"
)]
pub struct RolloutStatus {
    service: ResourceName,
    /// Wait until it is done or failed
    #[arg(short, long)]
    wait: bool,
    #[command(flatten)]
    output: Output,
}

/// Between looks at a rollout.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

impl Rollout {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let command = match self {
            Self::Status(command) => command,
            Self::Pause(command) => return command.run(globals, wire::Steer::Pause).await,
            Self::Promote(command) => return command.run(globals, wire::Steer::Promote).await,
            Self::Abort(command) => return command.run(globals, wire::Steer::Abort).await,
        };
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let rollout = loop {
            let rollout = client.rollout(&project, &command.service).await?;
            let rolling = rollout.phase == model::control::RolloutPhase::Rolling;
            if !(command.wait && rolling) {
                break rollout;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        command.output.print(&rollout, || {
            let detail: String = rollout
                .reason
                .detail
                .iter()
                .map(|line| format!("  {line}\n"))
                .collect();
            format!(
                "{} to release {}: {}: {}\n{detail}",
                command.service,
                rollout.to,
                word(&rollout.phase),
                rollout.reason
            )
        })?;
        Ok(u8::from(
            rollout.phase == model::control::RolloutPhase::Failed,
        ))
    }
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
