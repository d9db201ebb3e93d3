//! `topic redrive` and `topic discard`: what becomes of dead letters.

use api::client::{Client, Error};
use model::ids::{ProjectName, ResourceName};
use model::state::{DeadLetters, Discarded, Redriven};

use super::consumers;
use crate::assent;
use crate::failure::Failure;
use crate::output::Output;

/// Dead letters that a topic redrives or gives up by one request.
const AT_ONCE: u64 = 4096;

const ROUNDS_MOST: u32 = 1000;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A consumer may get a message twice: it must bear that anyway.\n\n\
                  Examples:\n  mainland topic redrive order-events 42\n  mainland topic redrive order-events --consumer email --all"
)]
pub struct Redrive {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Their consumers never get them.\n\nExample:\n  mainland topic discard order-events 42 -y"
)]
pub struct Discard {
    #[command(flatten)]
    which: Which,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The topic
    topic: ResourceName,
    /// Positions, as `topic dead` lists them
    positions: Vec<u64>,
    /// Only those of this service
    #[arg(long, value_name = "SERVICE")]
    consumer: Option<ResourceName>,
    /// Every one
    #[arg(long, conflicts_with = "positions")]
    all: bool,
}

impl Redrive {
    pub(super) async fn run(self, client: &Client, project: &ProjectName) -> Result<u8, Failure> {
        let which = &self.which;
        which.letters()?;
        consumers(client, project, &which.topic, which.consumer.as_ref()).await?;
        let redrive = async |letters: &DeadLetters| {
            let told = client.redrive(project, &which.topic, letters).await?;
            Ok(told.redriven)
        };
        let redriven = which.each_round(redrive).await?;
        let told = Redriven { redriven };
        self.output
            .print(&told, || which.told("are delivered anew", redriven))?;
        Ok(which.code(redriven))
    }
}

impl Discard {
    pub(super) async fn run(self, client: &Client, project: &ProjectName) -> Result<u8, Failure> {
        let which = &self.which;
        which.letters()?;
        consumers(client, project, &which.topic, which.consumer.as_ref()).await?;
        if !self.yes {
            let what = match which.all {
                true => "all dead letters".to_owned(),
                false => format!("{} dead letters", which.positions.len()),
            };
            assent(&format!("Give up {what} of {} for good?", which.topic))?;
        }
        let discard = async |letters: &DeadLetters| {
            let told = client.discard(project, &which.topic, letters).await?;
            Ok(told.discarded)
        };
        let discarded = which.each_round(discard).await?;
        let told = Discarded { discarded };
        self.output
            .print(&told, || which.told("are given up", discarded))?;
        Ok(which.code(discarded))
    }
}

impl Which {
    fn letters(&self) -> Result<DeadLetters, Failure> {
        if self.positions.is_empty() && !self.all {
            return Err(Failure::usage(format!(
                "which? Name positions, or --all; `mainland topic dead {}` lists them",
                self.topic
            )));
        }
        Ok(DeadLetters {
            consumer: self.consumer.clone(),
            positions: (!self.all).then(|| self.positions.clone()),
        })
    }

    /// Asks until all are done: they are many, and more may die meanwhile. Returns how many were.
    async fn each_round(
        &self,
        ask: impl AsyncFn(&DeadLetters) -> Result<u64, Error>,
    ) -> Result<u64, Failure> {
        let letters = self.letters()?;
        let rounds = if self.all { ROUNDS_MOST } else { 1 };
        let mut done = 0;
        for _ in 0..rounds {
            let more = ask(&letters).await?;
            done += more;
            if more < AT_ONCE {
                break;
            }
        }
        Ok(done)
    }

    fn told(&self, what: &str, done: u64) -> String {
        let missed = self.missed(done);
        format!("dead letters of {} that {what}: {done}{missed}", self.topic)
    }

    fn code(&self, done: u64) -> u8 {
        u8::from(!self.missed(done).is_empty())
    }

    /// For who named positions: fewer than these were there.
    fn missed(&self, done: u64) -> String {
        match done < self.positions.len() as u64 {
            true => format!(
                "; the others are no dead letters: `mainland topic dead {}` lists them",
                self.topic
            ),
            false => String::new(),
        }
    }
}
