//! `mainland start`: what brings a node back that `chaos kill` ended, or that was removed.

use std::time::Duration;

use anyhow::Context;
use experience::Globals;
use experience::failure::Failure;

use super::layout::{Layout, State};
use super::supervisor::Supervisor;
use super::{STOP_TIMEOUT, current_binary, ending_signal, process, told};

/// Between two looks for something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The exit status of who was interrupted, as of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;
/// For a node that was started to learn whether it still is one: it asks a server first, and its disk may be slow.
const START_TOLD: Duration = Duration::from_secs(10);

/// Start a node again that was killed with `chaos kill`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  mainland start b\n  mainland start b --join")]
pub struct Start {
    /// The node's name, as `mainland nodes` lists it
    #[arg(value_name = "NODE")]
    node: String,
    /// Let it in again, with its volumes, after it was removed with `leave`
    #[arg(long)]
    join: bool,
}

impl Start {
    pub async fn run(self, globals: Globals) -> Result<u8, Failure> {
        let layout = Layout {
            data: globals.data_dir()?,
        };
        let state =
            State::load(&layout.state()).context("no `up` runs here: `mainland up` starts one")?;
        if !layout.has_joined(&self.node) {
            let known = layout.known_nodes();
            return Err(Failure::missing(
                format!("there is no node `{}` here", self.node),
                &self.node,
                known.iter().map(String::as_str),
                &format!("known: {}", known.join(", ")),
            ));
        }
        let kill = layout.killed_by(&self.node);
        // Who interrupts it waits no longer. What was begun is whole: a node that was started is wanted.
        let ending = ending_signal()?;
        tokio::pin!(ending);
        let supervisor = Supervisor::new(layout.clone(), state, current_binary()?);
        let started = tokio::select! {
            started = self.start(&globals, &layout, supervisor) => started?,
            () = &mut ending => return Ok(INTERRUPTED),
        };
        // `up` sees that it lives, though it does not answer yet.
        if let Some(kill) = kill {
            layout.take_back(&self.node, &kill, None)?;
        }
        if !started {
            println!("Node {} runs already.", self.node);
            return Ok(0);
        }
        let removed = tokio::select! {
            removed = is_removed(&globals, &layout, &self.node) => removed,
            () = &mut ending => return Ok(INTERRUPTED),
        };
        if !self.join && removed {
            return Err(
                anyhow::anyhow!(told::told_removal(&self.node, &layout.node(&self.node))).into(),
            );
        }
        println!("Node {} starts.", self.node);
        Ok(0)
    }

    /// False where it runs.
    async fn start(
        &self,
        globals: &Globals,
        layout: &Layout,
        mut supervisor: Supervisor,
    ) -> Result<bool, Failure> {
        Ok(match self.join {
            true => {
                let client = globals.client()?;
                removed_has_ended(layout, &self.node).await;
                supervisor.start_removed_node(&self.node, &client).await?
            }
            false => supervisor.start_known_node(&self.node)?,
        })
    }
}

/// Waits, within bounds, for an agent to end that was told that its node was removed.
async fn removed_has_ended(layout: &Layout, node: &str) {
    let ended = || !layout.is_removed(node) || layout.agent(node).is_none();
    within(STOP_TIMEOUT, || ended().then_some(())).await;
}

/// Waits until the agent that was just started answers, or has learnt that it is to run nothing.
async fn is_removed(globals: &Globals, layout: &Layout, node: &str) -> bool {
    let socket = layout.node_socket(node);
    let knows = || layout.is_removed(node) || process::listening_on(&socket).is_some();
    let told = within(START_TOLD, || knows().then(|| layout.is_removed(node))).await;
    // An agent that servers do not answer in time goes on with what it has kept, and listens. They know better.
    told == Some(true) || servers_know_none(globals, node).await
}

/// Whether servers answer, and say that there is no such node.
async fn servers_know_none(globals: &Globals, node: &str) -> bool {
    let known = async { globals.client().ok()?.nodes().await.ok() };
    let known = tokio::time::timeout(START_TOLD, known).await.ok().flatten();
    known.is_some_and(|nodes| nodes.items.iter().all(|known| known.name.as_str() != node))
}

/// Looks again and again until there is an answer, or `patience` is over.
async fn within<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        if let Some(answer) = look() {
            return Some(answer);
        }
        if std::time::Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
