//! `scale`, `restart`, `rollback`, `cordon`, `leave`, `nodes release`.

use std::time::Duration;

use api::wire;
use model::ids::{NodeName, ReleaseNumber, ResourceName};

use crate::failure::Failure;
use crate::output::{Output, count, warnings};
use crate::{Globals, idempotency_key, progress};

/// `--wait`, `--timeout`.
#[derive(Debug, clap::Args)]
pub struct Waiting {
    /// Wait until it is done; exit 1 if it is not, or can't be until a person changes something
    #[arg(short, long)]
    wait: bool,
    /// Wait, and for how long, such as 90s or 5m (default: 120s)
    #[arg(long, value_name = "TIME", value_parser = crate::parse_span, allow_hyphen_values = true)]
    timeout: Option<Duration>,
}

/// How long is waited where nothing is said of it.
const PATIENCE: Duration = Duration::from_secs(120);

impl Waiting {
    /// How long to wait, where that is asked for: who says how long asks for it.
    pub fn patience(&self) -> Option<Duration> {
        self.timeout.or(self.wait.then_some(PATIENCE))
    }

    async fn run(
        &self,
        globals: &Globals,
        project: model::ids::ProjectName,
        service: &ResourceName,
        output: Output,
    ) -> Result<u8, Failure> {
        let Some(patience) = self.patience() else {
            return Ok(0);
        };
        let subject = progress::Subject::services(project, [service.clone()]);
        progress::until_done(globals, subject, patience, output).await
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  mainland scale web 5 --wait\n  mainland delete scale web        the manifest's number again"
)]
pub struct Scale {
    /// The service
    service: ResourceName,
    /// How many copies, 0 to 1000
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1000))]
    replicas: u32,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    output: Output,
}

impl Scale {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let scaled = client.scale(&project, &self.service, self.replicas).await?;
        self.output.print(&scaled, || {
            let text = format!(
                "{} is to have {}, asked for by {}; `mainland delete scale {}{}` returns to the manifest's number",
                self.service,
                count(u64::from(scaled.scale.replicas), "copy", "copies"),
                scaled.scale.owner,
                self.service,
                globals.aim()
            );
            text + &warnings(&scaled.warnings)
        })?;
        self.waiting
            .run(globals, project, &self.service, self.output)
            .await
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland restart web --wait")]
pub struct Restart {
    /// The service
    service: ResourceName,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    output: Output,
}

impl Restart {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let released = client
            .restart(&project, &self.service, &idempotency_key())
            .await?;
        self.output.print(&released, || in_words(&released))?;
        self.waiting
            .run(globals, project, &self.service, self.output)
            .await
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Secrets keep their current values.\n\nExamples:\n  mainland rollback web\n  mainland rollback web --to 3 --wait"
)]
pub struct Rollback {
    /// The service
    service: ResourceName,
    /// The release to return to, as `mainland releases` numbers them (default: the one before)
    #[arg(long, value_name = "RELEASE")]
    to: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    output: Output,
}

impl Rollback {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let rollback = wire::Rollback {
            to: self.to.map(ReleaseNumber),
        };
        let released = client
            .rollback(&project, &self.service, &rollback, &idempotency_key())
            .await?;
        self.output.print(&released, || in_words(&released))?;
        self.waiting
            .run(globals, project, &self.service, self.output)
            .await
    }
}

fn in_words(released: &wire::Released) -> String {
    format!(
        "{}: release {}: {}",
        released.service, released.release, released.consequence
    )
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "What runs there stays, and no copy comes that could go elsewhere. A copy whose volume lives there can't: restarted or deployed anew, it starts \
                  there again.\n\nExamples:\n  mainland cordon b\n  mainland uncordon b"
)]
pub struct Cordon {
    /// The node, as `mainland nodes` lists it
    node: NodeName,
    #[command(flatten)]
    output: Output,
}

impl Cordon {
    pub async fn run(self, globals: &Globals, cordoned: bool) -> Result<u8, Failure> {
        let view = globals.client()?.cordon(&self.node, cordoned).await?;
        let state = if cordoned {
            "takes no new instances"
        } else {
            "takes instances again"
        };
        self.output
            .print(&view, || format!("node {} {state}", self.node))?;
        Ok(0)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "For a node that is lost for good, or cordoned with nothing on it. What had a volume there waits, and says so, until its service \
                  is deleted with its data. To take the machine in again, let it join anew.\n\n\
                  Examples:\n  mainland leave node-3\n  mainland leave node-3 -y"
)]
pub struct Leave {
    /// The node, as `mainland nodes` lists it
    node: NodeName,
    /// Assent
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

impl Leave {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        if !self.yes {
            let would = client.remove_node(&self.node, true).await?;
            crate::assent(&format!(
                "Remove node {} for good?{}",
                self.node,
                lost(&would.lost_volumes)
            ))?;
        }
        let removed = client.remove_node(&self.node, false).await?;
        self.output.print(&removed, || {
            let lost = lost(&removed.lost_volumes);
            format!("node {} is removed.{lost}", removed.node)
        })?;
        Ok(0)
    }
}

/// ` The volume of shop/db copy 0 is lost with it.`, or nothing.
fn lost(volumes: &[wire::LostVolume]) -> String {
    let names: Vec<_> = volumes
        .iter()
        .map(|lost| format!("{}/{} copy {}", lost.project, lost.service, lost.slot))
        .collect();
    match names.len() {
        0 => String::new(),
        1 => format!(" The volume of {} is lost with it.", names[0]),
        _ => format!(" The volumes of {} are lost with it.", names.join(", ")),
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum OnNodes {
    /// Say that the nodes that vanished at once are gone: what ran there is started elsewhere
    Release(Release),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Only where a brake holds: `mainland status` shows it. Volumes stay where they are; what needs one waits for its node.\n\n\
                  Example:\n  mainland nodes release -y"
)]
pub struct Release {
    /// Assent
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

impl OnNodes {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let Self::Release(command) = self;
        command.run(globals).await
    }
}

impl Release {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        if !self.yes {
            let is_missing = |node: &wire::NodeView| {
                matches!(
                    node.state,
                    wire::NodeState::Silent | wire::NodeState::Unknown
                )
            };
            let missing = client.nodes().await?.items.into_iter().filter(is_missing);
            let names: Vec<_> = missing.map(|node| node.name.to_string()).collect();
            if names.is_empty() {
                let given_up = Vec::new();
                return self.told(&wire::BrakeReleased { given_up });
            }
            crate::assent(&format!(
                "Give up {}, and start elsewhere what ran there?",
                names.join(", ")
            ))?;
        }
        self.told(&client.release_brake().await?)
    }

    fn told(&self, released: &wire::BrakeReleased) -> Result<u8, Failure> {
        let names: Vec<_> = released.given_up.iter().map(NodeName::as_str).collect();
        self.output.print(released, || match names.is_empty() {
            true => "every node is heard or already given up: nothing is held".to_owned(),
            false => format!(
                "given up: {}; `mainland ps` shows what starts elsewhere",
                names.join(", ")
            ),
        })?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_how_long_to_wait_waits() {
        #[derive(clap::Parser)]
        struct Words {
            #[command(flatten)]
            waiting: Waiting,
        }
        let seconds = |words: &[&str]| {
            let words = [&["scale"], words].concat();
            let parsed = <Words as clap::Parser>::try_parse_from(words).unwrap();
            parsed.waiting.patience().map(|patience| patience.as_secs())
        };
        assert_eq!(seconds(&[]), None);
        assert_eq!(seconds(&["--wait"]), Some(120));
        assert_eq!(seconds(&["--timeout", "9s"]), Some(9));
        assert_eq!(seconds(&["--wait", "--timeout", "9s"]), Some(9));
    }

    #[test]
    fn lost_volumes_are_named() {
        let volume = |slot| wire::LostVolume {
            project: "shop".parse().unwrap(),
            service: "db".parse().unwrap(),
            slot,
        };
        let table = [
            (vec![], ""),
            (
                vec![volume(0)],
                " The volume of shop/db copy 0 is lost with it.",
            ),
            (
                vec![volume(0), volume(2)],
                " The volumes of shop/db copy 0, shop/db copy 2 are lost with it.",
            ),
        ];
        for (volumes, expected) in table {
            assert_eq!(lost(&volumes), expected);
        }
    }
}
