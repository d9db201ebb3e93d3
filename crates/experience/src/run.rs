//! A command as a copy of a service would run it: with its files, environment, secrets and needs, on a node, whether or not a copy runs.

use model::ids::ResourceName;

use crate::Globals;
use crate::exec::{Asked, Place};
use crate::failure::Failure;

/// As a shell tells that somebody pressed ctrl-C.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "It has what a copy of the service's newest release has, but volumes: those stay with the copies. Nobody calls it, and it \
                  ends with this command. The exit code is that of what it ran.\n\n\
                  Examples:\n  mainland run --in web -- ./manage.py migrate\n  mainland run --in web -- env\n  \
                  mainland run --in web              # a shell\n  mainland run --in web -i -- psql < report.sql"
)]
pub struct Run {
    /// The service
    #[arg(long = "in", value_name = "SERVICE")]
    service: ResourceName,
    /// With a terminal, as for a shell (the default where this command has one and no other follows `--`)
    #[arg(short = 't', long)]
    terminal: bool,
    /// Pass standard input on (the default where no command follows `--`)
    #[arg(short = 'i', long)]
    interactive: bool,
    /// The command; left out: a shell, `sh`
    #[arg(last = true)]
    command: Vec<String>,
}

impl Run {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let asked = Asked::of(self.command, self.terminal, self.interactive)?;
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let place = Place::beside(client, &project, &self.service);
        tokio::select! {
            ended = asked.run(&place) => ended,
            // The server hears that nobody is connected, and has the node end it.
            _ = tokio::signal::ctrl_c() => Ok(INTERRUPTED),
        }
    }
}
