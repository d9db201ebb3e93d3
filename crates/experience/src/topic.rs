//! `topic list`, `peek`, `dead`, `redrive`, `discard`, `publish`: a command a module, and `mend` for the two about dead letters.

mod dead;
mod list;
mod mend;
mod peek;
mod publish;

use api::client::Client;
use api::wire::EngineView;
use model::ids::{ProjectName, ResourceName};
use model::state::EngineStatus;

use crate::Globals;
use crate::failure::Failure;
use crate::output::word;

use dead::Dead;
use list::List;
use mend::{Discard, Redrive};
use peek::Peek;
use publish::Publish;

pub use list::topic_table;

/// Asked for at one time.
const PAGE: u32 = 100;

#[derive(Debug, clap::Subcommand)]
pub enum Topic {
    /// List topics, and how far their consumers are
    List(List),
    /// Look at messages without taking them
    Peek(Peek),
    /// List the messages that consumers could not take
    Dead(Dead),
    /// Deliver dead letters anew
    Redrive(Redrive),
    /// Give dead letters up
    Discard(Discard),
    /// Publish a message
    Publish(Publish),
}

impl Topic {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        match self {
            Self::List(command) => command.run(&client, &project).await,
            Self::Peek(command) => command.run(&client, &project).await,
            Self::Dead(command) => command.run(&client, &project).await,
            Self::Redrive(command) => command.run(&client, &project).await,
            Self::Discard(command) => command.run(&client, &project).await,
            Self::Publish(command) => command.run(&client, &project).await,
        }
    }
}

/// The consumers of a topic; with `only` that one. What else the project has by that name is no topic.
async fn consumers(
    client: &Client,
    project: &ProjectName,
    topic: &ResourceName,
    only: Option<&ResourceName>,
) -> Result<Vec<ResourceName>, Failure> {
    let consumers: Vec<_> = match client.engine_status(project, topic).await? {
        EngineStatus::Topic { consumers, .. } => consumers.into_keys().collect(),
        EngineStatus::Postgres { .. } => {
            return Err(Failure::failed(format!(
                "`{topic}` is a database [not-found]\n  remedy: `mainland topic list` names topics"
            )));
        }
    };
    match only {
        None => Ok(consumers),
        Some(only) if consumers.contains(only) => Ok(vec![only.clone()]),
        Some(only) => Err(Failure::missing(
            format!("{topic} has no consumer `{only}`"),
            only.as_str(),
            consumers.iter().map(ResourceName::as_str),
            "`mainland topic list` lists them",
        )),
    }
}

/// Why nothing is known of an engine.
pub fn silence(view: &EngineView) -> String {
    let why = view.silence.as_ref();
    let why = why.map_or_else(|| word(&view.state), |reason| reason.message.clone());
    format!("no answer: {why}")
}
