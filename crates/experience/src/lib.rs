//! What a person types and reads: the API client and nothing else.
//!
//! | module | what it does |
//! |---|---|
//! | [`context`] | where the server is, which project is meant |
//! | [`failure`] | errors for people: a code, a remedy, an exit code |
//! | [`output`] | tables for people, JSON and YAML for programs |
//! | `input` | files and standard input, within bounds |
//! | [`deploy`] | `check`, `diff`, `apply`, `deploy`, `delete`: manifest in, consequences out |
//! | [`artifact`] | what `run` names, as bytes with a digest, uploaded |
//! | [`ps`] | `ps` |
//! | [`see`] | `nodes`, `status`, `get`, `explain` |
//! | [`events`] | `events` |
//! | [`audit`] | `audit`, `audit verify` |
//! | [`releases`] | `releases`, `rollout` |
//! | [`logs`] | the output of instances, merged |
//! | [`exec`] | a command beside an instance, with a terminal |
//! | [`run`] | a command as a copy of a service would run it, without one |
//! | [`connect`] | a port of this machine that leads to a service |
//! | [`operate`] | `scale`, `restart`, `rollback`, `cordon`, `leave`, `nodes release` |
//! | [`secret`] | `secret list`, `set`, `rotate-key` |
//! | [`key`] | `key get`, `put`, `list`, `delete` |
//! | [`topic`] | `topic list`, `peek`, `dead`, `redrive`, `discard`, `publish` |
//! | `engines` | databases and topics with what they say of themselves |
//! | [`db`] | `db list`, `connect`, `dump`, `load` |
//! | [`names`] | the names that the cloud knows, for completion |
//! | [`progress`] | waiting, with something to look at |
//! | [`doctor`] | what this machine has and lacks |

pub mod artifact;
pub mod audit;
pub mod connect;
pub mod context;
pub mod db;
pub mod deploy;
pub mod doctor;
mod engines;
pub mod events;
pub mod exec;
pub mod failure;
mod input;
pub mod key;
pub mod logs;
pub mod names;
pub mod operate;
pub mod output;
pub mod progress;
pub mod ps;
pub mod releases;
pub mod run;
pub mod secret;
pub mod see;
pub mod topic;

use std::io::{IsTerminal, Write};
use std::time::Duration;

pub use context::Globals;
use failure::Failure;

/// What a user types, apart from what starts and ends Mainland itself.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Read the manifest and say what is wrong with it, without a server
    Check(deploy::Check),
    /// Say what `apply` would change, and what that means for what runs
    Diff(deploy::Diff),
    /// Make the manifest true
    Apply(deploy::ApplyFile),
    /// Upload, release and roll out what the manifest changes, one deploy at a time
    Deploy(deploy::Deploy),
    /// Remove a resource, or the whole project
    Delete(deploy::Delete),
    /// Show resources as they are stored
    Get(see::Get),
    /// List instances
    Ps(ps::Ps),
    /// Show how the project does
    Status(see::Status),
    /// List machines
    Nodes(see::Nodes),
    /// Show the output of instances
    Logs(logs::Logs),
    /// Show what happened
    Events(events::Events),
    /// Show who changed what, and what was refused
    Audit(audit::Audit),
    /// Say why a service, instance, route or node is as it is
    Explain(see::Explain),
    /// Run a command beside an instance
    Exec(exec::Exec),
    /// Run a command as a copy of a service would, beside those that run
    Run(run::Run),
    /// Open a port here that leads to a service
    Connect(connect::Connect),
    /// Ask for a number of copies; `apply` does not undo it
    Scale(operate::Scale),
    /// Start every instance of a service anew, one after the other
    Restart(operate::Restart),
    /// How a change rolls out
    #[command(
        subcommand,
        after_help = "Example:\n  mainland rollout status web --wait"
    )]
    Rollout(releases::Rollout),
    /// List the releases of a service
    Releases(releases::Releases),
    /// Return to an earlier release
    Rollback(operate::Rollback),
    /// Wait until everything is ready
    Wait(progress::Wait),
    /// List secrets, or give one a value
    #[command(
        subcommand,
        after_help = "Example:\n  pass show payment | mainland secret set payment-key"
    )]
    Secret(secret::Secret),
    /// Read and write a project's small durable values
    #[command(
        subcommand,
        after_help = "Example:\n  mainland key put flags/dark-mode on"
    )]
    Key(key::Key),
    /// Look into topics, and mend what was not delivered
    #[command(subcommand, after_help = "Example:\n  mainland topic list")]
    Topic(topic::Topic),
    /// Look into databases, write them out and read them in
    #[command(subcommand, after_help = "Example:\n  mainland db list")]
    Db(db::Db),
    /// No new placements on a node
    Cordon(operate::Cordon),
    /// Placements on a node again
    Uncordon(operate::Cordon),
    /// Remove a node for good
    Leave(operate::Leave),
    /// Who you are to the server
    Whoami(see::WhoAmI),
    /// Print the JSON Schema of the manifest, for editors
    #[command(after_help = "Example:\n  mainland schema > mainland.schema.json")]
    Schema,
}

impl Command {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self {
            Self::Check(command) => command.run(globals).await,
            Self::Diff(command) => command.run(globals).await,
            Self::Apply(command) => command.run(globals).await,
            Self::Deploy(command) => command.run(globals).await,
            Self::Delete(command) => command.run(globals).await,
            Self::Get(command) => command.run(globals).await,
            Self::Ps(command) => command.run(globals).await,
            Self::Status(command) => command.run(globals).await,
            Self::Nodes(command) => command.run(globals).await,
            Self::Logs(command) => command.run(globals).await,
            Self::Events(command) => command.run(globals).await,
            Self::Audit(command) => command.run(globals).await,
            Self::Explain(command) => command.run(globals).await,
            Self::Exec(command) => command.run(globals).await,
            Self::Run(command) => command.run(globals).await,
            Self::Connect(command) => command.run(globals).await,
            Self::Scale(command) => command.run(globals).await,
            Self::Restart(command) => command.run(globals).await,
            Self::Rollout(command) => command.run(globals).await,
            Self::Releases(command) => command.run(globals).await,
            Self::Rollback(command) => command.run(globals).await,
            Self::Wait(command) => command.run(globals).await,
            Self::Secret(command) => command.run(globals).await,
            Self::Key(command) => command.run(globals).await,
            Self::Topic(command) => command.run(globals).await,
            Self::Db(command) => command.run(globals).await,
            Self::Cordon(command) => command.run(globals, true).await,
            Self::Uncordon(command) => command.run(globals, false).await,
            Self::Leave(command) => command.run(globals).await,
            Self::Whoami(command) => command.run(globals).await,
            Self::Schema => {
                output::say(&format!("{:#}", model::manifest::schema()))?;
                Ok(0)
            }
        }
    }
}

/// Reads a length of time as the manifest does: `90s`, `2m`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    text.parse::<model::units::Span>()
        .map(|span| span.duration())
        .map_err(|error| error.to_string())
}

/// Says something beside the output proper.
pub fn notice(text: &str) {
    // A closed stderr is no reason to end.
    let _ = writeln!(std::io::stderr(), "mainland: {}", output::for_stderr(text));
}

/// Asks a person; who is none must say `-y`.
pub fn assent(question: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "{question} Say -y: nobody is here to ask."
        )));
    }
    eprint!("{} [y/N] ", output::for_stderr(question));
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(Failure::from_error)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::from(anyhow::anyhow!("nothing was changed"))),
    }
}

/// A key that makes one POST of this command safe to repeat.
fn idempotency_key() -> String {
    use rand::TryRngCore;
    let mut bytes = [0; 16];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .expect("the kernel gives random bytes");
    format!("{:032x}", u128::from_ne_bytes(bytes))
}
