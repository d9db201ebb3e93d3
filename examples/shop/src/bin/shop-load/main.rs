//! `shop-load`: an open-loop load on the shop that verifies every answer and afterwards audits the ledgers.
//!
//! ```text
//!  options ─▶ schedule ─▶ drive ──▶ send ──▶ the shop
//!             (when, what)  │  ◀── verify ◀── answers
//!                           ▼
//!                         tally ─▶ settle: ledger ─▶ audit ─▶ report, exit code
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`options`] | what the user types |
//! | [`schedule`] | when a request leaves and what it asks, from the seed alone |
//! | [`send`] | connections and exchanges, without a retry |
//! | [`verify`] | what an answer must be; pure |
//! | [`drive`] | sends what the schedule says and never waits for an answer before the next |
//! | [`tally`] | what came of the requests, within bounds |
//! | [`ledger`] | the shop's books and how to read them |
//! | [`audit`] | what is wrong in the books; pure |
//! | [`settle`] | reads and audits the books until nothing is pending |
//! | [`progress`] | a live line on a terminal |
//! | [`report`] | the figures, as JSON or as a table, and the exit code |

mod audit;
mod drive;
mod ledger;
mod options;
mod progress;
mod report;
mod schedule;
mod send;
mod settle;
mod tally;
#[cfg(test)]
mod tests;
mod verify;

use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use rand::TryRngCore as _;
use tokio::sync::watch;

use drive::RunId;
use options::{Options, Plan};
use report::Report;
use send::Client;
use tally::Tally;

/// The audit could not be done: nothing is known about the books.
const NO_AUDIT: u8 = 3;
/// What shells say of a program that ctrl-C ended.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let options = Options::parse();
    let plan = options.plan().unwrap_or_else(|error| error.exit());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .context("can't start")
        .and_then(|runtime| tokio::task::LocalSet::new().block_on(&runtime, interruptible(&plan)));
    match done {
        Ok(report) => conclude(&plan, &report),
        Err(error) => {
            eprintln!("shop-load: {error:#}");
            ExitCode::from(NO_AUDIT)
        }
    }
}

fn conclude(plan: &Plan, report: &Report) -> ExitCode {
    eprint!("{}", report.remarks());
    match plan.json {
        true => println!("{}", report.to_json()),
        false => print!("{}", report.to_table()),
    }
    ExitCode::from(u8::from(report.is_bad(plan.allow_failed)))
}

/// The first ctrl-C ends the sending, the second the program.
async fn interruptible(plan: &Plan) -> Result<Report> {
    let (stop, stopped) = watch::channel(false);
    tokio::task::spawn_local(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        eprintln!("shop-load: no more requests; the audit follows (ctrl-C again ends it)");
        let _ = stop.send(true);
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(INTERRUPTED);
        }
    });
    let entropy = rand::rngs::OsRng.try_next_u64();
    let run = RunId::new(entropy.context("no randomness for the keys")?);
    run_plan(plan, run, stopped).await
}

/// Loads, settles and audits.
async fn run_plan(plan: &Plan, run: RunId, stopped: watch::Receiver<bool>) -> Result<Report> {
    let client = Rc::new(Client::new(plan.target.clone(), plan.connections));
    let tally = match &plan.load {
        Some(load) => {
            let products = drive::products(&client).await?;
            drive::drive(&client, products, load, run, stopped).await?
        }
        None => Tally::default(),
    };
    let settled = settle::settle(&client, tally.promises(), plan.settle)
        .await
        .with_context(|| format!("{tally}\nthe ledgers could not be audited"))?;
    Ok(Report::new(&tally, &settled))
}
