//! `scale`, `restart`, `rollback`, `secret`, `cordon`, `leave`, `nodes release`.

use std::io::IsTerminal;
use std::time::Duration;

use api::wire;
use jiff::Timestamp;
use model::ids::{NodeName, ReleaseNumber, ResourceName};

use crate::failure::Failure;
use crate::output::{Output, age, say, table};
use crate::{Globals, idempotency_key, input, progress};

/// Longest value of a secret.
pub const SECRET_MAX_BYTES: usize = 64 << 10;

/// `--wait`, `--timeout`.
#[derive(Debug, clap::Args)]
pub struct Waiting {
    /// Wait until it is done; exit 1 if it is not
    #[arg(short, long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::parse_span)]
    timeout: Duration,
}

impl Waiting {
    async fn run(
        &self,
        globals: &Globals,
        project: model::ids::ProjectName,
        service: &ResourceName,
    ) -> Result<u8, Failure> {
        match self.wait {
            true => {
                let subject = progress::Subject::services(project, [service.clone()]);
                progress::until_ready(globals, &[subject], self.timeout).await
            }
            false => Ok(0),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland scale web 5 --wait")]
pub struct Scale {
    service: ResourceName,
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1000))]
    replicas: u32,
    #[command(flatten)]
    waiting: Waiting,
}

impl Scale {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let scale = client.scale(&project, &self.service, self.replicas).await?;
        say(&format!(
            "{} is to have {} copies, asked for by {}; `mainland delete scale {}` returns to the manifest's number",
            self.service, scale.replicas, scale.owner, self.service
        ))?;
        self.waiting.run(globals, project, &self.service).await
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland restart web --wait")]
pub struct Restart {
    service: ResourceName,
    #[command(flatten)]
    waiting: Waiting,
}

impl Restart {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let released = client
            .restart(&project, &self.service, &idempotency_key())
            .await?;
        say(&format!(
            "{}: release {}: {}",
            released.service, released.release, released.consequence
        ))?;
        self.waiting.run(globals, project, &self.service).await
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Secrets keep their current values.\n\nExamples:\n  mainland rollback web\n  mainland rollback web --to 3 --wait"
)]
pub struct Rollback {
    service: ResourceName,
    /// The release to return to (default: the one before)
    #[arg(long, value_name = "RELEASE")]
    to: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
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
        say(&format!(
            "{}: release {}: {}",
            released.service, released.release, released.consequence
        ))?;
        self.waiting.run(globals, project, &self.service).await
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mainland cordon b\n  mainland uncordon b")]
pub struct Cordon {
    node: NodeName,
}

impl Cordon {
    pub async fn run(self, globals: &Globals, cordoned: bool) -> Result<u8, Failure> {
        globals.client()?.cordon(&self.node, cordoned).await?;
        let state = if cordoned {
            "takes no new instances"
        } else {
            "takes instances again"
        };
        say(&format!("node {} {state}", self.node))?;
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
    node: NodeName,
    /// Assent
    #[arg(short)]
    yes: bool,
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
        say(&format!(
            "node {} is removed.{}",
            removed.node,
            lost(&removed.lost_volumes)
        ))?;
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
    #[arg(short)]
    yes: bool,
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
                say("every node is heard or already given up: nothing is held")?;
                return Ok(0);
            }
            crate::assent(&format!(
                "Give up {}, and start elsewhere what ran there?",
                names.join(", ")
            ))?;
        }
        let given_up = client.release_brake().await?.given_up;
        let names: Vec<_> = given_up.iter().map(NodeName::to_string).collect();
        match names.is_empty() {
            true => say("nothing was held"),
            false => say(&format!(
                "given up: {}; `mainland ps` shows what starts elsewhere",
                names.join(", ")
            )),
        }?;
        Ok(0)
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum Secret {
    /// List secrets: never their values
    List(SecretList),
    /// Give a secret a value, read from standard input or a file
    Set(SecretSet),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland secret list")]
pub struct SecretList {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Running instances keep the old value until they restart.\n\nExample:\n  pass show payment | mainland secret set payment-key"
)]
pub struct SecretSet {
    name: ResourceName,
    /// Read the value from a file instead of standard input
    #[arg(long, value_name = "FILE")]
    file: Option<std::path::PathBuf>,
}

impl Secret {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self {
            Self::List(command) => command.run(globals).await,
            Self::Set(command) => command.run(globals).await,
        }
    }
}

/// As every kind of resource is listed: name and revision beside it.
#[derive(serde::Deserialize)]
struct ListedSecret {
    spec: wire::SecretView,
}

impl SecretList {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let path = format!("/v1/projects/{project}/secrets");
        let listed = client.get::<wire::List<ListedSecret>>(&path).await?.items;
        let secrets: Vec<_> = listed.into_iter().map(|listed| listed.spec).collect();
        let now = Timestamp::now();
        self.output.print(&secrets, || {
            let row = |secret: &wire::SecretView| {
                [
                    secret.name.to_string(),
                    secret.version.to_string(),
                    age(secret.changed_at, now),
                    secret.changed_by.to_string(),
                    secret.key_id.clone(),
                ]
            };
            table(
                ["NAME", "VERSION", "AGE", "BY", "KEY"],
                secrets.iter().map(row),
            )
        })?;
        Ok(0)
    }
}

impl SecretSet {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let bytes = match &self.file {
            Some(path) => std::fs::read(path).map_err(|error| {
                Failure::failed(format!("{} can't be read: {error}", path.display()))
            })?,
            None => read_stdin()?,
        };
        let value = wire::SecretValue {
            value: encode_secret(&bytes)?,
        };
        let view = client.set_secret(&project, &self.name, &value).await?;
        say(&format!(
            "secret {} has version {}; what runs keeps the old one until it restarts",
            view.name, view.version
        ))?;
        Ok(0)
    }
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    if std::io::stdin().is_terminal() {
        eprintln!("Type the value, then ctrl-D:");
    }
    let mut bytes = input::read(std::io::stdin(), SECRET_MAX_BYTES)?;
    // What a person or `echo` ends a line with is not part of the value.
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    Ok(bytes)
}

/// A secret's value as it travels.
pub fn encode_secret(bytes: &[u8]) -> Result<String, Failure> {
    use base64::Engine;
    match bytes.len() {
        0 => Err(Failure::failed("an empty value is no secret")),
        length if length > SECRET_MAX_BYTES => Err(Failure::failed(format!(
            "a secret holds at most {SECRET_MAX_BYTES} bytes"
        ))),
        _ => Ok(base64::engine::general_purpose::STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
